//! Immutable files whose every block is checked against a CRC32C on every read.
//!
//! A data file `X` has a sidecar `X.sum` with one checksum per 64 KiB block
//! (`docs/format/segment.md`).

use crate::vfs::{ReadFile, Vfs};
use bytes::{Buf, Bytes};
use parquet::errors::ParquetError;
use parquet::file::reader::{ChunkReader, Length};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) const BLOCK_BYTES: usize = 64 * 1024;
const MAGIC: &[u8; 8] = b"OBSSUM\0\x01";

fn sum_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".sum");
    name.into()
}

/// Writes a file and its sidecar and syncs both.
pub(crate) fn write(vfs: &dyn Vfs, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut sums = Vec::with_capacity(24 + bytes.len() / BLOCK_BYTES * 4);
    sums.extend_from_slice(MAGIC);
    sums.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    for block in bytes.chunks(BLOCK_BYTES) {
        sums.extend_from_slice(&crc32c::crc32c(block).to_le_bytes());
    }
    let own = crc32c::crc32c(&sums);
    sums.extend_from_slice(&own.to_le_bytes());
    for (path, bytes) in [(path.to_owned(), bytes), (sum_path(path), sums.as_slice())] {
        let mut file = vfs.create(&path)?;
        file.append(bytes)?;
        file.sync()?;
    }
    Ok(())
}

fn damaged(path: &Path, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()))
}

/// An open file of [`write`]; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct CheckedFile(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    file: Box<dyn ReadFile>,
    len: u64,
    sums: Vec<u32>,
}

impl CheckedFile {
    pub(crate) fn open(vfs: &dyn Vfs, path: &Path) -> io::Result<Self> {
        let sidecar = vfs.open(&sum_path(path))?;
        let size =
            usize::try_from(sidecar.len()).map_err(|_| damaged(path, "sidecar too large"))?;
        let mut raw = vec![0; size];
        sidecar.read_at(0, &mut raw)?;
        let body = size.checked_sub(4).ok_or_else(|| damaged(path, "sidecar too short"))?;
        let (head, own) = raw.split_at(body);
        let word = |b: &[u8]| b.try_into().map(u32::from_le_bytes).unwrap_or_default();
        if crc32c::crc32c(head) != word(own) || head.get(..8) != Some(MAGIC.as_slice()) {
            return Err(damaged(
                path,
                "sidecar does not match its checksum or is of an unknown version",
            ));
        }
        let len = head.get(8..16).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        let len = len.ok_or_else(|| damaged(path, "sidecar too short"))?;
        let sums: Vec<u32> = head.get(16..).unwrap_or_default().chunks_exact(4).map(word).collect();
        let file = vfs.open(path)?;
        if file.len() != len || sums.len() as u64 != len.div_ceil(BLOCK_BYTES as u64) {
            return Err(damaged(path, "length differs from the sidecar's"));
        }
        Ok(Self(Arc::new(Inner { path: path.to_owned(), file, len, sums })))
    }

    /// Returns the number of blocks.
    pub(crate) fn blocks(&self) -> usize {
        self.0.sums.len()
    }

    /// Reads and checks one block.
    pub(crate) fn block(&self, index: usize) -> io::Result<Vec<u8>> {
        let start = index as u64 * BLOCK_BYTES as u64;
        let size = self.0.len.saturating_sub(start).min(BLOCK_BYTES as u64) as usize;
        let mut buf = vec![0; size];
        self.0.file.read_at(start, &mut buf)?;
        if self.0.sums.get(index) != Some(&crc32c::crc32c(&buf)) {
            return Err(damaged(
                &self.0.path,
                &format!("block {index} does not match its checksum"),
            ));
        }
        Ok(buf)
    }

    fn range(&self, start: u64, len: usize) -> io::Result<Bytes> {
        let end = start.checked_add(len as u64).filter(|e| *e <= self.0.len);
        let end = end.ok_or_else(|| damaged(&self.0.path, "read past the end"))?;
        let first = (start / BLOCK_BYTES as u64) as usize;
        let last = (end.div_ceil(BLOCK_BYTES as u64)) as usize;
        let mut out = Vec::with_capacity((last - first) * BLOCK_BYTES);
        for i in first..last {
            out.extend_from_slice(&self.block(i)?);
        }
        let skip = (start - first as u64 * BLOCK_BYTES as u64) as usize;
        Ok(Bytes::from(out).slice(skip..skip + len))
    }
}

impl Length for CheckedFile {
    fn len(&self) -> u64 {
        self.0.len
    }
}

impl ChunkReader for CheckedFile {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        let rest = self.0.len.saturating_sub(start).min(BLOCK_BYTES as u64) as usize;
        Ok(self.range(start, rest)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        Ok(self.range(start, length)?)
    }
}
