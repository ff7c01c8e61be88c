//! Which parts of a key are the service and the instance.
//!
//! ```text
//! prefix /services/                              prefix /dubbo/, path {service}/providers/{instance}
//!
//! /services/web/web-1                            /dubbo/com.foo.Bar/providers/10.0.0.5:20880
//!           └┬┘ └─┬─┘                                   └── service ┘ literal └ instance ──┘
//!      service    instance
//! ```
//!
//! etcd grants rights by prefix. So the service of a key is the first segment below the prefix,
//! and never a later segment: a registrar that may write below `/services/team-a/` alone registers
//! instances of `team-a` alone. Deeper keys are read only where a path says which segment is what.
//!
//! A path keeps folders apart: `{env}/{service}/{instance}` makes `prod:web` of `prod/web/a`. The
//! colon is in no part of such a name, so that no two folders share a name. A folder that the path
//! leaves out (`*`) is part of the id of the instance, so that no two keys share an id.

use std::fmt;
use std::str::FromStr;

use super::InvalidPrefix;
use super::registration::InvalidRegistration;

/// Joins the parts of a service's name.
const JOINT: char = ':';

/// The service and the instance of a key, as they stand in the key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Located {
    pub(super) service: String,
    pub(super) id: String,
}

impl Located {
    fn new(service: &str, id: &str) -> Self {
        Self {
            service: service.to_owned(),
            id: id.to_owned(),
        }
    }
}

/// A pattern of the keys below a prefix, as `{service}/providers/{instance}`.
///
/// Each segment is one of:
///
/// - `{service}`: the name of the service. Exactly once.
/// - `{instance}`: the id of the instance. At most once; without it each key is a service.
/// - another name in braces, as `{env}`: a folder that keeps services apart. The name of the
///   service has all of these parts in their order, joined by colons: `prod:web`.
/// - `*`: a folder that is left out. Services of one name in two such folders are one service.
/// - any other text: itself. A key with another segment there is not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPath {
    segments: Vec<Segment>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Service,
    Instance,
    Folder(String),
    LeftOut,
}

impl KeyPath {
    /// The service and the instance of the rest of a key.
    pub(super) fn locate(&self, below: &str) -> Result<Located, InvalidRegistration> {
        let found = segments(below);
        if found.len() != self.segments.len() {
            return Err(InvalidRegistration::Elsewhere);
        }
        let (mut names, mut ids, mut service) = (Vec::new(), Vec::new(), "");
        for (segment, text) in self.segments.iter().zip(found) {
            match segment {
                Segment::Literal(literal) if literal == text => {}
                Segment::Literal(_) => return Err(InvalidRegistration::Elsewhere),
                _ if text.is_empty() => return Err(InvalidRegistration::EmptySegment),
                Segment::Service => {
                    service = text;
                    names.push(text);
                }
                Segment::Folder(_) => names.push(text),
                Segment::Instance | Segment::LeftOut => ids.push(text),
            }
        }
        if names.len() > 1 && names.iter().any(|name| name.contains(JOINT)) {
            return Err(InvalidRegistration::Joint);
        }
        if ids.is_empty() {
            ids.push(service);
        }
        Ok(Located {
            service: names.join(&JOINT.to_string()),
            id: ids.join("/"),
        })
    }
}

impl FromStr for KeyPath {
    type Err = InvalidPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidPrefix> {
        let refused = |problem| InvalidPrefix::Path {
            found: text.to_owned(),
            problem,
        };
        let written = text.strip_prefix('/').unwrap_or(text);
        let segments: Vec<Segment> = segments(written)
            .into_iter()
            .map(|segment| Segment::parse(segment).map_err(refused))
            .collect::<Result<_, _>>()?;
        let times = |wanted: &Segment| segments.iter().filter(|segment| *segment == wanted).count();
        if times(&Segment::Service) != 1 {
            return Err(refused("expected {service} once"));
        }
        if times(&Segment::Instance) > 1 {
            return Err(refused("expected {instance} at most once"));
        }
        let named = |segment: &&Segment| matches!(segment, Segment::Folder(_));
        if segments.iter().filter(named).any(|folder| times(folder) > 1) {
            return Err(refused("expected each name once"));
        }
        Ok(Self { segments })
    }
}

