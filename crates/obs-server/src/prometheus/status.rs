//! Rules, alerts, targets and what the server says of itself.

use super::{Api, ApiError, success};
use crate::params::Params;
use crate::state::AppState;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use obs_collect::config::format_duration;
use obs_model::{Labels, Matcher, SampleValue, SeriesSelection, TimestampMs, TimestampNs};
use obs_promql::ast::Expr;
use obs_promql::parse;
use obs_rules::alert::Alert;
use obs_rules::file::RuleKind;
use obs_rules::group::{Group, Health, RuleState};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

fn object(l: &Labels) -> Map<String, Value> {
    l.iter().map(|(n, v)| (n.to_owned(), v.into())).collect()
}

fn rfc3339(ms: i64) -> String {
    if ms == 0 {
        return "0001-01-01T00:00:00Z".into();
    }
    TimestampNs::from_nanos(ms.saturating_mul(1_000_000)).to_string()
}

/// A value as Go's `strconv.FormatFloat(v, 'e', -1, 64)` writes it.
fn scientific(v: &SampleValue) -> String {
    let f = match v {
        SampleValue::Float(f) => *f,
        SampleValue::Histogram(h) => h.count,
    };
    if f.is_nan() {
        return "NaN".into();
    }
    if f.is_infinite() {
        return if f > 0.0 { "+Inf" } else { "-Inf" }.into();
    }
    let text = format!("{f:e}");
    let (mantissa, e) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = e.strip_prefix('-').map_or(('+', e), |d| ('-', d));
    format!("{mantissa}e{sign}{digits:0>2}")
}

fn alert(a: &Alert) -> Value {
    let mut out = json!({
        "labels": object(&a.labels),
        "annotations": a.annotations,
        "state": a.state.as_str(),
        "activeAt": rfc3339(a.active_at),
        "value": scientific(&a.value),
    });
    if let (Some(since), Some(o)) = (a.keep_firing_since, out.as_object_mut()) {
        o.insert("keepFiringSince".into(), rfc3339(since).into());
    }
    out
}

fn rule(r: &RuleState, with_alerts: bool) -> Value {
    let (health, error) = match &r.health {
        Health::Unknown => ("unknown", None),
        Health::Ok => ("ok", None),
        Health::Bad(e) => ("err", Some(e.as_str())),
    };
    let mut out = Map::new();
    let labels: Map<String, Value> =
        r.rule.labels.iter().map(|(n, v)| (n.clone(), v.as_str().into())).collect();
    if let RuleKind::Alert { for_ms, keep_firing_for_ms, annotations, .. } = &r.rule.kind {
        out.insert("state".into(), r.state().as_str().into());
        out.insert("duration".into(), json!(*for_ms as f64 / 1000.0));
        out.insert("keepFiringFor".into(), json!(*keep_firing_for_ms as f64 / 1000.0));
        out.insert("annotations".into(), json!(annotations));
        let list: Vec<Value> = if with_alerts {
            r.alerts.active().into_iter().map(alert).collect()
        } else {
            Vec::new()
        };
        out.insert("alerts".into(), list.into());
    }
    out.insert("name".into(), r.rule.name().into());
    out.insert("query".into(), r.rule.query_text().into());
    out.insert("labels".into(), labels.into());
    out.insert("health".into(), health.into());
    if let Some(e) = error {
        out.insert("lastError".into(), e.into());
    }
    out.insert("evaluationTime".into(), json!(r.took.as_secs_f64()));
    out.insert("lastEvaluation".into(), rfc3339(r.last_evaluation).into());
    out.insert("type".into(), if r.rule.is_alert() { "alerting" } else { "recording" }.into());
    out.into()
}

fn group(g: &Group, rules: Vec<Value>) -> Value {
    json!({
        "name": g.name,
        "file": g.file,
        "rules": rules,
        "interval": g.interval_ms as f64 / 1000.0,
        "limit": g.limit,
        "evaluationTime": g.took.as_secs_f64(),
        "lastEvaluation": rfc3339(g.last_evaluation),
    })
}

/// Matchers of `match[]`, over the rules' own labels.
fn rule_matchers(p: &Params) -> Api<Vec<Vec<Matcher>>> {
    p.all("match[]").map(|text| super::matchers_of(text).map_err(ApiError::bad)).collect()
}

