//! Reports of cost: sums, summary, attribution, forecast, anomalies, analytics.

use crate::llm::quantile;
use crate::money::{Answer, Fault, Query, change, data, query, read, totals, usd};
use crate::params::Params;
use crate::state::AppState;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use obs_llm::cache::{Caches, Economics};
use obs_llm::forecast::{self, Method, Model};
use obs_llm::report::{Dimension, Report, Totals, day_text};
use obs_model::{CallStatus, DAY_NS, LlmCall, Money, TimestampNs};
use rust_decimal::prelude::ToPrimitive as _;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/costs", get(costs).post(super::usage::costs))
        .route("/api/v1/costs/summary", get(summary))
        .route("/api/v1/analytics/costs", get(summary))
        .route("/api/v1/costs/attribution", get(attribution))
        .route("/api/v1/costs/forecast", get(forecast))
        .route("/api/v1/costs/anomalies", get(anomalies))
        .route("/api/v1/costs/cache", get(cache))
        .route("/api/v1/analytics", get(analytics))
        .route("/api/v1/analytics/performance", get(performance))
        .route("/api/v1/analytics/models/compare", get(compare))
        .route("/api/v1/models/compare", get(compare))
}

pub(super) fn dimensions(text: &str) -> Result<Vec<Dimension>, Fault> {
    let names = text.split(',').map(str::trim).filter(|n| !n.is_empty() && *n != "none");
    let parse = |n: &str| {
        let bad = || Fault::bad(format!("cannot group by {n:?}; known: {}", Dimension::names()));
        Dimension::parse(n).ok_or_else(bad)
    };
    let list: Vec<Dimension> = names.map(parse).collect::<Result<_, _>>()?;
    if list.len() > 4 { Err(Fault::bad("group by at most four")) } else { Ok(list) }
}

pub(super) fn limit(p: &Params, default: usize, most: usize) -> Result<usize, Fault> {
    let n = p.number("limit", default).map_err(Fault::bad)?;
    if (1..=most).contains(&n) { Ok(n) } else { Err(Fault::bad(format!("limit is 1 to {most}"))) }
}

async fn report(
    state: &AppState,
    p: &Params,
    q: &Query,
    by: Vec<Dimension>,
) -> Result<Report, Fault> {
    read(state, &p.tenant, q, Report::new(by), Report::add).await
}

pub(super) fn range(q: &Query) -> Value {
    json!({"start": q.start.to_string(), "end": q.end.to_string()})
}

fn group(by: &[Dimension], key: &[String], t: &Totals, all: Money) -> Value {
    let mut v = totals(t);
    if let Some(o) = v.as_object_mut() {
        let share = t.usd.checked_div(all).and_then(|s| s.to_f64()).map(|s| s * 100.0);
        o.insert("percentage".into(), json!(share));
        for (d, value) in by.iter().zip(key) {
            o.insert(d.name().into(), json!(value));
        }
    }
    v
}

/// What providers take off the sums of calendar months; known of whole months only, so that a range
/// within one gives what its own sum brings.
fn volume(state: &AppState, months: &Report) -> Vec<Value> {
    let book = state.ingest.prices();
    let of = |(key, t): (&Vec<String>, &Totals)| {
        let [month, provider] = key.as_slice() else { return None };
        let off = book.volume_discount(provider, t.usd);
        (!off.is_zero()).then(|| {
            json!({"month": month, "provider": provider, "total_cost": usd(t.usd), "discount": usd(off), "net_cost": usd(t.usd.saturating_sub(off))})
        })
    };
    months.groups.iter().filter_map(of).collect()
}

