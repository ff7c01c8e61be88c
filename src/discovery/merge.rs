//! Joins several registries into one view of each service.
//!
//! ```text
//! etcd  a at 10.0.0.1  passing  ──┐             a at 10.0.0.1       attributes of etcd, all statuses
//! file  x at 10.0.0.1  unknown  ──┼─ desired ─► a~file at 10.0.0.2
//! file  a at 10.0.0.2  unknown  ──┘
//! ```
//!
//! - **An address is one instance**, however often it is listed. The first source by priority that
//!   lists the address gives id, weight, tags and metadata. The instance leaves with the last
//!   listing. (nginx-upsync drops a server when one of its two registrations goes: a mistake to
//!   avoid.)
//! - **An id does not depend on what else is listed.** Ids of Consul end in the node. Of the other
//!   sources, the first by priority keeps its ids, and each id of the others ends in `~<source>`,
//!   whether the first lists the same id or not: otherwise an id would pass to another machine when
//!   that machine is listed. Should an id be in use all the same (a file may list `a@node`, or
//!   `a~file`), the later source by priority gets another one.
//! - **Status**: maintenance in any source wins, because an operator asked for it. `unknown` does
//!   not count. Otherwise the first status by priority counts. The status of a stale source counts
//!   only if no other source has one. Within a source another rule holds, since its registrations
//!   are of equal rank: any usable one counts. See [`registrations`](super::registrations).
//! - **Provenance**: an instance names every registration of its address, first the one that gave
//!   its attributes.
//! - **A stale source keeps its listings**: what it listed last stays listed until its next
//!   answer.
//! - **An absent instance**, which the guard of a source holds, counts only where no source lists
//!   its address.
//!
//! Pure, and a function of what is listed now: the order of the updates has no effect. Instances
//! are shared with the [`guard`](super::guard), and copied only if an id, a status or the list of
//! sources changes. Does not know what changed (the core's `diff` finds that), nor why a source is
//! stale.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::balancer::{Address, InstanceId, RegistryEntry, RegistryStatus, ServiceInstance, ServiceName, Source};

/// Whether the ids of a source end in the node (`consul`), or in node and datacenter
/// (`consul-dc1`), so that no other source has the same ids.
fn has_nodes_in_ids(source: Source) -> bool {
    let rest = source.as_str().strip_prefix("consul");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// The instances of one service as one source lists them, shared between their readers.
pub type Instances = Arc<[Arc<ServiceInstance>]>;

/// What every source lists.
#[derive(Debug)]
pub struct Merge {
    priority: Vec<Source>,
    stale: Vec<Source>,
    services: HashMap<ServiceName, Vec<Listing>>,
}

/// One source's listing of one service.
#[derive(Debug)]
struct Listing {
    source: Source,
    instances: Instances,
}

/// All listings of one address.
struct Entry<'a> {
    registration: &'a Arc<ServiceInstance>,
    registered_by: Source,
    /// The other sources that list the address.
    others: Vec<&'a Arc<ServiceInstance>>,
    status: StatusVote,
}

impl Merge {
    /// Knows no service yet. A source that is not in `priority` comes after the sources that are.
    #[must_use]
    pub fn new(priority: Vec<Source>) -> Self {
        Self {
            priority,
            stale: Vec::new(),
            services: HashMap::new(),
        }
    }

    /// Takes the instances of a service that this source lists, in place of those it listed
    /// before. An empty listing counts: the service is known.
    pub fn set(&mut self, source: Source, service: &ServiceName, instances: impl Into<Instances>) {
        let instances = instances.into();
        let rank = rank(&self.priority, source);
        match self.services.get_mut(service) {
            None => {
                self.services
                    .insert(service.clone(), vec![Listing { source, instances }]);
            }
            Some(listings) => {
                match listings.binary_search_by_key(&rank, |listing| self::rank(&self.priority, listing.source)) {
                    Ok(found) => listings[found].instances = instances,
                    Err(place) => listings.insert(place, Listing { source, instances }),
                }
            }
        }
    }

    /// This source no longer lists the service.
    pub fn remove(&mut self, source: Source, service: &ServiceName) {
        if let Some(listings) = self.services.get_mut(service) {
            listings.retain(|listing| listing.source != source);
            if listings.is_empty() {
                self.services.remove(service);
            }
        }
    }

