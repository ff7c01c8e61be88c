//! The immutable view that a pick reads, and the live state that outlives it.
//!
//! ```text
//! ArcSwap ──► View ── members: every registered instance, sorted by id ──► Arc<Live>   (by address, outlives views)
//!              │                                                       └─► Arc<Bodies> (rendered answers)
//!              ├── all: Candidates = the slots that can be picked + the prepared strategy
//!              └── tagged: Candidates for a set of tags, made on first use, at most 64 sets
//! ```
//!
//! A view never changes; what moves (load, latency, counts) are atomics behind its `Arc<Live>`s. Readers therefore always see
//! one view, and a new view keeps all that was learned.

use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::clock::{Clock, Timestamp, nanos};
use super::config::LoadBalancerConfig;
use super::credit::Credit;
use super::instance::{HealthStatus, ServiceInstance, ServiceName};
use super::lease::LeaseCounts;
use super::statistics::{Ewma, Striped};
use super::strategy::consistent_hash::ConsistentHash;
use super::strategy::ring::Ring;
use super::strategy::schedule::Turn;
use super::strategy::{Draw, LoadBalancingStrategy, Mode, Prepared, Strategy};
use super::sync::{CountU32, CountU64};

/// Sets of tags that get a view of their own; further ones are served by redrawing.
const TAG_SETS: usize = 64;

/// What a caller asks of a pick. Borrowed, so that asking costs nothing.
///
/// ```
/// use pickd::Context;
///
/// let context = Context::new().with_key("session-42").with_tags(&["v2"]).with_exclude(&["user-1"]);
/// assert_eq!(context.key(), Some(&b"session-42"[..]));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    key: Option<&'a [u8]>,
    exclude: &'a [&'a str],
    tags: &'a [&'a str],
}

impl<'a> Context<'a> {
    /// No key, nothing excluded, any tags.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            key: None,
            exclude: &[],
            tags: &[],
        }
    }

    /// Sets the affinity key: `consistent_hash` answers equal keys with the same instance. Other strategies ignore it.
    #[must_use]
    pub fn with_key(mut self, key: &'a (impl AsRef<[u8]> + ?Sized)) -> Self {
        self.key = Some(key.as_ref());
        self
    }

    /// Sets the ids that must not be picked, such as the one that just failed. Unknown ids are ignored.
    #[must_use]
    pub const fn with_exclude(mut self, ids: &'a [&'a str]) -> Self {
        self.exclude = ids;
        self
    }

    /// Sets the tags that an instance must have, all of them.
    #[must_use]
    pub const fn with_tags(mut self, tags: &'a [&'a str]) -> Self {
        self.tags = tags;
        self
    }

    /// The affinity key.
    #[must_use]
    pub const fn key(&self) -> Option<&'a [u8]> {
        self.key
    }

    #[inline]
    pub(crate) fn admits_all(&self) -> bool {
        self.exclude.is_empty() && self.tags.is_empty()
    }

    pub(crate) fn admits(&self, instance: &ServiceInstance) -> bool {
        !self.exclude.contains(&instance.id().as_str()) && self.tags.iter().all(|tag| instance.has_tag(tag))
    }
}

/// What a body is rendered from.
#[derive(Clone, Copy, Debug)]
pub struct Described<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// The instance.
    pub instance: &'a ServiceInstance,
    /// Its derived status.
    pub status: HealthStatus,
}

/// An instance as answers carry it: opaque bytes to the core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bodies {
    /// JSON without its closing brace, so that the fields of one answer can be appended.
    pub json: Box<[u8]>,
    /// One line of text.
    pub text: Box<[u8]>,
}

