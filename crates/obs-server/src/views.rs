//! Saved views: what a page shows, under a name, for everybody of a tenant.

use crate::alertmanager::json_body;
use crate::body::Refusal;
use crate::llm::native_error;
use crate::params::Params;
use crate::state::AppState;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderMap, StatusCode};
use obs_model::{StateChange, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::json;

pub(crate) fn routes() -> Router<AppState> {
    Router::new().route("/api/v1/views", get(list).post(save).delete(remove))
}

/// Where views are kept.
const SPACE: &str = "views";
/// Views of a tenant.
const VIEWS_MAX: usize = 500;
const NAME_CHARS_MAX: usize = 100;
const PAGE_BYTES_MAX: usize = 200;
const QUERY_BYTES_MAX: usize = 8192;

#[derive(Debug, Serialize, Deserialize)]
struct View {
    /// Path of the page: `/llm/generations`.
    page: String,
    name: String,
    /// Query of the URL that shows it, without the question mark.
    query: String,
}

impl View {
    fn check(&self) -> Result<(), String> {
        let is_path = |c: char| c.is_ascii_alphanumeric() || "/-_".contains(c);
        let Self { page, name, query } = self;
        // A second slash would lead to another host.
        let is_page = page.starts_with('/') && !page.starts_with("//") && page.chars().all(is_path);
        if !is_page || page.len() > PAGE_BYTES_MAX {
            return Err("page is the path of a page, such as /llm/generations".into());
        }
        let is_name = !name.trim().is_empty() && !name.chars().any(char::is_control);
        if !is_name || name.chars().count() > NAME_CHARS_MAX {
            return Err(format!("name has between 1 and {NAME_CHARS_MAX} characters"));
        }
        if query.len() > QUERY_BYTES_MAX || query.chars().any(char::is_control) {
            return Err(format!("query is that of a URL, of at most {QUERY_BYTES_MAX} bytes"));
        }
        Ok(())
    }
}

/// Names a tenant's view; no part of it can hold the separator.
fn key(tenant: &TenantId, page: &str, name: &str) -> String {
    format!("{tenant}\n{page}\n{name}")
}

async fn list(State(state): State<AppState>, p: Params) -> Response {
    let wanted = |v: &View| p.get("page").is_none_or(|page| page == v.page);
    let mut views: Vec<View> = state
        .kept_of::<View>(SPACE, &p.tenant)
        .into_iter()
        .map(|(_, v)| v)
        .filter(wanted)
        .collect();
    views.sort_by(|a, b| (&a.page, &a.name).cmp(&(&b.page, &b.name)));
    Json(json!({"views": views})).into_response()
}

async fn save(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Response {
    let view: View = match json_body(&headers, &bytes) {
        Ok(v) => v,
        Err(r) => return r.into_response(),
    };
    let tenant = match crate::tenant::tenant(&headers) {
        Ok(t) => t,
        Err(e) => return native_error(StatusCode::BAD_REQUEST, &e),
    };
    if let Err(e) = view.check() {
        return native_error(StatusCode::BAD_REQUEST, &e);
    }
    let key = key(&tenant, &view.page, &view.name);
    let all = state.kept_of::<View>(SPACE, &tenant);
    if all.len() >= VIEWS_MAX && !all.iter().any(|(k, _)| *k == key) {
        let message = format!("{VIEWS_MAX} views are saved, which is the limit: delete some");
        return native_error(StatusCode::TOO_MANY_REQUESTS, &message);
    }
    let value = match serde_json::to_vec(&view) {
        Ok(v) => v,
        Err(e) => return native_error(StatusCode::BAD_REQUEST, &e.to_string()),
    };
    put(&state, key, Some(value), StatusCode::CREATED).await
}

async fn remove(State(state): State<AppState>, p: Params) -> Response {
    let (Some(page), Some(name)) = (p.get("page"), p.get("name")) else {
        return native_error(StatusCode::BAD_REQUEST, "say which view: page and name");
    };
    let key = key(&p.tenant, page, name);
    if !state.kept_of::<View>(SPACE, &p.tenant).iter().any(|(k, _)| *k == key) {
        return native_error(StatusCode::NOT_FOUND, &format!("no view {name:?} of {page}"));
    }
    put(&state, key, None, StatusCode::NO_CONTENT).await
}

async fn put(state: &AppState, key: String, value: Option<Vec<u8>>, done: StatusCode) -> Response {
    match state.control.put(vec![StateChange { space: SPACE.into(), key, value }]).await {
        Ok(()) => done.into_response(),
        Err(e) => {
            let r = Refusal::from(e);
            native_error(r.status, &r.message)
        }
    }
}
