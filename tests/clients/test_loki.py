"""Loki's HTTP API as Grafana, logcli and Promtail call it, against the binary."""

import json
import os
import struct
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml
from running import BINARY, Server, until
from websockets.sync.client import connect

RULES = """
groups:
  - name: errors
    type: logql
    interval: 1m
    rules:
      - alert: ManyErrors
        expr: sum(count_over_time({app="shop"} |= "error" [5m])) > 100
        for: 5m
        labels: {severity: page}
        annotations: {summary: "too many"}
"""


class Loki:
    def __init__(self, server):
        self.server = server
        self.base = f"http://{server.endpoints['loki']}"

    def call(self, path, headers=None, body=None, **params):
        query = urllib.parse.urlencode(params, doseq=True)
        request = urllib.request.Request(f"{self.base}{path}?{query}", data=body, headers=headers or {})
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    def get(self, path, headers=None, **params):
        status, text = self.call(path, headers, **params)
        assert status == 200, f"{path} {params}: {status} {text}"
        return json.loads(text)

    def push(self, streams):
        body = json.dumps({"streams": streams}).encode()
        status, text = self.call("/loki/api/v1/push", {"Content-Type": "application/json"}, body)
        assert status == 204, text


@pytest.fixture(scope="module")
def loki(tmp_path_factory):
    directory = tmp_path_factory.mktemp("loki")
    rules = directory / "rules.yml"
    rules.write_text(RULES)
    config = directory / "observatory.yaml"
    config.write_text("prometheus: {rule_files: [rules.yml]}\n")
    server = Server(directory / "data", "--config", str(config))
    out = Loki(server)
    now = time.time_ns()
    out.now = now
    minute = 60 * 10**9

    def at(i):
        return str(now - (30 - i) * minute)

    out.push([
        {
            "stream": {"app": "shop", "env": "prod"},
            "values": [
                [at(1), '{"level":"info","msg":"order 17 placed","ms":12,"user":{"id":"u1"}}'],
                [at(2), '{"level":"error","msg":"payment failed","ms":950,"user":{"id":"u2"}}'],
                [at(3), '{"level":"info","msg":"order 18 placed","ms":20,"user":{"id":"u1"}}', {"trace_id": "0af7651916cd43dd8448eb211c80319c", "pod": "p-1"}],
            ],
        },
        {
            "stream": {"app": "db", "env": "prod"},
            "values": [[at(4), "level=warn took=1.5s rows=17"], [at(5), "level=info took=3ms rows=2"]],
        },
        {"stream": {"app": "web", "env": "dev"}, "values": [[at(6), "GET /你好 200"]]},
    ])
    yield out
    server.stop()


def lines(answer):
    return [line for s in answer["data"]["result"] for _, line, *_ in s["values"]]


def test_log_queries(loki):
    got = loki.get("/loki/api/v1/query_range", query='{app="shop"} | json | level="error" | line_format "{{.user_id}}: {{.msg}}"')
    assert lines(got) == ["u2: payment failed"]
    stream = got["data"]["result"][0]["stream"]
    assert stream["app"] == "shop" and stream["user_id"] == "u2" and stream["ms"] == "950"
    summary = got["data"]["stats"]["summary"]
    assert summary["totalLinesProcessed"] == 3 and summary["totalEntriesReturned"] == 1
    assert lines(loki.get("/loki/api/v1/query_range", query='{env="dev"} |= "你好"')) == ["GET /你好 200"]
    # The newest come first unless asked otherwise; the interval thins out.
    newest = loki.get("/loki/api/v1/query_range", query='{app="shop"} | json msg | line_format "{{.msg}}"', limit=1)
    assert lines(newest) == ["order 18 placed"]
    oldest = loki.get("/loki/api/v1/query_range", query='{app="shop"} | json msg | line_format "{{.msg}}"', limit=1, direction="forward")
    assert lines(oldest) == ["order 17 placed"]
    thin = loki.get("/loki/api/v1/query_range", query='{app="db"}', interval="10m", direction="forward")
    assert lines(thin) == ["level=warn took=1.5s rows=17"]


