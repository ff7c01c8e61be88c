//! `[api]` and `--listen`.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::address::{self, listen};
use super::checker::{Checker, DAY, RawDuration};
use crate::api::server::{Listen, SocketAccess};

/// `[api]`
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ApiConfig {
    /// Addresses to listen on: at least one, and none twice unless its port is 0.
    pub listen: Vec<Listen>,
    /// Further hosts that requests over a loopback listener may name, in lower case, without ports.
    pub allowed_hosts: Vec<String>,
    /// After this time one synced source is enough to be ready.
    pub ready_timeout: Duration,
    /// The file with the admin token. Overrides need the token over listeners that are neither
    /// loopback nor Unix sockets.
    pub admin_token_file: Option<PathBuf>,
    /// The file with the key that signs session tokens. `None`: a random key of this agent.
    pub session_key_file: Option<PathBuf>,
    /// Mode and group of Unix sockets.
    pub socket: SocketAccess,
}

/// `[api]`
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a table")]
pub(super) struct RawApi {
    listen: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    allowed_hosts: Vec<Spanned<String>>,
    ready_timeout: Option<RawDuration>,
    admin_token_file: Option<Spanned<String>>,
    session_key_file: Option<Spanned<String>>,
    socket_mode: Option<Spanned<String>>,
    socket_group: Option<Spanned<String>>,
}

impl Checker<'_> {
    /// The settings; `flags` listen in place of the file, unless there are none.
    pub(super) fn api(&mut self, raw: &RawApi, flags: &[Listen]) -> ApiConfig {
        let mut listening = Vec::new();
        if let Some(written) = &raw.listen {
            if written.get_ref().is_empty() {
                self.refuse(written.span(), "api.listen: expected at least one address");
            }
            for address in written.get_ref() {
                match listen(address.get_ref()) {
                    Ok(read) if !is_any_port(&read) && listening.contains(&read) => {
                        self.refuse(address.span(), format!("api.listen: {read} is listed twice"));
                    }
                    Ok(read) => listening.push(read),
                    Err(error) => self.refuse(address.span(), format!("api.listen {error}")),
                }
            }
        } else {
            listening.push(SocketAddr::from(([127, 0, 0, 1], 7425)).into());
        }
        if !flags.is_empty() {
            let mut seen = HashSet::new();
            listening = flags.to_vec();
            listening.retain(|address| is_any_port(address) || seen.insert(address.clone()));
        }

        let mut allowed_hosts = Vec::new();
        for host in &raw.allowed_hosts {
            match address::allowed_host(host.get_ref()) {
                Ok(host) => allowed_hosts.push(host),
                Err(error) => self.refuse(host.span(), format!("api.allowed_hosts: {error}, without a port")),
            }
        }
        let ready_timeout = self.duration(
            "api.ready_timeout",
            raw.ready_timeout.as_ref(),
            Duration::from_secs(30),
            (Duration::ZERO, DAY),
        );
        let socket = self.socket(raw, &listening);
        ApiConfig {
            listen: listening,
            allowed_hosts,
            ready_timeout,
            admin_token_file: self
                .path_from(None, raw.admin_token_file.as_ref())
                .map(|given| given.value),
            session_key_file: self
                .path_from(None, raw.session_key_file.as_ref())
                .map(|given| given.value),
            socket,
        }
    }

    /// Mode and group of Unix sockets. Without a Unix socket these settings would have no effect,
    /// so they are refused.
    fn socket(&mut self, raw: &RawApi, listening: &[Listen]) -> SocketAccess {
        let mut access = SocketAccess::default();
        if let Some(written) = &raw.socket_mode {
            let text = written.get_ref();
            match u32::from_str_radix(text, 8) {
                Ok(mode @ 0..=0o777) if !text.starts_with('+') => access.mode = mode,
                _ => {
                    let message = format!("api.socket_mode {text:?}: expected permissions in octal, such as \"0660\"");
                    self.refuse(written.span(), message);
                }
            }
        }
        if let Some(written) = &raw.socket_group {
            let text = written.get_ref();
            if text.chars().any(|c| c == ':' || c.is_control() || c.is_whitespace()) {
                let message = format!("api.socket_group {text:?}: expected a group's name or number");
                self.refuse(written.span(), message);
            }
            access.group = (!text.is_empty()).then(|| text.clone());
        }
        let in_file = raw.listen.iter().flat_map(|listen| listen.get_ref());
        let any = listening.iter().any(|listen| matches!(listen, Listen::Unix(_)))
            || in_file.map(Spanned::get_ref).any(|listen| listen.starts_with("unix:"));
        let default = SocketAccess::default();
        let set = [
            ("socket_mode", &raw.socket_mode, access.mode != default.mode),
            ("socket_group", &raw.socket_group, access.group != default.group),
        ];
        for (key, written, differs) in set {
            if let Some(written) = written.as_ref().filter(|_| differs && !any) {
                self.refuse(written.span(), format!("api.{key}: needs a Unix socket in api.listen"));
            }
        }
        access
    }
}

