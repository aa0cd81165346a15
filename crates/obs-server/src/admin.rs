//! What administrators do with the store: flush, merge, back up, delete.

use crate::llm::native_error;
use crate::params::{Params, prometheus_time};
use crate::state::{AdminApi, AppState};
use axum::body::Body;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use obs_model::{DeleteScope, ReadAt, SnapshotFile, TenantId, TraceId};
use obs_promql::ast::Expr;
use obs_promql::parse;
use serde_json::json;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use tokio::sync::mpsc;

pub(crate) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/storage/flush", post(flush))
        .route("/api/v1/storage/compact", post(compact))
        .route("/api/v1/storage/tier", post(tier))
        .route("/api/v1/storage/backup", get(backup))
        .route("/api/v1/traces/{id}", delete(delete_trace))
        .route("/api/v1/tenants/{id}", delete(delete_tenant))
}

/// The part of Prometheus' admin API that deletes.
pub(crate) fn prometheus_routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/admin/tsdb/delete_series", post(delete_series).put(delete_series))
        .route("/api/v1/admin/tsdb/clean_tombstones", post(clean).put(clean))
        .route("/api/v1/admin/tsdb/snapshot", post(snapshot).put(snapshot))
}

/// Tells whether a request may delete data, or why not.
pub(crate) fn allowed(admin: AdminApi, headers: &HeaderMap) -> Result<(), &'static str> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    match admin {
        AdminApi::Off => return Err("admin APIs disabled"),
        AdminApi::On => {}
        // A name may have been made to point here by the owner of a web page.
        AdminApi::Local if !is_local_name(host) => {
            return Err("admin APIs are open to this machine's own addresses only");
        }
        AdminApi::Local => {}
    }
    // A web page of another site must not delete data through its reader's browser.
    let foreign = text(header::ORIGIN).is_some_and(|origin| {
        origin.split_once("://").is_none_or(|(_, from)| !from.eq_ignore_ascii_case(host))
    });
    if foreign { Err("admin APIs are closed to pages of other sites") } else { Ok(()) }
}

fn is_local_name(host: &str) -> bool {
    let name = host
        .rsplit_once(':')
        .map_or(host, |(n, port)| if port.bytes().all(|b| b.is_ascii_digit()) { n } else { host });
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok()
}

fn done(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Json(json!({"status": "success"})).into_response(),
        Err(e) => native_error(StatusCode::INTERNAL_SERVER_ERROR, &e),
    }
}

/// Copies the store as it is into a folder of its own beside it, which is a data directory.
async fn snapshot(State(state): State<AppState>, headers: HeaderMap) -> Response {
    if let Err(e) = allowed(state.admin_api, &headers) {
        return native_error(StatusCode::FORBIDDEN, e);
    }
    let files = match state.store.snapshot().await {
        Ok(files) => files,
        Err(e) => return native_error(StatusCode::INTERNAL_SERVER_ERROR, &e),
    };
    let stamp: String =
        state.now().to_string().chars().filter(char::is_ascii_alphanumeric).collect();
    let name = format!("{stamp}-{:08x}", state.now().nanos() as u32);
    let folder = state.snapshots.join(&name);
    let write = move || copy_files(&files, &folder);
    let done = tokio::task::spawn_blocking(write).await;
    match done.map_err(|e| e.to_string()).and_then(|r| r.map_err(|e| e.to_string())) {
        Ok(()) => Json(json!({"status": "success", "data": {"name": name}})).into_response(),
        Err(e) => native_error(StatusCode::INTERNAL_SERVER_ERROR, &e),
    }
}

fn copy_files(files: &[SnapshotFile], folder: &std::path::Path) -> io::Result<()> {
    const PIECE: usize = 1 << 20;
    for f in files {
        let path = folder.join(&f.path);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut out = std::fs::File::create(&path)?;
        let (mut at, mut piece) = (0_u64, vec![0; PIECE]);
        while at < f.len {
            let n = usize::try_from(f.len - at).unwrap_or(PIECE).min(PIECE);
            let Some(part) = piece.get_mut(..n) else { break };
            f.content.read_at(at, part)?;
            out.write_all(part)?;
            at += n as u64;
        }
        out.sync_all()?;
    }
    Ok(())
}

