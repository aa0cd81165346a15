//! The collector's file: components, and the pipelines that `service` makes of them.

use crate::detect::{RawDetection, detect};
use crate::pipeline::{Pipelines, Processor, Signal, Source};
use crate::processors::{
    Action, Matching, RawAction, RawMatch, RawRedaction, RawSpan, Redaction, SpanName, Step,
    filter, transform,
};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a receiver listens: the name of one of our listeners, and an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub listener: &'static str,
    pub address: String,
    /// The path in the file, for errors.
    pub path: String,
}

/// An attribute that becomes a label of span metrics.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dimension {
    pub name: String,
    /// The label's value where a span and its resource have no such attribute.
    pub default: Option<String>,
}

/// Everything a file asks for.
#[derive(Debug, Default)]
pub struct Collector {
    pub endpoints: Vec<Endpoint>,
    /// What is scraped, in the form of a prometheus.yml.
    pub scrape: Option<Value>,
    /// Rules of tail sampling, in the form of the `sampling.tail` section.
    pub tail: Option<Value>,
    /// Share of traces that are kept, from 0 to 1.
    pub share: Option<f64>,
    pub dimensions: Vec<Dimension>,
    pub pipelines: Pipelines,
    /// What is in the file and has no effect here.
    pub notes: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    receivers: Map<String, Value>,
    processors: Map<String, Value>,
    exporters: Map<String, Value>,
    connectors: Map<String, Value>,
    extensions: Map<String, Value>,
    service: RawService,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawService {
    extensions: Option<Vec<String>>,
    pipelines: Map<String, Value>,
    telemetry: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawPipeline {
    receivers: Option<Vec<String>>,
    processors: Option<Vec<String>>,
    exporters: Option<Vec<String>>,
}

/// Exporters that stand for this store.
const STORES: [&str; 15] = [
    "clickhouse",
    "debug",
    "elasticsearch",
    "jaeger",
    "logging",
    "loki",
    "nop",
    "opensearch",
    "otlp",
    "otlp_grpc",
    "otlp_http",
    "otlphttp",
    "prometheus",
    "prometheusremotewrite",
    "zipkin",
];

/// Processors whose work is done here in any case.
const ALWAYS: [&str; 7] = [
    "batch",
    "cost_calculation",
    "deltatocumulative",
    "groupbytrace",
    "llm_enrichment",
    "memory_limiter",
    "token_counting",
];

/// Extensions that change nothing here.
const EXTENSIONS: [&str; 5] = ["file_storage", "health_check", "memory_ballast", "pprof", "zpages"];

/// Parses a Go duration: `1h30m`, `1.5s`, `200ms`.
pub(crate) fn duration_ns(text: &str) -> Option<i64> {
    const UNITS: [(&str, f64); 7] = [
        ("ns", 1.0),
        ("us", 1e3),
        ("µs", 1e3),
        ("ms", 1e6),
        ("s", 1e9),
        ("m", 60e9),
        ("h", 3600e9),
    ];
    let mut rest = text.strip_prefix('-').unwrap_or(text);
    let sign = if rest.len() < text.len() { -1.0 } else { 1.0 };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (name, tail) = tail.split_at(unit);
        total += number.parse::<f64>().ok()? * UNITS.iter().find(|u| u.0 == name)?.1;
        rest = tail;
    }
    (!text.is_empty()).then_some((total * sign) as i64)
}

/// Replaces `${env:NAME}`, `${NAME}` and `${env:NAME:-default}`; `$$` is a dollar. Comments are left
/// alone.
fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    for (number, line) in text.lines().enumerate() {
        let mut rest = line;
        if rest.trim_start().starts_with('#') {
            out.push_str(rest);
            rest = "";
        }
        while let Some(at) = rest.find('$') {
            let (before, tail) = rest.split_at(at);
            out.push_str(before);
            if let Some(after) = tail.strip_prefix("$$") {
                out.push('$');
                rest = after;
            } else if let Some(after) = tail.strip_prefix("${") {
                let fail = |m: &str| format!("line {}: {m}", number + 1);
                let (inside, after) =
                    after.split_once('}').ok_or_else(|| fail("${ is never closed"))?;
                let inside = inside.strip_prefix("env:").unwrap_or(inside);
                let (name, default) =
                    inside.split_once(":-").map_or((inside, None), |(n, d)| (n, Some(d)));
                let value = env(name).or_else(|| default.map(str::to_owned));
                out.push_str(&value.ok_or_else(|| fail(&format!("environment variable {name} is not set; write ${{env:{name}:-default}} to give a default")))?);
                rest = after;
            } else {
                out.push('$');
                rest = tail.get(1..).unwrap_or_default();
            }
        }
        out.push_str(rest);
        out.push('\n');
    }
    Ok(out)
}

