//! The pipelines in force: by where records come from, what they pass through.

use crate::context::{Of, OfEvent, OfResource, OfScope};
use crate::metrics::{OfMetric, OfPoint, OfSample, Shape, point_count, retain_points};
use crate::processors::Step;
use obs_codec::otlp::{attributes, proto_attributes, stream_labels};
use obs_model::{Labels, LogRecord, Resource, Sample, Scope, Span};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::metrics::v1::{Metric, ResourceMetrics};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// Where records come from: the kinds of receivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Otlp,
    Jaeger,
    Zipkin,
    Loki,
    /// Scraped.
    Prometheus,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    Traces,
    Metrics,
    Logs,
}

impl Signal {
    /// The word for its records in the collector's own metrics.
    pub const fn items(self) -> &'static str {
        match self {
            Self::Traces => "spans",
            Self::Metrics => "metric_points",
            Self::Logs => "log_records",
        }
    }
}

/// A processor of the file, with what it did.
#[derive(Debug)]
pub(crate) struct Processor {
    name: String,
    steps: Vec<Step>,
    dropped: [AtomicU64; 3],
    failed: AtomicU64,
    error: Mutex<Option<String>>,
}

/// What a processor did since it was read.
#[derive(Debug, Clone)]
pub struct Done {
    /// The component's id.
    pub processor: String,
    /// Records that it dropped.
    pub dropped: Vec<(Signal, u64)>,
    /// Records that something could not be done of; they went on as they were.
    pub failed: u64,
    /// The latest reason.
    pub error: Option<String>,
}

impl Processor {
    pub(crate) fn new(name: String, steps: Vec<Step>) -> Self {
        let (dropped, failed, error) = Default::default();
        Self { name, steps, dropped, failed, error }
    }

    fn fail(&self, reason: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
    }

    fn count(&self, signal: Signal, before: usize, after: usize) {
        if let Some(d) = self.dropped.get(signal as usize) {
            d.fetch_add(before.saturating_sub(after) as u64, Ordering::Relaxed);
        }
    }

    fn spans(&self, spans: &mut Vec<Span>) {
        let before = spans.len();
        for step in &self.steps {
            let mut fail = |e| self.fail(e);
            if step.concerns(Of::Resource) {
                each_shared(
                    spans,
                    |s| s.resource.clone(),
                    Arc::as_ptr,
                    |s, r| s.resource = r,
                    &mut |r| step.record(Of::Resource, &mut OfResource(r), &mut fail),
                );
            }
            if step.concerns(Of::Scope) {
                each_shared(
                    spans,
                    |s| (s.resource.clone(), s.scope.clone()),
                    |(r, s)| (Arc::as_ptr(r), Arc::as_ptr(s)),
                    |s, both| (s.resource, s.scope) = both,
                    &mut |(resource, scope)| {
                        step.record(Of::Scope, &mut OfScope { resource, scope }, &mut fail)
                    },
                );
            }
            let (spans_too, events_too) = (step.concerns(Of::Span), step.concerns(Of::Event));
            if !spans_too && !events_too {
                continue;
            }
            spans.retain_mut(|span| {
                if spans_too && !step.record(Of::Span, span, &mut fail) {
                    return false;
                }
                if events_too && !span.events.is_empty() {
                    let mut events = std::mem::take(&mut span.events);
                    events.retain_mut(|event| {
                        step.record(Of::Event, &mut OfEvent { span, event }, &mut fail)
                    });
                    span.events = events;
                }
                true
            });
        }
        self.count(Signal::Traces, before, spans.len());
    }

    fn logs(&self, logs: &mut Vec<LogRecord>) {
        let before = logs.len();
        for step in &self.steps {
            let mut fail = |e| self.fail(e);
            if step.concerns(Of::Resource) {
                each_shared(
                    logs,
                    |r| r.resource.clone(),
                    Arc::as_ptr,
                    |r, new| r.resource = new,
                    &mut |r| step.record(Of::Resource, &mut OfResource(r), &mut fail),
                );
            }
            if step.concerns(Of::Log) {
                logs.retain_mut(|r| step.record(Of::Log, r, &mut fail));
            }
        }
        self.count(Signal::Logs, before, logs.len());
    }

    fn metrics(&self, resources: &mut Vec<ResourceMetrics>) {
        let before: usize = resources.iter().map(points).sum();
        // Steps about other signals need not look at any of it.
        let kinds = [Of::Resource, Of::Scope, Of::Metric, Of::Point];
        for step in self.steps.iter().filter(|s| kinds.iter().any(|of| s.concerns(*of))) {
            resources.retain_mut(|rm| self.of_resource(step, rm));
        }
        self.count(Signal::Metrics, before, resources.iter().map(points).sum());
    }