/// Turns an instance into bytes, once per change of it and never per pick.
pub trait Render: Send + Sync {
    /// The bodies of one instance.
    fn render(&self, described: &Described<'_>) -> Bodies;
}

/// For users of the library, who need no bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoBodies;

impl Render for NoBodies {
    fn render(&self, _described: &Described<'_>) -> Bodies {
        Bodies::default()
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered well.
    Success,
    /// It was answered with an error that is the instance's fault.
    Failure,
    /// It was not answered in time.
    Timeout,
    /// No connection could be made. Counts as two failures in a row.
    ConnectError,
    /// The instance refused it for its load (429, 503): counts as failed and costs latency, is no failure in a row.
    Rejected,
    /// The caller gave up for reasons of its own: only frees the place in flight.
    Cancelled,
}

impl Outcome {
    fn failures_in_a_row(self) -> u32 {
        match self {
            Self::Failure | Self::Timeout => 1,
            Self::ConnectError => 2,
            Self::Success | Self::Rejected | Self::Cancelled => 0,
        }
    }
}

/// What is learned about one address while it serves. Relaxed atomics: each number is right, together they are a moment's blur.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) picks: Striped,
    in_flight: CountU32,
    pub(crate) consecutive_failures: AtomicU32,
    pub(crate) reported: AtomicU64,
    pub(crate) failed: AtomicU64,
    /// Outcomes that told how long the request took.
    timed: AtomicU64,
    latency_nanos: AtomicU64,
    ewma: Ewma,
    /// Nanoseconds of the last pick by `least_response_time`.
    picked_at: AtomicU64,
    /// What reports without a lease may still say.
    pub(crate) credit: Credit,
}

impl Live {
    #[inline]
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self) {
        let one_less = |count: u32| count.checked_sub(1);
        let _at_zero = self
            .in_flight
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less);
    }

    /// Records an outcome. A failure is as bad as twice what is `typical` of the pool, however fast it came. Without a latency a
    /// success counts and leaves the average alone.
    pub(crate) fn record(&self, outcome: Outcome, latency: Option<Duration>, typical: f32, now: Timestamp) {
        match outcome {
            Outcome::Cancelled => return,
            Outcome::Success => {
                self.consecutive_failures.store(0, Ordering::Relaxed);
                if let Some(latency) = latency {
                    self.ewma.observe(latency, now);
                }
            }
            Outcome::Failure | Outcome::Timeout | Outcome::ConnectError | Outcome::Rejected => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                self.consecutive_failures
                    .fetch_add(outcome.failures_in_a_row(), Ordering::Relaxed);
                let penalty = Duration::from_secs_f32((2.0 * typical).clamp(0.0, 1e6));
                // No latency and nothing to compare with is no sample: it would look like an answer in no time.
                if let Some(cost) = latency.max((typical > 0.0).then_some(penalty)) {
                    self.ewma.observe(cost, now);
                }
            }
        }
        self.reported.fetch_add(1, Ordering::Relaxed);
        if let Some(latency) = latency {
            self.timed.fetch_add(1, Ordering::Relaxed);
            self.latency_nanos.fetch_add(nanos(latency), Ordering::Relaxed);
        }
    }

    /// The moving average in seconds; `None` before the first report.
    #[inline]
    pub(crate) fn response_time(&self, now: Timestamp) -> Option<f32> {
        self.ewma.at(now)
    }

    pub(crate) fn average_response_time(&self) -> Duration {
        let timed = self.timed.load(Ordering::Relaxed).max(1);
        Duration::from_nanos(self.latency_nanos.load(Ordering::Relaxed) / timed)
    }

    #[inline]
    pub(crate) fn mark_picked(&self, now: Timestamp) {
        self.picked_at.store(now.as_nanos(), Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn picked_within(&self, span: Duration, now: Timestamp) -> bool {
        now.since(Timestamp::from_nanos(self.picked_at.load(Ordering::Relaxed))) <= span
    }

    /// Claims the one try that an instance left alone for `span` is due. One caller wins.
    #[inline]
    pub(crate) fn claim_retry(&self, span: Duration, now: Timestamp) -> bool {
        let last = self.picked_at.load(Ordering::Relaxed);
        now.since(Timestamp::from_nanos(last)) > span
            && self
                .picked_at
                .compare_exchange(last, now.as_nanos(), Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// What is known of a service as a whole.
#[derive(Debug)]
pub(crate) struct Load {
    /// Requests in flight, over all instances.
    pub(crate) in_flight: CountU64,
    /// Its leases and reports.
    pub(crate) leases: LeaseCounts,
    /// `f32` seconds: the middle one of the pool's averages.
    median: AtomicU32,
    /// Nanoseconds; `u64::MAX` before the first.
    reported_at: AtomicU64,
    median_at: AtomicU64,
}

impl Default for Load {
    fn default() -> Self {
        Self {
            in_flight: CountU64::new(0),
            leases: LeaseCounts::default(),
            median: AtomicU32::new(0),
            reported_at: AtomicU64::new(u64::MAX),
            median_at: AtomicU64::new(u64::MAX),
        }
    }
}

impl Load {
    /// How long the median stands before an outcome has it computed again.
    const MEDIAN_FOR: Duration = Duration::from_millis(250);

    pub(crate) fn median(&self) -> f32 {
        f32::from_bits(self.median.load(Ordering::Relaxed))
    }

    /// What a request costs one of `slots` candidates as `least_response_time` counts: the median, times one more than what each
    /// has in flight. Whoever fails at once has nothing in flight; compared by latency alone it would look idle.
    pub(crate) fn typical(&self, slots: usize) -> f32 {
        let in_flight = self.in_flight.load(Ordering::Relaxed) as f32;
        self.median() * (1.0 + in_flight / slots.max(1) as f32)
    }

    pub(crate) fn reported_at(&self) -> Option<Timestamp> {
        match self.reported_at.load(Ordering::Relaxed) {
            u64::MAX => None,
            nanos => Some(Timestamp::from_nanos(nanos)),
        }
    }

    /// Notes that an outcome arrived, and keeps the median of `slots` fresh.
    pub(crate) fn reported(&self, slots: &[Slot], now: Timestamp) {
        self.reported_at.store(now.as_nanos(), Ordering::Relaxed);
        let last = self.median_at.load(Ordering::Relaxed);
        let fresh = last != u64::MAX && now.since(Timestamp::from_nanos(last)) < Self::MEDIAN_FOR;
        let claim = || {
            self.median_at
                .compare_exchange(last, now.as_nanos(), Ordering::Relaxed, Ordering::Relaxed)
        };
        if fresh || claim().is_err() {
            return;
        }
        let mut seen: Vec<f32> = slots.iter().filter_map(|slot| slot.live.response_time(now)).collect();
        let middle = seen.len() / 2;
        if middle < seen.len() {
            let (_, median, _) = seen.select_nth_unstable_by(middle, f32::total_cmp);
            self.median.store(median.to_bits(), Ordering::Relaxed);
        }
    }
}

/// One registered instance in a view.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) instance: Arc<ServiceInstance>,
    pub(crate) status: HealthStatus,
    /// Share of picks in 1/16; 0 = never picked.
    pub(crate) units: u32,
    pub(crate) bodies: Arc<Bodies>,
    pub(crate) live: Arc<Live>,
}

impl Member {
    pub(crate) fn instance(&self) -> &ServiceInstance {
        &self.instance
    }
}

/// A candidate: what a pick needs of a member, close together.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) member: u32,
    /// Share of picks in 1/16, above zero.
    pub(crate) units: u32,
    pub(crate) live: Arc<Live>,
}

/// Share of picks in 1/16: registered weight (1 in strategies that are not weighted) times the factors in force.
pub(crate) fn units(instance: &ServiceInstance, status: HealthStatus, config: &LoadBalancerConfig) -> u32 {
    let weight = u32::from(instance.weight().get());
    let weighted = config.strategy().is_weighted();
    let base = if weighted { weight } else { weight.min(1) };
    match (status, instance.warning_weight()) {
        (HealthStatus::Unhealthy, _) => 0,
        (HealthStatus::Healthy | HealthStatus::Unknown, _) => base * 16,
        (HealthStatus::Degraded, None) => base * sixteenths(config.degraded_factor()),
        (HealthStatus::Degraded, Some(_)) if weight == 0 => 0,
        (HealthStatus::Degraded, Some(warning)) if weighted => u32::from(warning.get()) * 16,
        (HealthStatus::Degraded, Some(warning)) => sixteenths(f64::from(warning.get()) / f64::from(weight)),
    }
}

/// A factor in steps of 1/16, so that tables stay small: at most 16, and above zero if the factor is.
fn sixteenths(factor: f64) -> u32 {
    if factor > 0.0 {
        (factor.min(1.0) * 16.0).round().max(1.0) as u32
    } else {
        0
    }
}

/// Those who can be picked, and how.
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
            .filter(|(_, member)| member.units > 0 && wanted.admits(member.instance()))
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

/// A view for one set of tags.
struct Tagged {
    tags: Box<[Box<str>]>,
    candidates: Candidates,
}

impl Tagged {
    fn is_for(&self, tags: &[&str]) -> bool {
        self.tags.len() == tags.len() && tags.iter().all(|tag| self.tags.iter().any(|own| **own == **tag))
    }
}

/// All that a pick reads.
pub(crate) struct View {
    pub(crate) config: LoadBalancerConfig,
    pub(crate) members: Box<[Member]>,
    all: Candidates,
    ring: Option<Arc<Ring>>,
    tagged: OnceLock<Box<[OnceLock<Tagged>]>>,
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("members", &self.members.len())
            .finish_non_exhaustive()
    }
}

impl View {
    /// Prepares a view of `members`, sorted by id. The previous view's ring is kept if it is still the right one.
    pub(crate) fn new(
        config: LoadBalancerConfig,
        members: Box<[Member]>,
        turn: Arc<Turn>,
        previous: Option<&Self>,
    ) -> Self {
        let ring = (config.strategy() == LoadBalancingStrategy::ConsistentHash).then(|| {
            previous
                .and_then(|previous| previous.ring_for(&config, &members))
                .unwrap_or_else(|| Arc::new(ring(&config, &members)))
        });
        let all = Candidates::new(&config, &members, turn, ring.clone(), &[]);
        Self {
            config,
            members,
            all,
            ring,
            tagged: OnceLock::new(),
        }
    }

    /// This view's ring, if it has the same owners with the same registered weights.
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

    /// Instances that can be picked.
    pub(crate) fn available(&self) -> usize {
        self.all.slots.len()
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.all.slots
    }

    pub(crate) fn mode(&self, load: &Load, clock: &dyn Clock) -> Mode {
        self.all.prepared.mode(load, clock)
    }

    /// Chooses a candidate, or finds that none is acceptable.
    #[inline]
    pub(crate) fn choose(&self, context: &Context<'_>, load: &Load, clock: &dyn Clock) -> Option<&Slot> {
        if !context.tags.is_empty() {
            return self.choose_tagged(context, load, clock);
        }
        self.all.choose(&self.members, context, load, clock)
    }

    #[cold]
    fn choose_tagged(&self, context: &Context<'_>, load: &Load, clock: &dyn Clock) -> Option<&Slot> {
        match self.tagged(context.tags) {
            Some(candidates) => {
                let rest = Context { tags: &[], ..*context };
                candidates.choose(&self.members, &rest, load, clock)
            }
            None => self.all.choose(&self.members, context, load, clock),
        }
    }

    /// The candidates with these tags: from the table, or newly made. `None` when the table is full, or none has them.
    fn tagged(&self, tags: &[&str]) -> Option<&Candidates> {
        let table = self
            .tagged
            .get_or_init(|| (0..TAG_SETS).map(|_| OnceLock::new()).collect());
        let mut made = None;
        for cell in table {
            if cell.get().is_none() {
                let turn = Arc::new(Turn::starting_at(fastrand::u64(..)));
                let candidates = made
                    .take()
                    .unwrap_or_else(|| Candidates::new(&self.config, &self.members, turn, self.ring.clone(), tags));
                // Tags that nobody has take no place: anybody can invent them.
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

    /// Up to `count` more instances than `first`, each once, in the order in which to try them: ring order for a hashed key,
    /// else drawn by weight. Advances nothing.
    pub(crate) fn alternates(
        &self,
        first: u32,
        count: usize,
        context: &Context<'_>,
        draw: &AlternateDraw<'_>,
    ) -> Vec<u32> {
        let (candidates, rest) = match (!context.tags.is_empty()).then(|| self.tagged(context.tags)).flatten() {
            Some(candidates) => (candidates, Context { tags: &[], ..*context }),
            None => (&self.all, *context),
        };
        candidates.alternates(&self.members, first, count, &rest, draw)
    }
}

/// What drawing alternates needs of the balancer.
pub(crate) struct AlternateDraw<'a> {
    pub(crate) load: &'a Load,
    pub(crate) clock: &'a dyn Clock,
}

fn ring(config: &LoadBalancerConfig, members: &[Member]) -> Ring {
    let owners = members
        .iter()
        .map(|member| (member.instance.id().as_str(), member.instance.weight().get()));
    Ring::new(owners, config.virtual_nodes())
}

impl Candidates {
    #[inline]
    fn choose(&self, members: &[Member], context: &Context<'_>, load: &Load, clock: &dyn Clock) -> Option<&Slot> {
        if self.slots.is_empty() {
            return None;
        }
        let draw = Draw {
            slots: &self.slots,
            members,
            context,
            load,
            clock,
        };
        self.slots.get(self.prepared.choose(&draw)?)
    }

    fn alternates(
        &self,
        members: &[Member],
        first: u32,
        count: usize,
        context: &Context<'_>,
        with: &AlternateDraw<'_>,
    ) -> Vec<u32> {
        let draw = Draw {
            slots: &self.slots,
            members,
            context,
            load: with.load,
            clock: with.clock,
        };
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
        // Stops once everybody has been seen: a ring has many points for each.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::{RegistryStatus, Weight};

    #[test]
    fn factors_come_in_sixteenths_and_never_vanish() {
        assert_eq!([0.0, 0.001, 0.25, 0.5, 1.0, 7.0].map(sixteenths), [0, 1, 4, 8, 16, 16]);
    }

    #[test]
    fn the_registrys_warning_weight_replaces_the_degraded_factor() {
        let weighted = LoadBalancerConfig::new(LoadBalancingStrategy::WeightedRoundRobin);
        let plain = LoadBalancerConfig::default();
        let weight = |weight: i64| Weight::new(weight).unwrap();
        let instance = ServiceInstance::new("a", "h", 1)
            .unwrap()
            .with_weight(weight(8))
            .with_status(RegistryStatus::Warning);
        let warned = |warning: i64| instance.clone().with_warning_weight(weight(warning));
        let units = |instance: &ServiceInstance, config| units(instance, instance.registry_status().into(), config);
        assert_eq!((units(&instance, &weighted), units(&instance, &plain)), (32, 4));
        assert_eq!((units(&warned(2), &weighted), units(&warned(2), &plain)), (32, 4));
        assert_eq!((units(&warned(16), &weighted), units(&warned(16), &plain)), (256, 16));
        assert_eq!((units(&warned(0), &weighted), units(&warned(0), &plain)), (0, 0));
    }

    #[test]
    fn weight_zero_has_no_share_in_any_state() {
        for strategy in LoadBalancingStrategy::ALL {
            for status in [
                RegistryStatus::Passing,
                RegistryStatus::Warning,
                RegistryStatus::Unknown,
            ] {
                let drained = ServiceInstance::new("a", "h", 1)
                    .unwrap()
                    .with_weight(Weight::new(0).unwrap());
                let warned = drained.clone().with_warning_weight(Weight::ONE);
                for instance in [drained, warned] {
                    assert_eq!(units(&instance, status.into(), &LoadBalancerConfig::new(strategy)), 0);
                }
            }
        }
    }
}
