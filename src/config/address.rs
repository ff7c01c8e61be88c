//! Addresses as operators write them: listeners, registries, and hosts that requests may name.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

use crate::api::server::Listen;
use crate::balancer::{Address, InvalidInstance};

/// Why an address was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAddress {
    /// Not an address to listen on.
    #[error(
        "{found:?}: expected \"ip:port\" or \"localhost:port\", such as \"127.0.0.1:7425\" or \"[::]:7425\", or \
         \"unix:/path/to/socket\""
    )]
    Listen {
        /// The address as it came.
        found: String,
    },
    /// Not a path for a Unix socket.
    #[error("{found:?}: expected \"unix:/path/to/socket\", an absolute path of at most {LONGEST_SOCKET} bytes")]
    UnixListen {
        /// The address as it came.
        found: String,
    },
    /// Not the address of a Consul agent.
    #[error(
        "{found:?}: expected \"http://host:port\", \"https://host:port\", \"host:port\" or \"unix:///path/to/socket\""
    )]
    Consul {
        /// The address as it came.
        found: String,
    },
    /// The address contains a user or a password, which logs would show.
    #[error("a user and password do not belong in the address: set CONSUL_HTTP_AUTH")]
    ConsulUser,
    /// Not the address of a member of etcd.
    #[error("{found:?}: expected \"http://host:port\", \"https://host:port\" or \"host:port\"")]
    Etcd {
        /// The address as it came.
        found: String,
    },
    /// The address contains a user or a password, which logs would show.
    #[error("a user and password do not belong in the address: set etcd.username and etcd.password_file")]
    EtcdUser,
}

/// Linux accepts 107 bytes. While pickd binds a socket, the socket has a longer name in the same
/// folder.
const LONGEST_SOCKET: usize = 90;

/// Reads an address to listen on: `unix:/path`, or as [`listen_tcp`] does.
///
/// # Errors
///
/// When the text is no such address, or the path is relative or too long.
pub fn listen(text: &str) -> Result<Listen, InvalidAddress> {
    match socket_path(text) {
        Some(path) if path.len() <= LONGEST_SOCKET && !path.ends_with('/') => Ok(Listen::Unix(path.into())),
        _ if text.starts_with("unix:") => Err(InvalidAddress::UnixListen { found: text.to_owned() }),
        _ => listen_tcp(text).map(Listen::Tcp),
    }
}

/// The path in `unix:/path` or `unix:///path`.
#[must_use]
pub fn socket_path(text: &str) -> Option<&str> {
    let path = text.strip_prefix("unix:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    (path.starts_with('/') && !path.chars().any(char::is_control)).then_some(path)
}

/// Reads an IP address and a port to listen on. `localhost` is 127.0.0.1. At port 0 the system
/// chooses a port.
///
/// # Errors
///
/// When the text is neither `ip:port` nor `localhost:port`.
pub fn listen_tcp(text: &str) -> Result<SocketAddr, InvalidAddress> {
    let read = match text.strip_prefix("localhost:") {
        Some(port) => port
            .parse()
            .ok()
            .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
        None => text.parse().ok(),
    };
    read.ok_or_else(|| InvalidAddress::Listen { found: text.to_owned() })
}

/// Reads a host that requests may name, in lower case.
pub(super) fn allowed_host(text: &str) -> Result<String, InvalidInstance> {
    // An address needs a port, and any valid port serves to check the host.
    Address::new(text, 1).map(|address| address.host().to_ascii_lowercase())
}

/// Where a Consul agent is: a URL, `host:port`, or `unix:///path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsulAddress(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// `host:port`: plain HTTP unless something else asks for TLS.
    Bare(Address),
    /// `http` or `https`, without a slash at its end.
    Url(String),
    /// `unix:///path`
    Unix(String),
}

impl ConsulAddress {
    /// As a URL; `https` decides for a bare `host:port` only.
    #[must_use]
    pub fn url(&self, https: bool) -> String {
        match &self.0 {
            Form::Bare(address) if https => format!("https://{address}"),
            Form::Bare(address) => format!("http://{address}"),
            Form::Url(url) | Form::Unix(url) => url.clone(),
        }
    }

    /// The same with `https` in place of `http`, which is what `CONSUL_HTTP_SSL` asks for.
    pub(super) fn with_https(self) -> Self {
        match self.0 {
            Form::Url(url) => match url.strip_prefix("http://") {
                Some(rest) => Self(Form::Url(format!("https://{rest}"))),
                None => Self(Form::Url(url)),
            },
            form => Self(form),
        }
    }
}

impl FromStr for ConsulAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let refused = || InvalidAddress::Consul { found: text.to_owned() };
        let Some((scheme, rest)) = text.split_once("://") else {
            let address = text.parse().map_err(|_| refused())?;
            return Ok(Self(Form::Bare(address)));
        };
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Self(Form::Unix(text.to_owned()))),
            "http" | "https" => {
                let url = reqwest::Url::parse(text).map_err(|_| refused())?;
                if !url.username().is_empty() || url.password().is_some() {
                    return Err(InvalidAddress::ConsulUser);
                }
                if url.query().is_some() || url.fragment().is_some() {
                    return Err(refused());
                }
                Ok(Self(Form::Url(url.as_str().trim_end_matches('/').to_owned())))
            }
            _ => Err(refused()),
        }
    }
}

/// Where a member of etcd is: a URL or `host:port`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdAddress(Form);

impl EtcdAddress {
    /// As a URL; `https` decides for a bare `host:port` only.
    #[must_use]
    pub fn url(&self, https: bool) -> String {
        ConsulAddress(self.0.clone()).url(https)
    }
}

