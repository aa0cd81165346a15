//! What every call of a model costs us: reading a span, pricing it, judging it by budgets.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use criterion::{Criterion, criterion_group, criterion_main};
use obs_llm::budget::{Amount, Ask, BudgetSpec, Budgets};
use obs_llm::{PriceBook, call_from_span};
use obs_model::{
    AttributeValue, Attributes, Money, Resource, Scope, Span, SpanId, SpanKind, SpanStatus,
    TimestampNs, TraceId,
};
use std::hint::black_box;
use std::sync::Arc;

const NOW: i64 = 1_790_000_000_000_000_000;

fn span() -> Span {
    let text = |v: &str| AttributeValue::from(v);
    let pairs = [
        ("gen_ai.operation.name", text("chat")),
        ("gen_ai.provider.name", text("anthropic")),
        ("gen_ai.request.model", text("claude-sonnet-4-5")),
        ("gen_ai.response.model", text("claude-sonnet-4-5-20250929")),
        ("gen_ai.response.id", text("msg_01XFDUDYJgAACzvnptvVoYEL")),
        ("gen_ai.usage.input_tokens", AttributeValue::Int(2_000)),
        ("gen_ai.usage.output_tokens", AttributeValue::Int(300)),
        ("gen_ai.usage.cache_read.input_tokens", AttributeValue::Int(1_200)),
        ("gen_ai.conversation.id", text("talk-1")),
        ("user.id", text("ann")),
    ];
    Span {
        trace_id: TraceId::from_slice(&[1; 16]).unwrap(),
        span_id: SpanId::from_slice(&[1; 8]).unwrap(),
        parent_id: None,
        name: "chat claude-sonnet-4-5".into(),
        kind: SpanKind::Client,
        start: TimestampNs::from_nanos(NOW),
        end: TimestampNs::from_nanos(NOW + 1_000_000_000),
        status: SpanStatus::Unset,
        trace_state: String::new(),
        attributes: pairs.into_iter().collect::<Attributes>(),
        events: Vec::new(),
        links: Vec::new(),
        resource: Arc::new(Resource {
            attributes: Attributes::from_iter([("service.name", "app")]),
        }),
        scope: Arc::new(Scope::default()),
    }
}

fn calls(c: &mut Criterion) {
    let (span, book) = (span(), PriceBook::embedded());
    c.bench_function("read and price a call", |b| {
        b.iter(|| black_box(call_from_span(black_box(&span), &book)));
    });
    let call = call_from_span(&span, &book).unwrap();
    c.bench_function("price a call", |b| {
        b.iter(|| black_box(book.price(black_box(&call), &call.tokens)));
    });
}

fn budgets(c: &mut Criterion) {
    let mut all = Budgets::default();
    let spec = |text: String| serde_json::from_str::<BudgetSpec>(&text).unwrap().checked().unwrap();
    all.set(spec(r#"{"name":"all","limit":"1000000"}"#.into()));
    for i in 0..100 {
        let text = format!(r#"{{"name":"t{i}","limit":"1000","scope":{{"team":"t{i}"}}}}"#);
        all.set(spec(text));
    }
    let ask = Ask {
        scope: [("team".to_owned(), "t50".to_owned())].into(),
        amount: Amount { usd: Money::new(5, 3), tokens: 2_300, requests: 1 },
    };
    c.bench_function("judge an ask by 101 budgets", |b| {
        b.iter(|| black_box(all.check(black_box(&ask), NOW)));
    });
    let call = call_from_span(&span(), &PriceBook::embedded()).unwrap();
    c.bench_function("count a call in 101 budgets", |b| {
        b.iter(|| all.count(black_box(&call), None, None));
    });
}

criterion_group!(benches, calls, budgets);
criterion_main!(benches);
