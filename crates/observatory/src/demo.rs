//! `serve --demo`: the telemetry of a small LLM platform, sent to ourselves over OTLP.
//!
//! gateway → router → memory (embedding, vector search) → agent → inference → MCP tool →
//! inference. Everything follows from a trace's number, so the same start time gives the same
//! data. Two hours are filled in first; an incident at one provider lies in them.

use crate::send::{attribute, post, resource, scope, text};
use crate::serve::wall_clock;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
    ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point,
};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;
const MINUTE: u64 = 60 * SECOND;
/// How far back the history goes, and the distance of its traces and of live ones.
const HISTORY: u64 = 120 * MINUTE;
const HISTORY_STEP: u64 = 5 * SECOND;
const LIVE_STEP: Duration = Duration::from_secs(2);
/// The incident, in time before the start.
const INCIDENT: (u64, u64) = (50 * MINUTE, 38 * MINUTE);
const SCRAPE_STEP: u64 = 15 * SECOND;
/// Spans of the one large trace.
const LARGE_TRACE_SPANS: u64 = 10_000;

struct Model {
    provider: &'static str,
    request: &'static str,
    response: &'static str,
    /// Milliseconds to the first token, tokens a second.
    first_ms: u64,
    speed: u64,
}

const MODELS: [Model; 7] = [
    Model {
        provider: "openai",
        request: "gpt-4o-mini",
        response: "gpt-4o-mini-2024-07-18",
        first_ms: 260,
        speed: 110,
    },
    Model {
        provider: "anthropic",
        request: "claude-sonnet-4-5",
        response: "claude-sonnet-4-5-20250929",
        first_ms: 620,
        speed: 70,
    },
    Model {
        provider: "openai",
        request: "gpt-4o",
        response: "gpt-4o-2024-08-06",
        first_ms: 410,
        speed: 80,
    },
    Model {
        provider: "gcp.gemini",
        request: "gemini-2.5-flash",
        response: "gemini-2.5-flash",
        first_ms: 330,
        speed: 160,
    },
    Model {
        provider: "mistral_ai",
        request: "mistral-large-latest",
        response: "mistral-large-2411",
        first_ms: 480,
        speed: 60,
    },
    Model {
        provider: "vllm",
        request: "llama-3.1-8b-instruct",
        response: "llama-3.1-8b-instruct",
        first_ms: 90,
        speed: 140,
    },
    Model {
        provider: "acme",
        request: "acme-experimental-1",
        response: "acme-experimental-1",
        first_ms: 700,
        speed: 40,
    },
];

struct Topic {
    question: &'static str,
    tool: &'static str,
    arguments: &'static str,
    result: &'static str,
    answer: &'static str,
}

const TOPICS: [Topic; 6] = [
    Topic {
        question: "Where is my order 58213?",
        tool: "lookup_order",
        arguments: r#"{"order_id":"58213"}"#,
        result: r#"{"status":"shipped","carrier":"DHL","eta":"tomorrow"}"#,
        answer: "Your order 58213 has shipped with DHL and should arrive tomorrow.",
    },
    Topic {
        question: "What will the weather be in Paris tomorrow?",
        tool: "get_weather",
        arguments: r#"{"city":"Paris","day":"tomorrow"}"#,
        result: r#"{"summary":"light rain","high_c":14}"#,
        answer: "Tomorrow in Paris: light rain, up to 14 °C. Take an umbrella.",
    },
    Topic {
        question: "Summarise our refund policy for digital goods.",
        tool: "search_docs",
        arguments: r#"{"query":"refund policy digital goods"}"#,
        result: "Digital goods can be refunded within 14 days unless they were downloaded.",
        answer: "Digital goods are refundable within 14 days, unless they have been downloaded.",
    },
    Topic {
        question: "退款需要多长时间?",
        tool: "search_docs",
        arguments: r#"{"query":"退款 时间"}"#,
        result: "退款通常需要 5 到 7 个工作日。",
        answer: "退款一般在 5 到 7 个工作日内到账。",
    },
    Topic {
        question: "Convert 250 EUR to USD, please.",
        tool: "convert_currency",
        arguments: r#"{"amount":250,"from":"EUR","to":"USD"}"#,
        result: r#"{"amount":291.4,"rate":1.1656}"#,
        answer: "250 EUR are about 291.40 USD at today's rate of 1.1656.",
    },
    Topic {
        question: "Book a table for two on Friday at eight.",
        tool: "book_table",
        arguments: r#"{"people":2,"day":"Friday","time":"20:00"}"#,
        result: r#"{"confirmed":true,"reference":"T-7731"}"#,
        answer: "Done: a table for two on Friday at 20:00, reference T-7731.",
    },
];

