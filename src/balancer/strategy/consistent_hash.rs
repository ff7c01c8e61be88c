//! Consistent hash: equal keys go to the same instance, on every node.
//!
//! The ring spans all registered members and depends only on ids and registered weights. Health
//! and load act on the walk from a key's place on the ring. An instance that is out is skipped, so
//! that a flapping instance moves only its own keys, and gets them back. An instance that is held
//! back to a quarter keeps a fixed quarter of its keys. An instance that already carries more than
//! its bounded share passes the key on (consistent hashing with bounded loads: Mirrokni, Thorup
//! and Zadimoghaddam 2018). A pick without a key is drawn at random by weight.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::draw::{Draw, Strategy};
use super::ring::{Ring, hash_key, keeps};
use super::schedule::Schedule;
use crate::balancer::member::{Member, Slot};

/// The slot of a member that is not a candidate.
const NO_SLOT: u32 = u32::MAX;
/// After this many points whose owners pass the key on, the first of these owners takes the key.
const MAX_REFUSALS: usize = 256;

#[derive(Debug)]
pub(crate) struct ConsistentHash {
    ring: Arc<Ring>,
    /// For each member, its slot and the share of its keys that it takes.
    places: Box<[Place]>,
    schedule: Schedule,
    balance_factor: f64,
    total_units: u64,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    slot: u32,
    /// The share of its keys that the member takes, in 2^-32; `u32::MAX` is all.
    factor: u32,
    id_hash: u64,
}

impl ConsistentHash {
    pub(crate) fn new(
        ring: Arc<Ring>,
        slots: &[Slot],
        members: &[Member],
        schedule: Schedule,
        balance_factor: f64,
    ) -> Self {
        let no_candidate = Place {
            slot: NO_SLOT,
            factor: 0,
            id_hash: 0,
        };
        let mut places = vec![no_candidate; members.len()].into_boxed_slice();
        let share = |slot: &Slot| {
            let full = members.get(slot.member as usize)?.instance().weight().get();
            Some(f64::from(slot.units) / (f64::from(full.max(1)) * 16.0))
        };
        // Relative to the best share. If a slow start holds all members back alike, each keeps all
        // of its keys.
        let best = slots.iter().filter_map(share).fold(0.0, f64::max).min(1.0);
        for (index, slot) in slots.iter().enumerate() {
            let member = slot.member as usize;
            if let (Some(place), Some(member), Some(share)) = (places.get_mut(member), members.get(member), share(slot))
            {
                // The conversion saturates: a member with the best share or more keeps all keys.
                let factor = (share / best * f64::from(u32::MAX)) as u32;
                let id_hash = hash_key(member.instance().id().as_str().as_bytes());
                *place = Place {
                    slot: index as u32,
                    factor,
                    id_hash,
                };
            }
        }
        let total_units = slots.iter().map(|slot| u64::from(slot.units)).sum();
        Self {
            ring,
            places,
            schedule,
            balance_factor,
            total_units,
        }
    }

    /// Candidates in ring order from the key's place. A candidate appears once for each of its
    /// points.
    pub(crate) fn walk(&self, key: &[u8]) -> impl Iterator<Item = usize> + '_ {
        self.ring.walk(hash_key(key)).filter_map(|owner| {
            let place = self.places.get(owner)?;
            (place.slot != NO_SLOT).then_some(place.slot as usize)
        })
    }

    /// Whether one more request would put this candidate above its bounded share of all requests in
    /// flight.
    fn is_full(&self, slot: &Slot, draw: &Draw<'_>) -> bool {
        if self.balance_factor == 0.0 {
            return false;
        }
        let all = draw.load.in_flight.load(Ordering::Relaxed) as f64 + 1.0;
        let share = f64::from(slot.units) / self.total_units.max(1) as f64;
        f64::from(slot.live.in_flight()) + 1.0 > (all * share * self.balance_factor).ceil()
    }
}

impl Strategy for ConsistentHash {
    #[inline(never)]
    fn choose(&self, draw: &Draw<'_>) -> Option<usize> {
        let Some(key) = draw.context.key() else {
            return draw.or_redrawn(self.schedule.draw(), &self.schedule);
        };
        let key_hash = hash_key(key);
        let mut refused = None;
        let mut refusals = 0;
        for owner in self.ring.walk(key_hash) {
            let Some(place) = self.places.get(owner).filter(|place| place.slot != NO_SLOT) else {
                continue;
            };
            let index = place.slot as usize;
            if !draw.admits(index) {
                continue;
            }
            let Some(slot) = draw.slots.get(index) else { continue };
            if keeps(key_hash, place.id_hash, place.factor) && !self.is_full(slot, draw) {
                return Some(index);
            }
            // If every candidate is held back or full, the first candidate in ring order takes the
            // key.
            refused = refused.or(Some(index));
            refusals += 1;
            if refusals == MAX_REFUSALS {
                break;
            }
        }
        refused
    }

    fn schedule(&self) -> &Schedule {
        &self.schedule
    }
}
