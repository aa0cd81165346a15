//! The manifest: which segments exist, where the log starts, what is deleted.
//!
//! A log of edits in two mirrored files, each edit synced to both: a damaged edit in one is read
//! from the other. Opening writes a fresh generation that begins with the whole state, so that
//! nothing is ever appended behind a torn end.

use crate::bin::{Decoder, Encoder, Malformed};
use crate::segment::file::IndexRef;
use crate::segment::{Operations, Signal};
use crate::vfs::Vfs;
use crate::wal::{self, FRAME_BYTES_MAX, FRAME_EDIT, MANIFEST_MAGIC, WalFile};
use obs_model::{
    DeleteScope, LineTest, LineText, MatchOp, MetricKind, MetricMetadata, TenantId, TraceId,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::path::{Path, PathBuf};

/// One segment's row.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SegmentMeta {
    pub(crate) id: u64,
    pub(crate) tenant: TenantId,
    pub(crate) signal: Signal,
    /// ms for metrics, ns otherwise; both ends inclusive.
    pub(crate) min_time: i64,
    pub(crate) max_time: i64,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    /// Of overlapping segments the one with the higher order was written later.
    pub(crate) order: u64,
    /// How often its data was merged.
    pub(crate) level: u8,
    /// The last delete request whose data was taken out.
    pub(crate) cleaned: u64,
    pub(crate) index: IndexRef,
    pub(crate) operations: Operations,
}

impl SegmentMeta {
    /// Returns the path below the data directory.
    pub(crate) fn relative_path(&self) -> String {
        format!("segments/{}/{}/{:010}.seg", self.tenant, self.signal.as_str(), self.id)
    }

    pub(crate) const fn overlaps(&self, start: i64, end: i64) -> bool {
        self.max_time >= start && self.min_time <= end
    }

    fn put(&self, e: &mut Encoder) {
        e.uint(self.id);
        e.str(self.tenant.as_str());
        e.u8(self.signal.to_byte());
        e.int(self.min_time);
        e.int(self.max_time);
        e.uint(self.rows);
        e.uint(self.bytes);
        e.uint(self.order);
        e.u8(self.level);
        e.uint(self.cleaned);
        self.index.put(e);
        e.len(self.operations.len());
        for (service, operation, kind) in &self.operations {
            e.str(service);
            e.str(operation);
            e.int((*kind).into());
        }
    }

    fn get(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            id: d.uint()?,
            tenant: get_tenant(d)?,
            signal: Signal::from_byte(d.u8()?).ok_or(d.bad())?,
            min_time: d.int()?,
            max_time: d.int()?,
            rows: d.uint()?,
            bytes: d.uint()?,
            order: d.uint()?,
            level: d.u8()?,
            cleaned: d.uint()?,
            index: IndexRef::get(d)?,
            operations: (0..d.len()?)
                .map(|_| {
                    let (service, operation) = (d.string()?, d.string()?);
                    Ok((service, operation, i32::try_from(d.int()?).map_err(|_| d.bad())?))
                })
                .collect::<Result<_, Malformed>>()?,
        })
    }
}

/// A delete request that may still have segments to clean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tombstone {
    pub(crate) id: u64,
    pub(crate) tenant: TenantId,
    pub(crate) scope: DeleteScope,
    /// Segments of a lower order are covered; what was written later is not.
    pub(crate) before: u64,
}

impl Tombstone {
    fn put(&self, e: &mut Encoder) {
        e.uint(self.id);
        e.str(self.tenant.as_str());
        e.uint(self.before);
        match &self.scope {
            DeleteScope::Tenant => e.u8(0),
            DeleteScope::Trace(id) => {
                e.u8(1);
                e.raw(id.as_bytes());
            }
            DeleteScope::Series { matchers, start, end } => {
                e.u8(2);
                put_matchers(e, matchers);
                e.int(*start);
                e.int(*end);
            }
            DeleteScope::Logs { matchers, lines, start, end } => {
                e.u8(3);
                put_matchers(e, matchers);
                e.len(lines.len());
                for test in lines {
                    e.u8(u8::from(test.negated));
                    e.len(test.any.len());
                    for text in &test.any {
                        let (kind, text) = match text {
                            LineText::Literal(t) => (0, t),
                            LineText::Regex(r) => (1, r),
                        };
                        e.u8(kind);
                        e.str(text);
                    }
                }
                e.int(*start);
                e.int(*end);
            }
        }
    }

