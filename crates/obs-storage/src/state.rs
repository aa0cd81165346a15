//! Control state: small named values (reservations, budgets, prices) that survive a crash.
//!
//! A log of edits in numbered files; a file begins with all values, so that the ones before it can
//! go. Edits that wait at the same time share one sync. `docs/format/` describes the bytes.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::vfs::Vfs;
use crate::wal::{self, FRAME_EDIT, WalFile};
use obs_model::{KeepState, StateChange, StateError, StateFuture};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use tokio::sync::oneshot;

pub(crate) const STATE_MAGIC: &[u8; 8] = b"OBSSTA\0\x01";
/// Largest value, and largest sum of all keys and values.
const VALUE_BYTES_MAX: usize = 4 << 20;
const BYTES_MAX: usize = 256 << 20;
/// Edits that may wait for the disk; beyond it callers are refused.
const WAITING_MAX: usize = 16_384;
/// Values in one frame of those that begin a file.
const FRAME_VALUES: usize = 256;

/// All values by space and key, and the bytes they hold with their names.
#[derive(Debug, Default)]
struct Values {
    map: BTreeMap<(String, String), Vec<u8>>,
    bytes: usize,
}

impl Values {
    fn apply(&mut self, c: StateChange) {
        let names = c.space.len() + c.key.len();
        let key = (c.space, c.key);
        let added = c.value.as_ref().map_or(0, |v| names + v.len());
        let before = match c.value {
            Some(v) => self.map.insert(key, v),
            None => self.map.remove(&key),
        };
        self.bytes = self.bytes + added - before.map_or(0, |v| names + v.len());
    }
}

fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:010}.sta"))
}

fn files(vfs: &dyn Vfs, dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    wal::numbered(vfs, dir, ".sta")
}

/// Writes a frame: how many frames the beginning has (0 for an edit), then the changes.
fn put_frame<'a>(
    out: &mut Vec<u8>,
    frames: u64,
    changes: impl ExactSizeIterator<Item = (&'a str, &'a str, Option<&'a [u8]>)>,
) {
    let mut e = Encoder::default();
    e.uint(frames);
    e.len(changes.len());
    for (space, key, value) in changes {
        e.str(space);
        e.str(key);
        e.u8(u8::from(value.is_some()));
        if let Some(v) = value {
            e.raw(v);
        }
    }
    wal::put_frame(out, FRAME_EDIT, &e.bytes);
}

fn get_frame(payload: &[u8]) -> Result<(u64, Vec<StateChange>), Malformed> {
    let mut d = Decoder::new(payload);
    let frames = d.uint()?;
    let change = |d: &mut Decoder<'_>| {
        let (space, key) = (d.string()?, d.string()?);
        let value = if d.u8()? == 0 { None } else { Some(d.raw()?.to_vec()) };
        Ok(StateChange { space, key, value })
    };
    Ok((frames, (0..d.len()?).map(|_| change(&mut d)).collect::<Result<_, Malformed>>()?))
}

fn encode_all(values: &Values) -> Vec<u8> {
    let list: Vec<_> =
        values.map.iter().map(|((s, k), v)| (s.as_str(), k.as_str(), Some(v.as_slice()))).collect();
    let frames = list.len().div_ceil(FRAME_VALUES).max(1) as u64;
    let mut out = Vec::new();
    if list.is_empty() {
        put_frame(&mut out, frames, [].into_iter());
    }
    for chunk in list.chunks(FRAME_VALUES) {
        put_frame(&mut out, frames, chunk.iter().copied());
    }
    out
}

/// What the files hold, and what is wrong with them.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    values: Values,
    /// (file name, problem, whether it is more than what a crash leaves).
    pub(crate) findings: Vec<(String, String, bool)>,
}

pub(crate) fn load(vfs: &dyn Vfs, dir: &Path) -> io::Result<Loaded> {
    let mut findings = Vec::new();
    for (number, path) in files(vfs, dir)?.into_iter().rev() {
        let name = format!("state/{number:010}.sta");
        let mut values = Values::default();
        let (mut begin, mut seen) = (0, 0);
        let file = vfs.open(&path)?;
        let mut bad = Vec::new();
        let found = wal::read_file(&*file, STATE_MAGIC, |at, _, payload| {
            match get_frame(payload) {
                Ok((frames, changes)) => {
                    if frames > 0 {
                        (begin, seen) = (frames, seen + 1);
                    }
                    changes.into_iter().for_each(|c| values.apply(c));
                }
                Err(e) => bad.push(format!("edit at byte {at}: {e}")),
            }
            Ok(())
        })?;
        bad.extend(found.bad.iter().map(|(at, n)| format!("{n} bytes from {at} are damaged")));
        let damaged = !bad.is_empty();
        findings.extend(bad.into_iter().map(|what| (name.clone(), what, true)));
        if let Some((at, n)) = found.torn {
            let what = format!("{n} bytes from byte {at} are no whole edit");
            findings.push((name.clone(), what, false));
        }
        // A crash while a file was begun leaves the one before it in force.
        if (begin > 0 && seen == begin) || damaged {
            return Ok(Loaded { values, findings });
        }
    }
    Ok(Loaded { values: Values::default(), findings })
}