def test_labels_by_category(loki):
    flags = {"X-Loki-Response-Encoding-Flags": "categorize-labels"}
    got = loki.get("/loki/api/v1/query_range", flags, query='{app="shop"} | json | msg="order 18 placed"')
    assert got["data"]["encodingFlags"] == ["categorize-labels"]
    (stream,) = got["data"]["result"]
    assert stream["stream"] == {"app": "shop", "env": "prod"}
    ((_, _, categories),) = stream["values"]
    assert categories["structuredMetadata"] == {"trace_id": "0af7651916cd43dd8448eb211c80319c", "pod": "p-1"}
    assert categories["parsed"] == {"level": "info", "msg": "order 18 placed", "ms": "20", "user_id": "u1"}


def test_metric_queries(loki):
    got = loki.get("/loki/api/v1/query", query='sum by (level) (count_over_time({app="shop"} | json [1h]))')
    assert got["data"]["resultType"] == "vector"
    assert {r["metric"]["level"]: r["value"][1] for r in got["data"]["result"]} == {"info": "2", "error": "1"}
    got = loki.get("/loki/api/v1/query", query='quantile_over_time(1, {app="shop"} | json | unwrap ms [1h]) by (app)')
    assert got["data"]["result"][0]["value"][1] == "950"
    got = loki.get("/loki/api/v1/query_range", query='sum(count_over_time({env="prod"}[10m]))', step="600", start=loki.now - 3600 * 10**9, end=loki.now)
    assert got["data"]["resultType"] == "matrix"
    # Grafana's health check.
    got = loki.get("/loki/api/v1/query", query="vector(1)+vector(1)", time="4000000000")
    assert got["data"]["result"][0]["value"] == [4000000000, "2"]
    got = loki.get("/loki/api/v1/query", query="1+1")
    assert got["data"]["resultType"] == "scalar"


@pytest.mark.parametrize(
    ("path", "params", "status", "text"),
    [
        ("query_range", {"query": "{"}, 400, "parse error at line 1, col 2: syntax error: unexpected $end"),
        ("query_range", {"query": "{}"}, 400, "parse error : queries require at least one regexp or equality matcher"),
        ("query_range", {"query": '{a="b"}', "step": "0.4s", "limit": "0"}, 400, "limit must be a positive value"),
        ("query_range", {"query": 'rate({a="b"}[1m])', "step": "0.4s"}, 400, 'cannot parse "0.4s" to a valid duration'),
        ("query_range", {"query": '{a="b"}', "limit": "5001"}, 400, "max entries limit per query exceeded"),
        ("query_range", {"query": '{a="b"}', "direction": "up"}, 400, "invalid direction"),
        ("query_range", {"query": '{a="b"}', "start": "20", "end": "10"}, 400, "end timestamp must not be before"),
        ("query", {"query": '{a="b"}'}, 400, "log queries are not supported as an instant query type"),
        ("query", {"query": 'count_over_time({app="db"} | json [1h])'}, 400, "pipeline error: 'JSONParserErr'"),
        ("series", {}, 400, "0 matcher groups"),
    ],
)
def test_refusals(loki, path, params, status, text):
    got = loki.call(f"/loki/api/v1/{path}", **params)
    assert got[0] == status and text in got[1], got


def test_labels_and_series(loki):
    assert loki.get("/loki/api/v1/labels")["data"] == ["app", "env"]
    assert loki.get("/loki/api/v1/label/app/values")["data"] == ["db", "shop", "web"]
    assert loki.get("/loki/api/v1/label/app/values", query='{env="prod"}')["data"] == ["db", "shop"]
    got = loki.get("/loki/api/v1/series", **{"match[]": ['{app="web"}', '{app="db"}']})
    assert got["data"] == [{"app": "db", "env": "prod"}, {"app": "web", "env": "dev"}]
    assert len(loki.get("/loki/api/v1/series", match="{}")["data"]) == 3


