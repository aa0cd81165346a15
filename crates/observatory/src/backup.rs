//! `observatory backup` and `restore`.
//!
//! A backup is a data directory without a log. It gets its name, or in an object store its list,
//! only after every byte of it was checked and synced, so that one that was cut short never passes
//! for a whole one.

use crate::cli::{BackupArgs, Output, OutputArgs, RestoreArgs, UsageError, say, with_objects};
use crate::client::block_on;
use anyhow::{Context as _, Result, bail, ensure};
use obs_model::{Objects, ReadAt};
use obs_storage::vfs::OsVfs;
use obs_storage::{Elsewhere, VerifyReport};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::sync::mpsc;

type Chunk = Vec<u8>;

/// The chunks of a download, waited for on a blocking thread.
struct Chunks(mpsc::Receiver<Chunk>);

impl Iterator for Chunks {
    type Item = io::Result<Chunk>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.blocking_recv().map(Ok)
    }
}

type Download = Parts<Chunks>;

pub(crate) fn backup(a: &BackupArgs) -> Result<ExitCode> {
    if obs_objects::is_url(&a.to) {
        return with_objects(&a.to, |objects| backup_to_objects(a, objects));
    }
    let made = Unfinished::new(Path::new(&a.to))?;
    let dir = made.dir.clone();
    download(&a.url, move |stream| unpack(stream, &dir))?;
    made.finish(&a.output)
}

/// Hands the stream of a running server's backup to `take`, on a thread that may block.
fn download<T: Send + 'static>(
    server: &str,
    take: impl FnOnce(Download) -> Result<T> + Send + 'static,
) -> Result<T> {
    let url = format!("{}/api/v1/storage/backup", server.trim_end_matches('/'));
    block_on(async {
        let request = obs_objects::http_client().get(&url).send();
        let mut response = request
            .await
            .with_context(|| format!("failed to reach {url}; is the server running?"))?;
        if !response.status().is_success() {
            let status = response.status();
            bail!("{url} answered {status}: {}", response.text().await.unwrap_or_default());
        }
        let (sender, chunks) = mpsc::channel(16);
        let unpack = tokio::task::spawn_blocking(move || {
            take(Parts { rest: Chunks(chunks), part: Chunk::new(), at: 0 })
        });
        while let Some(chunk) = response.chunk().await.context("the download was cut off")? {
            if sender.send(chunk.to_vec()).await.is_err() {
                break;
            }
        }
        drop(sender);
        unpack.await.context("failed to unpack")?
    })
}

/// Calls `f` with the plain files of a stream; names that lead out of the directory are refused.
fn each_file(
    stream: impl Read,
    mut f: impl FnMut(&Path, &mut dyn Read) -> Result<()>,
) -> Result<()> {
    let mut tar = tar::Archive::new(stream);
    for entry in tar.entries()? {
        let mut entry = entry.context("failed to read the backup stream")?;
        let name = entry.path()?.into_owned();
        let plain = name.components().all(|c| matches!(c, Component::Normal(_)));
        ensure!(
            plain && entry.header().entry_type().is_file(),
            "the backup stream holds {name:?}, which is no plain file below the directory"
        );
        f(&name, &mut entry)?;
    }
    Ok(())
}

fn unpack(stream: impl Read, dir: &Path) -> Result<()> {
    each_file(stream, |name, content| write_synced(content, &dir.join(name)))
}

/// The object that says which others make a whole backup; written last.
const LIST: &str = "BACKUP.json";

#[derive(Debug, Serialize, Deserialize)]
struct List {
    version: u32,
    files: Vec<Listed>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    path: String,
    bytes: u64,
}

struct Spooled(File);

impl ReadAt for Spooled {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }
}

fn backup_to_objects(a: &BackupArgs, objects: Arc<dyn Objects>) -> Result<ExitCode> {
    let there = objects.list("").with_context(|| format!("failed to list {}", a.to))?;
    if let Some((first, _)) = there.first() {
        let text = format!("{} is not empty: it has {first}", a.to);
        return Err(UsageError(text).into());
    }
    // One file at a time waits here for its way up; the manifest stays, for the check.
    let spool = Spool::new()?;
    let (dir, to) = (spool.0.clone(), objects.clone());
    let files = download(&a.url, move |stream| {
        let mut files = Vec::new();
        each_file(stream, |name, content| {
            let path = name.to_str().context("a path that is no text")?.to_owned();
            let at = dir.join(name);
            write_synced(content, &at)?;
            let file = File::open(&at).context("failed to read the spooled file")?;
            let bytes = file.metadata().context("failed to read the spooled file")?.len();
            to.put(&path, bytes, &Spooled(file))
                .with_context(|| format!("failed to send {path}"))?;
            if !name.starts_with("manifest") && !name.starts_with("state") {
                fs::remove_file(&at).context("failed to remove the spooled file")?;
            }
            files.push(Listed { path, bytes });
            Ok(())
        })?;
        Ok(files)
    })?;
    let report = obs_storage::verify(&spool.0, &OsVfs, &Elsewhere::All(objects.clone()))?;
    check(&report)?;
    let list = serde_json::to_vec_pretty(&List { version: 1, files })?;
    objects.put(LIST, list.len() as u64, &list).context("failed to send the list")?;
    tell(&a.to, &report, &a.output);
    Ok(ExitCode::SUCCESS)
}

