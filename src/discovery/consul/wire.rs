//! What Consul sends, and what it means: JSON and headers in, instances and names out.
//!
//! Pure. Knows nothing of requests, of time, or of what was read before.
//!
//! Registrations come from outside: port 70000, status `bogus` and `null` in place of a list have
//! all been seen. Each entry is decoded on its own, so that a bad entry costs only itself. An
//! answer that is not a list is an error, never an empty list.

use std::collections::{BTreeMap, HashSet};
use std::num::NonZeroU64;
use std::time::Duration;

use reqwest::header::HeaderMap;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::settings::ConsulSettings;
use crate::balancer::text::lower_case;
use crate::balancer::{
    InvalidInstance, RegistryStatus, ServiceInstance, ServiceName, SkippedRegistration, Source, Weight, is_printable,
};
use crate::discovery::shared::or_default;

/// Consul, in answers and metric labels.
pub const SOURCE: Source = Source::new("consul");

/// What the headers of a good answer say about its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The index to wait at; `None` if the header is missing, zero or not a number. Then no long
    /// poll can start.
    pub(super) index: Option<NonZeroU64>,
    /// Whether the server that answered knows a leader. Without the header, it counts as knowing
    /// one.
    pub(super) known_leader: bool,
    /// How long ago that server heard from its leader.
    pub(super) last_contact: Duration,
    /// Whether Consul says that the answer was filtered by ACLs (1.11 and later).
    pub(super) filtered: bool,
}

impl Head {
    /// Reads the headers of a 200. Those of an error mean nothing: Consul sends index 1 with them.
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
        Self {
            index: text("x-consul-index").and_then(|index| index.parse().ok()),
            known_leader: text("x-consul-knownleader").is_none_or(|known| !known.eq_ignore_ascii_case("false")),
            last_contact: text("x-consul-lastcontact")
                .and_then(|millis| millis.parse().ok())
                .map_or(Duration::ZERO, Duration::from_millis),
            filtered: text("x-consul-results-filtered-by-acls")
                .is_some_and(|filtered| filtered.eq_ignore_ascii_case("true")),
        }
    }
}

/// The catalog: every service name, with a fingerprint of its tags.
pub(super) type Catalog = BTreeMap<String, u64>;

/// Decodes `/v1/catalog/services`.
pub(super) fn catalog(body: &[u8]) -> Result<Catalog, serde_json::Error> {
    let names: BTreeMap<String, &RawValue> = serde_json::from_slice(body)?;
    Ok(names
        .into_iter()
        .map(|(name, tags)| (name, fingerprint(tags.get().as_bytes())))
        .collect())
}

/// The name of a service, if Consul can be asked for it. Consul refuses a path with a character
/// that is not printable, although such names can be registered.
pub(super) fn name(text: &str) -> Result<ServiceName, String> {
    let name: ServiceName = text.parse().map_err(|error: InvalidInstance| error.to_string())?;
    match text.chars().all(is_printable) {
        true => Ok(name),
        false => Err(format!(
            "service name {:?}: Consul answers requests for printable names alone",
            shortened(text)
        )),
    }
}

/// Whether a body is an empty catalog or an empty list.
pub(super) fn is_empty(body: &[u8]) -> bool {
    matches!(body.trim_ascii(), b"{}" | b"[]")
}

/// A fingerprint of a body, to detect that it is the same again.
pub(super) fn fingerprint(body: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(body)
}

/// One service in the answer of `/v1/health/service/:name`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Listing {
    /// The valid instances in the order of their last writes (by `ModifyIndex`), and by id.
    pub(super) instances: Vec<ServiceInstance>,
    /// The other entries, in the order of the answer.
    pub(super) skipped: Vec<SkippedRegistration>,
    /// Settings that were ignored on valid instances, one line each.
    pub(super) ignored: Vec<String>,
    /// Whether Consul listed no entry at all, valid or not.
    pub(super) bare: bool,
    /// How many entries are of a kind that is not wanted.
    pub(super) other_kinds: usize,
}

/// What is taken from a registration.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    kinds: Vec<String>,
    tagged_address: Option<String>,
}

