//! Bytes to instances: the same structure in TOML, JSON and YAML, by the file's extension.
//!
//! ```toml
//! [[service]]
//! name = "user-service"
//!
//! [[service.instance]]
//! id = "user-1"              # default: host:port
//! host = "10.0.1.10"
//! port = 8080
//! weight = 2                 # default: 1
//! tags = ["v2"]
//! metadata = { zone = "us-west" }
//! status = "passing"         # warning, critical, maintenance; default: unknown
//! ```
//!
//! A list in place of the table is a list of target groups, as Prometheus reads them from files:
//! see [`targets`](super::targets).
//!
//! An operator writes the file, so nothing is guessed and nothing skipped: the first mistake
//! refuses the whole file, with line and column. So every rule is checked *inside*
//! deserialization, where each format knows the line and column, and none afterwards. A file
//! without services says so by an empty list: a template that found nothing leaves a comment, a
//! `null` or an empty table, and must not empty every pool. Pure: does not know where the bytes
//! come from.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::{self, Display};
use std::hash::Hash;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::targets;
use crate::balancer::{
    Address, InstanceId, InvalidInstance, RegistryStatus, ServiceInstance, ServiceName, Source, Weight,
};
use crate::discovery::shared::{status_named, without_values};

/// What a file must say that lists nothing on purpose.
const NO_SERVICES: &str = "a registry without services has an empty list under `service`";

/// The name of this registry.
pub const SOURCE: Source = Source::new("file");

/// Why a file was refused. Printed as `path:line:column: message`, the form that editors can
/// follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// Line and column, from 1, columns in characters; `None` if the mistake has no place.
    pub place: Option<(usize, usize)>,
    /// What is wrong, and what is expected. Repeats no value of the file.
    pub message: String,
}

impl Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        if let Some((line, column)) = self.place {
            write!(f, "{line}:{column}:")?;
        }
        write!(f, " {}", self.message)
    }
}

impl std::error::Error for FileError {}

