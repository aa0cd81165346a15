//! Offline check of a data directory: every frame, every block, every manifest row.

use crate::frame::{self, Dictionary, Entries, Entry};
use crate::manifest::{self, SegmentMeta};
use crate::segment::Signal;
use crate::segment::file::SegmentFile;
use crate::segment::rows::RowSegment;
use crate::segment::series::SeriesSegment;
use crate::state;
use crate::tier::Whole;
use crate::vfs::{ReadFile, Vfs};
use crate::wal::{self, WAL_MAGIC};
use obs_model::Objects;
use std::path::Path;
use std::sync::Arc;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Path below the data directory.
    pub file: String,
    pub problem: String,
    /// False for what a crash leaves behind legitimately (an unfinished last write).
    pub is_damage: bool,
}

/// Which segments are not in the directory but in an object store.
#[derive(Debug, Clone)]
pub enum Elsewhere {
    /// Those that moved are not checked.
    Nothing,
    Moved(Arc<dyn Objects>),
    /// All of them, under their paths below the directory: a backup.
    All(Arc<dyn Objects>),
}

/// What a verification looked at and found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    pub wal_files: u64,
    pub batches: u64,
    pub segments: u64,
    pub blocks: u64,
    pub bytes: u64,
    /// Segments in an object store that was not given.
    pub unchecked: u64,
    pub findings: Vec<Finding>,
}

impl VerifyReport {
    pub fn is_damaged(&self) -> bool {
        self.findings.iter().any(|f| f.is_damage)
    }

    fn find(&mut self, file: &str, problem: impl Into<String>, is_damage: bool) {
        self.findings.push(Finding { file: file.to_owned(), problem: problem.into(), is_damage });
    }
}

/// Checks a data directory that no process has open, and its segments elsewhere.
///
/// # Errors
/// When the directory itself cannot be read; what is wrong inside becomes a finding.
pub fn verify(dir: &Path, vfs: &dyn Vfs, elsewhere: &Elsewhere) -> std::io::Result<VerifyReport> {
    let mut report = VerifyReport::default();
    for (number, path) in wal::files(vfs, &dir.join("wal"))? {
        let name = format!("wal/{number:010}.wal");
        if let Err(e) = verify_wal(vfs, &path, &name, &mut report) {
            report.find(&name, e.to_string(), true);
        }
    }
    match state::load(vfs, &dir.join("state")) {
        Err(e) => report.find("state", e.to_string(), true),
        Ok(loaded) => {
            for (file, problem, is_damage) in &loaded.findings {
                report.find(file, problem.clone(), *is_damage);
            }
        }
    }
    match manifest::load(vfs, &dir.join("manifest")) {
        Err(e) => report.find("manifest", e.to_string(), true),
        Ok(loaded) => {
            for (file, problem) in &loaded.damage {
                // A crash leaves an unfinished last edit, or a generation half begun.
                report.find(file, problem.clone(), !manifest::is_leftover(problem));
            }
            if loaded.lost {
                report.find("manifest", "edits are missing in both copies", true);
            }
            let moved = |m: &SegmentMeta| {
                let key = loaded.state.objects.get(&m.id);
                key.filter(|_| loaded.state.moved.contains(&m.id))
            };
            for meta in loaded.state.segments.values() {
                let object = |o: &Arc<dyn Objects>, key: &str| {
                    Box::new(Whole::of(o.clone(), key.to_owned(), meta.bytes))
                };
                let file: Box<dyn ReadFile> = match (moved(meta), elsewhere) {
                    (_, Elsewhere::All(o)) => object(o, &meta.relative_path()),
                    (Some(key), Elsewhere::Moved(o)) => object(o, key),
                    (Some(_), Elsewhere::Nothing) => {
                        report.unchecked += 1;
                        continue;
                    }
                    (None, _) => match vfs.open(&dir.join(meta.relative_path())) {
                        Ok(f) => f,
                        Err(e) => {
                            report.segments += 1;
                            report.find(&meta.relative_path(), e.to_string(), true);
                            continue;
                        }
                    },
                };
                report.segments += 1;
                verify_segment(file, dir, meta, &mut report);
            }
        }
    }
    Ok(report)
}