impl Selection {
    pub(super) fn of(settings: &ConsulSettings) -> Self {
        Self {
            kinds: settings.kinds.clone(),
            tagged_address: settings.tagged_address.clone(),
        }
    }

    /// The address of a registration: the tagged address of the service, else the address of the
    /// service, where the tagged address of the node stands for the address of the node.
    fn address(&self, node: &Node<'_>, service: &Service<'_>) -> (String, i64) {
        let tagged = self.tagged_address.as_deref();
        let of_service: Option<TaggedAddress> = tagged.and_then(|name| named(service.tagged_addresses?, name));
        if let Some(TaggedAddress { address, port }) = of_service.filter(|found| !found.address.is_empty()) {
            return (address, if port == 0 { service.port } else { port });
        }
        if !service.address.is_empty() && service.address != node.address {
            return (service.address.clone(), service.port);
        }
        let of_node: Option<String> = tagged.and_then(|name| named(node.tagged_addresses?, name));
        let of_node = of_node.filter(|found| !found.is_empty());
        (of_node.unwrap_or_else(|| node.address.clone()), service.port)
    }
}

/// The value with this name in a JSON object, if it can be decoded.
fn named<'a, T: Deserialize<'a>>(object: &'a RawValue, name: &str) -> Option<T> {
    let values: BTreeMap<String, &RawValue> = serde_json::from_str(object.get()).ok()?;
    serde_json::from_str(values.get(name)?.get()).ok()
}

/// Decodes `/v1/health/service/:name`, asked for `service`.
///
/// # Errors
///
/// When the body is not a JSON list.
pub(super) fn health(body: &[u8], service: &ServiceName, selection: &Selection) -> Result<Listing, serde_json::Error> {
    let entries: Vec<&RawValue> = serde_json::from_slice(body)?;
    let mut listing = Listing {
        bare: entries.is_empty(),
        ..Listing::default()
    };
    let mut seen = HashSet::with_capacity(entries.len());
    let mut instances = Vec::with_capacity(entries.len());
    for entry in entries {
        match instance(entry, service, selection, &mut listing.ignored) {
            Ok(Some(found)) if seen.insert(found.1.id().clone()) => instances.push(found),
            Ok(Some((_, instance))) => {
                let skipped = SkippedRegistration::invalid(instance.id().as_str(), "it is listed twice");
                listing.skipped.push(skipped);
            }
            Ok(None) => listing.other_kinds += 1,
            Err(skipped) => listing.skipped.push(skipped),
        }
    }
    instances.sort_unstable_by(|(written, a), (other, b)| (written, a.id()).cmp(&(other, b.id())));
    listing.instances = instances.into_iter().map(|(_, instance)| instance).collect();
    Ok(listing)
}

/// The instance of an entry, and the index of the entry's last write; `None` if its kind is not
/// wanted.
fn instance(
    entry: &RawValue,
    asked: &ServiceName,
    selection: &Selection,
    ignored: &mut Vec<String>,
) -> Result<Option<(u64, ServiceInstance)>, SkippedRegistration> {
    let Entry { node, service, checks } = serde_json::from_str(entry.get()).map_err(|error| not_read(entry, &error))?;
    if !selection.kinds.contains(&service.kind) {
        return Ok(None);
    }
    // The same service id on two nodes is two instances.
    let id = format!("{}@{}", service.id, node.name);
    let invalid = |detail: &str| SkippedRegistration::invalid(shortened(&id), detail);
    let refused = |error: InvalidInstance| SkippedRegistration::refused(shortened(&id), &error);
    if lower_case(&service.name) != asked.as_lower_case() {
        return Err(invalid("it belongs to another service than the one that was asked for"));
    }
    if service.id.is_empty() || node.name.is_empty() {
        return Err(invalid("it has no service id, or no node name"));
    }
    let (host, port) = selection.address(&node, &service);

    let mut instance = ServiceInstance::new(&id, &host, port).map_err(refused)?;
    let weights = service.weights;
    if weights != Weights::default() {
        let mut read = |weight: i64| match Weight::new(weight) {
            Ok(weight) => weight,
            Err(error) => {
                ignored.push(format!("{}: {}", shortened(&id), error.without_value()));
                nearest(weight)
            }
        };
        let (passing, warning) = (read(weights.passing), read(weights.warning));
        instance = instance.with_weight(passing).with_warning_weight(warning);
    } else if let Some(text) = service.meta.get("weight") {
        // Digits that no integer can hold are a number beyond the largest weight, too.
        let text = text.trim();
        let beyond = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let written = text.parse::<i64>().ok().or(beyond.then_some(i64::MAX));
        match written.filter(|weight| *weight >= 0) {
            Some(weight) => {
                if let Err(error) = Weight::new(weight) {
                    ignored.push(format!("{}: Meta.weight: {}", shortened(&id), error.without_value()));
                }
                instance = instance.with_weight(nearest(weight));
            }
            None => ignored.push(format!(
                "{}: Meta.weight is not a number from 0 to 65535",
                shortened(&id)
            )),
        }
    }
    // An invalid tag costs the tag, not the instance: no caller can ask for such a tag.
    let tags = service
        .tags
        .iter()
        .filter(|tag| !tag.is_empty() && !tag.chars().any(char::is_control));
    let instance = instance
        .with_tags(tags)
        .map_err(refused)?
        .with_metadata(&service.meta)
        .with_status(status(&checks))
        .with_source(SOURCE);
    Ok(Some((service.modify_index, instance)))
}