/// Reads a file registry. The extension names the format: `.toml`, `.json`, `.yaml` or `.yml`.
/// Targets without the label `job` belong to the default service.
///
/// # Errors
///
/// On the first mistake: syntax, an unknown key, a value out of range, a service or an id that is
/// listed twice. A file that does not say what it lists is refused too: without any text, with
/// comments alone, `null`, or a table without the key `service`.
pub fn parse(
    path: &Path,
    bytes: &[u8],
    default_service: Option<&ServiceName>,
) -> Result<Vec<(ServiceName, Vec<ServiceInstance>)>, FileError> {
    let refused = |place, message: String| FileError {
        path: path.to_owned(),
        place,
        message: without_values(&message),
    };
    let text = std::str::from_utf8(bytes).map_err(|broken| {
        let good = bytes.get(..broken.valid_up_to()).unwrap_or_default();
        refused(
            Some(place(&String::from_utf8_lossy(good), usize::MAX)),
            "this is not UTF-8 text".to_owned(),
        )
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if is_blank(text.as_bytes()) {
        return Err(refused(None, format!("empty; {NO_SERVICES}")));
    }
    let whole = Whole { default_service };
    let extension = path
        .extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default();
    let services = match extension.to_ascii_lowercase().as_str() {
        "toml" => toml::Deserializer::parse(text)
            .and_then(|document| whole.deserialize(document))
            .map_err(|wrong| {
                let place = wrong.span().map(|span| place(text, span.start));
                refused(place, wrong.message().to_owned())
            }),
        "json" => {
            let mut document = serde_json::Deserializer::from_str(text);
            let read = whole.deserialize(&mut document);
            read.and_then(|services| document.end().map(|()| services))
                .map_err(|wrong| {
                    let told = format!(" at line {} column {}", wrong.line(), wrong.column());
                    let message = wrong.to_string().replacen(&told, "", 1);
                    refused(Some(place(text, json_offset(text, &wrong))), message)
                })
        }
        "yaml" | "yml" => whole
            .deserialize(yaml_serde::Deserializer::from_str(text))
            .map_err(|wrong| {
                let place = wrong.location().map(|found| (found.line(), found.column()));
                let told = place
                    .map(|(line, column)| format!(" at line {line} column {column}"))
                    .unwrap_or_default();
                refused(place, wrong.to_string().replacen(&told, "", 1))
            }),
        _ => Err(refused(
            None,
            "expected a name that ends in .toml, .json, .yaml or .yml".to_owned(),
        )),
    }?;
    let mut all: Vec<(ServiceName, Vec<ServiceInstance>)> = Vec::new();
    let mut places = HashMap::new();
    for (name, instances) in services {
        // Two spellings of one name are one service.
        let place = *places.entry(name.clone()).or_insert(all.len());
        let Some((_, listed)) = all.get_mut(place) else {
            all.push((name, instances));
            continue;
        };
        let ids: HashSet<&InstanceId> = listed.iter().map(ServiceInstance::id).collect();
        if let Some(twice) = instances.iter().find(|instance| ids.contains(instance.id())) {
            let message = format!(
                "instance {} of service {} is listed twice, in two spellings of the service",
                twice.id(),
                all[place].0
            );
            return Err(refused(None, message));
        }
        listed.extend(instances);
    }
    Ok(all)
}

/// Whether there is only white space.
pub(super) fn is_blank(bytes: &[u8]) -> bool {
    bytes.trim_ascii().is_empty()
}

/// Line and column of a byte offset, from 1.
fn place(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// Where a JSON mistake is. `serde_json` says where it stopped, which is the end of a refused
/// value: the last digit or the closing brace. This function goes back to the start of that value,
/// as the other two formats do.
fn json_offset(text: &str, wrong: &serde_json::Error) -> usize {
    let line: usize = text
        .split_inclusive('\n')
        .take(wrong.line().saturating_sub(1))
        .map(str::len)
        .sum();
    let end = (line + wrong.column()).saturating_sub(1);
    if !wrong.is_data() {
        return end;
    }
    let (mut open, mut start, mut in_string, mut escaped, mut in_word) = (Vec::new(), 0, false, false, false);
    for (offset, byte) in text.bytes().enumerate().take(end + 1) {
        let was_in_word = std::mem::replace(&mut in_word, false);
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' if in_string => in_string = false,
            _ if in_string => {}
            b'"' => (start, in_string) = (offset, true),
            b'{' | b'[' => open.push(offset),
            b'}' | b']' => start = open.pop().unwrap_or(offset),
            b',' | b':' | b' ' | b'\t' | b'\r' | b'\n' => {}
            _ => {
                in_word = true;
                if !was_in_word {
                    start = offset;
                }
            }
        }
    }
    start
}

/// The whole file: a table of services, or a list of target groups.
struct Whole<'a> {
    default_service: Option<&'a ServiceName>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    service: Option<Unique<Service>>,
}

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = Vec<(ServiceName, Vec<ServiceInstance>)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = Vec<(ServiceName, Vec<ServiceInstance>)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table with the key `service`, or a list of target groups")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        let file = RawFile::deserialize(MapAccessDeserializer::new(map))?;
        let Some(Unique(services)) = file.service else {
            return Err(A::Error::custom(NO_SERVICES));
        };
        let services = services.into_iter();
        Ok(services
            .map(|Service { name, instances, .. }| (name, instances))
            .collect())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, groups: A) -> Result<Self::Value, A::Error> {
        targets::read(groups, self.default_service)
    }
}

struct Service {
    name: ServiceName,
    written: String,
    instances: Vec<ServiceInstance>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    name: Text<ServiceName>,
    #[serde(default)]
    instance: Unique<ServiceInstance>,
}

impl Entry for Service {
    const NAME: &str = "service";
    const EXPECTED: &str = "a service: a table with `name` and `instance`";
    /// The exact spelling: the same text twice is a mistake.
    type Key = String;
    type Raw = RawService;

