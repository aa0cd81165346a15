//! The configuration file: raw YAML → validated settings.

use crate::alerting::{AlertingSettings, RawAlertmanager, RawOutbound};
use crate::cli::{Output, complain, say};
use crate::collector::{CollectorSettings, RawCollector};
use crate::control::{ControlSettings, RawControl};
use crate::limits::{self, RawLimits};
use crate::loki::{self, RawLoki};
use crate::prometheus::{RawProfile, RawPrometheus, Settings};
use crate::retention::{self, RawRetention};
use crate::sampling::{RawSampling, SamplingSettings};
use crate::tailing::{RawTailing, TailSettings};
use crate::tier::{RawTier, TierSettings};
use anyhow::Result;
use obs_ingest::TenantLimits;
use obs_llm::PriceBook;
use obs_server::{Listener, ServerLimits};
use obs_storage::{RetentionSignal, StoreConfig};
use serde::Deserialize;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// A configuration that cannot be used, with the place where it is wrong.
#[derive(Debug, thiserror::Error)]
#[error("{file}{}: {message}", .place.map(|(l, c)| format!(":{l}:{c}")).unwrap_or_default())]
pub(crate) struct ConfigError {
    pub(crate) file: String,
    /// Line and column.
    pub(crate) place: Option<(u64, u64)>,
    pub(crate) message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    data: RawData,
    listen: BTreeMap<String, String>,
    limits: RawLimits,
    prices: RawPrices,
    llm: RawLlm,
    retention: RawRetention,
    prometheus: RawPrometheus,
    alertmanager: RawAlertmanager,
    control: RawControl,
    outbound: RawOutbound,
    promtail: RawTailing,
    collector: RawCollector,
    sampling: RawSampling,
    loki: RawLoki,
    traces: RawTraces,
    profile: Option<RawProfile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawData {
    dir: Option<PathBuf>,
    head_bytes: Option<usize>,
    disk_reserve_bytes: Option<u64>,
    segment_bytes: Option<u64>,
    background_share: Option<f64>,
    admin_api: Option<bool>,
    tier: Option<RawTier>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPrices {
    files: Vec<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLlm {
    /// Attributes that are kept with calls, to be asked by as `attribute:NAME`.
    attributes: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTraces {
    clock_skew_adjustment: Option<String>,
}

/// Where a listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Address {
    Off,
    At(SocketAddr),
}

/// Validated settings.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) store: StoreConfig,
    pub(crate) listen: Vec<(Listener, Address)>,
    pub(crate) server: ServerLimits,
    pub(crate) ingest: TenantLimits,
    pub(crate) price_files: Vec<PathBuf>,
    /// Further attributes that calls keep.
    pub(crate) call_attributes: Vec<String>,
    /// Whether data may be deleted over the API; when absent, on loopback listeners.
    pub(crate) admin_api: Option<bool>,
    pub(crate) tier: Option<TierSettings>,
    pub(crate) prometheus: Settings,
    pub(crate) alerting: AlertingSettings,
    pub(crate) control: ControlSettings,
    pub(crate) tailing: TailSettings,
    pub(crate) sampling: SamplingSettings,
    pub(crate) collector: CollectorSettings,
    /// What files of others say that does not hold here.
    pub(crate) notes: Vec<String>,
    /// The file as it was read, for the API that shows it.
    pub(crate) text: String,
}

/// Sections that belong to the configuration but are not read yet.
const LATER: [&str; 3] = ["tenants", "budgets", "grafana"];

/// Environment names of the Compose files that this product replaces, and the listener they move.
const PORT_VARIABLES: [(&str, Listener); 7] = [
    ("GRAFANA_PORT", Listener::Ui),
    ("PROMETHEUS_PORT", Listener::Prometheus),
    ("ALERTMANAGER_PORT", Listener::Alertmanager),
    ("LOKI_PORT", Listener::Loki),
    ("JAEGER_UI_PORT", Listener::Jaeger),
    ("JAEGER_OTLP_GRPC_PORT", Listener::OtlpGrpc),
    ("JAEGER_OTLP_HTTP_PORT", Listener::OtlpHttp),
];

/// Replaces `${NAME}` and `${NAME:-default}`; comments are left alone.
pub(crate) fn expand(
    text: &str,
    file: &str,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<String, ConfigError> {
    let mut out = String::with_capacity(text.len());
    for (number, line) in text.lines().enumerate() {
        let mut rest = line;
        while let Some(at) = rest.find("${").filter(|_| !line.trim_start().starts_with('#')) {
            let (before, tail) = rest.split_at(at);
            let fail = |message: String| ConfigError {
                file: file.into(),
                place: Some((number as u64 + 1, (line.len() - tail.len()) as u64 + 1)),
                message,
            };
            let Some(end) = tail.find('}') else { return Err(fail("${ is never closed".into())) };
            let inside = tail.get(2..end).unwrap_or_default();
            let (name, default) =
                inside.split_once(":-").map_or((inside, None), |(n, d)| (n, Some(d)));
            let value = env(name).or_else(|| default.map(str::to_owned));
            out.push_str(before);
            out.push_str(&value.ok_or_else(|| fail(format!("environment variable {name} is not set; write ${{{name}:-default}} to give a default")))?);
            rest = tail.get(end + 1..).unwrap_or_default();
        }
        out.push_str(rest);
        out.push('\n');
    }
    Ok(out)
}

/// Hides the values of keys that hold secrets; the text stays readable.
pub(crate) fn redact(text: &str) -> String {
    let words = ["password", "secret", "token", "credential", "access_key", "api_key", "bearer"];
    let mut out = String::with_capacity(text.len());
    for line in text.lines() {
        let hidden = line.split_once(':').filter(|(key, value)| {
            let key = key.to_ascii_lowercase();
            // Files and addresses are no secrets.
            let is_place = key.trim_end().ends_with("_file") || key.trim_end().ends_with("_url");
            !value.trim().is_empty() && !is_place && words.iter().any(|w| key.contains(w))
        });
        match hidden {
            Some((key, _)) => out.push_str(&format!("{key}: <secret>")),
            None => out.push_str(&without_password(line)),
        }
        out.push('\n');
    }
    out
}

/// Hides the password of an address: `scheme://user:password@host`.
fn without_password(line: &str) -> Cow<'_, str> {
    let address = line.split_once("://").and_then(|(_, rest)| {
        let authority = rest.split(['/', ' ', '"', '\'']).next()?;
        let (user, _) = authority.rsplit_once('@')?;
        user.split_once(':').map(|(_, password)| password)
    });
    match address {
        Some(p) if !p.is_empty() => Cow::Owned(line.replacen(&format!(":{p}@"), ":<secret>@", 1)),
        _ => Cow::Borrowed(line),
    }
}

/// Edits between two words, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut last = row.first().copied().unwrap_or(0);
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
        for (j, cb) in b.iter().enumerate() {
            let (left, up) =
                (row.get(j).copied().unwrap_or(0), row.get(j + 1).copied().unwrap_or(0));
            let next = (last + usize::from(ca != *cb)).min(left + 1).min(up + 1);
            last = up;
            if let Some(slot) = row.get_mut(j + 1) {
                *slot = next;
            }
        }
    }
    row.last().copied().unwrap_or(0)
}

fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|k| (distance(word, k), k))
        .min()
        .filter(|(d, _)| *d <= word.len().max(3) / 2 + 1)
        .map(|(_, k)| k)
}

/// Turns a deserializer's message into one with a suggestion.
pub(crate) fn explain(message: &str) -> String {
    let word = message.strip_prefix("unknown field `").and_then(|m| m.split('`').next());
    match word {
        Some(word) if LATER.contains(&word) => format!("section {word:?} is not supported yet"),
        Some(word) => {
            let list = message.split("expected one of ").nth(1).unwrap_or_default();
            let known: Vec<&str> = list.split(", ").map(|k| k.trim_matches(['`', ' '])).collect();
            let near = nearest(word, known.iter().copied())
                .map(|n| format!("; did you mean {n:?}?"))
                .unwrap_or_default();
            format!("unknown key {word:?}{near} Known here: {}", known.join(", "))
        }
        None => message.to_owned(),
    }
}

fn parse_raw(text: &str, file: &str) -> Result<Raw, ConfigError> {
    if text.lines().all(|l| l.trim().is_empty() || l.trim_start().starts_with('#')) {
        return Ok(Raw::default());
    }
    serde_saphyr::from_str(text).map_err(|e| {
        let place = e.location().map(|l| (l.line(), l.column()));
        let message = e.without_snippet().to_string();
        let message = message.lines().next().unwrap_or_default();
        // The position is in ours already.
        let message = message.split(" at line ").next().unwrap_or(message);
        ConfigError { file: file.into(), place, message: explain(message) }
    })
}

