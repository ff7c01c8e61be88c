//! The known services, what was sent about each, and when each is read next.
//!
//! Pure. Does not know why a service is read, nor what its answers say.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};

use super::query::Query;
use crate::balancer::{ServiceInstance, ServiceName, Timestamp};
use crate::discovery::watcher::Trust;

/// One service.
pub(super) struct Service {
    pub(super) query: Query,
    /// Fingerprint of its tags in the catalog.
    pub(super) tags: u64,
    /// Whether the catalog lists the service.
    pub(super) listed: bool,
    /// The last catalog did not list the service, but that catalog was incomplete: the service's
    /// own answer decides.
    pub(super) missing: bool,
    /// The last update that was sent about the service.
    pub(super) sent: Option<Sent>,
    /// An empty answer that waits for a catalog to confirm it.
    pub(super) empty_answer: Option<EmptyAnswer>,
    /// How often in a row the service was listed, yet had no instances.
    pub(super) listed_but_empty: u32,
    /// How often in a row Consul gave no usable answer for this service alone.
    pub(super) failures: u32,
    /// How often in a row Consul refused a request for the service with 429, and since when.
    pub(super) refused: Option<(u32, Timestamp)>,
    /// Whether Consul said that the last answer was filtered by ACLs.
    pub(super) filtered: bool,
    /// How many entries of the last answer were skipped or partly ignored.
    pub(super) skipped: usize,
}

/// The last update about a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Instances { fingerprint: u64, trust: Trust },
    Gone(Trust),
}

/// An answer without instances. The token may lack rights, so the catalog decides what it means.
#[derive(Clone, Copy, Debug)]
pub(super) struct EmptyAnswer {
    /// Catalog requests with this number or a higher number can confirm the answer.
    pub(super) confirmed_from: u64,
    pub(super) trust: Trust,
    pub(super) read_at: Timestamp,
}

impl Service {
    /// A service that the catalog lists, to be read now. After a `gap` the first answer is read
    /// once more.
    pub(super) fn new(tags: u64, gap: bool, now: Timestamp) -> Self {
        Self {
            query: Query::new(gap, now),
            tags,
            listed: true,
            missing: false,
            sent: None,
            empty_answer: None,
            listed_but_empty: 0,
            failures: 0,
            refused: None,
            filtered: false,
            skipped: 0,
        }
    }

    /// Whether sending `next` changes anything. The same instances with less trust change nothing.
    pub(super) fn is_news(&self, next: Sent) -> bool {
        match (self.sent, next) {
            (Some(sent), next) if sent == next => false,
            (
                Some(Sent::Instances {
                    fingerprint: old,
                    trust: sent,
                }),
                Sent::Instances {
                    fingerprint: new,
                    trust,
                },
            ) => old != new || !covers(sent, trust),
            (Some(Sent::Gone(sent)), Sent::Gone(trust)) => !covers(sent, trust),
            _ => true,
        }
    }

    /// Whether the same instances were sent before, with at least as much trust.
    pub(super) fn has_sent(&self, next: Trust) -> bool {
        matches!(self.sent, Some(Sent::Instances { trust, .. }) if covers(trust, next))
    }

    /// Whether the service has left the catalog, that was sent as [`Trust::Steady`], and no
    /// request is in flight.
    fn can_be_forgotten(&self) -> bool {
        let sent = matches!(self.sent, None | Some(Sent::Gone(Trust::Steady)));
        !self.listed && sent && self.query.is_idle()
    }
}

/// Whether what was sent with one trust needs not be sent again with another.
fn covers(sent: Trust, next: Trust) -> bool {
    sent == next || matches!(next, Trust::AdditionsOnly | Trust::Unconfirmed)
}

impl Sent {
    /// These instances.
    pub(super) fn instances(instances: &[ServiceInstance], trust: Trust) -> Self {
        let mut hasher = xxhash_rust::xxh3::Xxh3::new();
        instances.hash(&mut hasher);
        Self::Instances {
            fingerprint: hasher.finish(),
            trust,
        }
    }
}

/// All known services, and the times of their next reads.
#[derive(Default)]
pub(super) struct Services {
    by_name: BTreeMap<ServiceName, Queued>,
    /// The listed services that wait for a read, in the order in which the reads are due.
    reads: BTreeSet<(Timestamp, ServiceName)>,
}

struct Queued {
    service: Service,
    /// The service's place in `reads`.
    due: Option<Timestamp>,
}

impl Services {
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &ServiceName> {
        self.by_name.keys()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&ServiceName, &Service)> {
        self.by_name.iter().map(|(name, queued)| (name, &queued.service))
    }

    pub(super) fn get(&self, name: &ServiceName) -> Option<&Service> {
        self.by_name.get(name).map(|queued| &queued.service)
    }