    fn key(&self) -> &String {
        &self.written
    }

    fn check(raw: RawService) -> Result<Self, InvalidInstance> {
        Ok(Self {
            written: raw.name.0.to_string(),
            name: raw.name.0,
            instances: raw.instance.0,
        })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInstance {
    id: Option<Text<InstanceId>>,
    host: Text<Host>,
    port: Number<Port>,
    weight: Option<Number<Weight>>,
    tags: Option<Vec<Text<Tag>>>,
    metadata: Option<Metadata>,
    status: Option<Text<RegistryStatus>>,
}

impl Entry for ServiceInstance {
    const NAME: &str = "instance";
    const EXPECTED: &str = "an instance: a table with `host` and `port`";
    type Key = InstanceId;
    type Raw = RawInstance;

    fn key(&self) -> &InstanceId {
        self.id()
    }

    fn check(raw: RawInstance) -> Result<Self, InvalidInstance> {
        let address = Address::new(&raw.host.0.0, raw.port.0.0)?;
        let id = match raw.id {
            Some(Text(id)) => id,
            None => address.as_str().parse()?,
        };
        Self::at(id, address)
            .with_weight(raw.weight.map_or(Weight::ONE, |Number(weight)| weight))
            .with_metadata(raw.metadata.unwrap_or_default().0)
            .with_status(raw.status.map_or(RegistryStatus::Unknown, |Text(status)| status))
            .with_source(SOURCE)
            .with_tags(raw.tags.iter().flatten().map(|Text(Tag(tag))| tag))
    }
}

/// An entry of a list, identified by its key.
trait Entry: Sized {
    /// The name of such an entry.
    const NAME: &str;
    /// The description of a valid entry.
    const EXPECTED: &str;
    type Key: Clone + Display + Eq + Hash;
    /// The entry as written; each field is checked on its own.
    type Raw: DeserializeOwned;

    fn key(&self) -> &Self::Key;

    fn check(raw: Self::Raw) -> Result<Self, InvalidInstance>;
}

/// A list in which no key occurs twice.
struct Unique<T>(Vec<T>);

impl<T> Default for Unique<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Entry> Deserialize<'de> for Unique<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<T>(PhantomData<T>);

        impl<'de, T: Entry> Visitor<'de> for List<T> {
            type Value = Unique<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a list with a table for each {}", T::NAME)
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Unique<T>, A::Error> {
                let (mut entries, mut taken) = (Vec::new(), HashSet::new());
                while let Some(entry) = list.next_element_seed(Distinct::<T> { taken: &mut taken })? {
                    entries.push(entry);
                }
                Ok(Unique(entries))
            }
        }

        // YAML's `deserialize_seq` would take a null for an empty list.
        deserializer.deserialize_any(List(PhantomData))
    }
}

/// One entry whose key must differ from the keys of earlier entries. A seed, so that an error has
/// the place of the second entry.
struct Distinct<'a, T: Entry> {
    taken: &'a mut HashSet<T::Key>,
}

impl<'de, T: Entry> DeserializeSeed<'de> for Distinct<'_, T> {
    type Value = T;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: Entry> Visitor<'de> for Distinct<'_, T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(T::EXPECTED)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        let raw = T::Raw::deserialize(MapAccessDeserializer::new(map))?;
        let entry = T::check(raw).map_err(A::Error::custom)?;
        if !self.taken.insert(entry.key().clone()) {
            return Err(A::Error::custom(format_args!(
                "{} `{}` is listed twice",
                T::NAME,
                entry.key()
            )));
        }
        Ok(entry)
    }
}

/// A value written as text, checked where it is read.
pub(super) struct Text<T>(pub(super) T);

pub(super) trait FromText: Sized {
    const EXPECTED: &str;

    fn from_text(text: &str) -> Result<Self, impl Display>;
}

