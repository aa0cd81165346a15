//! Series derived from spans: rate, errors and duration by operation, and of the calls between
//! services. Names and labels are those of Tempo's generator and of the collector's connector.
//!
//! Sampled spans stand for others: a probability that the trace state carries (`ot=th:…`) counts
//! each for as many.

use crate::derive::{Family, metadata};
use foldhash::HashMap;
use obs_model::{
    Exemplar, Labels, LabelsBuilder, METRIC_NAME, MetricKind, MetricMetadata, Resource, Sample,
    Series, Span, SpanId, SpanKind, StatusCode, TenantId, TimestampMs, TraceId,
};
use std::collections::VecDeque;
use std::sync::Arc;

/// Seconds; powers of two from 2 ms on.
const LATENCY_BUCKETS: [f64; 14] = [
    0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.024, 2.048, 4.096, 8.192,
    16.384,
];
const CALL_BUCKETS: [f64; 8] = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8];
/// Operations of one tenant; spans of more are counted in the last one.
const OPERATIONS_MAX: usize = 2_000;
/// Calls between services of one tenant.
const EDGES_MAX: usize = 2_000;
/// Sides of calls that wait for the other one.
const WAITING_MAX: usize = 10_000;
/// How long they wait.
const WAIT_MS: i64 = 10_000;
/// Series that had no spans for so long are no longer written.
const IDLE_MS: i64 = 15 * 60_000;
/// What operations beyond the limit are called.
const OVERFLOW: &str = "__overflow__";

/// Returns how many spans a sampled one stands for: OpenTelemetry's rejection threshold.
pub fn weight(trace_state: &str) -> f64 {
    if trace_state.is_empty() {
        return 1.0;
    }
    let of_otel = trace_state.split(',').find_map(|m| m.trim().strip_prefix("ot="));
    let threshold = of_otel.and_then(|m| m.split(';').find_map(|f| f.strip_prefix("th:")));
    let Some(hex) = threshold.filter(|t| (1..=14).contains(&t.len())) else { return 1.0 };
    // 56 bits, zeros left out at the end.
    let Ok(t) = u64::from_str_radix(&format!("{hex:0<14}"), 16) else { return 1.0 };
    1.0 / (1.0 - t as f64 / (1_u64 << 56) as f64)
}

#[derive(Debug, Clone)]
struct Histogram {
    bounds: &'static [f64],
    counts: Vec<f64>,
    sum: f64,
    count: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0.0; bounds.len()], sum: 0.0, count: 0.0 }
    }

    fn add(&mut self, v: f64, weight: f64) {
        if let Some(c) = self.counts.get_mut(self.bounds.partition_point(|b| *b < v)) {
            *c += weight;
        }
        self.sum += v * weight;
        self.count += weight;
    }

    fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(a, b)| *a += b);
        self.sum += other.sum;
        self.count += other.count;
    }
}

#[derive(Debug)]
struct Operation {
    /// Label sets of every series, made once.
    series: Vec<Labels>,
    latency: Histogram,
    bytes: f64,
    touched: TimestampMs,
    is_new: bool,
    exemplar: Option<(TraceId, SpanId, f64, TimestampMs)>,
}

#[derive(Debug)]
struct Edge {
    series: Vec<Labels>,
    failed: f64,
    server: Histogram,
    client: Histogram,
    touched: TimestampMs,
    is_new: bool,
}

