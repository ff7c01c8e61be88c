//! The strategies: how the next instance is chosen.
//!
//! Each strategy has a file. The strategies share [`schedule`] (turns by weight) and [`ring`] (the
//! owner of a key). A strategy is prepared once per view, from candidates that could be picked
//! when the view was made. If a caller excludes the chosen candidate, another one is drawn at
//! random by weight, so that an exclusion never shifts the turns of other candidates.
//!
//! | file | rule |
//! |---|---|
//! | [`round_robin`] | in turn, plain or by weight |
//! | [`random`] | uniform |
//! | [`least_connections`] | fewest requests in flight for its weight |
//! | [`least_response_time`] | best of a few by peak EWMA x load |
//! | [`consistent_hash`] | the key's place on a ring |

pub(crate) mod consistent_hash;
pub(crate) mod draw;
pub(crate) mod least_connections;
pub(crate) mod least_response_time;
pub(crate) mod random;
pub(crate) mod ring;
pub(crate) mod round_robin;
pub(crate) mod schedule;

use std::sync::Arc;

use self::consistent_hash::ConsistentHash;
use self::draw::{Draw, Mode, Strategy};
use self::least_connections::LeastConnections;
use self::least_response_time::LeastResponseTime;
use self::random::Random;
use self::ring::Ring;
use self::round_robin::RoundRobin;
use self::schedule::{Schedule, Turn};
use super::config::{LoadBalancerConfig, LoadBalancingStrategy};
use super::live::Load;
use super::member::{Member, Slot};

/// A prepared strategy, dispatched without an indirect call.
#[derive(Debug)]
pub(crate) enum Prepared {
    RoundRobin(RoundRobin),
    Random(Random),
    LeastConnections(LeastConnections),
    LeastResponseTime(LeastResponseTime),
    ConsistentHash(ConsistentHash),
}

impl Prepared {
    /// Prepares the configured strategy for these candidates. `ring` spans all members;
    /// `consistent_hash` requires it.
    pub(crate) fn new(
        config: &LoadBalancerConfig,
        slots: &[Slot],
        members: &[Member],
        turn: Arc<Turn>,
        ring: Option<Arc<Ring>>,
    ) -> Self {
        let units: Vec<u32> = slots.iter().map(|slot| slot.units).collect();
        let schedule = Schedule::new(&units);
        match (config.strategy(), ring) {
            (LoadBalancingStrategy::ConsistentHash, Some(ring)) => Self::ConsistentHash(ConsistentHash::new(
                ring,
                slots,
                members,
                schedule,
                config.hash_balance_factor(),
            )),
            (LoadBalancingStrategy::Random, _) => Self::Random(Random::new(schedule)),
            (LoadBalancingStrategy::LeastConnections, _) => {
                Self::LeastConnections(LeastConnections::new(schedule, turn, slots.len(), config.choices()))
            }
            (LoadBalancingStrategy::LeastResponseTime, _) => {
                Self::LeastResponseTime(LeastResponseTime::new(schedule, turn, slots.len(), config.choices()))
            }
            (
                LoadBalancingStrategy::RoundRobin
                | LoadBalancingStrategy::WeightedRoundRobin
                | LoadBalancingStrategy::ConsistentHash,
                _,
            ) => Self::RoundRobin(RoundRobin::new(schedule, turn)),
        }
    }

    fn strategy(&self) -> &dyn Strategy {
        match self {
            Self::RoundRobin(strategy) => strategy,
            Self::Random(strategy) => strategy,
            Self::LeastConnections(strategy) => strategy,
            Self::LeastResponseTime(strategy) => strategy,
            Self::ConsistentHash(strategy) => strategy,
        }
    }
}

impl Strategy for Prepared {
    #[inline]
    fn choose(&self, draw: &Draw<'_>) -> Option<usize> {
        match self {
            Self::RoundRobin(strategy) => strategy.choose(draw),
            Self::Random(strategy) => strategy.choose(draw),
            Self::LeastConnections(strategy) => strategy.choose(draw),
            Self::LeastResponseTime(strategy) => strategy.choose(draw),
            Self::ConsistentHash(strategy) => strategy.choose(draw),
        }
    }

    fn mode(&self, load: &Load) -> Mode {
        self.strategy().mode(load)
    }

    fn schedule(&self) -> &Schedule {
        self.strategy().schedule()
    }
}