    /// The service that is read next, and when.
    pub(super) fn next_read(&self) -> Option<(Timestamp, &ServiceName)> {
        self.reads.first().map(|(due, name)| (*due, name))
    }

    pub(super) fn insert(&mut self, name: ServiceName, service: Service) {
        self.remove(&name);
        let queued = Queued { service, due: None };
        self.by_name.insert(name.clone(), queued);
        self.change(&name, |_| ());
    }

    /// Changes a service, if it is known, and keeps the order of reads.
    pub(super) fn change<T>(&mut self, name: &ServiceName, change: impl FnOnce(&mut Service) -> T) -> Option<T> {
        let Queued { service, due } = self.by_name.get_mut(name)?;
        let outcome = change(service);
        let next = service.query.due().filter(|_| service.listed);
        if next != *due {
            if let Some(at) = *due {
                self.reads.remove(&(at, name.clone()));
            }
            if let Some(at) = next {
                self.reads.insert((at, name.clone()));
            }
            *due = next;
        }
        Some(outcome)
    }

    /// Changes every service.
    pub(super) fn change_all(&mut self, mut change: impl FnMut(&mut Service)) {
        let names: Vec<_> = self.names().cloned().collect();
        for name in names {
            self.change(&name, &mut change);
        }
    }

    /// Forgets a service that has left, once nothing is in flight for it and nothing is left to be
    /// sent. Returns whether the service was forgotten.
    pub(super) fn forget(&mut self, name: &ServiceName) -> bool {
        let over = self.get(name).is_some_and(Service::can_be_forgotten);
        if over {
            self.remove(name);
        }
        over
    }

    fn remove(&mut self, name: &ServiceName) {
        if let Some(Queued { due: Some(at), .. }) = self.by_name.remove(name) {
            self.reads.remove(&(at, name.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::default() + Duration::from_secs(seconds)
    }

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    fn services(names: &[&str]) -> Services {
        let mut services = Services::default();
        for text in names {
            services.insert(name(text), Service::new(0, false, at(5)));
        }
        services
    }

    fn next(services: &Services) -> Option<(Timestamp, &str)> {
        services.next_read().map(|(due, name)| (due, name.as_str()))
    }

    #[test]
    fn reads_are_ordered_by_due_time_through_every_change() {
        let mut services = services(&["a", "b", "c"]);
        assert_eq!(next(&services), Some((at(5), "a")));
        services.change(&name("b"), |service| service.query.read_by(at(1)));
        assert_eq!(next(&services), Some((at(1), "b")));
        assert_eq!(
            services.change(&name("b"), |service| service.query.start_read(7, at(1))),
            Some(true)
        );
        assert_eq!(next(&services), Some((at(5), "a")), "b has a read in flight");
        services.change(&name("b"), |service| {
            service.query.completed(7);
            service.query.read_by(at(3));
        });
        assert_eq!(next(&services), Some((at(3), "b")));
        services.change_all(|service| service.query.read_by(at(2)));
        assert_eq!(next(&services), Some((at(2), "a")));
        assert_eq!(services.reads.len(), 3);
        assert_eq!(services.change(&name("unknown"), |_| ()), None);
    }

    #[test]
    fn a_service_that_left_is_not_read_and_forgotten_after_its_last_update() {
        let mut services = services(&["a"]);
        let a = name("a");
        services.change(&a, |service| {
            service.sent = Some(Sent::Gone(Trust::AfterGap));
            service.query.start_read(7, at(5));
        });
        assert!(!services.forget(&a), "listed");
        services.change(&a, |service| service.listed = false);
        assert_eq!(next(&services), None);
        services.change(&a, |service| service.sent = Some(Sent::Gone(Trust::Steady)));
        assert!(!services.forget(&a), "a read is in flight");
        services.change(&a, |service| service.query.completed(7));
        assert!(services.forget(&a) && services.len() == 0);
    }

    #[test]
    fn the_same_instances_are_news_only_with_more_trust() {
        let mut service = Service::new(0, false, at(0));
        let instances = |id: &str| [ServiceInstance::new(id, "10.0.0.1", 80).unwrap()];
        let sent = |id, trust| Sent::instances(&instances(id), trust);
        assert!(service.is_news(sent("a", Trust::AdditionsOnly)) && !service.has_sent(Trust::AdditionsOnly));
        service.sent = Some(sent("a", Trust::AfterGap));
        assert!(!service.is_news(sent("a", Trust::AfterGap)) && !service.is_news(sent("a", Trust::AdditionsOnly)));
        assert!(service.is_news(sent("a", Trust::Steady)) && service.is_news(sent("b", Trust::AdditionsOnly)));
        assert!(service.has_sent(Trust::AfterGap) && service.has_sent(Trust::AdditionsOnly));
        assert!(!service.has_sent(Trust::Steady));
        assert!(service.is_news(Sent::Gone(Trust::Steady)));
    }
}