def test_volumes_and_statistics(loki):
    stats = loki.get("/loki/api/v1/index/stats", query='{app="db"}')
    assert stats == {"streams": 1, "chunks": 1, "entries": 2, "bytes": 54}
    got = loki.get("/loki/api/v1/index/volume", query='{app=~".+"}', limit=2)
    assert [r["metric"]["app"] for r in got["data"]["result"]] == ["shop", "db"]
    assert got["data"]["result"][1]["value"][1] == "54"
    got = loki.get("/loki/api/v1/index/volume", query='{app=~".+"}', targetLabels="env")
    assert [r["metric"] for r in got["data"]["result"]] == [{"env": "prod"}, {"env": "dev"}]
    got = loki.get("/loki/api/v1/index/volume_range", query='{app="db"}', step="60")
    assert [v for _, v in got["data"]["result"][0]["values"]] == ["28", "26"]


def test_what_grafana_explores(loki):
    labels = loki.get("/loki/api/v1/detected_labels")["detectedLabels"]
    assert {"label": "app", "cardinality": 3} in labels
    fields = {f["label"]: f for f in loki.get("/loki/api/v1/detected_fields", query='{app=~"shop|db"}')["fields"]}
    assert fields["ms"]["type"] == "int" and fields["ms"]["parsers"] == ["json"] and fields["ms"]["cardinality"] == 3
    assert fields["user_id"]["jsonPath"] == ["user", "id"]
    assert fields["took"]["type"] == "duration" and fields["took"]["parsers"] == ["logfmt"]
    assert fields["pod"]["parsers"] is None
    values = loki.get("/loki/api/v1/detected_field/user_id/values", query='{app="shop"}')["values"]
    assert values == ["u1", "u2"]
    patterns = loki.get("/loki/api/v1/patterns", query='{app="db"}')["data"]
    assert len(patterns) >= 1 and sum(n for p in patterns for _, n in p["samples"]) == 2


def test_format_query(loki):
    got = loki.get("/loki/api/v1/format_query", query='sum( rate({app = "x"}|="y"[5m]) )by(z)')
    assert got["data"] == 'sum by (z)(rate({app="x"} |= "y"[5m]))'
    status, text = loki.call("/loki/api/v1/format_query", query="{")
    assert status == 400 and json.loads(text)["status"] == "invalid-query"


def test_ruler(loki):
    status, text = loki.call("/loki/api/v1/rules")
    assert status == 200
    ((file, groups),) = yaml.safe_load(text).items()
    assert file.endswith("rules.yml")
    rule = groups[0]["rules"][0]
    assert rule["alert"] == "ManyErrors" and rule["for"] == "5m" and rule["labels"] == {"severity": "page"}
    path = f"/loki/api/v1/rules/{urllib.parse.quote(file, safe='')}/errors"
    status, text = loki.call(path)
    assert status == 200 and yaml.safe_load(text)["name"] == "errors"
    assert loki.call("/loki/api/v1/rules/none")[0] == 404
    groups = loki.get("/prometheus/api/v1/rules")["data"]["groups"]
    assert groups[0]["name"] == "errors"


