//! Byte-level primitives of the formats: LEB128 integers, length-prefixed strings.

/// Maps integers of small size to small naturals, whatever their sign.
pub(crate) const fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

/// Undoes [`zigzag`].
pub(crate) const fn unzigzag(v: u64) -> i64 {
    ((v >> 1) as i64) ^ -((v & 1) as i64)
}

/// The bytes end early or do not decode; always means damage, since CRCs are checked before.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[error("malformed record at byte {0}")]
pub(crate) struct Malformed(pub(crate) usize);

#[derive(Debug, Default)]
pub(crate) struct Encoder {
    pub(crate) bytes: Vec<u8>,
}

impl Encoder {
    pub(crate) fn u8(&mut self, v: u8) {
        self.bytes.push(v);
    }

    pub(crate) fn uint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.bytes.push((v & 0x7f) as u8 | 0x80);
            v >>= 7;
        }
        self.bytes.push(v as u8);
    }

    /// Zigzag, for signed values near zero.
    pub(crate) fn int(&mut self, v: i64) {
        self.uint(zigzag(v));
    }

    pub(crate) fn len(&mut self, v: usize) {
        self.uint(v as u64);
    }

    pub(crate) fn f64(&mut self, v: f64) {
        self.bytes.extend_from_slice(&v.to_bits().to_le_bytes());
    }

    pub(crate) fn raw(&mut self, v: &[u8]) {
        self.len(v.len());
        self.bytes.extend_from_slice(v);
    }

    pub(crate) fn str(&mut self, v: &str) {
        self.raw(v.as_bytes());
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Decoder<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Decoder<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) const fn bad(&self) -> Malformed {
        Malformed(self.at)
    }

    /// Returns how many bytes were read.
    pub(crate) const fn at(&self) -> usize {
        self.at
    }

    /// A number that is no count of what follows, so that the input does not bound it.
    pub(crate) fn len_free(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.uint()?).map_err(|_| self.bad())
    }

    /// Returns the next `n` bytes.
    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        self.take(n)
    }

    /// Returns all that is left.
    pub(crate) fn rest(&mut self) -> &'a [u8] {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        self.at = self.bytes.len();
        rest
    }

    pub(crate) const fn is_done(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let end = self.at.checked_add(n).ok_or(self.bad())?;
        let part = self.bytes.get(self.at..end).ok_or(self.bad())?;
        self.at = end;
        Ok(part)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bad = self.bad();
        self.take(N)?.try_into().map_err(|_| bad)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[b]| b)
    }

    pub(crate) fn uint(&mut self) -> Result<u64, Malformed> {
        let mut v = 0_u64;
        for shift in (0..64).step_by(7) {
            let b = self.u8()?;
            v |= u64::from(b & 0x7f) << shift;
            if b < 0x80 {
                return Ok(v);
            }
        }
        Err(self.bad())
    }

    pub(crate) fn int(&mut self) -> Result<i64, Malformed> {
        self.uint().map(unzigzag)
    }

    /// A count of items, each of which takes at least one byte: bounds allocations by the input.
    pub(crate) fn len(&mut self) -> Result<usize, Malformed> {
        let n = usize::try_from(self.uint()?).map_err(|_| self.bad())?;
        if n > self.bytes.len().saturating_sub(self.at) { Err(self.bad()) } else { Ok(n) }
    }

    pub(crate) fn f64(&mut self) -> Result<f64, Malformed> {
        self.array().map(|b| f64::from_bits(u64::from_le_bytes(b)))
    }

    pub(crate) fn raw(&mut self) -> Result<&'a [u8], Malformed> {
        let n = self.len()?;
        self.take(n)
    }

    pub(crate) fn str(&mut self) -> Result<&'a str, Malformed> {
        let bad = self.bad();
        std::str::from_utf8(self.raw()?).map_err(|_| bad)
    }

    pub(crate) fn string(&mut self) -> Result<String, Malformed> {
        self.str().map(str::to_owned)
    }
}