/// One side of a call.
#[derive(Debug)]
struct Half {
    is_client: bool,
    service: Arc<Resource>,
    seconds: f64,
    failed: bool,
    weight: f64,
    /// Who is called, as the caller names it, and what that is.
    peer: Option<(String, &'static str)>,
    came: TimestampMs,
}

#[derive(Debug, Default)]
struct OfTenant {
    operations: HashMap<Vec<u8>, Operation>,
    edges: HashMap<(String, String, &'static str), Edge>,
    waiting: HashMap<(TraceId, SpanId), Half>,
    order: VecDeque<(TimestampMs, (TraceId, SpanId))>,
    unpaired: f64,
    dropped: f64,
}

/// An attribute that tells operations apart, beside what always does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpanDimension {
    pub attribute: String,
    pub label: String,
    /// The label's value where neither the span nor its resource has the attribute; without one
    /// there is no label then.
    pub default: Option<String>,
}

impl SpanDimension {
    fn value(&self, s: &Span) -> Option<String> {
        let own = s.attributes.get(&self.attribute);
        let v = own.or_else(|| s.resource.attributes.get(&self.attribute));
        v.map(ToString::to_string).or_else(|| self.default.clone())
    }
}

/// Spans of one operation in one request.
#[derive(Debug)]
struct Several {
    /// Any of them: the labels are the same of all.
    service: Arc<Resource>,
    name: String,
    kind: SpanKind,
    status: &'static str,
    /// Labels of the dimensions.
    more: Vec<(String, String)>,
    latency: Histogram,
    bytes: f64,
    /// The last one.
    example: (TraceId, SpanId, f64),
}

/// What is counted of a request's spans, taken before they are stored.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    operations: HashMap<Vec<u8>, Several>,
    calls: Vec<(SpanKind, TraceId, SpanId, Option<SpanId>, Half)>,
}

impl Facts {
    pub(crate) fn of(spans: &[Span], dimensions: &[SpanDimension]) -> Self {
        let mut out = Self::default();
        let mut key = Vec::new();
        for s in spans {
            let seconds = s.duration_ns() as f64 / 1e9;
            let w = weight(&s.trace_state);
            let status = s.status.otlp_name();
            key.clear();
            key.extend_from_slice(s.service().as_bytes());
            key.push(0);
            key.extend_from_slice(s.name.as_bytes());
            key.extend_from_slice(&[0, s.kind.to_otlp() as u8, StatusCode::from(&s.status) as u8]);
            let values = dimensions.iter().map(|d| (d, d.value(s)));
            let more: Vec<_> = values.filter_map(|(d, v)| Some((d.label.clone(), v?))).collect();
            for (label, value) in &more {
                key.extend_from_slice(label.as_bytes());
                key.push(0);
                key.extend_from_slice(value.as_bytes());
                key.push(0);
            }
            if !out.operations.contains_key(key.as_slice()) {
                let new = Several {
                    service: s.resource.clone(),
                    name: s.name.clone(),
                    kind: s.kind,
                    status,
                    more,
                    latency: Histogram::new(&LATENCY_BUCKETS),
                    bytes: 0.0,
                    example: (s.trace_id, s.span_id, seconds),
                };
                out.operations.insert(key.clone(), new);
            }
            if let Some(o) = out.operations.get_mut(key.as_slice()) {
                o.latency.add(seconds, w);
                o.bytes += s.size_bytes() as f64 * w;
                o.example = (s.trace_id, s.span_id, seconds);
            }
            if matches!(s.kind, SpanKind::Unspecified | SpanKind::Internal) {
                continue;
            }
            let is_client = matches!(s.kind, SpanKind::Client | SpanKind::Producer);
            let half = Half {
                is_client,
                service: s.resource.clone(),
                seconds,
                failed: s.status.is_error(),
                weight: w,
                peer: if is_client { peer_of(s) } else { None },
                came: TimestampMs::from_millis(0),
            };
            out.calls.push((s.kind, s.trace_id, s.span_id, s.parent_id, half));
        }
        out
    }
}

/// Counts spans of all tenants.
#[derive(Debug, Default)]
pub(crate) struct Red {
    tenants: HashMap<TenantId, OfTenant>,
    last_tick: TimestampMs,
}

fn labels(name: &str, pairs: &[(&str, &str)], le: Option<&str>) -> Labels {
    let mut b = LabelsBuilder::default();
    b.set(METRIC_NAME, name);
    for (n, v) in pairs {
        b.set(n, v);
    }
    if let Some(le) = le {
        b.set("le", le);
    }
    b.build()
}

/// Appends the label sets of a histogram: its buckets, count and sum.
fn histogram_series(
    out: &mut Vec<Labels>,
    name: &str,
    pairs: &[(&str, &str)],
    bounds: &[f64],
    scale: f64,
) {
    let bounds = bounds.iter().map(|b| (b * scale).to_string()).chain(["+Inf".to_owned()]);
    out.extend(bounds.map(|b| labels(&format!("{name}_bucket"), pairs, Some(&b))));
    out.push(labels(&format!("{name}_count"), pairs, None));
    out.push(labels(&format!("{name}_sum"), pairs, None));
}

