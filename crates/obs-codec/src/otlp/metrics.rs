//! Metrics as Prometheus series.
//!
//! Explicit-bucket histograms become classic `_bucket`, `_sum`, `_count` series, exponential ones
//! native histograms, summaries quantile series. Resources become `job`, `instance`, a few
//! promoted labels and `target_info`.

use super::common::{attributes, resource};
use super::names::{Kind, Naming, Promoted};
use crate::{Decoded, Rejected};
use obs_model::{
    Attributes, CUSTOM_BUCKETS_SCHEMA, Exemplar, Histogram, Labels, LabelsBuilder, METRIC_NAME,
    MetricKind, MetricMetadata, Resource, STALE_NAN_BITS, Sample, SampleValue, Series, TimestampMs,
};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::exemplar::Value as ExemplarValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as NumberValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Exemplar as WireExemplar, ExponentialHistogramDataPoint,
    HistogramDataPoint, Metric, NumberDataPoint, SummaryDataPoint,
};
use prost::Message;
use std::collections::BTreeMap;
use std::sync::Arc;

/// OTLP's flag of a point without a value.
const NO_RECORDED_VALUE: u32 = 1;
/// The finest resolution that native histograms have.
const SCHEMA_MAX: i32 = 8;
const SCHEMA_MIN: i32 = -4;

/// Returns the label set whose key is given; makes it when it is not known, and says why it is
/// refused.
pub type Resolve<'a> =
    &'a dyn Fn(&[u8], &dyn Fn() -> Result<Labels, String>) -> Result<Labels, String>;

/// The samples of a request.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Metrics {
    /// Gauges and cumulative points.
    pub points: Vec<(Labels, Sample)>,
    /// Delta points: each sample is an increment since the one before.
    pub deltas: Vec<Series>,
    pub metadata: Vec<MetricMetadata>,
    pub exemplars: Vec<(Labels, Exemplar)>,
}

/// Turns an exemplar into Prometheus' form: the ids of its span are labels beside what was filtered
/// from the point's attributes.
fn exemplar(e: WireExemplar, names: &Naming) -> Option<Exemplar> {
    let hex = |id: &[u8]| id.iter().fold(String::new(), |out, b| out + &format!("{b:02x}"));
    let value = match e.value? {
        ExemplarValue::AsDouble(d) => d,
        ExemplarValue::AsInt(i) => i as f64,
    };
    let mut pairs: Vec<(String, String)> = Vec::new();
    for a in e.filtered_attributes {
        for (name, v) in attributes(vec![a]).iter() {
            pairs.push((names.label(name), v.to_string()));
        }
    }
    for (name, id) in [("trace_id", &e.trace_id), ("span_id", &e.span_id)] {
        if !id.is_empty() {
            pairs.push((name.to_owned(), hex(id)));
        }
    }
    let timestamp_ms = time(e.time_unix_nano).map(TimestampMs::millis);
    Some(Exemplar { labels: Labels::from_pairs(pairs), value, timestamp_ms })
}

struct Builder<'a> {
    out: Metrics,
    rejected: Rejected,
    resolve: Resolve<'a>,
    naming: &'a Naming,
    /// Labels of the current resource.
    base: Vec<(String, String)>,
    /// What the current point's label sets depend on beside name and bucket, and the same with
    /// these; see [`Resolve`].
    key: Vec<u8>,
    /// Labels of the resource alone, and bytes of their key.
    resource_lens: (usize, usize),
    base_len: usize,
    point_len: usize,
}

/// A label that tells the series of one point apart.
#[derive(Clone, Copy)]
enum Extra {
    None,
    Le(f64),
    Quantile(f64),
}

impl Extra {
    fn label(self) -> Option<(&'static str, String)> {
        match self {
            Self::None => None,
            Self::Le(f64::INFINITY) => Some(("le", "+Inf".into())),
            Self::Le(b) => Some(("le", b.to_string())),
            Self::Quantile(q) => Some(("quantile", q.to_string())),
        }
    }

    fn put(self, key: &mut Vec<u8>) {
        let (kind, v) = match self {
            Self::None => (0, 0.0),
            Self::Le(b) => (1, b),
            Self::Quantile(q) => (2, q),
        };
        key.push(kind);
        key.extend_from_slice(&v.to_bits().to_le_bytes());
    }
}