/// The file being appended to.
#[derive(Debug)]
struct Log {
    vfs: Arc<dyn Vfs>,
    dir: PathBuf,
    file: Option<WalFile>,
    /// Bytes of the values that began the file; one many times longer is written anew.
    begin_bytes: u64,
    values: Arc<RwLock<Values>>,
}

impl Log {
    fn values(&self) -> std::sync::RwLockReadGuard<'_, Values> {
        self.values.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a file with all values; then those before it go.
    fn begin(&mut self) -> io::Result<()> {
        let used = files(&*self.vfs, &self.dir)?;
        let number = used.last().map_or(0, |x| x.0) + 1;
        let bytes = encode_all(&self.values());
        let mut file =
            WalFile::create_at(&*self.vfs, &path(&self.dir, number), STATE_MAGIC, number)?;
        file.commit(&bytes)?;
        self.begin_bytes = bytes.len() as u64;
        self.file = Some(file);
        for (_, old) in used {
            let _ = self.vfs.remove(&old);
        }
        Ok(())
    }

    /// Makes changes durable in order, then visible.
    fn commit(&mut self, changes: Vec<StateChange>) -> Result<(), StateError> {
        // What is removed needs no room.
        let set = changes.iter().filter(|c| c.value.is_some());
        let grows: usize = set.map(StateChange::size).sum();
        if grows > 0 && self.values().bytes.saturating_add(grows) > BYTES_MAX {
            return Err(StateError::Full { bytes_max: BYTES_MAX });
        }
        let io = |e: io::Error| StateError::Io(e.to_string());
        if self.file.is_none() {
            self.begin().map_err(io)?;
        }
        let mut frame = Vec::new();
        let list = changes.iter().map(|c| (c.space.as_str(), c.key.as_str(), c.value.as_deref()));
        put_frame(&mut frame, 0, list.collect::<Vec<_>>().into_iter());
        if let Some(file) = &mut self.file
            && let Err(e) = file.commit(&frame)
        {
            // What became of this edit is unknown; the next file states what is.
            self.file = None;
            return Err(io(e));
        }
        let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
        changes.into_iter().for_each(|c| values.apply(c));
        drop(values);
        if self.file.as_ref().is_some_and(|f| f.bytes > (4 << 20) + 8 * self.begin_bytes) {
            // Failing leaves the old file in force.
            let _ = self.begin();
        }
        Ok(())
    }
}

type Request = (Vec<StateChange>, oneshot::Sender<Result<(), StateError>>);

/// The control state of a data directory.
#[derive(Debug)]
pub(crate) struct StateStore {
    values: Arc<RwLock<Values>>,
    /// None where the caller's thread does the work.
    requests: Mutex<Option<SyncSender<Request>>>,
    log: Arc<Mutex<Log>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    pub(crate) findings: Vec<(String, String, bool)>,
}

impl StateStore {
    /// # Errors
    /// When the files cannot be read, or are of a newer version.
    pub(crate) fn open(vfs: Arc<dyn Vfs>, dir: &Path, inline: bool) -> io::Result<Self> {
        let loaded = load(&*vfs, dir)?;
        let values = Arc::new(RwLock::new(loaded.values));
        let log =
            Log { vfs, dir: dir.to_owned(), file: None, begin_bytes: 0, values: values.clone() };
        // The first edit begins a file: a full disk must not keep the state from being read.
        let log = Arc::new(Mutex::new(log));
        let (mut requests, mut thread) = (None, None);
        if !inline {
            let (sender, receiver) = sync_channel(WAITING_MAX);
            let log = log.clone();
            let work = move || run(&log, &receiver);
            let spawned = std::thread::Builder::new().name("store-state".into()).spawn(work)?;
            (requests, thread) = (Some(sender), Some(spawned));
        }
        Ok(Self {
            values,
            requests: Mutex::new(requests),
            log,
            thread: Mutex::new(thread),
            findings: loaded.findings,
        })
    }

    /// Returns a file that holds all values, with its path below the data directory.
    pub(crate) fn standalone(&self) -> (String, Vec<u8>) {
        let mut bytes = STATE_MAGIC.to_vec();
        bytes.extend(encode_all(&self.values.read().unwrap_or_else(PoisonError::into_inner)));
        (format!("state/{:010}.sta", 1), bytes)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn close(&self) {
        drop(self.requests.lock().unwrap_or_else(PoisonError::into_inner).take());
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(t) = thread {
            let _ = t.join();
        }
    }
}

impl KeepState for StateStore {
    fn list(&self, space: &str) -> Vec<(String, Vec<u8>)> {
        let values = self.values.read().unwrap_or_else(PoisonError::into_inner);
        let from = (space.to_owned(), String::new());
        let of = values.map.range(from..).take_while(|((s, _), _)| s == space);
        of.map(|((_, key), v)| (key.clone(), v.clone())).collect()
    }

