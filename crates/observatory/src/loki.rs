//! The `loki` section: limits under Loki's names, and Loki's own configuration as it is.

use crate::config::{ConfigError, duration, environment, expand};
use crate::retention;
use obs_model::TenantId;
use obs_server::{LokiLimits, RawLokiLimits};
use obs_storage::{RetentionRule, RetentionSignal};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawLoki {
    /// Loki's own file. What stands beside it here goes first.
    config_file: Option<PathBuf>,
    limits_config: RawLokiLimits,
    /// By tenant.
    overrides: BTreeMap<String, RawLokiLimits>,
}

/// What of Loki's file says something about this server; the rest is about Loki's storage and parts.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LokiFile {
    limits_config: Map<String, Value>,
    compactor: Compactor,
    table_manager: TableManager,
    runtime_config: RuntimeConfig,
    ruler: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Compactor {
    retention_enabled: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TableManager {
    retention_deletes_enabled: bool,
    retention_period: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RuntimeConfig {
    file: Option<PathBuf>,
}

/// Loki's file of what tenants have instead.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Overrides {
    overrides: BTreeMap<String, Map<String, Value>>,
}

#[derive(Debug, Deserialize)]
struct RetentionStream {
    selector: String,
    #[serde(default)]
    priority: i64,
    period: String,
}

/// What the section says.
#[derive(Debug, Default)]
pub(crate) struct Loki {
    pub(crate) limits: LokiLimits,
    /// How long logs are kept, where Loki was told to delete them.
    pub(crate) retention: Vec<RetentionRule>,
    /// What the file says that does not hold here.
    pub(crate) notes: Vec<String>,
}

/// Limits of a file and what it keeps, while it is read.
#[derive(Default)]
struct Read {
    limits: RawLokiLimits,
    own: BTreeMap<String, RawLokiLimits>,
    retention: Vec<RetentionRule>,
    notes: Vec<String>,
}

fn parsed<T: for<'a> Deserialize<'a> + Default>(file: &Path) -> Result<T, ConfigError> {
    let name = file.display().to_string();
    let fail = |message: String| ConfigError { file: name.clone(), place: None, message };
    let text = std::fs::read_to_string(file).map_err(|e| fail(format!("cannot be read: {e}")))?;
    let text = expand(&text, &name, &environment)?;
    let raw: Option<T> = serde_saphyr::from_str(&text).map_err(|e| fail(e.to_string()))?;
    Ok(raw.unwrap_or_default())
}

/// Returns the rules of one `limits_config`, those of streams by their priority.
fn kept(
    section: &mut Map<String, Value>,
    tenant: Option<&TenantId>,
) -> Result<Vec<RetentionRule>, String> {
    let rule = RetentionRule {
        tenant: tenant.cloned(),
        signal: Some(RetentionSignal::Logs),
        ..RetentionRule::default()
    };
    let streams = section.remove("retention_stream").filter(|v| !v.is_null());
    let mut streams: Vec<RetentionStream> = streams
        .map_or(Ok(Vec::new()), serde_json::from_value)
        .map_err(|e| format!("retention_stream: {e}"))?;
    streams.sort_by_key(|s| std::cmp::Reverse(s.priority));
    let mut out = Vec::new();
    for s in streams {
        let matchers = retention::matchers("retention_stream: ", &s.selector)?;
        let max_age = Some(retention::age("retention_stream: ", &s.period)?);
        out.push(RetentionRule { matchers, max_age, ..rule.clone() });
    }
    if let Some(period) = section.remove("retention_period").filter(|v| !v.is_null()) {
        let text = period.as_str().map_or_else(|| period.to_string(), str::to_owned);
        let wrong = || format!("retention_period: {text:?} is no duration; write 744h");
        let age = duration(&text).or((text == "0").then_some(std::time::Duration::ZERO));
        let age = age.ok_or_else(wrong)?;
        // Zero keeps everything.
        if !age.is_zero() {
            out.push(RetentionRule { max_age: Some(age), ..rule });
        }
    }
    Ok(out)
}

fn read_file(file: &Path) -> Result<Read, ConfigError> {
    let name = file.display().to_string();
    let fail = |message: String| ConfigError { file: name.clone(), place: None, message };
    let raw: LokiFile = parsed(file)?;
    let mut out = Read::default();
    let mut section = raw.limits_config;
    let old = section.remove("per_tenant_override_config");
    let old = old.as_ref().and_then(Value::as_str).filter(|f| !f.is_empty()).map(PathBuf::from);
    let wrong = |e: String| fail(format!("limits_config: {e}"));
    let mut retention = kept(&mut section, None).map_err(wrong)?;
    let (limits, mut ignored) = RawLokiLimits::of_file(section).map_err(wrong)?;
    out.limits = limits;
    if let Some(other) = raw.runtime_config.file.or(old) {
        let other = file.parent().unwrap_or(Path::new("")).join(other);
        let fail =
            |message| ConfigError { file: other.display().to_string(), place: None, message };
        for (tenant, mut section) in parsed::<Overrides>(&other)?.overrides {
            let wrong = |e: String| fail(format!("overrides.{tenant}: {e}"));
            let id = TenantId::new(&tenant).map_err(|e| wrong(e.to_string()))?;
            retention.extend(kept(&mut section, Some(&id)).map_err(wrong)?);
            let (limits, more) = RawLokiLimits::of_file(section).map_err(wrong)?;
            ignored.extend(more);
            out.own.insert(tenant, limits);
        }
    }
    if raw.compactor.retention_enabled {
        out.retention = retention;
    } else if raw.table_manager.retention_deletes_enabled {
        let period = raw.table_manager.retention_period.map(Value::String);
        let mut section = Map::from_iter(period.map(|p| ("retention_period".to_owned(), p)));
        out.retention =
            kept(&mut section, None).map_err(|e| fail(format!("table_manager: {e}")))?;
    } else if !retention.is_empty() {
        out.notes.push(
            "retention: nothing is deleted, as compactor.retention_enabled is not set".into(),
        );
    }
    ignored.sort();
    ignored.dedup();
    if !ignored.is_empty() {
        out.notes.push(format!("limits_config: these have no effect here: {}", ignored.join(", ")));
    }
    if raw.ruler.is_some() {
        out.notes.push(
            "ruler: name its rule files in prometheus.rule_files, with `type: logql` in each group, and its Alertmanager in prometheus.config_file"
                .into(),
        );
    }
    Ok(out)
}

/// Reads the section; paths are relative to `base`, and `fail` tells of what is wrong in it.
pub(crate) fn read(
    raw: RawLoki,
    base: &Path,
    fail: impl Fn(String) -> ConfigError,
) -> Result<Loki, ConfigError> {
    LokiLimits::read(raw.limits_config.clone(), raw.overrides.clone())
        .map_err(|e| fail(format!("loki.{e}")))?;
    let file = raw.config_file.map(|f| base.join(f));
    let of_file = file.as_deref().map(read_file).transpose()?.unwrap_or_default();
    let mut own = of_file.own;
    for (tenant, limits) in raw.overrides {
        let below = own.remove(&tenant).unwrap_or_default();
        own.insert(tenant, limits.over(&below));
    }
    // What is wrong now is wrong in the file.
    let name = file.unwrap_or_default().display().to_string();
    let limits = LokiLimits::read(raw.limits_config.over(&of_file.limits), own);
    let limits = limits.map_err(|message| ConfigError { file: name, place: None, message })?;
    Ok(Loki { limits, retention: of_file.retention, notes: of_file.notes })
}

/// Reads a file of Loki's alone; returns what does not hold here.
pub(crate) fn check(file: &Path) -> Result<Vec<String>, ConfigError> {
    let section = RawLoki { config_file: Some(file.to_owned()), ..RawLoki::default() };
    let fail = |message| ConfigError { file: file.display().to_string(), place: None, message };
    read(section, Path::new(""), fail).map(|l| l.notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn loki(file: &str, overrides: &str) -> Result<Loki, String> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("loki.yaml"), file).unwrap();
        std::fs::write(dir.path().join("overrides.yaml"), overrides).unwrap();
        let raw: RawLoki = serde_saphyr::from_str("config_file: loki.yaml").unwrap();
        let fail = |message| ConfigError { file: "o.yaml".into(), place: None, message };
        read(raw, dir.path(), fail).map_err(|e| e.to_string())
    }

    #[test]
    fn what_loki_was_told_to_delete_is_deleted() {
        const LIMITS: &str = "limits_config:\n  retention_period: 720h\n  retention_stream:\n  - {selector: '{env=\"dev\"}', priority: 1, period: 24h}\n  - {selector: '{env=~\"d.*\"}', priority: 2, period: 48h}\n  split_queries_by_interval: 30m\nruntime_config: {file: overrides.yaml}\n";
        const HOUR: Duration = Duration::from_secs(3600);
        let own = "overrides: {a: {retention_period: 1w, max_query_series: 3}}";
        let l = loki(&format!("{LIMITS}compactor: {{retention_enabled: true}}"), own).unwrap();
        let ages: Vec<_> = l
            .retention
            .iter()
            .map(|r| (r.max_age.unwrap(), r.matchers.len(), r.tenant.is_some()))
            .collect();
        assert_eq!(
            ages,
            [
                (HOUR * 48, 1, false),
                (HOUR * 24, 1, false),
                (HOUR * 720, 0, false),
                (HOUR * 168, 0, true)
            ]
        );
        assert_eq!(
            l.notes,
            ["limits_config: these have no effect here: split_queries_by_interval"]
        );
        let l = loki(LIMITS, own).unwrap();
        assert!(l.retention.is_empty() && l.notes[0].starts_with("retention: nothing is deleted"));
        let old =
            "table_manager: {retention_deletes_enabled: true, retention_period: 720h}\nruler: {}";
        let l = loki(old, "").unwrap();
        assert_eq!(l.retention[0].max_age, Some(HOUR * 720));
        assert!(l.notes[0].starts_with("ruler: "));
    }

    #[test]
    fn wrong_files_say_what_and_where() {
        for (file, own, why) in [
            ("limits_config: {max_line_size: many}", "", "max_line_size"),
            (
                "limits_config: {retention_period: soon}",
                "",
                "limits_config: retention_period: \"soon\" is no duration",
            ),
            ("limits_config: {max_query_series: x}", "", "loki.yaml: limits_config: invalid type"),
            ("runtime_config: {file: none.yaml}", "", "none.yaml: cannot be read"),
            (
                "limits_config: {per_tenant_override_config: overrides.yaml}",
                "overrides: {a/b: {}}",
                "overrides.yaml: overrides.a/b: ",
            ),
            ("limits_config: [", "", "loki.yaml: "),
        ] {
            let e = loki(file, own).unwrap_err();
            assert!(e.contains(why), "{file}: {e}");
        }
    }
}