async fn flush(State(state): State<AppState>) -> Response {
    done(state.store.flush().await)
}

async fn compact(State(state): State<AppState>) -> Response {
    if let Err(e) = state.store.flush().await {
        return done(Err(e));
    }
    done(state.store.merge().await)
}

/// Moves to the object store what is due now.
async fn tier(State(state): State<AppState>) -> Response {
    match state.store.tier((state.clock)()).await {
        Ok(moved) => Json(json!({"status": "success", "segments": moved})).into_response(),
        Err(e) => native_error(StatusCode::BAD_GATEWAY, &e),
    }
}

async fn delete_trace(
    State(state): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
    p: Params,
) -> Response {
    if let Err(e) = allowed(state.admin_api, &headers) {
        return native_error(StatusCode::FORBIDDEN, e);
    }
    let Some(id) = TraceId::parse(&id) else {
        return native_error(StatusCode::BAD_REQUEST, "trace id is not hexadecimal");
    };
    done(remove(&state, &p.tenant, DeleteScope::Trace(id)).await)
}

/// Deletes a tenant's data, what of it was archived, and with all of it what was exported.
async fn remove(state: &AppState, tenant: &TenantId, scope: DeleteScope) -> Result<(), String> {
    if scope == DeleteScope::Tenant {
        state.exports.remove_all(tenant).await.map_err(|e| e.to_string())?;
    }
    if let Some(archive) = tenant.archive() {
        state.store.delete(&archive, scope.clone()).await?;
    }
    state.store.delete(tenant, scope).await
}

async fn delete_tenant(
    State(state): State<AppState>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Response {
    if let Err(e) = allowed(state.admin_api, &headers) {
        return native_error(StatusCode::FORBIDDEN, e);
    }
    match TenantId::new(&id) {
        Ok(tenant) => done(remove(&state, &tenant, DeleteScope::Tenant).await),
        Err(e) => native_error(StatusCode::BAD_REQUEST, &e.to_string()),
    }
}

fn prometheus_error(status: StatusCode, kind: &str, message: &str) -> Response {
    (status, Json(json!({"status": "error", "errorType": kind, "error": message}))).into_response()
}

/// The requests that a `delete_series` call stands for.
fn series_scopes(p: &Params) -> Result<Vec<DeleteScope>, String> {
    let time = |name: &str, default: i64| match p.get(name) {
        None => Ok(default),
        Some(text) => prometheus_time(text).ok_or_else(|| {
            format!("invalid parameter {name:?}: cannot parse {text:?} to a valid timestamp")
        }),
    };
    let (start, end) = (time("start", i64::MIN)?, time("end", i64::MAX)?);
    if end < start {
        return Err("end timestamp must not be before start time".into());
    }
    let mut out = Vec::new();
    for text in p.all("match[]") {
        match parse(text) {
            Ok(Expr::Selector(s)) => {
                let matchers = s.matchers.into_iter().map(|m| (m.name, m.op, m.value)).collect();
                out.push(DeleteScope::Series { matchers, start, end });
            }
            Ok(_) => {
                return Err(format!(
                    "invalid parameter \"match[]\": {text:?} is not a series selector"
                ));
            }
            Err(e) => return Err(format!("invalid parameter \"match[]\": {e}")),
        }
    }
    if out.is_empty() { Err("no match[] parameter provided".into()) } else { Ok(out) }
}

async fn delete_series(State(state): State<AppState>, headers: HeaderMap, p: Params) -> Response {
    if let Err(e) = allowed(state.admin_api, &headers) {
        return prometheus_error(StatusCode::SERVICE_UNAVAILABLE, "unavailable", e);
    }
    let scopes = match series_scopes(&p) {
        Ok(s) => s,
        Err(e) => return prometheus_error(StatusCode::BAD_REQUEST, "bad_data", &e),
    };
    for scope in scopes {
        if let Err(e) = state.store.delete(&p.tenant, scope).await {
            return prometheus_error(StatusCode::INTERNAL_SERVER_ERROR, "internal", &e);
        }
    }
    StatusCode::NO_CONTENT.into_response()
}

async fn clean(State(state): State<AppState>, headers: HeaderMap) -> Response {
    if let Err(e) = allowed(state.admin_api, &headers) {
        return prometheus_error(StatusCode::SERVICE_UNAVAILABLE, "unavailable", e);
    }
    match state.store.merge().await {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(e) => prometheus_error(StatusCode::INTERNAL_SERVER_ERROR, "internal", &e),
    }
}

/// Sends what is written to the body of an answer; waits when the client is slow.
struct Sender(mpsc::Sender<io::Result<Bytes>>);

impl Write for Sender {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(buf)));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a file of a snapshot front to back.
struct Front<'a> {
    content: &'a dyn ReadAt,
    at: u64,
    len: u64,
}

