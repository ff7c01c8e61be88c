//! One of several datacenters: a source of its own, whose instances come after those of the
//! datacenters before it.
//!
//! Each datacenter has a watcher of its own, so that one datacenter that cannot be reached changes
//! nothing about the others. What differs from a single Consul is here:
//!
//! | | a single datacenter | one of several, `dc2` |
//! |---|---|---|
//! | source | `consul` | `consul-dc2` |
//! | id | `<ServiceID>@<Node>` | `<ServiceID>@<Node>.dc2`, since node names may repeat |
//! | rank of the tier | 0 | the place in the list |

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::settings::ConsulSettings;
use super::wire::SOURCE;
use crate::balancer::{InstanceId, ServiceInstance, Source};
use crate::discovery::watcher::Update;

/// One of several datacenters, in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datacenter {
    name: String,
    source: Source,
    rank: u16,
}

impl Datacenter {
    /// The datacenter `name`, at this place of the list; 0 is the first.
    #[must_use]
    pub fn new(name: &str, rank: u16) -> Self {
        Self {
            name: name.to_owned(),
            source: Source::new(interned(format!("{SOURCE}-{name}"))),
            rank,
        }
    }

    /// The source of instances in this datacenter: `consul-<name>`.
    #[must_use]
    pub fn source(&self) -> Source {
        self.source
    }

    /// Marks the instances of an update as instances of this datacenter.
    pub(super) fn label(&self, update: Update) -> Update {
        match update {
            Update::Service(mut reading) => {
                reading.instances = reading.instances.into_iter().map(|it| self.labelled(it)).collect();
                Update::Service(reading)
            }
            other => other,
        }
    }

    fn labelled(&self, instance: ServiceInstance) -> ServiceInstance {
        // An id of the full length has no room for the name. Then it stays, and a neighbour with
        // this id in another datacenter gets the suffix of its source.
        let id = format!("{}.{}", instance.id(), self.name).parse::<InstanceId>();
        let instance = match id {
            Ok(id) => instance.with_id(id),
            Err(_) => instance,
        };
        instance.with_source(self.source).with_rank(self.rank)
    }
}

/// The settings of each datacenter of a list, in its order. Only the first is waited for: an agent
/// is ready although a reserve cannot be reached. The long polls are divided.
#[must_use]
pub fn of_several(settings: &ConsulSettings, names: &[String]) -> Vec<ConsulSettings> {
    let count = names.len().max(1);
    let of = |(index, name): (usize, &String)| {
        let mut own = settings.clone();
        own.datacenter = Some(name.clone());
        own.place = Some(Datacenter::new(name, u16::try_from(index).unwrap_or(u16::MAX)));
        own.max_watches = (settings.max_watches / count).max(1);
        own.required = settings.required && index == 0;
        own
    };
    names.iter().enumerate().map(of).collect()
}

/// The same text for ever. Names come from configurations, so that there are few.
fn interned(text: String) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(text.as_str()) {
        return known;
    }
    let leaked: &'static str = Box::leak(text.into_boxed_str());
    names.insert(leaked);
    leaked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_datacenter_is_a_source_and_only_the_first_is_waited_for() {
        let mut settings = ConsulSettings::new("127.0.0.1:8500");
        settings.max_watches = 7;
        let names = ["dc1", "dc2"].map(str::to_owned);
        let all = of_several(&settings, &names);
        let told = all.iter().map(|own| {
            let rank = own.place.as_ref().map(|place| place.rank);
            (
                own.source().as_str(),
                own.datacenter.as_deref(),
                rank,
                own.max_watches,
                own.required,
            )
        });
        assert_eq!(
            told.collect::<Vec<_>>(),
            [
                ("consul-dc1", Some("dc1"), Some(0), 3, true),
                ("consul-dc2", Some("dc2"), Some(1), 3, false),
            ]
        );
        assert_eq!(settings.source(), SOURCE);
        settings.max_watches = 1;
        assert!(of_several(&settings, &names).iter().all(|own| own.max_watches == 1));
        // The name of a source is the same text each time, so that a reload finds its source again.
        let again = Datacenter::new("dc2", 1);
        assert!(std::ptr::eq(again.source().as_str(), all[1].source().as_str()));
    }

    #[test]
    fn equal_ids_of_two_datacenters_differ_whatever_their_nodes_are_called() {
        let labelled = |name: &str, id: &str| {
            let instance = ServiceInstance::new(id, "10.0.0.1", 80).unwrap();
            Datacenter::new(name, 1).labelled(instance)
        };
        assert_eq!(labelled("dc2", "web@n1").id().as_str(), "web@n1.dc2");
        assert_ne!(labelled("dc2", "web@n1.dc1").id(), labelled("dc1", "web@n1").id());
        assert_eq!(labelled("dc2", "web@n1").tier().rank(), 1);
        let long = "x".repeat(510);
        assert_eq!(labelled("dc2", &long).id().as_str(), long);
    }
}
