//! The immutable view that a pick reads, and the live state that outlives views.
//!
//! ```text
//! ArcSwap ─► View ── members: every registered instance, sorted by id
//!             │        ├─► Arc<Live>    live state of the address, outlives views
//!             │        └─► Arc<Bodies>  rendered answers
//!             ├── picks: number of picks of each member in this view
//!             ├── all: Candidates = the slots that can be picked + the prepared strategy
//!             ├── tagged: Candidates for a set of tags, made on first use, at most 64 sets
//!             └── epoch: the version of the admissions that the view was made from
//! ```
//!
//! **Admissions act at once, tables a moment later.** The [`Admission`] of an address is an atomic
//! in its live state, and a change acts on the next pick. If the epoch of the view equals the
//! epoch of the service, no admission has changed since the tables were made, and a pick reads
//! none. Otherwise a pick reads the admission of each candidate that it considers, and draws
//! another candidate at random by weight in place of one that is out. A new view with new tables
//! follows a moment later.
//!
//! A view never changes. Load, latency and counters change, and are atomics behind the view's
//! `Arc<Live>`s. Only picks are counted in the view, which later adds them to the live state.
//! Readers therefore always see a single view, and a new view keeps all that was learned.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use super::config::{LoadBalancerConfig, LoadBalancingStrategy};
use super::context::Context;
use super::health::ejection::{Admission, PoolHealth};
use super::instance::InstanceId;
use super::live::Load;
use super::member::{Member, Slot};
use super::statistics::PickCounts;
use super::strategy::Prepared;
use super::strategy::consistent_hash::ConsistentHash;
use super::strategy::draw::{AdmissionCheck, Draw, Mode, Strategy};
use super::strategy::ring::Ring;
use super::strategy::schedule::Turn;

/// Maximum number of tag sets with a table of their own. Picks with further tag sets redraw until
/// the tags match.
const MAX_TAG_SETS: usize = 64;

/// The slots that can be picked, and the prepared strategy.
#[derive(Debug)]
pub(crate) struct Candidates {
    slots: Box<[Slot]>,
    prepared: Prepared,
}

impl Candidates {
    fn new(
        config: &LoadBalancerConfig,
        members: &[Member],
        turn: Arc<Turn>,
        ring: Option<Arc<Ring>>,
        tags: &[&str],
    ) -> Self {
        let wanted = Context::new().with_tags(tags);
        let slots: Box<[Slot]> = members
            .iter()
            .enumerate()
            .filter(|(_, member)| member.units > 0 && member.admission != Admission::Out)
            .filter(|(_, member)| wanted.admits(member.instance()))
            .map(|(index, member)| Slot {
                member: index as u32,
                units: member.units,
                live: Arc::clone(&member.live),
            })
            .collect();
        let prepared = Prepared::new(config, &slots, members, turn, ring);
        Self { slots, prepared }
    }
}

/// The candidates for one set of tags.
struct Tagged {
    tags: Box<[Box<str>]>,
    candidates: Candidates,
}

impl Tagged {
    fn is_for(&self, tags: &[&str]) -> bool {
        self.tags.len() == tags.len() && tags.iter().all(|tag| self.tags.iter().any(|own| **own == **tag))
    }
}

/// All data that a pick reads.
pub(crate) struct View {
    pub(crate) config: LoadBalancerConfig,
    pub(crate) members: Box<[Member]>,
    pub(crate) picks: PickCounts,
    /// The version of the admissions that this view was made from; [`ALWAYS_CHECK`] if every pick
    /// has to read admissions.
    pub(crate) epoch: u64,
    /// Panic mode: all eligible members are candidates, whatever active checks and breakers say.
    pub(crate) panic: bool,
    /// Number of members that only active checks and breakers can take out, and of those that they
    /// do not take out.
    pub(crate) eligible: usize,
    pub(crate) usable: usize,
    all: Candidates,
    ring: Option<Arc<Ring>>,
    /// For alternates, which are asked of a pick.
    load: Arc<Load>,
    tagged: OnceLock<Box<[OnceLock<Tagged>]>>,
}

/// The epoch of a view in which a trial may be let through. The epoch of a service never has this
/// value.
const ALWAYS_CHECK: u64 = u64::MAX;

/// The parts of a new view, besides its members.
pub(crate) struct ViewParts<'a> {
    pub(crate) epoch: u64,
    pub(crate) health: PoolHealth,
    pub(crate) load: Arc<Load>,
    pub(crate) turn: Arc<Turn>,
    pub(crate) previous: Option<&'a View>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("members", &self.members.len())
            .finish_non_exhaustive()
    }
}

