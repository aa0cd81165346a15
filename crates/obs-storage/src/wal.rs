//! The write-ahead log: numbered files of checksummed frames.
//!
//! File: 8 bytes magic and version, then frames. Frame: marker, payload length, CRC32C of length,
//! type and payload, type, payload; little endian (`docs/format/README.md`). The marker lets a
//! reader find the next frame after damage, so that damage costs the frames it touches and no
//! more.

use crate::vfs::{ReadFile, Vfs, WriteFile};
use std::io;
use std::path::{Path, PathBuf};

/// The last byte is the version.
pub(crate) const WAL_MAGIC: &[u8; 8] = b"OBSWAL\0\x02";
pub(crate) const MANIFEST_MAGIC: &[u8; 8] = b"OBSMAN\0\x02";
const MARKER: [u8; 4] = [0xf5, b'O', b'B', 0xfb];
pub(crate) const HEADER_BYTES: usize = 13;
/// Larger frames are refused on write and are damage on read.
pub(crate) const FRAME_BYTES_MAX: usize = 128 << 20;

/// Series definitions of a tenant.
pub(crate) const FRAME_SERIES: u8 = 1;
/// One write batch.
pub(crate) const FRAME_BATCH: u8 = 2;
/// An edit of the manifest; only in manifest files.
pub(crate) const FRAME_EDIT: u8 = 3;
/// Set in the type of each frame but the first of those that are written and synced together.
const CONTINUES: u8 = 0x80;

/// Returns what the type of a frame has besides, that is put behind others of the same write.
pub(crate) const fn continues(write: &[u8]) -> u8 {
    if write.is_empty() { 0 } else { CONTINUES }
}

pub(crate) fn file_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.wal"))
}

/// Returns the log files with their numbers, in order.
pub(crate) fn files(vfs: &dyn Vfs, dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    numbered(vfs, dir, ".wal")
}

/// Returns the files of a folder that are named by a number and a suffix, in order.
pub(crate) fn numbered(vfs: &dyn Vfs, dir: &Path, suffix: &str) -> io::Result<Vec<(u64, PathBuf)>> {
    let number = |p: &PathBuf| {
        let name = p.file_name()?.to_str()?.strip_suffix(suffix)?;
        name.parse().ok()
    };
    let list = match vfs.list(dir) {
        // A backup has no log.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    let mut out: Vec<_> = list.into_iter().filter_map(|p| Some((number(&p)?, p))).collect();
    out.sort();
    Ok(out)
}

fn checksum(len: [u8; 4], kind: u8, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&len), &[kind]);
    crc32c::crc32c_append(crc, payload)
}

/// Appends a frame to a buffer that will be written whole.
pub(crate) fn put_frame(buf: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    let at = begin_frame(buf, kind);
    buf.extend_from_slice(payload);
    end_frame(buf, at);
}

/// Starts a frame whose payload the caller appends to `buf`; see [`end_frame`].
pub(crate) fn begin_frame(buf: &mut Vec<u8>, kind: u8) -> usize {
    let at = buf.len();
    buf.extend_from_slice(&MARKER);
    buf.extend_from_slice(&[0; 8]);
    buf.push(kind);
    at
}

/// Fills in the length and checksum of the frame that began at `at`; returns its payload's length.
pub(crate) fn end_frame(buf: &mut [u8], at: usize) -> usize {
    let Some((header, payload)) =
        buf.get_mut(at..).and_then(|b| b.split_at_mut_checked(HEADER_BYTES))
    else {
        return 0;
    };
    let len = (payload.len() as u32).to_le_bytes();
    let kind = header.last().copied().unwrap_or_default();
    let crc = checksum(len, kind, payload).to_le_bytes();
    for (to, from) in header.iter_mut().skip(4).zip(len.into_iter().chain(crc)) {
        *to = from;
    }
    payload.len()
}

/// A file of frames that is being appended to.
#[derive(Debug)]
pub(crate) struct WalFile {
    file: Box<dyn WriteFile>,
    pub(crate) number: u64,
    pub(crate) bytes: u64,
}

impl WalFile {
    pub(crate) fn create(vfs: &dyn Vfs, dir: &Path, number: u64) -> io::Result<Self> {
        Self::create_at(vfs, &file_path(dir, number), WAL_MAGIC, number)
    }

    pub(crate) fn create_at(
        vfs: &dyn Vfs,
        path: &Path,
        magic: &[u8; 8],
        number: u64,
    ) -> io::Result<Self> {
        let mut file = vfs.create(path)?;
        file.append(magic)?;
        file.sync()?;
        Ok(Self { file, number, bytes: magic.len() as u64 })
    }