/// The valid weight that is nearest to a number: a weight beyond the range costs no instance.
fn nearest(weight: i64) -> Weight {
    let nearest = u16::try_from(weight.clamp(0, i64::from(Weight::MAX.get())));
    nearest
        .ok()
        .and_then(|weight| Weight::new(weight).ok())
        .unwrap_or_default()
}

/// The worst of all checks, those of the node included. Without checks: an external service, which
/// passes.
fn status(checks: &[Check]) -> RegistryStatus {
    let mut worst = RegistryStatus::Passing;
    for check in checks {
        if check.id == "_node_maintenance" || check.id.starts_with("_service_maintenance:") {
            return RegistryStatus::Maintenance;
        }
        worst = match (check.status.as_str(), worst) {
            ("passing", _) => worst,
            ("warning", RegistryStatus::Passing) => RegistryStatus::Warning,
            ("warning", _) => worst,
            _ => RegistryStatus::Critical,
        };
    }
    worst
}

/// An entry of another form. What serde_json says about it may quote a value.
fn not_read(entry: &RawValue, error: &serde_json::Error) -> SkippedRegistration {
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "PascalCase", default)]
    struct Named {
        node: serde_json::Value,
        service: serde_json::Value,
    }
    let named: Named = serde_json::from_str(entry.get()).unwrap_or_default();
    let id = match (named.service["ID"].as_str(), named.node["Node"].as_str()) {
        (Some(id), Some(node)) => format!("{}@{}", shortened(id), shortened(node)),
        _ => String::new(),
    };
    let place = format!("line {}, column {}", error.line(), error.column());
    SkippedRegistration::invalid(
        id,
        format!("it has a field of another type than Consul documents, at {place}"),
    )
}

fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(64).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(borrow)]
    node: Node<'a>,
    #[serde(borrow)]
    service: Service<'a>,
    #[serde(default, deserialize_with = "or_default")]
    checks: Vec<Check>,
}

#[derive(Deserialize)]
struct Node<'a> {
    #[serde(rename = "Node")]
    name: String,
    #[serde(rename = "Address", default, deserialize_with = "or_default")]
    address: String,
    /// Decoded only if a tagged address is asked for.
    #[serde(rename = "TaggedAddresses", borrow, default)]
    tagged_addresses: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service<'a> {
    #[serde(default, deserialize_with = "or_default")]
    kind: String,
    #[serde(borrow, default)]
    tagged_addresses: Option<&'a RawValue>,
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Service")]
    name: String,
    #[serde(default, deserialize_with = "or_default")]
    address: String,
    #[serde(default, deserialize_with = "or_default")]
    port: i64,
    #[serde(default, deserialize_with = "or_default")]
    tags: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    meta: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "or_default")]
    weights: Weights,
    #[serde(default, deserialize_with = "or_default")]
    modify_index: u64,
}