impl<'de, T: FromText> Deserialize<'de> for Text<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Check<T>(PhantomData<T>);

        impl<T: FromText> Visitor<'_> for Check<T> {
            type Value = Text<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text<T>, E> {
                T::from_text(text).map(Text).map_err(E::custom)
            }
        }

        deserializer.deserialize_str(Check(PhantomData))
    }
}

impl FromText for ServiceName {
    const EXPECTED: &str = "the name of a service, in quotes";

    fn from_text(text: &str) -> Result<Self, impl Display> {
        text.parse::<Self>()
    }
}

impl FromText for InstanceId {
    const EXPECTED: &str = "an id, in quotes";

    fn from_text(text: &str) -> Result<Self, impl Display> {
        text.parse::<Self>()
    }
}

struct Host(String);

impl FromText for Host {
    const EXPECTED: &str = "an IP address or a host name, in quotes";

    fn from_text(text: &str) -> Result<Self, impl Display> {
        Address::new(text, 1).map(|_| Self(text.to_owned()))
    }
}

struct Tag(String);

impl FromText for Tag {
    const EXPECTED: &str = "a tag, in quotes";

    fn from_text(text: &str) -> Result<Self, impl Display> {
        // Only an instance knows which tags are valid.
        let probe = ServiceInstance::new("id", "host", 1).and_then(|instance| instance.with_tags([text]));
        probe.map(|_| Self(text.to_owned()))
    }
}

impl FromText for RegistryStatus {
    const EXPECTED: &str = "a status, in quotes";

    fn from_text(text: &str) -> Result<Self, impl Display> {
        status_named(text)
            .ok_or_else(|| format!("status {text:?}: expected passing, warning, critical, maintenance or unknown"))
    }
}

impl FromText for String {
    const EXPECTED: &str = "a text, in quotes";

    fn from_text(text: &str) -> Result<Self, impl Display> {
        Ok::<_, InvalidInstance>(text.to_owned())
    }
}

/// A value written as a whole number, checked where it is read.
struct Number<T>(T);

trait FromNumber: Sized {
    const EXPECTED: &str;

    fn from_number(number: i64) -> Result<Self, InvalidInstance>;
}

impl<'de, T: FromNumber> Deserialize<'de> for Number<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Check<T>(PhantomData<T>);

        impl<T: FromNumber> Visitor<'_> for Check<T> {
            type Value = Number<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(T::EXPECTED)
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<Number<T>, E> {
                T::from_number(number)
                    .map(Number)
                    .map_err(|error| E::custom(error.without_value()))
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Number<T>, E> {
                self.visit_i64(i64::try_from(number).unwrap_or(i64::MAX))
            }
        }

        deserializer.deserialize_i64(Check(PhantomData))
    }
}

struct Port(u16);

impl FromNumber for Port {
    const EXPECTED: &str = "a port from 1 to 65535";

    fn from_number(number: i64) -> Result<Self, InvalidInstance> {
        Address::new("host", number).map(|address| Self(address.port()))
    }
}

impl FromNumber for Weight {
    const EXPECTED: &str = "a weight from 0 to 65535";

    fn from_number(number: i64) -> Result<Self, InvalidInstance> {
        Self::new(number)
    }
}

