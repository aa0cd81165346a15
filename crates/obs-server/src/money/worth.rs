//! What money bought: movers, cost of successes, cost of GPU time.

use crate::money::costs::{dimensions, limit, range};
use crate::money::{Answer, Fault, change, data, moment, query, read, totals, usd};
use crate::params::Params;
use crate::prometheus::matchers_of;
use crate::run::{QueryFailure, blocking};
use crate::scores;
use crate::state::AppState;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use obs_llm::report::{Report, Totals};
use obs_llm::worth::{GPU_SERIES, GpuTime, Mover, Outcomes, Successes, Unit, movers};
use obs_model::{DAY_NS, METRIC_NAME, Matcher, Money, SeriesSelection, TenantId};
use rust_decimal::prelude::ToPrimitive as _;
use serde_json::json;

pub(super) fn routes() -> Router<AppState> {
    Router::new()
        .route("/api/v1/costs/movers", get(moved))
        .route("/api/v1/costs/outcomes", get(outcomes))
        .route("/api/v1/costs/gpu", get(gpu))
}

/// Compares a range with the one before it of the same length, or with one that begins at `than`.
async fn moved(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 7)?;
    let name = p.get("dimension").or(p.get("group_by")).unwrap_or("model");
    let by = dimensions(name)?;
    if by.is_empty() {
        return Err(Fault::bad("dimension is needed"));
    }
    let limit = limit(&p, 20, 1000)?;
    let length = q.end.nanos() - q.start.nanos();
    let then = match p.get("than") {
        None => q.start.nanos() - length,
        Some(t) => moment(t).ok_or_else(|| Fault::bad("than is not a time"))?.nanos(),
    };
    let before = q.over(then, then + length);
    let old = read(&state, &p.tenant, &before, Report::new(by.clone()), Report::add).await?;
    let new = read(&state, &p.tenant, &q, Report::new(by), Report::add).await?;
    let all = movers(&old.groups, &new.groups);
    let row = |m: &Mover| {
        json!({
            "value": m.value, "change": usd(m.change()), "change_percent": change(m.now.usd, m.before.usd),
            "by_volume": usd(m.by_volume), "by_unit_cost": usd(m.by_unit_cost),
            "before": totals(&m.before), "now": totals(&m.now),
            "is_new": m.before.requests == 0, "is_gone": m.now.requests == 0,
        })
    };
    let whole = new.total.usd.saturating_sub(old.total.usd);
    Ok(data(
        &state,
        json!({
            "period": range(&q), "compared_with": range(&before), "dimension": name,
            "total": {"before": usd(old.total.usd), "now": usd(new.total.usd), "change": usd(whole), "change_percent": change(new.total.usd, old.total.usd)},
            "movers": all.iter().take(limit).map(row).collect::<Vec<_>>(), "movers_left_out": all.len().saturating_sub(limit),
        }),
    ))
}

async fn outcomes(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 30)?;
    let name = p.get("score").unwrap_or("user_feedback").to_owned();
    let unit = match p.get("unit").unwrap_or("trace") {
        "trace" => Unit::Trace,
        "session" => Unit::Session,
        other => return Err(Fault::bad(format!("unit {other:?} is none of trace, session"))),
    };
    let least = p.number("above", 0.0_f64).map_err(Fault::bad)?;
    let by = dimensions(p.get("by").unwrap_or_default())?;
    let by = match by.as_slice() {
        [] => None,
        [one] => Some(one.clone()),
        _ => return Err(Fault::bad("by is one dimension")),
    };
    // Verdicts come after the work, for a week.
    let until = q.end.add_nanos(7 * DAY_NS).min(state.now().add_nanos(1));
    let ask = scores::Ask::named(&name, (q.start, until.max(q.end)));
    let tenant = p.tenant.clone();
    let found = blocking(&state, "llm_repository", "scores", move |s, b| {
        let mut all = ask.find(s, &tenant, b, scores::READ_MAX + 1)?;
        if all.len() > scores::READ_MAX {
            let text = format!("more than {} scores; ask for a shorter range", scores::READ_MAX);
            return Err(QueryFailure::TooMuch(text));
        }
        obs_llm::latest_ratings(&mut all);
        Ok(all)
    })
    .await?;
    let empty = Outcomes::new(unit, by.clone(), &found, least);
    let done = read(&state, &p.tenant, &q, empty, Outcomes::add).await?;
    let left_out = done.left_out;
    let (all, groups) = done.finish();
    let row = |s: &Successes| {
        json!({
            "scored": s.scored, "successes": s.successes, "total_cost": usd(s.usd),
            "success_rate": (s.scored > 0).then(|| s.successes as f64 / s.scored as f64),
            "cost_per_success": s.usd_per_success().map(usd),
        })
    };
    let mut rows: Vec<(&String, &Successes)> = groups.iter().collect();
    rows.sort_by(|a, b| b.1.usd.cmp(&a.1.usd).then(a.0.cmp(b.0)));
    let limit = limit(&p, 100, 1000)?;
    let shown = rows.iter().take(limit).map(|(k, s)| {
        let mut v = row(s);
        if let (Some(o), Some(d)) = (v.as_object_mut(), &by) {
            o.insert(d.name().into(), json!(k));
        }
        v
    });
    Ok(data(
        &state,
        json!({
            "period": range(&q), "score": name, "unit": p.get("unit").unwrap_or("trace"), "above": least,
            "total": row(&all), "groups": shown.collect::<Vec<_>>(),
            "groups_left_out": rows.len().saturating_sub(limit), "calls_left_out": left_out,
        }),
    ))
}

