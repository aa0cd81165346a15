"""An OpenTelemetry Collector's file, as it is: SDKs send, processors do their work, and what is
kept is found over the usual APIs."""

import http.server
import json
import os
import subprocess
import threading
import time
import urllib.error
import urllib.request

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind
from running import BINARY, Server, until

FILE = """
receivers:
  otlp:
    protocols:
      grpc: {endpoint: 0.0.0.0:4327, max_recv_msg_size_mib: 4}
      http: {endpoint: 0.0.0.0:4328}
  jaeger: {protocols: {thrift_http: , thrift_compact: }}
  zipkin:
  prometheus:
    config:
      scrape_configs:
        - job_name: app
          scrape_interval: 1s
          static_configs: [{targets: ['${env:APP}']}]
          metric_relabel_configs:
            - {source_labels: [path], regex: '/v(\\d+)/.*', target_label: version, replacement: 'v$$1'}

processors:
  memory_limiter: {check_interval: 1s, limit_mib: 512, spike_limit_mib: 128}
  batch: {timeout: 10s, send_batch_size: 1024, send_batch_max_size: 2048}
  resource:
    attributes:
      - {key: service.environment, value: production, action: upsert}
      - {key: service.cluster, value: eu-1, action: insert}
  attributes/privacy:
    actions:
      - {key: http.user_agent, action: delete}
      - {key: user.email, action: hash}
  span/names:
    name: {to_attributes: {rules: ['^/users/(?P<user_id>\\d+)$']}}
  filter/health:
    error_mode: ignore
    traces: {span: ['attributes["http.route"] == "/health"']}
    metrics: {metric: ['IsMatch(name, "^debug[._]")']}
  transform:
    trace_statements:
      - context: span
        statements:
          - set(status.message, "hidden") where attributes["secret"] != nil
          - delete_key(attributes, "secret")
    log_statements:
      - set(log.severity_text, "ERROR") where IsMatch(log.body, "(?i)failed")
  redaction: {allow_all_keys: true, blocked_values: ['4[0-9]{12}(?:[0-9]{3})?']}
  llm_enrichment:
  token_counting:
  cost_calculation:
  pii_redaction: {enabled: true}

exporters:
  otlp/jaeger: {endpoint: jaeger:4317, tls: {insecure: true}}
  prometheus: {endpoint: 0.0.0.0:8889, namespace: shop, const_labels: {cluster: eu-1}}
  loki: {endpoint: 'http://loki:3100/loki/api/v1/push'}
  debug: {verbosity: basic}

connectors:
  spanmetrics:
    dimensions: [{name: http.route, default: none}, {name: service.cluster}]
  servicegraph:

extensions:
  health_check: {endpoint: 0.0.0.0:13133}
  pprof:
  zpages:

service:
  extensions: [health_check, pprof, zpages]
  telemetry: {metrics: {address: 0.0.0.0:8888}}
  pipelines:
    traces:
      receivers: [otlp, jaeger, zipkin]
      processors: [memory_limiter, resource, attributes/privacy, span/names, filter/health, transform, redaction, llm_enrichment, token_counting, cost_calculation, pii_redaction, batch]
      exporters: [otlp/jaeger, spanmetrics, servicegraph, debug]
    metrics:
      receivers: [otlp, prometheus]
      processors: [memory_limiter, resource, filter/health, batch]
      exporters: [prometheus]
    metrics/spans:
      receivers: [spanmetrics, servicegraph]
      exporters: [prometheus]
    logs:
      receivers: [otlp]
      processors: [memory_limiter, resource, transform, pii_redaction, batch]
      exporters: [loki]
"""

PAGE = b"""# TYPE app_requests_total counter
app_requests_total{path="/v2/x"} 7
# TYPE debug_things gauge
debug_things 1
"""


class App(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_):
        pass


def values(server, query):
    found = server.get("/api/v1/query", "prometheus", query=query)["data"]["result"]
    return {json.dumps(r["metric"], sort_keys=True): float(r["value"][1]) for r in found}


def start(tmp_path, text, env=None):
    (tmp_path / "otel.yaml").write_text(text)
    (tmp_path / "observatory.yaml").write_text("collector: {config_file: otel.yaml}\n")
    data = tmp_path / "data"
    data.mkdir()
    return Server(data, "--config", str(tmp_path / "observatory.yaml"), env=env)


