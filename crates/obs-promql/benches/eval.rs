//! Range queries over series in memory: the evaluator without a store.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use criterion::{Criterion, criterion_group, criterion_main};
use obs_model::{Budget, Labels, Sample, Series, TenantId, TimestampMs};
use obs_promql::{QueryOptions, evaluate_range, parse};
use obs_testkit::MemoryStore;

const SERIES: i64 = 1000;
const SAMPLES: i64 = 240;

fn store() -> MemoryStore {
    let series = |i: i64| Series {
        labels: Labels::from_pairs([
            ("__name__", "requests_total".to_owned()),
            ("instance", format!("i{i}")),
            ("model", format!("m{}", i % 12)),
        ]),
        samples: (0..SAMPLES)
            .map(|t| Sample::float(t * 15_000, (t * (i % 7 + 1)) as f64))
            .collect(),
    };
    MemoryStore { series: (0..SERIES).map(series).collect(), ..MemoryStore::default() }
}

fn eval(c: &mut Criterion) {
    let store = store();
    let tenant = TenantId::default();
    let range = (TimestampMs::from_millis(300_000), TimestampMs::from_millis(3_600_000));
    for query in ["sum by (model) (rate(requests_total[5m]))", "topk(5, requests_total)"] {
        let expr = parse(query).unwrap();
        c.bench_function(query, |b| {
            b.iter(|| {
                let budget = Budget::new(i64::MAX, i64::MAX);
                evaluate_range(
                    &store,
                    &tenant,
                    &expr,
                    range,
                    15_000,
                    QueryOptions::default(),
                    &budget,
                )
                .unwrap()
            });
        });
    }
}

criterion_group!(benches, eval);
criterion_main!(benches);