/// Appends a histogram's values, in the order of [`histogram_series`].
fn histogram_values(out: &mut Vec<f64>, h: &Histogram, scale: f64) {
    let mut seen = 0.0;
    for c in &h.counts {
        seen += c;
        out.push(seen);
    }
    out.extend([h.count, h.count, h.sum * scale]);
}

impl Operation {
    fn new(of: &Several, name: &str) -> Self {
        let (service, kind, status) = (of.service.service(), of.kind.otlp_name(), of.status);
        let own = [("span_name", name), ("span_kind", kind), ("status_code", status)];
        let more = of.more.iter().map(|(n, v)| (n.as_str(), v.as_str()));
        let pairs = |first| -> Vec<(&str, &str)> {
            // What always tells operations apart wins over a dimension of its name.
            more.clone().chain([(first, service)]).chain(own).collect()
        };
        let (tempo, collector) = (pairs("service"), pairs("service_name"));
        let mut series = vec![
            labels("traces_spanmetrics_calls_total", &tempo, None),
            labels("traces_spanmetrics_size_total", &tempo, None),
            labels("traces_span_metrics_calls_total", &collector, None),
        ];
        histogram_series(&mut series, "traces_spanmetrics_latency", &tempo, &LATENCY_BUCKETS, 1.0);
        histogram_series(
            &mut series,
            "traces_span_metrics_duration_milliseconds",
            &collector,
            &LATENCY_BUCKETS,
            1000.0,
        );
        Self {
            series,
            latency: Histogram::new(&LATENCY_BUCKETS),
            bytes: 0.0,
            touched: TimestampMs::from_millis(0),
            is_new: true,
            exemplar: None,
        }
    }

    fn values(&self) -> Vec<f64> {
        let calls = self.latency.count;
        let mut out = vec![calls, self.bytes, calls];
        histogram_values(&mut out, &self.latency, 1.0);
        histogram_values(&mut out, &self.latency, 1000.0);
        out
    }

    /// Returns the series of the bucket that a value falls into, in both families.
    fn buckets_of(&self, seconds: f64) -> [(Option<&Labels>, f64); 2] {
        let at = LATENCY_BUCKETS.partition_point(|b| *b < seconds);
        let one = LATENCY_BUCKETS.len() + 3;
        [(self.series.get(3 + at), seconds), (self.series.get(3 + one + at), seconds * 1000.0)]
    }
}

impl Edge {
    fn new(client: &str, server: &str, connection: &str) -> Self {
        let pairs = [("client", client), ("server", server), ("connection_type", connection)];
        let mut series = vec![
            labels("traces_service_graph_request_total", &pairs, None),
            labels("traces_service_graph_request_failed_total", &pairs, None),
        ];
        for side in ["server", "client"] {
            let name = format!("traces_service_graph_request_{side}_seconds");
            histogram_series(&mut series, &name, &pairs, &CALL_BUCKETS, 1.0);
        }
        Self {
            series,
            failed: 0.0,
            server: Histogram::new(&CALL_BUCKETS),
            client: Histogram::new(&CALL_BUCKETS),
            touched: TimestampMs::from_millis(0),
            is_new: true,
        }
    }

    fn values(&self) -> Vec<f64> {
        let calls = self.server.count.max(self.client.count);
        let mut out = vec![calls, self.failed];
        histogram_values(&mut out, &self.server, 1.0);
        histogram_values(&mut out, &self.client, 1.0);
        out
    }
}