    /// Forgets a source that is no longer configured. Returns the services that it listed.
    pub fn remove_source(&mut self, source: Source) -> Vec<ServiceName> {
        self.stale.retain(|stale| *stale != source);
        let listed = self.listed_by(source, |_| true);
        for service in &listed {
            self.remove(source, service);
        }
        listed
    }

    /// Sets whether a source is away at present. Returns the services whose view may have changed.
    pub fn set_stale(&mut self, source: Source, stale: bool) -> Vec<ServiceName> {
        if self.stale.contains(&source) == stale {
            return Vec::new();
        }
        if stale {
            self.stale.push(source);
        } else {
            self.stale.retain(|other| *other != source);
        }
        // Where only one source lists a service, that source counts, stale or not.
        self.listed_by(source, |listings| listings.len() > 1)
    }

    /// Sets another order of priority. Returns the services whose view may have changed.
    pub fn set_priority(&mut self, priority: Vec<Source>) -> Vec<ServiceName> {
        if self.priority == priority {
            return Vec::new();
        }
        self.priority = priority;
        let mut reordered = Vec::new();
        for (service, listings) in &mut self.services {
            if listings.len() > 1 {
                listings.sort_by_key(|listing| rank(&self.priority, listing.source));
                reordered.push(service.clone());
            }
        }
        reordered
    }

    /// The services that this source lists.
    #[must_use]
    pub fn services_of(&self, source: Source) -> Vec<ServiceName> {
        self.listed_by(source, |_| true)
    }

    /// Every service that a source lists, in no order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// Whether a source lists the service, with or without instances.
    #[must_use]
    pub fn is_listed(&self, service: &ServiceName) -> bool {
        self.services.contains_key(service)
    }

    /// The instances of a service in all sources together, by id: each address once, each id once.
    #[must_use]
    pub fn desired(&self, service: &ServiceName) -> Vec<Arc<ServiceInstance>> {
        let entries = self.entries(service);
        let mut taken: HashSet<InstanceId> = HashSet::with_capacity(entries.len());
        let mut desired: Vec<_> = entries
            .into_iter()
            .map(|entry| {
                let registered = entry.registration;
                let id = self.free_id(registered, entry.registered_by, &taken);
                taken.insert(id.clone());
                let status = entry.status.verdict();
                if id == *registered.id() && status == registered.registry_status() && entry.others.is_empty() {
                    return Arc::clone(registered);
                }
                let mut merged = ServiceInstance::clone(registered);
                if !entry.others.is_empty() {
                    let all = std::iter::once(registered).chain(entry.others);
                    let registrations: Vec<RegistryEntry> =
                        all.flat_map(|one| one.registrations().into_owned()).collect();
                    merged = merged.with_registrations(registrations);
                }
                if id != *registered.id() {
                    merged = merged.renamed(id);
                }
                Arc::new(merged.with_status(status))
            })
            .collect();
        desired.sort_unstable_by(|a, b| a.id().cmp(b.id()));
        desired
    }

    fn listed_by(&self, source: Source, also: impl Fn(&[Listing]) -> bool) -> Vec<ServiceName> {
        self.services
            .iter()
            .filter(|(_, listings)| listings.iter().any(|listing| listing.source == source) && also(listings))
            .map(|(service, _)| service.clone())
            .collect()
    }

