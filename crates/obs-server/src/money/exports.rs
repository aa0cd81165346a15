//! Exports: files of calls or ledger entries that are made in the background and fetched later.
//!
//! A job is in the control state before its id is told, so that a restart makes it again. One is
//! made at a time, an interval after the other, so that rows are in the order of time and memory
//! stays bounded.

use crate::llm::call_json;
use crate::money::ledger::{COLUMNS, cell, entry_json};
use crate::money::{Answer, Fault, Query, body, data, moment, tenant};
use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use flate2::Compression;
use flate2::write::GzEncoder;
use futures_util::stream::{self, StreamExt as _};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use obs_llm::ledger::entries;
use obs_llm::report::Dimension;
use obs_model::{
    CallSelection, DAY_NS, KeepState, LlmCall, Money, SpanId, StateChange, StateError, TenantId,
    TimestampNs, TraceId,
};
use obs_sql::{Cell, ParquetFile};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::ops::ControlFlow;
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/export/traces", post(traces))
        .route("/api/v1/export/ledger", post(ledger))
        .route("/api/v1/exports", get(list).post(traces))
        .route("/api/v1/export/jobs", get(list))
        .route("/api/v1/export/jobs/{id}", get(one).delete(remove))
        .route("/api/v1/export/jobs/{id}/download", get(download))
}

