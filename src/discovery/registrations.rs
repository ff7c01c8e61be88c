//! Joins the registrations that one source has for one address.
//!
//! ```text
//! api@host-a  10.0.0.9:9000  critical  v1 ──┐
//! api@host-b  10.0.0.9:9000  passing   v1 ──┼─ joined ─► api@host-b  passing  v1, v2
//! api-2@host-b 10.0.0.9:9000 passing   v2 ──┘            (all three stay listed)
//! ```
//!
//! Registrars leave such duplicates behind: an agent that restarts under a new node name, a
//! container that is registered again under a new id before the old key expires, a service that is
//! registered once for each of its tags.
//!
//! - **Any usable registration makes the address usable**: passing, warning, or without a status.
//!   A registration that is left behind turns critical sooner or later, and says nothing about the
//!   machine.
//! - **Id, weight, metadata and status** come from the registration that was written last among the
//!   usable ones. If none is usable, maintenance goes before critical, since an operator asked for
//!   it.
//! - **Tags** are those of all usable registrations together; if none is usable, of all.
//! - **An id means one address.** If a source lists an id at several addresses, each of them gets
//!   `<id>~<address>`: none keeps the id, so that the id never passes from one machine to another.
//!
//! Pure. Watchers give the registrations in the order in which they were written, because each
//! registry counts its writes in another way. How several sources are joined is up to
//! [`merge`](super::merge).

use std::collections::HashSet;

use crate::balancer::{Address, InstanceId, RegistryEntry, RegistryStatus, ServiceInstance};

/// The instances of one service in one source: each address once, each id once, in no order. The
/// registrations are in the order of their writes, the last write last.
#[must_use]
pub fn joined(registrations: Vec<ServiceInstance>) -> Vec<ServiceInstance> {
    let ids: HashSet<_> = registrations.iter().map(ServiceInstance::id).collect();
    if ids.len() == registrations.len() && !share_addresses(&registrations) {
        return registrations;
    }
    let mut sorted: Vec<_> = registrations.into_iter().enumerate().collect();
    sorted.sort_unstable_by(|(written, one), (written_other, other)| {
        let by_address = one.address().cmp(other.address());
        let by_rank = || rank(one.registry_status()).cmp(&rank(other.registry_status()));
        by_address.then_with(by_rank).then(written_other.cmp(written))
    });
    let mut instances: Vec<ServiceInstance> = sorted
        .chunk_by(|(_, one), (_, other)| one.address() == other.address())
        .filter_map(of_one_address)
        .collect();
    instances.sort_unstable_by(|one, other| (one.id(), one.address()).cmp(&(other.id(), other.address())));
    tell_apart(&mut instances);
    instances
}

/// Whether several registrations have one address.
#[must_use]
pub fn share_addresses(registrations: &[ServiceInstance]) -> bool {
    let addresses: HashSet<_> = registrations.iter().map(ServiceInstance::address).collect();
    addresses.len() < registrations.len()
}

/// The registrations of one address as one instance, from the first of them on.
fn of_one_address(registrations: &[(usize, ServiceInstance)]) -> Option<ServiceInstance> {
    let (_, first) = registrations.first()?;
    if registrations.len() == 1 {
        return Some(first.clone());
    }
    let all = || registrations.iter().map(|(_, registration)| registration);
    let best = rank(first.registry_status());
    let counting = all().filter(|registration| best > 0 || rank(registration.registry_status()) == best);
    let tags = counting.flat_map(ServiceInstance::tags);
    let listed: Vec<RegistryEntry> = all().flat_map(|one| one.registrations().into_owned()).collect();
    // Tags of instances are valid.
    let instance = first.clone().with_tags(tags).unwrap_or_else(|_| first.clone());
    Some(instance.with_registrations(listed))
}

