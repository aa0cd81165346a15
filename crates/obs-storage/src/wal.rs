//! The write-ahead log: numbered files of checksummed frames.
//!
//! File: 8 bytes magic and version, then frames. Frame: payload length (u32), CRC32C of length,
//! type and payload (u32), type (u8), payload; little endian (`docs/format/wal.md`).

use crate::vfs::{ReadFile, Vfs, WriteFile};
use std::io;
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"OBSWAL\0\x01";
const HEADER_BYTES: usize = 9;
/// Larger frames are refused on write and are damage on read.
pub(crate) const FRAME_BYTES_MAX: usize = 128 << 20;

/// The only frame type so far: one write batch.
pub(crate) const FRAME_BATCH: u8 = 1;

pub(crate) fn file_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.wal"))
}

/// Returns the log files with their numbers, in order.
pub(crate) fn files(vfs: &dyn Vfs, dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let number = |p: &PathBuf| {
        let name = p.file_name()?.to_str()?.strip_suffix(".wal")?;
        name.parse().ok()
    };
    let mut out: Vec<_> =
        vfs.list(dir)?.into_iter().filter_map(|p| Some((number(&p)?, p))).collect();
    out.sort();
    Ok(out)
}

fn checksum(len: [u8; 4], kind: u8, payload: &[u8]) -> u32 {
    let crc = crc32c::crc32c_append(crc32c::crc32c(&len), &[kind]);
    crc32c::crc32c_append(crc, payload)
}

/// Appends a frame to a buffer that will be written whole.
pub(crate) fn put_frame(buf: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    debug_assert!(payload.len() <= FRAME_BYTES_MAX);
    let len = (payload.len() as u32).to_le_bytes();
    buf.extend_from_slice(&len);
    buf.extend_from_slice(&checksum(len, kind, payload).to_le_bytes());
    buf.push(kind);
    buf.extend_from_slice(payload);
}

/// The file that is being appended to.
#[derive(Debug)]
pub(crate) struct WalFile {
    file: Box<dyn WriteFile>,
    pub(crate) number: u64,
    pub(crate) bytes: u64,
}

impl WalFile {
    pub(crate) fn create(vfs: &dyn Vfs, dir: &Path, number: u64) -> io::Result<Self> {
        let mut file = vfs.create(&file_path(dir, number))?;
        file.append(MAGIC)?;
        file.sync()?;
        Ok(Self { file, number, bytes: MAGIC.len() as u64 })
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
    /// Frames whose checksum failed while the next frame was found where it had to be.
    pub(crate) bad_frames: u64,
    /// Offset at which the file stops making sense, and how many bytes follow: a write that a
    /// crash cut short, or damage.
    pub(crate) torn: Option<(u64, u64)>,
}

/// Reads the frames of a file in order and hands each good payload to `visit`.
///
/// A frame with a wrong checksum is skipped when another good frame follows it; otherwise the
/// rest of the file is reported as torn.
pub(crate) fn read_file(
    file: &dyn ReadFile,
    mut visit: impl FnMut(u64, u8, &[u8]) -> io::Result<()>,
) -> io::Result<Damage> {
    let mut damage = Damage::default();
    let total = file.len();
    let mut magic = [0; 8];
    if total < 8 || file.read_at(0, &mut magic).is_err() || &magic != MAGIC {
        if magic.starts_with(b"OBSWAL\0") && &magic != MAGIC {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "log file of a newer version"));
        }
        damage.torn = Some((0, total));
        return Ok(damage);
    }
    let mut at = 8_u64;
    let mut pending_bad = 0;
    let mut pending_at = 0;
    let mut payload = Vec::new();
    while at < total {
        match read_frame(file, at, total, &mut payload)? {
            Frame::Good(kind) => {
                damage.bad_frames += pending_bad;
                pending_bad = 0;
                visit(at, kind, &payload)?;
                at += (HEADER_BYTES + payload.len()) as u64;
            }
            Frame::BadChecksum => {
                if pending_bad == 0 {
                    pending_at = at;
                }
                pending_bad += 1;
                at += (HEADER_BYTES + payload.len()) as u64;
            }
            Frame::Cut => break,
        }
    }
    let torn_at = if pending_bad > 0 { pending_at } else { at };
    if torn_at < total {
        damage.torn = Some((torn_at, total - torn_at));
    }
    Ok(damage)
}

enum Frame {
    Good(u8),
    BadChecksum,
    Cut,
}

fn read_frame(
    file: &dyn ReadFile,
    at: u64,
    total: u64,
    payload: &mut Vec<u8>,
) -> io::Result<Frame> {
    if total - at < HEADER_BYTES as u64 {
        return Ok(Frame::Cut);
    }
    let mut header = [0; HEADER_BYTES];
    file.read_at(at, &mut header)?;
    let [l0, l1, l2, l3, c0, c1, c2, c3, kind] = header;
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if len > FRAME_BYTES_MAX || len as u64 > total - at - HEADER_BYTES as u64 {
        return Ok(Frame::Cut);
    }
    payload.resize(len, 0);
    file.read_at(at + HEADER_BYTES as u64, payload)?;
    let good = checksum([l0, l1, l2, l3], kind, payload) == u32::from_le_bytes([c0, c1, c2, c3]);
    Ok(if good { Frame::Good(kind) } else { Frame::BadChecksum })
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
        let damage = read_file(&*file, |_, _, p| {
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
            let expect = [20, 32, 46].iter().filter(|end| cut >= **end).count();
            assert_eq!(seen.len(), expect, "cut at {cut}");
            assert_eq!(damage.torn.is_some(), ![8, 20, 32].contains(&cut), "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_payload_bit_costs_one_frame() {
        let dir = tempfile::tempdir().unwrap();
        let path = write_three(dir.path());
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[30] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let (seen, damage) = read(&path);
        assert_eq!(seen, ["one", "three"]);
        assert_eq!(damage, Damage { bad_frames: 1, torn: None });
    }
}
