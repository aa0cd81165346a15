//! Drift checks over HTTP.

use crate::money::{Answer, Fault, body, tenant};
use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::HeaderMap;
use obs_ingest::{Checked, DriftAsk, PurseError};
use obs_llm::drift::{ACCURACY_MIN, CRITICAL, Feature, SAMPLES_MIN, WARNING, combined};
use serde_json::{Value, json};

pub(super) fn routes() -> Router<AppState> {
    let all = || {
        Router::new()
            .route("/check", post(check))
            .route("/metrics", get(metrics))
            .route("/summary", get(summary))
            .route("/incidents", get(incidents))
    };
    Router::new().nest("/drift", all()).nest("/api/v1/drift", all())
}

fn feature(f: &Feature) -> Value {
    let bins = f
        .top_bins
        .iter()
        .map(|(bin, before, now)| json!({"bin": bin, "baseline": before, "current": now}));
    json!({
        "distance": f.distance, "name": f.name, "kind": f.kind, "psi": f.psi, "psi_corrected": f.psi_corrected, "kl": f.kl,
        "n_ref": f.n_ref, "n_cur": f.n_cur, "top_bins": bins.collect::<Vec<_>>(),
    })
}

fn outcome(c: &Checked) -> Value {
    let accuracy = c.accuracy.as_ref().map(|a| {
        json!({
            "baseline": a.baseline, "current": a.current, "n_ref": a.n_ref, "n_cur": a.n_cur,
            "status": a.status(), "minimum": ACCURACY_MIN,
        })
    });
    let base = json!({
        "model": c.model, "scope": c.scope, "calls": c.calls, "computed_at": c.at.to_string(),
        "status": c.status(), "accuracy": accuracy,
    });
    let more = match &c.drift {
        None => {
            json!({"reason": format!("fewer than {SAMPLES_MIN} calls in a window"), "score": null, "features": []})
        }
        Some(d) => json!({
            "score": d.score, "combined_score": combined(d, c.accuracy.as_ref()), "features": d.features.iter().map(feature).collect::<Vec<_>>(),
            "windows": {"baseline": [d.baseline.0.to_string(), d.baseline.1.to_string()], "current": [d.current.0.to_string(), d.current.1.to_string()]},
            "served_anew": d.served_anew.iter().map(|(n, s)| json!({"served": n, "share": s})).collect::<Vec<_>>(),
        }),
    };
    let (mut base, more) = (base, more);
    if let (Some(o), Value::Object(m)) = (base.as_object_mut(), more) {
        o.extend(m);
    }
    base
}

fn worst(list: &[Checked]) -> &'static str {
    ["critical", "warning", "normal"]
        .into_iter()
        .find(|s| list.iter().any(|c| c.status() == *s))
        .unwrap_or("skipped")
}

async fn check(State(state): State<AppState>, headers: HeaderMap, bytes: Bytes) -> Answer {
    let owner = tenant(&headers)?;
    let ask: DriftAsk =
        if bytes.is_empty() { DriftAsk::default() } else { body(&headers, &bytes)? };
    let now = state.now();
    let (drifts, of) = (state.drifts.clone(), owner.clone());
    let (found, incidents) = blocking(&state, "llm_repository", "drift", move |s, _| {
        drifts.check(&of, &*s.source, &ask, now).map_err(|e| match e {
            PurseError::Invalid(m) => QueryFailure::Bad(m),
            other => QueryFailure::Internal(other.to_string()),
        })
    })
    .await?;
    state.drifts.keep(&owner, incidents).await?;
    let severity = worst(&found);
    Ok(Json(json!({
        "status": if found.iter().any(|c| c.status() != "skipped") { "success" } else { "skipped" },
        "drift_detected": matches!(severity, "warning" | "critical"), "severity": severity,
        "checked_scopes": found.len(), "scope_results": found.iter().map(outcome).collect::<Vec<_>>(), "timestamp": now.to_string(),
    }))
    .into_response())
}

async fn metrics(State(state): State<AppState>, p: Params) -> Answer {
    let wanted = |c: &Checked| {
        p.get("model").is_none_or(|m| m == c.model) && p.get("scope").is_none_or(|s| s == c.scope)
    };
    let list = state.drifts.latest(&p.tenant);
    let rows: Vec<Value> = list.iter().filter(|c| wanted(c)).map(outcome).collect();
    Ok(Json(json!({"metrics": rows})).into_response())
}

async fn summary(State(state): State<AppState>, p: Params) -> Answer {
    let list = state.drifts.latest(&p.tenant);
    let count = |status: &str| list.iter().filter(|c| c.status() == status).count();
    let open = state.drifts.incidents(&p.tenant).iter().filter(|i| i.status == "open").count();
    Ok(Json(json!({
        "severity": worst(&list), "series": list.len(), "normal": count("normal"), "warning": count("warning"),
        "critical": count("critical"), "skipped": count("skipped"), "open_incidents": open,
        "thresholds": {"warning": WARNING, "critical": CRITICAL, "min_samples": SAMPLES_MIN},
    }))
    .into_response())
}

async fn incidents(State(state): State<AppState>, p: Params) -> Answer {
    let status = p.get("status");
    if status.is_some_and(|s| !matches!(s, "open" | "resolved")) {
        return Err(Fault::bad("status is open or resolved"));
    }
    let mut list = state.drifts.incidents(&p.tenant);
    list.retain(|i| status.is_none_or(|s| s == i.status));
    Ok(Json(json!({"incidents": list})).into_response())
}
