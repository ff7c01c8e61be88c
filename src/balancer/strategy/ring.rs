//! The hash ring: which instance owns a key, and which instances follow.
//!
//! Points are xxh3 hashes of the instance *id* (seeded with the point's number). The *registered*
//! weight gives the number of points. No other input goes in: nodes with equal registry views have
//! equal rings, whatever the health of an instance is on each node. xxh3 is frozen, so different
//! versions of pickd agree, too.
//!
//! An instance of weight w has `virtual_nodes * w / reference` points (at least one). The
//! reference is the mean weight rounded down to a power of two, so an instance of mean weight has
//! between `virtual_nodes` and twice that. While the reference stays the same, the points of an
//! instance depend on that instance alone. An instance that leaves therefore moves only its own
//! keys, and gets them back. A ring has at most 2^20 points: the reference doubles until they fit.
//!
//! A point takes 8 bytes, and an index of at most 2 bytes more a point leads a lookup to the right
//! bucket in one step: a lookup in a large ring waits for memory twice.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The largest number of points of one ring.
const MAX_POINTS: u64 = 1 << 20;

/// Hash of a key, as the ring expects it.
#[inline]
pub(crate) fn hash_key(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// Whether an instance that is held back keeps this key: the instance keeps `factor` / 2^32 of its
/// keys. The result is the same on every node, and a larger factor only adds keys to those of a
/// smaller one.
#[inline]
pub(crate) fn keeps(key_hash: u64, id_hash: u64, factor: u32) -> bool {
    let mut mixed = (key_hash ^ id_hash).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed ^= mixed >> 32;
    mixed = mixed.wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (mixed >> 32) as u32 <= factor
}

/// A point holds its hash in the upper 40 bits, which decide the order, and its owner in the lower
/// 24: 16 million owners.
const HASH_BITS: u64 = !0 << 24;
/// Number of points that a lookup compares at once.
const LOOKUP_POINTS: usize = 6;

/// An immutable ring over owners `0..n`.
#[derive(Debug)]
pub(crate) struct Ring {
    /// All points, sorted.
    points: Box<[u64]>,
    /// For each bucket of leading hash bits, the index of its first point.
    starts: Box<[u32]>,
    shift: u32,
}

impl Ring {
    /// Makes a ring of owners in a fixed order (sorted by id), each with its id and registered
    /// weight. An owner of weight 0 has no points.
    pub(crate) fn new<'a>(owners: impl Iterator<Item = (&'a str, u16)> + Clone, virtual_nodes: u32) -> Self {
        let counts = point_counts(owners.clone().map(|(_, weight)| weight), virtual_nodes);
        let total: usize = counts.iter().map(|&count| count as usize).sum();
        // Two to four points in each bucket.
        let bits = (total.next_power_of_two() / 4).max(1).trailing_zeros();
        let shift = 64 - bits;
        let bucket = |hash: u64| hash.checked_shr(shift).unwrap_or(0) as usize;

        let mut points = Vec::with_capacity(total);
        for (owner, ((id, _), &count)) in owners.zip(&counts).enumerate() {
            let hashes = (0..u64::from(count)).map(|point| xxh3_64_with_seed(id.as_bytes(), point));
            points.extend(hashes.map(|hash| hash & HASH_BITS | owner as u64 & !HASH_BITS));
        }
        // Hashes are evenly distributed, so after one pass by leading bits only points within a
        // bucket need sorting.
        let mut starts = vec![0_u32; (1 << bits) + 1];
        for &point in &points {
            starts[bucket(point) + 1] += 1;
        }
        for index in 1..starts.len() {
            starts[index] += starts[index - 1];
        }
        let mut filled = starts.clone();
        let mut sorted = vec![0_u64; total].into_boxed_slice();
        for point in points {
            let place = &mut filled[bucket(point)];
            sorted[*place as usize] = point;
            *place += 1;
        }
        for window in starts.windows(2) {
            sorted[window[0] as usize..window[1] as usize].sort_unstable();
        }
        Self {
            points: sorted,
            starts: starts.into(),
            shift,
        }
    }

    /// Owners in ring order from the key's place, once round. An owner appears once for each of its
    /// points.
    #[inline]
    pub(crate) fn walk(&self, key_hash: u64) -> impl Iterator<Item = usize> + '_ {
        let start = self.place(key_hash);
        let (before, after) = self.points.split_at(start.min(self.points.len()));
        after.iter().chain(before).map(|&point| (point & !HASH_BITS) as usize)
    }

    /// Like [`walk`](Self::walk), from the place of a key that is not hashed yet.
    pub(crate) fn walk_from(&self, key: &[u8]) -> impl Iterator<Item = usize> + '_ {
        self.walk(hash_key(key))
    }

    /// The number of points of each of `owners`.
    pub(crate) fn points(&self, owners: usize) -> Vec<u32> {
        let mut points = vec![0; owners];
        for point in &self.points {
            if let Some(count) = points.get_mut((point & !HASH_BITS) as usize) {
                *count += 1;
            }
        }
        points
    }

    #[inline]
    fn place(&self, key_hash: u64) -> usize {
        let bucket = key_hash.checked_shr(self.shift).unwrap_or(0) as usize;
        let start = self.starts.get(bucket).map_or(0, |&start| start as usize);
        let behind = self.points.get(start..).unwrap_or_default();
        let key = key_hash & HASH_BITS;
        // Counting within a fixed number of points has no branches to mispredict. Few lookups have
        // to go on from there.
        let near = behind.first_chunk::<LOOKUP_POINTS>();
        let passed = near.map_or(0, |near| near.iter().filter(|&&point| point < key).count());
        if passed < LOOKUP_POINTS && near.is_some() {
            return start + passed;
        }
        start + behind.iter().take_while(|&&point| point < key).count()
    }

    /// Number of points.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.points.len()
    }
}

