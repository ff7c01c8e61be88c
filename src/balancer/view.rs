//! The immutable view that a pick reads, and the live state that outlives views.
//!
//! ```text
//! ArcSwap ─► View ── members: every registered instance, sorted by id
//!             │        ├─► Arc<Live>    live state of the address, outlives views
//!             │        └─► Arc<Bodies>  rendered answers
//!             ├── picks: number of picks of each member in this view
//!             ├── all: Candidates = the slots of the tier in turn + the prepared strategy
//!             ├── reserves: Candidates of each tier after it, made on first use
//!             ├── sticky: members by the hash of their id, for sticky sessions
//!             ├── narrowed: Candidates for a set of tags and a port, made on first use, at most 64
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
//! **The lowest tier is picked alone.** Which tier is in turn is decided when a view is made: the
//! lowest tier with a member that can be picked now. Members of lower tiers whose breakers are half
//! open are candidates, too, so that a trial can bring their tier back. A pick goes beyond the tier
//! in turn only when it accepts no candidate there: all of them are excluded, or went out since the
//! view was made. So a pool of one tier has no work with tiers.
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
use super::health::layers::UnavailableReason;
use super::instance::{InstanceId, Tier};
use super::live::Load;
use super::member::{Member, Slot};
use super::session_token::SessionToken;
use super::sessions::Sessions;
use super::statistics::PickCounts;
use super::sticky::{Moment, Sticky};
use super::strategy::Prepared;
use super::strategy::consistent_hash::ConsistentHash;
use super::strategy::draw::{AdmissionCheck, Draw, Mode, Strategy};
use super::strategy::ring::Ring;
use super::strategy::schedule::Turn;

/// Maximum number of sets of tags and port with a table of their own. Picks with further sets
/// redraw until tags and port match.
const MAX_NARROWED: usize = 64;

/// The slots that can be picked, and the prepared strategy.
#[derive(Debug)]
pub(crate) struct Candidates {
    /// The last tier among them. `None` without candidates.
    tier: Option<Tier>,
    slots: Box<[Slot]>,
    prepared: Prepared,
}

impl Candidates {
    /// The candidates of the tier in turn, among the members that the context admits.
    fn in_turn(
        config: &LoadBalancerConfig,
        members: &[Member],
        turn: Arc<Turn>,
        ring: Option<Arc<Ring>>,
        wanted: &Context<'_>,
    ) -> Self {
        let last = tier_in_turn(members, wanted);
        Self::new(config, members, turn, ring, |member| {
            last.is_some_and(|last| member.tier <= last) && wanted.admits(member.instance())
        })
    }

    fn new(
        config: &LoadBalancerConfig,
        members: &[Member],
        turn: Arc<Turn>,
        ring: Option<Arc<Ring>>,
        wanted: impl Fn(&Member) -> bool,
    ) -> Self {
        let chosen = || {
            members
                .iter()
                .enumerate()
                .filter(|(_, member)| member.can_be_picked() && wanted(member))
        };
        let slots: Box<[Slot]> = chosen()
            .map(|(index, member)| Slot {
                member: index as u32,
                units: member.units,
                live: Arc::clone(&member.live),
            })
            .collect();
        let prepared = Prepared::new(config, &slots, members, turn, ring);
        let tier = chosen().map(|(_, member)| member.tier).max();
        Self { tier, slots, prepared }
    }
}

/// The lowest tier with a member that every pick may choose. If only trials are left, the last of
/// their tiers: each trial takes one pick, and the next pick goes to another.
fn tier_in_turn(members: &[Member], wanted: &Context<'_>) -> Option<Tier> {
    let pickable = || {
        members
            .iter()
            .filter(|member| member.can_be_picked() && wanted.admits(member.instance()))
    };
    let admitted = pickable().filter(|member| member.admission == Admission::In);
    let lowest = admitted.map(|member| member.tier).min();
    lowest.or_else(|| pickable().map(|member| member.tier).max())
}

/// A tier after the tier in turn.
struct Reserve {
    tier: Tier,
    candidates: OnceLock<Candidates>,
}

/// The candidates for one set of tags and port.
struct Narrowed {
    tags: Box<[Box<str>]>,
    port: Option<Box<str>>,
    candidates: Candidates,
}

