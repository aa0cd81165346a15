//! The ledger: entries, calls without a price, pricing again, reconciling with invoices.

use crate::money::{Answer, Fault, Query, body, data, moment, query, read, tenant, usd};
use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Query as Parameters, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode, header};
use obs_ingest::Booking;
use obs_llm::ledger::{Entry, entries, reprice};
use obs_llm::report::Dimension;
use obs_model::{CallSelection, CostState, DAY_NS, LlmCall, Money, SpanId, TimestampNs, TraceId};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/costs/ledger", get(journal))
        .route("/api/v1/costs/unpriced", get(unpriced))
        .route("/api/v1/costs/reprice", post(price_again))
        .route("/api/v1/costs/reconcile", post(reconcile))
}

/// Most entries of one answer; more are an export in parts.
const ENTRIES_MAX: usize = 100_000;

pub(super) fn entry_json(e: &Entry<'_>) -> Value {
    json!({
        "booked_at": e.booked_at.to_string(), "kind": e.kind, "part": e.part, "amount_usd": usd(e.amount), "price_id": e.price_id,
        "revision": e.revision, "reason": e.reason, "timestamp": e.call.start.to_string(),
        "trace_id": e.call.trace_id.to_string(), "span_id": e.call.span_id.to_string(), "call_id": e.call.call_id,
        "provider": e.call.provider, "model": e.call.model(), "organization": e.call.organization, "project": e.call.project,
        "team": e.call.team, "user_id": e.call.user_id, "service": e.call.service, "environment": e.call.environment,
    })
}

pub(super) const COLUMNS: [&str; 19] = [
    "booked_at",
    "kind",
    "part",
    "amount_usd",
    "price_id",
    "revision",
    "reason",
    "timestamp",
    "trace_id",
    "span_id",
    "call_id",
    "provider",
    "model",
    "organization",
    "project",
    "team",
    "user_id",
    "service",
    "environment",
];

/// A cell that no spreadsheet takes for a formula.
pub(super) fn cell(v: &Value) -> String {
    let text = v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let is_number = text.parse::<f64>().is_ok();
    let text = match text.chars().next() {
        Some('=' | '+' | '-' | '@' | '\t' | '\r') if !is_number => format!("'{text}"),
        _ => text,
    };
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

/// Lists entries of the calls of a range, as JSON, JSON Lines or CSV.
async fn journal(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 1)?;
    let limit = p.number("limit", 1000_usize).map_err(Fault::bad)?.clamp(1, ENTRIES_MAX);
    let as_of = match p.get("as_of") {
        None => None,
        Some(t) => Some(moment(t).ok_or_else(|| Fault::bad("as_of is not a time"))?),
    };
    let trace = match p.get("trace_id") {
        None => None,
        Some(t) => {
            Some(TraceId::parse(t).ok_or_else(|| Fault::bad("trace_id is not hexadecimal"))?)
        }
    };
    let owner = p.tenant.clone();
    let (rows, more, total) = blocking(&state, "llm_repository", "ledger", move |s, budget| {
        let selection =
            CallSelection { start: q.start, end: q.end, trace_id: trace, revisions_only: false };
        let mut calls: BTreeMap<(TimestampNs, TraceId, SpanId), Vec<Arc<LlmCall>>> =
            BTreeMap::new();
        s.source.select_calls(&owner, &selection, budget, &mut |c| {
            if q.keeps(c) && as_of.is_none_or(|t| c.booked_at <= t) {
                calls.entry((c.start, c.trace_id, c.span_id)).or_default().push(c.clone());
            }
            ControlFlow::Continue(())
        })?;
        let (mut rows, mut count, mut total) = (Vec::new(), 0_usize, Money::ZERO);
        for list in calls.values() {
            let refs: Vec<&LlmCall> = list.iter().map(|c| &**c).collect();
            for e in entries(&refs) {
                count += 1;
                total = total.saturating_add(e.amount);
                if rows.len() < limit {
                    rows.push(entry_json(&e));
                }
            }
        }
        Ok::<_, QueryFailure>((rows, count.saturating_sub(limit), total))
    })
    .await?;
    let text =
        |kind: &'static str, body: String| ([(header::CONTENT_TYPE, kind)], body).into_response();
    Ok(match p.get("format").unwrap_or("json") {
        "json" => {
            data(&state, json!({"entries": rows, "entries_left_out": more, "sum_usd": usd(total)}))
        }
        "jsonl" => {
            text("application/jsonl", rows.iter().map(|r| format!("{r}\n")).collect::<String>())
        }
        "csv" => {
            let mut out = COLUMNS.join(",") + "\n";
            for r in &rows {
                let cells: Vec<String> =
                    COLUMNS.iter().map(|c| cell(r.get(c).unwrap_or(&Value::Null))).collect();
                out.push_str(&cells.join(","));
                out.push('\n');
            }
            text("text/csv; charset=utf-8", out)
        }
        other => return Err(Fault::bad(format!("format {other:?} is none of json, jsonl, csv"))),
    })
}