const TEAMS: [&str; 4] = ["support", "growth", "search", "internal-tools"];

/// A deterministic source of numbers (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in `[low, high)`.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.roll() % (high - low).max(1)
    }

    fn percent(&mut self, p: u64) -> bool {
        self.roll() % 100 < p
    }
}

/// Everything of one or more traces, by service.
#[derive(Default)]
struct Telemetry {
    spans: BTreeMap<&'static str, Vec<Span>>,
    logs: BTreeMap<&'static str, Vec<LogRecord>>,
}

fn service_resource(service: &str) -> Option<opentelemetry_proto::tonic::resource::v1::Resource> {
    resource(
        service,
        &[
            ("deployment.environment.name", "demo"),
            ("service.version", "1.4.2"),
            ("host.name", "demo-1"),
        ],
    )
}

impl Telemetry {
    fn span_count(&self) -> usize {
        self.spans.values().map(Vec::len).sum()
    }

    fn bodies(self) -> (Vec<u8>, Vec<u8>) {
        let spans = |(service, spans): (&'static str, Vec<Span>)| {
            let scope_spans = vec![ScopeSpans {
                scope: scope("observatory.demo"),
                spans,
                ..ScopeSpans::default()
            }];
            ResourceSpans {
                resource: service_resource(service),
                scope_spans,
                ..ResourceSpans::default()
            }
        };
        let logs = |(service, log_records): (&'static str, Vec<LogRecord>)| {
            let scope_logs = vec![ScopeLogs {
                scope: scope("observatory.demo"),
                log_records,
                ..ScopeLogs::default()
            }];
            ResourceLogs {
                resource: service_resource(service),
                scope_logs,
                ..ResourceLogs::default()
            }
        };
        let traces = ExportTraceServiceRequest {
            resource_spans: self.spans.into_iter().map(spans).collect(),
        };
        let logs =
            ExportLogsServiceRequest { resource_logs: self.logs.into_iter().map(logs).collect() };
        (traces.encode_to_vec(), logs.encode_to_vec())
    }
}

/// One trace while it is being built.
struct Builder<'a> {
    out: &'a mut Telemetry,
    dice: Dice,
    trace_id: Vec<u8>,
}

impl Builder<'_> {
    fn id(&mut self) -> Vec<u8> {
        (self.dice.roll() | 1).to_be_bytes().to_vec()
    }

    fn span(
        &mut self,
        service: &'static str,
        name: &str,
        kind: i32,
        parent: &[u8],
        id: &[u8],
        (start, end): (u64, u64),
        attributes: Vec<KeyValue>,
        error: Option<&str>,
    ) {
        let status = error.map(|m| Status { code: 2, message: m.into() });
        let span = Span {
            trace_id: self.trace_id.clone(),
            span_id: id.to_vec(),
            parent_span_id: parent.to_vec(),
            name: name.into(),
            kind,
            start_time_unix_nano: start,
            end_time_unix_nano: end,
            attributes,
            status,
            ..Span::default()
        };
        self.out.spans.entry(service).or_default().push(span);
    }

    fn log(
        &mut self,
        service: &'static str,
        time: u64,
        span: &[u8],
        severity: (i32, &str),
        body: &serde_json::Value,
    ) {
        let record = LogRecord {
            time_unix_nano: time,
            observed_time_unix_nano: time,
            severity_number: severity.0,
            severity_text: severity.1.into(),
            body: Some(AnyValue { value: Some(Value::StringValue(body.to_string())) }),
            trace_id: self.trace_id.clone(),
            span_id: span.to_vec(),
            ..LogRecord::default()
        };
        self.out.logs.entry(service).or_default().push(record);
    }
}