impl Narrowed {
    fn is_for(&self, context: &Context<'_>) -> bool {
        self.port.as_deref() == context.port
            && self.tags.len() == context.tags.len()
            && context
                .tags
                .iter()
                .all(|tag| self.tags.iter().any(|own| **own == **tag))
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
    /// The registry calls every member critical, and the critical members are candidates all the
    /// same: see `LoadBalancerConfig::fail_open`.
    pub(crate) fail_open: bool,
    /// Number of members that only active checks and breakers can take out, and of those that they
    /// do not take out.
    pub(crate) eligible: usize,
    pub(crate) usable: usize,
    all: Candidates,
    /// The tiers after the tier in turn, in order. Empty in a pool of one tier.
    reserves: Box<[Reserve]>,
    ring: Option<Arc<Ring>>,
    /// For alternates, which are asked of a pick.
    load: Arc<Load>,
    narrowed: OnceLock<Box<[OnceLock<Narrowed>]>>,
    /// `None` without sticky sessions.
    sticky: Option<Box<Sticky>>,
}

/// The epoch of a view in which a trial may be let through, and of a view with sticky sessions: each
/// of its picks takes the long way, so that no other pick asks about sessions. The epoch of a service
/// never has this value.
const ALWAYS_CHECK: u64 = u64::MAX;

/// The parts of a new view, besides its members.
pub(crate) struct ViewParts<'a> {
    pub(crate) epoch: u64,
    pub(crate) health: PoolHealth,
    pub(crate) fail_open: bool,
    pub(crate) load: Arc<Load>,
    pub(crate) turn: Arc<Turn>,
    pub(crate) previous: Option<&'a View>,
    pub(crate) sessions: &'a Arc<Sessions>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("members", &self.members.len())
            .finish_non_exhaustive()
    }
}

impl View {
    /// The member of this id.
    pub(crate) fn member(&self, id: &str) -> Option<&Member> {
        let found = self
            .members
            .binary_search_by(|member| member.instance.id().as_str().cmp(id));
        self.members.get(found.ok()?)
    }