def test_a_collectors_file_is_obeyed(tmp_path):
    app = http.server.ThreadingHTTPServer(("127.0.0.1", 0), App)
    threading.Thread(target=app.serve_forever, daemon=True).start()
    server = start(tmp_path, FILE, {"APP": f"127.0.0.1:{app.server_port}"})
    otlp = f"http://{server.endpoints['otlp-http']}"
    resource = Resource.create({"service.name": "web"})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{otlp}/v1/traces")))
    tracer = provider.get_tracer("t")
    attributes = {
        "http.user_agent": "curl", "user.email": "ann@example.com", "secret": "x",
        "card": "paid with 4111111111111111", "http.route": "/users/:id", "note": "from bob@example.com",
    }
    with tracer.start_as_current_span("/users/42", kind=SpanKind.SERVER, attributes=attributes) as span:
        trace_id = f"{span.get_span_context().trace_id:032x}"
    with tracer.start_as_current_span("probe", attributes={"http.route": "/health"}):
        pass
    provider.shutdown()
    trace = until(lambda: server.get("/api/traces", "jaeger", service="web")["data"])
    assert [t["traceID"] for t in trace] == [trace_id], "the probe is dropped"
    span, process = trace[0]["spans"][0], next(iter(trace[0]["processes"].values()))
    tags = {t["key"]: t["value"] for t in span["tags"]}
    assert span["operationName"] == "/users/{user_id}"
    assert tags["user_id"] == "42" and "http.user_agent" not in tags and "secret" not in tags
    assert len(tags["user.email"]) == 64
    assert tags["card"] == "paid with ****" and tags["note"] == "from ****"
    of_process = {t["key"]: t["value"] for t in process["tags"]}
    assert of_process["service.environment"] == "production" and of_process["service.cluster"] == "eu-1"
    # Series of spans carry the dimensions.
    calls = until(lambda: values(server, 'traces_span_metrics_calls_total{service_name="web"}'))
    assert all('"http_route": "/users/:id"' in k and '"service_cluster": "eu-1"' in k for k in calls), calls
    assert list(calls.values()) == [1.0]

    # Metrics of SDKs and of the scrape have the exporter's namespace and labels.
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=f"{otlp}/v1/metrics"), 3600e3)
    meters = MeterProvider([reader], resource=resource)
    meters.get_meter("m").create_counter("orders").add(3, {"kind": "a"})
    meters.get_meter("m").create_counter("debug.things").add(1)
    meters.shutdown()
    found = until(lambda: values(server, "shop_orders_total"))
    assert list(found.values()) == [3.0] and '"cluster": "eu-1"' in next(iter(found))
    found = until(lambda: values(server, "shop_app_requests_total"))
    assert list(found.values()) == [7.0]
    assert '"version": "v2"' in next(iter(found)) and '"cluster": "eu-1"' in next(iter(found))
    assert not values(server, '{__name__=~".*debug.*"}') and not values(server, "app_requests_total")

    # Logs.
    record = {"timeUnixNano": str(time.time_ns()), "body": {"stringValue": "login failed for ann@example.com"}}
    body = {"resourceLogs": [{
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "web"}}]},
        "scopeLogs": [{"logRecords": [record]}],
    }]}
    assert server.post("/v1/logs", json.dumps(body).encode(), "otlp-http")[0] == 200
    stream = until(lambda: server.get("/loki/api/v1/query_range", "loki", query='{service_name="web"}')["data"]["result"])[0]
    assert stream["values"][0][1] == "login failed for ****"
    assert stream["stream"]["severity_text"] == "ERROR", stream

    # The collector's own ports.
    health = server.get("/", "collector-health")
    assert health["status"] == "Server available"
    with urllib.request.urlopen(f"http://{server.endpoints['collector-metrics']}/metrics") as r:
        lines = r.read().decode().splitlines()
    until(lambda: values(server, 'otelcol_processor_dropped_spans{processor="filter/health"}'))
    assert any(line.startswith("collector_spans_received_total") for line in lines)

    # A reload takes a changed file; a wrong one changes nothing and says why.
    (tmp_path / "otel.yaml").write_text(FILE.replace("production", "staging"))
    assert post(server, "/-/reload")[0] == 200
    provider = TracerProvider(resource=Resource.create({"service.name": "later"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{otlp}/v1/traces")))
    provider.get_tracer("t").start_span("x").end()
    provider.shutdown()
    trace = until(lambda: server.get("/api/traces", "jaeger", service="later")["data"])[0]
    tags = {t["key"]: t["value"] for t in next(iter(trace["processes"].values()))["tags"]}
    assert tags["service.environment"] == "staging"
    (tmp_path / "otel.yaml").write_text(FILE.replace("  redaction: {", "  redactor: {"))
    status, text = post(server, "/-/reload")
    assert status == 500 and 'references processor "redaction" which is not configured' in text, text
    server.stop()
    app.shutdown()


def post(server, path):
    request = urllib.request.Request(f"http://{server.endpoints['prometheus']}{path}", method="POST")
    try:
        with urllib.request.urlopen(request) as r:
            return r.status, r.read().decode()
    except urllib.error.HTTPError as e:
        return e.code, e.read().decode()


def test_a_share_of_traces_counts_for_all(tmp_path):
    text = """
receivers: {otlp: {protocols: {http: }}}
processors: {probabilistic_sampler: {sampling_percentage: 25}}
exporters: {nop: }
service: {pipelines: {traces: {receivers: [otlp], processors: [probabilistic_sampler], exporters: [nop]}}}
"""
    server = start(tmp_path, text)
    now = time.time_ns()
    spans = [
        {"traceId": f"{i * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}", "spanId": f"{i + 1:016x}", "name": "op",
         "startTimeUnixNano": str(now), "endTimeUnixNano": str(now + 1000),
         "attributes": [{"key": "gen_ai.request.model", "value": {"stringValue": "gpt-4o"}},
                        {"key": "gen_ai.system", "value": {"stringValue": "openai"}},
                        {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
                        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "10"}}]}
        for i in range(1, 2001)
    ]
    body = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": spans}]}]}
    assert server.post("/v1/traces", json.dumps(body).encode(), "otlp-http")[0] == 200
    stored = until(lambda: server.sql("SELECT count(*) AS n FROM spans"))[0]["n"]
    assert 400 < int(stored) < 600, stored
    calls = server.sql("SELECT count(*) AS n FROM llm_calls")[0]["n"]
    assert int(calls) == 2000, "what was paid for is kept of every trace"
    counted = server.get(
        "/api/metrics/query", "tempo", q="{} | count_over_time()", start=now // 10**9 - 60, end=now // 10**9 + 60
    )
    total = counted["series"][0]["value"]
    assert abs(total - int(stored) * 4) < 1, (total, stored)
    server.stop()


def test_check_config_names_what_is_not_supported(tmp_path):
    def check(text):
        file = tmp_path / "otel.yaml"
        file.write_text(text)
        command = [BINARY, "check", "config", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "APP": "app:1"})
        return done.returncode, done.stdout + done.stderr

    status, text = check(FILE)
    assert status == 0 and "exporters.otlp/jaeger: stands for this store; nothing is sent to jaeger:4317" in text, text
    for old, new, wanted in [
        ("  zipkin:\n", "  zipkin:\n  hostmetrics:\n", "receivers.hostmetrics is in no pipeline"),
        ("receivers: [otlp, prometheus]", "receivers: [otlp, kafka]", 'references receiver "kafka" which is not configured'),
        ("[loki]", "[kafka]", 'references exporter "kafka" which is not configured'),
        ("  loki: {", "  kafka: {", 'references exporter "loki" which is not configured'),
        ("  debug: {verbosity: basic}", "  debug: {}\n  datadog: {}", "ok"),
        ("exporters: [loki]", "exporters: [debug, datadog]", 'references exporter "datadog"'),
        ("action: hash", "action: encrypt", "attributes/privacy: action \"encrypt\""),
        ("delete_key(attributes,", "delete_kye(attributes,", "no editor has this name"),
        ("verbosity: basic", "verbosity: ${env:NOT_SET_AT_ALL}", "environment variable NOT_SET_AT_ALL is not set"),
        ("tls: {insecure: true}", "tls: {insecure: true}}\n  otlp/2: {", "ok"),
    ]:
        assert old in FILE, old
        status, text = check(FILE.replace(old, new, 1))
        assert wanted in text, (new, text)