impl Segment {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let name = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}'));
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        match (text, name) {
            ("", _) => Err("expected no empty segment"),
            ("*", _) => Ok(Self::LeftOut),
            (_, Some("service")) => Ok(Self::Service),
            (_, Some("instance")) => Ok(Self::Instance),
            (_, Some(name)) if !name.is_empty() && name.bytes().all(is_word) => Ok(Self::Folder(name.to_owned())),
            _ if text.contains(['{', '}', '*']) => {
                Err("expected each segment to be a text, * or a name in braces, as {service}")
            }
            _ => Ok(Self::Literal(text.to_owned())),
        }
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, segment) in self.segments.iter().enumerate() {
            let slash = if index == 0 { "" } else { "/" };
            match segment {
                Segment::Literal(text) => write!(f, "{slash}{text}")?,
                Segment::Service => write!(f, "{slash}{{service}}")?,
                Segment::Instance => write!(f, "{slash}{{instance}}")?,
                Segment::Folder(name) => write!(f, "{slash}{{{name}}}")?,
                Segment::LeftOut => write!(f, "{slash}*")?,
            }
        }
        Ok(())
    }
}

/// `<service>/<instance>`: the rest of a key below a prefix without a path.
pub(super) fn two_segments(below: &str) -> Result<Located, InvalidRegistration> {
    match *segments(below) {
        ["", _] | [_, ""] => Err(InvalidRegistration::EmptySegment),
        [service, id] => Ok(Located::new(service, id)),
        [_] => Err(InvalidRegistration::NoService),
        _ => Err(InvalidRegistration::TooDeep),
    }
}

/// `<instance>`, or `<service>/<instance>`: in go-zero, the prefix may be the key of one service.
pub(super) fn service_is_prefix(prefix: &str, below: &str) -> Result<Located, InvalidRegistration> {
    match *segments(below) {
        [""] => Err(InvalidRegistration::EmptySegment),
        [id] => {
            let service = segments(prefix.trim_end_matches('/')).pop().unwrap_or_default();
            Ok(Located::new(service, id))
        }
        _ => two_segments(below),
    }
}

/// The rule of pickd 0.1, for the report of what has changed: the last segment of a key is the
/// instance, and the segment before it the service.
pub(super) fn former(key: &str) -> Option<Located> {
    let (parents, id) = key.rsplit_once('/')?;
    let service = parents.rsplit('/').next().unwrap_or_default();
    (!service.is_empty() && !id.is_empty()).then(|| Located::new(service, id))
}