    /// The instance of this id; without one, the instances that a registry lists under this id.
    pub(crate) fn ids_of(&self, id: &InstanceId) -> Vec<&InstanceId> {
        if let Some(member) = self.member(id.as_str()) {
            return vec![member.instance.id()];
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
            fail_open,
            load,
            turn,
            previous,
            sessions,
        } = parts;
        let on_trial =
            |member: &Member| member.units > 0 && matches!(member.admission, Admission::Trial | Admission::OnTrial);
        let sticky = config
            .sticky_sessions()
            .then(|| Box::new(Sticky::new(&config, &members, Arc::clone(sessions))));
        let epoch = if sticky.is_some() || members.iter().any(on_trial) {
            ALWAYS_CHECK
        } else {
            epoch
        };
        let ring = (config.strategy() == LoadBalancingStrategy::ConsistentHash).then(|| {
            previous
                .and_then(|previous| previous.ring_for(&config, &members))
                .unwrap_or_else(|| Arc::new(ring(&config, &members)))
        });
        let all = Candidates::in_turn(&config, &members, turn, ring.clone(), &Context::new());
        let reserves = reserves(&members, all.tier);
        Self {
            config,
            picks: PickCounts::new(members.len()),
            members,
            epoch,
            panic: health.panic,
            fail_open,
            eligible: health.eligible,
            usable: health.usable,
            all,
            reserves,
            ring,
            load,
            narrowed: OnceLock::new(),
            sticky,
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
            } else if self.fail_open {
                load.fail_open_picks.fetch_add(picks, Ordering::Relaxed);
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

    /// The tier in turn; `None` while no member can be picked.
    pub(crate) fn tier(&self) -> Option<Tier> {
        self.all.tier
    }

    /// The place of the tier in turn among the tiers of all members: 0 is the first. `None` while no
    /// member can be picked.
    pub(crate) fn place_in_turn(&self) -> Option<usize> {
        let last = self.all.tier?;
        self.tiers().iter().position(|tier| *tier == last)
    }

    /// The tiers of all members, in order.
    pub(crate) fn tiers(&self) -> Vec<Tier> {
        let mut tiers: Vec<_> = self.members.iter().map(|member| member.tier).collect();
        tiers.sort_unstable();
        tiers.dedup();
        tiers
    }

    /// Whether picks may choose members of this tier at present.
    pub(crate) fn is_in_turn(&self, tier: Tier) -> bool {
        self.all.tier.is_none_or(|last| tier <= last)
    }

    /// Whether picks may choose this member at present, if these are the reasons against it.
    pub(crate) fn lets_through(&self, member: &Member, reasons: &[UnavailableReason]) -> bool {
        let forgiven = |reason: &UnavailableReason| self.fail_open && *reason == UnavailableReason::RegistryCritical;
        let is_usable = self.panic || reasons.iter().all(forgiven);
        member.units > 0 && is_usable && self.is_in_turn(member.tier)
    }

    /// Chooses a member; `None` if no member is acceptable. `epoch` is the present epoch of the
    /// service.
    #[inline]
    pub(crate) fn choose(&self, context: &Context<'_>, load: &Load, epoch: u64) -> Option<u32> {
        if epoch != self.epoch {
            return self.choose_checked(context, load);
        }
        let slot = if context.narrows {
            self.choose_narrowed(context, load, AdmissionCheck::Skip)
        } else {
            self.all.choose(&self.members, context, load, AdmissionCheck::Skip)
        };
        match slot {
            Some(slot) => Some(slot.member),
            None if self.reserves.is_empty() => None,
            None => self.choose_from_all_members(context, load),
        }
    }

    /// Chooses a member when admissions have changed since the tables were made, a trial may be let
    /// through, or sessions are sticky.
    #[cold]
    fn choose_checked(&self, context: &Context<'_>, load: &Load) -> Option<u32> {
        match &self.sticky {
            Some(sticky) => sticky.choose(&self.moment(load), context, || self.choose_by_strategy(context, load)),
            None => self.choose_by_strategy(context, load),
        }
    }

    fn moment(&self, load: &Load) -> Moment<'_> {
        Moment {
            members: &self.members,
            now: load.now(),
        }
    }

    /// The token of the session of a pick, which chose `member`. `None` without sticky sessions.
    pub(crate) fn session(&self, context: &Context<'_>, member: &Member) -> Option<SessionToken> {
        let sticky = self.sticky.as_ref()?;
        Some(sticky.token(&self.moment(&self.load), context, member))
    }

    /// Whether sessions are sticky.
    pub(crate) fn is_sticky(&self) -> bool {
        self.sticky.is_some()
    }

    /// The member that keeps the session of a key at present.
    pub(crate) fn session_of_key(&self, key: &[u8]) -> Option<&Member> {
        let sticky = self.sticky.as_ref()?;
        sticky.member_of_key(&self.moment(&self.load), key)
    }

    /// Chooses a member by the strategy, with a look at every admission.
    fn choose_by_strategy(&self, context: &Context<'_>, load: &Load) -> Option<u32> {
        // A pick that loses the race for a trial chooses again.
        for _ in 0..4 {
            let Some(slot) = self.choose_narrowed(context, load, AdmissionCheck::AllowTrials) else {
                break;
            };
            if slot.live.claim(|| load.now()) {
                return Some(slot.member);
            }
        }
        let chosen = self.choose_from_all_members(context, load);
        chosen.or_else(|| self.claim_trial(context, load))
    }

    /// Chooses from the lowest tier that is acceptable by now: by the strategy in a reserve, else at
    /// random by weight, because the candidates of this view may lack a member.
    #[cold]
    fn choose_from_all_members(&self, context: &Context<'_>, load: &Load) -> Option<u32> {
        let acceptable = |member: &&Member| {
            member.units > 0 && member.live.admission() == Admission::In && context.admits(member.instance())
        };
        let tier = self.members.iter().filter(acceptable).map(|member| member.tier).min()?;
        if let Some(reserve) = self.reserves.iter().find(|reserve| reserve.tier == tier) {
            let candidates = self.candidates_of(reserve);
            if let Some(slot) = candidates.choose(&self.members, context, load, AdmissionCheck::NoTrials) {
                return Some(slot.member);
            }
        }
        let mut chosen = None;
        let mut total = 0_u64;
        for (index, member) in self.members.iter().enumerate() {
            if member.tier == tier && acceptable(&member) {
                let units = u64::from(member.units);
                total += units;
                if fastrand::u64(0..total) < units {
                    chosen = Some(index as u32);
                }
            }
        }
        chosen
    }

    /// Claims the first trial of an acceptable member, whatever its tier: no other member is left.
    fn claim_trial(&self, context: &Context<'_>, load: &Load) -> Option<u32> {
        let claimed = |member: &Member| {
            let has_trial = member.units > 0 && member.live.admission() == Admission::Trial;
            has_trial && context.admits(member.instance()) && member.live.claim(|| load.now())
        };
        let index = self.members.iter().position(claimed)?;
        Some(index as u32)
    }

    fn candidates_of<'a>(&'a self, reserve: &'a Reserve) -> &'a Candidates {
        reserve.candidates.get_or_init(|| {
            let turn = Arc::new(Turn::starting_at(fastrand::u64(..)));
            let is_in = |member: &Member| member.tier == reserve.tier;
            Candidates::new(&self.config, &self.members, turn, self.ring.clone(), is_in)
        })
    }

    /// The member that a pick with this context would choose now. Claims no trial; advances turns
    /// as a pick does.
    pub(crate) fn peek(&self, context: &Context<'_>, load: &Load) -> Option<&Member> {
        let member = match self.choose_narrowed(context, load, AdmissionCheck::NoTrials) {
            Some(slot) => slot.member,
            None => self.choose_from_all_members(context, load)?,
        };
        self.members.get(member as usize)
    }

    #[cold]
    fn choose_narrowed(&self, context: &Context<'_>, load: &Load, check: AdmissionCheck) -> Option<&Slot> {
        let (candidates, rest) = self.candidates(context);
        candidates.choose(&self.members, &rest, load, check)
    }

    /// The candidates for a context, and what is left of the context for them to look at.
    fn candidates<'a>(&self, context: &Context<'a>) -> (&Candidates, Context<'a>) {
        match context.narrows.then(|| self.narrowed(context)).flatten() {
            Some(candidates) => (candidates, context.of_narrowed()),
            None => (&self.all, *context),
        }
    }

