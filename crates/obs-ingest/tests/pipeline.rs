//! The write path over a store that remembers, and can refuse.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use obs_ingest::{Ingest, Limits, Telemetry};
use obs_llm::PriceBook;
use obs_model::*;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

#[derive(Debug, Default)]
struct Recorder {
    batches: Mutex<Vec<WriteBatch>>,
    refuses: AtomicBool,
}

impl Append for Recorder {
    fn append<'a>(&'a self, _: &'a TenantId, batch: WriteBatch) -> AppendFuture<'a> {
        Box::pin(async move {
            if self.refuses.load(Ordering::Relaxed) {
                return Err(AppendError::Overloaded("test"));
            }
            self.batches.lock().unwrap().push(batch);
            Ok(Appended::default())
        })
    }
}

const NOW: i64 = 1_790_000_000_000_000_000;

fn setup() -> (Arc<Recorder>, Ingest) {
    let store = Arc::new(Recorder::default());
    let ingest = Ingest::new(
        store.clone(),
        Limits::default(),
        PriceBook::embedded(),
        Telemetry::new().unwrap(),
    );
    (store, ingest)
}

fn call_span(id: u8, response: &str) -> Span {
    Span {
        trace_id: TraceId::from_slice(&[1; 16]).unwrap(),
        span_id: SpanId::from_slice(&[id; 8]).unwrap(),
        parent_id: None,
        name: "chat".into(),
        kind: SpanKind::Client,
        start: TimestampNs::from_nanos(NOW - 1_000_000_000),
        end: TimestampNs::from_nanos(NOW),
        status: SpanStatus::Unset,
        trace_state: String::new(),
        attributes: [
            ("gen_ai.operation.name", AttributeValue::from("chat")),
            ("gen_ai.provider.name", "openai".into()),
            ("gen_ai.request.model", "gpt-4o".into()),
            ("gen_ai.response.id", response.into()),
            ("gen_ai.usage.input_tokens", 1_000_000.into()),
        ]
        .into_iter()
        .collect(),
        events: vec![],
        links: vec![],
        resource: Arc::default(),
        scope: Arc::default(),
    }
}

async fn send(ingest: &Ingest, spans: Vec<Span>) -> Result<u64, AppendError> {
    let now = TimestampNs::from_nanos(NOW);
    ingest.spans(&TenantId::default(), "otlp", spans, now).await.map(|o| o.accepted)
}

/// Returns the last value of a derived series after a tick.
async fn derived(store: &Recorder, ingest: &Ingest, name: &str) -> Option<f64> {
    ingest.tick(TimestampMs::from_millis(NOW / 1_000_000)).await.unwrap();
    let batches = store.batches.lock().unwrap();
    let series =
        batches.iter().rev().flat_map(|b| &b.series).find(|s| s.labels.metric_name() == name)?;
    match series.samples.last()?.value {
        SampleValue::Float(f) => Some(f),
        SampleValue::Histogram(_) => None,
    }
}

fn states(store: &Recorder) -> Vec<CostState> {
    store.batches.lock().unwrap().iter().flat_map(|b| &b.calls).map(|c| c.cost_state).collect()
}

#[tokio::test]
async fn a_repeated_batch_counts_once() {
    let (store, ingest) = setup();
    for _ in 0..3 {
        assert_eq!(send(&ingest, vec![call_span(1, "r1"), call_span(1, "r1")]).await, Ok(2));
    }
    assert_eq!(states(&store), [CostState::Priced]);
    assert_eq!(derived(&store, &ingest, "llm_cost_usd_total").await, Some(2.5));
    assert_eq!(derived(&store, &ingest, "llm_requests_total").await, Some(1.0));
}

#[tokio::test]
async fn gateway_and_sdk_of_one_response_cost_once() {
    let (store, ingest) = setup();
    send(&ingest, vec![call_span(1, "r1"), call_span(2, "r1")]).await.unwrap();
    send(&ingest, vec![call_span(3, "r1"), call_span(4, "r2")]).await.unwrap();
    assert_eq!(
        states(&store),
        [CostState::Priced, CostState::Duplicate, CostState::Duplicate, CostState::Priced]
    );
    assert_eq!(derived(&store, &ingest, "llm_total_cost_tracked_dollars").await, Some(5.0));
}

#[tokio::test]
async fn what_the_store_refuses_is_not_counted_and_may_come_again() {
    let (store, ingest) = setup();
    store.refuses.store(true, Ordering::Relaxed);
    assert!(send(&ingest, vec![call_span(1, "r1")]).await.is_err());
    store.refuses.store(false, Ordering::Relaxed);
    assert_eq!(derived(&store, &ingest, "llm_requests_total").await, None);
    send(&ingest, vec![call_span(1, "r1")]).await.unwrap();
    assert_eq!(states(&store), [CostState::Priced]);
    assert_eq!(derived(&store, &ingest, "llm_requests_total").await, Some(1.0));
}

#[tokio::test]
async fn limits_hold_at_the_edge_and_the_rest_is_kept() {
    let (store, ingest) = setup();
    let now = TimestampNs::from_nanos(NOW);
    let limits = Limits::default();
    let mut late = call_span(1, "r1");
    late.start = now.add_nanos(limits.future_ns);
    late.end = late.start;
    let mut later = call_span(2, "r2");
    later.start = now.add_nanos(limits.future_ns + 1);
    later.end = later.start;
    let outcome = ingest.spans(&TenantId::default(), "otlp", vec![late, later], now).await.unwrap();
    assert_eq!((outcome.accepted, outcome.rejected), (1, 1));

    let wide = |n: usize| {
        let pairs = (0..n - 1).map(|i| (format!("l{i:02}"), "v".to_owned()));
        let labels = Labels::from_pairs(pairs.chain([("__name__".to_owned(), "m".to_owned())]));
        let tenant = TenantId::default();
        ingest.naming(&tenant).labels(format!("{n}").as_bytes(), &|| Ok(labels.clone()))
    };
    let max = limits.labels_max;
    assert!(wide(max + 1).unwrap_err().contains("41 labels"));
    let at = |ns: i64| Sample::float((NOW + ns) / 1_000_000, 1.0);
    let points = vec![
        (wide(max - 1).unwrap(), at(0)),
        (wide(max).unwrap(), at(limits.future_ns)),
        (wide(max).unwrap(), at(limits.future_ns + 1_000_000)),
    ];
    let outcome = ingest.metrics(&TenantId::default(), points, vec![], vec![], now).await.unwrap();
    assert_eq!((outcome.accepted, outcome.rejected), (2, 1));
    assert!(outcome.reasons[0].contains("in the future"));
    assert_eq!(store.batches.lock().unwrap().len(), 2);
}