    fn of_resource(&self, step: &Step, rm: &mut ResourceMetrics) -> bool {
        let mut fail = |e| self.fail(e);
        let mut proto = rm.resource.take().unwrap_or_default();
        let list = std::mem::take(&mut proto.attributes);
        let mut resource = Arc::new(Resource { attributes: attributes(list) });
        let stays = !step.concerns(Of::Resource)
            || step.record(Of::Resource, &mut OfResource(&mut resource), &mut fail);
        for sm in rm.scope_metrics.iter_mut().filter(|_| stays) {
            let mut of = sm.scope.take().unwrap_or_default();
            let mut scope = Arc::new(Scope {
                name: std::mem::take(&mut of.name),
                version: std::mem::take(&mut of.version),
                attributes: attributes(std::mem::take(&mut of.attributes)),
            });
            if step.concerns(Of::Scope) {
                let mut c = OfScope { resource: &mut resource, scope: &mut scope };
                if !step.record(Of::Scope, &mut c, &mut fail) {
                    sm.metrics.clear();
                }
            }
            sm.metrics.retain_mut(|m| self.metric(step, &mut resource, &mut scope, m));
            let Scope { name, version, attributes } = Arc::unwrap_or_clone(scope);
            let attributes = proto_attributes(&attributes);
            sm.scope = Some(InstrumentationScope { name, version, attributes, ..of });
        }
        proto.attributes = proto_attributes(&resource.attributes);
        rm.resource = Some(proto);
        stays
    }

    fn metric(
        &self,
        step: &Step,
        resource: &mut Arc<Resource>,
        scope: &mut Arc<Scope>,
        metric: &mut Metric,
    ) -> bool {
        let mut fail = |e| self.fail(e);
        if step.concerns(Of::Metric) {
            let mut c = OfMetric { resource, scope, metric };
            if !step.record(Of::Metric, &mut c, &mut fail) {
                return false;
            }
        }
        if !step.concerns(Of::Point) {
            return true;
        }
        let shape = Shape::of(metric);
        let Some(mut data) = metric.data.take() else { return true };
        retain_points(&mut data, &mut |point| {
            let attributes = attributes(std::mem::take(point.attributes()));
            let shape = shape.clone();
            let mut c = OfPoint { resource, scope, metric, shape, attributes, point };
            let stays = step.record(Of::Point, &mut c, &mut fail);
            *c.point.attributes() = proto_attributes(&c.attributes);
            stays
        });
        let stays = point_count(&data) > 0;
        metric.data = Some(data);
        stays
    }

    fn samples(&self, samples: &mut Vec<(Labels, Sample)>) {
        let before = samples.len();
        for step in &self.steps {
            let mut fail = |e| self.fail(e);
            let kinds = [Of::Metric, Of::Point].into_iter().filter(|of| step.concerns(*of));
            let kinds: Vec<Of> = kinds.collect();
            if kinds.is_empty() {
                continue;
            }
            samples.retain_mut(|(labels, sample)| {
                let mut c = OfSample::new(labels, sample);
                if !kinds.iter().all(|of| step.record(*of, &mut c, &mut fail)) {
                    return false;
                }
                if let Some(new) = c.labels() {
                    *labels = new;
                }
                true
            });
        }
        self.count(Signal::Metrics, before, samples.len());
    }