/// The number of points for each weight, by the rule in the module's documentation.
fn point_counts(weights: impl Iterator<Item = u16> + Clone, virtual_nodes: u32) -> Vec<u32> {
    let (mut sum, mut count) = (0_u64, 0_u64);
    for weight in weights.clone().filter(|&weight| weight > 0) {
        sum += u64::from(weight);
        count += 1;
    }
    if count == 0 {
        return weights.map(|_| 0).collect();
    }
    let mut reference = 1_u64 << (sum / count).max(1).ilog2();
    loop {
        let points = |weight: u16| match u64::from(weight) * u64::from(virtual_nodes) {
            0 => 0,
            scaled => ((scaled + reference / 2) / reference).max(1),
        };
        let total: u64 = weights.clone().map(points).sum();
        if total <= MAX_POINTS.max(count) {
            return weights.map(|weight| points(weight) as u32).collect();
        }
        reference *= 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner_of(ring: &Ring, key: u64) -> Option<usize> {
        ring.walk(key).next()
    }

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("cache-{index}")).collect()
    }

    #[test]
    fn the_hash_of_the_empty_key_is_that_of_frozen_xxh3() {
        assert_eq!(hash_key(b""), 0x2d06_8005_38d3_94c2);
    }

    #[test]
    fn a_ring_without_owners_or_weights_is_empty() {
        assert_eq!(Ring::new(std::iter::empty(), 100).walk(7).next(), None);
        assert_eq!(Ring::new([("a", 0)].into_iter(), 100).walk(7).next(), None);
    }

    #[test]
    fn points_follow_virtual_nodes_and_relative_weight() {
        assert_eq!(point_counts([1, 1, 1].into_iter(), 100), [100, 100, 100]);
        assert_eq!(point_counts([4, 4].into_iter(), 100), [100, 100]);
        assert_eq!(point_counts([1, 2, 0, 1].into_iter(), 100), [100, 200, 0, 100]);
        assert_eq!(point_counts([1, 10_000].into_iter(), 100), [1, 244]);
    }

    #[test]
    fn a_ring_never_grows_beyond_its_bound() {
        let counts = point_counts(std::iter::repeat_n(7, 20_000), 100);
        assert!(counts.iter().map(|&count| u64::from(count)).sum::<u64>() <= MAX_POINTS);
        assert!(counts.iter().all(|&count| count > 0));
    }

    #[test]
    fn a_factor_of_a_quarter_keeps_a_quarter_and_a_larger_one_adds_keys() {
        let id = hash_key(b"user-1");
        let keys: Vec<u64> = (0..20_000_u32).map(|key| hash_key(&key.to_le_bytes())).collect();
        let kept = |factor: u32| keys.iter().filter(|&&key| keeps(key, id, factor)).count();
        assert!((4_600..5_400).contains(&kept(u32::MAX / 4)), "{}", kept(u32::MAX / 4));
        assert_eq!(kept(u32::MAX), 20_000);
        assert!(
            keys.iter()
                .all(|&key| !keeps(key, id, u32::MAX / 4) || keeps(key, id, u32::MAX / 2))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_lookup_finds_the_first_point_at_or_after_the_key(count in 1_usize..40, key: u64) {
            let ids = ids(count);
            let ring = Ring::new(ids.iter().map(|id| (id.as_str(), 1)), 20);
            prop_assert!(ring.points.is_sorted());
            let place = ring.points.partition_point(|&point| point & HASH_BITS < key & HASH_BITS) % ring.len();
            prop_assert_eq!(owner_of(&ring, key), Some((ring.points[place] & !HASH_BITS) as usize));
            prop_assert_eq!(ring.walk(key).count(), ring.len());
        }

        #[test]
        fn an_owner_that_leaves_moves_only_its_own_keys_and_gets_them_back(count in 2_usize..30, leaver in 0_usize..30) {
            let all = ids(count);
            let leaver = leaver % count;
            let rest: Vec<&String> = all.iter().enumerate().filter(|(index, _)| *index != leaver).map(|(_, id)| id).collect();
            let before = Ring::new(all.iter().map(|id| (id.as_str(), 3)), 100);
            let after = Ring::new(rest.iter().map(|id| (id.as_str(), 3)), 100);
            for key in 0..2_000_u32 {
                let key = hash_key(&key.to_le_bytes());
                let was = owner_of(&before, key).map(|owner| &all[owner]);
                let is = owner_of(&after, key).map(|owner| rest[owner]);
                if was != Some(&all[leaver]) {
                    prop_assert_eq!(was, is);
                }
            }
        }
    }
}