/// Parses `NAME=ADDR` of the command line.
pub(crate) fn listen_flag(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(n, a)| (n.to_owned(), a.to_owned()))
        .ok_or_else(|| format!("--listen {text:?} is not NAME=ADDR"))
}

fn set_listener(
    listen: &mut [(Listener, Address)],
    name: &str,
    address: &str,
) -> Result<(), String> {
    let parsed = if address == "off" {
        Address::Off
    } else {
        // A bare port stays on loopback.
        let full = if address.contains(':') && !address.starts_with(':') {
            address.to_owned()
        } else {
            format!("127.0.0.1:{}", address.trim_start_matches(':'))
        };
        let full = full.replace("localhost:", "127.0.0.1:");
        Address::At(full.parse().map_err(|_| {
            format!("{address:?} is no address; write HOST:PORT with a numeric host, PORT or off")
        })?)
    };
    let mut found = false;
    for (_, a) in listen.iter_mut().filter(|(l, _)| name == "all" || l.name() == name) {
        *a = parsed;
        found = true;
    }
    if found {
        return Ok(());
    }
    let names: Vec<&str> = Listener::ALL.iter().map(|l| l.name()).collect();
    let near = nearest(name, names.iter().copied())
        .map(|n| format!("; did you mean {n:?}?"))
        .unwrap_or_default();
    Err(format!("no listener is called {name:?}{near} There are: {}, all", names.join(", ")))
}