#[derive(Default)]
struct Unknown {
    requests: u64,
    tokens: u64,
    first: Option<TimestampNs>,
    last: Option<TimestampNs>,
    evidence: String,
    least: Money,
    most: Money,
}

/// Lists calls whose cost is not known, or not for certain, by model.
async fn unpriced(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 30)?;
    type Found = BTreeMap<(&'static str, String, String), Unknown>;
    let found: Found = read(&state, &p.tenant, &q, Found::new(), |map, c| {
        let why = match c.cost_state {
            CostState::Unpriced => "unpriced",
            CostState::Ambiguous => "ambiguous",
            CostState::Priced if c.estimated => "estimated",
            _ => return,
        };
        let u = map.entry((why, c.provider.clone(), c.model().to_owned())).or_default();
        u.requests += 1;
        u.tokens = u.tokens.saturating_add(c.tokens.total());
        u.first = Some(u.first.map_or(c.start, |t| t.min(c.start)));
        u.last = Some(u.last.map_or(c.start, |t| t.max(c.start)));
        u.least = u.least.saturating_add(c.cost_usd());
        u.most = u.most.saturating_add(c.cost_max.unwrap_or_else(|| c.cost_usd()));
        if u.evidence.is_empty() {
            u.evidence.clone_from(&c.evidence);
        }
    })
    .await?;
    let rows: Vec<Value> = found
        .into_iter()
        .map(|((why, provider, model), u)| {
            json!({
                "state": why, "provider": provider, "model": model, "requests": u.requests, "total_tokens": u.tokens,
                "first_seen": u.first.map(|t| t.to_string()), "last_seen": u.last.map(|t| t.to_string()),
                "evidence": u.evidence, "cost_at_least": usd(u.least), "cost_at_most": usd(u.most),
            })
        })
        .collect();
    Ok(data(&state, json!({"items": rows})))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reprice {
    from: String,
    to: String,
    /// Dimension → value, as in queries.
    #[serde(default)]
    filter: BTreeMap<String, String>,
    /// Without it the difference is only shown.
    #[serde(default)]
    apply: bool,
    #[serde(default)]
    reason: String,
}

/// Calls that one request prices again at most.
const REPRICE_MAX: usize = 1_000_000;
/// Revisions written at once.
const REPRICE_BATCH: usize = 2_000;

async fn price_again(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let owner = tenant(&headers)?;
    let ask: Reprice = body(&headers, &bytes)?;
    let time = |name: &str, text: &str| {
        moment(text).ok_or_else(|| Fault::bad(format!("{name}: {text:?} is not a time")))
    };
    let mut q =
        Query { start: time("from", &ask.from)?, end: time("to", &ask.to)?, filters: Vec::new() };
    for (name, value) in ask.filter {
        let d = Dimension::parse(&name)
            .ok_or_else(|| Fault::bad(format!("cannot filter by {name:?}")))?;
        q.filters.push((d, vec![value]));
    }
    let book = state.ingest.prices();
    let version = book.version().to_owned();
    let reason =
        if ask.reason.is_empty() { format!("priced again by {version}") } else { ask.reason };
    let now = state.now();
    let empty: (Vec<(Arc<LlmCall>, LlmCall)>, u64) = (Vec::new(), 0);
    let (changes, left_out) = read(&state, &owner, &q, empty, move |(list, left_out), c| {
        if let Some(next) = reprice(c, &book, now, &reason) {
            if list.len() < REPRICE_MAX {
                list.push((Arc::new(c.clone()), next));
            } else {
                *left_out += 1;
            }
        }
    })
    .await?;
    let mut models: BTreeMap<(String, String), (u64, Money, Money)> = BTreeMap::new();
    for (before, after) in &changes {
        let slot = models.entry((after.provider.clone(), after.model().to_owned())).or_default();
        *slot = (
            slot.0 + 1,
            slot.1.saturating_add(before.cost_usd()),
            slot.2.saturating_add(after.cost_usd()),
        );
    }
    let (before, after) = models.values().fold((Money::ZERO, Money::ZERO), |s, m| {
        (s.0.saturating_add(m.1), s.1.saturating_add(m.2))
    });
    let by_model: Vec<Value> = models
        .iter()
        .map(|((provider, model), (n, a, b))| {
            json!({"provider": provider, "model": model, "calls": n, "before_usd": usd(*a), "after_usd": usd(*b)})
        })
        .collect();
    let n = changes.len();
    if ask.apply {
        let mut changes = changes.into_iter().map(Booking::from).peekable();
        while changes.peek().is_some() {
            let batch: Vec<Booking> = changes.by_ref().take(REPRICE_BATCH).collect();
            state.ingest.book(&owner, batch, now).await?;
        }
    }
    Ok(data(
        &state,
        json!({
            "applied": ask.apply, "calls": n, "calls_left_out": left_out, "price_book": version,
            "before_usd": usd(before), "after_usd": usd(after), "difference_usd": usd(after.saturating_sub(before)), "by_model": by_model,
        }),
    ))
}

/// What an invoice says of a day and model.
fn invoice(text: &str) -> Result<BTreeMap<(String, String), Money>, Fault> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text.as_bytes());
    let bad = |line: usize, what: String| Fault::bad(format!("line {line} of the invoice: {what}"));
    let header = reader.headers().map_err(|e| bad(1, e.to_string()))?.clone();
    let column = |names: &[&str]| {
        let found = header.iter().position(|h| names.contains(&h.to_ascii_lowercase().as_str()));
        found.ok_or_else(|| bad(1, format!("no column {}", names.join(" or "))))
    };
    let (day, model, cost) = (
        column(&["date", "day", "usage_date", "start_time"])?,
        column(&["model", "model_id", "line_item", "sku"])?,
        column(&["cost", "amount", "cost_usd", "amount_usd", "total"])?,
    );
    let mut out: BTreeMap<(String, String), Money> = BTreeMap::new();
    for (i, row) in reader.records().enumerate() {
        let row = row.map_err(|e| bad(i + 2, e.to_string()))?;
        let of = |c: usize| row.get(c).unwrap_or_default();
        let date = of(day).get(..10).filter(|d| moment(d).is_some());
        let date = date.ok_or_else(|| bad(i + 2, format!("{:?} is no date", of(day))))?;
        let amount = of(cost).trim_start_matches('$').replace(',', "");
        let amount = Money::from_str_exact(&amount)
            .map_err(|_| bad(i + 2, format!("{:?} is no amount", of(cost))))?;
        let slot = out.entry((date.to_owned(), of(model).to_ascii_lowercase())).or_default();
        *slot = slot.saturating_add(amount);
    }
    Ok(out)
}