pub(super) async fn rules(State(state): State<AppState>, p: Params) -> Api<Response> {
    let kind = p.get("type").unwrap_or_default().to_ascii_lowercase();
    if !matches!(kind.as_str(), "" | "alert" | "record") {
        return Err(ApiError::bad(format!("not supported value {kind:?}")));
    }
    let wanted = |name: &'static str, value: &str| {
        let mut any = false;
        for v in p.all(name) {
            any = true;
            if v == value {
                return true;
            }
        }
        !any
    };
    let matchers = rule_matchers(&p)?;
    let with_alerts = p.get("exclude_alerts") != Some("true");
    let limit: usize = p.number("group_limit", 0).map_err(ApiError::bad)?;
    let mut groups = Vec::new();
    let mut next = None;
    let mut skip = p.get("group_next_token").map(str::to_owned);
    for g in state.workers.rules.groups() {
        let token = format!("{};{}", g.file, g.name);
        if let Some(from) = &skip {
            if *from != token {
                continue;
            }
            skip = None;
        }
        if !wanted("file[]", &g.file) || !wanted("rule_group[]", &g.name) {
            continue;
        }
        let keeps = |r: &&RuleState| {
            let labels = Labels::from_pairs(&r.rule.labels);
            (kind.is_empty() || r.rule.is_alert() == (kind == "alert"))
                && wanted("rule_name[]", r.rule.name())
                && (matchers.is_empty() || matchers.iter().any(|m| Matcher::all_match(m, &labels)))
        };
        let list: Vec<Value> = g.rules.iter().filter(keeps).map(|r| rule(r, with_alerts)).collect();
        // A group of which nothing is left is not shown.
        if list.is_empty() && !g.rules.is_empty() {
            continue;
        }
        if limit > 0 && groups.len() == limit {
            next = Some(token);
            break;
        }
        groups.push(group(&g, list));
    }
    let mut data = json!({"groups": groups});
    if let (Some(next), Some(o)) = (next, data.as_object_mut()) {
        o.insert("groupNextToken".into(), next.into());
    }
    Ok(success(data))
}

pub(super) async fn alerts(State(state): State<AppState>) -> Response {
    let groups = state.workers.rules.groups();
    let all = groups.iter().flat_map(|g| &g.rules).flat_map(|r| r.alerts.active());
    success(json!({"alerts": all.map(alert).collect::<Vec<_>>()}))
}

pub(super) async fn alertmanagers(State(state): State<AppState>) -> Response {
    let all = &state.workers.alertmanagers;
    let active: Vec<Value> = all.active().iter().map(|e| json!({"url": e.url})).collect();
    let dropped: Vec<Value> = all.dropped().iter().map(|url| json!({"url": url})).collect();
    success(json!({"activeAlertmanagers": active, "droppedAlertmanagers": dropped}))
}

pub(super) async fn targets(State(state): State<AppState>, p: Params) -> Response {
    let wanted = p.get("state").unwrap_or("any").to_ascii_lowercase();
    let pool = p.get("scrapePool").map(str::to_owned);
    let in_pool = |job: &str| pool.as_deref().is_none_or(|p| p == job);
    let mut active = Vec::new();
    if matches!(wanted.as_str(), "active" | "any") {
        for t in state.workers.scrape.active().into_iter().filter(|t| in_pool(&t.job)) {
            let health = match t.status.health {
                None => "unknown",
                Some(true) => "up",
                Some(false) => "down",
            };
            active.push(json!({
                "discoveredLabels": object(&t.target.discovered),
                "labels": object(&t.target.labels),
                "scrapePool": t.job,
                "scrapeUrl": t.url,
                "globalUrl": t.url,
                "lastError": t.status.last_error,
                "lastScrape": rfc3339(t.status.last_scrape),
                "lastScrapeDuration": t.status.last_duration.as_secs_f64(),
                "health": health,
                "scrapeInterval": format_duration(t.target.interval),
                "scrapeTimeout": format_duration(t.target.timeout),
            }));
        }
    }
    let (mut dropped, mut counts) = (Vec::new(), Map::new());
    if matches!(wanted.as_str(), "dropped" | "any") {
        for (job, n, list) in state.workers.scrape.dropped() {
            if in_pool(&job) {
                let one = |l: &Labels| json!({"discoveredLabels": object(l), "scrapePool": job});
                dropped.extend(list.iter().map(one));
                counts.insert(job.clone(), json!(n));
            }
        }
    }
    success(
        json!({"activeTargets": active, "droppedTargets": dropped, "droppedTargetCounts": counts}),
    )
}

pub(super) async fn scrape_pools(State(state): State<AppState>) -> Response {
    success(json!({"scrapePools": state.workers.scrape.jobs()}))
}

pub(super) async fn target_metadata(State(state): State<AppState>, p: Params) -> Api<Response> {
    let limit: usize = p.number("limit", usize::MAX).map_err(ApiError::bad)?;
    let matchers = match p.get("match_target") {
        None => Vec::new(),
        Some(text) => match parse(text) {
            Ok(Expr::Selector(s)) => s.matchers,
            _ => {
                return Err(ApiError::bad(format!(
                    "invalid parameter \"match_target\": {text:?} is not a series selector"
                )));
            }
        },
    };
    let metric = p.get("metric");
    let mut out = Vec::new();
    for t in state.workers.scrape.active() {
        if !Matcher::all_match(&matchers, &t.target.labels) {
            continue;
        }
        for m in &t.status.metadata {
            if metric.is_some_and(|name| name != m.name) || out.len() >= limit {
                continue;
            }
            let mut one = json!({"target": object(&t.target.labels), "type": m.kind.as_str(), "help": m.help, "unit": m.unit});
            if let (None, Some(o)) = (metric, one.as_object_mut()) {
                o.insert("metric".into(), m.name.as_str().into());
            }
            out.push(one);
        }
    }
    Ok(success(out))
}