impl Read for Front<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.len - self.at).unwrap_or(usize::MAX);
        let n = buf.len().min(left);
        let Some(part) = buf.get_mut(..n) else { return Ok(0) };
        self.content.read_at(self.at, part)?;
        self.at += n as u64;
        Ok(n)
    }
}

fn write_tar(files: &[SnapshotFile], sender: Sender) -> io::Result<()> {
    const BUFFER: usize = 256 << 10;
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(BUFFER, sender));
    for f in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(f.len);
        header.set_mode(0o600);
        let reader = Front { content: &*f.content, at: 0, len: f.len };
        tar.append_data(&mut header, &f.path, io::BufReader::with_capacity(BUFFER, reader))?;
    }
    tar.into_inner()?.flush()
}

/// A data directory as a tar stream: everything acknowledged before the request.
async fn backup(State(state): State<AppState>) -> Response {
    let files = match state.store.snapshot().await {
        Ok(files) => files,
        Err(e) => return native_error(StatusCode::INTERNAL_SERVER_ERROR, &e),
    };
    let (sender, receiver) = mpsc::channel(4);
    tokio::task::spawn_blocking(move || {
        let last = sender.clone();
        if let Err(e) = write_tar(&files, Sender(sender)) {
            tracing::warn!(error = %e, "backup was cut off");
            // The answer then ends without its last chunk: the client sees that it is not whole.
            let _ = last.blocking_send(Err(e));
        }
    });
    let chunks = futures_util::stream::unfold(receiver, |mut r| async move {
        let chunk = r.recv().await?;
        Some((chunk, r))
    });
    ([(header::CONTENT_TYPE, "application/x-tar")], Body::from_stream(chunks)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_sites_and_names_may_not_delete() {
        let cases = [
            (AdminApi::Off, "127.0.0.1:9090", None, false),
            (AdminApi::Local, "127.0.0.1:9090", None, true),
            (AdminApi::Local, "localhost:9090", None, true),
            (AdminApi::Local, "[::1]:9090", None, true),
            (AdminApi::Local, "evil.example:9090", None, false),
            (AdminApi::Local, "127.0.0.1:9090", Some("http://127.0.0.1:9090"), true),
            (AdminApi::Local, "127.0.0.1:9090", Some("http://127.0.0.1:3000"), false),
            (AdminApi::Local, "127.0.0.1:9090", Some("null"), false),
            (AdminApi::On, "metrics.example", None, true),
            (AdminApi::On, "metrics.example", Some("https://metrics.example"), true),
            (AdminApi::On, "metrics.example", Some("https://evil.example"), false),
        ];
        for (admin, host, origin, want) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(o) = origin {
                headers.insert(header::ORIGIN, o.parse().unwrap());
            }
            assert_eq!(allowed(admin, &headers).is_ok(), want, "{admin:?} {host} {origin:?}");
        }
    }
}