    /// Appends frames made by [`put_frame`] and returns once they are on the device.
    pub(crate) fn commit(&mut self, frames: &[u8]) -> io::Result<()> {
        self.file.append(frames)?;
        self.file.sync()?;
        self.bytes += frames.len() as u64;
        Ok(())
    }
}

/// What reading a log file found besides frames.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Damage {
    /// (offset, length) of stretches that are no frame although a later write follows.
    pub(crate) bad: Vec<(u64, u64)>,
    /// Where the last write of the file stops being frames, and how many of its bytes are none: a
    /// crash cut it short or lost sectors of it, or it was damaged.
    pub(crate) torn: Option<(u64, u64)>,
}

/// Reads the frames of a file in order and hands each good payload to `visit`.
///
/// # Errors
/// When the file cannot be read or is of a newer version.
pub(crate) fn read_file(
    file: &dyn ReadFile,
    magic: &[u8; 8],
    mut visit: impl FnMut(u64, u8, &[u8]) -> io::Result<()>,
) -> io::Result<Damage> {
    let mut damage = Damage::default();
    let total = file.len();
    let mut r = Reader { file, total, buf: Vec::new(), start: 0 };
    let mut at = 0;
    match r.bytes(0, 8)? {
        Some(found) if found == magic => at = 8,
        // One flipped bit must not pass for another version: that would hide a whole file.
        Some(found) if found.get(..7) == magic.get(..7) => {
            let rest_is_ours = matches!(r.frame(8)?, Some((_, len)) if len > 0);
            if total > 8 && !rest_is_ours {
                let text = "file of another version than this program writes";
                return Err(io::Error::new(io::ErrorKind::Unsupported, text));
            }
        }
        _ => {}
    }
    // End of the last good frame; what lies between it and the next good one is damage.
    let mut good_end = at;
    // Stretches behind the last good frame that begins a write. A disk that loses power keeps the
    // sectors of an unsynced write in any order, so that its end may be there and its middle not.
    let mut unfinished: Vec<(u64, u64)> = Vec::new();
    while at < total {
        if let Some((kind, len)) = r.frame(at)? {
            if at > good_end {
                unfinished.push((good_end, at - good_end));
            }
            if kind & CONTINUES == 0 {
                damage.bad.append(&mut unfinished);
            }
            let payload = r.bytes(at + HEADER_BYTES as u64, len)?.unwrap_or_default();
            visit(at, kind & !CONTINUES, payload)?;
            at += (HEADER_BYTES + len) as u64;
            good_end = at;
        } else {
            match r.next_marker(at + 1)? {
                Some(next) => at = next,
                None => break,
            }
        }
    }
    if good_end < total {
        unfinished.push((good_end, total - good_end));
    }
    let bytes = unfinished.iter().map(|(_, n)| n).sum();
    damage.torn = unfinished.first().map(|(at, _)| (*at, bytes));
    Ok(damage)
}

/// A window over a file, so that reading frame by frame does few reads.
struct Reader<'a> {
    file: &'a dyn ReadFile,
    total: u64,
    buf: Vec<u8>,
    start: u64,
}

/// Bytes read at once.
const WINDOW: usize = 1 << 20;