/// Returns whom a client calls, as far as its attributes tell: a database or queue, a provider of
/// models, a tool, a peer.
fn peer_of(s: &Span) -> Option<(String, &'static str)> {
    let first = |keys: &[&str]| keys.iter().find_map(|k| s.attributes.get_str(k));
    if let Some(system) = first(&["db.system.name", "db.system"]) {
        let name = first(&["peer.service", "db.namespace", "db.name"]).unwrap_or(system);
        return Some((name.to_owned(), "database"));
    }
    if let Some(system) = first(&["messaging.system"]) {
        return Some((system.to_owned(), "messaging_system"));
    }
    if let Some(provider) = first(&["gen_ai.provider.name", "gen_ai.system"]) {
        return Some((provider.to_owned(), "virtual_node"));
    }
    if let Some(tool) = first(&["gen_ai.tool.name", "mcp.tool.name"]) {
        return Some((tool.to_owned(), "virtual_node"));
    }
    let peer = first(&["peer.service", "server.address", "net.peer.name", "http.host"])?;
    Some((peer.to_owned(), "virtual_node"))
}

impl OfTenant {
    fn observe(&mut self, facts: Facts, now: TimestampMs) {
        for (key, of) in facts.operations {
            let is_full = self.operations.len() >= OPERATIONS_MAX;
            let is_new = is_full && !self.operations.contains_key(&key);
            let (key, name) = if is_new {
                (OVERFLOW.as_bytes().to_vec(), OVERFLOW)
            } else {
                (key, of.name.as_str())
            };
            let o = self.operations.entry(key).or_insert_with(|| Operation::new(&of, name));
            o.latency.merge(&of.latency);
            o.bytes += of.bytes;
            o.touched = now;
            let (trace, span, seconds) = of.example;
            o.exemplar = Some((trace, span, seconds, now));
        }
        for (kind, trace, span, parent, half) in facts.calls {
            self.call(kind, trace, span, parent, Half { came: now, ..half }, now);
        }
    }

    fn call(
        &mut self,
        kind: SpanKind,
        trace: TraceId,
        span: SpanId,
        parent: Option<SpanId>,
        half: Half,
        now: TimestampMs,
    ) {
        let is_client = half.is_client;
        let key = match parent {
            _ if is_client => (trace, span),
            Some(p) => (trace, p),
            None => {
                if kind == SpanKind::Server {
                    self.complete("user", None, half, "virtual_node", now);
                }
                return;
            }
        };
        // Nothing answers for a database.
        if is_client && matches!(half.peer, Some((_, "database"))) {
            self.alone(half, now);
            return;
        }
        match self.waiting.remove(&key) {
            Some(other) if other.is_client != is_client => {
                let (client, server) = if is_client { (half, other) } else { (other, half) };
                let queue = matches!(kind, SpanKind::Consumer | SpanKind::Producer);
                let connection = if queue { "messaging_system" } else { "" };
                let resource = client.service.clone();
                self.complete(resource.service(), Some(client), server, connection, now);
            }
            // Several servers below one client: only one of them is paired.
            Some(other) => {
                self.dropped += half.weight;
                self.waiting.insert(key, other);
            }
            None if self.waiting.len() >= WAITING_MAX => self.dropped += half.weight,
            None => {
                self.waiting.insert(key, half);
                self.order.push_back((now, key));
            }
        }
    }

    /// Counts a client's side for which no server came.
    fn alone(&mut self, half: Half, now: TimestampMs) {
        let Some((peer, connection)) = half.peer else {
            self.unpaired += half.weight;
            return;
        };
        self.edge(half.service.service(), &peer, connection, now, |e| {
            e.client.add(half.seconds, half.weight);
            e.failed += if half.failed { half.weight } else { 0.0 };
        });
    }

    fn complete(
        &mut self,
        client: &str,
        of_client: Option<Half>,
        server: Half,
        connection: &'static str,
        now: TimestampMs,
    ) {
        self.edge(client, server.service.service(), connection, now, |e| {
            e.server.add(server.seconds, server.weight);
            let mut failed = server.failed;
            if let Some(c) = &of_client {
                e.client.add(c.seconds, c.weight);
                failed |= c.failed;
            }
            e.failed += if failed { server.weight } else { 0.0 };
        });
    }

    fn edge(
        &mut self,
        client: &str,
        server: &str,
        connection: &'static str,
        now: TimestampMs,
        f: impl FnOnce(&mut Edge),
    ) {
        let is_full = self.edges.len() >= EDGES_MAX;
        let key = (client.to_owned(), server.to_owned(), connection);
        if is_full && !self.edges.contains_key(&key) {
            self.dropped += 1.0;
            return;
        }
        let new = || Edge::new(&key.0, &key.1, connection);
        let edge = self.edges.entry(key.clone()).or_insert_with(new);
        edge.touched = now;
        f(edge);
    }