/// Reads and validates a configuration; `flags` are (name, address) pairs that win over it.
pub(crate) fn load(
    file: Option<&Path>,
    data: Option<&Path>,
    flags: &[(String, String)],
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Config, ConfigError> {
    let name = file.map_or_else(|| "defaults".to_owned(), |f| f.display().to_string());
    let fail = |message: String| ConfigError { file: name.clone(), place: None, message };
    let text = match file {
        Some(f) => std::fs::read_to_string(f).map_err(|e| fail(format!("cannot be read: {e}")))?,
        None => String::new(),
    };
    let raw = parse_raw(&expand(&text, &name, env)?, &name)?;
    let at = |l: &Listener| match l.is_on_by_default() {
        true => Address::At(SocketAddr::from(([127, 0, 0, 1], l.default_port()))),
        false => Address::Off,
    };
    let mut listen: Vec<(Listener, Address)> = Listener::ALL.iter().map(|l| (*l, at(l))).collect();
    for (variable, listener) in PORT_VARIABLES {
        if let Some(port) = env(variable) {
            set_listener(&mut listen, listener.name(), &port)
                .map_err(|e| fail(format!("environment variable {variable}: {e}")))?;
        }
    }
    // Paths in a file are relative to it.
    let base = file.and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
    let collector = CollectorSettings::read(raw.collector, &base);
    for e in collector.load()?.collector.endpoints {
        set_listener(&mut listen, e.listener, &e.address)
            .map_err(|m| fail(format!("collector: {}: {m}", e.path)))?;
    }
    for (n, a) in &raw.listen {
        set_listener(&mut listen, n, a).map_err(|e| fail(format!("listen: {e}")))?;
    }
    for (n, a) in flags {
        set_listener(&mut listen, n, a).map_err(|e| ConfigError {
            file: "--listen".into(),
            place: None,
            message: e,
        })?;
    }
    let mut store = StoreConfig::new(
        data.map(Path::to_owned).or(raw.data.dir).unwrap_or_else(|| "data".into()),
    );
    store.head_bytes_max = raw.data.head_bytes.unwrap_or(store.head_bytes_max).max(1 << 20);
    store.disk_reserve_bytes = raw.data.disk_reserve_bytes.unwrap_or(store.disk_reserve_bytes);
    store.segment_bytes_max = raw.data.segment_bytes.unwrap_or(store.segment_bytes_max);
    store.background_share = raw.data.background_share.unwrap_or(store.background_share);
    if !(0.05..=1.0).contains(&store.background_share) {
        return Err(fail("data.background_share: must be between 0.05 and 1".into()));
    }
    store.retention = retention::read(raw.retention).map_err(&fail)?;
    let (mut server, ingest) = limits::read(raw.limits, &mut store).map_err(&fail)?;
    let loki = loki::read(raw.loki, &base, fail)?;
    server.loki = loki.limits;
    // What is said here of logs goes before what Loki was told.
    if !store.retention.iter().any(|r| r.signal == Some(RetentionSignal::Logs)) {
        store.retention.extend(loki.retention);
    }
    if let Some(text) = &raw.traces.clock_skew_adjustment {
        let max = duration(text).and_then(|d| i64::try_from(d.as_nanos()).ok());
        server.clock_skew_max_ns = max.ok_or_else(|| {
            let name = "traces.clock_skew_adjustment";
            fail(format!("{name}: {text:?} is no duration; write 500ms or 0s"))
        })?;
    }
    let price_files = raw.prices.files.into_iter().map(|p| base.join(p)).collect();
    const ATTRIBUTES_MAX: usize = 64;
    let call_attributes = raw.llm.attributes;
    if call_attributes.len() > ATTRIBUTES_MAX
        || call_attributes.iter().any(|a| a.is_empty() || a.len() > 128)
    {
        let text = "names of 1 to 128 bytes";
        return Err(fail(format!("llm.attributes: at most {ATTRIBUTES_MAX} {text}")));
    }
    let admin_api = raw.data.admin_api;
    let tier = raw.data.tier.map(TierSettings::read).transpose().map_err(&fail)?;
    let prometheus = Settings::read(raw.prometheus, raw.profile, &base).map_err(&fail)?;
    let alerting = AlertingSettings::read(raw.alertmanager, &raw.outbound, &base).map_err(&fail)?;
    let control = ControlSettings::read(raw.control, &base).map_err(&fail)?;
    let tailing = TailSettings::read(raw.promtail, &base);
    let sampling = SamplingSettings::read(raw.sampling, &base).map_err(&fail)?;
    let config = Config {
        store,
        listen,
        server,
        ingest,
        price_files,
        call_attributes,
        admin_api,
        tier,
        prometheus,
        alerting,
        control,
        tailing,
        sampling,
        collector,
        notes: loki.notes,
        text,
    };
    config.prices()?;
    Ok(config)
}

/// Parses `30s`, `2m`, `1h30m`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    obs_promql::duration::parse_ms(text)
        .and_then(|ms| u64::try_from(ms).ok())
        .map(Duration::from_millis)
}

impl Config {
    /// Returns the embedded price book with the configured files on top.
    pub(crate) fn prices(&self) -> Result<PriceBook, ConfigError> {
        let mut book = PriceBook::embedded();
        for path in &self.price_files {
            let fail = |message: String| ConfigError {
                file: path.display().to_string(),
                place: None,
                message,
            };
            let text =
                std::fs::read_to_string(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
            book.add_json(&text).map_err(|e| fail(e.to_string()))?;
        }
        Ok(book)
    }
}

/// Returns an environment variable; the only place that reads the environment.
#[expect(clippy::disallowed_methods, reason = "the one reader of the environment")]
pub(crate) fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Returns whether a file has any of these sections, which tells whose it is.
fn has_sections(file: &Path, keys: &[&str]) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let has =
        |key: &str| text.lines().any(|l| l.strip_prefix(key).is_some_and(|r| r.starts_with(':')));
    keys.iter().any(|k| has(k))
}