def test_rules_are_written(tmp_path):
    group = """
name: noise
interval: 1s
rules:
  - alert: AnyNoise
    expr: count_over_time({app="noise"}[1h]) > 0
    labels: {severity: page}
  - record: noise:lines
    expr: sum(count_over_time({app="noise"}[1h]))
"""
    kind = {"Content-Type": "application/yaml"}
    path = "/loki/api/v1/rules/team%20a"

    def delete(path, headers=None):
        request = urllib.request.Request(f"{loki.base}{path}", method="DELETE", headers=headers or {})
        try:
            return urllib.request.urlopen(request).status
        except urllib.error.HTTPError as e:
            return e.code

    def groups():
        return [g["name"] for g in loki.get("/prometheus/api/v1/rules")["data"]["groups"]]

    server = Server(tmp_path / "data")
    try:
        loki = Loki(server)
        loki.push([{"stream": {"app": "noise"}, "values": [[str(time.time_ns()), "x"]]}])
        status, text = loki.call(path, kind, group.encode())
        assert (status, json.loads(text)["status"]) == (202, "success")
        until(lambda: server.get("/api/v1/query", "prometheus", query="noise:lines")["data"]["result"])
        until(lambda: server.get("/api/v1/alerts", "prometheus")["data"]["alerts"])
        assert list(yaml.safe_load(loki.call("/loki/api/v1/rules")[1])) == ["team a"]
        assert yaml.safe_load(loki.call(path + "/noise")[1])["rules"][0]["labels"] == {"severity": "page"}
        for wrong, why in (
            ("name: g", "no rules"),
            ("rules: []", "Groupname must not be empty"),
            ("name: g\nrules: [{record: x, expr: '{a='}]", "could not parse expression"),
            ("name: g\nrules: [{record: x, expr: '{a=\"b\"}'}]", "metric query"),
            ("- 1", "a map"),
        ):
            status, text = loki.call(path, kind, wrong.encode())
            assert status == 400 and why in text, text
        # Who sends more than is read must see the answer, not a connection that ends.
        large = group.encode().replace(b"noise", b"x" * (1 << 20))
        assert [loki.call(path, kind, large)[0] for _ in range(10)] == [413] * 10
        assert loki.call(path, {"Content-Type": "text/plain"}, group.encode())[0] == 415
        assert loki.call(path, {**kind, "X-Scope-OrgID": "other"}, group.encode())[0] == 400
        server.stop()
        (tmp_path / "data" / "endpoints.json").unlink(missing_ok=True)
        server = Server(tmp_path / "data")
        loki = Loki(server)
        assert groups() == ["noise"]
        assert (delete(path + "/none"), delete(path + "/noise"), delete(path)) == (404, 202, 404)
        assert groups() == [] and loki.call("/loki/api/v1/rules")[0] == 404
    finally:
        server.stop()


def test_tail(loki):
    query = urllib.parse.urlencode({"query": '{app="tail"} | logfmt | n > 1', "limit": 10})
    loki.push([{"stream": {"app": "tail"}, "values": [[str(time.time_ns()), "n=5 before"]]}])
    with connect(f"ws://{loki.server.endpoints['loki']}/loki/api/v1/tail?{query}") as socket:
        first = json.loads(socket.recv(timeout=10))
        assert [v[1] for s in first["streams"] for v in s["values"]] == ["n=5 before"]
        for n in (1, 2):
            loki.push([{"stream": {"app": "tail"}, "values": [[str(time.time_ns()), f"n={n} after"]]}])
        second = json.loads(socket.recv(timeout=10))
        assert second["streams"][0]["stream"] == {"app": "tail", "n": "2"}
        assert second["streams"][0]["values"][0][1] == "n=2 after"
    assert loki.call("/loki/api/v1/tail", query="{")[0] == 400


def test_otlp_at_lokis_path(loki):
    body = json.dumps({"resourceLogs": [{
        "resource": {"attributes": [{"key": "service.name", "value": {"stringValue": "otlp-shop"}}]},
        "scopeLogs": [{"logRecords": [{
            "timeUnixNano": str(time.time_ns()), "severityText": "WARN", "body": {"stringValue": "low stock"},
            "attributes": [{"key": "item.id", "value": {"intValue": "7"}}],
        }]}],
    }]}).encode()
    status, _ = loki.call("/otlp/v1/logs", {"Content-Type": "application/json"}, body)
    assert status in (200, 204)
    got = loki.get("/loki/api/v1/query_range", query='{service_name="otlp-shop"} | item_id="7"')
    assert lines(got) == ["low stock"]


def test_ports_own_pages(loki):
    assert "rule_files" in loki.call("/config")[1]
    assert loki.call("/ready")[0] == 200
    assert "Running" in loki.call("/services")[1]
    assert loki.get("/loki/api/v1/status/buildinfo")["version"].startswith("3.")


def snappy(data):
    """Literal blocks only."""
    n, out = len(data), b""
    while n >= 0x80:
        out += bytes([n & 0x7F | 0x80])
        n >>= 7
    out += bytes([n])
    for i in range(0, len(data), 60000):
        part = data[i : i + 60000]
        out += bytes([61 << 2]) + struct.pack("<H", len(part) - 1) + part
    return out