async fn costs(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 30)?;
    let by = dimensions(p.get("group_by").or(p.get("by")).unwrap_or_default())?;
    let limit = limit(&p, 1000, 10_000)?;
    let months = Report::new(vec![Dimension::Month, Dimension::Provider]);
    let empty = (Report::new(by.clone()), months);
    let (r, months) = read(&state, &p.tenant, &q, empty, |(r, months), c| {
        r.add(c);
        months.add(c);
    })
    .await?;
    let volume = volume(&state, &months);
    let is_time = |d: &Dimension| {
        matches!(d, Dimension::Hour | Dimension::Day | Dimension::Week | Dimension::Month)
    };
    // Time goes forward; anything else is ranked by cost.
    let rows: Vec<(&[String], &Totals)> = if by.first().is_some_and(is_time) {
        r.groups.iter().map(|(k, t)| (k.as_slice(), t)).collect()
    } else {
        r.ranked()
    };
    let all = r.total.usd;
    let shown: Vec<Value> = rows.iter().take(limit).map(|(k, t)| group(&by, k, t, all)).collect();
    let more = rows.len().saturating_sub(limit);
    Ok(data(
        &state,
        json!({"period": range(&q), "total": totals(&r.total), "groups": shown, "groups_left_out": more, "volume_discounts": volume}),
    ))
}

/// What a trace cost.
#[derive(Default)]
struct Traces(BTreeMap<obs_model::TraceId, (Money, u64, TimestampNs)>);

struct Summary {
    total: Totals,
    by: Vec<Report>,
    days: Report,
    weeks: Report,
    traces: Traces,
    sessions: HashSet<String>,
    users: HashSet<String>,
}

/// Names that a summary counts one by one; beyond, it does not say how many.
const NAMES_MAX: usize = 200_000;

/// Counts a name once.
fn note(set: &mut HashSet<String>, name: &str) {
    if !name.is_empty() && set.len() < NAMES_MAX && !set.contains(name) {
        set.insert(name.to_owned());
    }
}

async fn summary(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 30)?;
    if q.days() > 366.0 {
        return Err(Fault::bad("the range of a summary is 365 days at most"));
    }
    let top = p.number("top", 10_usize).map_err(Fault::bad)?.clamp(1, 100);
    let faces = [Dimension::Provider, Dimension::Model, Dimension::Environment];
    let empty = Summary {
        total: Totals::default(),
        by: faces.iter().map(|d| Report::new(vec![d.clone()])).collect(),
        days: Report::new(vec![Dimension::Day]),
        weeks: Report::new(vec![Dimension::Week]),
        traces: Traces::default(),
        sessions: HashSet::new(),
        users: HashSet::new(),
    };
    let s = read(&state, &p.tenant, &q, empty, |s, c| {
        s.total.add(c);
        s.by.iter_mut().for_each(|r| r.add(c));
        s.days.add(c);
        s.weeks.add(c);
        if !c.is_repeated() {
            note(&mut s.sessions, &c.session_id);
            note(&mut s.users, &c.user_id);
            let t = s.traces.0.entry(c.trace_id).or_insert((Money::ZERO, 0, c.start));
            *t = (t.0.saturating_add(c.cost_usd()), t.1 + c.tokens.total(), t.2.min(c.start));
        }
    })
    .await?;
    // The same stretch of time a day and a week before its end.
    let end = q.end.nanos();
    let days: [Money; 14] = read(
        &state,
        &p.tenant,
        &q.over(end - 14 * DAY_NS, end),
        [Money::ZERO; 14],
        move |days, c| {
            let ago = usize::try_from((end - 1 - c.start.nanos()) / DAY_NS).unwrap_or(usize::MAX);
            if let Some(day) = days.get_mut(ago).filter(|_| !c.is_repeated()) {
                *day = day.saturating_add(c.cost_usd());
            }
        },
    )
    .await?;
    let sum = |list: &[Money]| list.iter().fold(Money::ZERO, |a, b| a.saturating_add(*b));
    let ([day, day_before, ..], (week, week_before)) = (days, days.split_at(7));
    let (week, week_before) = (sum(week), sum(week_before));
    let breakdown = |r: &Report, d: Dimension| -> Vec<Value> {
        let d = [d];
        r.ranked().iter().map(|(k, t)| group(&d, k, t, s.total.usd)).collect()
    };
    let trend = |r: &Report, d: Dimension| -> Vec<Value> {
        let (mut last, d): (Option<Money>, _) = (None, [d]);
        let rows = r.groups.iter().map(|(k, t)| {
            let mut v = group(&d, k, t, s.total.usd);
            if let (Some(o), Some(before)) = (v.as_object_mut(), last) {
                o.insert("growth_percent".into(), change(t.usd, before));
            }
            last = Some(t.usd);
            v
        });
        rows.collect()
    };
    let mut traces: Vec<_> = s.traces.0.iter().collect();
    traces.sort_by(|a, b| b.1.0.cmp(&a.1.0).then(a.0.cmp(b.0)));
    let traces: Vec<Value> = traces
        .iter()
        .take(top)
        .map(|(id, (m, tokens, start))| {
            json!({"trace_id": id.to_string(), "total_cost": usd(*m), "total_tokens": tokens, "timestamp": start.to_string()})
        })
        .collect();
    let [providers, models, environments] = faces;
    let each = |n: usize| {
        let counted = (1..NAMES_MAX).contains(&n);
        counted.then(|| s.total.usd.checked_div(Money::from(n)).map(|m| usd(m.round_dp(12))))
    };
    let of = |i: usize, d| s.by.get(i).map(|r| breakdown(r, d)).unwrap_or_default();
    Ok(data(
        &state,
        json!({
            "period": range(&q), "totals": totals(&s.total),
            "changes": {"last_day": usd(day), "day_over_day_percent": change(day, day_before), "last_week": usd(week), "week_over_week_percent": change(week, week_before)},
            "by_provider": of(0, providers), "by_model": of(1, models), "by_environment": of(2, environments),
            "daily": trend(&s.days, Dimension::Day), "weekly": trend(&s.weeks, Dimension::Week),
            "top_traces": traces,
            "traces": s.traces.0.len(), "sessions": s.sessions.len(), "users": s.users.len(),
            "average_cost_per_trace": each(s.traces.0.len()), "average_cost_per_session": each(s.sessions.len()), "average_cost_per_user": each(s.users.len()),
        }),
    ))
}