/// Checks a configuration with the files that it names.
fn check_one(file: &Path) -> Result<(), ConfigError> {
    if has_sections(file, &["positions", "clients", "client"]) {
        return crate::tailing::read_config(file).map(|_| ());
    }
    if has_sections(file, &["service"]) && has_sections(file, &["receivers"]) {
        let loaded = crate::collector::read_config(file)?;
        for note in &loaded.collector.notes {
            complain(&format!("{}: note: {note}", file.display()));
        }
        return Ok(());
    }
    if has_sections(file, &["receivers", "inhibit_rules"]) && has_sections(file, &["route"]) {
        return crate::alerting::read_config(file).map(|_| ());
    }
    let of_prometheus = ["global", "scrape_configs", "rule_files", "alerting", "remote_write"];
    if has_sections(file, &of_prometheus) {
        return crate::prometheus::read_config(file).map(|_| ());
    }
    if has_sections(file, &["schema_config", "limits_config"]) {
        for note in loki::check(file)? {
            complain(&format!("{}: note: {note}", file.display()));
        }
        return Ok(());
    }
    let config = load(Some(file), None, &[], &environment)?;
    for note in &config.notes {
        complain(&format!("{}: note: {note}", file.display()));
    }
    config.alerting.load()?;
    config.tailing.load()?;
    config.sampling.load()?;
    let scrape = config.collector.load()?.scrape;
    config.prometheus.load("", scrape).map(|_| ())
}

