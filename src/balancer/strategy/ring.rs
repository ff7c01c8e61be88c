//! The hash ring: which instance owns a key, and which instances follow.
//!
//! The points of an instance are the outputs of the generator SplitMix64 whose seed is the xxh3 hash
//! of the instance *id*. The *registered* weight gives the number of points. No other input goes in:
//! nodes with equal registry views have equal rings, whatever the health of an instance is on each
//! node. Both functions are frozen, so different versions of pickd agree, too.
//!
//! The number of a point must not be the seed of xxh3. For ids of up to 3 bytes xxh3 combines seed
//! and id by XOR before it mixes them, so that the points of `db2` are those of `db1` in another
//! order.
//!
//! A virtual node is four points, as in ketama. An instance of weight w has
//! `4 * virtual_nodes * w / reference` points (at least one). The reference is the mean weight
//! rounded down to a power of two, so an instance of mean weight has between `virtual_nodes` virtual
//! nodes and twice that. While the reference stays the same, the points of an instance depend on
//! that instance alone. An instance that leaves therefore moves only its own keys, and gets them
//! back. A ring has at most 2^20 points: the reference doubles until they fit.
//!
//! A point takes 8 bytes, and an index of at most 4 bytes more a point leads a lookup to the right
//! bucket in one step: a lookup in a large ring waits for memory twice.
//!
//! Two other methods were measured at the same memory. Maglev hashing (Eisenbud et al. 2016) is
//! more even, but a table that grows with the number of instances moves nearly all keys when it
//! grows. Multi-probe consistent hashing (Appleton and O'Reilly 2015) with two probes is as even as
//! three times the points, and looks every key up twice. More points cost memory alone.

use xxhash_rust::xxh3::xxh3_64;

/// The largest number of points of one ring.
const MAX_POINTS: u64 = 1 << 20;
/// The number of points of a virtual node.
const POINTS_OF_A_NODE: u64 = 4;

/// Hash of a key, as the ring expects it.
#[inline]
pub(crate) fn hash_key(key: &[u8]) -> u64 {
    xxh3_64(key)
}