/// Whether the system chooses the port. Such an address may be listed more than once.
fn is_any_port(listen: &Listen) -> bool {
    matches!(listen, Listen::Tcp(address) if address.port() == 0)
}

#[cfg(test)]
mod tests {
    use super::super::Flags;
    use super::super::tests::{read, refused_once, with};
    use super::*;

    #[test]
    fn settings_of_the_api_are_checked() {
        for (text, refusal) in [
            (
                "[api]\nlisten = []",
                "p.toml:2:10: api.listen: expected at least one address",
            ),
            (
                "[api]\nlisten = [\n  \"127.0.0.1:1\",\n  \":7425\",\n]",
                "p.toml:4:3: api.listen \":7425\": expected \"ip:port\" or \"localhost:port\", such as \"127.0.0.1:7425\" \
                 or \"[::]:7425\", or \"unix:/path/to/socket\"",
            ),
            (
                "[api]\nlisten = [\"unix:pickd.sock\"]",
                "p.toml:2:11: api.listen \"unix:pickd.sock\": expected \"unix:/path/to/socket\", an absolute path of at most 90 \
                 bytes",
            ),
            (
                "[api]\nlisten = [\"unix:/run/p\", \"unix:///run/p\"]",
                "p.toml:2:26: api.listen: unix:/run/p is listed twice",
            ),
            (
                "[api]\nlisten = [\"unix:/p\"]\nsocket_mode = \"0880\"",
                "p.toml:3:15: api.socket_mode \"0880\": expected permissions in octal, such as \"0660\"",
            ),
            (
                "[api]\nlisten = [\"unix:/p\"]\nsocket_mode = \"4660\"",
                "p.toml:3:15: api.socket_mode \"4660\": expected permissions in octal, such as \"0660\"",
            ),
            (
                "[api]\nlisten = [\"unix:/p\"]\nsocket_group = \"a b\"",
                "p.toml:3:16: api.socket_group \"a b\": expected a group's name or number",
            ),
            (
                "[api]\nsocket_mode = \"0600\"",
                "p.toml:2:15: api.socket_mode: needs a Unix socket in api.listen",
            ),
            (
                "[api]\nsocket_group = \"ops\"",
                "p.toml:2:16: api.socket_group: needs a Unix socket in api.listen",
            ),
            (
                "[api]\nlisten = [\"127.0.0.1:1\", \"localhost:1\"]",
                "p.toml:2:26: api.listen: 127.0.0.1:1 is listed twice",
            ),
            (
                "[api]\nallowed_hosts = [\"a:80\"]",
                "p.toml:2:18: api.allowed_hosts: host \"a:80\": expected an IP address or a host name \
                 that does not end in a number, without a port",
            ),
            (
                "[metrics]\ninstance_series = -1",
                "p.toml:2:19: metrics.instance_series -1: expected 0 (off) to 100000",
            ),
            (
                "[api]\nready_timeout = \"25h\"",
                "p.toml:2:17: api.ready_timeout \"25h\": expected 0s to 24h",
            ),
        ] {
            assert_eq!(refused_once(text), refusal, "{text}");
        }
    }

    #[test]
    fn sockets_and_the_admin_token_are_read() {
        let config = read(
            "[api]\nlisten = [\"127.0.0.1:1\", \"unix:/run/pickd/pickd.sock\"]\nsocket_mode = \"0600\"\n\
             socket_group = \"ops\"\nadmin_token_file = \"secrets/admin\"\nsession_key_file = \"secrets/key\"\n[consul]",
        );
        assert_eq!(config.api.listen[1], Listen::Unix("/run/pickd/pickd.sock".into()));
        let socket = SocketAccess {
            mode: 0o600,
            group: Some("ops".to_owned()),
        };
        assert_eq!(config.api.socket, socket);
        assert_eq!(config.api.admin_token_file, Some("/etc/pickd/secrets/admin".into()));
        assert_eq!(config.api.session_key_file, Some("/etc/pickd/secrets/key".into()));
        let config = read("[api]\nadmin_token_file = \"\"\nsession_key_file = \"\"\n[consul]");
        assert_eq!(config.api.session_key_file, None);
        assert_eq!((config.api.admin_token_file, config.api.socket.mode), (None, 0o660));
    }

    #[test]
    fn settings_of_sockets_stand_while_a_flag_listens_elsewhere() {
        let flags = Flags {
            listen: vec![listen("127.0.0.1:2").unwrap()],
            ..Flags::default()
        };
        let text = "[api]\nlisten = [\"unix:/p\"]\nsocket_mode = \"0600\"\n[consul]";
        assert!(with(text, &[], flags).is_ok());
        let flags = Flags {
            listen: vec![listen("unix:/p").unwrap()],
            ..Flags::default()
        };
        assert!(with("[api]\nsocket_mode = \"0600\"\n[consul]", &[], flags).is_ok());
    }
}
