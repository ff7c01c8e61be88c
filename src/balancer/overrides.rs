//! Operators' orders that override the registry: drain an instance, or set another weight.
//!
//! An order belongs to the *id* of an instance and outlives changes by registries and reloads: an
//! instance that leaves and comes back is still drained. An order ends when it is lifted, when its
//! time to live ends, or a day after its id was last registered. Orders are accepted only for ids
//! that are registered, or were registered within the last hour: a mistyped id is refused.
//!
//! If the id of an instance changes while its address stays registered, its orders go with it: an
//! address that is registered under several ids may get another of them, and ids that registries
//! list at several addresses are told apart. An order never passes to another address that takes
//! over the id meanwhile.
//!
//! This module does not check which operators may give orders. Each order records the name of its
//! operator.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::clock::Timestamp;
use super::instance::{InstanceId, Weight};

/// How long orders are accepted for an id that is no longer registered.
const KNOWN_FOR: Duration = Duration::from_secs(3_600);
/// How long orders are kept for an id that is no longer registered.
const KEPT_FOR: Duration = Duration::from_secs(24 * 3_600);
/// The least number of departed ids that are remembered; in a larger service, as many as the
/// service has instances.
const MIN_REMEMBERED: usize = 256;
/// The largest number of ended orders that are kept for [`Overrides::take_ended`], which a program
/// may never call.
const MAX_ENDED: usize = 1_024;

/// Why an order was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidOrder {
    /// The reason is too long, or more than one line.
    #[error("reason: expected at most {} characters on one line", Order::LONGEST_REASON)]
    Reason,
    /// The time to live is below a millisecond, or above a year.
    #[error("ttl: expected 1ms to 8760h")]
    Ttl,
}

/// An order: the operator's name, the reason, and the time to live.
///
/// ```
/// use std::time::Duration;
///
/// let order = pickd::balancer::Order::by("ops")
///     .because("kernel update")?
///     .for_the_next(Duration::from_secs(600))?;
/// assert_eq!(order.reason(), Some("kernel update"));
/// # Ok::<(), pickd::balancer::InvalidOrder>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    by: Box<str>,
    reason: Option<Box<str>>,
    ttl: Option<Duration>,
}

impl Order {
    /// The length of the longest reason, in characters.
    pub const LONGEST_REASON: usize = 256;
    /// The longest time to live: a year.
    pub const LONGEST_TTL: Duration = Duration::from_secs(8_760 * 3_600);

    /// An order without an end and without a reason. Control characters are removed from the
    /// operator's name.
    #[must_use]
    pub fn by(operator: &str) -> Self {
        Self {
            by: operator.chars().filter(|c| !c.is_control()).take(256).collect(),
            reason: None,
            ttl: None,
        }
    }

    /// Sets the reason. An empty reason counts as no reason.
    ///
    /// # Errors
    ///
    /// Above [`LONGEST_REASON`](Self::LONGEST_REASON) characters, or with control characters.
    pub fn because(mut self, reason: &str) -> Result<Self, InvalidOrder> {
        if reason.chars().count() > Self::LONGEST_REASON || reason.chars().any(char::is_control) {
            return Err(InvalidOrder::Reason);
        }
        self.reason = (!reason.is_empty()).then(|| reason.into());
        Ok(self)
    }

    /// Sets the time to live, after which the order expires.
    ///
    /// # Errors
    ///
    /// Below a millisecond, and above [`LONGEST_TTL`](Self::LONGEST_TTL).
    pub fn for_the_next(mut self, ttl: Duration) -> Result<Self, InvalidOrder> {
        if ttl < Duration::from_millis(1) || ttl > Self::LONGEST_TTL {
            return Err(InvalidOrder::Ttl);
        }
        self.ttl = Some(ttl);
        Ok(self)
    }

    /// The name of the operator.
    #[must_use]
    pub fn operator(&self) -> &str {
        &self.by
    }

    /// The reason of the order.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// The time to live; `None` for an order that holds until it is lifted.
    #[must_use]
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl
    }
}

/// An order in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StandingOrder {
    order: Order,
    since: Timestamp,
    until: Option<Timestamp>,
}

impl StandingOrder {
    fn new(order: Order, now: Timestamp) -> Self {
        Self {
            until: order.ttl.map(|ttl| now + ttl),
            order,
            since: now,
        }
    }