/// The full hashes of all points that the owner of this id could have.
fn point_hashes(id: &str) -> impl Iterator<Item = u64> + use<> {
    /// 2^64 divided by the golden ratio: the step of SplitMix64.
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut state = hash_key(id.as_bytes());
    std::iter::repeat_with(move || {
        state = state.wrapping_add(STEP);
        let mut mixed = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ mixed >> 31
    })
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
const HASH_BITS: u64 = !0 << OWNER_BITS;
const OWNER_BITS: u32 = 24;
/// Number of points that a lookup compares at once.
const LOOKUP_POINTS: usize = 4;

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
        // One to two points in each bucket.
        let bits = (total.next_power_of_two() / 2).max(1).trailing_zeros();
        let shift = 64 - bits;
        let bucket = |hash: u64| hash.checked_shr(shift).unwrap_or(0) as usize;

        let mut points = Vec::with_capacity(total);
        for (owner, ((id, _), &count)) in owners.zip(&counts).enumerate() {
            let hashes = point_hashes(id).take(count as usize);
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
        let mut place = self.place(key_hash);
        std::iter::repeat_with(move || {
            let point = self.points.get(place).or_else(|| {
                place = 0;
                self.points.first()
            });
            place += 1;
            point
        })
        .take(self.points.len())
        .flatten()
        .map(|&point| (point & !HASH_BITS) as usize)
    }

    /// Like [`walk`](Self::walk), from the place of a key that is not hashed yet.
    pub(crate) fn walk_from(&self, key: &[u8]) -> impl Iterator<Item = usize> + '_ {
        self.walk(hash_key(key))
    }

    /// The share of all keys that belongs to each of `owners`, 0..=1: the arcs that end in its points.
    pub(crate) fn shares(&self, owners: usize) -> Vec<f64> {
        const WHOLE: u64 = 1 << (u64::BITS - OWNER_BITS);
        let mut arcs = vec![0; owners];
        // The first arc begins at the last point, on the other side of zero.
        let mut behind = self.points.last().map_or(0, |&last| last >> OWNER_BITS);
        let mut round = WHOLE;
        for &point in &self.points {
            let hash = point >> OWNER_BITS;
            if let Some(arc) = arcs.get_mut((point & !HASH_BITS) as usize) {
                *arc += hash + round - behind;
            }
            (behind, round) = (hash, 0);
        }
        arcs.into_iter().map(|arc| arc as f64 / WHOLE as f64).collect()
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
        let points = |weight: u16| match u64::from(weight) * u64::from(virtual_nodes) * POINTS_OF_A_NODE {
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
    use std::collections::HashSet;

    use super::*;
    use proptest::prelude::*;
    use proptest::sample::Index;

    fn owner_of(ring: &Ring, key: u64) -> Option<usize> {
        ring.walk(key).next()
    }

    fn ids(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("cache-{index}")).collect()
    }

    fn even_ring(ids: &[String], virtual_nodes: u32) -> Ring {
        Ring::new(ids.iter().map(|id| (id.as_str(), 1)), virtual_nodes)
    }

    fn uuid(number: u128) -> String {
        let hex = format!("{number:032x}");
        format!(
            "{}-{}-{}-{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[12..16],
            &hex[16..20],
            &hex[20..]
        )
    }

    /// Ids of 1 to 64 bytes that are alike in the ways in which the ids of a service are.
    fn family() -> impl Strategy<Value = Vec<String>> {
        prop_oneof![
            ("[a-zA-Z0-9@:._-]{1,64}", any::<Index>()).prop_map(|(id, at)| {
                let at = at.index(id.len());
                let put = |byte: char| format!("{}{byte}{}", &id[..at], &id[at + 1..]);
                ('0'..='9').chain('a'..='z').map(put).collect()
            }),
            "[a-zA-Z0-9@:._-]{64}".prop_map(|id| (1..=64).map(|len| id[..len].to_owned()).collect()),
            "[a-z]".prop_map(|letter| (1..=64).map(|len| letter.repeat(len)).collect()),
            "[a-z]{5,64}".prop_map(|id| {
                let upper = |cases: usize| {
                    let cased = |(at, letter): (usize, char)| match cases >> (at % 5) & 1 {
                        0 => letter,
                        _ => letter.to_ascii_uppercase(),
                    };
                    id.chars().enumerate().map(cased).collect()
                };
                (0..32).map(upper).collect()
            }),
            ("[a-z]{0,8}[@:._-]?", 2..100_usize)
                .prop_map(|(prefix, count)| (0..count).map(|number| format!("{prefix}{number}")).collect()),
            (any::<[u8; 3]>(), any::<u16>(), 2..100_u8).prop_map(|([a, b, c], port, count)| {
                (0..count).map(|d| format!("{a}.{b}.{c}.{d}:{port}")).collect()
            }),
            (any::<[u8; 4]>(), 1..60_000_u16, 2..100_u16).prop_map(|([a, b, c, d], port, count)| {
                (port..port + count)
                    .map(|port| format!("{a}.{b}.{c}.{d}:{port}"))
                    .collect()
            }),
            (any::<u128>(), 0..120_u32, 2..100_u128)
                .prop_map(|(first, shift, count)| (0..count).map(|number| uuid(first ^ number << shift)).collect()),
        ]
    }

    /// The relative standard deviation of the share of an owner, if `owners` owners have `points`
    /// random points each: the share of m out of N random points follows Beta(m, N - m).
    fn deviation(owners: usize, points: u32) -> f64 {
        let owners = owners as f64;
        ((owners - 1.0) / (owners * f64::from(points) + 1.0)).sqrt()
    }

    /// How far the share of each owner is from an equal share, relative to it.
    fn errors(ring: &Ring, owners: usize) -> Vec<f64> {
        let relative = |share: f64| share * owners as f64 - 1.0;
        ring.shares(owners).into_iter().map(relative).collect()
    }

    #[test]
    fn the_hash_of_the_empty_key_is_that_of_frozen_xxh3() {
        assert_eq!(hash_key(b""), 0x2d06_8005_38d3_94c2);
    }

    #[test]
    fn the_points_of_an_id_are_those_of_splitmix64_from_its_hash() {
        let points: Vec<u64> = point_hashes("").take(3).collect();
        assert_eq!(
            points,
            [0x59b0_ed71_0b28_abee, 0x97fc_ceb2_3526_f9ec, 0xd58c_06b1_3484_28fd]
        );
    }

    #[test]
    fn the_shares_of_a_hundred_alike_ids_spread_as_those_of_random_points() {
        type Named = fn(u32) -> String;
        let families: [(&str, Named); 8] = [
            ("names", |number| format!("web-{number}")),
            ("two bytes", |number| format!("{number:02}")),
            ("three bytes", |number| format!("i{number:02}")),
            ("three bytes with @", |number| {
                format!("{}@{}", char::from(b'a' + (number / 10) as u8), number % 10)
            }),
            ("addresses", |number| format!("10.0.0.{number}:8080")),
            ("ports", |number| format!("10.0.0.1:{}", 20_000 + number)),
            ("UUIDs", |number| {
                uuid(0x9f1c_3f0a_7b5e_4c11_8d2a_0242_ac12_0000 + u128::from(number))
            }),
            ("case", |number| {
                let cased = |bit: u32| if number >> bit & 1 == 1 { 'X' } else { 'x' };
                (0..7).map(cased).collect()
            }),
        ];
        for (name, id) in families {
            let ids: Vec<String> = (0..100).map(id).collect();
            let errors = errors(&even_ring(&ids, 100), 100);
            let spread = (errors.iter().map(|error| error * error).sum::<f64>() / 100.0).sqrt();
            let expected = deviation(100, 400);
            assert!(
                (spread / expected - 1.0).abs() < 0.25,
                "{name}: {spread} for {expected}"
            );
            assert!(
                errors.iter().all(|error| error.abs() < 4.5 * expected),
                "{name}: {errors:?}"
            );
        }
    }

    #[test]
    fn short_ids_own_equal_numbers_of_keys_within_a_tenth() {
        let keys: Vec<u64> = (0..5_000)
            .map(|key| hash_key(format!("user-{key}").as_bytes()))
            .collect();
        let ids_of = |named: fn(u32) -> String, count| (0..count).map(named).collect::<Vec<_>>();
        for ids in [
            ids_of(|number| format!("db{}", number + 1), 3),
            ids_of(|number| format!("a@{}", number + 1), 3),
            ids_of(|number| format!("i{number:02}"), 10),
        ] {
            let ring = even_ring(&ids, 100);
            let mut owned = vec![0_u32; ids.len()];
            for key in &keys {
                owned[owner_of(&ring, *key).unwrap()] += 1;
            }
            let fair = 5_000.0 / ids.len() as f64;
            assert!(
                owned.iter().all(|&owned| (f64::from(owned) / fair - 1.0).abs() < 0.1),
                "{ids:?}: {owned:?}"
            );
        }
    }

    #[test]
    fn an_only_owner_has_the_whole_ring_and_one_without_points_has_nothing() {
        assert_eq!(Ring::new([("a", 1)].into_iter(), 1).shares(1), [1.0]);
        assert_eq!(Ring::new([("a", 1), ("b", 0)].into_iter(), 100).shares(2), [1.0, 0.0]);
        assert_eq!(Ring::new([("a", 0)].into_iter(), 100).shares(1), [0.0]);
    }

    #[test]
    fn a_ring_without_owners_or_weights_is_empty() {
        assert_eq!(Ring::new(std::iter::empty(), 100).walk(7).next(), None);
        assert_eq!(Ring::new([("a", 0)].into_iter(), 100).walk(7).next(), None);
    }

    #[test]
    fn points_follow_virtual_nodes_and_relative_weight() {
        assert_eq!(point_counts([1, 1, 1].into_iter(), 100), [400, 400, 400]);
        assert_eq!(point_counts([4, 4].into_iter(), 100), [400, 400]);
        assert_eq!(point_counts([1, 2, 0, 1].into_iter(), 100), [400, 800, 0, 400]);
        assert_eq!(point_counts([1, 10_000].into_iter(), 25), [1, 244]);
    }

    #[test]
    fn the_largest_weights_keep_a_ring_within_its_bound() {
        for (owners, virtual_nodes) in [(2, 10_000), (1_000, 10_000), (200_000, 10_000)] {
            let weights = std::iter::repeat_n(u16::MAX, owners).chain([1]);
            let counts = point_counts(weights, virtual_nodes);
            assert!(counts.iter().map(|&count| u64::from(count)).sum::<u64>() <= MAX_POINTS);
            assert!(counts.iter().all(|&count| count > 0), "{owners}");
            assert_eq!(counts[owners], 1, "{owners}");
        }
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
            let ring = even_ring(&ids(count), 20);
            prop_assert!(ring.points.is_sorted());
            let place = ring.points.partition_point(|&point| point & HASH_BITS < key & HASH_BITS) % ring.len();
            prop_assert_eq!(owner_of(&ring, key), Some((ring.points[place] & !HASH_BITS) as usize));
            prop_assert_eq!(ring.walk(key).count(), ring.len());
        }

        #[test]
        fn no_two_points_of_alike_ids_are_equal(ids in family()) {
            let points: HashSet<u64> = ids.iter().flat_map(|id| point_hashes(id).take(400)).collect();
            prop_assert_eq!(points.len(), ids.len() * 400);
        }

        // A share beyond eight standard deviations has a chance of less than one in a billion.
        #[test]
        fn alike_ids_have_fair_shares(ids in family()) {
            let bound = 8.0 * deviation(ids.len(), 400);
            for (id, error) in ids.iter().zip(errors(&even_ring(&ids, 100), ids.len())) {
                prop_assert!(error.abs() < bound, "{} of {} ids: {} beyond {}", id, ids.len(), error, bound);
            }
        }

        #[test]
        fn the_share_of_an_owner_is_its_part_of_evenly_spaced_keys(weights in prop::collection::vec(0_u16..5, 1..12)) {
            let ids = ids(weights.len());
            let ring = Ring::new(ids.iter().map(String::as_str).zip(weights.iter().copied()), 20);
            let mut owned = vec![0_u32; weights.len()];
            for key in 0..1_u64 << 16 {
                if let Some(owner) = owner_of(&ring, key << 48) {
                    owned[owner] += 1;
                }
            }
            let shares = ring.shares(weights.len());
            for (owner, (share, owned)) in shares.iter().zip(owned).enumerate() {
                // An arc holds at most one key more or less than its length.
                let arcs = ring.points.iter().filter(|&point| point & !HASH_BITS == owner as u64).count();
                prop_assert!((share * 65_536.0 - f64::from(owned)).abs() <= arcs as f64, "{} {}", share, owned);
            }
            let all: f64 = if ring.len() > 0 { 1.0 } else { 0.0 };
            prop_assert!((shares.iter().sum::<f64>() - all).abs() < 1e-9);
        }

        #[test]
        fn an_owner_that_leaves_moves_only_its_own_keys_and_gets_them_back(all in family(), leaver: Index) {
            let leaver = leaver.index(all.len());
            let mut rest = all.clone();
            rest.remove(leaver);
            let (before, after) = (even_ring(&all, 100), even_ring(&rest, 100));
            for key in 0..2_000_u32 {
                let key = hash_key(&key.to_le_bytes());
                let was = owner_of(&before, key).map(|owner| &all[owner]);
                let is = owner_of(&after, key).map(|owner| &rest[owner]);
                if was != Some(&all[leaver]) {
                    prop_assert_eq!(was, is);
                }
            }
        }
    }
}
