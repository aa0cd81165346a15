//! Samples that queries look at, counted as Prometheus counts them.

use obs_model::{Budget, Labels, Sample, Series, TenantId, TimestampMs};
use obs_promql::{QueryOptions, evaluate_instant, evaluate_range, parse};
use obs_testkit::MemoryStore;

/// A sample every ten seconds: of `one` one series, of `three` three.
fn store() -> MemoryStore {
    let samples: Vec<Sample> = (0..100).map(|i| Sample::float(i * 10_000, i as f64)).collect();
    let series = |name: &str, i: usize| Series {
        labels: Labels::from_pairs([("__name__", name), ("i", &i.to_string())]),
        samples: samples.clone(),
    };
    let mut store = MemoryStore::default();
    store.series.push(series("one", 0));
    store.series.extend((0..3).map(|i| series("three", i)));
    store
}

#[test]
fn samples_are_counted_by_step() {
    let (store, tenant) = (store(), TenantId::default());
    let options = QueryOptions { count_samples: true, ..QueryOptions::default() };
    let at = |s: i64| TimestampMs::from_millis(s * 1000);
    let budget = || Budget::new(i64::MAX, i64::MAX);
    for (query, time, want) in [
        ("one", 21, 1),
        ("one offset 60s", 201, 1),
        ("sum by (i) (three)", 201, 3),
        ("one[60s]", 201, 6),
        ("max_over_time(one[60s])", 201, 6),
        ("rate(three[60s])", 201, 18),
        ("max_over_time(one[60s] @ 30)", 201, 4),
        ("one[60s:5s]", 201, 12),
        ("max_over_time(one[60s:5s])", 201, 12),
        ("sum(max_over_time(three[60s:5s]))", 201, 36),
        ("max_over_time(one[59s])[20s:5s]", 201, 24),
        ("one + on() one", 201, 2),
        ("timestamp(three)", 201, 3),
        ("time()", 201, 0),
        ("absent_over_time(one[20s])", 201, 2),
    ] {
        let expr = parse(query).unwrap();
        let out = evaluate_instant(&store, &tenant, &expr, at(time), options, &budget()).unwrap();
        assert_eq!(out.1.samples, [want], "{query}");
        let unwanted = QueryOptions::default();
        let out = evaluate_instant(&store, &tenant, &expr, at(time), unwanted, &budget()).unwrap();
        assert_eq!(out.1.samples, [0_u64; 0], "{query}");
    }
    for (query, want) in [
        ("one", [1, 1, 1, 1]),
        ("increase(one[20s])", [2, 2, 2, 2]),
        ("count_over_time(three[1m:5s])", [36, 36, 36, 36]),
        ("sum_over_time(one[1000s])", [21, 21, 22, 22]),
        ("one @ 30 unless three offset 203s", [1, 4, 4, 4]),
    ] {
        let expr = parse(query).unwrap();
        let range = (at(201), at(220));
        let out = evaluate_range(&store, &tenant, &expr, range, 5_000, options, &budget()).unwrap();
        assert_eq!(out.1.samples, want, "{query}");
    }
}

#[test]
fn a_subquery_of_many_steps_needs_memory_whatever_it_reads() {
    // A million steps: of numbers alone, of one sample each, of samples that windows are made of.
    for query in [
        "sum_over_time(vector(1)[1000000s:1s])",
        "max_over_time((vector(1) + vector(2))[1000000s:1s])",
        "last_over_time(one[1000000s:1s])",
    ] {
        let expr = parse(query).unwrap();
        let ask = |bytes| {
            let (budget, options) = (Budget::new(i64::MAX, bytes), QueryOptions::default());
            let at = TimestampMs::from_millis(1_000_000_000);
            evaluate_instant(&store(), &TenantId::default(), &expr, at, options, &budget)
        };
        assert!(ask(1 << 30).is_ok(), "{query}");
        let refused = ask(30 << 20).unwrap_err().to_string();
        assert!(refused.contains("bytes of memory"), "{query}: {refused}");
    }
}
