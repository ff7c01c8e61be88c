//! What Consul says about the rights of the token.

use reqwest::StatusCode;
use serde::Deserialize;

/// The answer to one question of `/v1/internal/acl/authorize`.
#[derive(Deserialize)]
struct Decision {
    #[serde(rename = "Allow", default)]
    allow: bool,
}

/// Whether all of so many questions are answered with yes.
pub(super) fn all_allowed(body: &[u8], questions: usize) -> bool {
    serde_json::from_slice::<Vec<Decision>>(body)
        .is_ok_and(|found| found.len() == questions && found.iter().all(|decision| decision.allow))
}

/// Whether this answer, to a question about ACLs, says that Consul has no ACLs: then every request
/// may read everything.
pub(super) fn has_no_acls(status: StatusCode, body: &[u8]) -> bool {
    status == StatusCode::UNAUTHORIZED && body.trim_ascii() == b"ACL support disabled"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_full_set_of_yes_is_a_yes() {
        for (body, allowed) in [
            (r#"[{"Allow":true},{"Allow":true,"Resource":"service"}]"#, true),
            (r#"[{"Allow":true},{"Allow":false}]"#, false),
            (r#"[{"Allow":true}]"#, false),
            (r#"[{"Allow":true},{}]"#, false),
            (r#"{"Allow":true}"#, false),
            ("", false),
        ] {
            assert_eq!(all_allowed(body.as_bytes(), 2), allowed, "{body}");
        }
    }

    #[test]
    fn only_consul_without_acls_says_so() {
        assert!(has_no_acls(StatusCode::UNAUTHORIZED, b"ACL support disabled\n"));
        assert!(!has_no_acls(StatusCode::UNAUTHORIZED, b"Unauthorized"));
        assert!(!has_no_acls(StatusCode::FORBIDDEN, b"ACL support disabled"));
    }
}
