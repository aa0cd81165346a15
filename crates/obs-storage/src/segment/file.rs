//! The container of a segment: blocks, an index of them, and where the index is.
//!
//! `OBSSEG\0` and version, blocks, index, padding, index again, footer twice. Every block's
//! CRC32C is in the index and checked on every read; the index exists twice, at least a page
//! apart, so that no single damage takes more than one block (`docs/format/README.md`).

use crate::bin::{Decoder, Encoder, Malformed};
use crate::vfs::{ReadFile, Vfs, WriteFile};
use std::io;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"OBSSEG\0\x02";
const TAIL: &[u8; 8] = b"OBSSEGND";
const FOOTER_BYTES: usize = 44;
/// Bytes between the two copies of the index: more than damage of one page can span.
const GAP: u64 = 4096;
/// An index larger than this is damage.
const INDEX_BYTES_MAX: usize = 256 << 20;

/// Where a block is, and its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BlockRef {
    pub(crate) offset: u64,
    pub(crate) len: u32,
    pub(crate) crc: u32,
}

impl BlockRef {
    pub(crate) fn put(self, e: &mut Encoder) {
        e.uint(self.offset);
        e.uint(self.len.into());
        e.bytes.extend_from_slice(&self.crc.to_le_bytes());
    }

    pub(crate) fn get(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            offset: d.uint()?,
            len: u32::try_from(d.uint()?).map_err(|_| d.bad())?,
            crc: u32::from_le_bytes(d.array()?),
        })
    }
}

/// Where the copies of the index are; kept in the manifest too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct IndexRef {
    pub(crate) first: u64,
    pub(crate) second: u64,
    pub(crate) len: u32,
    pub(crate) raw_len: u32,
    pub(crate) crc: u32,
}

impl IndexRef {
    pub(crate) fn put(self, e: &mut Encoder) {
        e.uint(self.first);
        e.uint(self.second);
        e.uint(self.len.into());
        e.uint(self.raw_len.into());
        e.bytes.extend_from_slice(&self.crc.to_le_bytes());
    }

    pub(crate) fn get(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let word = |d: &mut Decoder<'_>| u32::try_from(d.uint()?).map_err(|_| d.bad());
        Ok(Self {
            first: d.uint()?,
            second: d.uint()?,
            len: word(d)?,
            raw_len: word(d)?,
            crc: u32::from_le_bytes(d.array()?),
        })
    }
}

/// Writes a segment front to back.
#[derive(Debug)]
pub(crate) struct SegmentWriter {
    file: Box<dyn WriteFile>,
    at: u64,
    /// Small blocks gathered into one write.
    buf: Vec<u8>,
}

impl SegmentWriter {
    pub(crate) fn create(vfs: &dyn Vfs, path: &Path) -> io::Result<Self> {
        Ok(Self { file: vfs.create(path)?, at: MAGIC.len() as u64, buf: MAGIC.to_vec() })
    }

    /// Appends a block.
    pub(crate) fn put(&mut self, block: &[u8]) -> io::Result<BlockRef> {
        let r = BlockRef { offset: self.at, len: block.len() as u32, crc: crc32c::crc32c(block) };
        self.write(block)?;
        Ok(r)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        const BUFFER: usize = 256 << 10;
        self.buf.extend_from_slice(bytes);
        self.at += bytes.len() as u64;
        if self.buf.len() >= BUFFER {
            self.file.append(&self.buf)?;
            self.buf.clear();
        }
        Ok(())
    }

    /// Appends the index and syncs. Returns where it is and the length of the file.
    pub(crate) fn finish(mut self, index: &[u8]) -> io::Result<(IndexRef, u64)> {
        let packed = zstd::bulk::compress(index, 3)?;
        let mut at = IndexRef {
            first: self.at,
            second: 0,
            len: packed.len() as u32,
            raw_len: index.len() as u32,
            crc: crc32c::crc32c(&packed),
        };
        self.write(&packed)?;
        self.write(&vec![0; GAP as usize])?;
        at.second = self.at;
        self.write(&packed)?;
        let mut footer = Vec::with_capacity(FOOTER_BYTES);
        footer.extend_from_slice(&at.first.to_le_bytes());
        footer.extend_from_slice(&at.second.to_le_bytes());
        for word in [at.len, at.raw_len, at.crc, 0] {
            footer.extend_from_slice(&word.to_le_bytes());
        }
        let crc = crc32c::crc32c(&footer);
        footer.extend_from_slice(&crc.to_le_bytes());
        footer.extend_from_slice(TAIL);
        self.write(&footer)?;
        self.write(&footer)?;
        if !self.buf.is_empty() {
            self.file.append(&self.buf)?;
        }
        self.file.sync()?;
        Ok((at, self.at))
    }
}