/// The segments of a key. The slashes of `://` separate none: jupiter and ego write the URL of an
/// instance as the last segment.
fn segments(text: &str) -> Vec<&str> {
    let (mut found, mut start, mut at) = (Vec::new(), 0, 0);
    let bytes = text.as_bytes();
    while let Some(byte) = bytes.get(at) {
        if bytes[at..].starts_with(b"://") && at > start {
            at += 3;
            continue;
        }
        if *byte == b'/' {
            found.push(&text[start..at]);
            start = at + 1;
        }
        at += 1;
    }
    found.push(&text[start..]);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `service id`, or the reason.
    fn shown(located: Result<Located, InvalidRegistration>) -> String {
        match located {
            Ok(located) => format!("{} {}", located.service, located.id),
            Err(error) => error.to_string(),
        }
    }

    fn read(path: &str, below: &str) -> String {
        shown(path.parse::<KeyPath>().unwrap().locate(below))
    }

    const ELSEWHERE: &str = "the key does not match the path of its prefix";

    #[test]
    fn the_first_segment_is_the_service_and_the_last_the_instance() {
        for (below, expected) in [
            ("web/a", "web a"),
            ("app/grpc://10.0.0.1:9092", "app grpc://10.0.0.1:9092"),
            (
                "team-a/payments/evil",
                "deeper than <service>/<instance> below the prefix: set `path` for such keys",
            ),
            (
                "web",
                "directly below the prefix, without a service: set `service` or `path` for such keys",
            ),
            ("/a", "a segment of the key is empty"),
            ("web/", "a segment of the key is empty"),
            (
                "web//a",
                "deeper than <service>/<instance> below the prefix: set `path` for such keys",
            ),
        ] {
            assert_eq!(shown(two_segments(below)), expected, "{below}");
        }
    }

    #[test]
    fn a_path_names_the_segments() {
        for (path, below, expected) in [
            (
                "/{service}/providers/{instance}",
                "com.foo.Bar/providers/10.0.0.5:20880",
                "com.foo.Bar 10.0.0.5:20880",
            ),
            (
                "{service}/providers/{instance}",
                "app/providers/grpc://10.0.0.5:9092",
                "app grpc://10.0.0.5:9092",
            ),
            ("{service}/providers/{instance}", "app/consumers/1", ELSEWHERE),
            ("{service}/providers/{instance}", "app/providers", ELSEWHERE),
            ("{service}/providers/{instance}", "app/providers/a/b", ELSEWHERE),
            (
                "{service}/loadbalancer/servers/{instance}/url",
                "my/loadbalancer/servers/0/url",
                "my 0",
            ),
            ("{service}", "web", "web web"),
            ("*/{service}", "eu/web", "web eu"),
            ("{service}/{instance}", "web/", "a segment of the key is empty"),
        ] {
            assert_eq!(read(path, below), expected, "{path} {below}");
        }
    }

    #[test]
    fn folders_keep_services_apart_unless_they_are_left_out() {
        let path = "/{env}/{service}/{version}/{instance}";
        assert_eq!(read(path, "prod/web/v1/a"), "prod:web:v1 a");
        assert_eq!(read(path, "test/web/v1/a"), "test:web:v1 a");
        // Otherwise `a:b/c` and `a/b:c` were one service, and rights for one were rights for both.
        for below in ["a:b/c/v1/i", "a/b:c/v1/i"] {
            assert_eq!(
                read(path, below),
                "a colon in a name that the path joins with other names",
                "{below}"
            );
        }
        assert_eq!(read("*/{service}/{instance}", "eu/web/web-0"), "web eu/web-0");
        assert_eq!(read("*/{service}/{instance}", "us/web/web-0"), "web us/web-0");
        assert_eq!(read("*/{service}/{instance}", "us/a:b/web-0"), "a:b us/web-0");
    }

    #[test]
    fn a_path_is_checked() {
        for (path, problem) in [
            ("", "expected no empty segment"),
            ("{service}//{instance}", "expected no empty segment"),
            ("{service}/{instance}/", "expected no empty segment"),
            ("{instance}", "expected {service} once"),
            ("{service}/{service}", "expected {service} once"),
            ("{service}/{instance}/{instance}", "expected {instance} at most once"),
            ("{env}/{env}/{service}", "expected each name once"),
            (
                "v{version}/{service}",
                "expected each segment to be a text, * or a name in braces, as {service}",
            ),
            (
                "{}/{service}",
                "expected each segment to be a text, * or a name in braces, as {service}",
            ),
            (
                "**/{service}",
                "expected each segment to be a text, * or a name in braces, as {service}",
            ),
        ] {
            let error = path.parse::<KeyPath>().unwrap_err();
            assert_eq!(error.to_string(), format!("{path:?}: {problem}"));
        }
        let path = "/{env}/*/x/{service}/{instance}".parse::<KeyPath>().unwrap();
        assert_eq!(path.to_string(), "{env}/*/x/{service}/{instance}");
    }

    #[test]
    fn in_go_zero_the_prefix_may_be_the_key_of_one_service() {
        assert_eq!(shown(service_is_prefix("user.rpc/", "7587")), "user.rpc 7587");
        assert_eq!(shown(service_is_prefix("/a/user.rpc/", "7587")), "user.rpc 7587");
        assert_eq!(shown(service_is_prefix("/a/", "user.rpc/7587")), "user.rpc 7587");
        assert!(shown(service_is_prefix("/a/", "b/user.rpc/7587")).starts_with("deeper"));
    }

    #[test]
    fn the_former_rule_took_the_last_two_segments() {
        assert_eq!(
            former("/services/team-a/payments/evil"),
            Some(Located::new("payments", "evil"))
        );
        assert_eq!(former("/services/web"), Some(Located::new("services", "web")));
        assert_eq!(former("/web"), None);
    }
}