const INTERNAL: i32 = 1;
const SERVER: i32 = 2;
const CLIENT: i32 = 3;

fn int(key: &str, v: u64) -> KeyValue {
    attribute(key, Value::IntValue(i64::try_from(v).unwrap_or(i64::MAX)))
}

fn message(role: &str, content: &str) -> serde_json::Value {
    json!({"role": role, "parts": [{"type": "text", "content": content}]})
}

/// Attributes of a chat call in OpenTelemetry's convention.
fn chat(m: &Model, user: &str, session: &str, response_id: &str) -> Vec<KeyValue> {
    vec![
        text("gen_ai.operation.name", "chat"),
        text("gen_ai.provider.name", m.provider),
        text("gen_ai.request.model", m.request),
        text("gen_ai.conversation.id", session),
        text("gen_ai.response.id", response_id),
        text("user.id", user),
        text("gen_ai.agent.name", "support-agent"),
    ]
}

struct Call {
    start: u64,
    input: u64,
    cached: u64,
    output: u64,
    is_tool: bool,
}

/// Adds an inference call; returns its end, and false if it failed.
fn inference(
    b: &mut Builder<'_>,
    m: &Model,
    t: &Topic,
    parent: &[u8],
    who: (&str, &str),
    c: &Call,
    fails: bool,
    slow: u64,
) -> (u64, bool) {
    let id = b.id();
    let response_id = format!("resp_{:012x}", b.dice.roll() >> 16);
    let first = (m.first_ms * slow * b.dice.between(70, 160) / 100).max(20);
    let mut a = chat(m, who.0, who.1, &response_id);
    let name = format!("chat {}", m.request);
    let mut input = vec![message("user", t.question)];
    if !c.is_tool {
        input.push(json!({"role": "assistant", "parts": [{"type": "tool_call", "id": "call_1", "name": t.tool, "arguments": t.arguments}]}));
        input.push(json!({"role": "tool", "parts": [{"type": "tool_call_response", "id": "call_1", "response": t.result}]}));
    }
    a.push(text("gen_ai.system_instructions", r#"[{"type":"text","content":"You are a helpful support agent. Answer briefly and use tools for facts."}]"#));
    a.push(text("gen_ai.input.messages", &json!(input).to_string()));
    if fails {
        let end = c.start + first * MS;
        a.push(text("error.type", "RateLimitError"));
        b.span(
            "inference",
            &name,
            CLIENT,
            parent,
            &id,
            (c.start, end),
            a,
            Some("429 rate limit reached for requests per minute"),
        );
        b.log("inference", end, &id, (17, "ERROR"), &json!({"level": "error", "msg": "provider refused the request", "provider": m.provider, "model": m.request, "status": 429, "latency_ms": first}));
        return (end, false);
    }
    let end = c.start + first * MS + c.output * SECOND / m.speed;
    let finish = if c.is_tool { "tool_call" } else { "stop" };
    let output = if c.is_tool {
        json!([{"role": "assistant", "parts": [{"type": "tool_call", "id": "call_1", "name": t.tool, "arguments": t.arguments}], "finish_reason": finish}])
    } else {
        json!([{"role": "assistant", "parts": [{"type": "text", "content": t.answer}], "finish_reason": finish}])
    };
    a.push(text("gen_ai.response.model", m.response));
    a.push(attribute(
        "gen_ai.response.time_to_first_chunk",
        Value::DoubleValue(first as f64 / 1000.0),
    ));
    a.push(text("gen_ai.response.finish_reasons", &json!([finish]).to_string()));
    a.push(int("gen_ai.usage.input_tokens", c.input));
    a.push(int("gen_ai.usage.output_tokens", c.output));
    if c.cached > 0 {
        a.push(int("gen_ai.usage.cache_read.input_tokens", c.cached));
    }
    a.push(text("gen_ai.output.messages", &output.to_string()));
    b.span("inference", &name, CLIENT, parent, &id, (c.start, end), a, None);
    let ms = (end - c.start) / MS;
    b.log("inference", end, &id, (9, "INFO"), &json!({"level": "info", "msg": "completion finished", "provider": m.provider, "model": m.response, "input_tokens": c.input, "output_tokens": c.output, "latency_ms": ms, "finish_reason": finish}));
    (end, true)
}

/// Adds trace `number`, which starts at `start`; `origin` is when the demo began.
fn add_trace(out: &mut Telemetry, number: u64, start: u64, origin: u64) {
    let mut dice = Dice(number.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let weighted = [0, 0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 5];
    let pick = usize::try_from(dice.between(0, weighted.len() as u64)).unwrap_or(0);
    let model = if number % 97 == 13 { 6 } else { weighted.get(pick).copied().unwrap_or(0) };
    let (Some(m), Some(t)) =
        (MODELS.get(model), TOPICS.get((number % TOPICS.len() as u64) as usize))
    else {
        return;
    };
    let before = origin.saturating_sub(start);
    let incident =
        m.provider == "anthropic" && start < origin && before < INCIDENT.0 && before > INCIDENT.1;
    let fails = dice.percent(if incident { 65 } else { 2 });
    let slow = if incident { 4 } else { 1 };
    let trace_id = [dice.roll().to_be_bytes(), (dice.roll() | 1).to_be_bytes()].concat();
    let user = format!("user-{}", dice.between(1, 40));
    let session = format!("session-{}", number / 3);
    let team = TEAMS.get((number % 4) as usize).copied().unwrap_or("support");
    let mut b = Builder { out, dice, trace_id };
    let [root, route, retrieve, embed, search, agent, tool] = std::array::from_fn(|_| b.id());
    let who = (user.as_str(), session.as_str());

    let t_embed = start + 14 * MS;
    let e_embed = t_embed + b.dice.between(25, 70) * MS;
    let e_search = e_embed + b.dice.between(4, 30) * MS;
    let words = t.question.split_whitespace().count() as u64;
    let embedding = vec![
        text("gen_ai.operation.name", "embeddings"),
        text("gen_ai.provider.name", "openai"),
        text("gen_ai.request.model", "text-embedding-3-small"),
        text("gen_ai.response.model", "text-embedding-3-small"),
        int("gen_ai.usage.input_tokens", words * 2 + 3),
    ];
    b.span(
        "memory",
        "embeddings text-embedding-3-small",
        CLIENT,
        &retrieve,
        &embed,
        (t_embed, e_embed),
        embedding,
        None,
    );
    b.span(
        "memory",
        "search knowledge",
        CLIENT,
        &retrieve,
        &search,
        (e_embed, e_search),
        vec![
            text("db.system.name", "qdrant"),
            text("db.collection.name", "knowledge"),
            int("db.response.returned_rows", 4),
        ],
        None,
    );
    b.span(
        "memory",
        "retrieve context",
        SERVER,
        &route,
        &retrieve,
        (start + 12 * MS, e_search + 2 * MS),
        vec![text("gen_ai.operation.name", "retrieval")],
        None,
    );

    let t_agent = e_search + 5 * MS;
    let context = b.dice.between(700, 2600);
    let cached = if b.dice.percent(45) { context / 2 } else { 0 };
    let first = Call {
        start: t_agent + 3 * MS,
        input: context,
        cached,
        output: b.dice.between(18, 45),
        is_tool: true,
    };
    let (mut end, mut ok) = inference(&mut b, m, t, &agent, who, &first, fails, slow);
    if ok {
        let e_tool = end + 2 * MS + b.dice.between(30, 400) * MS;
        let broken = b.dice.percent(2);
        let a = vec![
            text("gen_ai.operation.name", "execute_tool"),
            text("gen_ai.tool.name", t.tool),
            text("mcp.method.name", "tools/call"),
            text("gen_ai.tool.call.arguments", t.arguments),
            text("gen_ai.tool.call.result", t.result),
        ];
        b.span(
            "mcp-tools",
            &format!("execute_tool {}", t.tool),
            CLIENT,
            &agent,
            &tool,
            (end + 2 * MS, e_tool),
            a,
            broken.then_some("tool timed out"),
        );
        let level = if broken { (13, "WARN") } else { (9, "INFO") };
        b.log("mcp-tools", e_tool, &tool, level, &json!({"level": level.1.to_lowercase(), "msg": "tool call", "tool": t.tool, "duration_ms": (e_tool - end) / MS, "ok": !broken}));
        let second = Call {
            start: e_tool + 4 * MS,
            input: context + 160,
            cached,
            output: b.dice.between(60, 320),
            is_tool: false,
        };
        (end, ok) = inference(&mut b, m, t, &agent, who, &second, false, slow);
    }
    let problem = (!ok).then_some("upstream model failed");
    b.span(
        "router",
        "invoke_agent support-agent",
        INTERNAL,
        &route,
        &agent,
        (t_agent, end + MS),
        vec![
            text("gen_ai.operation.name", "invoke_agent"),
            text("gen_ai.agent.name", "support-agent"),
        ],
        problem,
    );
    b.span(
        "router",
        "route request",
        SERVER,
        &root,
        &route,
        (start + 5 * MS, end + 3 * MS),
        vec![text("router.policy", "cost-aware"), text("router.model", m.request)],
        problem,
    );
    let status = if ok { 200 } else { 502 };
    let a = vec![
        text("http.request.method", "POST"),
        text("http.route", "/v1/chat"),
        int("http.response.status_code", status),
        text("user.id", &user),
        text("team", team),
    ];
    b.span("gateway", "POST /v1/chat", SERVER, &[], &root, (start, end + 6 * MS), a, problem);
    let level = if ok { (9, "INFO") } else { (17, "ERROR") };
    b.log("gateway", end + 6 * MS, &root, level, &json!({"level": level.1.to_lowercase(), "msg": "request finished", "method": "POST", "path": "/v1/chat", "status": status, "duration_ms": (end + 6 * MS - start) / MS, "user": user, "team": team}));
}

/// A batch evaluation: one trace of many spans, to see that the page stays fast.
fn large_trace(start: u64) -> Telemetry {
    let mut out = Telemetry::default();
    let mut b = Builder { out: &mut out, dice: Dice(42), trace_id: vec![0xe7; 16] };
    let root = b.id();
    let per = (LARGE_TRACE_SPANS - 1) / 3;
    let mut t = start;
    for i in 0..per {
        let case = b.id();
        let (step, judge) = (b.id(), b.id());
        let end = t + b.dice.between(20, 90) * MS;
        let failed = b.dice.percent(3).then_some("expected answer not found");
        b.span(
            "evaluator",
            "run prompt",
            INTERNAL,
            &case,
            &step,
            (t + MS, end - 8 * MS),
            vec![int("eval.case", i)],
            None,
        );
        b.span(
            "evaluator",
            "judge answer",
            INTERNAL,
            &case,
            &judge,
            (end - 7 * MS, end - MS),
            vec![text("eval.metric", "exact match")],
            failed,
        );
        b.span(
            "evaluator",
            &format!("case {i}"),
            INTERNAL,
            &root,
            &case,
            (t, end),
            vec![int("eval.case", i)],
            failed,
        );
        t += b.dice.between(4, 12) * MS;
    }
    b.span(
        "evaluator",
        "nightly-eval run",
        INTERNAL,
        &[],
        &root,
        (start, t + SECOND),
        vec![text("eval.suite", "support-regression"), int("eval.cases", per)],
        None,
    );
    out
}

const BOUNDS: [f64; 9] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const SERVICES: [(&str, &str, u64, f64); 5] = [
    ("gateway", "/v1/chat", 240, 2.6),
    ("router", "/route", 240, 2.5),
    ("memory", "/retrieve", 240, 0.09),
    ("inference", "/complete", 430, 1.3),
    ("mcp-tools", "/call", 210, 0.2),
];

/// The platform's own metrics at a time: cumulative since the history's start.
fn metrics(time: u64, history_start: u64, origin: u64) -> Vec<u8> {
    let minutes = (time - history_start) as f64 / MINUTE as f64;
    // A wave over the hour, the same for every reader.
    let wave = |phase: f64| 1.0 + 0.3 * (minutes / 9.0 + phase).sin();
    let mut resource_metrics = Vec::new();
    let mut add = |service: &str, metrics: Vec<Metric>| {
        let scope_metrics = vec![ScopeMetrics {
            scope: scope("observatory.demo"),
            metrics,
            ..ScopeMetrics::default()
        }];
        resource_metrics.push(ResourceMetrics {
            resource: service_resource(service),
            scope_metrics,
            ..ResourceMetrics::default()
        });
    };
    let before = origin.saturating_sub(time);
    let degraded = time < origin && before < INCIDENT.0 && before > INCIDENT.1;
    for (i, (service, route, per_minute, typical)) in SERVICES.iter().enumerate() {
        let total = *per_minute as f64 * (minutes + 0.9 * (1.0 - (minutes / 9.0 + i as f64).cos()));
        let failed = total * 0.012
            + if degraded {
                (INCIDENT.0 - before) as f64 / MINUTE as f64 * 14.0
            } else if time + INCIDENT.1 >= origin {
                168.0
            } else {
                0.0
            };
        let mut points = Vec::new();
        for (status, n) in [(200, total), (502, failed)] {
            let (mut counts, mut below) = (Vec::new(), 0.0);
            for b in BOUNDS {
                // Share of requests faster than the bound: a smooth curve around the typical time.
                let share = 1.0 / (1.0 + (*typical / b).powi(3));
                counts.push((n * (share - below)) as u64);
                below = share;
            }
            counts.push((n * (1.0 - below)) as u64);
            let count = counts.iter().sum();
            points.push(HistogramDataPoint {
                attributes: vec![
                    text("http.route", route),
                    text("http.request.method", "POST"),
                    int("http.response.status_code", status),
                ],
                start_time_unix_nano: history_start,
                time_unix_nano: time,
                count,
                sum: Some(n * typical * 1.1),
                bucket_counts: counts,
                explicit_bounds: BOUNDS.to_vec(),
                ..HistogramDataPoint::default()
            });
        }
        let histogram = Histogram {
            data_points: points,
            aggregation_temporality: AggregationTemporality::Cumulative as i32,
        };
        let mut list = vec![Metric {
            name: "http.server.request.duration".into(),
            unit: "s".into(),
            description: "Duration of HTTP server requests.".into(),
            data: Some(Data::Histogram(histogram)),
            ..Metric::default()
        }];
        if *service == "inference" {
            list.extend(gpu_metrics(time, &wave));
            let point = NumberDataPoint {
                start_time_unix_nano: history_start,
                time_unix_nano: time,
                value: Some(number_data_point::Value::AsDouble((minutes * 3.1).floor())),
                ..NumberDataPoint::default()
            };
            let sum = Sum {
                data_points: vec![point],
                aggregation_temporality: AggregationTemporality::Cumulative as i32,
                is_monotonic: true,
            };
            list.push(Metric {
                name: "inference.retries".into(),
                description: "Requests repeated after a provider's failure.".into(),
                data: Some(Data::Sum(sum)),
                ..Metric::default()
            });
        }
        add(service, list);
    }
    ExportMetricsServiceRequest { resource_metrics }.encode_to_vec()
}

fn gpu_metrics(time: u64, wave: &dyn Fn(f64) -> f64) -> Vec<Metric> {
    let gauge = |name: &str, unit: &str, description: &str, value: &dyn Fn(f64) -> f64| {
        let point = |gpu: u32| NumberDataPoint {
            attributes: vec![text("gpu", &gpu.to_string())],
            time_unix_nano: time,
            value: Some(number_data_point::Value::AsDouble(value(f64::from(gpu)))),
            ..NumberDataPoint::default()
        };
        Metric {
            name: name.into(),
            unit: unit.into(),
            description: description.into(),
            data: Some(Data::Gauge(Gauge { data_points: (0..2).map(point).collect() })),
            ..Metric::default()
        }
    };
    vec![
        gauge("hw.gpu.utilization", "1", "Share of time the GPU was busy.", &|g| {
            (0.62 * wave(g)).min(1.0)
        }),
        gauge("hw.gpu.memory.usage", "By", "GPU memory in use.", &|g| 58e9 + 6e9 * wave(g + 1.0)),
        gauge("hw.gpu.temperature", "Cel", "GPU temperature.", &|g| 51.0 + 12.0 * wave(g)),
        gauge("vllm.queue.depth", "{request}", "Requests waiting for the engine.", &|g| {
            (3.0 * wave(g)).round()
        }),
    ]
}

/// Sends history, then live traffic until told to stop. Failures are logged and skipped: the
/// server may be refusing writes, which a demo should show and not hide.
pub(crate) async fn run(address: SocketAddr, stop: CancellationToken) {
    let client = obs_objects::http_client();
    let origin = wall_clock().nanos().unsigned_abs();
    let history_start = origin - HISTORY;
    let send = async |path: &str, body: Vec<u8>| {
        if let Err(e) = post(&client, &format!("http://{address}{path}"), body, None).await {
            tracing::warn!(error = %e, "demo data was not stored");
        }
    };
    let flush = async |batch: &mut Telemetry| {
        let (spans, logs) = std::mem::take(batch).bodies();
        send("/v1/traces", spans).await;
        send("/v1/logs", logs).await;
    };
    // The newest first, so that a page opened at once shows something.
    let mut batch = Telemetry::default();
    for back in 1..HISTORY / HISTORY_STEP {
        add_trace(&mut batch, HISTORY / HISTORY_STEP - back, origin - back * HISTORY_STEP, origin);
        if batch.span_count() > 2000 {
            if stop.is_cancelled() {
                return;
            }
            flush(&mut batch).await;
        }
    }
    flush(&mut batch).await;
    let mut time = history_start + SCRAPE_STEP;
    while time < origin && !stop.is_cancelled() {
        send("/v1/metrics", metrics(time, history_start, origin)).await;
        time += SCRAPE_STEP;
    }
    flush(&mut large_trace(origin - 20 * MINUTE)).await;
    let mut number = HISTORY / HISTORY_STEP;
    let mut ticks = tokio::time::interval(LIVE_STEP);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = ticks.tick() => {}
        }
        // A trace is sent when it has ended, so it starts a few seconds ago.
        let now = wall_clock().nanos().unsigned_abs();
        number += 1;
        add_trace(&mut batch, number, now.saturating_sub(8 * SECOND), origin);
        flush(&mut batch).await;
        if number.is_multiple_of(SCRAPE_STEP / LIVE_STEP.as_nanos() as u64) {
            send("/v1/metrics", metrics(now, history_start, origin)).await;
        }
    }
}