    /// The order.
    #[must_use]
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// When the order was given.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// When the order expires; `None` for an order that holds until it is lifted.
    #[must_use]
    pub fn until(&self) -> Option<Timestamp> {
        self.until
    }
}

/// A weight in place of the registered one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WeightOrder {
    /// The weight.
    pub weight: Weight,
    /// The order that sets it.
    pub standing: Arc<StandingOrder>,
}

/// The property that an order overrides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Override {
    /// The order drains the instance.
    Drain,
    /// The order sets the weight of the instance.
    Weight(Weight),
}

/// An order that ended without being lifted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ended {
    /// The id of the instance.
    pub id: InstanceId,
    /// The property that the order overrode.
    pub what: Override,
    /// The order.
    pub standing: Arc<StandingOrder>,
    /// Why the order ended.
    pub because: EndedBecause,
}

/// Why an order ended without being lifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum EndedBecause {
    /// The time to live ended.
    Expired,
    /// The instance has not been registered for a day.
    InstanceGone,
}

/// Number of orders in force for one service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OverrideCounts {
    /// Drained instances, registered or not.
    pub drains: usize,
    /// Weights that override registered weights.
    pub weights: usize,
}

/// The orders in force for one id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct InstanceOverrides {
    /// The order that drains the instance.
    pub drain: Option<Arc<StandingOrder>>,
    /// The order that overrides the registered weight.
    pub weight: Option<WeightOrder>,
}

/// The orders of one service, and the ids that departed recently.
#[derive(Debug, Default)]
pub(crate) struct Overrides {
    drains: HashMap<InstanceId, Arc<StandingOrder>>,
    weights: HashMap<InstanceId, WeightOrder>,
    departed: HashMap<InstanceId, Timestamp>,
    ended: VecDeque<Ended>,
}

impl Overrides {
    pub(crate) fn of(&self, id: &InstanceId) -> InstanceOverrides {
        InstanceOverrides {
            drain: self.drains.get(id).cloned(),
            weight: self.weights.get(id).cloned(),
        }
    }

    pub(crate) fn counts(&self) -> OverrideCounts {
        OverrideCounts {
            drains: self.drains.len(),
            weights: self.weights.len(),
        }
    }

    /// Whether orders are accepted for an id that is not registered.
    pub(crate) fn remembers(&self, id: &InstanceId, now: Timestamp) -> bool {
        self.has_order(id)
            || self
                .departed
                .get(id)
                .is_some_and(|departed_at| now.since(*departed_at) <= KNOWN_FOR)
    }

    fn has_order(&self, id: &InstanceId) -> bool {
        self.drains.contains_key(id) || self.weights.contains_key(id)
    }

    pub(crate) fn drain(&mut self, id: &InstanceId, order: Order, now: Timestamp) {
        self.drains.insert(id.clone(), Arc::new(StandingOrder::new(order, now)));
    }

    pub(crate) fn undrain(&mut self, id: &InstanceId) -> Option<Arc<StandingOrder>> {
        self.drains.remove(id)
    }

    pub(crate) fn set_weight(&mut self, id: &InstanceId, weight: Weight, order: Order, now: Timestamp) {
        let standing = Arc::new(StandingOrder::new(order, now));
        self.weights.insert(id.clone(), WeightOrder { weight, standing });
    }

    pub(crate) fn clear_weight(&mut self, id: &InstanceId) -> Option<WeightOrder> {
        self.weights.remove(id)
    }