    fn get(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let (id, tenant, before) = (d.uint()?, get_tenant(d)?, d.uint()?);
        let scope = match d.u8()? {
            0 => DeleteScope::Tenant,
            1 => DeleteScope::Trace(TraceId::from_slice(d.raw()?).ok_or(d.bad())?),
            2 => {
                let matchers = get_matchers(d)?;
                DeleteScope::Series { matchers, start: d.int()?, end: d.int()? }
            }
            3 => {
                let matchers = get_matchers(d)?;
                let lines = (0..d.len()?).map(|_| get_test(d)).collect::<Result<_, Malformed>>()?;
                DeleteScope::Logs { matchers, lines, start: d.int()?, end: d.int()? }
            }
            _ => return Err(d.bad()),
        };
        Ok(Self { id, tenant, scope, before })
    }
}

type Matchers = Vec<(String, MatchOp, String)>;

fn put_matchers(e: &mut Encoder, matchers: &Matchers) {
    e.len(matchers.len());
    for (name, op, value) in matchers {
        e.str(name);
        e.u8(*op as u8);
        e.str(value);
    }
}

fn get_matchers(d: &mut Decoder<'_>) -> Result<Matchers, Malformed> {
    (0..d.len()?).map(|_| Ok((d.string()?, get_op(d)?, d.string()?))).collect()
}

fn get_test(d: &mut Decoder<'_>) -> Result<LineTest, Malformed> {
    let negated = d.u8()? == 1;
    let one = |d: &mut Decoder<'_>| match d.u8()? {
        0 => d.string().map(LineText::Literal),
        1 => d.string().map(LineText::Regex),
        _ => Err(d.bad()),
    };
    let any = (0..d.len()?).map(|_| one(d)).collect::<Result<_, Malformed>>()?;
    Ok(LineTest { negated, any })
}

fn get_op(d: &mut Decoder<'_>) -> Result<MatchOp, Malformed> {
    let known = [MatchOp::Equal, MatchOp::NotEqual, MatchOp::Regex, MatchOp::NotRegex];
    let byte = d.u8()?;
    known.into_iter().find(|op| *op as u8 == byte).ok_or(d.bad())
}

fn get_tenant(d: &mut Decoder<'_>) -> Result<TenantId, Malformed> {
    TenantId::new(d.str()?).map_err(|_| d.bad())
}

/// One change of the manifest.
#[derive(Debug, Clone)]
pub(crate) enum Edit {
    Add(SegmentMeta),
    Remove(u64),
    /// Log files below this number are no longer needed.
    WalStart(u64),
    /// The lowest segment number never used.
    NextSegment(u64),
    Metadata(TenantId, MetricMetadata),
    Delete(Tombstone),
    /// No segment is left that a tombstone covers.
    Deleted(u64),
    /// The object store may have an object of a segment, under this key.
    Object(u64, String),
    /// A segment is read from its object.
    Moved(u64),
    /// The object of a segment that is gone was removed.
    ObjectGone(u64),
    /// What tells this store's objects from another's in the same bucket.
    StoreId(u64),
    /// What retention by label decided about a segment: its number, and the decision's.
    Swept(u64, u64),
    /// The state that begins a generation is in this many frames, this one included.
    Frames(u64),
}

impl Edit {
    fn put(&self, e: &mut Encoder) {
        match self {
            Self::Add(m) => {
                e.u8(1);
                m.put(e);
            }
            Self::Remove(id) => {
                e.u8(2);
                e.uint(*id);
            }
            Self::WalStart(n) => {
                e.u8(3);
                e.uint(*n);
            }
            Self::NextSegment(n) => {
                e.u8(4);
                e.uint(*n);
            }
            Self::Metadata(tenant, m) => {
                e.u8(5);
                e.str(tenant.as_str());
                for s in [&m.name, m.kind.as_str(), &m.help, &m.unit] {
                    e.str(s);
                }
            }
            Self::Delete(t) => {
                e.u8(6);
                t.put(e);
            }
            Self::Deleted(id) => {
                e.u8(7);
                e.uint(*id);
            }
            Self::Object(id, key) => {
                e.u8(8);
                e.uint(*id);
                e.str(key);
            }
            Self::Moved(id) => {
                e.u8(9);
                e.uint(*id);
            }
            Self::ObjectGone(id) => {
                e.u8(10);
                e.uint(*id);
            }
            Self::StoreId(id) => {
                e.u8(11);
                e.uint(*id);
            }
            Self::Frames(n) => {
                e.u8(13);
                e.uint(*n);
            }
            Self::Swept(id, decision) => {
                e.u8(12);
                e.uint(*id);
                e.uint(*decision);
            }
        }
    }