    fn expire(&mut self, now: TimestampMs) {
        let before = now.add_millis(-WAIT_MS);
        while let Some((came, key)) = self.order.front().copied().filter(|(t, _)| *t <= before) {
            self.order.pop_front();
            // A later span of the same key waits from its own time on.
            if self.waiting.get(&key).is_some_and(|h| h.came <= came)
                && let Some(half) = self.waiting.remove(&key)
            {
                self.alone(half, now);
            }
        }
    }
}

fn emit(
    out: &mut Vec<Series>,
    series: &[Labels],
    values: Vec<f64>,
    is_new: bool,
    (before, now): (TimestampMs, TimestampMs),
) {
    for (labels, value) in series.iter().zip(values) {
        let mut samples = Vec::with_capacity(2);
        if is_new {
            // So that an increase sees the first value.
            samples.push(Sample::float(before.millis(), 0.0));
        }
        samples.push(Sample::float(now.millis(), value));
        out.push(Series { labels: labels.clone(), samples });
    }
}

/// Series with an exemplar.
pub(crate) type Pointed = Vec<(Labels, Exemplar)>;

/// What one tenant's counters are at a tick.
#[derive(Debug)]
pub(crate) struct Emitted {
    pub(crate) tenant: TenantId,
    pub(crate) series: Vec<Series>,
    pub(crate) metadata: Vec<MetricMetadata>,
    pub(crate) exemplars: Pointed,
}

impl Red {
    pub(crate) fn observe(&mut self, tenant: &TenantId, facts: Facts, now: TimestampMs) {
        if facts.operations.is_empty() {
            return;
        }
        if !self.tenants.contains_key(tenant) {
            self.tenants.insert(tenant.clone(), OfTenant::default());
        }
        if let Some(t) = self.tenants.get_mut(tenant) {
            t.observe(facts, now);
        }
    }

    pub(crate) fn tick(&mut self, now: TimestampMs) -> Vec<Emitted> {
        let before = self.last_tick.max(now.add_millis(-60_000)).min(now.add_millis(-1));
        self.last_tick = now;
        let times = (before, now);
        let idle = now.add_millis(-IDLE_MS);
        let mut out = Vec::new();
        for (tenant, t) in &mut self.tenants {
            t.expire(now);
            t.operations.retain(|_, o| o.touched >= idle);
            t.edges.retain(|_, e| e.touched >= idle);
            let mut series = Vec::new();
            let mut exemplars = Vec::new();
            for o in t.operations.values_mut() {
                let is_new = std::mem::take(&mut o.is_new);
                emit(&mut series, &o.series, o.values(), is_new, times);
                if let Some((trace, span, seconds, at)) = o.exemplar.take() {
                    let labels = Labels::from_pairs([
                        ("trace_id", trace.to_string()),
                        ("span_id", span.to_string()),
                    ]);
                    for (bucket, value) in o.buckets_of(seconds) {
                        let timestamp_ms = Some(at.millis());
                        let e = Exemplar { labels: labels.clone(), value, timestamp_ms };
                        exemplars.extend(bucket.map(|b| (b.clone(), e)));
                    }
                }
            }
            for e in t.edges.values_mut() {
                let is_new = std::mem::take(&mut e.is_new);
                emit(&mut series, &e.series, e.values(), is_new, times);
            }
            if series.is_empty() {
                continue;
            }
            for (name, value) in [
                ("traces_service_graph_unpaired_spans_total", t.unpaired),
                ("traces_service_graph_dropped_spans_total", t.dropped),
            ] {
                let series_of = [labels(name, &[], None)];
                emit(&mut series, &series_of, vec![value], false, times);
            }
            out.push(Emitted {
                tenant: tenant.clone(),
                series,
                metadata: metadata(&FAMILIES),
                exemplars,
            });
        }
        out
    }
}

