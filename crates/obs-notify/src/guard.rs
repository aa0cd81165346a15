//! Where messages may go: not to this machine, its neighbours on the link or the metadata service
//! of a cloud, unless an administrator says so. Addresses are judged when they are connected to.

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

/// A range of addresses, or a host by name.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Net(IpAddr, u8),
    Host(String),
}

impl Place {
    fn parse(text: &str) -> Result<Self, String> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, b)| (a, Some(b)));
        let Ok(ip) = address.parse::<IpAddr>() else {
            let plain = |c: char| c.is_alphanumeric() || "-._".contains(c);
            return if bits.is_none() && !text.is_empty() && text.chars().all(plain) {
                Ok(Self::Host(text.to_ascii_lowercase()))
            } else {
                Err(format!("{text:?} is neither an address, a range of addresses nor a host name"))
            };
        };
        let most = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits
            .map_or(Ok(most), |b| b.parse().map_err(|_| format!("{text:?}: bad prefix length")))?;
        if bits > most {
            return Err(format!("{text:?}: bad prefix length"));
        }
        Ok(Self::Net(ip, bits))
    }

    fn holds(&self, host: &str, ip: IpAddr) -> bool {
        match self {
            Self::Host(h) => host.eq_ignore_ascii_case(h),
            Self::Net(net, bits) => match (net, ip) {
                (IpAddr::V4(n), IpAddr::V4(i)) => {
                    let shift = 32 - u32::from(*bits);
                    u32::from(*n).checked_shr(shift) == u32::from(i).checked_shr(shift)
                }
                (IpAddr::V6(n), IpAddr::V6(i)) => {
                    let shift = 128 - u32::from(*bits);
                    u128::from(*n).checked_shr(shift) == u128::from(i).checked_shr(shift)
                }
                _ => false,
            },
        }
    }
}

/// Which addresses messages may be sent to.
#[derive(Debug, Clone, Default)]
pub struct Outbound {
    allow: Vec<Place>,
    deny: Vec<Place>,
}

/// The metadata services of clouds that are not link-local.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
];

/// Returns the address that a packet would really go to.
fn real(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(ip, IpAddr::V4),
        IpAddr::V4(_) => ip,
    }
}

fn is_near(ip: IpAddr) -> bool {
    METADATA.contains(&ip)
        || match ip {
            IpAddr::V4(v) => {
                v.is_loopback()
                    || v.is_link_local()
                    || v.is_multicast()
                    || v.is_broadcast()
                    || v.octets()[0] == 0
            }
            IpAddr::V6(v) => {
                let first = v.segments()[0];
                v.is_loopback()
                    || v.is_unspecified()
                    || v.is_multicast()
                    || (first & 0xffc0) == 0xfe80
            }
        }
}

impl Outbound {
    /// Reads lists of addresses, ranges (`10.0.0.0/8`) and host names.
    ///
    /// # Errors
    /// With the entry that is none of these.
    pub fn new(allow: &[String], deny: &[String]) -> Result<Self, String> {
        let read = |list: &[String]| list.iter().map(|t| Place::parse(t)).collect::<Result<_, _>>();
        Ok(Self { allow: read(allow)?, deny: read(deny)? })
    }

    /// Judges an address that a host has.
    ///
    /// # Errors
    /// With what to do if it is meant to be reached.
    pub fn check(&self, host: &str, ip: IpAddr) -> Result<(), String> {
        let ip = real(ip);
        let within = |list: &[Place]| list.iter().any(|p| p.holds(host, ip));
        if within(&self.deny) {
            return Err(format!("address {ip} is denied by outbound.deny"));
        }
        if is_near(ip) && !within(&self.allow) {
            return Err(format!(
                "address {ip} is on this machine, its link or a metadata service; list it in outbound.allow to send there"
            ));
        }
        Ok(())
    }

    /// Judges an address that is written as a number; one that is a name is judged once resolved.
    ///
    /// # Errors
    /// See [`Self::check`].
    pub fn check_url(&self, url: &url::Url) -> Result<(), String> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("scheme {:?} is not http or https", url.scheme()));
        }
        match url.host() {
            Some(url::Host::Ipv4(ip)) => self.check(&ip.to_string(), ip.into()),
            Some(url::Host::Ipv6(ip)) => self.check(&ip.to_string(), ip.into()),
            Some(url::Host::Domain(_)) => Ok(()),
            None => Err("the URL has no host".into()),
        }
    }

    /// Resolves a host to addresses that may be reached.
    ///
    /// # Errors
    /// When it has none.
    pub async fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
        let found = tokio::net::lookup_host((host, port));
        let found = found.await.map_err(|_| "the host name cannot be resolved".to_owned())?;
        let mut last = "the host name has no address".to_owned();
        let mut out = Vec::new();
        for a in found {
            match self.check(host, a.ip()) {
                Ok(()) => out.push(a),
                Err(e) => last = e,
            }
        }
        if out.is_empty() { Err(last) } else { Ok(out) }
    }
}

/// Resolves for HTTP clients.
#[derive(Debug)]
pub(crate) struct Resolver(pub(crate) Arc<Outbound>);

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let outbound = self.0.clone();
        Box::pin(async move {
            let list = outbound.resolve(name.as_str(), 0).await?;
            Ok(Box::new(list.into_iter()) as Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_addresses_need_leave_in_every_spelling() {
        let o = Outbound::default();
        let check = |o: &Outbound, url: &str| {
            url::Url::parse(url).map_err(|e| e.to_string()).and_then(|u| o.check_url(&u))
        };
        for near in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://0.0.0.0/",
            "http://[::]/",
            "http://169.254.169.254/latest",
            "http://[fe80::1]/",
            "http://[fd00:ec2::254]/",
            "http://100.100.100.200/",
            "http://[::ffff:a9fe:a9fe]/",
            "file:///etc/passwd",
            "gopher://example.org/",
            "http://0/",
        ] {
            assert!(check(&o, near).is_err(), "{near}");
        }
        for far in [
            "http://10.0.0.1/",
            "https://1.1.1.1/",
            "http://[2606:4700::1]/",
            "http://hooks.slack.example/",
        ] {
            assert_eq!(check(&o, far), Ok(()), "{far}");
        }
        let o =
            Outbound::new(&["127.0.0.0/8".into(), "::1".into()], &["10.0.0.0/8".into()]).unwrap();
        assert_eq!(check(&o, "http://127.1/"), Ok(()));
        assert_eq!(check(&o, "http://[::1]/"), Ok(()));
        assert!(check(&o, "http://169.254.169.254/").is_err());
        assert!(check(&o, "http://10.2.3.4/").is_err());
        let o = Outbound::new(&["localhost".into()], &[]).unwrap();
        assert!(o.check("localhost", IpAddr::V4(Ipv4Addr::LOCALHOST)).is_ok());
        assert!(o.check("rebind.example", IpAddr::V4(Ipv4Addr::LOCALHOST)).is_err());
        assert!(Outbound::new(&["10.0.0.0/33".into()], &[]).is_err());
        assert!(Outbound::new(&["http://x".into()], &[]).is_err());
    }
}