/// Another address of a service, with its own port.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct TaggedAddress {
    #[serde(default, deserialize_with = "or_default")]
    address: String,
    #[serde(default, deserialize_with = "or_default")]
    port: i64,
}

#[derive(Clone, Copy, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase", default)]
struct Weights {
    passing: i64,
    warning: i64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

#[derive(Deserialize)]
struct Check {
    #[serde(rename = "CheckID", default, deserialize_with = "or_default")]
    id: String,
    #[serde(rename = "Status", default, deserialize_with = "or_default")]
    status: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balancer::SkipReason;

    /// An external node: without an address of its own, with nulls everywhere. Verbatim from
    /// Consul 1.8.7.
    const EXTERNAL: &str = r#"[{"Node":{"ID":"","Node":"node15","Address":"10.2.0.15","Datacenter":"dc1","TaggedAddresses":null,"Meta":null,"CreateIndex":36,"ModifyIndex":36},"Service":{"ID":"svc5-0","Service":"svc5","Tags":["http","v1"],"Address":"","Meta":{"version":"1.2.3","zone":"a"},"Port":8000,"Weights":{"Passing":1,"Warning":1},"EnableTagOverride":false,"Proxy":{"MeshGateway":{},"Expose":{}},"Connect":{},"CreateIndex":36,"ModifyIndex":36},"Checks":[{"Node":"node15","CheckID":"service:svc5-0","Name":"http","Status":"passing","Notes":"","Output":"HTTP GET http://x/health: 200 OK","ServiceID":"svc5-0","ServiceName":"svc5","ServiceTags":["http","v1"],"Type":"","Definition":{},"CreateIndex":36,"ModifyIndex":36}]}]"#;

    /// Registered through an agent, with two checks of which the second warns. Verbatim, except
    /// for the node, which was not recorded.
    const AGENT: &str = r#"[{"Node":{"ID":"1","Node":"n1","Address":"127.0.0.1"},"Service":{"ID":"a2","Service":"asvc","Tags":["x"],"Address":"10.9.9.9","TaggedAddresses":{"lan":{"Address":"10.9.9.9","Port":5001},"lan_ipv4":{"Address":"10.9.9.9","Port":5001},"wan":{"Address":"1.2.3.4","Port":80},"wan_ipv4":{"Address":"10.9.9.9","Port":5001}},"Meta":{"k":"v"},"Port":5001,"Weights":{"Passing":10,"Warning":3}},"Checks":[{"CheckID":"serfHealth","Status":"passing","ServiceID":"","ServiceName":"","ServiceTags":[]},{"CheckID":"c1","Status":"passing","ServiceID":"a2","Type":"ttl"},{"CheckID":"c2","Status":"warning","ServiceID":"a2","Type":"ttl"}]}]"#;

    fn name(text: &str) -> ServiceName {
        text.parse().unwrap()
    }

    /// The default selection, changed so.
    fn selection(change: impl FnOnce(&mut ConsulSettings)) -> Selection {
        let mut settings = ConsulSettings::new("http://unused");
        change(&mut settings);
        Selection::of(&settings)
    }

    fn health(body: &[u8], service: &ServiceName) -> Result<Listing, serde_json::Error> {
        super::health(body, service, &selection(|_| ()))
    }

    fn decode(body: &str) -> Listing {
        health(body.as_bytes(), &name("web")).unwrap()
    }

    /// One entry of service `web`, with these fields of the service and these checks.
    fn entry(service: &str, checks: &str) -> String {
        format!(
            r#"{{"Node":{{"Node":"n1","Address":"10.0.0.1"}},"Service":{{"ID":"w1","Service":"web","Port":80{service}}},"Checks":{checks}}}"#
        )
    }

    fn one(service: &str, checks: &str) -> ServiceInstance {
        let mut listing = decode(&format!("[{}]", entry(service, checks)));
        assert_eq!(listing.skipped, []);
        listing.instances.pop().unwrap()
    }