async fn attribution(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 30)?;
    let name = p.get("dimension").or(p.get("group_by")).unwrap_or("user");
    let by = dimensions(name)?;
    let limit = limit(&p, 100, 1000)?;
    let least = match p.get("min_cost") {
        None => Money::ZERO,
        Some(t) => Money::from_str_exact(t).map_err(|_| Fault::bad("min_cost is not an amount"))?,
    };
    let r = report(&state, &p, &q, by.clone()).await?;
    let rows: Vec<_> = r.ranked().into_iter().filter(|(_, t)| t.usd >= least).collect();
    let shown: Vec<Value> =
        rows.iter().take(limit).map(|(k, t)| group(&by, k, t, r.total.usd)).collect();
    Ok(data(
        &state,
        json!({"period": range(&q), "dimension": name, "total_cost": usd(r.total.usd), "items": shown, "items_left_out": rows.len().saturating_sub(limit)}),
    ))
}

/// Returns the cost of each whole step of a range, oldest first; steps without calls are zero.
async fn steps(state: &AppState, p: &Params, q: &Query, step: i64) -> Result<Vec<f64>, Fault> {
    let start = q.start.nanos();
    let n = usize::try_from((q.end.nanos() - start) / step).unwrap_or(0);
    if n > 20_000 {
        return Err(Fault::bad("more than 20000 steps; take a longer interval"));
    }
    let sums = read(state, &p.tenant, q, vec![Money::ZERO; n], move |sums, c| {
        let i = usize::try_from((c.start.nanos() - start) / step).unwrap_or(usize::MAX);
        if let Some(slot) = sums.get_mut(i).filter(|_| !c.is_repeated()) {
            *slot = slot.saturating_add(c.cost_usd());
        }
    });
    Ok(sums.await?.iter().map(|m| m.to_f64().unwrap_or(0.0)).collect())
}