def test_traces_in_lines_are_found(loki):
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    now = time.time_ns()
    loki.push([{"stream": {"app": "traced"}, "values": [
        [str(now - 2), f"level=info trace_id={trace} span_id={span} one"],
        [str(now - 1), f'{{"traceparent":"00-{trace}-{span}-01","msg":"two"}}'],
        [str(now), "three belongs to none"],
    ]}])
    # They can be asked for and lead to the trace, but split no stream and no series.
    assert len(lines(loki.get("/loki/api/v1/query_range", query=f'{{app="traced"}} | trace_id="{trace}"'))) == 2
    got = loki.get("/loki/api/v1/query_range", query='{app="traced"}')["data"]["result"]
    assert [s["stream"] for s in got] == [{"app": "traced"}]
    flags = {"X-Loki-Response-Encoding-Flags": "categorize-labels"}
    (stream,) = loki.get("/loki/api/v1/query_range", flags, query='{app="traced"} |= "two"')["data"]["result"]
    assert stream["values"][0][2]["structuredMetadata"] == {"trace_id": trace, "span_id": span}
    count = f'count_over_time({{app="traced"}} | trace_id="{trace}" [1h])'
    (row,) = loki.get("/loki/api/v1/query", query=count)["data"]["result"]
    assert row["metric"] == {"app": "traced"} and row["value"][1] == "2"