    /// One entry per address, in the order in which the instances choose their ids: by priority,
    /// then id, then address.
    fn entries(&self, service: &ServiceName) -> Vec<Entry<'_>> {
        let mut entries: Vec<Entry<'_>> = Vec::new();
        let mut by_address: HashMap<&Address, usize> = HashMap::new();
        let all = || self.services.get(service).into_iter().flatten();
        let of_all = || all().flat_map(|listing| listing.instances.iter());
        // Mostly, no instance is absent.
        let listed: HashSet<&Address> = match of_all().any(|instance| instance.absent_since().is_some()) {
            true => of_all()
                .filter(|instance| instance.absent_since().is_none())
                .map(|instance| instance.address())
                .collect(),
            false => HashSet::new(),
        };
        let counts =
            |instance: &ServiceInstance| instance.absent_since().is_none() || !listed.contains(instance.address());
        for listing in all() {
            let is_stale = self.stale.contains(&listing.source);
            let mut instances: Vec<_> = listing.instances.iter().filter(|it| counts(it)).collect();
            instances.sort_by(|a, b| (a.id(), a.address()).cmp(&(b.id(), b.address())));
            for instance in instances {
                let place = *by_address.entry(instance.address()).or_insert(entries.len());
                if place == entries.len() {
                    entries.push(Entry {
                        registration: instance,
                        registered_by: listing.source,
                        others: Vec::new(),
                        status: StatusVote::default(),
                    });
                } else if let Some(entry) = entries.get_mut(place) {
                    entry.others.push(instance);
                }
                if let Some(entry) = entries.get_mut(place) {
                    entry.status.add(instance.registry_status(), is_stale);
                }
            }
        }
        entries
    }

    /// The instance's own id, or `<id>~<source>` if another source may have the same ids. If that
    /// id is taken or too long, the id is made of the address, which no other instance of the view
    /// has, and a number if need be.
    fn free_id(&self, instance: &ServiceInstance, source: Source, taken: &HashSet<InstanceId>) -> InstanceId {
        let own = instance.id();
        let may_be_shared = self.may_share_ids(source);
        if !may_be_shared && !taken.contains(own) {
            return own.clone();
        }
        let numbered = (2u64..).map(|number| format!("{}~{source}~{number}", instance.address()));
        [format!("{own}~{source}"), format!("{}~{source}", instance.address())]
            .into_iter()
            .chain(numbered)
            .filter_map(|text| text.parse::<InstanceId>().ok())
            .find(|id| !taken.contains(id))
            .unwrap_or_else(|| own.clone())
    }

    /// Whether a source before this one may have the same ids.
    fn may_share_ids(&self, source: Source) -> bool {
        let mut before = self.priority.iter().take_while(|other| **other != source);
        !has_nodes_in_ids(source) && before.any(|other| !has_nodes_in_ids(*other))
    }
}

/// Sources in order of priority; the others after them by name.
fn rank(priority: &[Source], source: Source) -> (usize, Source) {
    let place = priority.iter().position(|other| *other == source);
    (place.unwrap_or(priority.len()), source)
}

/// The statuses that sources give for one address, in order of priority.
#[derive(Default)]
struct StatusVote {
    maintenance: bool,
    fresh: Option<RegistryStatus>,
    stale: Option<RegistryStatus>,
}

impl StatusVote {
    fn add(&mut self, status: RegistryStatus, is_stale: bool) {
        match status {
            RegistryStatus::Unknown => {}
            RegistryStatus::Maintenance => self.maintenance = true,
            status if is_stale => self.stale = self.stale.or(Some(status)),
            status => self.fresh = self.fresh.or(Some(status)),
        }
    }