pub(super) async fn flags(State(state): State<AppState>) -> Response {
    let mut map: BTreeMap<&str, &str> =
        state.flags.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    // These follow the configuration.
    let promql = state.workers.promql.settings();
    let features = promql.features.enabled().join(",");
    let lookback = obs_promql::duration::format_ms(promql.lookback_ms);
    map.insert("enable-feature", &features);
    map.insert("query.lookback-delta", &lookback);
    success(map)
}

pub(super) async fn runtime_info(State(state): State<AppState>) -> Response {
    let start = state.started.to_string();
    success(json!({
        "startTime": start,
        "CWD": std::env::current_dir().map(|d| d.display().to_string()).unwrap_or_default(),
        "hostname": "",
        "serverTime": state.now().to_string(),
        "reloadConfigSuccess": true,
        "lastConfigTime": start,
        "corruptionCount": 0,
        "goroutineCount": 0,
        "GOMAXPROCS": std::thread::available_parallelism().map_or(1, usize::from),
        "GOMEMLIMIT": state.memory.max(),
        "GOGC": "",
        "GODEBUG": "",
        "storageRetention": "",
    }))
}

/// The head's statistics: how many series there are, and which names, labels and pairs have most.
pub(super) async fn tsdb(State(state): State<AppState>, p: Params) -> Api<Response> {
    let limit: usize = p.number("limit", 10).map_err(ApiError::bad)?;
    if limit == 0 {
        return Err(ApiError::bad("limit must be a positive number"));
    }
    let tenant = p.tenant.clone();
    let now = state.now().to_millis();
    let sets = crate::run::blocking(&state, "metric_repository", "tsdb", move |s, budget| {
        let selection =
            SeriesSelection { matchers: &[], start: now.add_millis(-3_600_000), end: now };
        Ok(s.source.label_sets(&tenant, &selection, budget)?)
    })
    .await?;
    let mut by_metric: BTreeMap<&str, usize> = BTreeMap::new();
    let mut by_pair: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for l in &sets {
        *by_metric.entry(l.metric_name()).or_default() += 1;
        for pair in l.iter() {
            *by_pair.entry(pair).or_default() += 1;
        }
    }
    let (mut values, mut bytes): (BTreeMap<&str, usize>, BTreeMap<&str, usize>) =
        Default::default();
    for (name, value) in by_pair.keys() {
        *values.entry(name).or_default() += 1;
        *bytes.entry(name).or_default() += value.len();
    }
    let top = |map: Vec<(String, usize)>| {
        let mut list = map;
        list.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        list.truncate(limit);
        list.into_iter()
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect::<Vec<_>>()
    };
    let owned = |m: &BTreeMap<&str, usize>| m.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect();
    let pairs = by_pair.iter().map(|((n, v), c)| (format!("{n}={v}"), *c)).collect();
    Ok(success(json!({
        "headStats": {
            "numSeries": sets.len(),
            "numLabelPairs": by_pair.len(),
            "chunkCount": sets.len(),
            "minTime": now.add_millis(-3_600_000).millis(),
            "maxTime": now.millis(),
        },
        "seriesCountByMetricName": top(owned(&by_metric)),
        "labelValueCountByLabelName": top(owned(&values)),
        "memoryInBytesByLabelName": top(owned(&bytes)),
        "seriesCountByLabelValuePair": top(pairs),
    })))
}

/// The log was read before any listener answered this.
pub(super) async fn wal_replay() -> Response {
    success(json!({"min": 0, "max": 0, "current": 0, "state": "done"}))
}

pub(super) async fn quit(State(state): State<AppState>) -> Response {
    match &state.quit {
        None => (StatusCode::FORBIDDEN, "Lifecycle API is not enabled.\n").into_response(),
        Some(quit) => {
            quit();
            "Requesting termination... Goodbye!\n".into_response()
        }
    }
}

pub(super) async fn exemplars(State(state): State<AppState>, p: Params) -> Api<Response> {
    let (_, expr) = super::parsed(&state, &p)?;
    let start = super::time_param(&p, "start")?.unwrap_or(i64::MIN);
    let end = super::time_param(&p, "end")?.unwrap_or(i64::MAX);
    if end < start {
        return Err(ApiError::bad("end timestamp must not be before start timestamp"));
    }
    let mut selectors = Vec::new();
    obs_rules::lint::walk(&expr, &mut |e| {
        if let Expr::Selector(s) | Expr::Matrix { selector: s, .. } = e {
            selectors.push(s.matchers.clone());
        }
    });
    let found = state.ingest.exemplars().select(&p.tenant, &selectors, (start, end));
    let list: Vec<Value> = found
        .into_iter()
        .map(|(labels, list)| {
            let one = |e: obs_model::Exemplar| {
                let t = TimestampMs::from_millis(e.timestamp_ms.unwrap_or(0));
                json!({"labels": object(&e.labels), "value": obs_promql::format_float(e.value), "timestamp": t.seconds()})
            };
            json!({"seriesLabels": object(&labels), "exemplars": list.into_iter().map(one).collect::<Vec<_>>()})
        })
        .collect();
    Ok(success(list))
}