/// Longest range over which GPUs are summed, days: every sample is read.
const GPU_DAYS_MAX: f64 = 31.0;

/// Sums the time of GPUs from the first family of series that has any.
fn gpu_time(
    state: &AppState,
    tenant: &TenantId,
    (from, to): (i64, i64),
    chosen: &[Matcher],
    budget: &obs_model::Budget,
) -> Result<Option<(&'static str, GpuTime)>, QueryFailure> {
    let ms = obs_model::TimestampMs::from_millis;
    for (name, unit) in GPU_SERIES {
        let mut matchers = vec![Matcher::equal(METRIC_NAME, name)];
        matchers.extend(chosen.iter().cloned());
        let selection = SeriesSelection { matchers: &matchers, start: ms(from), end: ms(to) };
        let mut time = GpuTime::default();
        for series in state.source.select(tenant, &selection, budget)? {
            time.add(&series.samples, unit);
        }
        if time.gpus > 0 {
            return Ok(Some((name, time)));
        }
    }
    Ok(None)
}

async fn gpu(State(state): State<AppState>, p: Params) -> Answer {
    let q = query(&state, &p, 1)?;
    if q.days() > GPU_DAYS_MAX {
        return Err(Fault::bad(format!("the range is {GPU_DAYS_MAX} days at most")));
    }
    let price = match p.get("gpu_hour_usd") {
        None => None,
        Some(t) => {
            let m = Money::from_str_exact(t).ok().filter(|m| !m.is_sign_negative());
            Some(m.ok_or_else(|| Fault::bad("gpu_hour_usd is not an amount"))?)
        }
    };
    let chosen = match p.get("gpus") {
        None => Vec::new(),
        Some(text) => matchers_of(text).map_err(|e| Fault::bad(format!("gpus: {e}")))?,
    };
    let (tenant, q2) = (p.tenant.clone(), q.clone());
    let found = blocking(&state, "metrics_repository", "gpu", move |s, b| {
        let range = (q2.start.to_millis().millis(), q2.end.to_millis().millis());
        gpu_time(s, &tenant, range, &chosen, b)
    })
    .await?;
    let Some((series, time)) = found else {
        let names: Vec<&str> = GPU_SERIES.iter().map(|(n, _)| *n).collect();
        let text = format!("no series of GPUs in this range; known: {}", names.join(", "));
        return Err(Fault::new(http::StatusCode::NOT_FOUND, "NOT_FOUND", text));
    };
    let calls = read(&state, &p.tenant, &q, Totals::default(), Totals::add).await?;
    let spent = calls.usd.to_f64().unwrap_or(0.0);
    let per = |whole: f64, part: f64| (part > 0.0).then(|| whole / part);
    let tokens = calls.tokens() as f64;
    let hardware = price.and_then(|m| m.to_f64()).map(|hour| {
        let whole = time.seconds / 3600.0 * hour;
        json!({
            "gpu_hour_usd": hour, "total_usd": whole, "idle_usd": (time.seconds - time.busy_seconds) / 3600.0 * hour,
            "usd_per_request": per(whole, calls.requests as f64), "usd_per_million_tokens": per(whole * 1e6, tokens),
        })
    });
    Ok(data(
        &state,
        json!({
            "period": range(&q), "series": series, "gpus": time.gpus,
            "gpu_seconds": time.seconds, "busy_gpu_seconds": time.busy_seconds, "utilization": per(time.busy_seconds, time.seconds),
            "calls": totals(&calls),
            "usd_per_gpu_second": per(spent, time.seconds), "usd_per_busy_gpu_second": per(spent, time.busy_seconds),
            "tokens_per_gpu_second": per(tokens, time.seconds), "hardware": hardware,
        }),
    ))
}