/// Returns the whole days before now, `days` of them, without those before the first call.
fn history(state: &AppState, q: &Query, days: i64) -> Query {
    let today = state.now().nanos().div_euclid(DAY_NS) * DAY_NS;
    q.over(today - days * DAY_NS, today)
}

async fn forecast(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 30)?;
    let number = |n: &str, default: i64, most: i64| -> Result<i64, Fault> {
        let v = p.number(n, default).map_err(Fault::bad)?;
        if (1..=most).contains(&v) { Ok(v) } else { Err(Fault::bad(format!("{n} is 1 to {most}"))) }
    };
    let past = number("history_days", 60, 365)?;
    let ahead = match p.get("period") {
        Some("week") => 7,
        Some("month") => 30,
        Some("quarter") => 90,
        Some("custom") | None => number("horizon_days", 30, 365)?,
        Some(other) => {
            return Err(Fault::bad(format!(
                "period {other:?} is none of week, month, quarter, custom"
            )));
        }
    };
    let confidence = p.number("confidence", 0.95_f64).map_err(Fault::bad)?;
    if !(0.5..=0.999).contains(&confidence) {
        return Err(Fault::bad("confidence is 0.5 to 0.999"));
    }
    // `model` is an LLM here, as everywhere; what forecasts is `method`.
    let q = history(&state, &q, past);
    let all = steps(&state, &p, &q, DAY_NS).await?;
    // Before the first call there was nothing to spend on.
    let first = all.iter().position(|v| *v > 0.0).unwrap_or(all.len());
    let values = all.get(first..).unwrap_or_default();
    let model = match p.get("method").unwrap_or("auto") {
        "auto" => forecast::choose(values, Some(7)),
        "linear" | "linear_trend" => Model::Linear,
        "moving_average" => Model::MovingAverage,
        "exponential_smoothing" | "smoothing" => Model::Smoothing,
        "seasonal" => Model::Seasonal { period: 7 },
        other => {
            return Err(Fault::bad(format!(
                "method {other:?} is none of auto, linear, moving_average, exponential_smoothing, seasonal"
            )));
        }
    };
    let steps = usize::try_from(ahead).unwrap_or(30);
    let Some(f) = forecast::forecast(values, steps, confidence, model) else {
        return Err(Fault::new(
            http::StatusCode::UNPROCESSABLE_ENTITY,
            "INSUFFICIENT_DATA",
            format!("{} days of cost; a forecast needs {}", values.len(), forecast::POINTS_MIN),
        ));
    };
    let today = q.end.nanos() / DAY_NS;
    let point = |(i, x): (usize, &forecast::Point)| json!({"date": day_text(today + i as i64), "cost": x.value, "lower": x.low, "upper": x.high});
    let total: f64 = f.points.iter().map(|x| x.value).sum();
    // Days err independently, in part: the sum's interval is between both extremes.
    let spread: f64 = f.points.iter().map(|x| (x.high - x.value).powi(2)).sum::<f64>().sqrt();
    let history: Vec<Value> = values
        .iter()
        .enumerate()
        .map(|(i, v)| json!({"date": day_text(today - (values.len() - i) as i64), "cost": v}))
        .collect();
    Ok(data(
        &state,
        json!({
            "method": f.model.name(), "confidence": confidence, "currency": "USD",
            "history": history, "forecast": f.points.iter().enumerate().map(point).collect::<Vec<_>>(),
            "total": {"cost": total, "lower": (total - spread).max(0.0), "upper": total + spread},
            "mape_percent": f.mape, "r2": f.r2,
        }),
    ))
}

