//! Labels, streams, and how much they hold.

use super::{Api, bad, bounds, check_points, failure, step, success};
use crate::params::Params;
use crate::run::{QueryFailure, blocking};
use crate::state::AppState;
use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use obs_logql::ast::Query;
use obs_logql::{QueryError, parse, parse_selector};
use obs_model::{
    Budget, Direction, Labels, LogScan, LogSelection, MatchOp, Matcher, SelectError, TimestampNs,
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::ControlFlow;

/// Reads selectors; `{}` and none at all mean every stream.
fn selectors(p: &Params, names: &[&'static str]) -> Api<Vec<Vec<Matcher>>> {
    let texts = names.iter().flat_map(|n| p.all(n)).filter(|t| !t.is_empty());
    let mut out: Vec<Vec<Matcher>> = Vec::new();
    for text in texts {
        let matchers = parse_selector(text).or_else(|e| match parse(text) {
            // A whole query stands for its streams.
            Ok(Query::Log(log)) => Ok(log.matchers),
            Ok(Query::Metric(_)) => Err(bad("only label matchers are supported")),
            Err(_) => Err(bad(e.to_string())),
        })?;
        out.push(matchers);
    }
    if out.is_empty() {
        out.push(Vec::new());
    }
    Ok(out)
}

/// Returns the streams that match any of the selectors in the request's range.
async fn matching_streams(
    state: &AppState,
    p: &Params,
    names: &[&'static str],
) -> Api<Vec<Labels>> {
    let (start, end) = bounds(state, p)?;
    let selectors = selectors(p, names)?;
    let tenant = p.tenant.clone();
    let run = move |s: &AppState, budget: &Budget| {
        let mut out = BTreeSet::new();
        for matchers in &selectors {
            let selection = selection(matchers, (start, end));
            out.extend(s.source.streams(&tenant, &selection, budget)?);
        }
        Ok(out.into_iter().collect())
    };
    Ok(blocking(state, "log_repository", "series", run).await?)
}

pub(super) fn selection(
    matchers: &[Matcher],
    (start, end): (TimestampNs, TimestampNs),
) -> LogSelection<'_> {
    LogSelection {
        matchers,
        start,
        end,
        direction: Direction::Forward,
        trace_id: None,
        needles: &[],
    }
}

pub(super) async fn labels(State(state): State<AppState>, p: Params) -> Api<Response> {
    let streams = matching_streams(&state, &p, &["query"]).await?;
    let names: BTreeSet<&str> = streams.iter().flat_map(|l| l.iter().map(|(n, _)| n)).collect();
    Ok(success(names))
}

pub(super) async fn label_values(
    State(state): State<AppState>,
    Path(name): Path<String>,
    p: Params,
) -> Api<Response> {
    let streams = matching_streams(&state, &p, &["query"]).await?;
    let values: BTreeSet<&str> =
        streams.iter().map(|l| l.get(&name)).filter(|v| !v.is_empty()).collect();
    Ok(success(values))
}

pub(super) async fn series(State(state): State<AppState>, p: Params) -> Api<Response> {
    if p.all("match").chain(p.all("match[]")).next().is_none() {
        return Err(bad("0 matcher groups given; use match[] to name streams"));
    }
    let streams = matching_streams(&state, &p, &["match", "match[]"]).await?;
    let object = |l: &Labels| -> Map<String, Value> {
        l.iter().map(|(n, v)| (n.to_owned(), v.into())).collect()
    };
    Ok(success(streams.iter().map(object).collect::<Vec<_>>()))
}

/// Visits (stream, time, bytes) of every line of a range.
fn each_line(
    state: &AppState,
    p: (&obs_model::TenantId, &[Matcher], (TimestampNs, TimestampNs)),
    budget: &Budget,
    visit: &mut dyn FnMut(&Labels, TimestampNs, usize) -> Result<(), SelectError>,
) -> Result<(), QueryFailure> {
    let (tenant, matchers, range) = p;
    let mut failed = None;
    let selection = selection(matchers, range);
    let scan = LogScan { accept: &|_| true, line: true, ids: false, members: None };
    state.source.scan_logs(tenant, &selection, scan, budget, &mut |r, _| match visit(
        &r.stream,
        r.timestamp,
        r.line.len(),
    ) {
        Ok(()) => ControlFlow::Continue(true),
        Err(e) => {
            failed = Some(e);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok(()), |e| Err(failure(QueryError::Select(e))))
}

fn one_selector(p: &Params) -> Api<Vec<Matcher>> {
    Ok(selectors(p, &["query"])?.swap_remove(0))
}

pub(super) async fn stats(State(state): State<AppState>, p: Params) -> Api<Response> {
    let range = bounds(&state, &p)?;
    let matchers = one_selector(&p)?;
    let tenant = p.tenant.clone();
    let run = move |s: &AppState, budget: &Budget| {
        let mut streams = HashSet::new();
        let (mut entries, mut bytes) = (0_u64, 0_u64);
        each_line(s, (&tenant, &matchers, range), budget, &mut |stream, _, len| {
            if !streams.contains(stream) {
                budget.take(0, stream.size_bytes())?;
                streams.insert(stream.clone());
            }
            entries += 1;
            bytes += len as u64;
            Ok(())
        })?;
        // A chunk is what a stream holds: there is nothing smaller to count here.
        let n = streams.len();
        Ok(json!({"streams": n, "chunks": n, "entries": entries, "bytes": bytes}))
    };
    let out = blocking(&state, "log_repository", "stats", run).await?;
    Ok(Json(out).into_response())
}

/// Bytes by step, of one row.
type Volume = (Labels, BTreeMap<i64, u64>);

/// How volumes are summed up.
struct Volumes {
    /// Labels that make a row; none means all of a stream's.
    labels: Vec<String>,
    by_label: bool,
    limit: usize,
}

impl Volumes {
    fn new(p: &Params, matchers: &[Matcher]) -> Api<Self> {
        let by_label = match p.get("aggregateBy") {
            None | Some("series") => false,
            Some("labels") => true,
            Some(_) => return Err(bad("invalid aggregation option")),
        };
        let targets = p.get("targetLabels").unwrap_or_default();
        let mut labels: Vec<String> = targets
            .split(',')
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .map(str::to_owned)
            .collect();
        if labels.is_empty() && !by_label {
            let names =
                matchers.iter().filter(|m| m.op != MatchOp::NotEqual || !m.value.is_empty());
            labels.extend(names.map(|m| m.name.clone()));
        }
        let limit = p.number("limit", 100).map_err(bad)?;
        Ok(Self { labels, by_label, limit })
    }

    /// Returns the rows that a stream's bytes count for.
    fn rows(&self, stream: &Labels) -> Vec<Labels> {
        let is_target = |n: &str| self.labels.is_empty() || self.labels.iter().any(|l| l == n);
        if self.by_label {
            let names = stream.iter().map(|(n, _)| n).filter(|n| is_target(n));
            return names.map(|n| Labels::from_sorted([(n, "")].into_iter())).collect();
        }
        vec![stream.filter(is_target)]
    }

    /// Sums bytes by row and step (one step: all of the range).
    fn sum(
        &self,
        state: &AppState,
        p: (&obs_model::TenantId, &[Matcher], (TimestampNs, TimestampNs)),
        step_ns: i64,
        budget: &Budget,
    ) -> Result<Vec<Volume>, QueryFailure> {
        let start = p.2.0.nanos();
        let mut rows_of: HashMap<Labels, Vec<usize>> = HashMap::new();
        let mut index: HashMap<Labels, usize> = HashMap::new();
        let mut out: Vec<Volume> = Vec::new();
        each_line(state, p, budget, &mut |stream, at, len| {
            if !rows_of.contains_key(stream) {
                budget.take(0, 2 * stream.size_bytes() + 200)?;
                let rows = self.rows(stream).into_iter().map(|row| {
                    *index.entry(row).or_insert_with_key(|row| {
                        out.push((row.clone(), BTreeMap::new()));
                        out.len() - 1
                    })
                });
                let rows: Vec<usize> = rows.collect();
                rows_of.insert(stream.clone(), rows);
            }
            let slot = (at.nanos() - start).div_euclid(step_ns);
            for i in rows_of.get(stream).into_iter().flatten() {
                if let Some((_, sums)) = out.get_mut(*i) {
                    *sums.entry(slot).or_default() += len as u64;
                }
            }
            Ok(())
        })?;
        let total = |m: &BTreeMap<i64, u64>| m.values().sum::<u64>();
        out.sort_by(|a, b| total(&b.1).cmp(&total(&a.1)).then_with(|| a.0.cmp(&b.0)));
        out.truncate(self.limit);
        Ok(out)
    }
}

fn metric(l: &Labels) -> Map<String, Value> {
    l.iter().map(|(n, v)| (n.to_owned(), v.into())).collect()
}

pub(super) async fn volume(State(state): State<AppState>, p: Params) -> Api<Response> {
    let range = bounds(&state, &p)?;
    let matchers = one_selector(&p)?;
    let volumes = Volumes::new(&p, &matchers)?;
    let tenant = p.tenant.clone();
    let run = move |s: &AppState, budget: &Budget| {
        volumes.sum(s, (&tenant, &matchers, range), i64::MAX, budget)
    };
    let rows = blocking(&state, "log_repository", "volume", run).await?;
    let at = range.1.nanos() as f64 / 1e9;
    let row = |(l, sums): &Volume| {
        let total: u64 = sums.values().sum();
        json!({"metric": metric(l), "value": [at, total.to_string()]})
    };
    let result: Vec<Value> = rows.iter().map(row).collect();
    Ok(success(json!({"resultType": "vector", "result": result, "stats": {}})))
}

pub(super) async fn volume_range(State(state): State<AppState>, p: Params) -> Api<Response> {
    let range = bounds(&state, &p)?;
    let matchers = one_selector(&p)?;
    let volumes = Volumes::new(&p, &matchers)?;
    let step_ns = step(&p, range)?;
    check_points(&state, range, step_ns)?;
    let step_ns = step_ns.saturating_mul(1_000_000);
    let tenant = p.tenant.clone();
    let run = move |s: &AppState, budget: &Budget| {
        volumes.sum(s, (&tenant, &matchers, range), step_ns, budget)
    };
    let rows = blocking(&state, "log_repository", "volume_range", run).await?;
    let row = |(l, sums): &Volume| {
        let point = |(slot, n): (&i64, &u64)| {
            let at = (range.0.nanos() + slot * step_ns) as f64 / 1e9;
            json!([at, n.to_string()])
        };
        let values: Vec<Value> = sums.iter().map(point).collect();
        json!({"metric": metric(l), "values": values})
    };
    let result: Vec<Value> = rows.iter().map(row).collect();
    Ok(success(json!({"resultType": "matrix", "result": result, "stats": {}})))
}
