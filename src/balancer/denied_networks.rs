//! Denied networks: instances at their addresses are listed, and neither picked nor checked.
//!
//! A client that may write to a registry can make an agent connect to any address for a health
//! check (Consul: CVE-2022-29153). Link-local addresses (clouds keep credentials at
//! 169.254.169.254), multicast addresses and unspecified addresses are always denied. An operator
//! may add networks. Loopback is allowed, because instances often run beside the agent.
//!
//! This module compares addresses and resolves no names. A caller that resolves a name checks the
//! addresses that it gets.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

/// Not a network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("network {found:?}: expected an IP address, or one with a prefix length, such as 10.0.0.0/8 or fd00::/8")]
#[non_exhaustive]
pub struct InvalidNetwork {
    /// The text as it came.
    pub found: String,
}

/// Addresses with a common prefix.
///
/// ```
/// let network: pickd::balancer::Network = "10.0.0.0/8".parse()?;
/// assert!(network.contains("10.1.2.3".parse()?) && network.contains("::ffff:10.1.2.3".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether this address is in the network. An IPv4 address mapped into IPv6 counts as IPv4.
    #[must_use]
    pub fn contains(self, address: IpAddr) -> bool {
        match (self.address, plain(address)) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                (own.to_bits() ^ other.to_bits()) & mask == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                (own.to_bits() ^ other.to_bits()) & mask == 0
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = InvalidNetwork;

    fn from_str(text: &str) -> Result<Self, InvalidNetwork> {
        let invalid = || InvalidNetwork {
            found: text.chars().take(64).collect(),
        };
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_| invalid())?;
        let longest = if written.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            // `u8` takes a sign, too.
            Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => {
                prefix.parse().map_err(|_| invalid())?
            }
            Some(_) => return Err(invalid()),
            None => longest,
        };
        if prefix > longest {
            return Err(invalid());
        }
        let address = plain(written);
        // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
        match (written.is_ipv4() == address.is_ipv4(), prefix) {
            (true, prefix) => Ok(Self { address, prefix }),
            (false, 96..) => Ok(Self {
                address,
                prefix: prefix - 96,
            }),
            (false, _) => Err(invalid()),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The networks that are denied: those that are always denied, and those that an operator added.
///
/// ```
/// let denied = pickd::balancer::DeniedNetworks::default().and(["10.9.0.0/16".parse()?]);
/// assert!(denied.contains("169.254.169.254".parse()?) && denied.contains("10.9.1.1".parse()?));
/// assert!(!denied.contains("127.0.0.1".parse()?));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeniedNetworks {
    further: Arc<[Network]>,
}

impl DeniedNetworks {
    /// Adds networks.
    #[must_use]
    pub fn and(self, networks: impl IntoIterator<Item = Network>) -> Self {
        Self {
            further: self.further.iter().copied().chain(networks).collect(),
        }
    }

    /// Whether pickd must not contact this address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = plain(address);
        let leads_to = match address {
            IpAddr::V6(ip) => embedded(ip).map(IpAddr::V4),
            IpAddr::V4(_) => None,
        };
        let denied =
            |address| is_always_denied(address) || self.further.iter().any(|network| network.contains(address));
        denied(address) || leads_to.is_some_and(denied)
    }
}

/// The address that a connection uses: IPv4 for an IPv4 address mapped into IPv6.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn is_always_denied(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_multicast() || is_unspecified(ip),
        IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_multicast() || ip.is_unspecified(),
    }
}

/// 0.0.0.0/8 is "this network" (RFC 6890), and Linux connects 0.0.0.0 to the host itself.
/// 255.255.255.255 is broadcast.
fn is_unspecified(ip: Ipv4Addr) -> bool {
    ip.octets()[0] == 0 || ip.is_broadcast()
}

/// The IPv4 address behind a translated IPv6 address: NAT64 (64:ff9b::/96, RFC 6052), 6to4
/// (2002::/16, RFC 3056), and the former IPv4-compatible addresses (::a.b.c.d).
fn embedded(ip: Ipv6Addr) -> Option<Ipv4Addr> {
    let low = Ipv4Addr::from(ip.to_bits() as u32);
    match ip.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, _, _] => Some(low),
        [0, 0, 0, 0, 0, 0, high, _] if high != 0 => Some(low),
        [0x2002, ..] => Some(Ipv4Addr::from((ip.to_bits() >> 80) as u32)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(text: &str) -> bool {
        let networks = ["10.9.0.0/16", "fd00:1::/32", "192.0.2.7"].map(|network| network.parse().unwrap());
        DeniedNetworks::default().and(networks).contains(text.parse().unwrap())
    }

    #[test]
    fn an_address_that_is_always_denied_is_denied_in_every_spelling() {
        for address in [
            "169.254.169.254",
            "::ffff:169.254.169.254",
            "::ffff:a9fe:a9fe",
            "64:ff9b::a9fe:a9fe",
            "2002:a9fe:a9fe::1",
            "::a9fe:a9fe",
            "0.0.0.0",
            "0.1.2.3",
            "255.255.255.255",
            "224.0.0.1",
            "239.255.255.250",
            "::",
            "fe80::1",
            "ff02::1",
            "10.9.255.255",
            "::ffff:10.9.0.1",
            "fd00:1:ffff::1",
            "192.0.2.7",
            "64:ff9b::a09:1",
            "2002:a09:1::",
        ] {
            assert!(denied(address), "{address}");
        }
    }

    #[test]
    fn an_address_that_an_instance_may_have_is_not_denied() {
        for address in [
            "127.0.0.1",
            "::1",
            "10.8.0.1",
            "10.10.0.1",
            "192.0.2.8",
            "8.8.8.8",
            "fd00:2::1",
            "2001:db8::1",
            "64:ff9b::a00:1",
        ] {
            assert!(!denied(address), "{address}");
        }
    }

    #[test]
    fn a_network_is_an_address_with_a_prefix() {
        let shown = |text: &str| text.parse::<Network>().map(|network| network.to_string()).ok();
        assert_eq!(shown("10.0.0.0/8").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(shown("10.0.0.1").as_deref(), Some("10.0.0.1/32"));
        assert_eq!(shown("::ffff:10.0.0.0/104").as_deref(), Some("10.0.0.0/8"));
        assert_eq!(shown("fd00::/8").as_deref(), Some("fd00::/8"));
        for bad in [
            "",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0/8",
            "::/129",
            "::ffff:0.0.0.0/8",
            "db/8",
            "10.0.0.0/",
        ] {
            assert_eq!(shown(bad), None, "{bad}");
        }
        assert!(
            "0.0.0.0/0"
                .parse::<Network>()
                .unwrap()
                .contains("1.2.3.4".parse().unwrap())
        );
        assert!(
            "::/0"
                .parse::<Network>()
                .unwrap()
                .contains("2001:db8::1".parse().unwrap())
        );
    }
}
