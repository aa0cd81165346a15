//! Reader of Apache Thrift's binary and compact protocols. Lengths are checked against what is left
//! of the message, so that a few bytes cannot ask for much memory.

use crate::DecodeError;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Binary,
    Compact,
}

/// A field's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Bool,
    Byte,
    I16,
    I32,
    I64,
    Double,
    Bytes,
    Struct,
    List,
    Map,
}

/// Structures within structures.
const DEPTH_MAX: usize = 32;

#[derive(Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
    protocol: Protocol,
    depth: usize,
    /// The value of a boolean field, which the compact protocol keeps in the field's head.
    flag: Option<bool>,
}

pub(crate) type Read<T> = Result<T, DecodeError>;

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8], protocol: Protocol) -> Self {
        Self { rest: bytes, protocol, depth: 0, flag: None }
    }

    pub(crate) fn fail<T>(&self, reason: impl Into<String>) -> Read<T> {
        let format = match self.protocol {
            Protocol::Binary => "Thrift (binary)",
            Protocol::Compact => "Thrift (compact)",
        };
        Err(DecodeError { format, reason: reason.into() })
    }

    fn take(&mut self, n: usize) -> Read<&'a [u8]> {
        match self.rest.split_at_checked(n) {
            Some((head, tail)) => {
                self.rest = tail;
                Ok(head)
            }
            None => self.fail(format!("{n} bytes announced, {} left", self.rest.len())),
        }
    }

    fn byte(&mut self) -> Read<u8> {
        Ok(self.take(1)?.first().copied().unwrap_or(0))
    }

    fn fixed<const N: usize>(&mut self) -> Read<[u8; N]> {
        let bytes = self.take(N)?;
        bytes.try_into().or_else(|_| self.fail("value cut short"))
    }

    fn varint(&mut self) -> Read<u64> {
        let mut out = 0_u64;
        for shift in (0..64).step_by(7) {
            let b = self.byte()?;
            out |= u64::from(b & 0x7f) << shift;
            if b & 0x80 == 0 {
                return Ok(out);
            }
        }
        self.fail("integer of more than 64 bits")
    }

    fn zigzag(&mut self) -> Read<i64> {
        let v = self.varint()?;
        Ok((v >> 1) as i64 ^ -((v & 1) as i64))
    }

    pub(crate) fn i16(&mut self) -> Read<i16> {
        match self.protocol {
            Protocol::Binary => Ok(i16::from_be_bytes(self.fixed()?)),
            Protocol::Compact => Ok(self.zigzag()? as i16),
        }
    }

    pub(crate) fn i32(&mut self) -> Read<i32> {
        match self.protocol {
            Protocol::Binary => Ok(i32::from_be_bytes(self.fixed()?)),
            Protocol::Compact => Ok(self.zigzag()? as i32),
        }
    }

    pub(crate) fn i64(&mut self) -> Read<i64> {
        match self.protocol {
            Protocol::Binary => Ok(i64::from_be_bytes(self.fixed()?)),
            Protocol::Compact => self.zigzag(),
        }
    }

    pub(crate) fn double(&mut self) -> Read<f64> {
        match self.protocol {
            Protocol::Binary => Ok(f64::from_be_bytes(self.fixed()?)),
            Protocol::Compact => Ok(f64::from_le_bytes(self.fixed()?)),
        }
    }

    pub(crate) fn bool(&mut self) -> Read<bool> {
        match self.flag.take() {
            Some(v) => Ok(v),
            None => Ok(self.byte()? == 1),
        }
    }

    pub(crate) fn bytes(&mut self) -> Read<&'a [u8]> {
        let n = match self.protocol {
            Protocol::Binary => i64::from(i32::from_be_bytes(self.fixed()?)),
            Protocol::Compact => i64::try_from(self.varint()?).unwrap_or(-1),
        };
        match usize::try_from(n) {
            Ok(n) => self.take(n),
            Err(_) => self.fail(format!("text of {n} bytes")),
        }
    }

    /// Returns a text; what is not UTF-8 is replaced.
    pub(crate) fn string(&mut self) -> Read<String> {
        Ok(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    fn kind(&self, number: u8) -> Read<Kind> {
        let kind = match (self.protocol, number) {
            (Protocol::Binary, 2) | (Protocol::Compact, 1 | 2) => Kind::Bool,
            (_, 3) => Kind::Byte,
            (Protocol::Binary, 6) | (Protocol::Compact, 4) => Kind::I16,
            (Protocol::Binary, 8) | (Protocol::Compact, 5) => Kind::I32,
            (Protocol::Binary, 10) | (Protocol::Compact, 6) => Kind::I64,
            (Protocol::Binary, 4) | (Protocol::Compact, 7) => Kind::Double,
            (Protocol::Binary, 11) | (Protocol::Compact, 8) => Kind::Bytes,
            (_, 12) => Kind::Struct,
            (Protocol::Binary, 14 | 15) | (Protocol::Compact, 9 | 10) => Kind::List,
            (Protocol::Binary, 13) | (Protocol::Compact, 11) => Kind::Map,
            _ => return self.fail(format!("unknown type {number}")),
        };
        Ok(kind)
    }

    fn deeper<T>(&mut self, f: impl FnOnce(&mut Self) -> Read<T>) -> Read<T> {
        if self.depth >= DEPTH_MAX {
            return self.fail("structures are nested too deeply");
        }
        self.depth += 1;
        let out = f(self);
        self.depth -= 1;
        out
    }

    /// Reads a structure: `field` takes a field and returns true, or leaves it and returns false.
    pub(crate) fn structure(
        &mut self,
        field: &mut dyn FnMut(&mut Self, i16, Kind) -> Read<bool>,
    ) -> Read<()> {
        self.deeper(|r| {
            let mut last = 0_i16;
            loop {
                let head = r.byte()?;
                if head == 0 {
                    return Ok(());
                }
                let (kind, id) = match r.protocol {
                    Protocol::Binary => (r.kind(head)?, r.i16()?),
                    Protocol::Compact => {
                        let kind = r.kind(head & 15)?;
                        if kind == Kind::Bool {
                            r.flag = Some(head & 15 == 1);
                        }
                        let delta = i16::from(head >> 4);
                        let id = if delta == 0 { r.i16()? } else { last.wrapping_add(delta) };
                        (kind, id)
                    }
                };
                last = id;
                if !field(r, id, kind)? {
                    r.skip(kind)?;
                }
            }
        })
    }

    /// Reads a list's head: the type of its elements, and how many there are.
    fn list_head(&mut self) -> Read<(Kind, usize)> {
        let (number, n) = match self.protocol {
            Protocol::Binary => (self.byte()?, i64::from(i32::from_be_bytes(self.fixed()?))),
            Protocol::Compact => {
                let head = self.byte()?;
                let n = match head >> 4 {
                    15 => i64::try_from(self.varint()?).unwrap_or(-1),
                    n => i64::from(n),
                };
                (head & 15, n)
            }
        };
        // An empty list need not name a type.
        if n == 0 {
            return Ok((Kind::Byte, 0));
        }
        let kind = self.kind(number)?;
        // Each element takes a byte at least.
        match usize::try_from(n) {
            Ok(n) if n <= self.rest.len() => Ok((kind, n)),
            _ => self.fail(format!("list of {n} elements in {} bytes", self.rest.len())),
        }
    }

    /// Reads a list of structures.
    pub(crate) fn list<T>(&mut self, mut one: impl FnMut(&mut Self) -> Read<T>) -> Read<Vec<T>> {
        let (kind, n) = self.list_head()?;
        if n > 0 && kind != Kind::Struct {
            return self.fail("list holds no structures");
        }
        let mut out = Vec::new();
        for _ in 0..n {
            out.push(one(self)?);
        }
        Ok(out)
    }

    fn skip(&mut self, kind: Kind) -> Read<()> {
        match kind {
            Kind::Bool => self.bool().map(|_| ()),
            Kind::Byte => self.byte().map(|_| ()),
            Kind::I16 => self.i16().map(|_| ()),
            Kind::I32 => self.i32().map(|_| ()),
            Kind::I64 => self.i64().map(|_| ()),
            Kind::Double => self.double().map(|_| ()),
            Kind::Bytes => self.bytes().map(|_| ()),
            Kind::Struct => self.structure(&mut |_, _, _| Ok(false)),
            Kind::List => self.deeper(|r| {
                let (kind, n) = r.list_head()?;
                (0..n).try_for_each(|_| r.skip(kind))
            }),
            Kind::Map => self.deeper(|r| {
                let (n, keys, values) = match r.protocol {
                    Protocol::Binary => {
                        let (k, v) = (r.byte()?, r.byte()?);
                        (i64::from(i32::from_be_bytes(r.fixed()?)), k, v)
                    }
                    Protocol::Compact => {
                        let n = i64::try_from(r.varint()?).unwrap_or(-1);
                        let types = if n == 0 { 0 } else { r.byte()? };
                        (n, types >> 4, types & 15)
                    }
                };
                if n == 0 {
                    return Ok(());
                }
                let (keys, values) = (r.kind(keys)?, r.kind(values)?);
                if usize::try_from(n).is_ok_and(|n| n <= r.rest.len()) {
                    (0..n).try_for_each(|_| r.skip(keys).and_then(|()| r.skip(values)))
                } else {
                    r.fail(format!("map of {n} entries in {} bytes", r.rest.len()))
                }
            }),
        }
    }

    /// Reads a message's head and returns the name of the method called.
    pub(crate) fn message(&mut self) -> Read<String> {
        match self.protocol {
            Protocol::Compact => {
                if self.byte()? != 0x82 {
                    return self.fail("not a message");
                }
                self.byte()?;
                self.varint()?;
                self.string()
            }
            Protocol::Binary => {
                let head = i32::from_be_bytes(self.fixed()?);
                if head < 0 {
                    let name = self.string()?;
                    self.take(4)?;
                    return Ok(name);
                }
                // Older clients write the name's length first, then the type and number.
                let name = self.take(usize::try_from(head).unwrap_or(usize::MAX))?;
                let name = String::from_utf8_lossy(name).into_owned();
                self.take(5)?;
                Ok(name)
            }
        }
    }
}