    fn verdict(&self) -> RegistryStatus {
        match self {
            Self { maintenance: true, .. } => RegistryStatus::Maintenance,
            Self { fresh, stale, .. } => fresh.or(*stale).unwrap_or_default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balancer::{Timestamp, Weight};

    const CONSUL: Source = Source::new("consul");
    const ETCD: Source = Source::new("etcd");
    const FILE: Source = Source::new("file");
    const ALL: [Source; 3] = [CONSUL, ETCD, FILE];

    fn web() -> ServiceName {
        "web".parse().unwrap()
    }

    /// Takes `id@host status`; the status may be left out.
    fn instances(list: &[&str]) -> Vec<Arc<ServiceInstance>> {
        list.iter()
            .map(|text| {
                let (name, status) = text.split_once(' ').unwrap_or((text, "unknown"));
                let (id, host) = name.rsplit_once('@').unwrap();
                let status = [
                    RegistryStatus::Unknown,
                    RegistryStatus::Passing,
                    RegistryStatus::Warning,
                    RegistryStatus::Critical,
                    RegistryStatus::Maintenance,
                ]
                .into_iter()
                .find(|candidate| candidate.as_str() == status)
                .unwrap();
                Arc::new(ServiceInstance::new(id, host, 80).unwrap().with_status(status))
            })
            .collect()
    }

    fn of_source(source: Source, list: &[&str]) -> Vec<Arc<ServiceInstance>> {
        let owned = |it: Arc<ServiceInstance>| Arc::new(Arc::unwrap_or_clone(it).with_source(source));
        instances(list).into_iter().map(owned).collect()
    }

    fn shown(merge: &Merge) -> Vec<String> {
        let show = |instance: Arc<ServiceInstance>| match instance.registry_status() {
            RegistryStatus::Unknown => format!("{}@{}", instance.id(), instance.host()),
            status => format!("{}@{} {status}", instance.id(), instance.host()),
        };
        merge.desired(&web()).into_iter().map(show).collect()
    }

    fn merged(listings: &[(Source, &[&str])]) -> Merge {
        let mut merge = Merge::new(ALL.to_vec());
        for (source, list) in listings {
            merge.set(*source, &web(), of_source(*source, list));
        }
        merge
    }

    #[test]
    fn an_address_in_two_registries_leaves_with_its_last_listing() {
        let mut merge = merged(&[(ETCD, &["x@h1"]), (CONSUL, &["a@h1", "b@h2"])]);
        assert_eq!(shown(&merge), ["a@h1", "b@h2"]);
        merge.set(CONSUL, &web(), instances(&["b@h2"]));
        assert_eq!(shown(&merge), ["b@h2", "x@h1"]);
        merge.remove(ETCD, &web());
        assert_eq!(shown(&merge), ["b@h2"]);
        merge.remove(CONSUL, &web());
        assert!(!merge.is_listed(&web()) && merge.services().next().is_none());
        assert!(shown(&merge).is_empty());
    }

    #[test]
    fn the_first_source_in_priority_gives_the_attributes() {
        let weighted = |id: &str, weight: i64| {
            Arc::new(
                ServiceInstance::new(id, "h", 1)
                    .unwrap()
                    .with_weight(Weight::new(weight).unwrap()),
            )
        };
        let mut merge = Merge::new(vec![FILE, CONSUL]);
        merge.set(ETCD, &web(), vec![weighted("etcd", 3)]);
        assert_eq!(merge.desired(&web())[0].weight().get(), 3);
        merge.set(CONSUL, &web(), vec![weighted("consul", 5)]);
        assert_eq!(
            merge.desired(&web())[0].weight().get(),
            5,
            "a source without a place comes last"
        );
        merge.set(FILE, &web(), vec![weighted("file", 7)]);
        assert_eq!(merge.desired(&web())[0].weight().get(), 7);
    }

    #[test]
    fn an_address_listed_twice_by_a_registry_leaves_with_its_last_listing() {
        let mut merge = merged(&[(CONSUL, &["b@h1", "a@h1"])]);
        assert_eq!(shown(&merge), ["a@h1"]);
        merge.set(CONSUL, &web(), instances(&["b@h1"]));
        assert_eq!(shown(&merge), ["b@h1"]);
    }

    #[test]
    fn an_id_that_is_taken_gets_the_source_as_suffix() {
        let merge = merged(&[(CONSUL, &["a@h1"]), (ETCD, &["a@h2"]), (FILE, &["a@h3", "a@h1"])]);
        assert_eq!(shown(&merge), ["a@h1", "a~etcd@h2", "a~file@h3"]);
    }

    #[test]
    fn a_later_source_has_its_suffix_whether_its_id_is_taken_or_not() {
        let mut merge = merged(&[(FILE, &["web-0@h2"])]);
        assert_eq!(shown(&merge), ["web-0~file@h2"]);
        merge.set(ETCD, &web(), instances(&["web-0@h1"]));
        merge.set(CONSUL, &web(), instances(&["web-0@n1@h3"]));
        assert_eq!(shown(&merge), ["web-0@h1", "web-0@n1@h3", "web-0~file@h2"]);
        merge.remove(ETCD, &web());
        assert_eq!(shown(&merge), ["web-0@n1@h3", "web-0~file@h2"]);
    }

    #[test]
    fn ids_of_consul_and_of_a_source_beside_it_stay_as_registered() {
        assert!(has_nodes_in_ids(crate::discovery::consul::SOURCE));
        assert!(has_nodes_in_ids(Source::new("consul-dc1")) && !has_nodes_in_ids(ETCD) && !has_nodes_in_ids(FILE));
        for (priority, other) in [([CONSUL, FILE], FILE), ([FILE, CONSUL], FILE), ([ETCD, CONSUL], ETCD)] {
            let mut merge = Merge::new(priority.to_vec());
            merge.set(CONSUL, &web(), instances(&["web-0@n1@h1"]));
            merge.set(other, &web(), instances(&["web-0@h2"]));
            assert_eq!(shown(&merge), ["web-0@h2", "web-0@n1@h1"], "{priority:?}");
        }
    }

    #[test]
    fn every_registration_of_an_address_is_named() {
        let joined = crate::discovery::registrations::joined(
            instances(&["a@n1@h critical", "b@n1@h passing"])
                .iter()
                .map(|it| ServiceInstance::clone(it))
                .collect(),
        );
        let mut merge = merged(&[(FILE, &["f@h maintenance", "g@i"])]);
        merge.set(CONSUL, &web(), joined.into_iter().map(Arc::new).collect::<Vec<_>>());
        let desired = merge.desired(&web());
        let ids = |it: &ServiceInstance| {
            let one = |it: &RegistryEntry| format!("{} {}", it.id, it.status);
            it.registrations().iter().map(one).collect::<Vec<_>>().join(", ")
        };
        let shared = "b@n1 passing, a@n1 critical, f maintenance";
        assert_eq!(
            (shown(&merge)[0].as_str(), &*ids(&desired[0])),
            ("b@n1@h maintenance", shared)
        );
        assert_eq!((desired[1].id().as_str(), &*ids(&desired[1])), ("g~file", "g unknown"));
    }

    #[test]
    fn contrived_ids_stay_distinct() {
        let long = "i".repeat(512);
        let merge = merged(&[
            (CONSUL, &["a@h1", "a~etcd@h2", "h9:80~etcd@h4"]),
            (ETCD, &["a@h9"]),
            (FILE, &[&format!("{long}@h6"), &format!("{long}@h7")]),
        ]);
        let shown = shown(&merge);
        assert!(shown.contains(&"h9:80~etcd~2@h9".to_owned()), "{shown:?}");
        assert!(shown.contains(&"h7:80~file@h7".to_owned()), "{shown:?}");
    }

    #[test]
    fn maintenance_anywhere_wins() {
        let mut merge = merged(&[(CONSUL, &["a@h passing"]), (FILE, &["a@h maintenance"])]);
        assert_eq!(shown(&merge), ["a@h maintenance"]);
        merge.set_stale(FILE, true);
        assert_eq!(shown(&merge), ["a@h maintenance"]);
    }

    #[test]
    fn an_unknown_status_does_not_count() {
        let merge = merged(&[(CONSUL, &["a@h"]), (ETCD, &["a@h"]), (FILE, &["a@h critical"])]);
        assert_eq!(shown(&merge), ["a@h critical"]);
    }

    #[test]
    fn an_instance_is_absent_only_if_no_source_lists_it() {
        let since = Some(Timestamp::default());
        let held = instances(&["a@h1"]).remove(0);
        let held = Arc::new(ServiceInstance::clone(&held).with_absent_since(since));
        let mut merge = merged(&[(FILE, &[])]);
        merge.set(CONSUL, &web(), vec![held]);
        let absent = |merge: &Merge| merge.desired(&web())[0].absent_since();
        assert_eq!(absent(&merge), since);
        merge.set(ETCD, &web(), instances(&["x@h1"]));
        assert_eq!((shown(&merge), absent(&merge)), (vec!["x@h1".to_owned()], None));
        merge.set(ETCD, &web(), instances(&[]));
        assert_eq!(absent(&merge), since);
    }

    #[test]
    fn a_stale_status_counts_only_if_there_is_no_other() {
        let mut merge = merged(&[
            (CONSUL, &["a@h critical", "b@i critical"]),
            (FILE, &["a@h passing", "b@i"]),
        ]);
        assert_eq!(shown(&merge), ["a@h critical", "b@i critical"]);
        assert_eq!(merge.set_stale(CONSUL, true), [web()]);
        assert_eq!(shown(&merge), ["a@h passing", "b@i critical"]);
        assert_eq!(merge.set_stale(CONSUL, true), [], "nothing new");
        assert_eq!(merge.set_stale(CONSUL, false), [web()]);
        assert_eq!(shown(&merge), ["a@h critical", "b@i critical"]);
    }

    #[test]
    fn a_stale_source_keeps_its_instances_and_alone_its_status() {
        let mut merge = merged(&[(CONSUL, &["a@h warning"])]);
        assert_eq!(merge.set_stale(CONSUL, true), []);
        assert_eq!(shown(&merge), ["a@h warning"]);
    }

    #[test]
    fn a_source_removed_from_the_configuration_loses_its_listings() {
        let mut merge = merged(&[(CONSUL, &["a@h"]), (FILE, &["b@i"])]);
        merge.set(CONSUL, &"db".parse().unwrap(), instances(&["a@h"]));
        let mut touched = merge.remove_source(CONSUL);
        touched.sort();
        assert_eq!(touched, ["db".parse().unwrap(), web()]);
        assert_eq!(shown(&merge), ["b~file@i"]);
        assert_eq!(merge.services().collect::<Vec<_>>(), [&web()]);
    }

    fn provenance(merge: &Merge) -> Vec<String> {
        let sources = |instance: Arc<ServiceInstance>| {
            let also: Vec<_> = instance.sources().skip(1).map(Source::as_str).collect();
            format!("{} {}", instance.host(), also.join(","))
        };
        merge.desired(&web()).into_iter().map(sources).collect()
    }

    #[test]
    fn provenance_names_each_source_once_by_priority() {
        let mut merge = merged(&[
            (FILE, &["f@h1"]),
            (CONSUL, &["a@h1", "b@h1", "c@h2"]),
            (ETCD, &["e@h1", "g@h1"]),
        ]);
        assert_eq!(provenance(&merge), ["h1 etcd,file", "h2 "]);
        merge.set_stale(ETCD, true);
        assert_eq!(
            provenance(&merge),
            ["h1 etcd,file", "h2 "],
            "a stale source still counts"
        );
        merge.remove(CONSUL, &web());
        assert_eq!(provenance(&merge), ["h1 file"], "etcd itself is first now");
        merge.remove(ETCD, &web());
        assert_eq!(provenance(&merge), ["h1 "]);
    }

    #[test]
    fn an_unchanged_instance_is_shared() {
        let list = instances(&["a@h passing"]);
        let mut merge = merged(&[(FILE, &["z@i"])]);
        merge.set(CONSUL, &web(), vec![Arc::clone(&list[0])]);
        assert!(Arc::ptr_eq(&merge.desired(&web())[0], &list[0]));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(usize, Vec<String>),
        Remove(usize),
        Stale(usize, bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        // Few ids and hosts, so that they collide; some ids look like renamed ids.
        let id = prop::sample::select(vec!["a", "b", "c", "a~etcd", "a~file", "h1:80~file"]);
        let status = prop::sample::select(vec!["unknown", "passing", "warning", "critical", "maintenance"]);
        let entry = |((id, host), status)| format!("{id}@h{host} {status}");
        let list = prop::collection::btree_map((id, 0..4), status, 0..6)
            .prop_map(move |map| map.into_iter().map(entry).collect());
        prop_oneof![
            6 => (0..3usize, list).prop_map(|(source, list)| Step::Set(source, list)),
            1 => (0..3usize).prop_map(Step::Remove),
            2 => (0..3usize, any::<bool>()).prop_map(|(source, stale)| Step::Stale(source, stale)),
        ]
    }

    fn take(merge: &mut Merge, step: &Step) {
        match step {
            Step::Set(source, list) => {
                let list: Vec<_> = list.iter().map(String::as_str).collect();
                merge.set(ALL[*source], &web(), of_source(ALL[*source], &list));
            }
            Step::Remove(source) => merge.remove(ALL[*source], &web()),
            Step::Stale(source, stale) => {
                let before = merge.desired(&web());
                let touched = merge.set_stale(ALL[*source], *stale);
                assert!(before == merge.desired(&web()) || touched == [web()]);
            }
        }
    }

    proptest! {
        #[test]
        fn a_view_has_each_address_once_and_each_id_once_and_loses_nothing(steps in prop::collection::vec(step(), 1..20)) {
            let mut merge = Merge::new(ALL.to_vec());
            let mut listed: [Vec<String>; 3] = Default::default();
            for step in &steps {
                take(&mut merge, step);
                match step {
                    Step::Set(source, list) => listed[*source].clone_from(list),
                    Step::Remove(source) => listed[*source].clear(),
                    Step::Stale(..) => {}
                }
                let desired = merge.desired(&web());
                let ids: HashSet<_> = desired.iter().map(|instance| instance.id().clone()).collect();
                prop_assert_eq!(ids.len(), desired.len());
                prop_assert!(desired.is_sorted_by_key(|instance| instance.id().clone()));
                let mut hosts: Vec<_> = desired.iter().map(|instance| instance.host().to_owned()).collect();
                hosts.sort();
                let of = |text: &String| text.split(['@', ' ']).nth(1).unwrap().to_owned();
                let expected: std::collections::BTreeSet<_> = listed.iter().flatten().map(of).collect();
                prop_assert_eq!(&hosts, &expected.into_iter().collect::<Vec<_>>());
                for instance in &desired {
                    let listing = listed.iter().filter(|list| list.iter().any(|text| of(text) == instance.host())).count();
                    prop_assert_eq!(instance.sources().count(), listing);
                }
            }
        }

        #[test]
        fn an_id_does_not_depend_on_other_addresses(
            // By source and host: the id.
            listed in prop::collection::btree_map((0..3usize, 0..4usize), 0..3usize, 0..10),
            priority in Just(ALL.to_vec()).prop_shuffle(),
        ) {
            let mut taken = HashSet::new();
            let mut of_hosts = |hosts: std::ops::Range<usize>| {
                let mut merge = Merge::new(priority.clone());
                for (number, source) in ALL.into_iter().enumerate() {
                    taken.clear();
                    let id = |id: &usize| if source == CONSUL { format!("i{id}@n") } else { format!("i{id}") };
                    let list: Vec<_> = (0..4)
                        .filter_map(|host| Some((host, id(listed.get(&(number, host))?))))
                        .filter(|(host, id)| taken.insert(id.clone()) && hosts.contains(host))
                        .map(|(host, id)| format!("{id}@h{host}"))
                        .collect();
                    merge.set(source, &web(), instances(&list.iter().map(String::as_str).collect::<Vec<_>>()));
                }
                shown(&merge)
            };
            let mut alone: Vec<_> = (0..4).flat_map(|host| of_hosts(host..host + 1)).collect();
            alone.sort();
            let mut together = of_hosts(0..4);
            together.sort();
            prop_assert_eq!(alone, together);
        }

        #[test]
        fn the_order_of_updates_has_no_effect(
            steps in prop::collection::vec(step(), 1..20),
            order in Just([0usize, 1, 2]).prop_shuffle(),
            reversed in any::<bool>(),
        ) {
            let mut merge = Merge::new(ALL.to_vec());
            let (mut last_set, mut last_stale): ([Option<Step>; 3], [Option<Step>; 3]) = Default::default();
            for step in &steps {
                take(&mut merge, step);
                match step {
                    Step::Set(source, _) | Step::Remove(source) => last_set[*source] = Some(step.clone()),
                    Step::Stale(source, _) => last_stale[*source] = Some(step.clone()),
                }
            }
            // Only the last update of each source, in another order, and each list reversed.
            let mut again = Merge::new(ALL.to_vec());
            for source in order {
                for step in [&last_stale[source], &last_set[source]].into_iter().flatten() {
                    let step = match step {
                        Step::Set(source, list) if reversed => Step::Set(*source, list.iter().rev().cloned().collect()),
                        step => step.clone(),
                    };
                    take(&mut again, &step);
                }
            }
            prop_assert_eq!(merge.is_listed(&web()), again.is_listed(&web()));
            prop_assert_eq!(merge.desired(&web()), again.desired(&web()));
        }
    }
}