    #[test]
    fn an_external_registration_takes_its_nodes_address() {
        let listing = health(EXTERNAL.as_bytes(), &name("svc5")).unwrap();
        let [instance] = &listing.instances[..] else {
            panic!("{listing:?}")
        };
        assert_eq!(instance.id().as_str(), "svc5-0@node15");
        assert_eq!(instance.address().as_str(), "10.2.0.15:8000");
        assert_eq!(instance.registry_status(), RegistryStatus::Passing);
        assert_eq!((instance.weight(), instance.warning_weight()), (Weight::ONE, None));
        assert!(instance.has_tag("http") && instance.has_tag("v1"));
        assert_eq!(instance.metadata().get("zone").map(AsRef::as_ref), Some("a"));
        assert_eq!(instance.source(), SOURCE);
        assert_eq!((listing.skipped.len(), listing.bare), (0, false));
    }

    #[test]
    fn a_warning_check_brings_the_warning_weight() {
        let listing = health(AGENT.as_bytes(), &name("ASVC")).unwrap();
        let instance = &listing.instances[0];
        assert_eq!(instance.address().as_str(), "10.9.9.9:5001");
        assert_eq!(instance.registry_status(), RegistryStatus::Warning);
        assert_eq!(instance.weight().get(), 10);
        assert_eq!(instance.warning_weight().map(Weight::get), Some(3));
    }