/// Compares an invoice with the ledger, by day (UTC) and model.
async fn reconcile(
    State(state): State<AppState>,
    headers: HeaderMap,
    Parameters(p): Parameters<HashMap<String, String>>,
    text: String,
) -> Answer {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if !kind.starts_with("text/csv") {
        return Err(Fault::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UNSUPPORTED_MEDIA_TYPE",
            "send the invoice with Content-Type: text/csv",
        ));
    }
    let owner = tenant(&headers)?;
    let invoice = invoice(&text)?;
    let tolerance = p.get("tolerance").map_or("0.01", String::as_str);
    let tolerance = Money::from_str_exact(tolerance)
        .map_err(|_| Fault::bad("tolerance is an amount in USD"))?;
    let (Some(first), Some(last)) = (invoice.keys().next(), invoice.keys().next_back()) else {
        return Err(Fault::bad("the invoice has no rows"));
    };
    let day = |d: &str| moment(d).map_or(0, TimestampNs::nanos);
    let mut q = Query {
        start: TimestampNs::from_nanos(day(&first.0)),
        end: TimestampNs::from_nanos(day(&last.0) + DAY_NS),
        filters: Vec::new(),
    };
    if let Some(provider) = p.get("provider") {
        q.filters.push((Dimension::Provider, vec![provider.clone()]));
    }
    type Sums = BTreeMap<(String, String), (Money, u64, u64)>;
    let ours: Sums = read(&state, &owner, &q, Sums::new(), |map, c| {
        if c.is_repeated() {
            return;
        }
        let day = Dimension::Day.values(c).pop().unwrap_or_default();
        let slot = map.entry((day, c.model().to_ascii_lowercase())).or_default();
        slot.0 = slot.0.saturating_add(c.cost_usd());
        slot.1 += 1;
        slot.2 += u64::from(c.cost_state == CostState::Unpriced);
    })
    .await?;
    // An invoice names models without their dates as often as with them.
    let mut rows = Vec::new();
    let (mut theirs_sum, mut ours_sum) = (Money::ZERO, Money::ZERO);
    let mut taken: HashSet<&(String, String)> = HashSet::new();
    for (key, amount) in &invoice {
        let same = |k: &(String, String)| {
            k.0 == key.0
                && (k.1 == key.1
                    || k.1.starts_with(&format!("{}-", key.1))
                    || key.1.starts_with(&format!("{}-", k.1)))
        };
        // The same name first; a name in part only where the invoice has no better one.
        let matching: Vec<_> = match ours.get_key_value(key) {
            Some(one) => vec![one],
            None => ours.iter().filter(|(k, _)| same(k) && !invoice.contains_key(*k)).collect(),
        };
        let mut sum = (Money::ZERO, 0, 0);
        for (k, v) in matching {
            if taken.insert(k) {
                sum = (sum.0.saturating_add(v.0), sum.1 + v.1, sum.2 + v.2);
            }
        }
        theirs_sum = theirs_sum.saturating_add(*amount);
        ours_sum = ours_sum.saturating_add(sum.0);
        let difference = amount.saturating_sub(sum.0);
        let status = match sum {
            (_, 0, _) => "missing_in_ledger",
            (_, _, unpriced) if unpriced > 0 => "unpriced",
            _ if difference.abs() <= tolerance => "matches",
            _ => "differs",
        };
        rows.push(json!({"date": key.0, "model": key.1, "invoice_usd": usd(*amount), "ledger_usd": usd(sum.0), "difference_usd": usd(difference), "calls": sum.1, "unpriced_calls": sum.2, "status": status}));
    }
    for (key, v) in ours.iter().filter(|(k, v)| !taken.contains(k) && !v.0.is_zero()) {
        ours_sum = ours_sum.saturating_add(v.0);
        rows.push(json!({"date": key.0, "model": key.1, "invoice_usd": "0", "ledger_usd": usd(v.0), "difference_usd": usd(-v.0), "calls": v.1, "unpriced_calls": v.2, "status": "missing_in_invoice"}));
    }
    Ok(data(
        &state,
        json!({"invoice_usd": usd(theirs_sum), "ledger_usd": usd(ours_sum), "difference_usd": usd(theirs_sum.saturating_sub(ours_sum)), "rows": rows}),
    ))
}
