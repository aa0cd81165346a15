//! The program's own metrics: one registry, names of the storage and collector catalogue.

use obs_model::{
    Labels, LabelsBuilder, METRIC_NAME, MetricKind, MetricMetadata, Sample, Series, TimestampMs,
};
use prometheus::proto::{Metric, MetricType};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounterVec, IntGaugeVec, Opts, Registry,
};
use std::sync::Arc;

const SECONDS: [f64; 12] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const COUNTS: [f64; 10] =
    [1.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0, 10_000.0, 50_000.0, 100_000.0];

/// Handles of all own metrics; cheap to clone.
#[derive(Debug, Clone)]
pub struct Telemetry(Arc<Handles>);

/// The metrics themselves.
#[derive(Debug)]
pub struct Handles {
    pub registry: Registry,
    pub write_seconds: HistogramVec,
    pub writes: IntCounterVec,
    pub batch_size: HistogramVec,
    pub items_written: IntCounterVec,
    pub rejected: IntCounterVec,
    /// Records on their way to the log, not durable yet.
    pub buffer: IntGaugeVec,
    pub flushes: IntCounterVec,
    pub errors: IntCounterVec,
    pub retries: IntCounterVec,
    pub query_results: HistogramVec,
    /// Permits to read: active, idle, max.
    pub pool: IntGaugeVec,
    pub acquire_seconds: Histogram,
    pub spans_received: IntCounterVec,
    /// Traces that tail sampling kept and dropped.
    pub tail_traces: IntCounterVec,
    pub query_seconds: HistogramVec,
    /// Range queries by how much of their answer was kept from earlier ones.
    pub results_cache: IntCounterVec,
    pub http_requests: IntCounterVec,
    /// Limits in force, and what is used of those that fill up.
    pub limit: IntGaugeVec,
    pub limit_usage: IntGaugeVec,
    pub gauges: IntGaugeVec,
    pub counters: IntCounterVec,
    /// Counters under Prometheus' names, which its dashboards expect.
    named: Vec<(&'static str, IntCounterVec)>,
    named_gauges: Vec<(&'static str, IntGaugeVec)>,
    pub exemplars: IntGaugeVec,
}

impl Handles {
    /// Raises a counter of [`NAMED`] to a total that is kept elsewhere.
    pub fn raise(&self, name: &str, labels: &[&str], total: u64) {
        if let Some((_, c)) = self.named.iter().find(|c| c.0 == name) {
            let counter = c.with_label_values(labels);
            counter.inc_by(total.saturating_sub(counter.get()));
        }
    }

    /// Sets a gauge of [`NAMED_GAUGES`].
    pub fn set(&self, name: &str, labels: &[&str], n: i64) {
        if let Some((_, g)) = self.named_gauges.iter().find(|g| g.0 == name) {
            g.with_label_values(labels).set(n);
        }
    }
}

/// Name, labels and help.
type Named = (&'static str, &'static [&'static str], &'static str);

/// What rules, remote write, the collection of lines and notifications count.
const NAMED: [Named; 26] = [
    ("otelcol_processor_dropped_spans", &["processor"], "Spans that a processor dropped."),
    (
        "otelcol_processor_dropped_metric_points",
        &["processor"],
        "Points and samples that a processor dropped.",
    ),
    (
        "otelcol_processor_dropped_log_records",
        &["processor"],
        "Log records that a processor dropped.",
    ),
    (
        "otelcol_processor_errors_total",
        &["processor"],
        "Statements and conditions that failed over a record, which went on as it was.",
    ),
    ("promtail_read_lines_total", &[], "Lines collected."),
    ("promtail_read_bytes_total", &[], "Bytes collected."),
    ("promtail_dropped_entries_total", &[], "Collected lines that the store refused for good."),
    ("promtail_rate_limited_lines_total", &[], "Collected lines over readline_rate, dropped."),
    (
        "promtail_request_retries_total",
        &[],
        "Times that collected lines had to wait for the store.",
    ),
    ("promtail_too_long_lines_total", &[], "Lines over the limit of their length."),
    ("promtail_syslog_parsing_errors_total", &[], "Syslog messages that were none."),
    ("prometheus_rule_evaluations_total", &[], "Rules evaluated."),
    ("prometheus_rule_evaluation_failures_total", &[], "Rules whose evaluation failed."),
    ("prometheus_rule_group_iterations_total", &[], "Evaluations of groups."),
    (
        "prometheus_rule_group_iterations_missed_total",
        &[],
        "Evaluations left out: the one before ran.",
    ),
    ("prometheus_remote_storage_samples_total", &[], "Samples that remote write delivered."),
    ("prometheus_remote_storage_samples_dropped_total", &[], "Samples that remote write gave up."),
    (
        "prometheus_remote_storage_retries_total",
        &[],
        "Requests of remote write that are tried again.",
    ),
    ("alertmanager_alerts_received_total", &["status"], "Alerts received."),
    ("alertmanager_alerts_invalid_total", &[], "Alerts refused."),
    ("alertmanager_notifications_total", &["integration"], "Notifications attempted."),
    ("alertmanager_notifications_failed_total", &["integration"], "Notifications given up."),
    ("alertmanager_notification_requests_total", &["integration"], "Attempts to deliver one."),
    ("alertmanager_notification_requests_failed_total", &["integration"], "Attempts that failed."),
    (
        "alertmanager_notifications_left_to_others_total",
        &[],
        "Notifications that another instance was at, or had sent.",
    ),
    (
        "observatory_shared_store_failures_total",
        &[],
        "Exchanges over the shared store that failed.",
    ),
];

const NAMED_GAUGES: [Named; 5] = [
    ("alertmanager_alerts_unrouted", &[], "Alerts that fire and whose receivers tell nobody."),
    ("alertmanager_alerts", &["state"], "Alerts that fire."),
    ("alertmanager_silences", &["state"], "Silences by state."),
    ("alertmanager_cluster_members", &[], "Instances that share a store, this one among them."),
    ("observatory_shared_store_up", &[], "Whether the store that instances share is in reach."),
];

impl std::ops::Deref for Telemetry {
    type Target = Handles;

    fn deref(&self) -> &Handles {
        &self.0
    }
}

impl Telemetry {
    /// Registers everything in a new registry.
    ///
    /// # Errors
    /// When two metrics have the same name, which is a bug that any test finds.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        // Memory, CPU, descriptors and start time of the process, under their usual names.
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process))?;
        let histogram = |name: &str, help: &str, labels: &[&str], buckets: &[f64]| {
            let h = HistogramVec::new(
                HistogramOpts::new(name, help).buckets(buckets.to_vec()),
                labels,
            )?;
            registry.register(Box::new(h.clone())).map(|()| h)
        };
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let c = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(c.clone())).map(|()| c)
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            let g = IntGaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(g.clone())).map(|()| g)
        };
        let acquire_seconds = Histogram::with_opts(
            HistogramOpts::new(
                "storage_connection_acquire_duration_seconds",
                "Time that queries waited for their turn to read.",
            )
            .buckets(SECONDS.to_vec()),
        )?;
        registry.register(Box::new(acquire_seconds.clone()))?;
        let named = NAMED
            .iter()
            .map(|(name, labels, help)| counter(name, help, labels).map(|c| (*name, c)))
            .collect::<Result<_, _>>()?;
        let named_gauges = NAMED_GAUGES
            .iter()
            .map(|(name, labels, help)| gauge(name, help, labels).map(|g| (*name, g)))
            .collect::<Result<_, _>>()?;
        let handles = Handles {
            named,
            named_gauges,
            exemplars: gauge(
                "prometheus_tsdb_exemplar_exemplars_in_storage",
                "Exemplars kept.",
                &[],
            )?,
            write_seconds: histogram(
                "storage_write_duration_seconds",
                "Time until a write is durable.",
                &["writer_type", "operation"],
                &SECONDS,
            )?,
            writes: counter(
                "storage_writes_total",
                "Writes by outcome.",
                &["writer_type", "operation", "status"],
            )?,
            batch_size: histogram(
                "storage_batch_size",
                "Records of a write.",
                &["writer_type", "operation"],
                &COUNTS,
            )?,
            items_written: counter(
                "storage_items_written_total",
                "Records written.",
                &["writer_type", "item_type"],
            )?,
            rejected: counter("obs_rejected_total", "Records refused.", &["signal", "reason"])?,
            tail_traces: counter(
                "sampling_traces_total",
                "Traces that tail sampling decided.",
                &["decision"],
            )?,
            spans_received: counter(
                "collector_spans_received_total",
                "Spans received.",
                &["instance"],
            )?,
            query_seconds: histogram(
                "storage_query_duration_seconds",
                "Time of queries.",
                &["repository", "method"],
                &SECONDS,
            )?,
            http_requests: counter(
                "http_requests_total",
                "HTTP requests answered.",
                &["listener", "method", "status"],
            )?,
            counters: counter(
                "observatory_store_events_total",
                "Events of the embedded store, by kind.",
                &["kind"],
            )?,
            limit: gauge(
                "obs_limit",
                "Limits in force, by their name in the configuration.",
                &["name"],
            )?,
            limit_usage: gauge(
                "obs_limit_usage",
                "What is used of those limits that are of the whole process.",
                &["name"],
            )?,
            gauges: gauge(
                "observatory_store_usage",
                "Bytes and counts of the embedded store, by kind.",
                &["kind"],
            )?,
            buffer: gauge(
                "storage_buffer_size",
                "Records that wait to become durable.",
                &["writer_type", "buffer_type"],
            )?,
            flushes: counter(
                "storage_flushes_total",
                "Flushes of recent data to segments by outcome.",
                &["writer_type", "status"],
            )?,
            errors: counter(
                "storage_errors_total",
                "Failures of the store.",
                &["error_type", "operation"],
            )?,
            retries: counter(
                "storage_retries_total",
                "Work of the store that failed and was tried again.",
                &["operation"],
            )?,
            results_cache: counter(
                "obs_results_cache_queries_total",
                "Range queries by how much of the answer was known: hit, partial, miss; or uncacheable.",
                &["result"],
            )?,
            query_results: histogram(
                "storage_query_result_count",
                "Records and samples that queries took from the store.",
                &["repository", "method"],
                &COUNTS,
            )?,
            pool: gauge(
                "storage_pool_connections",
                "Permits to read the store, by state.",
                &["state"],
            )?,
            acquire_seconds,
            registry: registry.clone(),
        };
        Ok(Self(Arc::new(handles)))
    }

    /// Returns the text exposition of all metrics.
    pub fn text(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// Returns all metrics as series at `now`, with `job` and `instance`, for the own store.
    pub fn series(&self, instance: &str, now: TimestampMs) -> (Vec<Series>, Vec<MetricMetadata>) {
        let (mut series, mut metadata) = (Vec::new(), Vec::new());
        for family in self.registry.gather() {
            let kind = match family.get_field_type() {
                MetricType::COUNTER => MetricKind::Counter,
                MetricType::GAUGE => MetricKind::Gauge,
                MetricType::HISTOGRAM => MetricKind::Histogram,
                MetricType::SUMMARY => MetricKind::Summary,
                MetricType::UNTYPED => MetricKind::Unknown,
            };
            let name = family.name();
            metadata.push(MetricMetadata {
                name: name.to_owned(),
                kind,
                help: family.help().to_owned(),
                unit: String::new(),
            });
            for m in family.get_metric() {
                let mut push = |suffix: &str, extra: &[(&str, &str)], v: f64| {
                    let labels = labels_of(m, &format!("{name}{suffix}"), extra, instance);
                    series.push(Series { labels, samples: vec![Sample::float(now.millis(), v)] });
                };
                match kind {
                    MetricKind::Histogram => {
                        let h = m.get_histogram();
                        for b in h.get_bucket() {
                            push(
                                "_bucket",
                                &[("le", &b.upper_bound().to_string())],
                                b.cumulative_count() as f64,
                            );
                        }
                        push("_bucket", &[("le", "+Inf")], h.get_sample_count() as f64);
                        push("_sum", &[], h.get_sample_sum());
                        push("_count", &[], h.get_sample_count() as f64);
                    }
                    MetricKind::Counter => push("", &[], m.get_counter().get_value()),
                    _ => push("", &[], m.get_gauge().get_value()),
                }
            }
        }
        (series, metadata)
    }
}