    #[test]
    fn the_worst_check_decides_and_maintenance_is_separate() {
        let check = |id: &str, status: &str| format!(r#"{{"CheckID":"{id}","Status":{status}}}"#);
        let of = |checks: &[String]| one("", &format!("[{}]", checks.join(","))).registry_status();
        let (pass, warn, fail) = (
            check("a", "\"passing\""),
            check("b", "\"warning\""),
            check("c", "\"critical\""),
        );
        assert_eq!(of(&[]), RegistryStatus::Passing);
        assert_eq!(of(&[pass.clone(), warn.clone()]), RegistryStatus::Warning);
        assert_eq!(
            of(&[warn.clone(), fail.clone(), pass.clone()]),
            RegistryStatus::Critical
        );
        assert_eq!(of(&[fail.clone(), warn, pass.clone()]), RegistryStatus::Critical);
        assert_eq!(of(&[pass.clone(), check("d", "\"bogus\"")]), RegistryStatus::Critical);
        assert_eq!(of(&[pass.clone(), check("d", "null")]), RegistryStatus::Critical);
        assert_eq!(
            of(&[fail.clone(), check("_service_maintenance:w1", "\"critical\"")]),
            RegistryStatus::Maintenance
        );
        assert_eq!(
            of(&[check("_node_maintenance", "\"critical\""), pass]),
            RegistryStatus::Maintenance
        );
        assert_eq!(one("", "null").registry_status(), RegistryStatus::Passing);
    }

    #[test]
    fn instances_are_in_the_order_of_their_writes() {
        let entry = |id: &str, index: &str| {
            format!(
                r#"{{"Node":{{"Node":"n","Address":"10.0.0.1"}},"Service":{{"ID":"{id}","Service":"web","Port":80{index}}}}}"#
            )
        };
        let written = |id: &str, index: u64| entry(id, &format!(r#","ModifyIndex":{index}"#));
        let list = [
            written("a", 12),
            entry("z", ""),
            written("c", 7),
            written("b", 7),
            written("d", 100),
        ];
        let ids = |listing: &Listing| {
            listing
                .instances
                .iter()
                .map(|it| it.id().to_string())
                .collect::<Vec<_>>()
        };
        let listing = decode(&format!("[{}]", list.join(",")));
        assert_eq!(ids(&listing), ["z@n", "b@n", "c@n", "a@n", "d@n"]);
    }

    #[test]
    fn meta_weight_counts_where_the_weights_are_the_default() {
        let weights = |service: &str| {
            let instance = one(service, "[]");
            (instance.weight().get(), instance.warning_weight().map(Weight::get))
        };
        assert_eq!(weights(r#","Meta":{"weight":"3"}"#), (3, None));
        assert_eq!(
            weights(r#","Meta":{"weight":" 0 "},"Weights":{"Passing":1,"Warning":1}"#),
            (0, None)
        );
        assert_eq!(
            weights(r#","Meta":{"weight":"3"},"Weights":{"Passing":2,"Warning":1}"#),
            (2, Some(1))
        );
        assert_eq!(
            weights(r#","Meta":{"weight":"3"},"Weights":{"Passing":1,"Warning":0}"#),
            (1, Some(0))
        );
        assert_eq!(weights(r#","Weights":null"#), (1, None));
        assert_eq!(weights(r#","Weights":{"Passing":5}"#), (5, Some(1)));
    }

    #[test]
    fn an_invalid_meta_weight_is_ignored_and_reported() {
        for bad in ["", "heavy", "-1", "1.5", "0x10"] {
            let listing = decode(&format!(
                "[{}]",
                entry(&format!(r#","Meta":{{"weight":"{bad}"}}"#), "[]")
            ));
            assert_eq!(listing.instances[0].weight(), Weight::ONE, "{bad}");
            assert_eq!(listing.ignored.len(), 1, "{bad}");
        }
    }

    #[test]
    fn a_weight_beyond_the_range_is_the_nearest_one_and_reported() {
        let weights = |service: &str| {
            let listing = decode(&format!("[{}]", entry(service, "[]")));
            let instance = &listing.instances[0];
            let weights = (instance.weight().get(), instance.warning_weight().map(Weight::get));
            (weights, listing.ignored.len())
        };
        let passing = |passing: &str| weights(&format!(r#","Weights":{{"Passing":{passing},"Warning":1}}"#));
        assert_eq!(passing("20000"), ((20_000, Some(1)), 0));
        assert_eq!(passing("65535"), ((65_535, Some(1)), 0));
        assert_eq!(passing("65536"), ((65_535, Some(1)), 1));
        assert_eq!(passing("9223372036854775807"), ((65_535, Some(1)), 1));
        assert_eq!(passing("-3"), ((0, Some(1)), 1));
        let meta = |weight: &str| weights(&format!(r#","Meta":{{"weight":"{weight}"}}"#));
        assert_eq!(meta("20000"), ((20_000, None), 0));
        assert_eq!(meta("65536"), ((65_535, None), 1));
        assert_eq!(meta("99999999999999999999"), ((65_535, None), 1));
    }

    #[test]
    fn an_invalid_entry_costs_only_itself() {
        let good = entry("", "[]").replace("w1", "good");
        let entry_with = |from: &str, to: &str| entry("", "[]").replace(from, to);
        for bad in [
            entry_with(":80", ":70000"),
            entry_with(":80", ":-1"),
            entry_with(":80", r#":"80""#),
            entry_with(":80", ":8.5"),
            entry_with("10.0.0.1", "http://x"),
            entry_with("10.0.0.1", ""),
            entry_with(r#""ID":"w1""#, r#""ID":"""#),
            entry_with(r#""ID":"w1""#, r#""ID":null"#),
            entry_with(r#""ID":"w1""#, r#""ID":"a\u0000b""#),
            entry_with(r#""ID":"w1""#, r#""ID":"\ud800""#),
            entry_with(r#""Service":"web""#, r#""Service":"other""#),
            entry_with(r#""Node":"n1""#, r#""Node":"""#),
            entry(r#","Weights":{"Passing":"2"}"#, "[]"),
            entry(r#","Tags":{"a":1}"#, "[]"),
            entry(r#","Meta":{"a":1}"#, "[]"),
            entry("", r#""passing""#),
            entry("", "[null]"),
            String::from("null"),
            String::from("7"),
            String::from("[]"),
            String::from("{}"),
            String::from(r#"{"Node":null,"Service":null,"Checks":null}"#),
        ] {
            let listing = decode(&format!("[{bad},{good}]"));
            assert_eq!(listing.instances.len(), 1, "{bad}");
            assert_eq!(listing.instances[0].id().as_str(), "good@n1", "{bad}");
            assert_eq!(listing.skipped.len(), 1, "{bad}");
            let SkippedRegistration { id, reason, detail, .. } = &listing.skipped[0];
            assert_eq!(*reason, SkipReason::Invalid, "{bad}");
            assert!(!id.chars().chain(detail.chars()).any(char::is_control), "{bad}");
        }
    }

    #[test]
    fn a_registration_without_a_port_is_told_from_an_invalid_one() {
        for portless in [r#""Port":0"#, r#""Port":null"#, r#""x":0"#] {
            let listing = decode(&format!("[{}]", entry("", "[]").replace(r#""Port":80"#, portless)));
            assert_eq!(listing.skipped, [SkippedRegistration::no_port("w1@n1")], "{portless}");
            assert!(!listing.bare && listing.instances.is_empty());
        }
    }

    #[test]
    fn a_reason_names_the_registration_and_no_value() {
        for secret in [
            entry(r#","Address":"S3cr3t!""#, "[]"),
            entry(r#","Meta":"S3cr3t""#, "[]"),
            entry(r#","Tags":{"S3cr3t":"S3cr3t"}"#, "[]"),
            entry("", r#""S3cr3t""#),
            entry("", "[]").replace(":80", r#":"S3cr3t""#),
            entry("", "[]").replace(r#""Service":"web""#, r#""Service":"S3cr3t""#),
        ] {
            let listing = decode(&format!("[{secret}]"));
            let skipped = &listing.skipped[0];
            assert_eq!(skipped.id, "w1@n1", "{secret}");
            assert!(
                !skipped.detail.contains("S3cr3t") && skipped.detail.len() > 20,
                "{skipped:?}"
            );
        }
        let listing = decode(&format!("[{}]", entry(r#","Meta":{"weight":"S3cr3t"}"#, "[]")));
        assert!(
            listing.skipped.is_empty() && !listing.ignored[0].contains("S3cr3t"),
            "{listing:?}"
        );
    }

    #[test]
    fn odd_but_valid_registrations_are_used() {
        let hosts = |address: &str| one(&format!(r#","Address":"{address}""#), "[]").address().to_string();
        assert_eq!(hosts("::1"), "[::1]:80");
        assert_eq!(hosts("db.local"), "db.local:80");
        assert_eq!(hosts(""), "10.0.0.1:80");
        let nulls = one(
            r#","Tags":null,"Meta":null,"Address":null,"TaggedAddresses":null,"Unknown":[{}]"#,
            "[]",
        );
        assert_eq!((nulls.tags().len(), nulls.metadata().len()), (0, 0));
        let tags = one(r#","Tags":["","v1","a\nb"]"#, "[]");
        assert_eq!(tags.tags().len(), 1);
        assert!(tags.has_tag("v1"));
    }

    #[test]
    fn an_entry_of_another_kind_is_passed_over() {
        let kinds = |kinds: &[&str]| {
            let body = format!(
                "[{},{},{}]",
                entry("", "[]"),
                entry(r#","Kind":"typical""#, "[]").replace("w1", "w2"),
                entry(r#","Kind":"connect-proxy""#, "[]").replace("w1", "w3")
            );
            let selection =
                selection(|settings| settings.kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect());
            let listing = super::health(body.as_bytes(), &name("web"), &selection).unwrap();
            assert_eq!((listing.skipped.len(), listing.bare), (0, false));
            (listing.instances.len(), listing.other_kinds)
        };
        let default = crate::discovery::consul::KINDS;
        assert_eq!(kinds(&default), (2, 1));
        assert_eq!(kinds(&["connect-proxy"]), (1, 2));
        assert_eq!(kinds(&["", "typical", "connect-proxy"]), (3, 0));
        assert_eq!(kinds(&["mesh-gateway"]), (0, 3));
    }

    #[test]
    fn a_tagged_address_comes_from_the_service_then_from_the_node() {
        let address = |tagged: &str, service: &str, node: &str| {
            let node = format!(r#""Address":"10.0.0.1"{node}"#);
            let body = entry(service, "[]").replacen(r#""Address":"10.0.0.1""#, &node, 1);
            let selection = selection(|settings| settings.tagged_address = Some(tagged.to_owned()));
            let listing = super::health(format!("[{body}]").as_bytes(), &name("web"), &selection).unwrap();
            assert_eq!(listing.skipped, []);
            listing.instances[0].address().to_string()
        };
        let of_service = r#","TaggedAddresses":{"wan":{"Address":"1.2.3.4","Port":8080},"bare":{"Address":"1.2.3.5"}}"#;
        let of_node = r#","TaggedAddresses":{"wan":"5.6.7.8","lan":""}"#;
        let own = r#","Address":"10.9.9.9""#;
        for (tagged, service, node, expected) in [
            ("wan", of_service, of_node, "1.2.3.4:8080"),
            ("bare", of_service, of_node, "1.2.3.5:80"),
            ("wan", "", of_node, "5.6.7.8:80"),
            // The agent registers the address of its node as the address of the service.
            ("wan", r#","Address":"10.0.0.1""#, of_node, "5.6.7.8:80"),
            // The service is not at the address of its node.
            ("wan", own, of_node, "10.9.9.9:80"),
            ("lan", "", of_node, "10.0.0.1:80"),
            ("other", of_service, of_node, "10.0.0.1:80"),
            (
                "wan",
                r#","TaggedAddresses":null"#,
                r#","TaggedAddresses":null"#,
                "10.0.0.1:80",
            ),
            (
                "wan",
                r#","TaggedAddresses":{"wan":{"Address":"","Port":1}}"#,
                "",
                "10.0.0.1:80",
            ),
        ] {
            assert_eq!(address(tagged, service, node), expected, "{tagged} {service} {node}");
        }
        assert_eq!(
            one(of_service, "[]").address().to_string(),
            "10.0.0.1:80",
            "only when asked for"
        );
    }

    #[test]
    fn a_service_id_on_two_nodes_is_two_instances_and_twice_is_one() {
        let (here, there) = (entry("", "[]"), entry("", "[]").replace("n1", "n2"));
        let listing = decode(&format!("[{there},{here},{here}]"));
        let ids: Vec<_> = listing
            .instances
            .iter()
            .map(|instance| instance.id().as_str())
            .collect();
        assert_eq!(ids, ["w1@n1", "w1@n2"], "sorted, so that another order is not a change");
        assert_eq!(listing.skipped.len(), 1);
    }

    #[test]
    fn an_answer_that_is_not_a_list_is_an_error() {
        for bad in [
            "",
            "{}",
            "null",
            "[",
            "[{}",
            "[{]",
            "<html>",
            "[]x",
            "\"\"",
            "7",
            "\u{feff}[]",
        ] {
            assert!(health(bad.as_bytes(), &name("web")).is_err(), "{bad:?}");
        }
        assert!(health(b"[\"\xff\"]", &name("web")).is_err());
        assert!(
            health("[".repeat(100_000).as_bytes(), &name("web")).is_err(),
            "no stack overflow either"
        );
        let empty = decode(" [ ] ");
        assert!(empty.bare && empty.instances.is_empty());
        assert!(!decode("[null]").bare, "there is an entry, though an invalid one");
    }

    #[test]
    fn the_catalog_has_names_and_fingerprints_of_tags() {
        let first = catalog(br#"{"consul":[],"other":["v1"],"web":["v1"]}"#).unwrap();
        assert_eq!(first.keys().collect::<Vec<_>>(), ["consul", "other", "web"]);
        let second = catalog(br#"{"consul":null,"other":["v1"],"web":["v2"]}"#).unwrap();
        assert_eq!(first["other"], second["other"]);
        assert_ne!(first["web"], second["web"]);
        assert!(catalog(b"{}").unwrap().is_empty());
        for bad in ["", "[]", "null", "{", "{\"a\"}"] {
            assert!(catalog(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn headers_are_read_as_far_as_they_are_valid() {
        let head = |pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            Head::read(&headers)
        };
        let good = Head {
            index: NonZeroU64::new(36),
            known_leader: true,
            last_contact: Duration::ZERO,
            filtered: false,
        };
        assert_eq!(
            head(&[
                ("x-consul-index", "36"),
                ("x-consul-knownleader", "true"),
                ("x-consul-lastcontact", "0")
            ]),
            good
        );
        for odd in ["", "0", "-1", "abc", "1e3", "99999999999999999999999"] {
            assert_eq!(head(&[("x-consul-index", odd)]).index, None, "{odd}");
        }
        assert_eq!(head(&[]), Head { index: None, ..good });
        let stale = head(&[("x-consul-knownleader", "false"), ("x-consul-lastcontact", "8424")]);
        assert_eq!(
            (stale.known_leader, stale.last_contact),
            (false, Duration::from_millis(8424))
        );
        assert!(head(&[("x-consul-results-filtered-by-acls", "true")]).filtered);
    }
}
