//! Consistent hashing without a balancer: ids and weights in, the owners of a key out.
//!
//! The ring is that of the strategy `consistent_hash`, so a program that shards data, partitions
//! work or checks a placement gets the owners that pickd picks while all instances are healthy.

use std::collections::BTreeMap;

use super::config::LoadBalancerConfig;
use super::instance::{InstanceId, Weight};
use super::settings::InvalidConfig;
use super::strategy::ring::{Ring, hash_key};

/// A consistent hash ring of ids with weights.
///
/// Equal ids and weights make equal rings, in any order and on every machine. An id that is added
/// takes keys only for itself, and an id that is removed gives up only its own keys, as long as the
/// mean weight stays between the same powers of two.
///
/// ```
/// use pickd::{ConsistentHash, Weight};
///
/// let mut caches = ConsistentHash::new();
/// for id in ["cache-1", "cache-2", "cache-3"] {
///     caches.add(id.parse()?, Weight::ONE);
/// }
/// let users: Vec<String> = (1..=1_000).map(|number| format!("user-{number}")).collect();
/// let owner = |caches: &ConsistentHash, user: &String| caches.owner(user).cloned();
/// let before: Vec<_> = users.iter().map(|user| owner(&caches, user)).collect();
///
/// caches.remove("cache-2");
/// for (user, before) in users.iter().zip(&before) {
///     let moved = owner(&caches, user) != *before;
///     assert_eq!(moved, before.as_ref().is_some_and(|id| id.as_str() == "cache-2"));
/// }
///
/// // The owner, and the id that takes over without it.
/// let in_order: Vec<&str> = caches.owners("user-7").map(|id| id.as_str()).collect();
/// assert_eq!(in_order.len(), 2);
/// # Ok::<(), pickd::balancer::InvalidInstance>(())
/// ```
///
/// A lookup is O(1) and allocates nothing. A change makes the whole ring again: about 400 points for
/// each id, and at most 2^20 points. To add many ids at once, use
/// [`extend`](Extend::extend) or collect them.
#[derive(Debug)]
pub struct ConsistentHash {
    weights: BTreeMap<InstanceId, Weight>,
    /// The ids in the order of the ring's owners.
    owners: Vec<InstanceId>,
    virtual_nodes: u32,
    ring: Ring,
}

impl ConsistentHash {
    /// A ring without ids, of 100 virtual nodes (of four points each) for an id of mean weight: the
    /// default of [`LoadBalancerConfig::virtual_nodes`].
    #[must_use]
    pub fn new() -> Self {
        let virtual_nodes = LoadBalancerConfig::default().virtual_nodes();
        Self {
            weights: BTreeMap::new(),
            owners: Vec::new(),
            virtual_nodes,
            ring: Ring::new(std::iter::empty(), virtual_nodes),
        }
    }

    /// Sets the number of virtual nodes, 1..=10,000. More of them make the shares more even, and take
    /// memory: 8 to 12 bytes for each of their points.
    ///
    /// # Errors
    ///
    /// Outside the range.
    pub fn with_virtual_nodes(mut self, virtual_nodes: i64) -> Result<Self, InvalidConfig> {
        self.virtual_nodes = LoadBalancerConfig::default()
            .with_virtual_nodes(virtual_nodes)?
            .virtual_nodes();
        self.build();
        Ok(self)
    }

    /// Adds an id, or changes its weight. Returns the weight that the id had before. An id of weight
    /// 0 is on the list, and owns no key.
    pub fn add(&mut self, id: InstanceId, weight: Weight) -> Option<Weight> {
        let before = self.weights.insert(id, weight);
        if before != Some(weight) {
            self.build();
        }
        before
    }

    /// Removes an id. Returns the weight that the id had; `None` if no such id is on the list.
    pub fn remove(&mut self, id: &str) -> Option<Weight> {
        let removed = self.weights.remove(id);
        if removed.is_some() {
            self.build();
        }
        removed
    }

    /// The owner of a key; `None` if no id has a weight above 0.
    #[must_use]
    pub fn owner(&self, key: impl AsRef<[u8]>) -> Option<&InstanceId> {
        let mut walk = self.ring.walk(hash_key(key.as_ref()));
        walk.find_map(|owner| self.owners.get(owner))
    }

    /// Every id of a weight above 0, each once, in the order in which they take over the key: the
    /// owner first, then the owner without the first, and so on.
    ///
    /// The first few ids cost about as many steps. The last of n ids costs about n log n steps.
    pub fn owners<K: AsRef<[u8]>>(&self, key: K) -> impl Iterator<Item = &InstanceId> + use<'_, K> {
        let mut seen = vec![false; self.owners.len()];
        let mut left = self.weights.values().filter(|weight| weight.get() > 0).count();
        let mut walk = self.ring.walk(hash_key(key.as_ref()));
        std::iter::from_fn(move || {
            // Without this bound, the call after the last id would walk the whole ring.
            if left == 0 {
                return None;
            }
            let next = walk.find(|&owner| seen.get(owner) == Some(&false))?;
            *seen.get_mut(next)? = true;
            left -= 1;
            self.owners.get(next)
        })
    }

    /// Each id with its share of all keys, 0.0..=1.0. The shares add up to 1, or to 0 if no id has a
    /// weight above 0.
    pub fn shares(&self) -> impl Iterator<Item = (&InstanceId, f64)> {
        self.owners.iter().zip(self.ring.shares(self.owners.len()))
    }

    /// Each id with its weight, sorted by id.
    pub fn ids(&self) -> impl Iterator<Item = (&InstanceId, Weight)> {
        self.weights.iter().map(|(id, weight)| (id, *weight))
    }

    /// The number of ids.
    #[must_use]
    pub fn len(&self) -> usize {
        self.weights.len()
    }

    /// Whether the ring has no ids.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.weights.is_empty()
    }

    fn build(&mut self) {
        self.owners = self.weights.keys().cloned().collect();
        let owners = self.weights.iter().map(|(id, weight)| (id.as_str(), weight.get()));
        self.ring = Ring::new(owners, self.virtual_nodes);
    }
}

