//! `observatory backup` and `restore`.
//!
//! A backup is a data directory without a log. It gets its name only after every byte of it was
//! checked and synced, so that one that was cut short never passes for a whole one.

use crate::cli::{BackupArgs, Output, OutputArgs, RestoreArgs, UsageError, say};
use crate::client::block_on;
use anyhow::{Context as _, Result, bail, ensure};
use obs_storage::vfs::OsVfs;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use tokio::sync::mpsc;

type Chunk = Vec<u8>;

/// Reads the chunks of a download on a blocking thread.
struct Download {
    chunks: mpsc::Receiver<Chunk>,
    chunk: Chunk,
    at: usize,
}

impl Read for Download {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.chunks.blocking_recv() {
                Some(chunk) => (self.chunk, self.at) = (chunk, 0),
                None => return Ok(0),
            }
        }
        let left = self.chunk.get(self.at..).unwrap_or_default();
        let n = left.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(left) {
            *to = *from;
        }
        self.at += n;
        Ok(n)
    }
}

pub(crate) fn backup(a: &BackupArgs) -> Result<ExitCode> {
    let made = Unfinished::new(&a.to)?;
    let url = format!("{}/api/v1/storage/backup", a.url.trim_end_matches('/'));
    let dir = made.dir.clone();
    block_on(async {
        let request = reqwest::Client::new().get(&url).send();
        let mut response = request
            .await
            .with_context(|| format!("failed to reach {url}; is the server running?"))?;
        if !response.status().is_success() {
            let status = response.status();
            bail!("{url} answered {status}: {}", response.text().await.unwrap_or_default());
        }
        let (sender, chunks) = mpsc::channel(16);
        let unpack = tokio::task::spawn_blocking(move || {
            unpack(Download { chunks, chunk: Chunk::new(), at: 0 }, &dir)
        });
        while let Some(chunk) = response.chunk().await.context("the download was cut off")? {
            if sender.send(chunk.to_vec()).await.is_err() {
                break;
            }
        }
        drop(sender);
        unpack.await.context("failed to unpack")?
    })?;
    made.finish(&a.output)
}

/// Unpacks a stream of plain files; names that lead out of the directory are refused.
fn unpack(stream: impl Read, dir: &Path) -> Result<()> {
    let mut tar = tar::Archive::new(stream);
    for entry in tar.entries()? {
        let mut entry = entry.context("failed to read the backup stream")?;
        let name = entry.path()?.into_owned();
        let plain = name.components().all(|c| matches!(c, Component::Normal(_)));
        ensure!(
            plain && entry.header().entry_type().is_file(),
            "the backup stream holds {name:?}, which is no plain file below the directory"
        );
        write_synced(&mut entry, &dir.join(&name))?;
    }
    Ok(())
}

fn write_synced(from: &mut impl Read, path: &Path) -> Result<()> {
    let text = || format!("failed to write {}", path.display());
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(text)?;
    }
    let mut file = File::create_new(path).with_context(text)?;
    io::copy(from, &mut file).with_context(text)?;
    file.sync_all().with_context(text)
}

fn files_below(dir: &Path, out: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), out)?;
        } else {
            out.push(entry.path());
        }
    }
    Ok(())
}

/// Makes the names in a directory and those below durable.
fn sync_dirs(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_dirs(&entry.path())?;
        }
    }
    File::open(dir)?.sync_all()
}

/// A directory under a temporary name, removed unless it is finished.
struct Unfinished {
    dir: PathBuf,
    to: PathBuf,
    done: bool,
}

impl Unfinished {
    fn new(to: &Path) -> Result<Self> {
        let is_free = match fs::read_dir(to) {
            Ok(mut entries) => entries.next().is_none(),
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        };
        if !is_free {
            return Err(UsageError(format!("{} exists and is not empty", to.display())).into());
        }
        let mut name = OsString::from(to);
        name.push(".partial");
        let dir = PathBuf::from(name);
        if dir.exists() {
            return Err(UsageError(format!(
                "{} exists: another run makes it, or one was cut off; remove it",
                dir.display()
            ))
            .into());
        }
        fs::create_dir_all(&dir).with_context(|| format!("failed to make {}", dir.display()))?;
        Ok(Self { dir, to: to.to_owned(), done: false })
    }

    /// Checks every byte and gives the directory its name.
    fn finish(mut self, output: &OutputArgs) -> Result<ExitCode> {
        let report = obs_storage::verify(&self.dir, &OsVfs)?;
        if let Some(f) = report.findings.iter().find(|f| f.is_damage) {
            bail!("the copy is damaged: {}: {}", f.file, f.problem);
        }
        sync_dirs(&self.dir).context("failed to sync")?;
        fs::rename(&self.dir, &self.to)
            .with_context(|| format!("failed to name {}", self.to.display()))?;
        self.done = true;
        if let Some(parent) = self.to.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            File::open(parent).and_then(|d| d.sync_all()).context("failed to sync")?;
        }
        match output.output {
            Output::Json => say(&serde_json::json!({"dir": self.to, "segments": report.segments, "blocks": report.blocks, "bytes": report.bytes}).to_string()),
            Output::Text => say(&format!(
                "{}: {} segments, {} bytes, every block checked",
                self.to.display(),
                report.segments,
                report.bytes
            )),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.done {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

pub(crate) fn restore(a: &RestoreArgs) -> Result<ExitCode> {
    if !a.from.join("manifest").is_dir() {
        return Err(
            UsageError(format!("{} is no backup: it has no manifest/", a.from.display())).into()
        );
    }
    let made = Unfinished::new(&a.to)?;
    let mut files = Vec::new();
    files_below(&a.from, &mut files)
        .with_context(|| format!("failed to list {}", a.from.display()))?;
    for path in files {
        let name = path.strip_prefix(&a.from).context("a path outside the backup")?;
        let mut from =
            File::open(&path).with_context(|| format!("failed to read {}", path.display()))?;
        write_synced(&mut from, &made.dir.join(name))?;
    }
    made.finish(&a.output)
}