pub(crate) fn check(files: &[PathBuf], output: Output) -> Result<ExitCode> {
    let mut failures = Vec::new();
    for f in files {
        match check_one(f) {
            Ok(()) if output == Output::Text => say(&format!("{}: ok", f.display())),
            Ok(()) => {}
            Err(e) => {
                if output == Output::Text {
                    complain(&e.to_string());
                }
                failures.push(e);
            }
        }
    }
    if output == Output::Json {
        let list: Vec<_> = failures.iter().map(|e| serde_json::json!({"file": e.file, "line": e.place.map(|p| p.0), "column": e.place.map(|p| p.1), "message": e.message})).collect();
        say(&serde_json::json!({"ok": failures.is_empty(), "errors": list}).to_string());
    }
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("observatory.yaml");
        std::fs::write(&path, text).unwrap();
        let env = |n: &str| (n == "SET").then(|| "4400".to_owned());
        load(Some(&path), None, &[], &env)
            .map_err(|e| e.to_string().replace(&format!("{}/", dir.path().display()), ""))
    }

    #[test]
    fn a_good_file_is_taken() {
        let c = try_load("data:\n  dir: /x\nlisten:\n  ui: 0.0.0.0:80\n  jaeger: off\n  loki: ${SET}\nlimits:\n  query_timeout: 1m\n").unwrap();
        assert_eq!(c.store.dir, PathBuf::from("/x"));
        let at = |l: Listener| c.listen.iter().find(|(x, _)| *x == l).unwrap().1;
        assert_eq!(at(Listener::Ui), Address::At("0.0.0.0:80".parse().unwrap()));
        assert_eq!(at(Listener::Jaeger), Address::Off);
        assert_eq!(at(Listener::Loki), Address::At("127.0.0.1:4400".parse().unwrap()));
        assert_eq!(c.server.query_timeout, Duration::from_secs(60));
        assert!(try_load("# nothing\n").is_ok());
    }

    #[test]
    fn receivers_of_a_collectors_file_move_listeners() {
        let dir = tempfile::tempdir().unwrap();
        let file = "receivers: {otlp: {protocols: {grpc: {endpoint: '0.0.0.0:4327'}, http: {endpoint: ':4328'}}}, zipkin: {endpoint: 'localhost:9999'}}\nexporters: {debug: }\nextensions: {health_check: }\nservice: {extensions: [health_check], pipelines: {traces: {receivers: [otlp, zipkin], exporters: [debug]}}}\n";
        std::fs::write(dir.path().join("otel.yaml"), file).unwrap();
        let path = dir.path().join("observatory.yaml");
        let text = "collector: {config_file: otel.yaml}\nlisten: {zipkin: 127.0.0.1:9411}\n";
        std::fs::write(&path, text).unwrap();
        let flags = [("otlp-http".to_owned(), "127.0.0.1:5".to_owned())];
        let c = load(Some(&path), None, &flags, &|_| None).unwrap();
        let at = |l: Listener| c.listen.iter().find(|(x, _)| *x == l).unwrap().1;
        let is = |a: &str| Address::At(a.parse().unwrap());
        assert_eq!(at(Listener::OtlpGrpc), is("0.0.0.0:4327"));
        // The command line wins over our own file, and that over the collector's.
        assert_eq!(at(Listener::OtlpHttp), is("127.0.0.1:5"));
        assert_eq!(at(Listener::Zipkin), is("127.0.0.1:9411"));
        assert_eq!(at(Listener::CollectorHealth), is("127.0.0.1:13133"));
        assert_eq!(at(Listener::CollectorMetrics), Address::Off);
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = "a: 1\nbasic_auth:\n  username: u\n  password: p\n  password_file: /x\n- {bearer_token: t, a: b}\npostgres: 'postgres://u:hun:ter@h/db'\nurl: http://u@h:80/\n";
        let shown = redact(text);
        assert!(shown.contains("postgres://u:<secret>@h/db'\nurl: http://u@h:80/\n"), "{shown}");
        assert!(!shown.contains(" p\n") && !shown.contains(" t,"), "{shown}");
        assert!(shown.contains("username: u") && shown.contains("password_file: /x"));
    }

    #[test]
    fn a_wrong_file_says_where_and_what_instead() {
        let cases = [
            (
                "data:\n  dri: /x\n",
                "observatory.yaml:2:3: unknown key \"dri\"; did you mean \"dir\"?",
            ),
            (
                "limitz:\n  x: 1\n",
                "observatory.yaml:1:1: unknown key \"limitz\"; did you mean \"limits\"?",
            ),
            (
                "listen:\n  prometeus: 9\n",
                "observatory.yaml: listen: no listener is called \"prometeus\"; did you mean \"prometheus\"?",
            ),
            ("listen:\n  ui: here\n", "observatory.yaml: listen: \"here\" is no address"),
            (
                "data:\n  dir: ${UNSET}\n",
                "observatory.yaml:2:8: environment variable UNSET is not set",
            ),
            ("limits:\n  query_concurrency: many\n", "observatory.yaml:2:22: "),
            ("grafana: {}\n", "observatory.yaml:1:1: section \"grafana\" is not supported yet"),
            (
                "retention:\n  logs:\n    max_age: soon\n",
                "observatory.yaml: retention.logs.max_age: \"soon\" is no duration",
            ),
            (
                "retention:\n  logs:\n    labels:\n    - {match: 'up +', max_age: 3d}\n",
                "observatory.yaml: retention.logs.labels[0].match: \"up +\" is no selector",
            ),
            (
                "retention:\n  logs:\n    labels:\n    - {match: '{a=\"b\"}', max_age: 0s}\n",
                "observatory.yaml: retention.logs.labels[0].max_age: \"0s\" is no duration",
            ),
            ("data:\n  tier: {url: /x}\n", "observatory.yaml: data.tier.url: \"/x\" is no URL"),
            ("retention:\n  tenants:\n    a/b: {}\n", "observatory.yaml: retention.tenants.a/b. "),
            ("prices:\n  files: [nope.json]\n", "nope.json: cannot be read"),
            ("data: [\n", "observatory.yaml:"),
        ];
        for (text, want) in cases {
            let got = try_load(text).unwrap_err();
            assert!(got.starts_with(want), "{text:?}\n got {got}\nwant {want}");
        }
    }
}