pub(crate) fn damaged(path: &Path, what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

/// An open segment.
#[derive(Debug)]
pub(crate) struct SegmentFile {
    path: PathBuf,
    file: Box<dyn ReadFile>,
}

fn parse_footer(bytes: &[u8]) -> Option<IndexRef> {
    let (body, rest) = bytes.split_at_checked(FOOTER_BYTES - 12)?;
    let (crc, tail) = rest.split_at_checked(4)?;
    if tail != TAIL || crc != crc32c::crc32c(body).to_le_bytes() {
        return None;
    }
    let u64_at = |i: usize| Some(u64::from_le_bytes(body.get(i..i + 8)?.try_into().ok()?));
    let u32_at = |i: usize| Some(u32::from_le_bytes(body.get(i..i + 4)?.try_into().ok()?));
    Some(IndexRef {
        first: u64_at(0)?,
        second: u64_at(8)?,
        len: u32_at(16)?,
        raw_len: u32_at(20)?,
        crc: u32_at(24)?,
    })
}

impl SegmentFile {
    /// Reads the index of a file or object; `path` is its name in messages, `known` where the
    /// manifest says that the index is. `notes` receives what was found damaged although the index
    /// could be read.
    pub(crate) fn read_from(
        file: Box<dyn ReadFile>,
        path: &Path,
        known: Option<IndexRef>,
        notes: &mut Vec<String>,
    ) -> io::Result<(Self, Vec<u8>)> {
        let this = Self { path: path.to_owned(), file };
        let mut magic = [0; 8];
        let whole = this.file.read_at(0, &mut magic).is_ok();
        if whole && magic != *MAGIC {
            if magic.starts_with(b"OBSSEG\0") && this.footer(notes).is_none() {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    format!("{}: segment of a newer version", path.display()),
                ));
            }
            notes.push("bytes 0..8 are not the magic number".into());
        }
        let at = this.footer(notes).or(known);
        let at = at.ok_or_else(|| damaged(path, "no footer"))?;
        for offset in [at.first, at.second] {
            match this.read_index(offset, at) {
                Ok(index) => return Ok((this, index)),
                Err(e) => notes.push(format!("index at byte {offset}: {e}")),
            }
        }
        Err(damaged(path, "both copies of the index are damaged"))
    }

    fn footer(&self, notes: &mut Vec<String>) -> Option<IndexRef> {
        let mut found = None;
        for back in [FOOTER_BYTES, 2 * FOOTER_BYTES] {
            let mut bytes = [0; FOOTER_BYTES];
            let at = self.file.len().checked_sub(back as u64)?;
            let read = self.file.read_at(at, &mut bytes);
            match parse_footer(&bytes).filter(|_| read.is_ok()) {
                Some(f) => found = found.or(Some(f)),
                None => notes.push(format!("footer at byte {at} is damaged")),
            }
        }
        found
    }

    fn read_index(&self, offset: u64, at: IndexRef) -> io::Result<Vec<u8>> {
        if at.raw_len as usize > INDEX_BYTES_MAX {
            return Err(damaged(&self.path, "index too large"));
        }
        let packed = self.read(BlockRef { offset, len: at.len, crc: at.crc })?;
        zstd::bulk::decompress(&packed, at.raw_len as usize)
    }

    /// Checks both copies of the index and what lies between them; returns what is wrong.
    pub(crate) fn check_copies(&self, at: IndexRef) -> Vec<String> {
        let bad = |offset| Some(self.read_index(offset, at).err()?.to_string());
        let mut out: Vec<String> = [at.first, at.second].into_iter().filter_map(bad).collect();
        let gap_at = at.first + u64::from(at.len);
        let mut gap = vec![0; GAP as usize];
        if self.file.read_at(gap_at, &mut gap).is_err() || gap.iter().any(|b| *b != 0) {
            out.push(format!("padding at byte {gap_at} is damaged"));
        }
        out
    }

    /// Reads a block and checks it.
    pub(crate) fn read(&self, at: BlockRef) -> io::Result<Vec<u8>> {
        let end = at.offset.checked_add(at.len.into());
        if end.is_none_or(|e| e > self.file.len()) {
            return Err(damaged(
                &self.path,
                format_args!("block at byte {} is cut off", at.offset),
            ));
        }
        let mut buf = vec![0; at.len as usize];
        self.file.read_at(at.offset, &mut buf)?;
        if crc32c::crc32c(&buf) != at.crc && self.file.forget(at.offset, at.len.into()) {
            // It was a copy that went bad.
            self.file.read_at(at.offset, &mut buf)?;
        }
        if crc32c::crc32c(&buf) != at.crc {
            return Err(damaged(
                &self.path,
                format_args!(
                    "block at bytes {}..{} does not match its checksum",
                    at.offset,
                    at.offset + u64::from(at.len)
                ),
            ));
        }
        Ok(buf)
    }
}