fn labels_of(m: &Metric, name: &str, extra: &[(&str, &str)], instance: &str) -> Labels {
    let mut b = LabelsBuilder::default();
    b.set("job", "observatory").set("instance", instance);
    for pair in m.get_label() {
        b.set(pair.name(), pair.value());
    }
    for (n, v) in extra {
        b.set(n, v);
    }
    b.set(METRIC_NAME, name);
    b.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_exposed_and_becomes_series() {
        let t = Telemetry::new().unwrap();
        t.writes.with_label_values(&["log", "insert", "success"]).inc();
        t.write_seconds.with_label_values(&["log", "insert"]).observe(0.02);
        assert!(t.text().contains(
            "storage_writes_total{operation=\"insert\",status=\"success\",writer_type=\"log\"} 1"
        ));
        assert!(t.text().contains("process_resident_memory_bytes"));
        let (series, metadata) = t.series("me", TimestampMs::from_millis(5));
        let find = |name: &str| series.iter().find(|s| s.labels.metric_name() == name).unwrap();
        assert_eq!(find("storage_writes_total").samples, [Sample::float(5, 1.0)]);
        assert_eq!(find("storage_write_duration_seconds_count").labels.get("instance"), "me");
        assert!(
            metadata
                .iter()
                .any(|m| m.name == "storage_writes_total" && m.kind == MetricKind::Counter)
        );
    }
}
