//! Turns by weight: a smooth weighted sequence, or an alias table where the sequence would be too
//! long.
//!
//! Shared by every strategy that divides picks by weight.
//!
//! ```text
//! units 1:2:1  ->  period 4  ->  b a b c   (never three turns of four for one candidate)
//! ```
//!
//! The sequence is an earliest-deadline-first schedule with release times (Tijdeman's chairman
//! assignment, PFair): the k-th turn of an instance with w of P units lies in the window `[floor(k
//! P / w), ceil((k + 1) P / w))`. A single processor at full load meets every such deadline, so
//! after any t turns an instance has had more than `t w / P - 1` and less than `t w / P + 1` of
//! them. (EDF without release times, as in Envoy, bunches: 50:1:1:1... starts with 50 turns of the
//! same instance.)

use std::sync::atomic::{AtomicU64, Ordering};

/// The counter of turns, which outlives views. A pick costs one atomic add.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Turn(AtomicU64);

impl Turn {
    /// Starts at a place that depends on the seed: ten thousand agents must not start on the same
    /// instance.
    pub(crate) fn starting_at(seed: u64) -> Self {
        // The start is far below 2^32, where `Modulo` wraps.
        Self(AtomicU64::new(seed >> 33))
    }

    #[inline]
    pub(crate) fn next(&self) -> u32 {
        self.0.fetch_add(1, Ordering::Relaxed) as u32
    }
}

/// `x % n` by two multiplications (Lemire, Kaser and Kurz 2019), because a division costs as much
/// as an atomic add.
///
/// Turns count in 32 bits: once in 2^32 picks the sequence restarts early.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Modulo {
    n: u32,
    inverse: u64,
}

impl Modulo {
    /// Prepares the remainder by `n`, which is at least 1.
    pub(crate) fn new(n: u32) -> Self {
        let n = n.max(1);
        Self {
            n,
            inverse: (u64::MAX / u64::from(n)).wrapping_add(1),
        }
    }

    #[inline]
    pub(crate) fn of(self, x: u32) -> usize {
        let fraction = self.inverse.wrapping_mul(u64::from(x));
        ((u128::from(fraction) * u128::from(self.n)) >> 64) as usize
    }
}

/// A random number in `0..n`, without a division and (for n far below 2^32) without a visible
/// bias.
#[inline]
pub(crate) fn below(n: usize) -> usize {
    ((u128::from(fastrand::u64(..)) * n as u128) >> 64) as usize
}

/// A random number in `0..n` other than `first`. Requires `first < n` and `n >= 2`.
#[inline]
pub(crate) fn other_than(first: usize, n: usize) -> usize {
    let place = first + 1 + below(n - 1);
    if place < n { place } else { place - n }
}

/// How picks are divided among candidates.
#[derive(Debug)]
pub(crate) enum Schedule {
    /// All candidates have equal shares.
    Even(Modulo),
    /// One period of the smooth sequence.
    Sequence { turns: Box<[u32]>, period: Modulo },
    /// The period would be too long: candidates are drawn at random by weight.
    Alias(Alias),
}

impl Schedule {
    /// Prepares the schedule of candidates with these shares, each above zero.
    pub(crate) fn new(units: &[u32]) -> Self {
        let divisor = units.iter().copied().fold(0, gcd).max(1);
        let period: u64 = units.iter().map(|units| u64::from(units / divisor)).sum();
        if period == units.len() as u64 {
            return Self::Even(Modulo::new(units.len() as u32));
        }
        if period > 4_096 + 4 * units.len() as u64 {
            return Self::Alias(Alias::new(units));
        }
        let shares: Vec<u32> = units.iter().map(|units| units / divisor).collect();
        Self::Sequence {
            turns: smooth(&shares, period as u32),
            period: Modulo::new(period as u32),
        }
    }

    /// The candidate whose turn it is.
    #[inline]
    pub(crate) fn next(&self, turn: &Turn) -> usize {
        match self {
            Self::Even(count) => count.of(turn.next()),
            Self::Sequence { turns, period } => turns.get(period.of(turn.next())).map_or(0, |&index| index as usize),
            Self::Alias(alias) => alias.draw(),
        }
    }

