//! What is gathered for the next request: in memory, and in a file that outlives the process.
//!
//! A file is a list of frames, each its length, its CRC32C and a request of version 1 in the bytes
//! of the protocol. It is not synced: a crash of the process loses nothing, one of the machine the
//! last seconds.

use super::{Known, Points};
use obs_codec::remote_write::{decode, encode};
use obs_model::{Labels, MetricMetadata, Sample};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

const ENDING: &str = ".gathered";

/// Samples and metadata that no request has yet.
#[derive(Debug)]
pub(super) struct Gathered {
    folder: PathBuf,
    points: Points,
    metadata: Known,
    /// The file being written, once there is one.
    file: Option<File>,
    /// Files that hold what is gathered, the one being written last.
    files: Vec<PathBuf>,
    next: u64,
}

/// What becomes requests; the files go when these are durable.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) points: Points,
    pub(super) metadata: Known,
    pub(super) files: Vec<PathBuf>,
}

impl Gathered {
    /// Takes up what a run before left behind.
    pub(super) fn open(folder: &Path) -> Self {
        let mut numbers: Vec<u64> = fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|f| f.ok()?.file_name().to_str()?.strip_suffix(ENDING)?.parse().ok())
            .collect();
        numbers.sort_unstable();
        let mut out = Self {
            folder: folder.to_owned(),
            points: Points::new(),
            metadata: Known::default(),
            file: None,
            files: Vec::new(),
            next: numbers.last().map_or(1, |n| n + 1),
        };
        for n in numbers {
            let path = folder.join(format!("{n}{ENDING}"));
            let bytes = fs::read(&path).unwrap_or_default();
            for frame in frames(&bytes) {
                if let Ok(d) = decode(frame, &mut |_, build| build()) {
                    out.points.extend(d.items.points);
                    out.metadata.extend(d.items.metadata.into_iter().map(|m| (m.name.clone(), m)));
                }
            }
            out.files.push(path);
        }
        out
    }

    /// Returns whether metadata is gathered already.
    pub(super) fn has(&self, m: &MetricMetadata) -> bool {
        self.metadata.get(&m.name) == Some(m)
    }

    pub(super) fn add(&mut self, points: Points, metadata: Vec<MetricMetadata>) {
        if let Err(e) = self.write(&points, &metadata) {
            tracing::warn!(folder = %self.folder.display(), error = %e, "samples that are gathered for remote write are in memory alone");
        }
        self.points.extend(points);
        self.metadata.extend(metadata.into_iter().map(|m| (m.name.clone(), m)));
    }

    fn write(
        &mut self,
        points: &[(Labels, Sample)],
        metadata: &[MetricMetadata],
    ) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let path = self.folder.join(format!("{}{ENDING}", self.next));
                let file = OpenOptions::new().append(true).create(true).open(&path)?;
                self.next += 1;
                self.files.push(path);
                none.insert(file)
            }
        };
        let body = encode(points, metadata);
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let mut frame = Vec::with_capacity(body.len() + 8);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
        frame.extend_from_slice(&body);
        file.write_all(&frame)
    }

    /// Takes what was gathered, if it is `enough` samples, or anything when `all` is wanted.
    pub(super) fn take(&mut self, enough: usize, all: bool) -> Option<Taken> {
        let is_empty = self.points.is_empty() && self.metadata.is_empty();
        let is_due = self.points.len() >= enough || all && !is_empty;
        is_due.then(|| {
            self.file = None;
            Taken {
                points: std::mem::take(&mut self.points),
                metadata: std::mem::take(&mut self.metadata),
                files: std::mem::take(&mut self.files),
            }
        })
    }
}

/// Returns the frames of a file up to the first that is not whole.
fn frames(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut out = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk()
        && let Some((crc, rest)) = rest.split_first_chunk()
        && let Some((frame, rest)) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)
        && crc32c::crc32c(frame) == u32::from_le_bytes(*crc)
    {
        out.push(frame);
        bytes = rest;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::MetricKind;

    #[test]
    fn what_was_gathered_is_taken_up_after_a_crash_at_any_byte() {
        let dir = tempfile::tempdir().unwrap();
        let series = |n: &str| Labels::from_pairs([("__name__", n)]);
        let about = MetricMetadata {
            name: "a_total".into(),
            kind: MetricKind::Counter,
            help: "A.".into(),
            unit: String::new(),
        };
        let mut g = Gathered::open(dir.path());
        g.add(vec![(series("a_total"), Sample::float(1, 1.0))], vec![about.clone()]);
        g.add(
            vec![(series("b"), Sample::float(2, 2.0)), (series("c"), Sample::float(2, 3.0))],
            vec![],
        );
        let path = dir.path().join("1.gathered");
        let whole = fs::read(&path).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for cut in 0..=whole.len() {
            fs::write(&path, whole.get(..cut).unwrap()).unwrap();
            let mut again = Gathered::open(dir.path());
            assert_eq!(again.has(&about), !again.points.is_empty());
            seen.insert(again.points.len());
            // What comes next is written behind nothing that is torn.
            again.add(vec![(series("d"), Sample::float(3, 4.0))], vec![]);
            let both = Gathered::open(dir.path());
            assert_eq!(both.points, again.points);
            fs::remove_file(dir.path().join("2.gathered")).unwrap();
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 1, 3]);
        // Taken together they are gone with their files.
        let mut last = Gathered::open(dir.path());
        assert!(last.take(100, false).is_none());
        let taken = last.take(3, false).unwrap();
        assert_eq!((taken.points.len(), taken.files), (3, vec![path]));
        assert!(last.take(1, true).is_none());
    }
}