/// Returns the kind of a component: its id up to the slash.
fn kind(id: &str) -> &str {
    id.split_once('/').map_or(id, |(k, _)| k)
}

/// Reads a component's settings; one without any has the defaults.
fn settings<T: DeserializeOwned + Default>(v: &Value) -> Result<T, String> {
    if v.is_null() {
        return Ok(T::default());
    }
    serde_json::from_value(v.clone()).map_err(|e| e.to_string())
}

/// What a processor is.
enum Part {
    Steps(Vec<Step>),
    Tail(Value),
    Share(f64),
    Nothing,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawAttributes {
    include: Option<RawMatch>,
    exclude: Option<RawMatch>,
    actions: Vec<RawAction>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawResource {
    attributes: Vec<RawAction>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawSpanProcessor {
    include: Option<RawMatch>,
    exclude: Option<RawMatch>,
    #[serde(flatten)]
    span: Map<String, Value>,
}

/// Turns the collector's settings into ours: durations become seconds, what we do not need goes.
fn tail(v: &Value, notes: &mut Vec<String>) -> Result<Value, String> {
    let mut out = v.as_object().cloned().unwrap_or_default();
    for name in ["expected_new_traces_per_sec", "decision_cache"] {
        out.remove(name);
    }
    let wait = match out.remove("decision_wait") {
        None => 30.0,
        Some(Value::String(s)) => {
            duration_ns(&s).ok_or_else(|| format!("decision_wait: {s:?} is no duration"))? as f64
                / 1e9
        }
        Some(other) => return Err(format!("decision_wait: {other} is no duration")),
    };
    out.insert("decision_wait_seconds".into(), json!(wait));
    if out.remove("sample_on_first_match").is_some() {
        notes.push("tail_sampling.sample_on_first_match: any vote keeps a trace".into());
    }
    Ok(Value::Object(out))
}

fn exported(kind: &str, v: &Value) -> Option<Step> {
    let key = match kind {
        "prometheus" => "const_labels",
        "prometheusremotewrite" => "external_labels",
        _ => return None,
    };
    let namespace = v.get("namespace").and_then(Value::as_str).unwrap_or_default().to_owned();
    let labels = v.get(key).and_then(Value::as_object);
    let text = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
    let labels: Vec<_> = labels.into_iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect();
    (!namespace.is_empty() || !labels.is_empty()).then_some(Step::Exported { namespace, labels })
}

struct Reader<'a> {
    raw: Raw,
    env: &'a dyn Fn(&str) -> Option<String>,
    out: Collector,
    /// Processors that are read, by id.
    parts: BTreeMap<String, Option<Arc<Processor>>>,
    scrapes: Vec<Value>,
}

/// Reads a collector's file.
///
/// # Errors
/// With the path of what cannot be done here.
pub fn read(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<Collector, String> {
    let text = expand(text, env)?;
    // Through JSON: components are read when they are used.
    let value: Value = serde_saphyr::from_str(&text).map_err(|e| {
        let shown = e.without_snippet().to_string();
        shown.lines().next().unwrap_or_default().to_owned()
    })?;
    let value = without_nulls(value);
    let raw: Raw = serde_json::from_value(value).map_err(|e| e.to_string())?;
    if raw.service.pipelines.is_empty() {
        return Err("service must have at least one pipeline".into());
    }
    let mut r =
        Reader { raw, env, out: Collector::default(), parts: BTreeMap::new(), scrapes: Vec::new() };
    let pipelines = std::mem::take(&mut r.raw.service.pipelines);
    let mut used = Vec::new();
    for (id, v) in &pipelines {
        let told = |e: String| format!("service.pipelines.{id}: {e}");
        let p: RawPipeline = settings(v).map_err(told)?;
        r.pipeline(id, &p).map_err(told)?;
        used.extend(p.receivers.into_iter().flatten());
    }
    r.receivers(&used)?;
    r.rest()?;
    Ok(r.out)
}

/// Takes a section that is written and empty for one that is not there.
fn without_nulls(v: Value) -> Value {
    let Value::Object(mut o) = v else { return v };
    o.retain(|_, v| !v.is_null());
    if let Some(Value::Object(service)) = o.get_mut("service") {
        service.retain(|_, v| !v.is_null());
    }
    Value::Object(o)
}

impl Reader<'_> {
    fn note(&mut self, text: String) {
        if !self.out.notes.contains(&text) {
            self.out.notes.push(text);
        }
    }

    fn pipeline(&mut self, id: &str, p: &RawPipeline) -> Result<(), String> {
        let signal = match kind(id) {
            "traces" => Signal::Traces,
            "metrics" => Signal::Metrics,
            "logs" => Signal::Logs,
            other => {
                return Err(format!("{other:?} is not supported; there are traces, metrics, logs"));
            }
        };
        let list = |l: &Option<Vec<String>>| l.clone().unwrap_or_default();
        let (receivers, exporters) = (list(&p.receivers), list(&p.exporters));
        for (what, empty) in
            [("receiver", receivers.is_empty()), ("exporter", exporters.is_empty())]
        {
            if empty {
                return Err(format!("must have at least one {what}"));
            }
        }
        let mut last = None;
        for e in &exporters {
            let step = self.exporter(e)?;
            if signal == Signal::Metrics {
                last = last.or(step);
            }
        }
        let mut chain = Vec::new();
        for id in &list(&p.processors) {
            chain.extend(self.processor(id)?);
        }
        if let Some(step) = last {
            let name = exporters.iter().find(|e| kind(e).starts_with("prometheus"));
            chain.push(Arc::new(Processor::new(name.cloned().unwrap_or_default(), vec![step])));
        }
        for receiver in &receivers {
            if self.raw.connectors.contains_key(receiver) {
                if !chain.is_empty() {
                    self.note(format!(
                        "service.pipelines.{id}: what {receiver} makes is stored as it is made"
                    ));
                }
                continue;
            }
            if !self.raw.receivers.contains_key(receiver) {
                return Err(format!("references receiver {receiver:?} which is not configured"));
            }
            let source = source(receiver)?;
            let same = |a: &[Arc<Processor>], b: &[Arc<Processor>]| {
                a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b))
            };
            match self.out.pipelines.of.get(&(signal, source)) {
                Some(other) if !same(other, &chain) => {
                    return Err(format!(
                        "another pipeline has {receiver} too and other processors: every record is stored once"
                    ));
                }
                _ => {
                    self.out.pipelines.of.insert((signal, source), chain.clone());
                }
            }
        }
        Ok(())
    }