const FAMILIES: [Family; 9] = [
    ("traces_spanmetrics_calls_total", MetricKind::Counter, "Spans by operation."),
    ("traces_spanmetrics_size_total", MetricKind::Counter, "Bytes of spans by operation."),
    ("traces_spanmetrics_latency", MetricKind::Histogram, "Duration of spans, seconds."),
    ("traces_span_metrics_calls_total", MetricKind::Counter, "Spans by operation."),
    (
        "traces_span_metrics_duration_milliseconds",
        MetricKind::Histogram,
        "Duration of spans, milliseconds.",
    ),
    ("traces_service_graph_request_total", MetricKind::Counter, "Calls between two services."),
    (
        "traces_service_graph_request_failed_total",
        MetricKind::Counter,
        "Failed calls between two services.",
    ),
    (
        "traces_service_graph_request_server_seconds",
        MetricKind::Histogram,
        "Duration of calls as the server saw them, seconds.",
    ),
    (
        "traces_service_graph_request_client_seconds",
        MetricKind::Histogram,
        "Duration of calls as the client saw them, seconds.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use obs_model::{Attributes, SpanStatus, TimestampNs};

    fn span(id: u8, parent: u8, service: &str, kind: SpanKind, ms: i64) -> Span {
        Span {
            trace_id: TraceId::from_slice(&[1; 16]).unwrap(),
            span_id: SpanId::from_slice(&[id; 8]).unwrap(),
            parent_id: SpanId::from_slice(&[parent; 8]),
            name: "op".into(),
            kind,
            start: TimestampNs::from_nanos(0),
            end: TimestampNs::from_nanos(ms * 1_000_000),
            status: SpanStatus::Unset,
            trace_state: String::new(),
            attributes: Attributes::default(),
            events: vec![],
            links: vec![],
            resource: Arc::new(Resource {
                attributes: Attributes::from_iter([("service.name", service)]),
            }),
            scope: Arc::default(),
        }
    }

    fn at(ms: i64) -> TimestampMs {
        TimestampMs::from_millis(ms)
    }

    fn value(out: &[Emitted], name: &str, pairs: &[(&str, &str)]) -> Option<f64> {
        let is =
            |l: &Labels| l.get(METRIC_NAME) == name && pairs.iter().all(|(n, v)| l.get(n) == *v);
        let all = out.iter().flat_map(|e| &e.series);
        let found = all.into_iter().find(|s| is(&s.labels))?;
        found.samples.last().and_then(|s| match s.value {
            obs_model::SampleValue::Float(f) => Some(f),
            obs_model::SampleValue::Histogram(_) => None,
        })
    }

    #[test]
    fn spans_become_series_of_both_families() {
        let mut red = Red::default();
        let t = TenantId::default();
        let mut sampled = span(2, 1, "shop", SpanKind::Internal, 5);
        // A quarter was kept.
        sampled.trace_state = "ot=th:c".into();
        let spans = [span(1, 0, "shop", SpanKind::Internal, 3), sampled];
        red.observe(&t, Facts::of(&spans, &[]), at(1_000));
        let out = red.tick(at(5_000));
        let of = |name: &str, le: &str| value(&out, name, &[("span_name", "op"), ("le", le)]);
        assert_eq!(of("traces_spanmetrics_calls_total", ""), Some(5.0));
        assert_eq!(of("traces_spanmetrics_latency_bucket", "0.004"), Some(1.0));
        assert_eq!(of("traces_spanmetrics_latency_bucket", "0.008"), Some(5.0));
        assert_eq!(of("traces_spanmetrics_latency_sum", "").map(|v| (v * 1e3).round()), Some(23.0));
        assert_eq!(of("traces_span_metrics_duration_milliseconds_bucket", "4"), Some(1.0));
        let kind = [("service_name", "shop"), ("span_kind", "SPAN_KIND_INTERNAL")];
        assert_eq!(value(&out, "traces_span_metrics_calls_total", &kind), Some(5.0));
        assert_eq!(out[0].exemplars.len(), 2);
        assert_eq!(out[0].exemplars[0].0.get("le"), "0.008");
        assert_eq!(out[0].exemplars[1].0.get("le"), "8");
    }

    #[test]
    fn failed_spans_are_counted_apart_from_others_of_the_operation() {
        let mut red = Red::default();
        let t = TenantId::default();
        let with = |status: SpanStatus| Span { status, ..span(1, 0, "s", SpanKind::Internal, 1) };
        let spans = [
            with(SpanStatus::Unset),
            with(SpanStatus::Error("no".into())),
            with(SpanStatus::Ok),
            with(SpanStatus::Unset),
        ];
        red.observe(&t, Facts::of(&spans, &[]), at(1));
        let out = red.tick(at(2));
        let calls = |status: &str| {
            value(&out, "traces_spanmetrics_calls_total", &[("status_code", status)])
        };
        assert_eq!(calls("STATUS_CODE_UNSET"), Some(2.0));
        assert_eq!(calls("STATUS_CODE_ERROR"), Some(1.0));
        assert_eq!(calls("STATUS_CODE_OK"), Some(1.0));
    }

    #[test]
    fn calls_are_paired_whichever_side_comes_first() {
        let mut red = Red::default();
        let t = TenantId::default();
        let mut db = span(5, 3, "pay", SpanKind::Client, 2);
        db.attributes.push("db.system", "postgresql");
        let mut llm = span(6, 3, "pay", SpanKind::Client, 900);
        llm.attributes.push("gen_ai.provider.name", "openai");
        llm.status = SpanStatus::Error(String::new());
        let spans = [
            span(1, 0, "shop", SpanKind::Server, 100),
            span(2, 1, "shop", SpanKind::Client, 80),
            span(3, 2, "pay", SpanKind::Server, 60),
            db,
            llm,
            span(8, 7, "late", SpanKind::Server, 1),
            span(7, 3, "pay", SpanKind::Client, 2),
            span(9, 3, "pay", SpanKind::Client, 2),
        ];
        red.observe(&t, Facts::of(&spans, &[]), at(1_000));
        let out = red.tick(at(20_000));
        let calls = |client: &str, server: &str, connection: &str| {
            let pairs = [("client", client), ("server", server), ("connection_type", connection)];
            value(&out, "traces_service_graph_request_total", &pairs)
        };
        assert_eq!(calls("user", "shop", "virtual_node"), Some(1.0));
        assert_eq!(calls("shop", "pay", ""), Some(1.0));
        assert_eq!(calls("pay", "postgresql", "database"), Some(1.0));
        assert_eq!(calls("pay", "openai", "virtual_node"), Some(1.0));
        assert_eq!(calls("pay", "late", ""), Some(1.0));
        let failed = [("client", "pay"), ("server", "openai")];
        assert_eq!(value(&out, "traces_service_graph_request_failed_total", &failed), Some(1.0));
        assert_eq!(value(&out, "traces_service_graph_unpaired_spans_total", &[]), Some(1.0));
        let seconds = [("client", "shop"), ("server", "pay"), ("le", "0.1")];
        let bucket = "traces_service_graph_request_client_seconds_bucket";
        assert_eq!(value(&out, bucket, &seconds), Some(1.0));
    }

    #[test]
    fn weights_are_those_of_the_threshold() {
        for (state, want) in [
            ("", 1.0),
            ("ot=th:0", 1.0),
            ("ot=th:8", 2.0),
            ("x=y, ot=rv:1;th:c", 4.0),
            ("ot=th:zz", 1.0),
            ("ot=th:fd70a3d70a3d71", 100.0),
        ] {
            assert!((weight(state) - want).abs() < 1e-6 * want, "{state}: {}", weight(state));
        }
    }

    #[test]
    fn operations_beyond_the_limit_are_counted_together() {
        let mut red = Red::default();
        let t = TenantId::default();
        for i in 0..OPERATIONS_MAX + 50 {
            let mut s = span(1, 0, "s", SpanKind::Internal, 1);
            s.name = format!("op {i}");
            red.observe(&t, Facts::of(&[s], &[]), at(1));
        }
        let out = red.tick(at(2));
        let rest = [("span_name", OVERFLOW)];
        assert_eq!(value(&out, "traces_spanmetrics_calls_total", &rest), Some(50.0));
    }
}