/// The order in which registrations of one address give their attributes: usable ones first.
fn rank(status: RegistryStatus) -> u8 {
    match status {
        RegistryStatus::Unknown | RegistryStatus::Passing | RegistryStatus::Warning => 0,
        RegistryStatus::Maintenance => 1,
        RegistryStatus::Critical => 2,
    }
}

/// Gives instances that have the same id ids of their own. `instances` are sorted by id.
fn tell_apart(instances: &mut [ServiceInstance]) {
    for namesakes in instances.chunk_by_mut(|one, other| one.id() == other.id()) {
        if namesakes.len() > 1 {
            for instance in namesakes {
                let id = with_address(instance.id(), instance.address());
                *instance = instance.clone().renamed(id.unwrap_or_else(|| instance.id().clone()));
            }
        }
    }
}

/// `<id>~<address>`, or the address alone if that is too long.
fn with_address(id: &InstanceId, address: &Address) -> Option<InstanceId> {
    [format!("{id}~{address}"), address.to_string()]
        .into_iter()
        .find_map(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balancer::Weight;

    const STATUSES: [RegistryStatus; 5] = [
        RegistryStatus::Unknown,
        RegistryStatus::Passing,
        RegistryStatus::Warning,
        RegistryStatus::Critical,
        RegistryStatus::Maintenance,
    ];

    /// Takes `id@host status tag,tag *weight`, of which everything after the host may be left out.
    fn registration(text: &str) -> ServiceInstance {
        let mut words = text.split(' ');
        let (id, host) = words.next().unwrap().rsplit_once('@').unwrap();
        let mut instance = ServiceInstance::new(id, host, 80).unwrap();
        for word in words {
            let status = STATUSES.into_iter().find(|status| status.as_str() == word);
            instance = match (status, word.strip_prefix('*')) {
                (Some(status), _) => instance.with_status(status),
                (None, Some(weight)) => instance.with_weight(Weight::new(weight.parse::<i64>().unwrap()).unwrap()),
                (None, None) => instance.with_tags(word.split(',')).unwrap(),
            };
        }
        instance
    }

    fn of(list: &[&str]) -> Vec<ServiceInstance> {
        joined(list.iter().map(|text| registration(text)).collect())
    }

    /// `id@host status tags *weight`.
    fn shown(list: &[&str]) -> Vec<String> {
        let show = |it: &ServiceInstance| {
            let tags = it.tags().join(",");
            let (status, weight) = (it.registry_status(), it.weight().get());
            format!("{}@{} {status} {tags} *{weight}", it.id(), it.host())
        };
        of(list).iter().map(show).collect()
    }

    #[test]
    fn any_usable_registration_makes_the_address_usable() {
        for usable in ["passing", "warning", "unknown"] {
            for unusable in ["critical", "maintenance"] {
                let (left_behind, live) = (format!("a@h {unusable} *7"), format!("b@h {usable} *5"));
                let expected = [format!("b@h {usable}  *5")];
                assert_eq!(shown(&[&left_behind, &live]), expected);
                assert_eq!(shown(&[&live, &left_behind]), expected);
            }
        }
    }

    #[test]
    fn of_usable_registrations_the_last_written_gives_the_attributes() {
        assert_eq!(shown(&["a@h passing *5", "b@h warning *2"]), ["b@h warning  *2"]);
        assert_eq!(shown(&["b@h warning *2", "a@h passing *5"]), ["a@h passing  *5"]);
        assert_eq!(
            shown(&["b@h *2", "a@h *0"]),
            ["a@h unknown  *0"],
            "a weight is an attribute"
        );
    }

    #[test]
    fn without_a_usable_registration_maintenance_goes_first() {
        assert_eq!(shown(&["a@h maintenance", "b@h critical"]), ["a@h maintenance  *1"]);
        assert_eq!(shown(&["a@h critical", "b@h critical"]), ["b@h critical  *1"]);
    }

    #[test]
    fn tags_of_usable_registrations_are_united() {
        assert_eq!(
            shown(&["a@h passing v1,x", "b@h passing v2,x"]),
            ["b@h passing v1,v2,x *1"]
        );
        let left_behind = shown(&["a@h critical v1", "b@h passing v2", "c@h passing v3"]);
        assert_eq!(left_behind, ["c@h passing v2,v3 *1"]);
        assert_eq!(
            shown(&["a@h critical v1", "b@h critical v2"]),
            ["b@h critical v1,v2 *1"]
        );
    }

    #[test]
    fn all_registrations_stay_listed_with_their_own_status() {
        let instances = of(&["a@h critical", "b@h passing", "c@i"]);
        let listed = |it: &ServiceInstance| {
            let one = |it: &RegistryEntry| format!("{} {} {}", it.id, it.source, it.status);
            it.registrations().iter().map(one).collect::<Vec<_>>()
        };
        assert_eq!(listed(&instances[0]), ["b library passing", "a library critical"]);
        assert_eq!(listed(&instances[1]), ["c library unknown"]);
    }

    #[test]
    fn an_id_at_several_addresses_belongs_to_none_of_them() {
        let expected = ["web-0~h:80@h unknown  *1", "web-0~i:80@i unknown  *1"];
        assert_eq!(shown(&["web-0@h", "web-0@i"]), expected);
        assert_eq!(shown(&["web-0@i", "web-0@h"]), expected);
        assert_eq!(shown(&["web-0@i"]), ["web-0@i unknown  *1"]);
        let instances = of(&["web-0@h", "web-0@i"]);
        assert_eq!(instances[0].registrations()[0].id.as_str(), "web-0");
    }

    #[test]
    fn an_id_that_would_become_too_long_gives_way_to_the_address() {
        let id = "i".repeat(512);
        let expected = ["h:80@h unknown  *1", "j:80@j unknown  *1"];
        assert_eq!(shown(&[&format!("{id}@h"), &format!("{id}@j")]), expected);
    }

    proptest! {
        #[test]
        fn each_address_and_each_id_is_listed_once_and_no_registration_is_lost(
            list in prop::collection::vec((0..4usize, 0..4usize, 0..5usize), 0..12),
        ) {
            let registered: Vec<_> = list
                .iter()
                .map(|(id, host, status)| registration(&format!("i{id}@h{host} {}", STATUSES[*status])))
                .collect();
            let instances = joined(registered.clone());
            let ids: HashSet<_> = instances.iter().map(ServiceInstance::id).collect();
            prop_assert_eq!(ids.len(), instances.len());
            prop_assert!(!share_addresses(&instances));
            prop_assert_eq!(
                instances.iter().map(|it| it.registrations().len()).sum::<usize>(),
                registered.len()
            );
            for instance in &instances {
                let of_address = || registered.iter().filter(|it| it.address() == instance.address());
                let usable = |it: &&ServiceInstance| rank(it.registry_status()) == 0;
                prop_assert_eq!(usable(&instance), of_address().any(|it| usable(&it)));
                let last = of_address().rfind(usable);
                if let Some(last) = last {
                    prop_assert_eq!(&instance.registrations()[0].id, last.id());
                }
            }
        }

        #[test]
        fn ids_do_not_depend_on_the_order_of_addresses(
            (one, other) in prop::collection::btree_map(0..8usize, 0..4usize, 0..8)
                .prop_map(|map| map.into_iter().collect::<Vec<_>>())
                .prop_flat_map(|list| (Just(list.clone()), Just(list).prop_shuffle())),
        ) {
            let registered = |(host, id): &(usize, usize)| registration(&format!("i{id}@h{host}"));
            let joined = |list: &[(usize, usize)]| {
                let mut instances = joined(list.iter().map(registered).collect());
                instances.sort_by(|one, other| one.id().cmp(other.id()));
                instances
            };
            prop_assert_eq!(joined(&one), joined(&other));
        }
    }
}
