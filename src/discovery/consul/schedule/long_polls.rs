//! Which services are watched by a long poll: the most picked ones, where there are more services
//! than long polls.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::balancer::{ServiceName, Timestamp};

/// How many picks a service has had so far.
pub type Interest = Arc<dyn Fn(&ServiceName) -> u64 + Send + Sync>;

/// How often the services with long polls are chosen again.
const RANK_EVERY: Duration = Duration::from_secs(10);

pub(super) struct LongPolls {
    interest: Interest,
    /// The most services with a long poll.
    slots: usize,
    polled: BTreeSet<ServiceName>,
    picks: BTreeMap<ServiceName, Picks>,
    rank_at: Timestamp,
}

/// How often a service was picked.
#[derive(Clone, Copy, Default)]
struct Picks {
    /// In all, when the services were ranked last.
    total: u64,
    /// In the last interval, plus half of the value before.
    recent: u64,
}

impl LongPolls {
    pub(super) fn new(slots: usize, interest: Interest, now: Timestamp) -> Self {
        Self {
            interest,
            slots,
            polled: BTreeSet::new(),
            picks: BTreeMap::new(),
            rank_at: now,
        }
    }

    /// The services with a long poll, by name.
    pub(super) fn polled(&self) -> impl Iterator<Item = &ServiceName> {
        self.polled.iter()
    }

    pub(super) fn is_polled(&self, name: &ServiceName) -> bool {
        self.polled.contains(name)
    }

    /// Takes up a new service. The service gets a long poll while there are free ones.
    pub(super) fn add(&mut self, name: &ServiceName) {
        let picks = Picks {
            total: (self.interest)(name),
            recent: 0,
        };
        self.picks.insert(name.clone(), picks);
        if self.polled.len() < self.slots {
            self.polled.insert(name.clone());
        }
    }

    /// Changes the most services with a long poll. The services are ranked again at once.
    pub(super) fn set_slots(&mut self, slots: usize, now: Timestamp) {
        (self.slots, self.rank_at) = (slots, now);
    }

    /// When the services are ranked next.
    pub(super) fn rank_at(&self) -> Timestamp {
        self.rank_at
    }

    /// Gives the long polls to the services with the most recent picks, then with the most picks
    /// in all. Takes all known services, and whether the catalog lists each. Returns the services
    /// that lost their long poll.
    pub(super) fn rank<'a>(
        &mut self,
        services: impl Iterator<Item = (&'a ServiceName, bool)>,
        now: Timestamp,
    ) -> Vec<ServiceName> {
        self.rank_at = now + RANK_EVERY;
        let before = std::mem::take(&mut self.picks);
        let mut ranked = Vec::with_capacity(before.len());
        for (name, listed) in services {
            let total = (self.interest)(name);
            let last = before.get(name).copied().unwrap_or_default();
            let recent = last.recent / 2 + total.saturating_sub(last.total);
            self.picks.insert(name.clone(), Picks { total, recent });
            if listed {
                ranked.push((recent, total, name));
            }
        }
        if ranked.len() > self.slots {
            // Ties by name, so that the choice stays the same while there are no picks.
            ranked.sort_unstable_by(|a, b| (b.0, b.1).cmp(&(a.0, a.1)).then_with(|| a.2.cmp(b.2)));
            ranked.truncate(self.slots);
        }
        let polled = ranked.into_iter().map(|(_, _, name)| name.clone()).collect();
        let before = std::mem::replace(&mut self.polled, polled);
        before.difference(&self.polled).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    #[test]
    fn recent_picks_win_then_all_picks_then_the_name() {
        let counts = Arc::new(Mutex::new(BTreeMap::from([("b", 50_u64), ("c", 90)])));
        let shared = Arc::clone(&counts);
        let interest: Interest =
            Arc::new(move |name| shared.lock().unwrap().get(name.as_str()).copied().unwrap_or_default());
        let now = Timestamp::default();
        let mut polls = LongPolls::new(2, interest, now);
        let all = ["a", "b", "c", "d"].map(name);
        for service in &all {
            polls.add(service);
        }
        let polled = |polls: &LongPolls| polls.polled().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(polled(&polls), "a b", "the first services take the free long polls");
        let listed = || all.iter().map(|name| (name, true));
        assert_eq!(polls.rank(listed(), now), [name("a")]);
        assert_eq!(polled(&polls), "b c", "no recent picks: all picks count");
        assert_eq!(polls.rank_at(), now + RANK_EVERY);
        counts.lock().unwrap().insert("d", 10);
        assert_eq!(polls.rank(listed(), now), [name("b")]);
        assert_eq!(polled(&polls), "c d");
        counts.lock().unwrap().insert("b", 56);
        assert_eq!(polls.rank(listed(), now), [name("c")], "d has 5 of its 10, b has 6");
        assert_eq!(polled(&polls), "b d");
        let without_b = all.iter().map(|name| (name, name.as_str() != "b"));
        assert_eq!(polls.rank(without_b, now), [name("b")], "not listed");
    }

    #[test]
    fn older_picks_count_half() {
        let counts = Arc::new(Mutex::new(BTreeMap::from([("a", 0_u64), ("b", 0)])));
        let shared = Arc::clone(&counts);
        let interest: Interest =
            Arc::new(move |name| shared.lock().unwrap().get(name.as_str()).copied().unwrap_or_default());
        let now = Timestamp::default();
        let mut polls = LongPolls::new(1, interest, now);
        let all = ["a", "b"].map(name);
        for service in &all {
            polls.add(service);
        }
        let listed = || all.iter().map(|name| (name, true));
        counts.lock().unwrap().insert("a", 10);
        polls.rank(listed(), now);
        assert!(polls.is_polled(&name("a")));
        counts.lock().unwrap().insert("b", 6);
        assert_eq!(
            polls.rank(listed(), now),
            [name("a")],
            "5 of the 10 picks count, against 6"
        );
        assert!(polls.is_polled(&name("b")));
    }

    #[test]
    fn without_slots_no_service_gets_a_long_poll() {
        let mut polls = LongPolls::new(0, Arc::new(|_| 0), Timestamp::default());
        polls.add(&name("a"));
        polls.rank([(&name("a"), true)].into_iter(), Timestamp::default());
        assert_eq!(polls.polled().count(), 0);
    }
}