    /// A candidate at random by share. Advances no turn.
    #[inline]
    pub(crate) fn draw(&self) -> usize {
        match self {
            Self::Even(count) => below(count.n as usize),
            Self::Sequence { turns, .. } => turns.get(below(turns.len())).map_or(0, |&index| index as usize),
            Self::Alias(alias) => alias.draw(),
        }
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One period of the schedule for `shares`, whose sum is `period`. O(period), with bucket queues
/// over whole-numbered times.
fn smooth(shares: &[u32], period: u32) -> Box<[u32]> {
    const NONE: u32 = u32::MAX;
    let release = |share: u32, k: u64| (k * u64::from(period) / u64::from(share)) as u32;
    let deadline = |share: u32, k: u64| ((k + 1) * u64::from(period)).div_ceil(u64::from(share)) as u32;

    // Every candidate has one pending turn, so that one link for each candidate is enough for all
    // lists.
    let mut done = vec![0_u64; shares.len()];
    let mut link = vec![NONE; shares.len()];
    let mut released_at = vec![NONE; period as usize];
    let mut due = Deadlines::new(period);
    let mut turns = Vec::with_capacity(period as usize);

    for (index, &share) in shares.iter().enumerate().rev() {
        due.push(deadline(share, 0), index as u32, &mut link);
    }
    for now in 0..period {
        let mut waiting = std::mem::replace(&mut released_at[now as usize], NONE);
        while waiting != NONE {
            let index = waiting as usize;
            waiting = link[index];
            due.push(deadline(shares[index], done[index]), index as u32, &mut link);
        }
        let Some(index) = due.pop(&link) else { break };
        turns.push(index);
        let index = index as usize;
        done[index] += 1;
        if done[index] < u64::from(shares[index]) {
            // The next turn cannot be earlier than the next moment: the present moment is taken.
            let at = release(shares[index], done[index]).max(now + 1) as usize;
            link[index] = std::mem::replace(&mut released_at[at], index as u32);
        }
    }
    turns.into()
}

/// Candidates by deadline: a list for each deadline, and two levels of bits to find the first that
/// is not empty.
struct Deadlines {
    first: Vec<u32>,
    words: Vec<u64>,
    summary: Vec<u64>,
}

impl Deadlines {
    fn new(latest: u32) -> Self {
        let words = latest as usize / 64 + 1;
        Self {
            first: vec![u32::MAX; latest as usize + 1],
            words: vec![0; words],
            summary: vec![0; words / 64 + 1],
        }
    }

    fn push(&mut self, deadline: u32, index: u32, link: &mut [u32]) {
        let deadline = deadline as usize;
        link[index as usize] = std::mem::replace(&mut self.first[deadline], index);
        self.words[deadline / 64] |= 1 << (deadline % 64);
        self.summary[deadline / 4_096] |= 1 << (deadline / 64 % 64);
    }

    fn pop(&mut self, link: &[u32]) -> Option<u32> {
        let (upper, bits) = self.summary.iter().enumerate().find(|(_, bits)| **bits != 0)?;
        let word = upper * 64 + bits.trailing_zeros() as usize;
        let deadline = word * 64 + self.words[word].trailing_zeros() as usize;
        let index = self.first[deadline];
        self.first[deadline] = link[index as usize];
        if self.first[deadline] == u32::MAX {
            self.words[word] &= !(1 << (deadline % 64));
            if self.words[word] == 0 {
                self.summary[upper] &= !(1 << (word % 64));
            }
        }
        Some(index)
    }
}

/// A table for weighted random draws with a single lookup (Walker 1974; built as by Vose 1991).
#[derive(Debug)]
pub(crate) struct Alias {
    /// For each column: the fraction of 2^32 below which a draw yields the column itself, and the
    /// candidate that a draw yields above that.
    columns: Box<[(u32, u32)]>,
}

impl Alias {
    pub(crate) fn new(units: &[u32]) -> Self {
        let count = units.len() as u64;
        let total: u64 = units.iter().map(|&units| u64::from(units)).sum();
        // Units are scaled by `count`, so that a full column holds `total`.
        let mut rest: Vec<u64> = units.iter().map(|&units| u64::from(units) * count).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) = (0..units.len()).partition(|&index| rest[index] < total);
        let mut columns: Box<[(u32, u32)]> = (0..units.len() as u32).map(|index| (u32::MAX, index)).collect();
        while let (Some(low), Some(&high)) = (small.pop(), large.last()) {
            let fraction = (u128::from(rest[low]) << 32) / u128::from(total.max(1));
            columns[low] = (fraction as u32, high as u32);
            rest[high] -= total - rest[low];
            if rest[high] < total {
                large.pop();
                small.push(high);
            }
        }
        Self { columns }
    }

    #[inline]
    pub(crate) fn draw(&self) -> usize {
        let random = u128::from(fastrand::u64(..)) * self.columns.len() as u128;
        let column = (random >> 64) as usize;
        match self.columns.get(column) {
            Some(&(fraction, other)) if (random as u64 >> 32) as u32 >= fraction => other as usize,
            _ => column,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn names(turns: &[u32]) -> String {
        turns.iter().map(|&index| char::from(b'a' + index as u8)).collect()
    }

    #[test]
    fn other_than_yields_every_number_but_the_first() {
        fastrand::seed(3);
        let others: BTreeSet<usize> = (0..200).map(|_| other_than(2, 5)).collect();
        assert_eq!(others, BTreeSet::from([0, 1, 3, 4]));
        assert_eq!((other_than(0, 2), other_than(1, 2)), (1, 0));
    }

    #[test]
    fn weights_1_2_1_never_give_three_turns_of_four_to_one_candidate() {
        assert_eq!(names(&smooth(&[1, 2, 1], 4)), "babc");
    }

    #[test]
    fn turns_of_a_heavy_candidate_among_light_ones_are_spread_out() {
        let mut shares = vec![1; 50];
        shares.push(50);
        let turns = smooth(&shares, 100);
        assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
    }

    #[test]
    fn equal_shares_are_taken_in_turn() {
        assert!(matches!(Schedule::new(&[48, 48, 48]), Schedule::Even(_)));
        let turn = Turn::starting_at(0);
        let schedule = Schedule::new(&[16, 16, 16]);
        let taken: Vec<usize> = (0..6).map(|_| schedule.next(&turn)).collect();
        assert_eq!(taken, [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn a_long_period_becomes_an_alias_table_of_the_same_proportions() {
        fastrand::seed(7);
        let units = [1, 9_973, 30_011, 3];
        let schedule = Schedule::new(&units);
        assert!(matches!(schedule, Schedule::Alias(_)));
        let mut counts = [0_u32; 4];
        let turn = Turn::starting_at(0);
        for _ in 0..400_000 {
            counts[schedule.next(&turn)] += 1;
        }
        let share = |index: usize| f64::from(counts[index]) / 400_000.0;
        assert!((share(1) - 9_973.0 / 39_988.0).abs() < 0.004, "{counts:?}");
        assert!((share(2) - 30_011.0 / 39_988.0).abs() < 0.004, "{counts:?}");
        assert!(counts[0] < 60 && counts[3] < 100, "{counts:?}");
    }

    #[test]
    fn the_heaviest_candidates_overflow_no_table() {
        const HEAVIEST: u32 = 65_535 * 16;
        for count in [2, 1_000, 200_000] {
            let units: Vec<u32> = [HEAVIEST, 1, HEAVIEST / 3 + 1]
                .into_iter()
                .cycle()
                .take(count)
                .collect();
            let Schedule::Alias(alias) = Schedule::new(&units) else {
                panic!("a period of {count} times {HEAVIEST} is too long for a sequence");
            };
            let masses = masses(&alias);
            assert_eq!(masses.len(), count);
            let mean = units.iter().map(|&units| f64::from(units)).sum::<f64>() / count as f64;
            for (mass, &units) in masses.iter().zip(&units) {
                assert!(
                    (mass - f64::from(units) / mean).abs() < 1e-3,
                    "{count}: {mass} for {units}"
                );
            }
        }
    }

    proptest! {
        #[test]
        fn modulo_is_the_remainder(x: u32, n in 1..=u32::MAX) {
            prop_assert_eq!(Modulo::new(n).of(x), (x % n) as usize);
        }

        #[test]
        fn every_prefix_of_the_sequence_is_within_one_turn_of_fair(shares in prop::collection::vec(1_u32..40, 1..30)) {
            let period: u32 = shares.iter().sum();
            let turns = smooth(&shares, period);
            prop_assert_eq!(turns.len(), period as usize);
            let mut had = vec![0_u32; shares.len()];
            for (time, &index) in turns.iter().enumerate() {
                had[index as usize] += 1;
                for (had, share) in had.iter().zip(&shares) {
                    let fair = (time + 1) as f64 * f64::from(*share) / f64::from(period);
                    prop_assert!((f64::from(*had) - fair).abs() < 1.0, "{:?} {:?}", shares, turns);
                }
            }
            prop_assert_eq!(had, shares);
        }

        #[test]
        fn an_alias_table_holds_each_share_exactly(units in prop::collection::vec(1..=65_535_u32 * 16, 1..60)) {
            let alias = Alias::new(&units);
            let total: f64 = units.iter().map(|&units| f64::from(units)).sum();
            for (mass, share) in masses(&alias).iter().zip(&units) {
                let expected = f64::from(*share) / total * units.len() as f64;
                prop_assert!((mass - expected).abs() < 1e-6, "{} {}", mass, expected);
            }
        }
    }

    /// The share of each candidate, in columns.
    fn masses(alias: &Alias) -> Vec<f64> {
        let mut masses = vec![0.0_f64; alias.columns.len()];
        for (column, &(fraction, other)) in alias.columns.iter().enumerate() {
            let own = f64::from(fraction) / f64::from(u32::MAX);
            masses[column] += own;
            masses[other as usize] += 1.0 - own;
        }
        masses
    }
}