    fn put(&self, changes: Vec<StateChange>) -> StateFuture<'_> {
        if changes.iter().any(|c| c.size() > VALUE_BYTES_MAX) {
            let e = StateError::TooLarge { bytes_max: VALUE_BYTES_MAX };
            return Box::pin(std::future::ready(Err(e)));
        }
        let guard = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sender) = guard.as_ref() else {
            drop(guard);
            let done = self.log().commit(changes);
            return Box::pin(std::future::ready(done));
        };
        let (reply, done) = oneshot::channel();
        let sent = sender.try_send((changes, reply));
        drop(guard);
        Box::pin(async move {
            match sent {
                Ok(()) => done.await.unwrap_or(Err(StateError::Closed)),
                Err(TrySendError::Full(_)) => Err(StateError::Busy),
                Err(TrySendError::Disconnected(_)) => Err(StateError::Closed),
            }
        })
    }
}

/// Commits what waits, together, until all senders are gone.
fn run(log: &Mutex<Log>, receiver: &Receiver<Request>) {
    const GROUP_BYTES: usize = 8 << 20;
    while let Ok((mut changes, first)) = receiver.recv() {
        let mut replies = vec![first];
        let mut bytes: usize = changes.iter().map(StateChange::size).sum();
        while bytes < GROUP_BYTES
            && let Ok((more, reply)) = receiver.try_recv()
        {
            bytes += more.iter().map(StateChange::size).sum::<usize>();
            changes.extend(more);
            replies.push(reply);
        }
        let done = log.lock().unwrap_or_else(PoisonError::into_inner).commit(changes);
        for reply in replies {
            let _ = reply.send(done.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::OsVfs;

    fn open(dir: &Path) -> StateStore {
        OsVfs.create_dir_all(dir).unwrap();
        StateStore::open(Arc::new(OsVfs), dir, true).unwrap()
    }

    fn set(space: &str, key: &str, value: Option<&str>) -> StateChange {
        StateChange { space: space.into(), key: key.into(), value: value.map(|v| v.into()) }
    }

    async fn put(s: &StateStore, changes: Vec<StateChange>) {
        s.put(changes).await.unwrap();
    }

    fn all(s: &StateStore, space: &str) -> Vec<(String, String)> {
        let text = |v: Vec<u8>| String::from_utf8(v).unwrap();
        s.list(space).into_iter().map(|(k, v)| (k, text(v))).collect()
    }

    #[tokio::test]
    async fn values_survive_and_every_cut_keeps_whole_edits() {
        let dir = tempfile::tempdir().unwrap();
        let s = open(dir.path());
        put(&s, vec![set("a", "1", Some("x")), set("b", "1", Some("other"))]).await;
        put(&s, vec![set("a", "2", Some("y"))]).await;
        put(&s, vec![set("a", "1", None), set("a", "2", Some("z"))]).await;
        drop(s);
        let path = files(&OsVfs, dir.path()).unwrap().pop().unwrap().1;
        let whole = std::fs::read(&path).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for cut in 0..=whole.len() {
            std::fs::write(&path, whole.get(..cut).unwrap()).unwrap();
            let loaded = load(&OsVfs, dir.path()).unwrap();
            seen.insert(loaded.values.map.len());
        }
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), [0, 2, 3]);
        // Opening again and writing begins a new file and removes the old one.
        let s = open(dir.path());
        assert_eq!(all(&s, "a"), [("2".to_owned(), "z".to_owned())]);
        put(&s, vec![set("a", "3", Some("w"))]).await;
        assert_eq!(files(&OsVfs, dir.path()).unwrap().len(), 1);
        assert_eq!(all(&open(dir.path()), "a").len(), 2);
        // A flipped byte is noticed.
        let path = files(&OsVfs, dir.path()).unwrap().pop().unwrap().1;
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(load(&OsVfs, dir.path()).unwrap().findings.iter().any(|f| f.2));
    }

    #[tokio::test]
    async fn values_are_bounded_and_a_copy_holds_them_all() {
        let dir = tempfile::tempdir().unwrap();
        let s = open(dir.path());
        let large = "x".repeat(VALUE_BYTES_MAX + 1);
        let e = s.put(vec![set("a", "1", Some(&large))]).await.unwrap_err();
        assert!(matches!(e, StateError::TooLarge { .. }), "{e}");
        for i in 0..1000 {
            put(&s, vec![set("a", &i.to_string(), Some("v"))]).await;
        }
        let (name, bytes) = s.standalone();
        let copy = tempfile::tempdir().unwrap();
        std::fs::create_dir(copy.path().join("state")).unwrap();
        std::fs::write(copy.path().join(name), bytes).unwrap();
        assert_eq!(open(&copy.path().join("state")).list("a").len(), 1000);
    }
}
