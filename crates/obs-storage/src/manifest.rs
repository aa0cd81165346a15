//! The manifest: which segments exist and where the log starts, in SQLite, one transaction a
//! flush.

use crate::segment::{Operations, Signal};
use obs_model::{MetricKind, MetricMetadata, TenantId};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::path::Path;

/// Version of the tables; a newer one is refused.
const SCHEMA_VERSION: i64 = 1;

#[derive(Debug, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("manifest: {0}")]
    Sql(#[from] rusqlite::Error),
    #[error("manifest has version {0}, this program knows up to {SCHEMA_VERSION}")]
    Newer(i64),
    #[error("manifest row of segment {0} does not decode")]
    Row(i64),
}

/// One segment's row.
#[derive(Debug, Clone)]
pub(crate) struct SegmentMeta {
    pub(crate) id: i64,
    pub(crate) tenant: TenantId,
    pub(crate) signal: Signal,
    /// ms for metrics, ns otherwise.
    pub(crate) min_time: i64,
    pub(crate) max_time: i64,
    pub(crate) rows: i64,
    pub(crate) bytes: i64,
    pub(crate) operations: Operations,
}

impl SegmentMeta {
    /// Returns the path below the data directory.
    pub(crate) fn relative_path(&self) -> String {
        format!("segments/{}/{}/{:010}.parquet", self.tenant, self.signal.as_str(), self.id)
    }
}

#[derive(Debug)]
pub(crate) struct Manifest(Connection);

impl Manifest {
    pub(crate) fn open(path: &Path) -> Result<Self, ManifestError> {
        let db = Connection::open(path)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        let version: i64 = db.pragma_query_value(None, "user_version", |r| r.get(0))?;
        if version > SCHEMA_VERSION {
            return Err(ManifestError::Newer(version));
        }
        db.execute_batch(
            "CREATE TABLE IF NOT EXISTS segment (id INTEGER PRIMARY KEY, tenant TEXT NOT NULL, signal TEXT NOT NULL,
               min_time INTEGER NOT NULL, max_time INTEGER NOT NULL, rows INTEGER NOT NULL, bytes INTEGER NOT NULL,
               operations TEXT NOT NULL);
             CREATE TABLE IF NOT EXISTS state (key TEXT PRIMARY KEY, value INTEGER NOT NULL);
             CREATE TABLE IF NOT EXISTS metadata (tenant TEXT NOT NULL, name TEXT NOT NULL, kind TEXT NOT NULL,
               help TEXT NOT NULL, unit TEXT NOT NULL, PRIMARY KEY (tenant, name));",
        )?;
        db.pragma_update(None, "user_version", SCHEMA_VERSION)?;
        Ok(Self(db))
    }

    /// Returns all segments by id.
    pub(crate) fn segments(&self) -> Result<Vec<SegmentMeta>, ManifestError> {
        let mut q = self.0.prepare("SELECT id, tenant, signal, min_time, max_time, rows, bytes, operations FROM segment ORDER BY id")?;
        let rows = q.query_map([], |r| {
            Ok((
                r.get(0)?,
                r.get::<_, String>(1)?,
                r.get::<_, String>(2)?,
                r.get(3)?,
                r.get(4)?,
                r.get(5)?,
                r.get(6)?,
                r.get::<_, String>(7)?,
            ))
        })?;
        rows.map(|row| {
            let (id, tenant, signal, min_time, max_time, rows, bytes, operations) = row?;
            Ok(SegmentMeta {
                id,
                tenant: TenantId::new(&tenant).map_err(|_| ManifestError::Row(id))?,
                signal: Signal::parse(&signal).ok_or(ManifestError::Row(id))?,
                min_time,
                max_time,
                rows,
                bytes,
                operations: parse_operations(&operations),
            })
        })
        .collect()
    }

    /// Returns the number of the first log file that is still needed.
    pub(crate) fn wal_start(&self) -> Result<u64, ManifestError> {
        let v: Option<i64> = self
            .0
            .query_row("SELECT value FROM state WHERE key = 'wal_start'", [], |r| r.get(0))
            .optional()?;
        Ok(v.unwrap_or(0).unsigned_abs())
    }

    /// Adds segments and moves the start of the log, at once.
    pub(crate) fn commit_flush(
        &mut self,
        segments: &[SegmentMeta],
        metadata: &[(TenantId, MetricMetadata)],
        wal_start: u64,
    ) -> Result<(), ManifestError> {
        let tx = self.0.transaction()?;
        for s in segments {
            tx.execute(
                "INSERT INTO segment VALUES (?,?,?,?,?,?,?,?)",
                params![
                    s.id,
                    s.tenant.as_str(),
                    s.signal.as_str(),
                    s.min_time,
                    s.max_time,
                    s.rows,
                    s.bytes,
                    print_operations(&s.operations)
                ],
            )?;
        }
        for (tenant, m) in metadata {
            tx.execute(
                "INSERT OR REPLACE INTO metadata VALUES (?,?,?,?,?)",
                params![tenant.as_str(), m.name, m.kind.as_str(), m.help, m.unit],
            )?;
        }
        let start = i64::try_from(wal_start).unwrap_or(i64::MAX);
        tx.execute("INSERT OR REPLACE INTO state VALUES ('wal_start', ?)", [start])?;
        Ok(tx.commit()?)
    }

    pub(crate) fn metadata(&self) -> Result<Vec<(TenantId, MetricMetadata)>, ManifestError> {
        let mut q = self.0.prepare("SELECT tenant, name, kind, help, unit FROM metadata")?;
        let rows = q.query_map([], |r| {
            let kind = MetricKind::parse(&r.get::<_, String>(2)?);
            Ok((
                r.get::<_, String>(0)?,
                MetricMetadata { name: r.get(1)?, kind, help: r.get(3)?, unit: r.get(4)? },
            ))
        })?;
        let mut out = Vec::new();
        for row in rows {
            let (tenant, m) = row?;
            out.push((TenantId::new(&tenant).map_err(|_| ManifestError::Row(-1))?, m));
        }
        Ok(out)
    }
}

/// Fields are separated by unit separators and rows by record separators: names are free text.
fn print_operations(ops: &Operations) -> String {
    let clean = |s: &str| s.replace(['\u{1e}', '\u{1f}'], " ");
    ops.iter()
        .map(|(s, o, k)| format!("{}\u{1f}{}\u{1f}{k}", clean(s), clean(o)))
        .collect::<Vec<_>>()
        .join("\u{1e}")
}

fn parse_operations(text: &str) -> Operations {
    let row = |r: &str| {
        let mut parts = r.split('\u{1f}');
        Some((parts.next()?.to_owned(), parts.next()?.to_owned(), parts.next()?.parse().ok()?))
    };
    text.split('\u{1e}').filter_map(row).collect()
}