impl View {
    /// The instance of this id; without one, the instances that a registry lists under this id.
    pub(crate) fn ids_of(&self, id: &InstanceId) -> Vec<&InstanceId> {
        if let Ok(found) = self.members.binary_search_by(|member| member.instance.id().cmp(id)) {
            return self
                .members
                .get(found)
                .map(|member| member.instance.id())
                .into_iter()
                .collect();
        }
        let registered = self
            .members
            .iter()
            .filter(|member| member.instance.is_registered_as(id));
        registered.map(|member| member.instance.id()).collect()
    }

    /// Prepares a view of `members`, sorted by id. Reuses the previous view's ring if owners and
    /// weights are the same.
    pub(crate) fn new(config: LoadBalancerConfig, members: Box<[Member]>, parts: ViewParts<'_>) -> Self {
        let ViewParts {
            epoch,
            health,
            load,
            turn,
            previous,
        } = parts;
        let on_trial =
            |member: &Member| member.units > 0 && matches!(member.admission, Admission::Trial | Admission::OnTrial);
        let epoch = if members.iter().any(on_trial) {
            ALWAYS_CHECK
        } else {
            epoch
        };
        let ring = (config.strategy() == LoadBalancingStrategy::ConsistentHash).then(|| {
            previous
                .and_then(|previous| previous.ring_for(&config, &members))
                .unwrap_or_else(|| Arc::new(ring(&config, &members)))
        });
        let all = Candidates::new(&config, &members, turn, ring.clone(), &[]);
        Self {
            config,
            picks: PickCounts::new(members.len()),
            members,
            epoch,
            panic: health.panic,
            eligible: health.eligible,
            usable: health.usable,
            all,
            ring,
            load,
            tagged: OnceLock::new(),
        }
    }

    /// This view's ring, if `members` are the same owners with the same registered weights.
    fn ring_for(&self, config: &LoadBalancerConfig, members: &[Member]) -> Option<Arc<Ring>> {
        let of = |members: &[Member], index: usize| {
            members
                .get(index)
                .map(|member| (member.instance.id().clone(), member.instance.weight()))
        };
        let same = self.config.virtual_nodes() == config.virtual_nodes()
            && self.members.len() == members.len()
            && (0..members.len()).all(|index| of(&self.members, index) == of(members, index));
        if same { self.ring.clone() } else { None }
    }

    /// Adds the picks counted in this view to the live states of the picked members. Only one
    /// caller at a time.
    pub(crate) fn flush_picks(&self, load: &Load) {
        self.picks.take(|member, picks| {
            if let Some(member) = self.members.get(member) {
                member.live.picks.fetch_add(picks, Ordering::Relaxed);
            }
            if self.panic {
                load.panic_picks.fetch_add(picks, Ordering::Relaxed);
            }
        });
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.all.slots
    }

    /// The ring; `None` in strategies other than `consistent_hash`.
    pub(crate) fn ring(&self) -> Option<&Ring> {
        self.ring.as_deref()
    }

    pub(crate) fn mode(&self, load: &Load) -> Mode {
        self.all.prepared.mode(load)
    }

    /// Chooses a member; `None` if no member is acceptable. `epoch` is the present epoch of the
    /// service.
    #[inline]
    pub(crate) fn choose(&self, context: &Context<'_>, load: &Load, epoch: u64) -> Option<u32> {
        if epoch != self.epoch {
            return self.choose_checked(context, load);
        }
        let slot = if context.tags.is_empty() {
            self.all.choose(&self.members, context, load, AdmissionCheck::Skip)
        } else {
            self.choose_tagged(context, load, AdmissionCheck::Skip)
        };
        slot.map(|slot| slot.member)
    }

    /// Chooses a member when admissions have changed since the tables were made, or a trial may be
    /// let through.
    #[cold]
    fn choose_checked(&self, context: &Context<'_>, load: &Load) -> Option<u32> {
        // A pick that loses the race for a trial chooses again.
        for _ in 0..4 {
            let Some(slot) = self.choose_tagged(context, load, AdmissionCheck::AllowTrials) else {
                break;
            };
            if slot.live.claim(|| load.now()) {
                return Some(slot.member);
            }
        }
        self.choose_from_all_members(context)
    }

    /// Chooses, at random by weight, a member that may be picked by now and may be missing from
    /// this view's candidates.
    fn choose_from_all_members(&self, context: &Context<'_>) -> Option<u32> {
        let mut chosen = None;
        let mut total = 0_u64;
        for (index, member) in self.members.iter().enumerate() {
            let units = u64::from(member.units);
            if units > 0 && member.live.admission() == Admission::In && context.admits(member.instance()) {
                total += units;
                if fastrand::u64(0..total) < units {
                    chosen = Some(index as u32);
                }
            }
        }
        chosen
    }

