//! Identifiers that must not be confused with one another.

use std::fmt;
use std::sync::Arc;

/// Ids are printed by the thousand: one write for each, and no formatting of single bytes.
fn hex<const N: usize>(bytes: &[u8; N], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [[0_u8; 2]; N];
    for (to, b) in text.iter_mut().zip(bytes) {
        let digit = |n: u8| DIGITS.get(usize::from(n)).copied().unwrap_or(b'0');
        *to = [digit(b >> 4), digit(b & 15)];
    }
    f.write_str(std::str::from_utf8(text.as_flattened()).unwrap_or_default())
}

/// Parses hexadecimal of up to `N` bytes, in either case; shorter ids are padded on the left.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.is_empty() || text.len() > N * 2 || !text.bytes().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    let padded = format!("{text:0>width$}", width = N * 2);
    let mut out = [0; N];
    for (i, byte) in out.iter_mut().enumerate() {
        *byte = u8::from_str_radix(padded.get(i * 2..i * 2 + 2)?, 16).ok()?;
    }
    Some(out)
}

/// A 128-bit trace id; never all zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId([u8; 16]);

/// A 64-bit span id; never all zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpanId([u8; 8]);

macro_rules! id {
    ($name:ident, $len:literal) => {
        impl $name {
            /// Wraps the bytes; `None` when the length is wrong or all are zero (invalid in W3C
            /// Trace Context).
            #[inline]
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                let bytes: [u8; $len] = bytes.try_into().ok()?;
                // Written so that it is a few instructions and no call.
                let any = bytes.iter().fold(0, |all, b| all | b);
                (any != 0).then_some(Self(bytes))
            }

            /// Parses hexadecimal; shorter ids are padded on the left, as Jaeger does.
            pub fn parse(text: &str) -> Option<Self> {
                unhex::<$len>(text).filter(|b| *b != [0; $len]).map(Self)
            }

            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex(&self.0, f)
            }
        }
    };
}

id!(TraceId, 16);
id!(SpanId, 8);

/// The tenant that owns data; from `X-Scope-OrgID`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(Arc<str>);

/// Why a tenant header was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TenantIdError {
    #[error("tenant id is empty")]
    Empty,
    #[error("tenant id is longer than {} bytes", TenantId::BYTES_MAX)]
    TooLong,
    #[error("tenant id contains {0:?}; allowed are letters, digits and !-_.*'()")]
    Character(char),
}

impl TenantId {
    /// The tenant of requests without a header.
    pub const DEFAULT: &'static str = "default";
    pub const BYTES_MAX: usize = 150;

    /// Checks a name by Loki's and Mimir's rule, less `.` and `..` (they name folders).
    ///
    /// # Errors
    /// When the name is empty, too long or holds another character.
    pub fn new(name: &str) -> Result<Self, TenantIdError> {
        if name.is_empty() || name == "." || name == ".." {
            return Err(TenantIdError::Empty);
        }
        if name.len() > Self::BYTES_MAX {
            return Err(TenantIdError::TooLong);
        }
        match name.chars().find(|c| !c.is_ascii_alphanumeric() && !"!-_.*'()".contains(*c)) {
            Some(bad) => Err(TenantIdError::Character(bad)),
            None => Ok(Self(name.into())),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the name under which traces of this tenant are that somebody keeps; none when it is
    /// such a name itself, or too long for one.
    pub fn archive(&self) -> Option<Self> {
        if self.is_archive() { None } else { Self::new(&format!("{self}{ARCHIVE}")).ok() }
    }

    pub fn is_archive(&self) -> bool {
        self.0.ends_with(ARCHIVE)
    }
}

/// What names of archives end in.
const ARCHIVE: &str = ".archive";

impl Default for TenantId {
    fn default() -> Self {
        Self(Self::DEFAULT.into())
    }
}

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_padded_and_never_zero() {
        assert_eq!(TraceId::parse("1").unwrap().to_string(), "00000000000000000000000000000001");
        assert!(TraceId::parse("0").is_none());
        assert!(SpanId::parse("zz").is_none());
        assert!(SpanId::from_slice(&[1; 7]).is_none());
    }

    #[test]
    fn tenant_names_cannot_leave_their_folder() {
        for bad in ["", ".", "..", "a/b", "a b", "ü"] {
            assert!(TenantId::new(bad).is_err(), "{bad}");
        }
        assert!(TenantId::new("team-a_1").is_ok());
    }
}