    fn exporter(&mut self, id: &str) -> Result<Option<Step>, String> {
        if let Some(v) = self.raw.connectors.get(id).cloned() {
            self.connector(id, &v).map_err(|e| format!("connectors.{id}: {e}"))?;
            return Ok(None);
        }
        let Some(v) = self.raw.exporters.get(id) else {
            return Err(format!("references exporter {id:?} which is not configured"));
        };
        if !STORES.contains(&kind(id)) {
            return Err(format!(
                "exporters.{id}: this kind is not supported; those that stand for this store are {}",
                STORES.join(", ")
            ));
        }
        let (step, target) = (exported(kind(id), v), v.get("endpoint").and_then(Value::as_str));
        if let Some(target) = target.filter(|_| kind(id) != "prometheus").map(str::to_owned) {
            self.note(format!(
                "exporters.{id}: stands for this store; nothing is sent to {target}"
            ));
        }
        Ok(step)
    }

    fn connector(&mut self, id: &str, v: &Value) -> Result<(), String> {
        let settings = v.as_object().cloned().unwrap_or_default();
        match kind(id) {
            "spanmetrics" => {
                let dimensions = settings.get("dimensions").cloned().unwrap_or_else(|| json!([]));
                self.out.dimensions =
                    serde_json::from_value(dimensions).map_err(|e| format!("dimensions: {e}"))?;
            }
            "servicegraph" => {}
            _ => {
                return Err(
                    "this kind is not supported; there are spanmetrics and servicegraph".into()
                );
            }
        }
        for name in settings.keys().filter(|k| *k != "dimensions") {
            self.note(format!(
                "connectors.{id}.{name} has no effect: docs/traces.md has the series"
            ));
        }
        Ok(())
    }

