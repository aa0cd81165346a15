//! What statements and conditions do to a span, a log record and a metric: one line each.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use obs_model::{
    AttributeValue, Attributes, LogRecord, Resource, Scope, Span, SpanEvent, SpanId, SpanKind,
    SpanStatus, TimestampNs, TraceId,
};
use obs_process::{Collector, Source, read};
use std::sync::Arc;

const PIPELINE: &str = "
receivers: {otlp: {protocols: {grpc: }}}
exporters: {debug: }
service: {pipelines: {SIGNAL: {receivers: [otlp], processors: [p], exporters: [debug]}}}
";

/// A file with one processor in a pipeline.
fn collector(signal: &str, processor: &str) -> Result<Collector, String> {
    let processor = processor.replace("processors:\n", "");
    let name = processor.split(':').next().unwrap_or_default().trim().to_owned();
    let text = PIPELINE.replace("SIGNAL", signal).replace("[p]", &format!("[{name}]"));
    read(&format!("{text}processors:\n  {}\n", processor.trim()), &|_| None)
}

fn span() -> Span {
    let attributes: Attributes = [
        ("http.method", AttributeValue::from("GET")),
        ("http.url", "https://api.example.com/users/42?token=abc".into()),
        ("retries", AttributeValue::Int(3)),
        ("cost", AttributeValue::Double(0.25)),
        ("ok", true.into()),
        ("tags", AttributeValue::Array(vec!["a".into(), "b".into()])),
        ("user", AttributeValue::Map(vec![("id".into(), "u1".into())])),
        ("json", r#"{"a": 1, "b": {"c": "x"}}"#.into()),
    ]
    .into_iter()
    .collect();
    Span {
        trace_id: TraceId::parse("0102030405060708090a0b0c0d0e0f10").unwrap(),
        span_id: SpanId::parse("0102030405060708").unwrap(),
        parent_id: None,
        name: "GET /users/42".into(),
        kind: SpanKind::Server,
        start: TimestampNs::from_nanos(1_000_000_000),
        end: TimestampNs::from_nanos(3_500_000_000),
        status: SpanStatus::Error("bad".into()),
        trace_state: String::new(),
        attributes,
        events: vec![SpanEvent {
            timestamp: TimestampNs::from_nanos(2_000_000_000),
            name: "exception".into(),
            attributes: [("exception.message", "boom")].into_iter().collect(),
        }],
        links: Vec::new(),
        resource: Arc::new(Resource {
            attributes: [("service.name", "shop"), ("host.name", "h1")].into_iter().collect(),
        }),
        scope: Arc::new(Scope { name: "lib".into(), version: "1".into(), ..Scope::default() }),
    }
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn transformed(context: &str, statement: &str) -> Result<Span, String> {
    let processor = format!(
        "transform: {{trace_statements: [{{context: {context}, statements: [{}]}}]}}",
        quoted(statement)
    );
    let c = collector("traces", &processor)?;
    let mut spans = c.pipelines.spans(Source::Otlp, vec![span()]);
    let errors: Vec<String> = c.pipelines.done().into_iter().filter_map(|d| d.error).collect();
    if !errors.is_empty() {
        return Err(errors.join("; "));
    }
    Ok(spans.remove(0))
}

#[test]
fn statements_change_spans() {
    // Statement, attribute, value as it is shown; an empty one means that it is not there.
    let cases = [
        (r#"set(attributes["x"], "y")"#, "x", "y"),
        (r#"set(attributes["x"], nil)"#, "x", ""),
        (r#"set(attributes["x"], attributes["retries"] * 2 + 1)"#, "x", "7"),
        (r#"set(attributes["x"], (1 + 2) * 3 - 4 / 2)"#, "x", "7"),
        (r#"set(attributes["x"], attributes["cost"] / 2)"#, "x", "0.125"),
        (r#"set(attributes["x"], -5)"#, "x", "-5"),
        (r#"set(attributes["x"], name)"#, "x", "GET /users/42"),
        (r#"set(attributes["x"], span.name)"#, "x", "GET /users/42"),
        (r#"set(attributes["x"], resource.attributes["service.name"])"#, "x", "shop"),
        (r#"set(attributes["x"], instrumentation_scope.name)"#, "x", "lib"),
        (r#"set(attributes["x"], trace_id.string)"#, "x", "0102030405060708090a0b0c0d0e0f10"),
        (r#"set(attributes["x"], kind.string)"#, "x", "Server"),
        (r#"set(attributes["x"], attributes["user"]["id"])"#, "x", "u1"),
        (r#"set(attributes["x"], attributes["tags"][1])"#, "x", "b"),
        (r#"set(attributes["user"]["id"], "u2")"#, "user", r#"{"id":"u2"}"#),
        (r#"set(attributes["new"]["deep"], 1)"#, "new", r#"{"deep":1}"#),
        (r#"set(attributes["x"], ["a", 1])"#, "x", r#"["a",1]"#),
        (r#"set(attributes["x"], {"a": 1})"#, "x", r#"{"a":1}"#),
        (r#"set(attributes["x"], 1) where status.code == STATUS_CODE_ERROR"#, "x", "1"),
        (r#"set(attributes["x"], 1) where kind == SPAN_KIND_CLIENT"#, "x", ""),
        (r#"set(attributes["x"], 1) where attributes["nope"] == nil"#, "x", "1"),
        (r#"set(attributes["x"], 1) where attributes["retries"] >= 3.0 or false"#, "x", "1"),
        (r#"set(attributes["x"], 1) where (attributes["retries"] + 1) * 2 == 8"#, "x", "1"),
        (r#"set(attributes["x"], 1) where end_time - start_time > Duration("2s")"#, "x", "1"),
        (r#"set(attributes["x"], 1) where IsMatch(name, "^GET")"#, "x", "1"),
        (r#"set(attributes["x"], 1) where IsRootSpan()"#, "x", "1"),
        (r#"set(attributes["x"], 1) where not IsString(attributes["retries"])"#, "x", "1"),
        (r#"set(attributes["x"], 1) where "3" == attributes["retries"]"#, "x", ""),
        (
            r#"set(attributes["x"], 1) where trace_id == TraceID(0x0102030405060708090a0b0c0d0e0f10)"#,
            "x",
            "1",
        ),
        (
            r#"set(attributes["x"], Concat([attributes["http.method"], "x", attributes["nope"]], "-"))"#,
            "x",
            "GET-x-<nil>",
        ),
        (r#"set(attributes["x"], Split(name, "/")[1])"#, "x", "users"),
        (r#"set(attributes["x"], Substring(name, 0, 3))"#, "x", "GET"),
        (
            r#"set(attributes["x"], ConvertCase("httpMethod name", "snake"))"#,
            "x",
            "http_method_name",
        ),
        (r#"set(attributes["x"], ConvertCase("http_method", "camel"))"#, "x", "HttpMethod"),
        (r#"set(attributes["x"], ToUpperCase("ab"))"#, "x", "AB"),
        (r#"set(attributes["x"], Int("12"))"#, "x", "12"),
        (r#"set(attributes["x"], Int(attributes["cost"]))"#, "x", "0"),
        (r#"set(attributes["x"], Double("1.5"))"#, "x", "1.5"),
        (r#"set(attributes["x"], String(attributes["ok"]))"#, "x", "true"),
        (r#"set(attributes["x"], Len(attributes["tags"]))"#, "x", "2"),
        (
            r#"set(attributes["x"], SHA256("a"))"#,
            "x",
            "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
        ),
        (r#"set(attributes["x"], SHA1("a"))"#, "x", "86f7e437faa5a7fce15d1ddcb9eaeaea377667b8"),
        (r#"set(attributes["x"], FNV("hello world"))"#, "x", "8618312879776256743"),
        (r#"set(attributes["x"], ParseJSON(attributes["json"])["b"]["c"])"#, "x", "x"),
        (r#"set(attributes["x"], ParseKeyValue("a=1 b=2")["b"])"#, "x", "2"),
        (r#"set(attributes["x"], ExtractPatterns(name, "^(?P<m>\\w+) ")["m"])"#, "x", "GET"),
        (r#"set(attributes["x"], Base64Decode("aGVsbG8="))"#, "x", "hello"),
        (r#"set(attributes["x"], Trim("  a "))"#, "x", "a"),
        (r#"set(attributes["x"], TrimPrefix("v1.2", "v"))"#, "x", "1.2"),
        (r#"set(attributes["x"], HasSuffix(name, "42"))"#, "x", "true"),
        (r#"set(attributes["x"], Index(name, "/"))"#, "x", "4"),
        (r#"set(attributes["x"], ContainsValue(attributes["tags"], "b"))"#, "x", "true"),
        (r#"set(attributes["x"], Hex(0xff01))"#, "x", "ff01"),
        (r#"append(attributes["tags"], "c")"#, "tags", r#"["a","b","c"]"#),
        (r#"append(attributes["x"], values=["a"])"#, "x", r#"["a"]"#),
        (r#"delete_key(attributes, "http.method")"#, "http.method", ""),
        (r#"delete_keys(attributes, ["http.method", "ok"])"#, "ok", ""),
        (r#"delete_matching_keys(attributes, "^http\\.")"#, "http.url", ""),
        (r#"keep_keys(attributes, ["retries"])"#, "http.url", ""),
        (r#"keep_matching_keys(attributes, "^http")"#, "retries", ""),
        (r#"limit(attributes, 2, ["cost"])"#, "cost", "0.25"),
        (r#"limit(attributes, 2, ["cost"])"#, "http.url", ""),
        (r#"merge_maps(attributes, ParseJSON(attributes["json"]), "upsert")"#, "a", "1"),
        (r#"merge_maps(attributes, {"retries": 9, "z": 1}, "insert")"#, "retries", "3"),
        (r#"merge_maps(attributes, {"retries": 9, "z": 1}, "update")"#, "z", ""),
        (r#"flatten(attributes, "f")"#, "f.user.id", "u1"),
        (r#"flatten(attributes)"#, "tags.0", "a"),
        (r#"replace_match(attributes["http.url"], "https://*", "hidden")"#, "http.url", "hidden"),
        (r#"replace_all_matches(attributes, "GE?", "x")"#, "http.method", "x"),
        (
            r#"replace_pattern(attributes["http.url"], "token=[^&]*", "token=***")"#,
            "http.url",
            "https://api.example.com/users/42?token=***",
        ),
        (
            r#"replace_pattern(attributes["http.url"], "users/(\\d+)", "u/$$1")"#,
            "http.url",
            "https://api.example.com/u/42?token=abc",
        ),
        (r#"replace_pattern(attributes["nope"], "a", "b")"#, "nope", ""),
        (
            r#"replace_all_patterns(attributes, "value", "example", "sample")"#,
            "http.url",
            "https://api.sample.com/users/42?token=abc",
        ),
        (r#"replace_all_patterns(attributes, "key", "^http\\.", "h_")"#, "h_method", "GET"),
        (r#"truncate_all(attributes, 5)"#, "http.url", "https"),
    ];
    for (statement, key, wanted) in cases {
        let got = transformed("span", statement);
        let span = got.unwrap_or_else(|e| panic!("{statement}: {e}"));
        let value = span.attributes.get(key).map(ToString::to_string).unwrap_or_default();
        assert_eq!(value, wanted, "{statement}");
    }
}

#[test]
fn statements_change_fields() {
    let at =
        |context: &str, s: &str| transformed(context, s).unwrap_or_else(|e| panic!("{s}: {e}"));
    assert_eq!(at("span", r#"set(name, "n")"#).name, "n");
    assert_eq!(at("span", "set(kind, SPAN_KIND_CLIENT)").kind, SpanKind::Client);
    assert_eq!(at("span", "set(status.code, STATUS_CODE_OK)").status, SpanStatus::Ok);
    assert_eq!(at("span", r#"set(status.message, "m")"#).status, SpanStatus::Error("m".into()));
    let s = at("span", r#"replace_pattern(name, "/\\d+", "/{id}")"#);
    assert_eq!(s.name, "GET /users/{id}");
    let s = at("spanevent", r#"set(attributes["exception.message"], span.name)"#);
    assert_eq!(s.events[0].attributes.get_str("exception.message"), Some("GET /users/42"));
    let s = at("resource", r#"set(attributes["host.name"], "h2")"#);
    assert_eq!(s.resource.attributes.get_str("host.name"), Some("h2"));
    let s = at("scope", r#"set(version, "2") where name == "lib""#);
    assert_eq!(s.scope.version, "2");
}

#[test]
fn what_cannot_be_is_refused_when_it_is_read() {
    for (statement, part) in [
        (r#"set(attributes["x"]"#, "\",\" is wanted at the end"),
        (r#"frobnicate(attributes)"#, "no editor has this name"),
        (r#"set(attributes["x"], Frob(1))"#, "no function is called Frob"),
        (r#"set(trace_id, 0x00)"#, "cannot be changed"),
        (r#"set(body, "x")"#, "no path"),
        (
            r#"set(attributes["x"], 1) where attributes["http.method"] == "GET" and not (retries_absent == nil)"#,
            "path",
        ),
        (r#"set(datapoint.attributes["x"], 1)"#, "no such part"),
        (r#"set(name["x"], 1)"#, "no keys"),
        (r#"set(attributes["x"], 1) where IsMatch(name, "(")"#, "no regular expression"),
        (r#"set(attributes["x"], UNKNOWN)"#, "no known constant"),
        (r#"delete_key(attributes)"#, "argument key is missing"),
        (r#"delete_key(attributes, "a", "b")"#, "too many arguments"),
        (r#"set(attributes["x"], "open)"#, "never closed"),
        (&format!("set(attributes[\"x\"], {}1{})", "(".repeat(200), ")".repeat(200)), "too deeply"),
    ] {
        let e = transformed("span", statement).expect_err(statement);
        assert!(e.contains(part), "{statement}: {e}");
    }
}

#[test]
fn what_fails_at_a_record_leaves_it_as_it_is() {
    for statement in [
        r#"set(attributes["x"], ParseJSON(name))"#,
        r#"set(attributes["x"], 1 / 0)"#,
        r#"set(kind, "text")"#,
        r#"set(attributes["x"], Substring(name, 5, 900))"#,
        r#"delete_key(attributes["retries"], "a")"#,
        r#"set(attributes["x"], 1) where Len(attributes["retries"]) > 1"#,
    ] {
        let processor = format!(
            "transform: {{trace_statements: [{{context: span, statements: [{}]}}]}}",
            quoted(statement)
        );
        let c = collector("traces", &processor).unwrap();
        assert_eq!(c.pipelines.spans(Source::Otlp, vec![span()]), [span()], "{statement}");
        assert_eq!(c.pipelines.done()[0].failed, 1, "{statement}");
    }
}

#[test]
fn processors_do_to_spans_what_the_collectors_do() {
    // Processor, then attribute and value; `name` is the span's name, `resource.` the resource's.
    let cases: &[(&str, &[(&str, &str)])] = &[
        (
            "attributes: {actions: [{key: a, value: 1, action: insert}, {key: http.method, value: x, action: insert}]}",
            &[("a", "1"), ("http.method", "GET")],
        ),
        (
            "attributes: {actions: [{key: a, value: 1, action: update}, {key: http.method, from_attribute: retries, action: update}]}",
            &[("a", ""), ("http.method", "3")],
        ),
        (
            "attributes/2: {actions: [{key: http.method, action: delete}, {pattern: ^http, action: delete}, {key: retries, action: hash}]}",
            &[
                ("http.method", ""),
                ("http.url", ""),
                ("retries", "4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce"),
            ],
        ),
        (
            "attributes: {actions: [{key: http.url, pattern: 'users/(?P<user_id>\\d+)', action: extract}, {key: retries, converted_type: string, action: convert}]}",
            &[("user_id", "42"), ("retries", "3")],
        ),
        (
            "attributes: {include: {match_type: strict, services: [other]}, actions: [{key: a, value: 1, action: upsert}]}",
            &[("a", "")],
        ),
        (
            "attributes: {include: {match_type: regexp, services: ['sh.p'], span_names: ['^GET']}, exclude: {match_type: strict, attributes: [{key: http.method, value: POST}]}, actions: [{key: a, value: 1, action: upsert}]}",
            &[("a", "1")],
        ),
        (
            "resource: {attributes: [{key: service.environment, value: prod, action: upsert}, {key: host.name, action: delete}]}",
            &[("resource.service.environment", "prod"), ("resource.host.name", "")],
        ),
        (
            "span: {name: {from_attributes: [http.method, retries], separator: '::'}}",
            &[("name", "GET::3")],
        ),
        ("span: {name: {from_attributes: [http.method, nope]}}", &[("name", "GET /users/42")]),
        (
            "span: {name: {to_attributes: {rules: ['/users/(?P<id>\\d+)$']}}}",
            &[("name", "GET /users/{id}"), ("id", "42")],
        ),
        (
            "redaction: {allow_all_keys: true, blocked_values: ['token=[a-z]+'], summary: debug}",
            &[
                ("http.url", "https://api.example.com/users/42?****"),
                ("redaction.masked.keys", "http.url"),
                ("redaction.masked.count", "1"),
            ],
        ),
        (
            "redaction: {allowed_keys: [retries, service.name], summary: info}",
            &[
                ("http.url", ""),
                ("retries", "3"),
                ("redaction.redacted.count", "7"),
                ("resource.host.name", ""),
            ],
        ),
        (
            "redaction: {allow_all_keys: true, blocked_key_patterns: ['url$']}",
            &[("http.url", "****")],
        ),
        (
            "pii_redaction: {custom_patterns: ['users/\\d+']}",
            &[("http.url", "https://api.example.com/****?token=abc")],
        ),
    ];
    for (processor, wanted) in cases {
        let c = collector("traces", processor).unwrap_or_else(|e| panic!("{processor}: {e}"));
        let s = c.pipelines.spans(Source::Otlp, vec![span()]).remove(0);
        for (key, value) in *wanted {
            let got = match key.strip_prefix("resource.") {
                Some(k) => s.resource.attributes.get(k),
                None => s.attributes.get(key),
            };
            let got = got.map(ToString::to_string).unwrap_or_default();
            let got = if *key == "name" { s.name.clone() } else { got };
            assert_eq!(got, *value, "{processor}: {key}");
        }
    }
}

#[test]
fn filters_drop_what_they_describe() {
    let cases = [
        (r#"filter: {traces: {span: ['attributes["http.method"] == "GET"']}}"#, 0, 1),
        (r#"filter: {traces: {span: ['name == "x"', 'kind == SPAN_KIND_CLIENT']}}"#, 1, 1),
        (r#"filter: {traces: {spanevent: ['name == "exception"']}}"#, 1, 0),
        (r#"filter: {traces: {resource: ['attributes["host.name"] == "h1"']}}"#, 0, 1),
        ("filter: {spans: {include: {match_type: strict, services: [shop]}}}", 1, 1),
        ("filter: {spans: {exclude: {match_type: regexp, span_names: ['^GET']}}}", 0, 1),
    ];
    for (processor, spans, events) in cases {
        let c = collector("traces", processor).unwrap_or_else(|e| panic!("{processor}: {e}"));
        let left = c.pipelines.spans(Source::Otlp, vec![span()]);
        assert_eq!(left.len(), spans, "{processor}");
        assert_eq!(c.pipelines.done()[0].dropped[0].1, 1 - spans as u64, "{processor}");
        left.iter().for_each(|s| assert_eq!(s.events.len(), events, "{processor}"));
    }
}

#[test]
fn personal_data_is_found_and_numbers_are_not() {
    let c = collector("logs", "pii_redaction: {}").unwrap();
    let masked = |line: &str| {
        let r = LogRecord { line: line.into(), ..LogRecord::default() };
        c.pipelines.logs(Source::Otlp, vec![r]).remove(0).line
    };
    for (line, wanted) in [
        ("mail ann.b@example.co.uk now", "mail **** now"),
        ("card 4111 1111 1111 1111.", "card ****."),
        ("at 1700000000001 ns 1700000000000000001", "at 1700000000001 ns 1700000000000000001"),
        ("key sk-abcdefghijklmnop1234 used", "key **** used"),
        ("call (555) 123-4567", "call (****"),
        ("ssn 123-45-6789", "ssn ****"),
        ("plain", "plain"),
    ] {
        let got = masked(line);
        assert!(got == wanted || line.contains("555") && !got.contains("4567"), "{line}: {got}");
    }
}

#[test]
fn logs_are_processed_and_find_their_streams() {
    let yaml = r#"transform: {log_statements: ['set(resource.attributes["service.name"], "renamed")', 'set(log.severity_text, "WARN") where IsMatch(log.body, "slow")', 'set(log.severity_number, SEVERITY_NUMBER_WARN2)', 'merge_maps(log.cache, ParseJSON(log.body), "upsert") where IsMatch(log.body, "^\\{")', 'set(log.attributes["user"], log.cache["user"])']}"#;
    let c = collector("logs", yaml).unwrap();
    let record = |line: &str| LogRecord { line: line.into(), ..span_log() };
    let logs =
        c.pipelines.logs(Source::Otlp, vec![record("slow one"), record(r#"{"user": "ann"}"#)]);
    assert_eq!(logs[0].stream.get("service_name"), "renamed");
    assert!(Arc::ptr_eq(&logs[0].resource, &logs[1].resource), "equal resources are one");
    assert_eq!((logs[0].severity_text.as_str(), logs[0].severity_number), ("WARN", 14));
    assert_eq!(logs[1].severity_text, "");
}

fn span_log() -> LogRecord {
    LogRecord { resource: span().resource, ..LogRecord::default() }
}