    /// The candidates with the tags and the port of the context, from the table or newly made.
    /// `None` if the table is full, or no candidate has them.
    fn narrowed(&self, context: &Context<'_>) -> Option<&Candidates> {
        let table = self
            .narrowed
            .get_or_init(|| (0..MAX_NARROWED).map(|_| OnceLock::new()).collect());
        let mut made = None;
        for cell in table {
            if cell.get().is_none() {
                let candidates = made.take().unwrap_or_else(|| {
                    let turn = Arc::new(Turn::starting_at(fastrand::u64(..)));
                    let wanted = Context {
                        key: None,
                        exclude: &[],
                        ..*context
                    };
                    Candidates::in_turn(&self.config, &self.members, turn, self.ring.clone(), &wanted)
                });
                // Tags and ports without candidates take no place in the table, because callers can
                // send any.
                if candidates.slots.is_empty() {
                    return None;
                }
                let narrowed = Narrowed {
                    tags: context.tags.iter().map(|tag| (*tag).into()).collect(),
                    port: context.port.map(Into::into),
                    candidates,
                };
                if let Err(late) = cell.set(narrowed) {
                    made = Some(late.candidates);
                }
            }
            if let Some(narrowed) = cell.get().filter(|narrowed| narrowed.is_for(context)) {
                return Some(&narrowed.candidates);
            }
        }
        None
    }

    /// Up to `count` members other than `first`, each once, in the order in which to try them: tier
    /// by tier, in ring order for a hashed key, else drawn by weight. Advances no turn.
    pub(crate) fn alternates(&self, first: u32, count: usize, context: &Context<'_>) -> Vec<u32> {
        let (candidates, rest) = self.candidates(context);
        let mut found = Vec::with_capacity(count);
        candidates.alternates(&self.members, first, count, &rest, &self.load, &mut found);
        let later = |reserve: &&Reserve| candidates.tier.is_none_or(|last| reserve.tier > last);
        for reserve in self.reserves.iter().filter(later) {
            if found.len() == count {
                break;
            }
            let candidates = self.candidates_of(reserve);
            candidates.alternates(&self.members, first, count, context, &self.load, &mut found);
        }
        found
    }
}

/// The tiers after the tier in turn, in order.
fn reserves(members: &[Member], in_turn: Option<Tier>) -> Box<[Reserve]> {
    let later = |member: &&Member| member.can_be_picked() && in_turn.is_some_and(|last| member.tier > last);
    let mut tiers: Vec<Tier> = members.iter().filter(later).map(|member| member.tier).collect();
    tiers.sort_unstable();
    tiers.dedup();
    let reserve = |tier| Reserve {
        tier,
        candidates: OnceLock::new(),
    };
    tiers.into_iter().map(reserve).collect()
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

    /// Adds alternates to `found`, up to `count` in all.
    fn alternates(
        &self,
        members: &[Member],
        first: u32,
        count: usize,
        context: &Context<'_>,
        load: &Load,
        found: &mut Vec<u32>,
    ) {
        // Alternates are rare enough to read every admission.
        let draw = Draw::new(&self.slots, members, context, load, AdmissionCheck::NoTrials);
        let member_of = |index: usize| self.slots.get(index).map(|slot| slot.member);
        if let (Prepared::ConsistentHash(hash), Some(key)) = (&self.prepared, context.key) {
            self.in_ring_order(hash, key, first, count, &draw, found);
            return;
        }
        while found.len() < count {
            let taken =
                |index: usize| member_of(index).is_some_and(|member| member == first || found.contains(&member));
            let Some(member) = draw.redraw(self.prepared.schedule(), taken).and_then(member_of) else {
                break;
            };
            found.push(member);
        }
    }

    fn in_ring_order(
        &self,
        hash: &ConsistentHash,
        key: &[u8],
        first: u32,
        count: usize,
        draw: &Draw<'_>,
        found: &mut Vec<u32>,
    ) {
        // The walk ends when every candidate was found: a ring has many points for each candidate.
        let has_first = self.slots.binary_search_by_key(&first, |slot| slot.member).is_ok();
        let others = self.slots.len() - usize::from(has_first);
        let mut left = others.min(count - found.len());
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
    }
}
