//! Offline check of a data directory: every frame, every block, every manifest row.

use crate::checked::CheckedFile;
use crate::manifest::Manifest;
use crate::vfs::Vfs;
use crate::{wal, writer};
use std::collections::HashMap;
use std::path::Path;

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Path below the data directory.
    pub file: String,
    pub problem: String,
    /// False for what a crash leaves behind legitimately (an unfinished last write).
    pub is_damage: bool,
}

/// What a verification looked at and found.
#[derive(Debug, Clone, Default)]
pub struct VerifyReport {
    pub wal_files: u64,
    pub batches: u64,
    pub segments: u64,
    pub blocks: u64,
    pub bytes: u64,
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

/// Checks a data directory that no process has open.
///
/// # Errors
/// When the directory itself cannot be read; what is wrong inside becomes a finding.
pub fn verify(dir: &Path, vfs: &dyn Vfs) -> std::io::Result<VerifyReport> {
    let mut report = VerifyReport::default();
    let wal_files = wal::files(vfs, &dir.join("wal"))?;
    for (number, path) in wal_files {
        let name = format!("wal/{number:010}.wal");
        if let Err(e) = verify_wal(vfs, &path, &name, &mut report) {
            report.find(&name, e.to_string(), true);
        }
    }
    let manifest = dir.join("manifest.sqlite");
    if !manifest.exists() {
        return Ok(report);
    }
    match Manifest::open(&manifest).and_then(|m| m.segments()) {
        Err(e) => report.find("manifest.sqlite", e.to_string(), true),
        Ok(segments) => {
            for meta in segments {
                report.segments += 1;
                let name = meta.relative_path();
                match CheckedFile::open(vfs, &dir.join(&name)) {
                    Err(e) => report.find(&name, e.to_string(), true),
                    Ok(file) => verify_blocks(&file, &name, &mut report),
                }
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
    let mut dictionary = HashMap::new();
    let mut undecodable = Vec::new();
    let damage = wal::read_file(&*file, |at, _, payload| {
        match writer::decode_frame(payload, &mut dictionary) {
            Ok(_) => report.batches += 1,
            Err(e) => undecodable.push(format!("frame at byte {at}: {e}")),
        }
        Ok(())
    })?;
    for problem in undecodable {
        report.find(name, problem, true);
    }
    if damage.bad_frames > 0 {
        report.find(
            name,
            format!("{} frames do not match their checksum", damage.bad_frames),
            true,
        );
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

fn verify_blocks(file: &CheckedFile, name: &str, report: &mut VerifyReport) {
    for i in 0..file.blocks() {
        report.blocks += 1;
        match file.block(i) {
            Ok(block) => report.bytes += block.len() as u64,
            Err(e) => report.find(name, e.to_string(), true),
        }
    }
}