def test_deletes(loki):
    now = time.time_ns()
    texts = ["card 4111 paid", "card 5500 paid", "Refused", "refused twice", "all well"]
    loki.push([{"stream": {"app": "till"}, "values": [[str(now - 10**9 + i), t] for i, t in enumerate(texts)]}])
    left = lambda: lines(loki.get("/loki/api/v1/query_range", query='{app="till"}', direction="forward"))
    assert left() == texts

    def delete(method="POST", **params):
        query = urllib.parse.urlencode(params)
        request = urllib.request.Request(f"{loki.base}/loki/api/v1/delete?{query}", method=method)
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as e:
            return e.code, e.read().decode()

    start = now // 10**9 - 60
    for params, text in [
        ({"start": start}, "query not set"),
        ({"query": '{app="till"}'}, "start time not set"),
        ({"query": '{app="till"}', "start": "soon"}, "invalid start time: require unix seconds or RFC3339 format"),
        ({"query": '{app="till"}', "start": start, "end": start + 3600}, "deletes in the future are not allowed"),
        ({"query": '{app="till"}', "start": start, "end": start - 1}, "start time can't be greater than end time"),
        ({"query": 'rate({app="till"}[1m])', "start": start}, "unsupported query expression"),
        ({"query": '{app="till"} | json', "start": start}, "unsupported query expression"),
        ({"query": "{app=", "start": start}, "parse error"),
    ]:
        status, answer = delete(**params)
        assert status == 400 and text in answer, (params, answer)
    assert left() == texts
    assert delete(query='{app="till"} |= "4111"', start=start) == (204, "")
    assert delete("PUT", query='{app=~"ti.."} |~ "(?i)^refused" != "twice"', start=start) == (204, "")
    kept = ["card 5500 paid", "refused twice", "all well"]
    assert left() == kept
    count = 'sum(count_over_time({app="till"} |~ "card|refused" [1h]))'
    assert loki.get("/loki/api/v1/query", query=count)["data"]["result"][0]["value"][1] == "2"
    # What comes later is new.
    loki.push([{"stream": {"app": "till"}, "values": [[str(now), "card 4111 again"]]}])
    assert left() == [*kept, "card 4111 again"]
    first, second = loki.get("/loki/api/v1/delete")
    assert first["query"] == '{app="till"} |= "4111"' and first["start_time"] == start and first["status"] == "processed"
    assert abs(first["end_time"] - time.time()) < 60 and first["created_at"] <= second["created_at"]
    status, text = delete("DELETE", request_id=first["request_id"])
    assert status == 400 and "already processed" in text
    assert delete("DELETE", request_id="0")[0] == 404
    loki.server.post("/api/v1/storage/compact")
    assert left() == [*kept, "card 4111 again"]
    page = urllib.request.Request(f"{loki.base}/loki/api/v1/delete", method="POST", headers={"Origin": "http://evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(page)


LIMITS = """
loki:
  limits_config:
    max_line_size: 1KB
    reject_old_samples: true
    reject_old_samples_max_age: 168h
    max_entries_limit_per_query: 50
    max_query_length: 30d
    max_query_series: 2
    max_global_streams_per_user: 3
  overrides:
    slow: {ingestion_rate_mb: 0.001, ingestion_burst_size_mb: 0.001}
"""


def test_limits_of_lokis_configuration(tmp_path):
    config = tmp_path / "observatory.yaml"
    config.write_text(LIMITS)
    server = Server(tmp_path / "data", "--config", str(config))
    try:
        loki = Loki(server)
        now = time.time_ns()

        def push(*entries, tenant=None, age=0):
            streams = [{"stream": {"app": app}, "values": [[str(now - age * 10**9 + i), text]]} for i, (app, text) in enumerate(entries)]
            headers = {"Content-Type": "application/json", **({"X-Scope-OrgID": tenant} if tenant else {})}
            return loki.call("/loki/api/v1/push", headers, json.dumps({"streams": streams}).encode())

        status, text = push(("a", "x" * 1025), ("b", "fits"))
        assert status == 400 and "Max entry size '1024' bytes exceeded for stream '{app=\"a\"}' while adding an entry with length '1025' bytes" in text
        status, text = push(("a", "old"), age=169 * 3600)
        assert status == 400 and "has timestamp too old" in text and "oldest acceptable timestamp is" in text
        assert push(("a", "x" * 1024), ("c", "y"))[0] == 204
        status, text = push(("a", "more"), ("d", "one stream too many"))
        assert status == 429 and "Maximum active stream limit exceeded when trying to create stream {app=\"d\"}" in text
        got = loki.get("/loki/api/v1/query_range", query='{app=~".+"}', limit=50)
        assert sorted(len(line) for line in lines(got)) == [1, 4, 4, 1024]
        status, text = push(("a", "z" * 900), ("a", "z" * 900), tenant="slow")
        assert status == 429 and "ingestion rate limit exceeded for user slow (limit: 1048 bytes/sec)" in text
        assert "'2' lines totaling '1800' bytes" in text
        assert push(("a", "z" * 900), tenant="slow")[0] == 204

        ask = lambda **params: loki.call("/loki/api/v1/query_range", **params)
        status, text = ask(query='{app="a"}', limit=51)
        assert (status, text) == (400, "max entries limit per query exceeded, limit > max_entries_limit_per_query (51 > 50)")
        status, text = ask(query='{app="a"}', start=now - 31 * 86400 * 10**9, end=now)
        assert (status, text) == (400, "the query time range exceeds the limit (query length: 31d, limit: 30d)")
        count = 'count_over_time({app=~".+"}[1h])'
        status, text = loki.call("/loki/api/v1/query", query=count)
        assert (status, text) == (400, "maximum of series (2) reached for a single query")
        assert ask(query=count, start=now, end=now + 60 * 10**9, step="10")[0] == 400
        assert loki.call("/loki/api/v1/query", query=f"sum({count})")[0] == 200
        with urllib.request.urlopen(f"http://{server.endpoints['ui']}/metrics") as response:
            metrics = response.read().decode()
        for reason, n in [("line_too_long", 1), ("greater_than_max_sample_age", 1), ("stream_limit", 1), ("rate_limited", 2)]:
            assert f'obs_rejected_total{{reason="{reason}",signal="logs"}} {n}' in metrics, reason
    finally:
        server.stop()
    config.write_text("loki: {limits_config: {max_line_size: much}}\n")
    done = subprocess.run([BINARY, "check", "config", str(config)], capture_output=True, text=True)
    assert done.returncode != 0 and "loki.limits_config: max_line_size" in done.stdout + done.stderr


LOKI_FILE = """
auth_enabled: false
server: {http_listen_port: 3100}
schema_config: {configs: [{from: 2020-10-24, store: boltdb-shipper, object_store: filesystem, schema: v11, index: {prefix: index_, period: 24h}}]}
limits_config:
  max_line_size: ${LINE}
  enforce_metric_name: false
  retention_period: 1h
  per_tenant_override_config: overrides.yaml
compactor: {working_directory: /loki, retention_enabled: true}
"""


def test_lokis_own_file(tmp_path):
    (tmp_path / "loki.yaml").write_text(LOKI_FILE)
    (tmp_path / "overrides.yaml").write_text("overrides: {wide: {max_line_size: 2KB, retention_period: 1y}}\n")
    config = tmp_path / "observatory.yaml"
    config.write_text("loki: {config_file: loki.yaml}\n")
    server = Server(tmp_path / "data", "--config", str(config), env={"LINE": "1KB"})
    try:
        loki = Loki(server)
        now = time.time_ns()

        def push(text, tenant, age=0):
            body = {"streams": [{"stream": {"app": "a"}, "values": [[str(now - age * 10**9), text]]}]}
            headers = {"Content-Type": "application/json", "X-Scope-OrgID": tenant}
            return loki.call("/loki/api/v1/push", headers, json.dumps(body).encode())

        assert push("x" * 1025, "narrow")[0] == 400
        assert push("x" * 1025, "wide")[0] == 204
        for tenant in ("narrow", "wide"):
            assert push("old", tenant, age=2 * 3600)[0] == 204
        assert server.post("/api/v1/storage/flush")[0] == 200
    finally:
        server.stop()
    server = Server(tmp_path / "data", "--config", str(config), env={"LINE": "1KB"})
    try:
        loki = Loki(server)

        def old(tenant):
            found = loki.get("/loki/api/v1/query_range", {"X-Scope-OrgID": tenant}, query='{app="a"} |= "old"', start=now - 3 * 3600 * 10**9, end=now)
            return lines(found)

        # What the file keeps for an hour goes, where the tenant has no longer time of its own.
        deadline = time.time() + 20
        while old("narrow") and time.time() < deadline:
            time.sleep(0.05)
        assert old("narrow") == [] and old("wide") == ["old"]
    finally:
        server.stop()
    done = subprocess.run([BINARY, "check", "config", str(tmp_path / "loki.yaml")], capture_output=True, text=True, env={**os.environ, "LINE": "1KB"})
    assert done.returncode == 0 and "these have no effect here: enforce_metric_name" in done.stderr, done
    done = subprocess.run([BINARY, "check", "config", str(tmp_path / "loki.yaml")], capture_output=True, text=True, env={**os.environ, "LINE": "much"})
    assert done.returncode != 0 and "loki.yaml: limits_config: max_line_size" in done.stdout + done.stderr, done


def test_labels_that_are_none_are_refused(loki):
    streams = [{"stream": {"no name": "x"}, "values": [[str(time.time_ns()), "refused"]]}, {"stream": {"app": "named"}, "values": [[str(time.time_ns()), "kept"]]}]
    status, text = loki.call("/loki/api/v1/push", {"Content-Type": "application/json"}, json.dumps({"streams": streams}).encode())
    assert status == 400 and "error parsing labels '{no name=\"x\"}'" in text and "1 stored" in text, text
    assert lines(loki.get("/loki/api/v1/query_range", query='{app="named"}')) == ["kept"]
    assert "no name" not in loki.get("/loki/api/v1/labels")["data"]


def test_parts_of_a_loki_show_their_rings(loki):
    for part in ["", "/distributor", "/ruler", "/compactor", "/indexgateway"]:
        assert loki.get(f"{part}/ring")["shards"][0]["state"] == "ACTIVE"


def test_protobuf_push(loki):
    def field(number, payload):
        return bytes([number << 3 | 2, len(payload)]) + payload

    seconds = int(time.time())
    stamp = b"\x08" + bytes(varint(seconds))
    entry = field(1, stamp) + field(2, b"from promtail")
    stream = field(1, b'{job="varlogs"}') + field(2, entry)
    headers = {"Content-Type": "application/x-protobuf"}
    status, text = loki.call("/loki/api/v1/push", headers, snappy(field(1, stream)))
    assert status == 204, text
    assert lines(loki.get("/loki/api/v1/query_range", query='{job="varlogs"}')) == ["from promtail"]


def varint(n):
    while n >= 0x80:
        yield n & 0x7F | 0x80
        n >>= 7
    yield n