const SPACE: &str = "exports";
const ROWS_DEFAULT: u64 = 100_000;
const ROWS_MAX: u64 = 1_000_000;
/// Size past which a file is given up.
const BYTES_MAX: u64 = 2 << 30;
/// How long a file is kept.
const KEEP_NS: i64 = 7 * DAY_NS;
/// Jobs that a tenant may have, those waiting among them.
const JOBS_MAX: usize = 100;
/// A job is made in about so many intervals of time, none shorter than this.
const INTERVALS: i64 = 50;
const INTERVAL_MIN_NS: i64 = 3_600_000_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum What {
    Traces,
    Ledger,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Format {
    #[default]
    Csv,
    Json,
    Jsonl,
    Parquet,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Packing {
    #[default]
    None,
    Gzip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Pending,
    Processing,
    Completed,
    Failed,
    Cancelled,
    Expired,
}

impl Status {
    const fn is_over(self) -> bool {
        !matches!(self, Self::Pending | Self::Processing)
    }
}

/// A job as it is kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Job {
    id: String,
    tenant: String,
    what: What,
    format: Format,
    compression: Packing,
    start: i64,
    end: i64,
    filters: Vec<(String, Vec<String>)>,
    min_cost: Option<Money>,
    min_duration_ms: Option<f64>,
    limit: u64,
    status: Status,
    /// Percent.
    progress: u8,
    rows: u64,
    bytes: u64,
    /// Whether there was more than the limit.
    truncated: bool,
    error: Option<String>,
    created_at: i64,
    updated_at: i64,
}

impl Job {
    fn file_name(&self) -> String {
        let end = match self.format {
            Format::Csv => "csv",
            Format::Json => "json",
            Format::Jsonl => "jsonl",
            Format::Parquet => "parquet",
        };
        let gz = if self.compression == Packing::Gzip { ".gz" } else { "" };
        format!("{}.{end}{gz}", self.id)
    }

    fn json(&self) -> Value {
        let at = |ns: i64| TimestampNs::from_nanos(ns).to_string();
        let filters: Map<String, Value> =
            self.filters.iter().map(|(n, v)| (n.clone(), json!(v))).collect();
        json!({
            "job_id": self.id, "type": self.what, "status": self.status, "progress": self.progress, "format": self.format,
            "compression": self.compression, "from": at(self.start), "to": at(self.end), "filters": filters,
            "min_cost": self.min_cost.map(|m| m.to_string()), "min_duration_ms": self.min_duration_ms, "limit": self.limit,
            "rows": self.rows, "truncated": self.truncated, "file_size_bytes": self.bytes, "error": self.error,
            "created_at": at(self.created_at), "updated_at": at(self.updated_at),
            "expires_at": at(self.created_at.saturating_add(KEEP_NS)),
            "download_url": (self.status == Status::Completed).then(|| format!("/api/v1/export/jobs/{}/download", self.id)),
        })
    }

    fn keeps(&self, q: &Query, c: &LlmCall) -> bool {
        q.keeps(c)
            && self.min_cost.is_none_or(|m| c.cost.as_ref().is_some_and(|x| x.total() >= m))
            && self.min_duration_ms.is_none_or(|ms| c.duration_ms() >= ms)
    }
}

/// All jobs, and where their files are.
#[derive(Debug)]
pub(crate) struct Exports {
    folder: PathBuf,
    control: Arc<dyn KeepState>,
    jobs: Mutex<BTreeMap<String, Job>>,
    /// One file is made at a time.
    turn: tokio::sync::Mutex<()>,
}

impl Exports {
    /// Reads the jobs that are kept; files without one are removed.
    pub(crate) fn new(folder: PathBuf, control: Arc<dyn KeepState>) -> Self {
        let kept = control.list(SPACE);
        let jobs: BTreeMap<String, Job> = kept
            .into_iter()
            .filter_map(|(id, v)| Some((id, serde_json::from_slice(&v).ok()?)))
            .collect();
        let names: Vec<String> = jobs.values().map(Job::file_name).collect();
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            if !names.iter().any(|n| entry.file_name() == n.as_str()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        Self { folder, control, jobs: Mutex::new(jobs), turn: tokio::sync::Mutex::default() }
    }

    fn jobs(&self) -> MutexGuard<'_, BTreeMap<String, Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn of(&self, tenant: &TenantId, id: &str) -> Result<Job, Fault> {
        let found = self.jobs().get(id).filter(|j| j.tenant == tenant.as_str()).cloned();
        let unknown = || Fault::new(StatusCode::NOT_FOUND, "NOT_FOUND", "no such export");
        found.ok_or_else(unknown)
    }

    async fn keep(&self, job: &Job) -> Result<(), StateError> {
        let value = serde_json::to_vec(job).ok();
        let change = StateChange { space: SPACE.into(), key: job.id.clone(), value };
        self.control.put(vec![change]).await?;
        self.jobs().insert(job.id.clone(), job.clone());
        Ok(())
    }

    async fn forget(&self, job: &Job) -> Result<(), StateError> {
        let change = StateChange { space: SPACE.into(), key: job.id.clone(), value: None };
        self.control.put(vec![change]).await?;
        self.jobs().remove(&job.id);
        let _ = std::fs::remove_file(self.folder.join(job.file_name()));
        Ok(())
    }

    /// Ends and removes all exports of a tenant.
    pub(crate) async fn remove_all(&self, tenant: &TenantId) -> Result<(), StateError> {
        let jobs = self.jobs().values().cloned().collect::<Vec<_>>();
        for j in jobs.iter().filter(|j| j.tenant == tenant.as_str()) {
            self.forget(j).await?;
        }
        Ok(())
    }

    /// Removes files whose time is over, and the oldest jobs of a tenant that has too many.
    async fn sweep(&self, tenant: &TenantId, now: TimestampNs) -> Result<(), StateError> {
        let all: Vec<Job> = self.jobs().values().cloned().collect();
        for mut j in all.iter().cloned() {
            let is_old = j.created_at.saturating_add(KEEP_NS) < now.nanos();
            if is_old && j.status == Status::Completed {
                let _ = std::fs::remove_file(self.folder.join(j.file_name()));
                j.status = Status::Expired;
                self.keep(&j).await?;
            }
        }
        let mut over: Vec<&Job> =
            all.iter().filter(|j| j.tenant == tenant.as_str() && j.status.is_over()).collect();
        over.sort_by_key(|j| std::cmp::Reverse(j.created_at));
        for j in over.into_iter().skip(JOBS_MAX / 2) {
            self.forget(j).await?;
        }
        Ok(())
    }

    /// Returns whether a job is still wanted; notes how far it is.
    fn is_wanted(&self, id: &str, progress: u8, rows: u64, now: TimestampNs) -> bool {
        let mut jobs = self.jobs();
        let Some(j) = jobs.get_mut(id).filter(|j| j.status == Status::Processing) else {
            return false;
        };
        (j.progress, j.rows, j.updated_at) = (progress, rows, now.nanos());
        true
    }
}

impl AppState {
    /// Makes the files of jobs that were not finished when the server stopped.
    pub fn resume_exports(&self) {
        let waiting: Vec<String> = {
            let jobs = self.exports.jobs();
            jobs.values().filter(|j| !j.status.is_over()).map(|j| j.id.clone()).collect()
        };
        for id in waiting {
            tokio::spawn(run(self.clone(), id));
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Ask {
    format: Format,
    compression: Packing,
    #[serde(alias = "start", alias = "start_time")]
    from: Option<String>,
    #[serde(alias = "end", alias = "end_time")]
    to: Option<String>,
    limit: Option<u64>,
    filters: Map<String, Value>,
}

async fn traces(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Answer {
    begin(state, headers, bytes, What::Traces).await
}

async fn ledger(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Answer {
    begin(state, headers, bytes, What::Ledger).await
}

async fn begin(state: AppState, headers: HeaderMap, bytes: Bytes, what: What) -> Answer {
    let (tenant, ask): (TenantId, Ask) = (tenant(&headers)?, body(&headers, &bytes)?);
    let time = |name: &str, text: &Option<String>, or: TimestampNs| match text {
        None => Ok(or),
        Some(t) => moment(t).ok_or_else(|| Fault::bad(format!("{name}: {t:?} is not a time"))),
    };
    let now = state.now();
    let mut filters = ask.filters;
    let mut number = |name: &str| match filters.remove(name) {
        None | Some(Value::Null) => Ok(None),
        Some(v) => match v.as_f64().or_else(|| v.as_str()?.parse().ok()) {
            Some(n) => Ok(Some(n)),
            None => Err(Fault::bad(format!("filters.{name} is no number"))),
        },
    };
    let (min_cost, min_duration_ms) = (number("min_cost")?, number("min_duration_ms")?);
    let min_cost = min_cost.map(Money::try_from).transpose();
    let mut by = Vec::new();
    for (name, v) in filters {
        let known = |n: &&str| Dimension::parse(n).is_some();
        let Some(name) = Some(name.as_str()).filter(known) else {
            return Err(Fault::bad(format!("filters.{name}: calls are not told apart by that")));
        };
        let texts = |l: &[Value]| l.iter().map(|v| v.as_str().map(str::to_owned)).collect();
        let values: Option<Vec<String>> = match &v {
            Value::String(s) => Some(vec![s.clone()]),
            Value::Array(l) => texts(l),
            _ => None,
        };
        let values = values.ok_or_else(|| Fault::bad(format!("filters.{name} is no text")))?;
        by.push((name.to_owned(), values));
    }
    let end = time("to", &ask.to, now)?;
    let start = time("from", &ask.from, end.add_nanos(-30 * DAY_NS))?;
    if start >= end {
        return Err(Fault::bad("the range ends before it starts"));
    }
    let limit = ask.limit.unwrap_or(ROWS_DEFAULT);
    if !(1..=ROWS_MAX).contains(&limit) {
        return Err(Fault::bad(format!("limit must be from 1 to {ROWS_MAX}")));
    }
    if ask.format == Format::Parquet && ask.compression == Packing::Gzip {
        return Err(Fault::bad("a Parquet file is compressed inside; leave compression out"));
    }
    let exports = &state.exports;
    exports.sweep(&tenant, now).await?;
    let own = exports.jobs().values().filter(|j| j.tenant == tenant.as_str()).count();
    if own >= JOBS_MAX {
        let text = format!("{JOBS_MAX} exports wait or are kept; delete some");
        return Err(Fault::new(StatusCode::TOO_MANY_REQUESTS, "TOO_MANY_JOBS", text));
    }
    let job = Job {
        id: uuid::Uuid::new_v4().simple().to_string(),
        tenant: tenant.as_str().to_owned(),
        what,
        format: ask.format,
        compression: ask.compression,
        start: start.nanos(),
        end: end.nanos(),
        filters: by,
        min_cost: min_cost.map_err(|_| Fault::bad("filters.min_cost is no amount"))?,
        min_duration_ms,
        limit,
        status: Status::Pending,
        progress: 0,
        rows: 0,
        bytes: 0,
        truncated: false,
        error: None,
        created_at: now.nanos(),
        updated_at: now.nanos(),
    };
    exports.keep(&job).await?;
    tokio::spawn(run(state.clone(), job.id.clone()));
    Ok((StatusCode::ACCEPTED, data(&state, job.json())).into_response())
}

async fn list(State(state): State<AppState>, p: Params) -> Answer {
    state.exports.sweep(&p.tenant, state.now()).await?;
    let mut all: Vec<Job> = {
        let jobs = state.exports.jobs();
        jobs.values().filter(|j| j.tenant == p.tenant.as_str()).cloned().collect()
    };
    all.sort_by_key(|j| std::cmp::Reverse(j.created_at));
    Ok(data(&state, json!({"jobs": all.iter().map(Job::json).collect::<Vec<_>>()})))
}

async fn one(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Answer {
    state.exports.sweep(&p.tenant, state.now()).await?;
    Ok(data(&state, state.exports.of(&p.tenant, &id)?.json()))
}

/// Cancels a job that is not done; removes one that is.
async fn remove(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Answer {
    let mut job = state.exports.of(&p.tenant, &id)?;
    if job.status.is_over() {
        state.exports.forget(&job).await?;
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    (job.status, job.updated_at) = (Status::Cancelled, state.now().nanos());
    state.exports.keep(&job).await?;
    Ok(data(&state, job.json()))
}

async fn download(State(state): State<AppState>, Path(id): Path<String>, p: Params) -> Answer {
    state.exports.sweep(&p.tenant, state.now()).await?;
    let job = state.exports.of(&p.tenant, &id)?;
    match job.status {
        Status::Completed => {}
        Status::Expired => {
            return Err(Fault::new(StatusCode::GONE, "EXPIRED", "the file's time is over"));
        }
        other => {
            let text = format!("the export is {}", json!(other).as_str().unwrap_or_default());
            return Err(Fault::new(StatusCode::CONFLICT, "NOT_READY", text));
        }
    }
    let path = state.exports.folder.join(job.file_name());
    let opened = tokio::task::spawn_blocking(move || File::open(path)).await;
    let lost = |e: String| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "FILE_LOST", e);
    let file = opened.map_err(|e| lost(e.to_string()))?.map_err(|e| lost(e.to_string()))?;
    Ok(file_response(&job, file))
}

fn file_response(job: &Job, file: File) -> Response {
    const PIECE: usize = 256 << 10;
    let pieces = stream::unfold(Some(file), |file| async move {
        let mut file = file?;
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let n = file.read(&mut piece)?;
            piece.truncate(n);
            Ok::<_, io::Error>((piece, file))
        });
        match read.await.map_err(io::Error::other).and_then(|r| r) {
            Ok((piece, _)) if piece.is_empty() => None,
            Ok((piece, file)) => Some((Ok(Bytes::from(piece)), Some(file))),
            Err(e) => Some((Err(e), None)),
        }
    });
    let kind = match (job.compression, job.format) {
        (Packing::Gzip, _) => "application/gzip",
        (_, Format::Csv) => "text/csv; charset=utf-8",
        (_, Format::Json) => "application/json",
        (_, Format::Jsonl) => "application/jsonl",
        (_, Format::Parquet) => "application/vnd.apache.parquet",
    };
    let name = format!("attachment; filename=\"{}\"", job.file_name());
    // Compression looks again after the end.
    let mut r = Response::new(Body::from_stream(pieces.fuse()));
    r.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    if let Ok(name) = HeaderValue::from_str(&name) {
        r.headers_mut().insert(header::CONTENT_DISPOSITION, name);
    }
    r
}

/// Columns of calls, and what they hold.
const CALLS: [(&str, Cell); 38] = {
    use Cell::{Float, Int, Money, Text};
    [
        ("timestamp", Text),
        ("trace_id", Text),
        ("span_id", Text),
        ("call_id", Text),
        ("service", Text),
        ("environment", Text),
        ("provider", Text),
        ("model", Text),
        ("request_model", Text),
        ("response_model", Text),
        ("operation", Text),
        ("status", Text),
        ("error_type", Text),
        ("finish_reason", Text),
        ("user_id", Text),
        ("session_id", Text),
        ("team", Text),
        ("project", Text),
        ("agent", Text),
        ("prompt_name", Text),
        ("prompt_version", Text),
        ("tags", Text),
        ("input_tokens", Int),
        ("output_tokens", Int),
        ("cache_read_tokens", Int),
        ("cache_write_tokens", Int),
        ("reasoning_tokens", Int),
        ("audio_input_tokens", Int),
        ("audio_output_tokens", Int),
        ("input_total", Int),
        ("output_total", Int),
        ("duration_ms", Float),
        ("time_to_first_token_ms", Float),
        ("cost_usd", Money),
        ("cost_state", Text),
        ("reported_cost_usd", Money),
        ("price_id", Text),
        ("dialect", Text),
    ]
};

fn columns(what: What) -> Vec<(&'static str, Cell)> {
    let of_entry = |name: &'static str| match name {
        "amount_usd" => (name, Cell::Money),
        "revision" => (name, Cell::Int),
        _ => (name, Cell::Text),
    };
    match what {
        What::Traces => CALLS.to_vec(),
        What::Ledger => COLUMNS.iter().map(|n| of_entry(n)).collect(),
    }
}

enum Out {
    Plain(BufWriter<File>),
    Gzip(GzEncoder<BufWriter<File>>),
}

/// Where bytes go, counted, and refused past the limit.
struct Sink {
    out: Out,
    bytes: u64,
}

impl Write for Sink {
    fn write(&mut self, b: &[u8]) -> io::Result<usize> {
        self.bytes += b.len() as u64;
        if self.bytes > BYTES_MAX {
            let text = format!("the file is larger than {BYTES_MAX} bytes; narrow the range");
            return Err(io::Error::other(text));
        }
        match &mut self.out {
            Out::Plain(f) => f.write(b),
            Out::Gzip(gz) => gz.write(b),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn new(path: &FilePath, compression: Packing) -> io::Result<Self> {
        let file = BufWriter::new(File::create(path)?);
        let out = match compression {
            Packing::None => Out::Plain(file),
            Packing::Gzip => Out::Gzip(GzEncoder::new(file, Compression::default())),
        };
        Ok(Self { out, bytes: 0 })
    }

    /// Returns when the file is on disk.
    fn close(self) -> io::Result<()> {
        let file = match self.out {
            Out::Plain(f) => f,
            Out::Gzip(gz) => gz.finish()?,
        };
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    }
}

/// A file in one of the formats.
enum Table {
    Csv(Sink, Vec<&'static str>),
    Json(Sink, bool),
    Jsonl(Sink),
    Parquet(Box<ParquetFile<Sink>>),
}

impl Table {
    fn new(job: &Job, path: &FilePath) -> io::Result<Self> {
        let mut sink = Sink::new(path, job.compression)?;
        let columns = columns(job.what);
        Ok(match job.format {
            Format::Csv => {
                let names: Vec<&'static str> = columns.iter().map(|c| c.0).collect();
                writeln!(sink, "{}", names.join(","))?;
                Self::Csv(sink, names)
            }
            Format::Json => {
                sink.write_all(b"[")?;
                Self::Json(sink, true)
            }
            Format::Jsonl => Self::Jsonl(sink),
            Format::Parquet => Self::Parquet(Box::new(ParquetFile::new(&columns, sink)?)),
        })
    }

    fn push(&mut self, row: Value) -> io::Result<()> {
        match self {
            Self::Csv(sink, names) => {
                let of = |n: &&str| match row.get(*n) {
                    None | Some(Value::Null) => String::new(),
                    Some(v) => cell(v),
                };
                writeln!(sink, "{}", names.iter().map(of).collect::<Vec<_>>().join(","))
            }
            Self::Json(sink, is_first) => {
                let before = if std::mem::take(is_first) { "\n" } else { ",\n" };
                write!(sink, "{before}{row}")
            }
            Self::Jsonl(sink) => writeln!(sink, "{row}"),
            Self::Parquet(file) => file.push(row),
        }
    }

    fn finish(self) -> io::Result<()> {
        match self {
            Self::Csv(sink, _) | Self::Jsonl(sink) => sink.close(),
            Self::Json(mut sink, _) => {
                sink.write_all(b"\n]\n")?;
                sink.close()
            }
            Self::Parquet(file) => file.finish()?.close(),
        }
    }
}

/// A call's row: the columns of the list of calls, with the time as text.
fn call_row(c: &LlmCall) -> Value {
    let mut row = call_json(c);
    if let Some(o) = row.as_object_mut() {
        o.remove("ts_ms");
        o.insert("timestamp".into(), c.start.to_string().into());
    }
    row
}

/// Makes a job's file.
async fn run(state: AppState, id: String) {
    let exports = state.exports.clone();
    let _turn = exports.turn.lock().await;
    let Some(mut job) = exports.jobs().get(&id).filter(|j| !j.status.is_over()).cloned() else {
        return;
    };
    (job.status, job.progress, job.rows) = (Status::Processing, 0, 0);
    let made = match exports.keep(&job).await {
        Ok(()) => make(&state, &mut job).await,
        Err(e) => Err(e.to_string()),
    };
    let path = exports.folder.join(job.file_name());
    // Somebody may have ended it meanwhile.
    let is_wanted = exports.is_wanted(&id, job.progress, job.rows, state.now());
    match made {
        Ok(()) if is_wanted => {
            job.bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
            (job.status, job.progress) = (Status::Completed, 100);
        }
        Ok(()) => {
            let _ = std::fs::remove_file(&path);
            return;
        }
        Err(e) => {
            let _ = std::fs::remove_file(&path);
            tracing::warn!(job = id, error = e, "an export failed");
            if !is_wanted {
                return;
            }
            (job.status, job.error) = (Status::Failed, Some(e));
        }
    }
    job.updated_at = state.now().nanos();
    if let Err(e) = exports.keep(&job).await {
        tracing::error!(job = id, error = %e, "what became of an export was not kept");
    }
}

/// Writes the rows of one interval after the other.
async fn make(state: &AppState, job: &mut Job) -> Result<(), String> {
    let exports = state.exports.clone();
    let path = exports.folder.join(job.file_name());
    let (folder, of) = (exports.folder.clone(), job.clone());
    let begun = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&folder)?;
        Table::new(&of, &folder.join(of.file_name()))
    });
    let told = |e: io::Error| e.to_string();
    let mut table = begun.await.map_err(|e| e.to_string())?.map_err(told)?;
    let tenant = TenantId::new(&job.tenant).map_err(|e| e.to_string())?;
    let step = ((job.end - job.start) / INTERVALS).max(INTERVAL_MIN_NS);
    let mut from = job.start;
    while from < job.end && !job.truncated {
        let to = from.saturating_add(step).min(job.end);
        let (of, tenant, left) = (job.clone(), tenant.clone(), job.limit - job.rows);
        let work = blocking(state, "llm_repository", "export", move |s, budget| {
            let rows = rows(s, &tenant, &of, (from, to), budget)?;
            let (mut written, total) = (0, rows.len() as u64);
            for row in rows.into_iter().take(usize::try_from(left).unwrap_or(usize::MAX)) {
                table.push(row).map_err(|e| QueryFailure::Internal(e.to_string()))?;
                written += 1;
            }
            Ok((table, written, total > left))
        });
        let (back, written, truncated) = work.await.map_err(|f| f.message())?;
        table = back;
        job.rows += written;
        job.truncated = truncated;
        from = to;
        let share = (from - job.start) as f64 / (job.end - job.start) as f64;
        job.progress = (share * 99.0) as u8;
        if !exports.is_wanted(&job.id, job.progress, job.rows, state.now()) {
            let _ = std::fs::remove_file(&path);
            return Ok(());
        }
    }
    let closed = tokio::task::spawn_blocking(move || table.finish()).await;
    closed.map_err(|e| e.to_string())?.map_err(told)
}

/// Returns the rows of an interval, in the order of time.
fn rows(
    state: &AppState,
    tenant: &TenantId,
    job: &Job,
    (from, to): (i64, i64),
    budget: &obs_model::Budget,
) -> Result<Vec<Value>, QueryFailure> {
    let at = TimestampNs::from_nanos;
    let filter = |(n, v): &(String, Vec<String>)| Some((Dimension::parse(n)?, v.clone()));
    let q = Query {
        start: at(from),
        end: at(to),
        filters: job.filters.iter().filter_map(filter).collect(),
    };
    let selection =
        CallSelection { start: q.start, end: q.end, trace_id: None, revisions_only: false };
    let mut calls: BTreeMap<(TimestampNs, TraceId, SpanId), Vec<Arc<LlmCall>>> = BTreeMap::new();
    let mut visit = |c: &Arc<LlmCall>| {
        if job.keeps(&q, c) {
            calls.entry((c.start, c.trace_id, c.span_id)).or_default().push(c.clone());
        }
        ControlFlow::Continue(())
    };
    // The ledger has every revision of a call, the list of calls only what holds now.
    match job.what {
        What::Traces => state.source.current_calls(tenant, &selection, budget, &mut visit)?,
        What::Ledger => state.source.select_calls(tenant, &selection, budget, &mut visit)?,
    }
    let mut out = Vec::new();
    for list in calls.values() {
        match job.what {
            What::Traces => out.extend(list.iter().map(|c| call_row(c))),
            What::Ledger => {
                let refs: Vec<&LlmCall> = list.iter().map(|c| &**c).collect();
                out.extend(entries(&refs).iter().map(entry_json));
            }
        }
    }
    Ok(out)
}
