//! What a query cost, as Prometheus' `stats` tells it.

use obs_model::{
    Budget, ColumnSeries, Labels, MetricMetadata, Moment, SelectError, SelectSeries, Series,
    SeriesSelection, TenantId, TimestampMs,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What of statistics a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stats {
    Totals,
    /// `stats=all`.
    PerStep,
}

/// How long the parts of a query took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    queue: Duration,
    /// Reading the store.
    preparation: Duration,
    evaluation: Duration,
    /// Read from the store, and in memory together.
    samples: i64,
}

impl Times {
    /// Returns the statistics; `counts` are the samples that each step looked at, `steps` the time of the
    /// first and the way to the next in milliseconds.
    pub(super) fn stats(&self, wanted: Stats, counts: &[u64], steps: (i64, i64)) -> Value {
        let s = Duration::as_secs_f64;
        let inner = self.evaluation.saturating_sub(self.preparation);
        let mut samples = json!({
            "totalQueryableSamples": counts.iter().sum::<u64>(),
            "peakSamples": self.samples,
        });
        if let (Stats::PerStep, Some(o)) = (wanted, samples.as_object_mut()) {
            let times = (0_i64..).map(|i| (steps.0 + i * steps.1) as f64 / 1000.0);
            let each = times.zip(counts).map(|(t, n)| json!([t, n]));
            o.insert("totalQueryableSamplesPerStep".into(), each.collect());
        }
        json!({
            "timings": {
                "evalTotalTime": s(&self.evaluation),
                // Results are sorted where they arise.
                "resultSortTime": 0,
                "queryPreparationTime": s(&self.preparation),
                "innerEvalTime": s(&inner),
                "execQueueTime": s(&self.queue),
                "execTotalTime": s(&(self.queue + self.evaluation)),
            },
            "samples": samples,
        })
    }
}

/// A store of which it is noted how long it was read.
pub(super) struct Timed<'a> {
    source: &'a dyn SelectSeries,
    began: Instant,
    read_ns: AtomicU64,
    times: Times,
}

impl<'a> Timed<'a> {
    /// Begins an evaluation that was asked for at an instant.
    pub(super) fn new(source: &'a dyn SelectSeries, asked: Instant) -> Self {
        let zero = Duration::ZERO;
        let times =
            Times { queue: asked.elapsed(), preparation: zero, evaluation: zero, samples: 0 };
        Self { source, began: Instant::now(), read_ns: AtomicU64::new(0), times }
    }

    /// Notes that the evaluation ended, and how many samples it read.
    pub(super) fn done(&mut self, samples: i64) {
        self.times.evaluation = self.began.elapsed();
        self.times.preparation = Duration::from_nanos(*self.read_ns.get_mut());
        self.times.samples = samples;
    }

    pub(super) const fn times(&self) -> Times {
        self.times
    }

    fn reading<T>(&self, f: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let out = f();
        let ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.read_ns.fetch_add(ns, Ordering::Relaxed);
        out
    }
}

impl SelectSeries for Timed<'_> {
    fn select(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Series>, SelectError> {
        self.reading(|| self.source.select(tenant, selection, budget))
    }

    fn select_columns(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<ColumnSeries>, SelectError> {
        self.reading(|| self.source.select_columns(tenant, selection, budget))
    }

    fn label_sets(
        &self,
        tenant: &TenantId,
        selection: &SeriesSelection<'_>,
        budget: &Budget,
    ) -> Result<Vec<Labels>, SelectError> {
        self.reading(|| self.source.label_sets(tenant, selection, budget))
    }

    fn metadata(&self, tenant: &TenantId) -> BTreeMap<String, MetricMetadata> {
        self.source.metadata(tenant)
    }

    fn watch(&self, tenant: &TenantId, until: TimestampMs) -> Option<Moment> {
        self.source.watch(tenant, until)
    }

    fn changed_since(&self, tenant: &TenantId, moment: Moment) -> Option<TimestampMs> {
        self.source.changed_since(tenant, moment)
    }
}
