//! What labels and fields there are, found by looking at lines.

use super::{Api, bounds, failure, parsed_log};
use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use obs_logql::{FieldType, Fields, LogOptions, run_logs};
use obs_model::{Direction, Labels};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

/// Lines looked at and fields told, unless the request says otherwise.
const LINES: usize = 1000;
const FIELDS: usize = 1000;

pub(super) async fn detected_labels(State(state): State<AppState>, p: Params) -> Api<Response> {
    let range = bounds(&state, &p)?;
    let matchers = parsed_log(&p)?.matchers;
    let tenant = p.tenant.clone();
    let streams = blocking(&state, "log_repository", "detected_labels", move |s, budget| {
        let selection = super::streams::selection(&matchers, range);
        s.source.streams(&tenant, &selection, budget).map_err(QueryFailure::from)
    })
    .await?;
    let mut values: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, value) in streams.iter().flat_map(Labels::iter) {
        values.entry(name).or_default().insert(value);
    }
    // Grafana groups by these: numbers and ids make poor groups.
    let is_id =
        |v: &&str| v.parse::<f64>().is_ok() || (v.len() == 36 && v.matches('-').count() == 4);
    let rows: Vec<_> = values
        .iter()
        .filter(|(_, values)| !values.iter().all(is_id))
        .map(|(name, values)| json!({"label": name, "cardinality": values.len()}))
        .collect();
    Ok(Json(json!({"detectedLabels": rows})).into_response())
}

/// Looks at the newest lines of the query.
async fn fields(state: &AppState, p: &Params) -> Api<Fields> {
    let range = bounds(state, p)?;
    let expr = parsed_log(p)?;
    let lines: usize = p.number("line_limit", LINES).map_err(super::bad)?;
    let options = LogOptions {
        direction: Direction::Backward,
        limit: lines.min(state.loki.entries(&p.tenant)),
        interval_ns: 0,
        categorize: true,
    };
    let tenant = p.tenant.clone();
    let out = blocking(state, "log_repository", "detected_fields", move |s, budget| {
        let streams = run_logs(&*s.source, &tenant, &expr, range, options, budget);
        let mut fields = Fields::default();
        for stream in streams.map_err(failure)? {
            for entry in &stream.entries {
                fields.see(&stream.labels, entry);
            }
        }
        Ok(fields)
    })
    .await?;
    Ok(out)
}

pub(super) async fn detected_fields(State(state): State<AppState>, p: Params) -> Api<Response> {
    let found = fields(&state, &p).await?;
    let limit: usize = p.number("limit", FIELDS).map_err(super::bad)?;
    let rows: Vec<_> = found
        .iter()
        .take(limit)
        .map(|(name, f)| {
            let kind = match f.kind {
                FieldType::String => "string",
                FieldType::Int => "int",
                FieldType::Float => "float",
                FieldType::Boolean => "boolean",
                FieldType::Duration => "duration",
                FieldType::Bytes => "bytes",
            };
            let parsers = (!f.parsers.is_empty()).then_some(&f.parsers);
            let mut row = json!({
                "label": name, "type": kind, "cardinality": f.values.len(), "parsers": parsers,
            });
            if let (Some(map), false) = (row.as_object_mut(), f.path.is_empty()) {
                map.insert("jsonPath".into(), json!(f.path));
            }
            row
        })
        .collect();
    Ok(Json(json!({"fields": rows, "limit": limit})).into_response())
}

pub(super) async fn field_values(
    State(state): State<AppState>,
    Path(name): Path<String>,
    p: Params,
) -> Api<Response> {
    let found = fields(&state, &p).await?;
    let limit: usize = p.number("limit", FIELDS).map_err(super::bad)?;
    let values: Vec<&String> = found
        .iter()
        .find(|(n, _)| **n == name)
        .map(|(_, f)| f.values.iter().take(limit).collect())
        .unwrap_or_default();
    Ok(Json(json!({"values": values, "limit": limit})).into_response())
}