fn put_text(key: &mut Vec<u8>, text: &str) {
    key.extend_from_slice(&(text.len() as u32).to_le_bytes());
    key.extend_from_slice(text.as_bytes());
}

/// Converts a request. Points without a valid time or of unspecified temporality are refused.
pub fn decode_metrics(
    request: ExportMetricsServiceRequest,
    naming: &Naming,
    resolve: Resolve<'_>,
) -> Decoded<Metrics> {
    let mut b = Builder {
        out: Metrics::default(),
        rejected: Rejected::default(),
        resolve,
        naming,
        base: Vec::new(),
        key: Vec::new(),
        resource_lens: (0, 0),
        base_len: 0,
        point_len: 0,
    };
    let mut metadata = BTreeMap::new();
    for rm in request.resource_metrics {
        let resource = resource(rm.resource);
        b.begin_resource(&resource);
        let mut latest = None;
        for sm in rm.scope_metrics {
            b.begin_scope(sm.scope, &sm.schema_url);
            for metric in sm.metrics {
                if let Some(m) = b.metric(metric, &mut latest) {
                    metadata.insert(m.name.clone(), m);
                }
            }
        }
        if let Some(time) = latest {
            b.begin_scope(None, "");
            b.target_info(&resource, time);
        }
    }
    b.out.metadata = metadata.into_values().collect();
    Decoded { items: b.out, rejected: b.rejected }
}

fn resource_labels(r: &Resource, naming: &Naming) -> Vec<(String, String)> {
    let get = |k: &str| r.attributes.get(k).map(ToString::to_string).filter(|v| !v.is_empty());
    let mut out = Vec::new();
    if let Some(name) = get("service.name") {
        let job =
            get("service.namespace").map_or_else(|| name.clone(), |ns| format!("{ns}/{name}"));
        out.push(("job".to_owned(), job));
    }
    if let Some(instance) = get("service.instance.id") {
        out.push(("instance".to_owned(), instance));
    }
    let label = |k: &str| Some((naming.label(k), get(k)?));
    match &naming.promoted {
        Promoted::These(keys) => out.extend(keys.iter().filter_map(|k| label(k))),
        Promoted::AllBut(keys) => {
            let all = r.attributes.iter().map(|(k, _)| k);
            out.extend(all.filter(|k| !keys.contains(k)).filter_map(|k| label(k)));
        }
    }
    out
}

fn time(ns: u64) -> Option<TimestampMs> {
    i64::try_from(ns / 1_000_000).ok().filter(|ms| *ms > 0).map(TimestampMs::from_millis)
}

/// Builds a label set: of the resource, of the point, and one more.
fn build_labels(
    names: &Naming,
    base: &[(String, String)],
    name: &str,
    point: &Attributes,
    extra: Option<(&str, String)>,
) -> Labels {
    let mut b = LabelsBuilder::default();
    for (k, v) in base {
        b.set(k, v);
    }
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    for (k, v) in point.iter() {
        let text = v.to_string();
        // Keys that become one name share it, joined as the specification says.
        seen.entry(names.label(k)).and_modify(|old| *old = format!("{old};{text}")).or_insert(text);
    }
    for (k, v) in &seen {
        b.set(k, v);
    }
    if let Some((k, v)) = extra {
        b.set(k, &v);
    }
    b.set(METRIC_NAME, name);
    b.build()
}