/// Texts by name; no name may occur twice. (With a derived map the last would win without an
/// error.)
#[derive(Default)]
pub(super) struct Metadata(pub(super) BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                let mut entries = BTreeMap::new();
                while let Some(Text(key)) = map.next_key::<Text<String>>()? {
                    if entries.contains_key(&key) {
                        return Err(A::Error::custom(format_args!("metadata `{key}` is listed twice")));
                    }
                    let Text(value) = map.next_value::<Text<String>>()?;
                    entries.insert(key, value);
                }
                Ok(Metadata(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = r#"
[[service]]
name = "user-service"

[[service.instance]]
id = "user-1"
host = "10.0.1.10"
port = 8080
weight = 2
tags = ["v2", "canary"]
metadata = { zone = "us-west", "rack.unit" = "7" }
status = "passing"

[[service.instance]]
host = "::1"
port = 8081

[[service]]
name = "empty"
"#;

    const JSON: &str = r#"{"service": [
  {"name": "user-service", "instance": [
    {"id": "user-1", "host": "10.0.1.10", "port": 8080, "weight": 2, "tags": ["v2", "canary"],
     "metadata": {"zone": "us-west", "rack.unit": "7"}, "status": "passing"},
    {"host": "::1", "port": 8081, "weight": null}
  ]},
  {"name": "empty"}
]}"#;

    const YAML: &str = r#"
service:
  - name: user-service
    instance:
      - id: user-1
        host: 10.0.1.10
        port: 8080
        weight: 2
        tags: [v2, canary]
        metadata:
          zone: us-west
          rack.unit: 7
        status: passing
      - host: "::1"
        port: 8081
  - name: empty
    instance: []
"#;

    /// Expects an error at the mark `«`, which stands before the mistake.
    #[track_caller]
    fn refuses(extension: &str, marked: &str, message: &str) {
        let path = PathBuf::from(format!("services.{extension}"));
        let text = marked.replacen('«', "", 1);
        assert_ne!(text, marked, "no mark");
        let error = parse(&path, text.as_bytes(), None).expect_err(marked);
        assert!(error.message.contains(message), "{error}");
        assert!(
            !error.message.contains("column") && !error.message.contains('\n'),
            "{error}"
        );
        let before = marked.split('«').next().unwrap();
        let line = before.split('\n').next_back().unwrap();
        let (line, column) = (before.matches('\n').count() + 1, line.chars().count() + 1);
        assert_eq!(error.place, Some((line, column)), "{error}\n{marked}");
        assert!(
            error
                .to_string()
                .starts_with(&format!("services.{extension}:{line}:{column}: ")),
            "{error}"
        );
    }

    /// Expects an error in an instance with these further lines, in each format.
    #[track_caller]
    fn refuses_instance(toml: &str, json: &str, yaml: &str, message: &str) {
        let head = "[[service]]\nname = \"web\"\n\n[[service.instance]]\nhost = \"h\"\n";
        refuses("toml", &format!("{head}{toml}\n"), message);
        let head = "{\"service\": [{\n  \"name\": \"web\",\n  \"instance\": [{\n    \"host\": \"h\",\n";
        refuses("json", &format!("{head}    {json}\n  }}]\n}}]}}\n"), message);
        let head = "service:\n  - name: web\n    instance:\n      - host: h\n";
        refuses("yml", &format!("{head}        {yaml}\n"), message);
    }

    #[test]
    fn the_three_formats_say_the_same() {
        let instances = vec![
            ServiceInstance::new("user-1", "10.0.1.10", 8080)
                .unwrap()
                .with_weight(Weight::new(2).unwrap())
                .with_tags(["canary", "v2"])
                .unwrap()
                .with_metadata([("zone", "us-west"), ("rack.unit", "7")])
                .with_status(RegistryStatus::Passing)
                .with_source(SOURCE),
            ServiceInstance::new("[::1]:8081", "::1", 8081)
                .unwrap()
                .with_source(SOURCE),
        ];
        let expected = vec![
            ("user-service".parse().unwrap(), instances),
            ("empty".parse().unwrap(), vec![]),
        ];
        for (name, text) in [("a.toml", TOML), ("a.json", JSON), ("a.yaml", YAML), ("a.YML", YAML)] {
            assert_eq!(
                parse(Path::new(name), text.as_bytes(), None).as_ref(),
                Ok(&expected),
                "{name}"
            );
            let with_mark = format!("\u{feff}{text}");
            assert_eq!(
                parse(Path::new(name), with_mark.as_bytes(), None).as_ref(),
                Ok(&expected),
                "{name} with a byte order mark"
            );
        }
    }

    #[test]
    fn an_empty_registry_must_be_written() {
        for (name, text) in [
            ("a.toml", "service = []"),
            ("a.json", "{\"service\": []}"),
            ("a.json", "[]"),
            ("a.yaml", "service: []"),
            ("a.yaml", "# none\n[]\n"),
        ] {
            assert_eq!(parse(Path::new(name), text.as_bytes(), None), Ok(vec![]), "{name}");
        }
    }

    #[test]
    fn a_file_that_does_not_say_what_it_lists_is_refused() {
        for (name, text) in [
            ("a.toml", ""),
            ("a.toml", " \n\t\r\n"),
            ("a.toml", "# rendered: none\n"),
            ("a.json", ""),
            ("a.json", "null"),
            ("a.json", "{}"),
            ("a.json", "{\"service\": null}"),
            ("a.json", "{\"service\": [{\"name\": \"a\", \"instance\": null}]}"),
            ("a.yaml", " \n"),
            ("a.yaml", "# rendered: none\n"),
            ("a.yaml", "---\n"),
            ("a.yaml", "---\n# none\n...\n"),
            ("a.yaml", "null\n"),
            ("a.yaml", "~"),
            ("a.yaml", "{}\n"),
            ("a.yaml", "service:\n"),
            ("a.yaml", "service: null\n"),
            ("a.yaml", "service:\n  - name: a\n    instance:\n"),
        ] {
            let error = parse(Path::new(name), text.as_bytes(), None).expect_err(text);
            let named = ["service", "a list with a table for each instance"];
            assert!(
                named.iter().any(|named| error.message.contains(named)),
                "{text:?}: {error}"
            );
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_the_expected_keys() {
        let message =
            "unknown field `wieght`, expected one of `id`, `host`, `port`, `weight`, `tags`, `metadata`, `status`";
        refuses_instance(
            "«wieght = 3\nport = 1",
            "«\"wieght\": 3,\n\"port\": 1",
            "«wieght: 3\n        port: 1",
            message,
        );
        let message = "unknown field `services`, expected `service`";
        refuses("toml", "[[«services]]\nname = \"a\"\n", message);
        refuses("json", "{\n  «\"services\": []\n}", message);
        refuses("yaml", "«services:\n  - name: a\n", message);
    }

    #[test]
    fn numbers_have_a_range() {
        let weight = "weight: expected 0 to 65535";
        refuses_instance(
            "port = 1\nweight = «65536",
            "\"port\": 1, \"weight\": «65536",
            "port: 1\n        weight: «65536",
            weight,
        );
        let port = "port: expected 1 to 65535";
        refuses_instance("port = «0", "\"port\":«0", "port:  «0", port);
        refuses_instance(
            "port = «65536",
            "\"port\": «65536",
            "port: «65536",
            "port: expected 1 to 65535",
        );
        refuses_instance("port = «-1", "\"port\": «-1", "port: «-1", "port: expected 1 to 65535");
        refuses_instance(
            "port = «1.5",
            "\"port\": «1.5",
            "port: «1.5",
            "expected a port from 1 to 65535",
        );
        refuses_instance(
            "port = «\"80\"",
            "\"port\": «\"80\"",
            "port: «\"80\"",
            "expected a port from 1 to 65535",
        );
    }

    #[test]
    fn texts_have_rules() {
        let status = "status (2 characters): expected passing, warning, critical, maintenance or unknown";
        refuses_instance(
            "port = 1\nstatus = «\"up\"",
            "\"port\": 1, \"status\": «\"up\"",
            "port: 1\n        status: «up",
            status,
        );
        let tag = "tag (0 characters): expected at least one character";
        refuses_instance(
            "port = 1\ntags = [\n\"ä\", «\"\"]",
            "\"port\": 1, \"tags\": [\"ä\",\n«\"\"]",
            "port: 1\n        tags: [ä, «\"\"]",
            tag,
        );
        let id = "instance id (0 characters): expected 1 to 512 bytes";
        refuses_instance(
            "port = 1\nid = «\"\"",
            "\"port\": 1, \"id\": «\"\"",
            "port: 1\n        id: «\"\"",
            id,
        );
        let host = "host (3 characters): expected an IP address or a host name that does not end in a number";
        refuses(
            "toml",
            "[[service]]\nname = \"a\"\ninstance = [{ port = 1, host = «\"a b\" }]",
            host,
        );
        refuses(
            "json",
            r#"{"service": [{"name": "a", "instance": [{"port": 1, "host": «"a b"}]}]}"#,
            host,
        );
        refuses("yaml", "service: [{name: a, instance: [{port: 1, host: «a b}]}]", host);
        let name = "service name (4 characters): expected 1 to 253 bytes";
        refuses("toml", "[[service]]\nname = «\"a//b\"\n", name);
        refuses("json", r#"{"service": [{"name": «"a//b"}]}"#, name);
        refuses("yaml", "service:\n  - name: «a//b\n", name);
    }

    #[test]
    fn two_spellings_of_a_name_are_one_service() {
        let instance = |name: &str, port: u16| {
            format!(
                "[[service]]\nname = \"{name}\"\n[[service.instance]]\nid = \"{port}\"\nhost = \"h\"\nport = {port}\n"
            )
        };
        let text = instance("Redis", 1) + &instance("web", 1) + &instance("redis", 2);
        let services = parse(Path::new("s.toml"), text.as_bytes(), None).unwrap();
        let shown: Vec<_> = services
            .iter()
            .map(|(name, instances)| (name.as_str(), instances.len()))
            .collect();
        assert_eq!(shown, [("Redis", 2), ("web", 1)]);
        let text = instance("Redis", 1) + &instance("redis", 1);
        let error = parse(Path::new("s.toml"), text.as_bytes(), None).unwrap_err();
        assert_eq!(
            error.to_string(),
            "s.toml: instance 1 of service Redis is listed twice, in two spellings of the service"
        );
    }

    #[test]
    fn a_missing_field_is_reported_where_its_table_begins() {
        refuses(
            "toml",
            "[[service]]\nname = \"a\"\n\n«[[service.instance]]\nhost = \"h\"\n",
            "missing field `port`",
        );
        refuses(
            "json",
            "{\"service\": [{\"name\": \"a\", \"instance\": [\n «{\n  \"host\": \"h\", \"metadata\": {\"{\\\"\": \"}]\\\\\"}\n }]}]}",
            "missing field `port`",
        );
        refuses(
            "json",
            "{\"service\": [{\"name\": \"a\", \"instance\": [\n «{\n  \"host\": \"h\"\n }]}]}",
            "missing field `port`",
        );
        refuses(
            "yaml",
            "service:\n  - name: a\n    instance:\n      - «host: h\n",
            "missing field `port`",
        );
        refuses("toml", "«[[service]]\n", "missing field `name`");
        refuses("json", "{\"service\": [«{\"instance\": []}]}", "missing field `name`");
        refuses("yaml", "service:\n  - «instance: []\n", "missing field `name`");
    }

    #[test]
    fn a_service_is_listed_once() {
        let message = "service `a` is listed twice";
        refuses(
            "toml",
            "[[service]]\nname = \"a\"\n\n«[[service]]\nname = \"a\"\n",
            message,
        );
        refuses(
            "json",
            "{\"service\": [\n  {\"name\": \"a\"},\n  «{\"name\": \"a\"}\n]}",
            message,
        );
        refuses("yaml", "service:\n  - name: a\n  - «name: a\n", message);
    }

    #[test]
    fn an_id_is_listed_once_in_its_service_default_ids_included() {
        let message = "instance `h:1` is listed twice";
        let toml = "[[service]]\nname = \"a\"\n[[service.instance]]\nhost = \"h\"\nport = 1\n";
        refuses(
            "toml",
            &format!("{toml}\n«[[service.instance]]\nid = \"h:1\"\nhost = \"i\"\nport = 2\n"),
            message,
        );
        let json = "{\"service\": [{\"name\": \"a\", \"instance\": [{\"host\": \"h\", \"port\": 1},\n";
        refuses(
            "json",
            &format!("{json}«{{\"id\": \"h:1\", \"host\": \"i\", \"port\": 2}}]}}]}}"),
            message,
        );
        let yaml = "service:\n  - name: a\n    instance:\n      - {host: h, port: 1}\n";
        refuses(
            "yaml",
            &format!("{yaml}      - «{{id: 'h:1', host: i, port: 2}}\n"),
            message,
        );
        let other = format!("{toml}\n[[service]]\nname = \"b\"\n[[service.instance]]\nhost = \"h\"\nport = 1\n");
        assert!(
            parse(Path::new("a.toml"), other.as_bytes(), None).is_ok(),
            "another service is another matter"
        );
    }

    #[test]
    fn a_key_is_written_once() {
        refuses("toml", "[[service]]\nname = \"a\"\n«name = \"b\"\n", "duplicate key");
        refuses(
            "json",
            "{\"service\": [{\"name\": \"a\",\n«\"name\": \"b\"}]}",
            "duplicate field `name`",
        );
        refuses(
            "yaml",
            "service:\n  - «name: a\n    name: b\n",
            "duplicate field `name`",
        );
        let metadata = "metadata `k` is listed twice";
        let json = "{\"service\": [{\"name\": \"a\", \"instance\": [{\"host\": \"h\", \"port\": 1,\n";
        refuses(
            "json",
            &format!("{json}\"metadata\": {{\"k\": \"1\", «\"k\": \"2\"}}}}]}}]}}"),
            metadata,
        );
        let yaml = "service:\n  - name: a\n    instance:\n      - host: h\n        port: 1\n";
        refuses("yaml", &format!("{yaml}        metadata: «{{k: 1, k: 2}}\n"), metadata);
    }

    #[test]
    fn a_syntax_error_has_its_place() {
        refuses(
            "toml",
            "[[service]]\nname = \"a\"\n[[service«\n",
            "unclosed array table",
        );
        refuses(
            "json",
            "{\"service\": [\n  {\"name\": \"a\" «\"instance\": []}\n]}",
            "expected `,` or `}`",
        );
        refuses("json", "{\"service\": [«\n", "EOF while parsing a list");
        refuses(
            "yaml",
            "service:\n  - name: a\n «name: c\n",
            "did not find expected key",
        );
        refuses("yaml", "service: «*x\n", "unknown anchor");
    }

    #[test]
    fn a_shape_that_is_not_a_registry_is_refused() {
        for (name, text) in [("a.json", "null"), ("a.json", "3"), ("a.yaml", "x")] {
            let error = parse(Path::new(name), text.as_bytes(), None).unwrap_err();
            assert!(error.message.contains("a table with the key `service`"), "{error}");
        }
        let list = "a list with a table for each service";
        refuses("toml", "service = «3", list);
        refuses("json", "{\"service\": «3}", list);
        refuses("yaml", "service: «3", list);
        let service = "a service: a table with `name` and `instance`";
        refuses("toml", "service = [«3]", service);
        refuses("json", "{\"service\": [«3]}", service);
        refuses("yaml", "service: [«3]", service);
        let two = parse(Path::new("a.yaml"), b"service: []\n---\nservice: []\n", None).unwrap_err();
        assert!(two.message.contains("more than one document"), "{two}");
    }

    #[test]
    fn bytes_that_are_not_text_have_their_place() {
        let error = parse(Path::new("a.toml"), b"# \xc3\xa4\nname = \"\xff\"", None).unwrap_err();
        assert_eq!(error.to_string(), "a.toml:2:9: this is not UTF-8 text");
    }

    #[test]
    fn the_extension_names_the_format() {
        for name in ["services", "services.ini", "toml"] {
            let error = parse(Path::new(name), TOML.as_bytes(), None).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("{name}: expected a name that ends in .toml, .json, .yaml or .yml")
            );
        }
    }
}