    fn get(d: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(match d.u8()? {
            1 => Self::Add(SegmentMeta::get(d)?),
            2 => Self::Remove(d.uint()?),
            3 => Self::WalStart(d.uint()?),
            4 => Self::NextSegment(d.uint()?),
            5 => Self::Metadata(
                get_tenant(d)?,
                MetricMetadata {
                    name: d.string()?,
                    kind: MetricKind::parse(d.str()?),
                    help: d.string()?,
                    unit: d.string()?,
                },
            ),
            6 => Self::Delete(Tombstone::get(d)?),
            7 => Self::Deleted(d.uint()?),
            8 => Self::Object(d.uint()?, d.string()?),
            9 => Self::Moved(d.uint()?),
            10 => Self::ObjectGone(d.uint()?),
            11 => Self::StoreId(d.uint()?),
            12 => Self::Swept(d.uint()?, d.uint()?),
            13 => Self::Frames(d.uint()?),
            _ => return Err(d.bad()),
        })
    }
}

/// Metadata by metric name, by tenant.
pub(crate) type Metadata = HashMap<TenantId, BTreeMap<String, MetricMetadata>>;

/// What all edits so far amount to.
#[derive(Debug, Clone, Default)]
pub(crate) struct State {
    pub(crate) segments: BTreeMap<u64, SegmentMeta>,
    pub(crate) wal_start: u64,
    pub(crate) next_segment: u64,
    pub(crate) metadata: Metadata,
    pub(crate) tombstones: BTreeMap<u64, Tombstone>,
    /// Keys of the objects that may exist, by segment; also of segments that are gone.
    pub(crate) objects: BTreeMap<u64, String>,
    /// Segments that are read from their object.
    pub(crate) moved: BTreeSet<u64>,
    pub(crate) store_id: Option<u64>,
    /// Decisions of retention by label, by segment.
    pub(crate) swept: BTreeMap<u64, u64>,
}

impl State {
    fn apply(&mut self, edit: Edit) {
        match edit {
            Edit::Add(m) => {
                self.next_segment = self.next_segment.max(m.id + 1);
                self.segments.insert(m.id, m);
            }
            Edit::Remove(id) => {
                self.segments.remove(&id);
                self.moved.remove(&id);
                self.swept.remove(&id);
            }
            Edit::WalStart(n) => self.wal_start = n,
            Edit::NextSegment(n) => self.next_segment = self.next_segment.max(n),
            Edit::Metadata(tenant, m) => {
                /// As many names as a few heads can bring; the rest goes without a description.
                const NAMES_MAX: usize = 50_000;
                let known = self.metadata.entry(tenant).or_default();
                if known.len() < NAMES_MAX || known.contains_key(&m.name) {
                    known.insert(m.name.clone(), m);
                }
            }
            Edit::Delete(t) => {
                self.tombstones.insert(t.id, t);
            }
            Edit::Deleted(id) => {
                self.tombstones.remove(&id);
            }
            Edit::Object(id, key) => {
                self.objects.insert(id, key);
            }
            Edit::Moved(id) => {
                if self.segments.contains_key(&id) {
                    self.moved.insert(id);
                }
            }
            Edit::ObjectGone(id) => {
                self.objects.remove(&id);
            }
            Edit::StoreId(id) => self.store_id = Some(id),
            Edit::Frames(_) => {}
            Edit::Swept(id, decision) => {
                if self.segments.contains_key(&id) {
                    self.swept.insert(id, decision);
                }
            }
        }
    }

    fn edits(&self) -> Vec<Edit> {
        let mut out = vec![Edit::WalStart(self.wal_start), Edit::NextSegment(self.next_segment)];
        out.extend(self.segments.values().cloned().map(Edit::Add));
        for (tenant, by_name) in &self.metadata {
            out.extend(by_name.values().map(|m| Edit::Metadata(tenant.clone(), m.clone())));
        }
        out.extend(self.tombstones.values().cloned().map(Edit::Delete));
        out.extend(self.objects.iter().map(|(id, key)| Edit::Object(*id, key.clone())));
        out.extend(self.moved.iter().map(|id| Edit::Moved(*id)));
        out.extend(self.store_id.map(Edit::StoreId));
        out.extend(self.swept.iter().map(|(id, d)| Edit::Swept(*id, *d)));
        out
    }
}