async fn anomalies(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 30)?;
    let (step, name) = match p.get("interval").unwrap_or("day") {
        "hour" => (3_600_000_000_000, "hour"),
        "day" => (DAY_NS, "day"),
        other => return Err(Fault::bad(format!("interval {other:?} is none of hour, day"))),
    };
    let method = p.get("method").unwrap_or("z_score");
    let chosen = Method::parse(method).ok_or_else(|| {
        Fault::bad(format!("method {method:?} is none of z_score, iqr, modified_z, moving_average"))
    })?;
    let default = if chosen == Method::Iqr { 1.5 } else { 3.0 };
    let threshold = p.number("threshold", default).map_err(Fault::bad)?;
    let start = q.start.nanos().div_euclid(step) * step;
    // The step that goes on now is not over: it would look low.
    let q = q.over(start, q.end.nanos().div_euclid(step) * step);
    let values = steps(&state, &p, &q, step).await?;
    let rows: Vec<Value> = forecast::anomalies(&values, chosen, threshold)
        .iter()
        .map(|a| {
            let at = TimestampNs::from_nanos(start + a.index as i64 * step);
            json!({"timestamp": at.to_string(), "cost": a.value, "expected": a.expected, "score": a.ratio * threshold, "severity": a.severity()})
        })
        .collect();
    Ok(data(
        &state,
        json!({"period": range(&q), "interval": name, "method": method, "threshold": threshold, "points": values.len(), "anomalies": rows}),
    ))
}

async fn analytics(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 30)?;
    let interval = match p.get("interval").unwrap_or("day") {
        "hour" => Dimension::Hour,
        "day" => Dimension::Day,
        "week" => Dimension::Week,
        "month" => Dimension::Month,
        other => {
            return Err(Fault::bad(format!(
                "interval {other:?} is none of hour, day, week, month"
            )));
        }
    };
    let known = [
        "total_cost",
        "total_tokens",
        "total_requests",
        "average_cost_per_request",
        "average_tokens_per_request",
    ];
    let wanted: Vec<&str> = match p.get("metrics").or(p.get("metric")) {
        None => known.to_vec(),
        Some(list) => list.split(',').map(str::trim).collect(),
    };
    if let Some(strange) = wanted.iter().find(|w| !known.contains(*w)) {
        return Err(Fault::bad(format!("metric {strange:?} is none of {}", known.join(", "))));
    }
    let r = report(&state, &p, &q, vec![interval.clone()]).await?;
    let of = |t: &Totals| -> Value {
        let pick = |name: &str| match name {
            "total_cost" => json!(usd(t.usd)),
            "total_tokens" => json!(t.tokens()),
            "total_requests" => json!(t.requests),
            "average_cost_per_request" => json!(usd(t.usd_per_request().round_dp(12))),
            _ => json!(if t.requests == 0 { 0.0 } else { t.tokens() as f64 / t.requests as f64 }),
        };
        wanted.iter().map(|n| ((*n).to_owned(), pick(n))).collect::<serde_json::Map<_, _>>().into()
    };
    let points: Vec<Value> =
        r.groups.iter().map(|(k, t)| json!({"timestamp": k.first(), "values": of(t)})).collect();
    Ok(data(
        &state,
        json!({"period": range(&q), "interval": interval.name(), "summary": of(&r.total), "time_series": points}),
    ))
}

async fn cache(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 7)?;
    let limit = limit(&p, 100, 1000)?;
    let book = state.ingest.prices();
    let (mut all, left_out) =
        read(&state, &p.tenant, &q, (Caches::default(), 0_u64), move |(all, left_out), c| {
            *left_out += u64::from(!all.add(c, &book));
        })
        .await?;
    let mut rows: Vec<_> = all.prefixes.iter_mut().collect();
    rows.sort_by(|a, b| {
        let net = |e: &Economics| e.saved_usd.saturating_sub(e.write_premium_usd);
        net(b.1).cmp(&net(a.1)).then(a.0.cmp(b.0))
    });
    let items: Vec<Value> = rows
        .into_iter()
        .take(limit)
        .map(|(k, e)| {
            json!({
                "provider": k.provider, "model": k.model, "prompt": k.prompt, "requests": e.calls, "input_tokens": e.input_tokens,
                "cached_tokens": e.read_tokens, "cache_write_tokens": e.written_tokens, "hit_ratio": e.hit_ratio(), "wasted_write_tokens": e.wasted_tokens(),
                "saved_usd": usd(e.saved_usd), "write_premium_usd": usd(e.write_premium_usd), "net_usd": usd(e.saved_usd.saturating_sub(e.write_premium_usd)),
                "hour_would_save_usd": e.hour_would_save().map(usd),
            })
        })
        .collect();
    Ok(data(&state, json!({"period": range(&q), "items": items, "calls_left_out": left_out})))
}