/// A folder among the temporary files, removed at the end.
struct Spool(PathBuf);

impl Spool {
    fn new() -> Result<Self> {
        let name = format!("observatory-backup-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        fs::create_dir(&dir).with_context(|| format!("failed to make {}", dir.display()))?;
        Ok(Self(dir))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn restore_from_objects(objects: &dyn Objects, from: &str, made: &Unfinished) -> Result<()> {
    const PART: u64 = 8 << 20;
    let all = objects.list("").with_context(|| format!("failed to list {from}"))?;
    let Some((_, len)) = all.iter().find(|(key, _)| key == LIST) else {
        let text = format!("{from} is no backup: it has no {LIST}, which is written last");
        return Err(UsageError(text).into());
    };
    let list = objects.read(LIST, 0..*len).with_context(|| format!("failed to read {LIST}"))?;
    let list: List = serde_json::from_slice(&list).with_context(|| format!("{LIST} is damaged"))?;
    ensure!(list.version == 1, "{LIST} is of version {}, this reads 1", list.version);
    for f in list.files {
        let name = Path::new(&f.path);
        let plain = name.components().all(|c| matches!(c, Component::Normal(_)));
        ensure!(plain, "{LIST} names {:?}, which leads out of the directory", f.path);
        let parts = (0..f.bytes).step_by(PART as usize).map(|at| {
            let to = (at + PART).min(f.bytes);
            objects.read(&f.path, at..to)
        });
        write_synced(&mut Parts { rest: parts, part: Vec::new(), at: 0 }, &made.dir.join(name))?;
    }
    Ok(())
}

/// Reads parts that come one after the other.
struct Parts<I> {
    rest: I,
    part: Vec<u8>,
    at: usize,
}

impl<I: Iterator<Item = io::Result<Vec<u8>>>> Read for Parts<I> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.part.len() {
            match self.rest.next() {
                Some(part) => (self.part, self.at) = (part?, 0),
                None => return Ok(0),
            }
        }
        let n = self.part.get(self.at..).unwrap_or_default().read(buf)?;
        self.at += n;
        Ok(n)
    }
}

fn write_synced(from: &mut (impl Read + ?Sized), path: &Path) -> Result<()> {
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

fn check(report: &VerifyReport) -> Result<()> {
    match report.findings.iter().find(|f| f.is_damage) {
        Some(f) => bail!("the copy is damaged: {}: {}", f.file, f.problem),
        None => Ok(()),
    }
}

fn tell(to: &str, report: &VerifyReport, output: &OutputArgs) {
    let VerifyReport { segments, blocks, bytes, .. } = report;
    say(&match output.output {
        Output::Json => {
            serde_json::json!({"to": to, "segments": segments, "blocks": blocks, "bytes": bytes})
                .to_string()
        }
        Output::Text => format!("{to}: {segments} segments, {bytes} bytes, every block checked"),
    });
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
        let report = obs_storage::verify(&self.dir, &OsVfs, &Elsewhere::Nothing)?;
        check(&report)?;
        sync_dirs(&self.dir).context("failed to sync")?;
        fs::rename(&self.dir, &self.to)
            .with_context(|| format!("failed to name {}", self.to.display()))?;
        self.done = true;
        if let Some(parent) = self.to.parent() {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            File::open(parent).and_then(|d| d.sync_all()).context("failed to sync")?;
        }
        tell(&self.to.display().to_string(), &report, output);
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
    if obs_objects::is_url(&a.from) {
        return with_objects(&a.from, |objects| {
            let made = Unfinished::new(&a.to)?;
            restore_from_objects(&*objects, &a.from, &made)?;
            made.finish(&a.output)
        });
    }
    let source = Path::new(&a.from);
    if !source.join("manifest").is_dir() {
        return Err(UsageError(format!("{} is no backup: it has no manifest/", a.from)).into());
    }
    let made = Unfinished::new(&a.to)?;
    let mut files = Vec::new();
    files_below(source, &mut files).with_context(|| format!("failed to list {}", a.from))?;
    for path in files {
        let name = path.strip_prefix(source).context("a path outside the backup")?;
        let mut from =
            File::open(&path).with_context(|| format!("failed to read {}", path.display()))?;
        write_synced(&mut from, &made.dir.join(name))?;
    }
    made.finish(&a.output)
}
