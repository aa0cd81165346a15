//! The `retention` section of the configuration.

use crate::config::duration;
use obs_model::{MatchOp, Matcher, TenantId};
use obs_promql::ast::Expr;
use obs_storage::{RetentionRule, RetentionSignal};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::time::Duration;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawRetention {
    max_age: Option<String>,
    max_bytes: Option<u64>,
    metrics: RawKeep,
    logs: RawKeep,
    traces: RawKeep,
    tenants: BTreeMap<String, RawTenantRetention>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTenantRetention {
    max_age: Option<String>,
    max_bytes: Option<u64>,
    metrics: RawKeep,
    logs: RawKeep,
    traces: RawKeep,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawKeep {
    max_age: Option<String>,
    max_bytes: Option<u64>,
    labels: Vec<RawByLabel>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawByLabel {
    #[serde(rename = "match")]
    selector: String,
    max_age: String,
}

pub(crate) fn age(place: &str, text: &str) -> Result<Duration, String> {
    let parsed = duration(text).filter(|d| !d.is_zero());
    parsed.ok_or_else(|| format!("{place}max_age: {text:?} is no duration; write 36h or 15d"))
}

/// Reads a selector such as `{env="prod"}`.
pub(crate) fn matchers(place: &str, text: &str) -> Result<Vec<(String, MatchOp, String)>, String> {
    let wrong = |why: String| format!("{place}match: {text:?} is no selector: {why}");
    match obs_promql::parse(text) {
        Ok(Expr::Selector(s)) if !s.matchers.is_empty() => {
            for m in &s.matchers {
                Matcher::new(&m.name, m.op, &m.value).map_err(|e| wrong(e.to_string()))?;
            }
            Ok(s.matchers.into_iter().map(|m| (m.name, m.op, m.value)).collect())
        }
        Ok(_) => Err(wrong("write {name=\"value\"}".into())),
        Err(e) => Err(wrong(e.to_string())),
    }
}

/// Adds the rules of one place in the file.
fn add(
    place: &str,
    tenant: Option<&TenantId>,
    signal: Option<RetentionSignal>,
    keep: RawKeep,
    out: &mut Vec<RetentionRule>,
) -> Result<(), String> {
    let rule = RetentionRule { tenant: tenant.cloned(), signal, ..RetentionRule::default() };
    for (i, l) in keep.labels.into_iter().enumerate() {
        let place = format!("{place}labels[{i}].");
        let matchers = matchers(&place, &l.selector)?;
        let max_age = Some(age(&place, &l.max_age)?);
        out.push(RetentionRule { matchers, max_age, ..rule.clone() });
    }
    let max_age = keep.max_age.map(|text| age(place, &text)).transpose()?;
    if max_age.is_some() || keep.max_bytes.is_some() {
        out.push(RetentionRule { max_age, max_bytes: keep.max_bytes, ..rule });
    }
    Ok(())
}

/// Returns the rules, or what is wrong and where.
pub(crate) fn read(raw: RawRetention) -> Result<Vec<RetentionRule>, String> {
    use RetentionSignal::{Logs, Metrics, Traces};
    let mut out = Vec::new();
    let general = RawTenantRetention {
        max_age: raw.max_age,
        max_bytes: raw.max_bytes,
        metrics: raw.metrics,
        logs: raw.logs,
        traces: raw.traces,
    };
    let all = [(None, general)];
    for (name, r) in all.into_iter().chain(raw.tenants.into_iter().map(|(t, r)| (Some(t), r))) {
        let place = match &name {
            None => "retention.".to_owned(),
            Some(t) => format!("retention.tenants.{t}."),
        };
        let tenant = name.map(|t| TenantId::new(&t).map_err(|e| format!("{place} {e}")));
        let tenant = tenant.transpose()?;
        let top = RawKeep { max_age: r.max_age, max_bytes: r.max_bytes, labels: Vec::new() };
        add(&place, tenant.as_ref(), None, top, &mut out)?;
        for (word, signal, keep) in
            [("metrics", Metrics, r.metrics), ("logs", Logs, r.logs), ("traces", Traces, r.traces)]
        {
            add(&format!("{place}{word}."), tenant.as_ref(), Some(signal), keep, &mut out)?;
        }
    }
    Ok(out)
}