/// Sequence number of the first frame of a generation, which with those it names is the whole state.
const SNAPSHOT: u64 = 0;
/// Edits in one frame of the state: a frame has a largest size, and many segments a large state.
const FRAME_EDITS: usize = 16;
const COPIES: [&str; 2] = ["a", "b"];

fn path(dir: &Path, generation: u64, copy: &str) -> PathBuf {
    dir.join(format!("{generation:010}.{copy}"))
}

fn encode(seq: u64, edits: &[Edit]) -> Vec<u8> {
    let mut e = Encoder::default();
    e.uint(seq);
    e.len(edits.len());
    edits.iter().for_each(|x| x.put(&mut e));
    let mut frame = Vec::new();
    wal::put_frame(&mut frame, FRAME_EDIT, &e.bytes);
    frame
}

/// Encodes a whole state; returns the frames and how many they are.
fn encode_state(state: &State) -> (Vec<u8>, u64) {
    let mut edits = state.edits();
    let frames = edits.len().div_ceil(FRAME_EDITS).max(1) as u64;
    edits.insert(0, Edit::Frames(frames));
    let mut out = Vec::new();
    let (first, rest) = edits.split_at(edits.len().min(FRAME_EDITS + 1));
    out.extend(encode(SNAPSHOT, first));
    for (n, part) in rest.chunks(FRAME_EDITS).enumerate() {
        out.extend(encode(SNAPSHOT + 1 + n as u64, part));
    }
    (out, frames)
}

/// Returns whether the state that begins a generation is there whole.
fn is_whole(edits: &BTreeMap<u64, Vec<Edit>>) -> bool {
    let Some(first) = edits.get(&SNAPSHOT) else { return false };
    match first.first() {
        Some(Edit::Frames(n)) => (SNAPSHOT..SNAPSHOT + n).all(|seq| edits.contains_key(&seq)),
        // As it was written before: all in one frame.
        _ => true,
    }
}

fn decode(payload: &[u8]) -> Result<(u64, Vec<Edit>), Malformed> {
    let mut d = Decoder::new(payload);
    let seq = d.uint()?;
    Ok((seq, (0..d.len()?).map(|_| Edit::get(&mut d)).collect::<Result<_, _>>()?))
}

/// What reading the manifest found.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) state: State,
    generation: u64,
    /// (file name, problem) of damage, which the other copy made good unless `lost`.
    pub(crate) damage: Vec<(String, String)>,
    /// Edits that neither copy has.
    pub(crate) lost: bool,
}

/// Tells what a crash leaves behind from damage: an unfinished last edit, a generation half begun.
pub(crate) fn is_leftover(problem: &str) -> bool {
    problem.ends_with("no whole edit") || problem == "missing"
}

fn generations(vfs: &dyn Vfs, dir: &Path) -> io::Result<Vec<u64>> {
    let number = |p: PathBuf| p.file_stem()?.to_str()?.parse::<u64>().ok();
    let mut out: Vec<u64> = vfs.list(dir)?.into_iter().filter_map(number).collect();
    out.sort_unstable();
    out.dedup();
    Ok(out)
}