fn verify_wal(
    vfs: &dyn Vfs,
    path: &Path,
    name: &str,
    report: &mut VerifyReport,
) -> std::io::Result<()> {
    let file = vfs.open(path)?;
    report.wal_files += 1;
    report.bytes += file.len();
    let (mut entries, mut dictionary) = (Entries::default(), Dictionary::default());
    let mut undecodable = Vec::new();
    let damage = wal::read_file(&*file, WAL_MAGIC, |at, kind, payload| {
        let result = match entries.read(kind, payload) {
            Ok(Some(Entry::Series(series))) => {
                dictionary.define(series);
                Ok(())
            }
            Ok(Some(Entry::Batch(b))) => {
                report.batches += 1;
                check_series(&dictionary, &b)
            }
            Ok(None) => Ok(()),
            Err(e) => Err(e.to_string()),
        };
        if let Err(e) = result {
            undecodable.push((at, format!("frame at byte {at}: {e}")));
        }
        Ok(())
    })?;
    for (at, problem) in undecodable {
        // Samples whose series were to be defined in the part that is missing.
        let is_unfinished = damage.torn.is_some_and(|(torn, _)| torn < at);
        report.find(name, problem, !is_unfinished);
    }
    for (at, bytes) in damage.bad {
        let problem = format!("{bytes} bytes from byte {at} are no frame although a write follows");
        report.find(name, problem, true);
    }
    if let Some((at, bytes)) = damage.torn {
        report.find(
            name,
            format!("{bytes} bytes from byte {at} are no whole frame (a write cut short)"),
            false,
        );
    }
    Ok(())
}

fn check_series(dictionary: &Dictionary, b: &frame::Decoded) -> Result<(), String> {
    let known = dictionary.get(&b.tenant);
    let missing = |n: &u32| known.is_none_or(|k| !k.contains(*n));
    match b.samples.iter().map(|(n, _)| n).find(|n| missing(n)) {
        Some(n) => Err(format!("samples of series {n}, which the file does not define")),
        None => Ok(()),
    }
}

fn verify_segment(
    file: Box<dyn ReadFile>,
    dir: &Path,
    meta: &SegmentMeta,
    report: &mut VerifyReport,
) {
    let name = meta.relative_path();
    let mut notes = Vec::new();
    let len = file.len();
    let opened = SegmentFile::read_from(file, &dir.join(&name), Some(meta.index), &mut notes);
    for note in notes {
        report.find(&name, note, true);
    }
    let (file, index) = match opened {
        Ok(o) => o,
        Err(e) => return report.find(&name, e.to_string(), true),
    };
    for problem in file.check_copies(meta.index) {
        report.find(&name, problem, true);
    }
    if len != meta.bytes {
        report.find(&name, format!("is {len} bytes long, the manifest says {}", meta.bytes), true);
    }
    let blocks: Result<Vec<_>, _> = match meta.signal {
        Signal::Metrics => SeriesSegment::new(file, &index)
            .map(|s| s.all_blocks().map(|b| (b, s.file().read(b).err())).collect()),
        Signal::Logs | Signal::Spans | Signal::Calls => RowSegment::new(file, &index)
            .map(|s| s.all_blocks().map(|b| (b, s.file().read(b).err())).collect()),
    };
    match blocks {
        Err(e) => report.find(&name, format!("index: {e}"), true),
        Ok(blocks) => {
            for (b, error) in blocks {
                report.blocks += 1;
                report.bytes += u64::from(b.len);
                if let Some(e) = error {
                    report.find(&name, e.to_string(), true);
                }
            }
        }
    }
}
