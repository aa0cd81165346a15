//! The price book over HTTP: read, and extended without a restart.

use crate::money::{Answer, Fault, body, data, moment};
use crate::params::Params;
use crate::state::AppState;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use obs_llm::{BookFile, PriceBook};
use obs_model::{KeepState, StateChange};
use serde_json::{Value, json};

/// Where prices that came over the API are kept.
const SPACE: &str = "prices";

pub(super) fn routes() -> Router<AppState> {
    Router::new().route("/api/v1/pricing", get(list).post(add))
}

/// Puts the prices that came over the API on top of a book, in the order in which they came.
///
/// # Errors
/// When one of them is not valid any more.
pub fn stored_prices(control: &dyn KeepState, mut book: PriceBook) -> Result<PriceBook, String> {
    for (key, text) in control.list(SPACE) {
        let text = String::from_utf8(text).map_err(|_| format!("prices {key}: no text"))?;
        book.add_json(&text).map_err(|e| format!("prices {key}: {e}"))?;
    }
    Ok(book)
}

async fn list(State(state): State<AppState>, p: Params) -> Answer {
    let book = state.ingest.prices();
    let at = match p.get("at") {
        None => state.now(),
        Some(t) => moment(t).ok_or_else(|| Fault::bad("at is not a time"))?,
    };
    if let (Some(provider), Some(model)) = (p.get("provider"), p.get("exact_model")) {
        let found = book.lookup(provider, model, at).ok_or_else(|| {
            let text = format!("no price for {model} of {provider}");
            Fault::new(StatusCode::NOT_FOUND, "NOT_FOUND", text)
        })?;
        return Ok(data(&state, json!({"version": book.version(), "price": found})));
    }
    let limit = p.number("limit", 10_000_usize).map_err(Fault::bad)?;
    let (provider, model) = (p.get("provider"), p.get("model").map(str::to_lowercase));
    let wanted = |r: &obs_llm::PriceRecord| {
        provider.is_none_or(|x| x == r.provider)
            && model.as_ref().is_none_or(|m| r.model.to_lowercase().contains(m))
    };
    let all: Vec<_> = book.records().into_iter().filter(|(_, r)| wanted(r)).collect();
    let rows: Vec<Value> = all
        .iter()
        .take(limit)
        .map(|(id, r)| {
            let mut v = json!(r);
            if let Some(o) = v.as_object_mut() {
                o.insert("id".into(), json!(id));
            }
            v
        })
        .collect();
    Ok(data(
        &state,
        json!({"version": book.version(), "unit": "per million tokens", "count": all.len(), "prices": rows, "discounts": book.discounts().collect::<Vec<_>>()}),
    ))
}

/// Adds a price file, or one record; it wins over what was there, and stays over a restart.
async fn add(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let raw: Value = body(&headers, &bytes)?;
    let now = state.now();
    let text = if raw.get("prices").is_some()
        || raw.get("discounts").is_some()
        || raw.get("fx").is_some()
        || raw.get("volume").is_some()
    {
        String::from_utf8_lossy(&bytes).into_owned()
    } else if raw.get("structure").is_some() || raw.get("pricing_structure").is_some() {
        let one = obs_llm::import_origin(&json!([raw]).to_string())
            .map_err(|e| Fault::bad(e.to_string()))?;
        if let Some((_, why)) = one.skipped.first() {
            return Err(Fault::bad(why.clone()));
        }
        let file = BookFile {
            version: format!("api-{}", now.nanos()),
            prices: one.records,
            ..BookFile::default()
        };
        serde_json::to_string(&file).map_err(|e| Fault::bad(e.to_string()))?
    } else {
        json!({"version": format!("api-{}", now.nanos()), "prices": [raw]}).to_string()
    };
    // Judged alone first: what is wrong is wrong in it.
    let mut alone = PriceBook::default();
    alone.add_json(&text).map_err(|e| Fault::bad(e.to_string()))?;
    // One at a time, so that no two lose each other.
    let turn = state.prices_turn.lock().await;
    let key = format!("{:020}", now.nanos());
    let change = StateChange { space: SPACE.into(), key, value: Some(text.clone().into_bytes()) };
    state.control.put(vec![change]).await?;
    let mut book = (*state.ingest.prices()).clone();
    book.add_json(&text).map_err(|e| Fault::bad(e.to_string()))?;
    state.ingest.set_prices(book);
    drop(turn);
    Ok(data(&state, json!({"version": alone.version(), "added": alone.len()})))
}
