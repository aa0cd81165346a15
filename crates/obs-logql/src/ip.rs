//! Filters by IP address: one address, a network, or a range.

use std::net::IpAddr;

/// `ip("192.168.0.0/16")`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IpFilter {
    text: String,
    /// First and last address; none when the pattern is no pattern.
    bounds: Option<(IpAddr, IpAddr)>,
}

fn bounds(text: &str) -> Option<(IpAddr, IpAddr)> {
    if let Some((low, high)) = text.split_once('-') {
        let (low, high): (IpAddr, IpAddr) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
        return (low.is_ipv4() == high.is_ipv4() && low <= high).then_some((low, high));
    }
    let Some((base, bits)) = text.split_once('/') else {
        let one = text.trim().parse().ok()?;
        return Some((one, one));
    };
    let bits: u32 = bits.parse().ok()?;
    Some(match base.parse().ok()? {
        IpAddr::V4(a) => {
            let host = u32::MAX.checked_shr(bits).unwrap_or(0);
            let a = u32::from(a);
            (bits <= 32)
                .then_some(((a & !host).to_be_bytes().into(), (a | host).to_be_bytes().into()))?
        }
        IpAddr::V6(a) => {
            let host = u128::MAX.checked_shr(bits).unwrap_or(0);
            let a = u128::from(a);
            (bits <= 128)
                .then_some(((a & !host).to_be_bytes().into(), (a | host).to_be_bytes().into()))?
        }
    })
}

impl IpFilter {
    pub(crate) fn new(text: String) -> Self {
        Self { bounds: bounds(&text), text }
    }

    pub(crate) fn is_valid(&self) -> bool {
        self.bounds.is_some()
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn matches(&self, address: &str) -> bool {
        let Ok(a) = address.parse::<IpAddr>() else { return false };
        self.bounds.is_some_and(|(low, high)| a.is_ipv4() == low.is_ipv4() && low <= a && a <= high)
    }

    /// Returns whether an address of the filter stands anywhere in a line.
    pub(crate) fn is_in(&self, line: &str) -> bool {
        let is_v4 = |c: char| c.is_ascii_digit() || c == '.';
        let is_v6 = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.');
        let words = |part: fn(char) -> bool| line.split(move |c| !part(c));
        match self.bounds {
            Some((IpAddr::V4(_), _)) => words(is_v4).any(|w| self.matches(w.trim_matches('.'))),
            Some((IpAddr::V6(_), _)) => words(is_v6).any(|w| {
                w.contains(':') && (self.matches(w) || self.matches(w.trim_end_matches([':', '.'])))
            }),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_networks_and_ranges() {
        for (filter, line, want) in [
            ("192.168.0.1", "from 192.168.0.1:80 ok", true),
            ("192.168.0.1", "from 192.168.0.11", false),
            ("192.168.0.0/24", "x=192.168.0.77,", true),
            ("192.168.0.0/24", "192.168.1.1", false),
            ("10.0.0.1-10.0.0.9", "at 10.0.0.5.", true),
            ("2001:db8::/32", "src 2001:db8::1 dst ::1", true),
            ("::1", "127.0.0.1", false),
            ("0.0.0.0/0", "8.8.8.8", true),
        ] {
            assert_eq!(IpFilter::new(filter.into()).is_in(line), want, "{filter} in {line}");
        }
        for wrong in ["", "x", "1.2.3.4/33", "9.9.9.9-1.1.1.1", "1.2.3.4-::1"] {
            assert!(!IpFilter::new(wrong.into()).is_valid(), "{wrong}");
        }
    }
}