    fn done(&self) -> Done {
        let signals = [Signal::Traces, Signal::Metrics, Signal::Logs];
        let of = |(s, n): (Signal, &AtomicU64)| (s, n.load(Ordering::Relaxed));
        Done {
            processor: self.name.clone(),
            dropped: signals.into_iter().zip(&self.dropped).map(of).collect(),
            failed: self.failed.load(Ordering::Relaxed),
            error: self.error.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

fn points(rm: &ResourceMetrics) -> usize {
    let metrics = rm.scope_metrics.iter().flat_map(|s| &s.metrics);
    metrics.filter_map(|m| m.data.as_ref()).map(point_count).sum()
}

/// Processes once what several records share, and drops the records of what is dropped.
fn each_shared<T, V: Clone, K: Eq + std::hash::Hash>(
    records: &mut Vec<T>,
    of: fn(&T) -> V,
    place: fn(&V) -> K,
    put: fn(&mut T, V),
    f: &mut dyn FnMut(&mut V) -> bool,
) {
    // The old ones are held, so that none is taken for another at the same place.
    let mut known: HashMap<K, (V, Option<V>)> = HashMap::new();
    records.retain_mut(|record| {
        let old = of(record);
        let (_, new) = known.entry(place(&old)).or_insert_with(|| {
            let mut new = old.clone();
            let stays = f(&mut new);
            (old, stays.then_some(new))
        });
        new.clone().map(|new| put(record, new)).is_some()
    });
}

/// Lets equal resources be one again: statements about spans copy what they change.
fn share<T>(records: &mut [T], of: fn(&mut T) -> &mut Arc<Resource>) {
    /// Distinct ones that are looked at.
    const RECENT: usize = 16;
    let mut known: Vec<Arc<Resource>> = Vec::new();
    for record in records {
        let resource = of(record);
        let mut recent = known.iter().rev().take(RECENT);
        match recent.find(|k| Arc::ptr_eq(k, resource) || ***k == **resource) {
            Some(k) => *resource = k.clone(),
            None => known.push(resource.clone()),
        }
    }
}

/// What records pass through between their receiver and the store.
#[derive(Debug, Default)]
pub struct Pipelines {
    pub(crate) of: BTreeMap<(Signal, Source), Vec<Arc<Processor>>>,
}

impl Pipelines {
    fn steps(&self, signal: Signal, source: Source) -> &[Arc<Processor>] {
        self.of.get(&(signal, source)).map_or(&[], Vec::as_slice)
    }

    /// Processes spans; those that a filter drops are gone.
    pub fn spans(&self, source: Source, mut spans: Vec<Span>) -> Vec<Span> {
        let steps = self.steps(Signal::Traces, source);
        if steps.is_empty() {
            return spans;
        }
        steps.iter().for_each(|p| p.spans(&mut spans));
        share(&mut spans, |s| &mut s.resource);
        spans
    }

    /// Processes log records. Streams that were made of a resource are made of what it became.
    pub fn logs(&self, source: Source, mut logs: Vec<LogRecord>) -> Vec<LogRecord> {
        let steps = self.steps(Signal::Logs, source);
        if steps.is_empty() {
            return logs;
        }
        steps.iter().for_each(|p| p.logs(&mut logs));
        share(&mut logs, |r| &mut r.resource);
        if source == Source::Otlp {
            let mut streams: HashMap<*const Resource, Labels> = HashMap::new();
            for r in &mut logs {
                let made = || stream_labels(&r.resource);
                r.stream = streams.entry(Arc::as_ptr(&r.resource)).or_insert_with(made).clone();
            }
        }
        logs
    }

    /// Processes OTLP's metrics.
    pub fn metrics(&self, source: Source, request: &mut ExportMetricsServiceRequest) {
        for p in self.steps(Signal::Metrics, source) {
            p.metrics(&mut request.resource_metrics);
        }
    }

    /// Processes scraped samples.
    pub fn samples(&self, mut samples: Vec<(Labels, Sample)>) -> Vec<(Labels, Sample)> {
        for p in self.steps(Signal::Metrics, Source::Prometheus) {
            p.samples(&mut samples);
        }
        samples
    }

    /// Returns what every processor did.
    pub fn done(&self) -> Vec<Done> {
        let mut out: Vec<&Arc<Processor>> = Vec::new();
        for p in self.of.values().flatten() {
            if !out.iter().any(|o| Arc::ptr_eq(o, p)) {
                out.push(p);
            }
        }
        out.into_iter().map(|p| p.done()).collect()
    }
}

/// The pipelines in force, which a reload replaces.
#[derive(Debug, Clone, Default)]
pub struct Processing(Arc<InForce>);

#[derive(Debug, Default)]
struct InForce {
    now: RwLock<Arc<Pipelines>>,
    /// What processors did before a reload.
    before: Mutex<BTreeMap<String, Done>>,
}

impl Processing {
    pub fn get(&self) -> Arc<Pipelines> {
        self.0.now.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, pipelines: Pipelines) {
        let all = self.done();
        let mut before = self.0.before.lock().unwrap_or_else(PoisonError::into_inner);
        *before = all.into_iter().map(|d| (d.processor.clone(), d)).collect();
        *self.0.now.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pipelines);
    }

    /// Returns what processors did since the start, by name.
    pub fn done(&self) -> Vec<Done> {
        let mut all = self.0.before.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for d in self.get().done() {
            match all.get_mut(&d.processor) {
                None => {
                    all.insert(d.processor.clone(), d);
                }
                Some(sum) => {
                    sum.failed += d.failed;
                    sum.error = d.error.or(sum.error.take());
                    sum.dropped.iter_mut().zip(d.dropped).for_each(|(a, b)| a.1 += b.1);
                }
            }
        }
        all.into_values().collect()
    }
}