    fn processor(&mut self, id: &str) -> Result<Option<Arc<Processor>>, String> {
        if let Some(known) = self.parts.get(id) {
            return Ok(known.clone());
        }
        let Some(v) = self.raw.processors.get(id).cloned() else {
            return Err(format!("references processor {id:?} which is not configured"));
        };
        let part = self.part(kind(id), &v).map_err(|e| format!("processors.{id}: {e}"))?;
        let processor = match part {
            Part::Steps(steps) => Some(Arc::new(Processor::new(id.to_owned(), steps))),
            Part::Tail(v) if self.out.tail.is_none() => {
                self.out.tail = Some(v);
                None
            }
            Part::Share(s) if self.out.share.is_none() => {
                self.out.share = Some(s);
                None
            }
            Part::Tail(_) | Part::Share(_) => {
                return Err(format!("processors.{id}: there is another one of this kind"));
            }
            Part::Nothing => None,
        };
        self.parts.insert(id.to_owned(), processor.clone());
        Ok(processor)
    }

    fn part(&mut self, kind: &str, v: &Value) -> Result<Part, String> {
        let actions = |list: Vec<RawAction>| {
            if list.is_empty() {
                return Err("there are no actions".to_owned());
            }
            list.into_iter().map(Action::read).collect::<Result<Vec<_>, _>>()
        };
        Ok(match kind {
            "attributes" => {
                let raw: RawAttributes = settings(v)?;
                let matching = Matching::read(raw.include, raw.exclude)?;
                Part::Steps(vec![Step::Attributes(matching, actions(raw.actions)?)])
            }
            "resource" => {
                let raw: RawResource = settings(v)?;
                Part::Steps(vec![Step::Resource(actions(raw.attributes)?)])
            }
            "resourcedetection" => {
                let (found, replaces) = detect(&settings::<RawDetection>(v)?, self.env)?;
                Part::Steps(vec![Step::Detected(found, replaces)])
            }
            "filter" => Part::Steps(filter(settings(v)?)?),
            "transform" => Part::Steps(transform(settings(v)?)?),
            "span" => {
                let raw: RawSpanProcessor = settings(v)?;
                let matching = Matching::read(raw.include, raw.exclude)?;
                let span: RawSpan = settings(&Value::Object(raw.span))?;
                Part::Steps(vec![Step::SpanName(matching, SpanName::read(span)?)])
            }
            "redaction" => {
                let raw: RawRedaction = settings(v)?;
                Part::Steps(vec![Step::Redact(Redaction::read(raw)?)])
            }
            "pii_redaction" => {
                let more = v.get("custom_patterns").or_else(|| v.get("patterns")).cloned();
                let more: Vec<String> = settings(&more.unwrap_or(Value::Null))?;
                for name in v.as_object().into_iter().flat_map(Map::keys) {
                    if !["custom_patterns", "patterns", "enabled"].contains(&name.as_str()) {
                        self.note(format!(
                            "processors.pii_redaction.{name} has no effect: all patterns are on"
                        ));
                    }
                }
                Part::Steps(vec![Step::Redact(Redaction::personal(&more)?)])
            }
            "probabilistic_sampler" => {
                let percent = v.get("sampling_percentage").and_then(Value::as_f64);
                let percent = percent.filter(|p| (0.0..=100.0).contains(p));
                Part::Share(percent.ok_or("sampling_percentage must be from 0 to 100")? / 100.0)
            }
            "tail_sampling" => Part::Tail(tail(v, &mut self.out.notes)?),
            k if ALWAYS.contains(&k) => Part::Nothing,
            _ => {
                return Err(
                    "this kind is not supported; docs/collector.md lists those that are".into()
                );
            }
        })
    }

    fn receivers(&mut self, used: &[String]) -> Result<(), String> {
        let receivers = std::mem::take(&mut self.raw.receivers);
        for (id, v) in &receivers {
            if !used.contains(id) {
                self.note(format!("receivers.{id} is in no pipeline"));
                continue;
            }
            self.receiver(id, v).map_err(|e| format!("receivers.{id}: {e}"))?;
        }
        // Several receivers scrape one file's worth of jobs.
        let jobs = |v: &Value| v.get("scrape_configs").and_then(Value::as_array).cloned();
        if let Some(first) = self.scrapes.first() {
            let mut all = first.clone();
            let list: Vec<Value> = self.scrapes.iter().filter_map(jobs).flatten().collect();
            if let Some(o) = all.as_object_mut() {
                o.insert("scrape_configs".into(), Value::Array(list));
            }
            self.out.scrape = Some(all);
        }
        Ok(())
    }

