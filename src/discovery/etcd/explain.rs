//! What keys and values would become: for a user whose keys are not read as expected.
//!
//! Pure. The keys come from a dump, as `etcdctl get --prefix PREFIX -w json` prints it, and not from
//! etcd, so that the result is the same wherever it is asked for.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::formats::{Prefix, Registration};
use crate::discovery::shared::json_reason;

/// A key and its value, as they are in etcd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The key.
    pub key: Vec<u8>,
    /// The value.
    pub value: Vec<u8>,
}

/// What a key and its value would become.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Explained {
    /// What the key registers, or why not.
    pub outcome: KeyOutcome,
    /// The service and the instance that versions up to 0.1 took from the key, if the key has moved
    /// since.
    pub formerly: Option<(String, String)>,
}

/// What a key registers, or why not.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum KeyOutcome {
    /// These instances. None, if the value is valid and says that there is no instance.
    Registers(Registration),
    /// Nothing, on purpose: the key is a folder, or does not match the path of its prefix.
    Ignored(String),
    /// Nothing. An agent counts the key as `invalid_instance`, or as `no_port`.
    Refused(String),
    /// Nothing: no prefix includes the key.
    NotWatched,
}

/// Explains one key. Reasons contain no part of the value.
#[must_use]
pub fn explain(prefixes: &[Prefix], pair: &Pair) -> Explained {
    let Some(prefix) = prefixes.iter().find(|prefix| prefix.covers(&pair.key)) else {
        return Explained {
            outcome: KeyOutcome::NotWatched,
            formerly: None,
        };
    };
    let outcome = match prefix.read(&pair.key, &pair.value) {
        Ok(registration) => KeyOutcome::Registers(registration),
        Err(error) if error.is_counted() => KeyOutcome::Refused(format!("{error} ({} bytes)", pair.value.len())),
        Err(error) => KeyOutcome::Ignored(error.to_string()),
    };
    let key = std::str::from_utf8(&pair.key).ok();
    Explained {
        outcome,
        formerly: key.and_then(|key| prefix.formerly(key)),
    }
}

/// Reads what `etcdctl get --prefix PREFIX -w json` prints, once or several times in a row.
///
/// # Errors
///
/// When the text is no such answer. The error contains no part of the text.
pub fn parse_dump(text: &[u8]) -> Result<Vec<Pair>, String> {
    #[derive(Deserialize)]
    struct Answer {
        // Go leaves out empty lists and empty values.
        #[serde(default)]
        kvs: Vec<Written>,
        // Every answer of etcd has a header. What has none is another JSON.
        #[serde(rename = "header")]
        _header: serde::de::IgnoredAny,
    }
    #[derive(Deserialize)]
    struct Written {
        key: String,
        #[serde(default)]
        value: String,
    }
    let mut pairs = Vec::new();
    for answer in serde_json::Deserializer::from_slice(text).into_iter::<Answer>() {
        for Written { key, value } in answer.map_err(|error| json_reason(&error))?.kvs {
            let bytes = |text: &str| {
                STANDARD
                    .decode(text)
                    .map_err(|_| "a key or value that is not base64".to_owned())
            };
            pairs.push(Pair {
                key: bytes(&key)?,
                value: bytes(&value)?,
            });
        }
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As etcdctl 3.4 prints it, for `/services/web/a` = `10.0.0.1:80` and an empty
    /// `/services/web/b`.
    const DUMP: &str = r#"{"header":{"cluster_id":14841639068965178418,"member_id":10276657743932975437,"revision":3,"raft_term":2},"kvs":[{"key":"L3NlcnZpY2VzL3dlYi9h","create_revision":2,"mod_revision":2,"version":1,"value":"MTAuMC4wLjE6ODA="},{"key":"L3NlcnZpY2VzL3dlYi9i","create_revision":3,"mod_revision":3,"version":1}],"count":2}"#;

    fn pair(key: &str, value: &str) -> Pair {
        Pair {
            key: key.into(),
            value: value.into(),
        }
    }

    #[test]
    fn a_dump_is_read_as_etcdctl_prints_it() {
        let both = [pair("/services/web/a", "10.0.0.1:80"), pair("/services/web/b", "")];
        assert_eq!(parse_dump(DUMP.as_bytes()).unwrap(), both);
        let twice = parse_dump(format!("{DUMP}\n{DUMP}\n").as_bytes()).unwrap();
        assert_eq!(twice.len(), 4, "one answer for each prefix");
        let empty = br#"{"header":{"revision":1}}"#;
        assert_eq!(parse_dump(empty).unwrap(), []);
        assert_eq!(parse_dump(b"").unwrap(), []);
    }

    #[test]
    fn what_is_no_dump_is_refused_without_repeating_it() {
        for (text, told) in [
            ("/services/web/a\nS3cr3t", "expected value at line 1 column 1"),
            (r#"{"kvs":[]}"#, "missing field `header` at line 1 column 10"),
            (
                r#"{"header":{},"kvs":"S3cr3t"}"#,
                "invalid type: string (6 characters), expected a sequence at line 1 column 27",
            ),
            (
                r#"{"header":{},"kvs":[{"key":"S3cr3t!"}]}"#,
                "a key or value that is not base64",
            ),
        ] {
            assert_eq!(parse_dump(text.as_bytes()).unwrap_err(), told);
        }
    }

    #[test]
    fn each_key_is_explained_by_its_own_prefix() {
        let path = "{service}/providers/{instance}".parse().unwrap();
        let prefixes = [
            Prefix::new("/services").unwrap(),
            Prefix::new("/dubbo").unwrap().with_path(path),
        ];
        let explained = |key: &str, value: &str| {
            let Explained { outcome, formerly } = explain(&prefixes, &pair(key, value));
            let outcome = match outcome {
                KeyOutcome::Registers(registration) => {
                    format!("{} {}", registration.service, registration.instances.len())
                }
                KeyOutcome::Ignored(why) => format!("ignored: {why}"),
                KeyOutcome::Refused(why) => format!("refused: {why}"),
                KeyOutcome::NotWatched => "not watched".to_owned(),
            };
            let formerly = formerly.map(|(service, id)| format!("{service}/{id}"));
            (outcome, formerly.unwrap_or_default())
        };
        for (key, value, outcome, formerly) in [
            ("/services/web/a", "10.0.0.1:80", "web 1", ""),
            (
                "/services/team-a/payments/evil",
                "10.0.0.1:80",
                "refused: deeper than <service>/<instance> below the prefix: set `path` for such keys (11 bytes)",
                "payments/evil",
            ),
            (
                "/services/db/password",
                "S3cr3t",
                "refused: host: expected an IP address or a host name that does not end in a number (6 bytes)",
                "",
            ),
            ("/dubbo/web/providers/a", "10.0.0.1:80", "web 1", "providers/a"),
            (
                "/dubbo/web/consumers/a",
                "x",
                "ignored: the key does not match the path of its prefix",
                "consumers/a",
            ),
            ("/other/web/a", "10.0.0.1:80", "not watched", ""),
        ] {
            let expected = (outcome.to_owned(), formerly.to_owned());
            assert_eq!(explained(key, value), expected, "{key}");
        }
    }
}