impl Reader<'_> {
    /// Returns `len` bytes at `at`, or `None` past the end.
    fn bytes(&mut self, at: u64, len: usize) -> io::Result<Option<&[u8]>> {
        if at.checked_add(len as u64).is_none_or(|end| end > self.total) {
            return Ok(None);
        }
        let inside = at >= self.start && at + len as u64 <= self.start + self.buf.len() as u64;
        if !inside {
            let want = (len.max(WINDOW) as u64).min(self.total - at) as usize;
            self.buf.resize(want, 0);
            self.file.read_at(at, &mut self.buf)?;
            self.start = at;
        }
        let from = (at - self.start) as usize;
        Ok(self.buf.get(from..from + len))
    }

    /// Returns type and payload length of the frame at `at` if it is whole and good.
    fn frame(&mut self, at: u64) -> io::Result<Option<(u8, usize)>> {
        let Some(header) = self.bytes(at, HEADER_BYTES)? else { return Ok(None) };
        let [m0, m1, m2, m3, l0, l1, l2, l3, c0, c1, c2, c3, kind] = *header else {
            return Ok(None);
        };
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if [m0, m1, m2, m3] != MARKER || len > FRAME_BYTES_MAX {
            return Ok(None);
        }
        let Some(payload) = self.bytes(at + HEADER_BYTES as u64, len)? else { return Ok(None) };
        let good =
            checksum([l0, l1, l2, l3], kind, payload) == u32::from_le_bytes([c0, c1, c2, c3]);
        Ok(good.then_some((kind, len)))
    }

    /// Returns the offset of the next marker at or after `at`.
    fn next_marker(&mut self, mut at: u64) -> io::Result<Option<u64>> {
        while at + 4 <= self.total {
            let n = ((self.total - at) as usize).min(WINDOW);
            let Some(window) = self.bytes(at, n)? else { return Ok(None) };
            if let Some(i) = memchr::memmem::find(window, &MARKER) {
                return Ok(Some(at + i as u64));
            }
            if n < WINDOW {
                return Ok(None);
            }
            at += (n - 3) as u64;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::OsVfs;

    fn write_three(dir: &Path) -> PathBuf {
        let mut wal = WalFile::create(&OsVfs, dir, 1).unwrap();
        for payload in [&b"one"[..], b"two", b"three"] {
            let mut buf = Vec::new();
            put_frame(&mut buf, FRAME_BATCH, payload);
            wal.commit(&buf).unwrap();
        }
        file_path(dir, 1)
    }

    fn read(path: &Path) -> (Vec<String>, Damage) {
        let mut seen = Vec::new();
        let file = OsVfs.open(path).unwrap();
        let damage = read_file(&*file, WAL_MAGIC, |_, _, p| {
            seen.push(String::from_utf8_lossy(p).into_owned());
            Ok(())
        });
        (seen, damage.unwrap())
    }

    #[test]
    fn every_truncation_keeps_the_whole_frames_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_three(dir.path());
        let whole = std::fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (seen, damage) = read(&path);
            let expect = [24, 40, 58].iter().filter(|end| cut >= **end).count();
            assert_eq!(seen.len(), expect, "cut at {cut}");
            assert_eq!(damage.torn.is_some(), ![0, 8, 24, 40].contains(&cut), "cut at {cut}");
        }
    }

    /// Two writes of three frames each.
    fn write_two_groups(dir: &Path) -> PathBuf {
        let mut wal = WalFile::create(&OsVfs, dir, 1).unwrap();
        for group in [["a", "b", "c"], ["d", "e", "f"]] {
            let mut buf = Vec::new();
            for payload in group {
                let kind = FRAME_BATCH | continues(&buf);
                put_frame(&mut buf, kind, payload.as_bytes());
            }
            wal.commit(&buf).unwrap();
        }
        file_path(dir, 1)
    }

    #[test]
    fn a_hole_in_the_last_write_is_no_damage_and_one_before_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_two_groups(dir.path());
        let whole = std::fs::read(&path).unwrap();
        // Frames lost, of 14 bytes each behind 8 of magic; what is seen; where it is bad and torn.
        let cases: [(&[u64], _, &[u64], _); 7] = [
            (&[], "abcdef", &[], None),
            (&[0], "bcdef", &[8], None),
            (&[1], "acdef", &[22], None),
            (&[4], "abcdf", &[], Some(64)),
            (&[5], "abcde", &[], Some(78)),
            // A write whose beginning is gone may be the last or the one before.
            (&[3], "abcef", &[], Some(50)),
            (&[1, 4], "acdf", &[22], Some(64)),
        ];
        for (lost, seen, bad, torn) in cases {
            let bad = bad.iter().map(|at| (*at, 14)).collect();
            let torn = torn.map(|at| (at, 14));
            let mut bytes = whole.clone();
            for frame in lost {
                let at = (8 + frame * 14) as usize;
                bytes[at..at + 14].fill(0);
            }
            std::fs::write(&path, bytes).unwrap();
            let found = read(&path);
            assert_eq!(found.0.concat(), seen, "{lost:?}");
            assert_eq!(found.1, Damage { bad, torn }, "{lost:?}");
        }
    }

    #[test]
    fn any_flipped_bit_costs_at_most_one_frame() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_three(dir.path());
        let whole = std::fs::read(&path).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            let (seen, damage) = read(&path);
            let at = bit / 8;
            let lost = [8..24, 24..40, 40..58].iter().position(|r| r.contains(&at));
            let want: Vec<_> = ["one", "two", "three"]
                .into_iter()
                .enumerate()
                .filter(|(i, _)| Some(*i) != lost)
                .map(|(_, s)| s)
                .collect();
            assert_eq!(seen, want, "bit {bit}");
            assert!(!damage.bad.is_empty() || damage.torn.is_some(), "bit {bit} went unnoticed");
        }
    }
}