    /// The ids with orders.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &InstanceId> {
        let only_weights = self.weights.keys().filter(|id| !self.drains.contains_key(*id));
        self.drains.keys().chain(only_weights)
    }

    /// Moves orders from the first id of each pair to the second. All pairs change at once, so
    /// that ids may also be exchanged.
    pub(crate) fn rename(&mut self, ids: Vec<(InstanceId, InstanceId)>) {
        let moved: Vec<_> = ids
            .into_iter()
            .map(|(from, to)| (to, self.drains.remove(&from), self.weights.remove(&from)))
            .collect();
        for (to, drain, weight) in moved {
            self.drains.extend(drain.map(|standing| (to.clone(), standing)));
            self.weights.extend(weight.map(|order| (to, order)));
        }
    }

    pub(crate) fn arrived(&mut self, ids: &[InstanceId]) {
        for id in ids {
            self.departed.remove(id);
        }
    }

    /// Remembers departed ids. `instances` is the present number of instances of the service.
    pub(crate) fn departed(&mut self, ids: &[InstanceId], now: Timestamp, instances: usize) {
        self.departed.extend(ids.iter().map(|id| (id.clone(), now)));
        let most = MIN_REMEMBERED.max(instances);
        // The list may grow to twice the limit before it is trimmed, so that trimming is rare.
        if self.departed.len() > 2 * most {
            let mut times: Vec<Timestamp> = self.departed.values().copied().collect();
            let keep_from = times.len() - most;
            let (_, oldest_kept, _) = times.select_nth_unstable(keep_from);
            let oldest_kept = *oldest_kept;
            let (drains, weights) = (&self.drains, &self.weights);
            self.departed.retain(|id, departed_at| {
                *departed_at >= oldest_kept || drains.contains_key(id) || weights.contains_key(id)
            });
        }
    }

    /// Ends the orders that are due. Returns whether any order ended.
    pub(crate) fn expire(&mut self, now: Timestamp) -> bool {
        let mut ended = Vec::new();
        let departed = &self.departed;
        let is_over = |id: &InstanceId, standing: &StandingOrder| {
            if standing.until.is_some_and(|until| until <= now) {
                Some(EndedBecause::Expired)
            } else if departed
                .get(id)
                .is_some_and(|departed_at| now.since(*departed_at) >= KEPT_FOR)
            {
                Some(EndedBecause::InstanceGone)
            } else {
                None
            }
        };
        self.drains.retain(|id, standing| match is_over(id, standing) {
            Some(because) => {
                ended.push(Ended {
                    id: id.clone(),
                    what: Override::Drain,
                    standing: Arc::clone(standing),
                    because,
                });
                false
            }
            None => true,
        });
        self.weights.retain(|id, order| match is_over(id, &order.standing) {
            Some(because) => {
                ended.push(Ended {
                    id: id.clone(),
                    what: Override::Weight(order.weight),
                    standing: Arc::clone(&order.standing),
                    because,
                });
                false
            }
            None => true,
        });
        let any = !ended.is_empty();
        self.ended.extend(ended);
        while self.ended.len() > MAX_ENDED {
            self.ended.pop_front();
        }
        any
    }

    /// Forgets the ids that left more than an hour ago and have no override.
    pub(crate) fn forget_departed(&mut self, now: Timestamp) {
        let (drains, weights) = (&self.drains, &self.weights);
        self.departed.retain(|id, departed_at| {
            now.since(*departed_at) <= KNOWN_FOR || drains.contains_key(id) || weights.contains_key(id)
        });
    }

    /// When the next order ends without being lifted.
    pub(crate) fn next_end(&self) -> Option<Timestamp> {
        let drains = self.drains.iter().map(|(id, standing)| (id, &**standing));
        let weights = self.weights.iter().map(|(id, order)| (id, &*order.standing));
        let ends = |(id, standing): (&InstanceId, &StandingOrder)| {
            let forgotten_at = self.departed.get(id).map(|departed_at| *departed_at + KEPT_FOR);
            standing.until.into_iter().chain(forgotten_at).min()
        };
        drains.chain(weights).filter_map(ends).min()
    }

    /// Whether any order ended that [`take_ended`](Self::take_ended) has not returned yet.
    pub(crate) fn has_ended(&self) -> bool {
        !self.ended.is_empty()
    }

    /// The orders that ended without being lifted since the last call.
    pub(crate) fn take_ended(&mut self) -> Vec<Ended> {
        self.ended.drain(..).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    fn id(text: &str) -> InstanceId {
        text.parse().unwrap()
    }

    fn order(ttl: Option<u64>) -> Order {
        let order = Order::by("ops");
        match ttl {
            Some(seconds) => order.for_the_next(Duration::from_secs(seconds)).unwrap(),
            None => order,
        }
    }

    #[test]
    fn an_order_ends_with_its_time_to_live_and_is_returned_once() {
        let mut overrides = Overrides::default();
        overrides.drain(&id("a"), order(Some(10)), at(0));
        overrides.set_weight(&id("a"), Weight::MAX, order(Some(20)), at(0));
        overrides.drain(&id("b"), order(None), at(0));
        assert_eq!(overrides.next_end(), Some(at(10)));
        assert!(!overrides.expire(at(9)));
        assert!(overrides.expire(at(10)));
        assert!(overrides.of(&id("a")).drain.is_none() && overrides.of(&id("a")).weight.is_some());
        let ended = overrides.take_ended();
        assert_eq!(
            (ended.len(), ended[0].what, ended[0].because),
            (1, Override::Drain, EndedBecause::Expired)
        );
        assert!(overrides.take_ended().is_empty());
        assert_eq!(overrides.next_end(), Some(at(20)));
        overrides.expire(at(100_000));
        assert_eq!(
            overrides.counts(),
            OverrideCounts { drains: 1, weights: 0 },
            "b has no end"
        );
        assert_eq!(overrides.next_end(), None);
    }

    #[test]
    fn renamed_orders_may_exchange_their_ids() {
        let mut overrides = Overrides::default();
        overrides.drain(&id("a"), order(None), at(0));
        overrides.set_weight(&id("b"), Weight::MAX, order(None), at(0));
        overrides.rename(vec![(id("a"), id("b")), (id("b"), id("a"))]);
        assert!(overrides.of(&id("b")).drain.is_some() && overrides.of(&id("b")).weight.is_none());
        assert!(overrides.of(&id("a")).drain.is_none() && overrides.of(&id("a")).weight.is_some());
        assert_eq!(overrides.ids().count(), 2);
    }

    #[test]
    fn a_departed_id_is_remembered_for_an_hour_and_its_orders_for_a_day() {
        let mut overrides = Overrides::default();
        overrides.drain(&id("a"), order(None), at(0));
        overrides.departed(&[id("a"), id("b")], at(0), 0);
        assert!(overrides.remembers(&id("b"), at(3_600)) && !overrides.remembers(&id("b"), at(3_601)));
        assert!(!overrides.expire(at(86_399)));
        assert!(overrides.remembers(&id("a"), at(86_399)));
        assert_eq!(overrides.next_end(), Some(at(86_400)));
        assert!(overrides.expire(at(86_400)));
        assert_eq!(overrides.take_ended()[0].because, EndedBecause::InstanceGone);
        overrides.forget_departed(at(86_400));
        assert!(!overrides.remembers(&id("a"), at(86_400)) && overrides.departed.is_empty());
    }

    #[test]
    fn an_instance_that_came_back_keeps_its_orders() {
        let mut overrides = Overrides::default();
        overrides.drain(&id("a"), order(None), at(0));
        overrides.departed(&[id("a")], at(0), 0);
        overrides.arrived(&[id("a")]);
        assert!(!overrides.expire(at(200_000)));
        assert!(overrides.of(&id("a")).drain.is_some());
    }

    #[test]
    fn many_departed_ids_are_forgotten_oldest_first_except_with_orders() {
        let mut overrides = Overrides::default();
        overrides.departed(&[id("ordered")], at(0), 0);
        overrides.drain(&id("ordered"), order(None), at(0));
        for number in 0..5_000_u64 {
            overrides.departed(&[id(&format!("pod-{number}"))], at(number), 10);
        }
        assert!(
            overrides.departed.len() <= 2 * MIN_REMEMBERED + 1,
            "{}",
            overrides.departed.len()
        );
        assert!(overrides.remembers(&id("pod-4999"), at(5_000)) && overrides.remembers(&id("pod-4800"), at(5_000)));
        assert!(!overrides.remembers(&id("pod-0"), at(5_000)));
        assert!(overrides.departed.contains_key(&id("ordered")));
    }

    #[test]
    fn a_reason_is_one_line_and_a_ttl_has_a_range() {
        assert_eq!(Order::by("a\nb").operator(), "ab");
        assert_eq!(Order::by("a").because("").unwrap().reason(), None);
        assert!(Order::by("a").because(&"ä".repeat(256)).is_ok());
        assert_eq!(Order::by("a").because(&"x".repeat(257)), Err(InvalidOrder::Reason));
        assert_eq!(Order::by("a").because("x\ny"), Err(InvalidOrder::Reason));
        assert_eq!(Order::by("a").for_the_next(Duration::ZERO), Err(InvalidOrder::Ttl));
        assert!(Order::by("a").for_the_next(Order::LONGEST_TTL).is_ok());
        assert!(
            Order::by("a")
                .for_the_next(Order::LONGEST_TTL + Duration::from_secs(1))
                .is_err()
        );
    }
}