/// Latencies of a set of calls.
#[derive(Default)]
struct Speed {
    totals: Totals,
    durations: Vec<f64>,
    first_tokens: Vec<f64>,
}

impl Speed {
    fn add(&mut self, c: &LlmCall) {
        if c.is_repeated() {
            return;
        }
        self.totals.add(c);
        if c.status == CallStatus::Ok {
            self.durations.push(c.duration_ms());
            self.first_tokens.extend(c.time_to_first_token_ms);
        }
    }

    fn json(&mut self) -> Value {
        fn quantiles(v: &mut [f64]) -> Value {
            let mut at = |q: f64| quantile(v, q);
            json!({"p50": at(0.5), "p90": at(0.9), "p95": at(0.95), "p99": at(0.99)})
        }
        let t = &self.totals;
        let rate = if t.requests == 0 { 0.0 } else { t.errors as f64 / t.requests as f64 };
        json!({
            "requests": t.requests, "error_rate": rate, "total_tokens": t.tokens(), "total_cost": usd(t.usd),
            "average_cost_per_request": usd(t.usd_per_request().round_dp(12)),
            "average_cost_per_1k_tokens": usd(t.usd_per_1k_tokens().round_dp(12)),
            "duration_ms": quantiles(&mut self.durations), "time_to_first_token_ms": quantiles(&mut self.first_tokens),
        })
    }
}

/// Speeds by provider and model. Of `models`, if any are named, those calls that they served or
/// that asked for them, under that name: a call that failed may not say who would have served it.
async fn speeds(
    state: &AppState,
    p: &Params,
    q: &Query,
    models: &[String],
) -> Result<BTreeMap<(String, String), Speed>, Fault> {
    let empty: BTreeMap<(String, String), Speed> = BTreeMap::new();
    let models = models.to_vec();
    let of = [Dimension::Model, Dimension::RequestModel];
    read(state, &p.tenant, q, empty, move |map, c| {
        let named =
            models.iter().find(|m| of.iter().any(|d| d.matches(c, std::slice::from_ref(m))));
        let model = match named {
            Some(name) => name,
            None if models.is_empty() => c.model(),
            None => return,
        };
        map.entry((c.provider.clone(), model.to_owned())).or_default().add(c);
    })
    .await
}

async fn performance(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 1)?;
    let mut all = read(&state, &p.tenant, &q, Speed::default(), Speed::add).await?;
    Ok(data(&state, json!({"period": range(&q), "performance": all.json()})))
}

async fn compare(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 7)?;
    let named = p.get("models").into_iter().flat_map(|l| l.split(','));
    let named: Vec<String> = named.map(|m| m.trim().to_owned()).collect();
    let mut by_model = speeds(&state, &p, &q, &named).await?;
    let rows: Vec<Value> = by_model
        .iter_mut()
        .filter(|(_, s)| s.totals.requests > 0)
        .map(|((provider, model), s)| {
            let mut v = s.json();
            if let Some(o) = v.as_object_mut() {
                o.insert("provider".into(), json!(provider));
                o.insert("model".into(), json!(model));
            }
            v
        })
        .collect();
    Ok(data(&state, json!({"period": range(&q), "models": rows})))
}