    /// The member that a pick with this context would choose now. Claims no trial; advances turns
    /// as a pick does.
    pub(crate) fn peek(&self, context: &Context<'_>, load: &Load) -> Option<&Member> {
        let slot = self.choose_tagged(context, load, AdmissionCheck::NoTrials)?;
        self.members.get(slot.member as usize)
    }

    #[cold]
    fn choose_tagged(&self, context: &Context<'_>, load: &Load, check: AdmissionCheck) -> Option<&Slot> {
        match (!context.tags.is_empty()).then(|| self.tagged(context.tags)).flatten() {
            Some(candidates) => {
                let rest = Context { tags: &[], ..*context };
                candidates.choose(&self.members, &rest, load, check)
            }
            None => self.all.choose(&self.members, context, load, check),
        }
    }

    /// The candidates with these tags, from the table or newly made. `None` if the table is full,
    /// or no candidate has the tags.
    fn tagged(&self, tags: &[&str]) -> Option<&Candidates> {
        let table = self
            .tagged
            .get_or_init(|| (0..MAX_TAG_SETS).map(|_| OnceLock::new()).collect());
        let mut made = None;
        for cell in table {
            if cell.get().is_none() {
                let turn = Arc::new(Turn::starting_at(fastrand::u64(..)));
                let candidates = made
                    .take()
                    .unwrap_or_else(|| Candidates::new(&self.config, &self.members, turn, self.ring.clone(), tags));
                // Tags without candidates take no place in the table, because callers can send any
                // tags.
                if candidates.slots.is_empty() {
                    return None;
                }
                let tagged = Tagged {
                    tags: tags.iter().map(|tag| (*tag).into()).collect(),
                    candidates,
                };
                if let Err(late) = cell.set(tagged) {
                    made = Some(late.candidates);
                }
            }
            if let Some(tagged) = cell.get().filter(|tagged| tagged.is_for(tags)) {
                return Some(&tagged.candidates);
            }
        }
        None
    }

    /// Up to `count` members other than `first`, each once, in the order in which to try them: ring
    /// order for a hashed key, else drawn by weight. Advances no turn.
    pub(crate) fn alternates(&self, first: u32, count: usize, context: &Context<'_>) -> Vec<u32> {
        let (candidates, rest) = match (!context.tags.is_empty()).then(|| self.tagged(context.tags)).flatten() {
            Some(candidates) => (candidates, Context { tags: &[], ..*context }),
            None => (&self.all, *context),
        };
        candidates.alternates(&self.members, first, count, &rest, &self.load)
    }
}

fn ring(config: &LoadBalancerConfig, members: &[Member]) -> Ring {
    let owners = members
        .iter()
        .map(|member| (member.instance.id().as_str(), member.instance.weight().get()));
    Ring::new(owners, config.virtual_nodes())
}

impl Candidates {
    #[inline]
    fn choose(&self, members: &[Member], context: &Context<'_>, load: &Load, check: AdmissionCheck) -> Option<&Slot> {
        if self.slots.is_empty() {
            return None;
        }
        let draw = Draw::new(&self.slots, members, context, load, check);
        self.slots.get(self.prepared.choose(&draw)?)
    }

    fn alternates(&self, members: &[Member], first: u32, count: usize, context: &Context<'_>, load: &Load) -> Vec<u32> {
        // Alternates are rare enough to read every admission.
        let draw = Draw::new(&self.slots, members, context, load, AdmissionCheck::NoTrials);
        let member_of = |index: usize| self.slots.get(index).map(|slot| slot.member);
        let mut found: Vec<u32> = Vec::with_capacity(count);
        if let (Prepared::ConsistentHash(hash), Some(key)) = (&self.prepared, context.key) {
            found.extend(self.in_ring_order(hash, key, first, count, &draw));
            return found;
        }
        while found.len() < count {
            let taken =
                |index: usize| member_of(index).is_some_and(|member| member == first || found.contains(&member));
            let Some(member) = draw.redraw(self.prepared.schedule(), taken).and_then(member_of) else {
                break;
            };
            found.push(member);
        }
        found
    }

    fn in_ring_order(&self, hash: &ConsistentHash, key: &[u8], first: u32, count: usize, draw: &Draw<'_>) -> Vec<u32> {
        let mut found = Vec::with_capacity(count);
        // The walk ends when every candidate was seen: a ring has many points for each candidate.
        let mut left = self.slots.len().saturating_sub(1).min(count);
        for index in hash.walk(key) {
            if left == 0 {
                break;
            }
            let Some(slot) = self.slots.get(index) else { continue };
            if slot.member != first && !found.contains(&slot.member) && draw.admits(index) {
                found.push(slot.member);
                left -= 1;
            }
        }
        found
    }
}
