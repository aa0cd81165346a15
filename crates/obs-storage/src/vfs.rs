//! The only door to the file system, so that tests can put faults behind it.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A file being written, from its start, once.
pub trait WriteFile: Send + Debug {
    /// # Errors
    /// Those of the operating system.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Returns once everything appended so far is on the device (`fdatasync`).
    ///
    /// # Errors
    /// Those of the operating system; after one the file must not be used again.
    fn sync(&mut self) -> io::Result<()>;
}

/// A file being read at any offset.
pub trait ReadFile: Send + Sync + Debug {
    /// # Errors
    /// Those of the operating system; a short file is `UnexpectedEof`.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Returns the length in bytes.
    fn len(&self) -> u64;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Drops copies that are kept of a range; returns whether reading it again may bring other
    /// bytes.
    fn forget(&self, _offset: u64, _len: u64) -> bool {
        false
    }
}

/// A held lock.
pub type Lock = Arc<dyn std::any::Any + Send + Sync>;

/// A file system.
pub trait Vfs: Send + Sync + Debug {
    /// Creates a file that must not exist, and makes its name durable.
    ///
    /// # Errors
    /// Those of the operating system.
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>>;
    /// # Errors
    /// Those of the operating system.
    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>>;
    /// Returns the files (not folders) of a folder, sorted.
    ///
    /// # Errors
    /// Those of the operating system.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Creates a folder and its parents, durably.
    ///
    /// # Errors
    /// Those of the operating system.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// # Errors
    /// Those of the operating system.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Takes a lock that holds until it is dropped or the process ends; `None` when another has it.
    ///
    /// # Errors
    /// Those of the operating system.
    fn lock(&self, path: &Path) -> io::Result<Option<Lock>>;
    /// Makes creations and removals in a folder durable.
    ///
    /// # Errors
    /// Those of the operating system.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Returns the folders of a folder, sorted; none if it does not exist.
    ///
    /// # Errors
    /// Those of the operating system.
    fn list_dirs(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;
    /// Returns (bytes free to us, bytes in all) of the file system that holds `path`.
    ///
    /// # Errors
    /// Those of the operating system.
    fn space(&self, path: &Path) -> io::Result<(u64, u64)>;
}

/// The operating system's files.
#[derive(Debug, Default, Clone, Copy)]
pub struct OsVfs;

/// Reads a whole file.
///
/// # Errors
/// Those of the operating system.
pub fn read_all(file: &dyn ReadFile) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "file too large"))?;
    let mut out = vec![0; len];
    file.read_at(0, &mut out)?;
    Ok(out)
}

#[derive(Debug)]
struct OsWrite(File);

impl WriteFile for OsWrite {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[derive(Debug)]
struct OsRead {
    file: File,
    len: u64,
}

impl ReadFile for OsRead {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn len(&self) -> u64 {
        self.len
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

impl Vfs for OsVfs {
    fn create(&self, path: &Path) -> io::Result<Box<dyn WriteFile>> {
        let file = OpenOptions::new().write(true).create_new(true).open(path)?;
        if let Some(dir) = path.parent() {
            sync_dir(dir)?;
        }
        Ok(Box::new(OsWrite(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn ReadFile>> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Box::new(OsRead { file, len }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut out = Vec::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                out.push(entry.path());
            }
        }
        out.sort();
        Ok(out)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        sync_dir(dir)?;
        dir.parent().filter(|p| !p.as_os_str().is_empty()).map_or(Ok(()), sync_dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Lock>> {
        let file = File::options().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Arc::new(file))),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(e)) => Err(e),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        sync_dir(dir)
    }

    fn list_dirs(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut out = Vec::new();
        let entries = match fs::read_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(out),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                out.push(entry.path());
            }
        }
        out.sort();
        Ok(out)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        let s = rustix::fs::statvfs(path)?;
        Ok((s.f_bavail.saturating_mul(s.f_frsize), s.f_blocks.saturating_mul(s.f_frsize)))
    }
}
