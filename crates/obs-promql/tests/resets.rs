//! What is told of native histograms whose counters were reset, and that it changes no number.

use obs_model::{
    Budget, Histogram, Labels, ResetHint, Sample, SampleValue, Series, TenantId, TimestampMs,
};
use obs_promql::{Output, QueryOptions, evaluate_instant, parse};
use obs_testkit::MemoryStore;

const CONFLICT: &str = "conflicting counter resets during histogram aggregation";

/// A histogram a minute, with so many observations in one bucket.
fn series(i: &str, counts: &[f64], hint: ResetHint) -> Series {
    let sample = |(at, count): (usize, &f64)| {
        let positive = vec![(0, *count)];
        let h = Histogram {
            count: *count,
            sum: *count,
            positive,
            reset_hint: hint,
            ..Default::default()
        };
        let timestamp = TimestampMs::from_millis(at as i64 * 60_000);
        Sample { timestamp, value: SampleValue::Histogram(h.into()) }
    };
    let labels = Labels::from_pairs([("__name__", "m"), ("i", i)]);
    Series { labels, samples: counts.iter().enumerate().map(sample).collect() }
}

#[test]
fn resets_are_told_from_the_sample_before() {
    let mut store = MemoryStore::default();
    store.series.push(series("falls", &[5.0, 3.0, 4.0, 6.0], ResetHint::Unknown));
    // What a sender says of its own chunks does not hold for ours.
    store.series.push(series("rises", &[5.0, 6.0, 7.0, 9.0], ResetHint::NoReset));
    store.series.push(series("gauge", &[5.0, 3.0, 4.0, 6.0], ResetHint::Gauge));
    let ask = |query: &str, at: i64| {
        let time = TimestampMs::from_millis(at * 60_000);
        let budget = Budget::new(i64::MAX, i64::MAX);
        let expr = parse(query).unwrap();
        let options = QueryOptions::default();
        evaluate_instant(&store, &TenantId::default(), &expr, time, options, &budget).unwrap()
    };
    for (query, at, conflicts) in [
        ("histogram_count(sum(m{i!=\"gauge\"}))", 0, false),
        ("histogram_count(sum(m{i!=\"gauge\"}))", 1, true),
        ("histogram_count(avg(m{i!=\"gauge\"}))", 1, true),
        ("histogram_count(sum(m{i!=\"gauge\"}))", 2, false),
        ("histogram_count(sum(m{i=\"falls\"}))", 1, false),
        // The first sample of a window is told from the one before the window.
        ("histogram_count(sum_over_time(m{i=\"falls\"}[2m]))", 2, true),
        ("histogram_count(sum_over_time(m{i=\"falls\"}[2m]))", 3, false),
        ("histogram_count(sum_over_time(m{i=\"rises\"}[3m]))", 3, false),
        ("histogram_count(avg_over_time(m{i=\"gauge\"}[3m]))", 3, false),
        ("histogram_avg(-sum(m{i!=\"gauge\"}))", 1, true),
        // Where buckets are read it is not told.
        ("sum(m{i!=\"gauge\"})", 1, false),
        ("histogram_quantile(0.5, sum(m{i!=\"gauge\"}))", 1, false),
    ] {
        let (_, told) = ask(query, at);
        let says = told.warnings.iter().any(|w| w.0.contains(CONFLICT));
        assert_eq!(says, conflicts, "{query} at {at}: {told:?}");
    }
    for (query, want) in [
        // 5 → 3 is a reset, over three of four minutes and extrapolated.
        ("histogram_count(increase(m{i=\"falls\"}[4m]))", 8.0),
        ("histogram_count(increase(m{i=\"rises\"}[4m]))", 16.0 / 3.0),
    ] {
        let Output::Vector(rows) = ask(query, 3).0 else { panic!("{query}") };
        let SampleValue::Float(got) = rows[0].1.value else { panic!("{query}") };
        assert!((got - want).abs() < 1e-9, "{query}: {got}");
    }
    // Buckets of two kinds have no sum.
    let mut custom = series("custom", &[1.0; 4], ResetHint::Unknown);
    for s in &mut custom.samples {
        if let SampleValue::Histogram(h) = &mut s.value {
            let bounds = vec![1.0];
            *h = Histogram { schema: -53, custom_bounds: bounds, ..(**h).clone() }.into();
        }
    }
    store.series.push(custom);
    for (query, mixes) in [
        ("sum(m{i=~\"custom|rises\"})", true),
        ("avg by (job) (m)", true),
        ("sum by (i) (m)", false),
        ("count(m)", false),
    ] {
        let expr = parse(query).unwrap();
        let (time, budget) = (TimestampMs::from_millis(60_000), Budget::new(i64::MAX, i64::MAX));
        let options = QueryOptions::default();
        let (_, told) =
            evaluate_instant(&store, &TenantId::default(), &expr, time, options, &budget).unwrap();
        let text = "vector contains a mix of histograms with exponential and custom buckets";
        let says = told.warnings.iter().any(|w| w.0.contains(text));
        assert_eq!(says, mixes, "{query}: {told:?}");
    }
}