impl FromStr for EtcdAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        let refused = || InvalidAddress::Etcd { found: text.to_owned() };
        match text.parse::<ConsulAddress>() {
            Err(InvalidAddress::ConsulUser) => Err(InvalidAddress::EtcdUser),
            Ok(ConsulAddress(Form::Url(url))) => {
                // gRPC has no place for a path.
                let has_path = url.splitn(4, '/').nth(3).is_some();
                if has_path {
                    Err(refused())
                } else {
                    Ok(Self(Form::Url(url)))
                }
            }
            Ok(ConsulAddress(form @ Form::Bare(_))) => Ok(Self(form)),
            Ok(ConsulAddress(Form::Unix(_))) | Err(_) => Err(refused()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agent_listens_on_an_ip_address_and_a_port() {
        for (written, read) in [
            ("127.0.0.1:7425", "127.0.0.1:7425"),
            ("localhost:7425", "127.0.0.1:7425"),
            ("[::]:0", "[::]:0"),
            ("0.0.0.0:0", "0.0.0.0:0"),
        ] {
            assert_eq!(listen(written).unwrap().to_string(), read);
        }
        for refused in [
            "",
            "7425",
            ":7425",
            "localhost",
            "localhost:",
            "example.com:80",
            "127.0.0.1:65536",
            "::1:80",
        ] {
            assert!(
                matches!(listen(refused), Err(InvalidAddress::Listen { .. })),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn the_agent_listens_on_unix_sockets_at_absolute_paths() {
        for written in ["unix:/run/pickd/pickd.sock", "unix:///run/pickd/pickd.sock"] {
            assert_eq!(listen(written).unwrap().to_string(), "unix:/run/pickd/pickd.sock");
        }
        let long = format!("unix:/{}", "x".repeat(90));
        for refused in [
            "unix:",
            "unix:/",
            "unix:pickd.sock",
            "unix://pickd.sock",
            "unix:/a\n",
            "unix:/run/",
            &long,
        ] {
            assert!(
                matches!(listen(refused), Err(InvalidAddress::UnixListen { .. })),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn consul_is_at_a_url_a_host_and_port_or_a_socket() {
        for (written, plain, secured) in [
            ("127.0.0.1:8500", "http://127.0.0.1:8500", "https://127.0.0.1:8500"),
            ("[::1]:8500", "http://[::1]:8500", "https://[::1]:8500"),
            ("http://consul:8500/", "http://consul:8500", "https://consul:8500"),
            ("https://consul", "https://consul", "https://consul"),
            ("https://proxy/consul/", "https://proxy/consul", "https://proxy/consul"),
            (
                "unix:///run/consul.sock",
                "unix:///run/consul.sock",
                "unix:///run/consul.sock",
            ),
        ] {
            let address: ConsulAddress = written.parse().unwrap();
            assert_eq!(address.url(false), plain);
            assert_eq!(address.with_https().url(true), secured);
        }
    }

    #[test]
    fn a_scheme_that_was_written_is_not_changed_by_what_bare_addresses_get() {
        let address: ConsulAddress = "http://consul:8500".parse().unwrap();
        assert_eq!(address.url(true), "http://consul:8500");
    }

    #[test]
    fn what_is_no_address_of_consul_is_refused() {
        for refused in [
            "",
            "consul",
            "consul:",
            ":8500",
            "http://",
            "http://consul:99999",
            "ftp://consul:8500",
            "unix://relative",
            "http://consul:8500?stale",
            "http://consul:8500#a",
        ] {
            assert!(
                matches!(refused.parse::<ConsulAddress>(), Err(InvalidAddress::Consul { .. })),
                "{refused:?}"
            );
        }
        let refusal = "http://me:secret@consul:8500".parse::<ConsulAddress>().unwrap_err();
        assert!(!refusal.to_string().contains("secret"));
    }

    #[test]
    fn an_allowed_host_carries_no_port() {
        assert_eq!(allowed_host("Pickd.Local").unwrap(), "pickd.local");
        assert_eq!(allowed_host("[::1]").unwrap(), "::1");
        for refused in ["", "pickd.local:7425", "http://pickd.local", "*"] {
            assert!(allowed_host(refused).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn a_member_of_etcd_is_at_a_url_or_a_host_and_port() {
        for (written, plain, secured) in [
            ("127.0.0.1:2379", "http://127.0.0.1:2379", "https://127.0.0.1:2379"),
            ("[::1]:2379", "http://[::1]:2379", "https://[::1]:2379"),
            ("http://etcd:2379/", "http://etcd:2379", "http://etcd:2379"),
            ("https://etcd:2379", "https://etcd:2379", "https://etcd:2379"),
        ] {
            let address: EtcdAddress = written.parse().unwrap();
            assert_eq!(
                (address.url(false), address.url(true)),
                (plain.to_owned(), secured.to_owned())
            );
        }
        for refused in [
            "",
            "etcd",
            "unix:///run/etcd.sock",
            "http://etcd:2379/v3",
            "ftp://etcd:1",
            "http://a:1?b",
            "a:1,b:2",
        ] {
            assert!(
                matches!(refused.parse::<EtcdAddress>(), Err(InvalidAddress::Etcd { .. })),
                "{refused:?}"
            );
        }
        let refusal = "http://me:secret@etcd:2379".parse::<EtcdAddress>().unwrap_err();
        assert!(matches!(refusal, InvalidAddress::EtcdUser) && !refusal.to_string().contains("secret"));
    }
}