impl Default for ConsistentHash {
    fn default() -> Self {
        Self::new()
    }
}

/// Adds ids as [`ConsistentHash::add`] does, and makes the ring once.
impl Extend<(InstanceId, Weight)> for ConsistentHash {
    fn extend<I: IntoIterator<Item = (InstanceId, Weight)>>(&mut self, ids: I) {
        self.weights.extend(ids);
        self.build();
    }
}

impl FromIterator<(InstanceId, Weight)> for ConsistentHash {
    fn from_iter<I: IntoIterator<Item = (InstanceId, Weight)>>(ids: I) -> Self {
        let mut ring = Self::new();
        ring.extend(ids);
        ring
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::config::LoadBalancingStrategy;
    use crate::balancer::context::Context;
    use crate::balancer::instance::ServiceInstance;
    use crate::balancer::load_balancer::LoadBalancer;

    fn id(text: &str) -> InstanceId {
        text.parse().unwrap()
    }

    fn ring(ids: &[(&str, i64)]) -> ConsistentHash {
        let ids = ids
            .iter()
            .map(|(name, weight)| (id(name), Weight::new(*weight).unwrap()));
        ids.collect()
    }

    fn owners(ring: &ConsistentHash) -> Vec<String> {
        let owner = |key: u32| ring.owner(key.to_le_bytes()).map_or(String::new(), ToString::to_string);
        (0..2_000).map(owner).collect()
    }

    #[test]
    fn the_owners_of_a_key_are_the_picks_of_the_strategy_in_order() {
        let weights = [("cache-1", 1), ("cache-2", 3), ("cache-3", 0), ("cache-4", 2)];
        let config = LoadBalancerConfig::new(LoadBalancingStrategy::ConsistentHash);
        let balancer = LoadBalancer::new("cache".parse().unwrap(), config);
        for (name, weight) in weights {
            let host = format!("{name}.test");
            let instance = ServiceInstance::new(name, &host, 80).unwrap();
            balancer.add_instance(instance.with_weight(Weight::new(weight).unwrap()));
        }
        let ring = ring(&weights);
        for key in 0..500_u32 {
            let key = key.to_le_bytes();
            let context = Context::new().with_key(&key);
            let pick = balancer.select_instance(&context).unwrap();
            let mut picked = vec![pick.id().clone()];
            let alternates = pick.alternates(9, &context);
            picked.extend(alternates.iter().map(|alternate| alternate.instance().id().clone()));
            assert_eq!(ring.owner(key), picked.first());
            assert_eq!(ring.owners(key).cloned().collect::<Vec<_>>(), picked);
            assert_eq!(picked.len(), 3);
        }
    }

    #[test]
    fn a_ring_depends_on_ids_and_weights_and_on_nothing_else() {
        let made = ring(&[("a", 1), ("b", 2), ("c", 1)]);
        let mut grown = ConsistentHash::new();
        for (name, weight) in [("c", 1), ("b", 1), ("d", 1), ("a", 1)] {
            assert_eq!(grown.add(id(name), Weight::new(weight).unwrap()), None);
        }
        assert_eq!(grown.remove("d"), Some(Weight::ONE));
        assert_eq!(grown.add(id("b"), Weight::new(2).unwrap()), Some(Weight::ONE));
        assert_eq!(owners(&grown), owners(&made));
        assert_eq!(grown.remove("d"), None);
    }

    #[test]
    fn only_the_keys_of_the_id_that_comes_or_goes_move() {
        let mut ring = ring(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
        let before = owners(&ring);
        ring.remove("b");
        let without = owners(&ring);
        let moved = before.iter().zip(&without).filter(|(before, after)| before != after);
        assert!(moved.clone().all(|(before, _)| before == "b"));
        assert_eq!(moved.count(), before.iter().filter(|owner| *owner == "b").count());
        ring.add(id("b"), Weight::ONE);
        assert_eq!(owners(&ring), before);
    }

    #[test]
    fn shares_follow_the_weights() {
        let ring = ring(&[("a", 1), ("b", 3), ("c", 0)]);
        let shares: BTreeMap<&str, f64> = ring.shares().map(|(id, share)| (id.as_str(), share)).collect();
        assert!((shares["a"] - 0.25).abs() < 0.05, "{shares:?}");
        assert!((shares["b"] - 0.75).abs() < 0.05, "{shares:?}");
        assert!(shares["c"].abs() < f64::EPSILON);
        assert_eq!((ring.len(), ring.owners("key").count()), (3, 2));
    }

    #[test]
    fn a_ring_without_weights_has_no_owners() {
        for ring in [ConsistentHash::new(), ring(&[("a", 0)])] {
            assert_eq!((ring.owner("key"), ring.owners("key").count()), (None, 0));
        }
        assert!(ConsistentHash::default().is_empty());
    }

    #[test]
    fn virtual_nodes_have_the_range_of_the_setting() {
        for (count, accepted) in [(0, false), (1, true), (10_000, true), (10_001, false)] {
            let ring = ConsistentHash::new().with_virtual_nodes(count);
            assert_eq!(ring.is_ok(), accepted, "{count}");
        }
        let mut few = ConsistentHash::new().with_virtual_nodes(1).unwrap();
        few.add(id("a"), Weight::ONE);
        assert_eq!(few.ring.len(), 4);
    }
}