/// Reads the manifest without changing anything.
///
/// # Errors
/// When files cannot be read, are of another version, or no generation is whole.
pub(crate) fn load(vfs: &dyn Vfs, dir: &Path) -> io::Result<Loaded> {
    let list = generations(vfs, dir)?;
    let mut damage = Vec::new();
    let mut in_part: Option<(u64, BTreeMap<u64, Vec<Edit>>)> = None;
    for generation in list.iter().rev() {
        let mut edits: BTreeMap<u64, Vec<Edit>> = BTreeMap::new();
        for copy in COPIES {
            let path = path(dir, *generation, copy);
            let name = format!("manifest/{generation:010}.{copy}");
            let file = match vfs.open(&path) {
                Ok(f) => f,
                Err(e) if e.kind() == io::ErrorKind::NotFound => {
                    damage.push((name, "missing".into()));
                    continue;
                }
                Err(e) => return Err(e),
            };
            let found = wal::read_file(&*file, MANIFEST_MAGIC, |at, _, payload| {
                match decode(payload) {
                    Ok((seq, list)) => {
                        edits.insert(seq, list);
                    }
                    Err(e) => damage.push((name.clone(), format!("edit at byte {at}: {e}"))),
                }
                Ok(())
            })?;
            for (at, n) in found.bad {
                damage.push((name.clone(), format!("{n} bytes from byte {at} are damaged")));
            }
            if let Some((at, n)) = found.torn {
                damage.push((name.clone(), format!("{n} bytes from byte {at} are no whole edit")));
            }
        }
        if !is_whole(&edits) {
            // A crash while this generation was begun: the one before it is still there.
            if in_part.is_none() && !edits.is_empty() {
                in_part = Some((*generation, edits));
            }
            continue;
        }
        return Ok(from_edits(*generation, edits, damage));
    }
    if let Some((generation, edits)) = in_part {
        // Damage in both copies: what is left is better than nothing, and says what it is.
        let mut loaded = from_edits(generation, edits, damage);
        loaded.lost = true;
        return Ok(loaded);
    }
    if list.len() > 1 || damage.iter().any(|(_, what)| what != "missing") {
        // Crashes while the very first generation was begun leave some without a state. With data
        // beside them that is damage, which must not pass for an empty store.
        if data_exists(vfs, dir) {
            let text = "no generation of the manifest is readable";
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
    }
    let generation = list.last().copied().unwrap_or(0);
    Ok(Loaded { generation, ..Loaded::default() })
}

fn from_edits(
    generation: u64,
    edits: BTreeMap<u64, Vec<Edit>>,
    damage: Vec<(String, String)>,
) -> Loaded {
    let mut loaded = Loaded { generation, damage, ..Loaded::default() };
    let mut expected = SNAPSHOT;
    for (seq, list) in edits {
        loaded.lost |= seq != expected;
        expected = seq + 1;
        list.into_iter().for_each(|x| loaded.state.apply(x));
    }
    loaded
}

/// Returns whether the data directory holds anything but a manifest.
fn data_exists(vfs: &dyn Vfs, dir: &Path) -> bool {
    let root = dir.parent().unwrap_or(dir);
    let segments = vfs.list_dirs(&root.join("segments"));
    let logs = wal::files(vfs, &root.join("wal"));
    segments.is_ok_and(|d| !d.is_empty()) || logs.is_ok_and(|f| !f.is_empty())
}

/// The manifest, open for edits.
#[derive(Debug)]
pub(crate) struct Manifest {
    dir: PathBuf,
    pub(crate) state: State,
    files: Vec<WalFile>,
    generation: u64,
    next_seq: u64,
    /// Bytes of the snapshot; a log many times longer is rewritten.
    snapshot_bytes: u64,
}

/// Returns the files of a manifest that holds a state, no log and no objects, with paths below the
/// data directory.
pub(crate) fn standalone(mut state: State) -> Vec<(String, Vec<u8>)> {
    state.wal_start = 0;
    state.objects.clear();
    state.moved.clear();
    state.store_id = None;
    let mut bytes = MANIFEST_MAGIC.to_vec();
    bytes.extend(encode_state(&state).0);
    let path = |copy: &str| format!("manifest/{:010}.{copy}", 1);
    COPIES.iter().map(|copy| (path(copy), bytes.clone())).collect()
}

impl Manifest {
    /// Begins a new generation from what was loaded.
    pub(crate) fn open(vfs: &dyn Vfs, dir: &Path, loaded: Loaded) -> io::Result<Self> {
        let mut this = Self {
            dir: dir.to_owned(),
            state: loaded.state,
            files: Vec::new(),
            generation: loaded.generation,
            next_seq: 1,
            snapshot_bytes: 0,
        };
        this.begin(vfs)?;
        Ok(this)
    }

    fn begin(&mut self, vfs: &dyn Vfs) -> io::Result<()> {
        // A generation whose files exist was begun by a process that died: never reuse names.
        let used = generations(vfs, &self.dir)?;
        let generation = used.last().copied().unwrap_or(0).max(self.generation) + 1;
        let (snapshot, frames) = encode_state(&self.state);
        let mut files = Vec::new();
        for copy in COPIES {
            let path = path(&self.dir, generation, copy);
            let mut f = WalFile::create_at(vfs, &path, MANIFEST_MAGIC, generation)?;
            f.commit(&snapshot)?;
            files.push(f);
        }
        self.files = files;
        self.generation = generation;
        self.next_seq = SNAPSHOT + frames;
        self.snapshot_bytes = snapshot.len() as u64;
        for old in used.into_iter().filter(|g| *g < generation) {
            for copy in COPIES {
                let _ = vfs.remove(&path(&self.dir, old, copy));
            }
        }
        Ok(())
    }

    /// Makes edits durable, all or none, then applies them.
    ///
    /// # Errors
    /// When a file cannot be written. Then it is unknown whether the edits are durable: no further
    /// edit may follow until the manifest is opened again or [`Self::recover`] succeeded.
    pub(crate) fn commit(&mut self, vfs: &dyn Vfs, edits: Vec<Edit>) -> io::Result<()> {
        if self.files.len() < COPIES.len() {
            self.begin(vfs)?;
        }
        let frame = encode(self.next_seq, &edits);
        if frame.len() > FRAME_BYTES_MAX {
            // It could not be read back. Nothing was written.
            let text = format!("an edit of the manifest has {} bytes", frame.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        for f in &mut self.files {
            if let Err(e) = f.commit(&frame) {
                // What this edit became is unknown; a new generation states what is.
                self.files.clear();
                return Err(e);
            }
        }
        self.next_seq += 1;
        edits.into_iter().for_each(|x| self.state.apply(x));
        let long = self.files.first().map_or(0, |f| f.bytes);
        if long > (1 << 20) + 8 * self.snapshot_bytes {
            // Failing leaves the old generation in force.
            let _ = self.begin(vfs);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vfs::OsVfs;

    fn meta(id: u64) -> SegmentMeta {
        SegmentMeta {
            id,
            tenant: TenantId::default(),
            signal: Signal::Logs,
            min_time: -5,
            max_time: 7,
            rows: 9,
            bytes: 11,
            order: id,
            level: 0,
            cleaned: 0,
            index: IndexRef::default(),
            operations: Operations::from([("s".into(), "o".into(), 2)]),
        }
    }

    #[test]
    fn a_state_of_any_size_is_read_back_whole() {
        // More names than one frame may hold, as spans with ids in their names make them.
        let name =
            |i: u64, n: u64| (format!("service-{n}"), format!("{i}-{n}-{}", "x".repeat(20_000)), 1);
        let dir = tempfile::tempdir().unwrap();
        let mut m = Manifest::open(&OsVfs, dir.path(), Loaded::default()).unwrap();
        for i in 0..150 {
            let operations = (0..50).map(|n| name(i, n)).collect();
            m.commit(&OsVfs, vec![Edit::Add(SegmentMeta { operations, ..meta(i + 1) })]).unwrap();
        }
        let loaded = load(&OsVfs, dir.path()).unwrap();
        assert!(!loaded.lost && loaded.damage.is_empty());
        drop(Manifest::open(&OsVfs, dir.path(), loaded).unwrap());
        let again = load(&OsVfs, dir.path()).unwrap();
        assert!(!again.lost && again.damage.is_empty());
        assert_eq!(again.state.segments, m.state.segments);
        // One frame of the state gone from both copies costs its segments and is told.
        for copy in COPIES {
            let file = path(dir.path(), again.generation, copy);
            let mut bytes = std::fs::read(&file).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&file, bytes).unwrap();
        }
        let left = load(&OsVfs, dir.path()).unwrap();
        assert!(left.lost);
        assert_eq!(left.state.segments.len(), 150 - FRAME_EDITS);
    }

    #[test]
    fn any_flipped_bit_in_one_copy_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut m = Manifest::open(&OsVfs, dir.path(), Loaded::default()).unwrap();
        m.commit(&OsVfs, vec![Edit::Add(meta(1)), Edit::Add(meta(2)), Edit::WalStart(3)]).unwrap();
        m.commit(&OsVfs, vec![Edit::Remove(1)]).unwrap();
        let file = path(dir.path(), 1, "a");
        let whole = std::fs::read(&file).unwrap();
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&file, &bytes).unwrap();
            let loaded = load(&OsVfs, dir.path()).unwrap();
            assert_eq!(loaded.state.segments.keys().collect::<Vec<_>>(), [&2], "bit {bit}");
            assert_eq!(loaded.state.segments[&2], meta(2));
            assert_eq!(loaded.state.wal_start, 3);
            assert!(!loaded.damage.is_empty() && !loaded.lost, "bit {bit} went unnoticed");
        }
        std::fs::write(&file, whole).unwrap();
        let loaded = load(&OsVfs, dir.path()).unwrap();
        assert!(loaded.damage.is_empty());
        drop(Manifest::open(&OsVfs, dir.path(), loaded).unwrap());
        let again = load(&OsVfs, dir.path()).unwrap();
        assert_eq!((again.generation, again.state.next_segment), (2, 3));
    }
}