    fn receiver(&mut self, id: &str, v: &Value) -> Result<(), String> {
        // Protocol, our listener, and whether it stands directly below the receiver.
        let listeners: &[(&str, &'static str)] = match kind(id) {
            "otlp" => &[("grpc", "otlp-grpc"), ("http", "otlp-http")],
            "jaeger" => &[
                ("grpc", "jaeger-collector-grpc"),
                ("thrift_http", "jaeger-thrift"),
                ("thrift_compact", "jaeger-compact"),
                ("thrift_binary", "jaeger-binary"),
            ],
            "loki" => &[("http", "loki"), ("grpc", "")],
            "zipkin" => return self.endpoint(id, "zipkin", v),
            "prometheus" => {
                let config = v.get("config").ok_or("config is missing")?;
                self.scrapes.push(config.clone());
                return Ok(());
            }
            _ => return Ok(()),
        };
        let protocols = v.get("protocols").and_then(Value::as_object);
        let protocols = protocols.filter(|p| !p.is_empty());
        for (name, p) in protocols.ok_or("must specify at least one protocol")? {
            let Some((_, listener)) = listeners.iter().find(|l| l.0 == name) else {
                return Err(format!("protocols.{name}: there is no such protocol"));
            };
            if listener.is_empty() {
                self.note(format!("receivers.{id}.protocols.{name} is not served"));
                continue;
            }
            self.endpoint(&format!("{id}.protocols.{name}"), listener, p)?;
        }
        Ok(())
    }

    fn endpoint(&mut self, path: &str, listener: &'static str, v: &Value) -> Result<(), String> {
        if v.get("tls").is_some_and(|t| !t.is_null()) {
            return Err("tls: listeners speak without; put a proxy in front".into());
        }
        let Some(address) = v.get("endpoint").and_then(Value::as_str) else { return Ok(()) };
        // Without a host, all of them are meant.
        let address = match address.strip_prefix(':') {
            Some(port) => format!("0.0.0.0:{port}"),
            None => address.to_owned(),
        };
        if let Some(other) = self.out.endpoints.iter().find(|e| e.listener == listener) {
            if other.address != address {
                return Err(format!(
                    "{} listens at {} already: there is one of each kind",
                    other.path, other.address
                ));
            }
            return Ok(());
        }
        let path = format!("receivers.{path}.endpoint");
        self.out.endpoints.push(Endpoint { listener, address, path });
        Ok(())
    }

    /// Extensions, and the collector's own telemetry.
    fn rest(&mut self) -> Result<(), String> {
        for id in self.raw.service.extensions.clone().unwrap_or_default() {
            let Some(v) = self.raw.extensions.get(&id).cloned() else {
                return Err(format!(
                    "service.extensions: references extension {id:?} which is not configured"
                ));
            };
            if !EXTENSIONS.contains(&kind(&id)) {
                return Err(format!(
                    "extensions.{id}: this kind is not supported; there are {}",
                    EXTENSIONS.join(", ")
                ));
            }
            match (kind(&id), v.get("endpoint").and_then(Value::as_str)) {
                ("health_check", address) => {
                    self.own("collector-health", address.unwrap_or("localhost:13133"))
                }
                _ => self.note(format!("extensions.{id} has no effect")),
            }
        }
        if self.out.tail.is_some() && self.out.share.is_some() {
            return Err("processors: tail_sampling and probabilistic_sampler exclude each other; give tail_sampling a policy of type probabilistic".into());
        }
        let metrics = self.raw.service.telemetry.as_ref().and_then(|t| t.get("metrics")).cloned();
        let Some(metrics) = metrics else { return Ok(()) };
        if let Some(address) = metrics.get("address").and_then(Value::as_str) {
            self.own("collector-metrics", address);
        }
        for reader in metrics.get("readers").and_then(Value::as_array).into_iter().flatten() {
            let Some(p) = reader.pointer("/pull/exporter/prometheus") else { continue };
            let host = p.get("host").and_then(Value::as_str).unwrap_or("localhost");
            let port = p.get("port").and_then(Value::as_u64).unwrap_or(8888);
            self.own("collector-metrics", &format!("{host}:{port}"));
        }
        Ok(())
    }

    fn own(&mut self, listener: &'static str, address: &str) {
        let (address, path) = (address.to_owned(), listener.to_owned());
        self.out.endpoints.push(Endpoint { listener, address, path });
    }
}

/// Returns where a receiver's records come from.
fn source(id: &str) -> Result<Source, String> {
    Ok(match kind(id) {
        "otlp" => Source::Otlp,
        "jaeger" => Source::Jaeger,
        "zipkin" => Source::Zipkin,
        "loki" => Source::Loki,
        "prometheus" => Source::Prometheus,
        _ => {
            return Err(format!(
                "receivers.{id}: this kind is not supported; there are otlp, jaeger, zipkin, loki and prometheus"
            ));
        }
    })
}