impl Builder<'_> {
    fn begin_resource(&mut self, r: &Resource) {
        self.base = resource_labels(r, self.naming);
        self.key.clear();
        // No other protocol's keys begin with it; after a reload names may be others.
        self.key.push(0);
        self.key.extend(self.naming.mark());
        for (k, v) in &self.base {
            put_text(&mut self.key, k);
            put_text(&mut self.key, v);
        }
        self.resource_lens = (self.base.len(), self.key.len());
        self.base_len = self.key.len();
    }

    /// Adds the labels of a scope to those of the resource, in place of the last one's.
    fn begin_scope(&mut self, scope: Option<InstrumentationScope>, schema_url: &str) {
        self.base.truncate(self.resource_lens.0);
        self.key.truncate(self.resource_lens.1);
        if let Some(scope) = scope.filter(|s| self.naming.scopes && !s.name.is_empty()) {
            let fixed = [("name", scope.name.as_str()), ("version", &scope.version)];
            let fixed = fixed.into_iter().chain([("schema_url", schema_url)]);
            for (name, v) in fixed.filter(|(_, v)| !v.is_empty()) {
                self.base.push((format!("otel_scope_{name}"), v.to_owned()));
            }
            for (k, v) in attributes(scope.attributes).iter() {
                let name = self.naming.label(&format!("otel_scope_{k}"));
                self.base.push((name, v.to_string()));
            }
            for (k, v) in self.base.iter().skip(self.resource_lens.0) {
                put_text(&mut self.key, k);
                put_text(&mut self.key, v);
            }
        }
        self.base_len = self.key.len();
    }

    fn begin_point(&mut self, list: &[KeyValue]) {
        self.key.truncate(self.base_len);
        self.key.push(1);
        for kv in list {
            put_text(&mut self.key, &kv.key);
            match kv.value.as_ref().and_then(|v| v.value.as_ref()) {
                Some(Value::StringValue(s)) => {
                    self.key.push(1);
                    put_text(&mut self.key, s);
                }
                _ => {
                    let bytes = kv.value.as_ref().map(Message::encode_to_vec).unwrap_or_default();
                    self.key.push(2);
                    self.key.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
                    self.key.extend_from_slice(&bytes);
                }
            }
        }
        self.point_len = self.key.len();
    }

    /// Returns the label set of the current point's series `name` + `suffix`.
    fn labels(
        &mut self,
        name: &str,
        suffix: &str,
        list: &[KeyValue],
        extra: Extra,
    ) -> Option<Labels> {
        self.key.truncate(self.point_len);
        put_text(&mut self.key, name);
        put_text(&mut self.key, suffix);
        extra.put(&mut self.key);
        let (base, names) = (&self.base, self.naming);
        let build = || {
            let name = format!("{name}{suffix}");
            Ok(build_labels(names, base, &name, &attributes(list.to_vec()), extra.label()))
        };
        match (self.resolve)(&self.key, &build) {
            Ok(l) => Some(l),
            Err(reason) => {
                self.rejected.add(reason);
                None
            }
        }
    }

    fn push(
        &mut self,
        labels: Option<Labels>,
        timestamp: TimestampMs,
        value: SampleValue,
        delta: bool,
    ) {
        let Some(labels) = labels else { return };
        let sample = Sample { timestamp, value };
        if delta {
            self.out.deltas.push(Series { labels, samples: vec![sample] });
        } else {
            self.out.points.push((labels, sample));
        }
    }

    fn metric(&mut self, m: Metric, latest: &mut Option<TimestampMs>) -> Option<MetricMetadata> {
        if m.name.is_empty() {
            self.rejected.add("metric has no name");
            return None;
        }
        let names = self.naming.translation;
        let mut note = |t: TimestampMs| *latest = Some(latest.map_or(t, |l| l.max(t)));
        let (kind, name) = match m.data {
            None => return None,
            Some(Data::Gauge(g)) => {
                let name = names.metric(&m.name, &m.unit, Kind::Gauge);
                for p in g.data_points {
                    self.number(&name, p, false, &mut note);
                }
                (MetricKind::Gauge, name)
            }
            Some(Data::Sum(s)) => {
                let kind = if s.is_monotonic { Kind::Counter } else { Kind::Gauge };
                let name = names.metric(&m.name, &m.unit, kind);
                let delta = self.is_delta(s.aggregation_temporality, s.data_points.len())?;
                for p in s.data_points {
                    self.number(&name, p, delta, &mut note);
                }
                (if s.is_monotonic { MetricKind::Counter } else { MetricKind::Gauge }, name)
            }
            Some(Data::Histogram(h)) => {
                let name = names.metric(&m.name, &m.unit, Kind::Other);
                let delta = self.is_delta(h.aggregation_temporality, h.data_points.len())?;
                for p in h.data_points {
                    self.histogram(&name, p, delta, &mut note);
                }
                (MetricKind::Histogram, name)
            }
            Some(Data::ExponentialHistogram(h)) => {
                let name = names.metric(&m.name, &m.unit, Kind::Other);
                let delta = self.is_delta(h.aggregation_temporality, h.data_points.len())?;
                for p in h.data_points {
                    self.exponential(&name, p, delta, &mut note);
                }
                (MetricKind::Histogram, name)
            }
            Some(Data::Summary(s)) => {
                let name = names.metric(&m.name, &m.unit, Kind::Other);
                for p in s.data_points {
                    self.summary(&name, p, &mut note);
                }
                (MetricKind::Summary, name)
            }
        };
        Some(MetricMetadata { name, kind, help: m.description, unit: m.unit })
    }

    fn is_delta(&mut self, temporality: i32, points: usize) -> Option<bool> {
        match AggregationTemporality::try_from(temporality) {
            Ok(AggregationTemporality::Delta) => Some(true),
            Ok(AggregationTemporality::Cumulative) => Some(false),
            _ => {
                self.rejected.add_many(points as u64, "aggregation temporality is unspecified");
                None
            }
        }
    }

    /// Begins a point and returns its time, or refuses it.
    fn point(
        &mut self,
        ns: u64,
        list: &[KeyValue],
        note: &mut dyn FnMut(TimestampMs),
    ) -> Option<TimestampMs> {
        let Some(t) = time(ns) else {
            self.rejected.add("data point has no time");
            return None;
        };
        note(t);
        self.begin_point(list);
        Some(t)
    }

    fn number(
        &mut self,
        name: &str,
        p: NumberDataPoint,
        delta: bool,
        note: &mut dyn FnMut(TimestampMs),
    ) {
        let Some(t) = self.point(p.time_unix_nano, &p.attributes, note) else { return };
        let value = match p.value {
            _ if p.flags & NO_RECORDED_VALUE != 0 => f64::from_bits(STALE_NAN_BITS),
            Some(NumberValue::AsDouble(d)) => d,
            Some(NumberValue::AsInt(i)) => i as f64,
            None => return self.rejected.add("data point has no value"),
        };
        let labels = self.labels(name, "", &p.attributes, Extra::None);
        self.exemplars(labels.as_ref(), p.exemplars);
        self.push(labels, t, SampleValue::Float(value), delta);
    }

    fn exemplars(&mut self, labels: Option<&Labels>, list: Vec<WireExemplar>) {
        let Some(labels) = labels else { return };
        let names = self.naming;
        let read = list.into_iter().filter_map(|e| exemplar(e, names));
        self.out.exemplars.extend(read.map(|e| (labels.clone(), e)));
    }

    fn histogram(
        &mut self,
        name: &str,
        p: HistogramDataPoint,
        delta: bool,
        note: &mut dyn FnMut(TimestampMs),
    ) {
        if !p.bucket_counts.is_empty() && p.bucket_counts.len() != p.explicit_bounds.len() + 1 {
            return self.rejected.add("histogram's bounds and counts do not fit together");
        }
        let Some(t) = self.point(p.time_unix_nano, &p.attributes, note) else { return };
        let stale = p.flags & NO_RECORDED_VALUE != 0;
        if self.naming.native_explicit {
            let counts = (0_i32..).zip(&p.bucket_counts).filter(|(_, c)| **c > 0);
            let h = Histogram {
                schema: CUSTOM_BUCKETS_SCHEMA,
                count: p.count as f64,
                sum: if stale { f64::from_bits(STALE_NAN_BITS) } else { p.sum.unwrap_or(0.0) },
                positive: counts.map(|(i, c)| (i, *c as f64)).collect(),
                custom_bounds: p.explicit_bounds,
                ..Histogram::default()
            };
            let labels = self.labels(name, "", &p.attributes, Extra::None);
            self.exemplars(labels.as_ref(), p.exemplars);
            return self.push(labels, t, SampleValue::Histogram(Arc::new(h)), delta);
        }
        let value =
            |v: f64| SampleValue::Float(if stale { f64::from_bits(STALE_NAN_BITS) } else { v });
        let mut cumulative = 0_u64;
        for (count, bound) in p.bucket_counts.iter().zip(&p.explicit_bounds) {
            cumulative = cumulative.saturating_add(*count);
            let labels = self.labels(name, "_bucket", &p.attributes, Extra::Le(*bound));
            self.push(labels, t, value(cumulative as f64), delta);
        }
        let labels = self.labels(name, "_bucket", &p.attributes, Extra::Le(f64::INFINITY));
        self.push(labels, t, value(p.count as f64), delta);
        let labels = self.labels(name, "_count", &p.attributes, Extra::None);
        self.push(labels, t, value(p.count as f64), delta);
        for e in p.exemplars {
            let Some(read) = exemplar(e, self.naming) else { continue };
            // It belongs to the bucket that counted it.
            let bound = p.explicit_bounds.iter().find(|b| read.value <= **b);
            let le = Extra::Le(bound.copied().unwrap_or(f64::INFINITY));
            if let Some(labels) = self.labels(name, "_bucket", &p.attributes, le) {
                self.out.exemplars.push((labels, read));
            }
        }
        if let Some(sum) = p.sum {
            let labels = self.labels(name, "_sum", &p.attributes, Extra::None);
            self.push(labels, t, value(sum), delta);
        }
    }

    fn exponential(
        &mut self,
        name: &str,
        p: ExponentialHistogramDataPoint,
        delta: bool,
        note: &mut dyn FnMut(TimestampMs),
    ) {
        if p.scale < SCHEMA_MIN {
            return self
                .rejected
                .add(format!("exponential histogram's scale {} is below {SCHEMA_MIN}", p.scale));
        }
        let Some(t) = self.point(p.time_unix_nano, &p.attributes, note) else { return };
        let shift = (p.scale - SCHEMA_MAX).max(0).unsigned_abs().min(31);
        let side = |b: Option<
            opentelemetry_proto::tonic::metrics::v1::exponential_histogram_data_point::Buckets,
        >| {
            let mut out: BTreeMap<i32, f64> = BTreeMap::new();
            if let Some(b) = b {
                for (i, count) in b.bucket_counts.iter().enumerate().filter(|(_, c)| **c > 0) {
                    // OTLP's bucket i is (base^i, base^(i+1)], Prometheus' is one higher.
                    let index = (b.offset.saturating_add(i as i32) >> shift).saturating_add(1);
                    *out.entry(index).or_default() += *count as f64;
                }
            }
            out.into_iter().collect::<Vec<_>>()
        };
        let stale = p.flags & NO_RECORDED_VALUE != 0;
        let h = Histogram {
            schema: p.scale.min(SCHEMA_MAX),
            zero_threshold: if p.zero_threshold > 0.0 { p.zero_threshold } else { 1e-128 },
            zero_count: p.zero_count as f64,
            count: p.count as f64,
            sum: if stale { f64::from_bits(STALE_NAN_BITS) } else { p.sum.unwrap_or(0.0) },
            positive: side(p.positive),
            negative: side(p.negative),
            ..Histogram::default()
        };
        let labels = self.labels(name, "", &p.attributes, Extra::None);
        self.exemplars(labels.as_ref(), p.exemplars);
        self.push(labels, t, SampleValue::Histogram(Arc::new(h)), delta);
    }

    fn summary(&mut self, name: &str, p: SummaryDataPoint, note: &mut dyn FnMut(TimestampMs)) {
        let Some(t) = self.point(p.time_unix_nano, &p.attributes, note) else { return };
        for q in p.quantile_values {
            let labels = self.labels(name, "", &p.attributes, Extra::Quantile(q.quantile));
            self.push(labels, t, SampleValue::Float(q.value), false);
        }
        for (suffix, v) in [("_sum", p.sum), ("_count", p.count as f64)] {
            let labels = self.labels(name, suffix, &p.attributes, Extra::None);
            self.push(labels, t, SampleValue::Float(v), false);
        }
    }

    fn target_info(&mut self, resource: &Resource, t: TimestampMs) {
        let identifying = ["service.name", "service.namespace", "service.instance.id"];
        let keep = self.naming.keep_identifying;
        let rest: Attributes = resource
            .attributes
            .iter()
            .filter(|(k, _)| keep || !identifying.contains(&k.as_str()))
            .cloned()
            .collect();
        if rest.is_empty() || self.base.is_empty() {
            return;
        }
        self.key.truncate(self.base_len);
        self.key.push(2);
        for (k, v) in rest.iter() {
            put_text(&mut self.key, k);
            put_text(&mut self.key, &v.to_string());
        }
        let names = self.naming;
        let build = || Ok(build_labels(names, &self.base, "target_info", &rest, None));
        let labels = (self.resolve)(&self.key, &build);
        let labels = labels.map_err(|reason| self.rejected.add(reason)).ok();
        self.push(labels, t, SampleValue::Float(1.0), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::JsonRequest;

    fn decode(metrics: &str) -> Decoded<Metrics> {
        let json = format!(
            r#"{{"resourceMetrics":[{{"resource":{{"attributes":[{{"key":"service.name","value":{{"stringValue":"api"}}}},{{"key":"os","value":{{"stringValue":"linux"}}}}]}},"scopeMetrics":[{{"metrics":[{metrics}]}}]}}]}}"#
        );
        decode_metrics(
            ExportMetricsServiceRequest::from_json(json.as_bytes()).unwrap(),
            &Naming::default(),
            &|_, build| build(),
        )
    }

    fn floats<'a>(list: impl Iterator<Item = (&'a Labels, &'a Sample)>) -> Vec<(String, f64)> {
        let value = |s: &Sample| match &s.value {
            SampleValue::Float(f) => *f,
            SampleValue::Histogram(h) => h.count,
        };
        list.map(|(l, s)| {
            (l.filter(|n| !["job", "service_name"].contains(&n)).to_string(), value(s))
        })
        .collect()
    }

    fn points(m: &Metrics) -> Vec<(String, f64)> {
        floats(m.points.iter().map(|(l, s)| (l, s)))
    }

    #[test]
    fn settings_of_the_names_change_labels_and_histograms() {
        let json = r#"{"resourceMetrics":[{"resource":{"attributes":[{"key":"service.name","value":{"stringValue":"api"}},{"key":"_os","value":{"stringValue":"linux"}}]},
            "scopeMetrics":[{"schemaUrl":"https://s/1","scope":{"name":"lib","version":"2","attributes":[{"key":"a.b","value":{"stringValue":"x"}}]},
                "metrics":[{"name":"d","histogram":{"aggregationTemporality":2,"dataPoints":[{"timeUnixNano":"5000000000","count":"6","sum":9,"explicitBounds":[1,2],"bucketCounts":["1","0","5"],
                    "attributes":[{"key":"_p","value":{"stringValue":"q"}},{"key":"a..b","value":{"stringValue":"r"}}]}]}}]}]}]}"#;
        let with = |naming: &Naming| {
            let request = ExportMetricsServiceRequest::from_json(json.as_bytes()).unwrap();
            decode_metrics(request, naming, &|_, build| build()).items.points
        };
        let naming = Naming { scopes: true, native_explicit: true, ..Naming::default() };
        let names = |list: &[(Labels, Sample)]| -> Vec<String> {
            list.iter()
                .map(|(l, _)| l.filter(|n| n != "job" && n != "service_name").to_string())
                .collect()
        };
        let native = with(&naming);
        assert_eq!(
            names(&native),
            [
                r#"d{a__b="r", key_p="q", otel_scope_a_b="x", otel_scope_name="lib", otel_scope_schema_url="https://s/1", otel_scope_version="2"}"#,
                r#"target_info{key_os="linux"}"#
            ]
        );
        let SampleValue::Histogram(h) = &native[0].1.value else { panic!("{native:?}") };
        let want = Histogram {
            schema: CUSTOM_BUCKETS_SCHEMA,
            count: 6.0,
            sum: 9.0,
            positive: vec![(0, 1.0), (2, 5.0)],
            custom_bounds: vec![1.0, 2.0],
            ..Histogram::default()
        };
        assert_eq!(**h, want);
        let bare = Naming { underscore_prefix: false, underscore_runs: false, ..Naming::default() };
        let classic = names(&with(&bare));
        assert_eq!(classic[0], r#"d_bucket{_p="q", a_b="r", le="1"}"#);
        assert_eq!(classic.last().unwrap(), r#"target_info{_os="linux"}"#);
    }

    #[test]
    fn sums_of_both_temporalities_and_gauges() {
        let d = decode(
            r#"{"name":"req","sum":{"aggregationTemporality":2,"isMonotonic":true,"dataPoints":[{"timeUnixNano":"5000000000","asInt":"3","attributes":[{"key":"a.b","value":{"stringValue":"x"}}]}]}},
               {"name":"inc","sum":{"aggregationTemporality":1,"isMonotonic":true,"dataPoints":[{"timeUnixNano":"5000000000","asInt":"2"}]}},
               {"name":"temp","unit":"Cel","gauge":{"dataPoints":[{"timeUnixNano":"5000000000","asDouble":1.5}, {"asDouble":2}]}}"#,
        );
        assert_eq!(
            points(&d.items),
            [
                ("req_total{a_b=\"x\"}".into(), 3.0),
                ("temp_celsius".into(), 1.5),
                ("target_info{os=\"linux\"}".into(), 1.0)
            ]
        );
        let deltas = d.items.deltas.iter().map(|s| (&s.labels, &s.samples[0]));
        assert_eq!(floats(deltas), [("inc_total".into(), 2.0)]);
        assert_eq!(d.rejected.count, 1);
        assert_eq!(d.items.points[0].0.get("job"), "api");
    }

    #[test]
    fn histograms_become_buckets_or_native() {
        let d = decode(
            r#"{"name":"lat","unit":"s","histogram":{"aggregationTemporality":2,"dataPoints":[{"timeUnixNano":"5000000000","count":"6","sum":9,"bucketCounts":["1","2","3"],"explicitBounds":[0.5,1]}]}},
               {"name":"exp","exponentialHistogram":{"aggregationTemporality":2,"dataPoints":[{"timeUnixNano":"5000000000","count":"4","sum":9,"scale":9,"zeroCount":"1","positive":{"offset":-1,"bucketCounts":["1","1","1"]}}]}},
               {"name":"bad","histogram":{"aggregationTemporality":2,"dataPoints":[{"timeUnixNano":"5000000000","count":"6","bucketCounts":["1"],"explicitBounds":[0.5,1]}]}}"#,
        );
        let got = points(&d.items);
        assert_eq!(
            got.get(..5).unwrap(),
            [
                ("lat_seconds_bucket{le=\"0.5\"}".into(), 1.0),
                ("lat_seconds_bucket{le=\"1\"}".into(), 3.0),
                ("lat_seconds_bucket{le=\"+Inf\"}".into(), 6.0),
                ("lat_seconds_count".into(), 6.0),
                ("lat_seconds_sum".into(), 9.0)
            ]
        );
        let SampleValue::Histogram(h) = &d.items.points[5].1.value else { panic!("not native") };
        // Scale 9 is one finer than the finest: indices -1, 0, 1 become -1, 0, 0, one higher here.
        assert_eq!((h.schema, h.positive.clone()), (8, vec![(0, 1.0), (1, 2.0)]));
        assert_eq!(d.rejected.count, 1);
    }

    #[test]
    fn exemplars_lead_to_their_spans() {
        let d = decode(
            r#"{"name":"lat","unit":"s","histogram":{"aggregationTemporality":2,"dataPoints":[{"timeUnixNano":"1000000000","count":"3","sum":9,"explicitBounds":[0.5,1],"bucketCounts":["1","1","1"],"exemplars":[{"timeUnixNano":"900000000","asDouble":0.7,"traceId":"0102030405060708090a0b0c0d0e0f10","spanId":"0102030405060708","filteredAttributes":[{"key":"user.id","value":{"stringValue":"u"}}]}]}]}}"#,
        );
        let (labels, e) = &d.items.exemplars[0];
        assert_eq!(labels.get("le"), "1");
        assert_eq!((e.value, e.timestamp_ms), (0.7, Some(900)));
        assert_eq!(e.labels.get("trace_id"), "0102030405060708090a0b0c0d0e0f10");
        assert_eq!((e.labels.get("span_id"), e.labels.get("user_id")), ("0102030405060708", "u"));
    }
}
