"""A real Prometheus and promtool, from Debian, against the binary: they write, read, federate, query."""

import http.server
import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest
from running import BINARY, Server, free_port

needs_prometheus = pytest.mark.skipif(not shutil.which("prometheus"), reason="Debian's prometheus is not installed")


def wait_for(what, seconds=40):
    """Returns what() as soon as it is true."""
    end = time.time() + seconds
    while time.time() < end:
        try:
            got = what()
        except (urllib.error.URLError, KeyError, IndexError):
            got = None
        if got:
            return got
        time.sleep(0.2)
    raise AssertionError("it did not happen in time")


class Exporter:
    """Serves a page that a test changes."""

    def __init__(self, text):
        self.text, self.posted = text, []
        exporter = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def answer(self, status, body):
                self.send_response(status)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                if self.path.startswith("/private") and self.headers.get("Authorization") != "Bearer open sesame":
                    return self.answer(401, b"no")
                self.answer(200, exporter.text.encode())

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                exporter.posted.append((self.path, json.loads(body)))
                self.answer(200, b"{}")

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = "127.0.0.1:%d" % self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def query(server, text):
    return server.get("/api/v1/query", listener="prometheus", query=text)["data"]["result"]


def value(server, text):
    return float(query(server, text)[0]["value"][1])


PAGE = """# HELP jobs_total Jobs done.
# TYPE jobs_total counter
jobs_total{queue="a",instance="inner"} 10
jobs_total{queue="b"} 5
# TYPE noise gauge
noise 1
"""

RULES = """groups:
- name: jobs
  interval: 1s
  rules:
  - record: queue:jobs:sum
    expr: sum by (queue) (jobs_total)
  - alert: TooManyJobs
    expr: queue:jobs:sum > 8
    labels: {severity: page}
    annotations: {summary: '{{ $labels.queue }} has {{ $value | humanize }} jobs on {{ $externalLabels.dc }}'}
"""


def test_scraping_rules_and_alerts_from_prometheus_yml(tmp_path):
    exporter, receiver = Exporter(PAGE), Exporter("")
    (tmp_path / "token").write_text("open sesame\n")
    (tmp_path / "rules.yml").write_text(RULES)
    targets = tmp_path / "targets.json"
    targets.write_text(json.dumps([{"targets": [exporter.address], "labels": {"found": "file"}}]))
    receivers = [{"targets": [receiver.address]}, {"targets": ["gone:1"], "labels": {"drop": "yes"}}]
    (tmp_path / "receivers.json").write_text(json.dumps(receivers))
    config = tmp_path / "prometheus.yml"
    text = f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s, external_labels: {{dc: eu}}}}
rule_files: [rules.yml]
alerting:
  alertmanagers:
  - file_sd_configs: [{{files: ['receivers.json']}}]
    relabel_configs: [{{source_labels: [drop], regex: 'yes', action: drop}}]
    alert_relabel_configs: [{{target_label: to, replacement: them}}]
scrape_configs:
- job_name: jobs
  static_configs: [{{targets: ['{exporter.address}'], labels: {{team: x}}}}]
  metric_relabel_configs: [{{source_labels: [__name__], regex: noise, action: drop}}]
- job_name: private
  metrics_path: /private
  authorization: {{credentials_file: token}}
  sample_limit: 100
  file_sd_configs: [{{files: ['targets.json']}}]
- job_name: closed
  metrics_path: /private
  static_configs: [{{targets: ['{exporter.address}']}}]
"""
    config.write_text(text)
    (tmp_path / "o.yaml").write_text(f"prometheus: {{config_file: {config}}}\n")
    server = Server(tmp_path / "data", "--config", str(tmp_path / "o.yaml"))
    try:
        wait_for(lambda: len(query(server, "up")) == 3)
        up = {r["metric"]["job"]: r["value"][1] for r in query(server, "up")}
        assert up == {"jobs": "1", "private": "1", "closed": "0"}
        series = query(server, 'jobs_total{job="jobs",queue="a"}')[0]["metric"]
        assert (series["exported_instance"], series["instance"], series["team"]) == ("inner", exporter.address, "x")
        assert query(server, 'noise{job="jobs"}') == []
        assert value(server, 'scrape_samples_scraped{job="jobs"}') == 3
        assert value(server, 'scrape_samples_post_metric_relabeling{job="jobs"}') == 2
        assert query(server, 'jobs_total{job="private"}')[0]["metric"]["found"] == "file"
        shown = server.get("/api/v1/targets", listener="prometheus")["data"]["activeTargets"]
        errors = {t["scrapePool"]: (t["health"], t["lastError"]) for t in shown}
        assert errors["closed"] == ("down", "server returned HTTP status 401 Unauthorized")
        assert errors["jobs"] == ("up", "")
        metadata = server.get("/api/v1/targets/metadata", listener="prometheus", metric="jobs_total")["data"]
        assert metadata[0]["type"] == "counter"

        wait_for(lambda: value(server, 'queue:jobs:sum{queue="a"}') == 20)
        alerts = wait_for(lambda: server.get("/api/v1/alerts", listener="prometheus")["data"]["alerts"])
        assert {a["labels"]["queue"] for a in alerts} == {"a", "b"}
        first = next(a for a in alerts if a["labels"]["queue"] == "a")
        assert first["annotations"]["summary"] == "a has 20 jobs on eu"
        assert (first["state"], first["value"]) == ("firing", "2e+01")
        groups = server.get("/api/v1/rules", listener="prometheus")["data"]["groups"]
        assert [r["health"] for r in groups[0]["rules"]] == ["ok", "ok"]
        assert query(server, 'ALERTS{alertname="TooManyJobs",queue="a"}')[0]["metric"]["alertstate"] == "firing"
        path, body = wait_for(lambda: receiver.posted and receiver.posted[0])
        assert path == "/api/v2/alerts" and {(a["labels"]["dc"], a["labels"]["to"]) for a in body} == {("eu", "them")}
        assert server.get("/api/v1/alertmanagers", listener="prometheus")["data"] == {
            "activeAlertmanagers": [{"url": f"http://{receiver.address}/api/v2/alerts"}],
            "droppedAlertmanagers": [{"url": "http://gone:1/api/v2/alerts"}],
        }

        # A series that the exporter no longer serves ends; so do its alert and the recorded series.
        exporter.text = 'jobs_total{queue="b"} 2\n'
        wait_for(lambda: query(server, 'jobs_total{queue="a"}') == [])
        wait_for(lambda: query(server, 'queue:jobs:sum{queue="a"}') == [])
        wait_for(lambda: query(server, "ALERTS") == [])
        # So do those of a target that discovery no longer finds.
        targets.write_text("[]")
        wait_for(lambda: query(server, 'up{job="private"}') == [])

        # A reload adds a job; a broken file changes nothing.
        config.write_text(text + f"- job_name: more\n  static_configs: [{{targets: ['{exporter.address}']}}]\n")
        assert reload(server) == 200
        wait_for(lambda: value(server, 'up{job="more"}') == 1)
        config.write_text("scrape_configs: [{job_name: a, ec2_sd_configs: []}]")
        assert reload(server) == 500
        assert value(server, 'up{job="more"}') == 1
    finally:
        server.stop()


def reload(server):
    url = f"http://{server.endpoints['prometheus']}/-/reload"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="POST")) as r:
            return r.status
    except urllib.error.HTTPError as e:
        return e.code


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_prometheus
def test_a_real_prometheus_writes_reads_and_federates(tmp_path):
    exporter = Exporter(PAGE)
    server = Server(tmp_path / "data")
    ours = server.endpoints["prometheus"]
    (tmp_path / "real").mkdir()
    config = tmp_path / "real" / "prometheus.yml"
    config.write_text(f"""
global: {{scrape_interval: 1s, external_labels: {{from: real}}}}
scrape_configs:
- job_name: jobs
  static_configs: [{{targets: ['{exporter.address}']}}]
- job_name: ours
  static_configs: [{{targets: ['{server.endpoints["ui"]}']}}]
- job_name: federate
  honor_labels: true
  metrics_path: /federate
  params: {{'match[]': ['observatory_build_info', 'up']}}
  static_configs: [{{targets: ['{ours}']}}]
remote_write: [{{url: 'http://{ours}/api/v1/write', queue_config: {{batch_send_deadline: 1s}}}}]
remote_read: [{{url: 'http://{ours}/api/v1/read', read_recent: true}}]
""")
    port = free_port()
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/real/data", f"--web.listen-address=127.0.0.1:{port}"]
    real = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    there = f"http://127.0.0.1:{port}"

    def ask(text):
        with urllib.request.urlopen(f"{there}/api/v1/query?query={text}") as r:
            return json.load(r)["data"]["result"]

    try:
        wait_for(lambda: value(server, 'jobs_total{queue="b",from="real"}') == 5)
        wait_for(lambda: ask("up{job='ours'}")[0]["value"][1] == "1")
        wait_for(lambda: ask("up{job='federate'}")[0]["value"][1] == "1")
        # Only we have this series: it is read from us.
        now = int(time.time() * 1000)
        lines = f"only_here 7 {now}\n"
        body = subprocess.run(["promtool", "check", "metrics"], input="only_here 7\n", capture_output=True, text=True)
        assert body.returncode in (0, 3), lines
        wait_for(lambda: ask("observatory_build_info") or ask("storage_pool_connections"))
        found = wait_for(lambda: ask("count(storage_pool_connections)"))
        assert float(found[0]["value"][1]) >= 3

        url = f"http://{ours}"
        assert 'jobs_total{' in promtool("query", "instant", url, 'jobs_total{queue="b"}')
        start = str(int(time.time()) - 60)
        # Its last step may lie before the first sample.
        wait_for(lambda: "@[" in promtool("query", "range", "--start", start, url, 'jobs_total{queue="b"}'))
        assert "jobs_total" in promtool("query", "labels", url, "__name__")
        assert 'queue="b"' in promtool("query", "series", "--match=jobs_total", url)
        with urllib.request.urlopen(f"http://{server.endpoints['ui']}/metrics") as r:
            page = r.read().decode()
        check = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True)
        # 3 is advice on names; anything else is a page that is wrong.
        assert check.returncode in (0, 3), check.stderr
    finally:
        real.terminate()
        real.wait(20)
        server.stop()


@pytest.mark.parametrize(
    ("otlp", "series"),
    [
        ("translation_strategy: UnderscoreEscapingWithSuffixes", {"shop_orders_bytes_total": {"order_kind"}, "target_info": {"os_type"}}),
        ("translation_strategy: UnderscoreEscapingWithoutSuffixes", {"shop_orders": {"order_kind"}, "target_info": {"os_type"}}),
        ("{translation_strategy: NoUTF8EscapingWithSuffixes, promote_resource_attributes: [os.type]}", {"shop.orders_bytes_total": {"order.kind", "os.type"}, "target_info": {"os.type"}}),
        (
            "{translation_strategy: NoTranslation, promote_all_resource_attributes: true, ignore_resource_attributes: [service.name], keep_identifying_resource_attributes: true}",
            {"shop.orders": {"order.kind", "os.type"}, "target_info": {"service.name", "os.type"}},
        ),
        (
            "promote_scope_metadata: true",
            {"shop_orders_bytes_total": {"order_kind", "otel_scope_name"}, "target_info": {"os_type"}},
        ),
    ],
)
def test_otlp_names_by_strategy(tmp_path, otlp, series):
    inner = otlp if otlp.startswith("{") else "{" + otlp + "}"
    (tmp_path / "prometheus.yml").write_text(f"otlp: {inner}\n")
    (tmp_path / "o.yaml").write_text("prometheus: {config_file: prometheus.yml}\n")
    server = Server(tmp_path / "data", "--config", str(tmp_path / "o.yaml"))

    def text(key, value):
        return {"key": key, "value": {"stringValue": value}}

    point = {"timeUnixNano": str(time.time_ns()), "asInt": "5", "attributes": [text("order.kind", "new")]}
    total = {"isMonotonic": True, "aggregationTemporality": 2, "dataPoints": [point]}
    metrics = [{"name": "shop.orders", "unit": "By", "sum": total}]
    resource = {"attributes": [text("service.name", "shop"), text("os.type", "linux")]}
    body = {"resourceMetrics": [{"resource": resource, "scopeMetrics": [{"scope": {"name": "lib"}, "metrics": metrics}]}]}
    try:
        assert server.post("/api/v1/otlp/v1/metrics", json.dumps(body).encode(), "prometheus")[0] == 200
        found = server.get("/api/v1/query", "prometheus", query='{job="shop"}')["data"]["result"]
        names = {m["metric"].pop("__name__"): set(m["metric"]) - {"job", "service_name"} for m in found}
        assert names == series
    finally:
        server.stop()


def test_samples_leave_as_blocks_that_prometheus_reads(tmp_path):
    """What we give as OpenMetrics text, promtool makes blocks of and reads the same again."""
    server = Server(tmp_path / "data")
    # The clock of blocks is ours: two hours a block, in the past.
    start = (time.time_ns() // 10**9 - 6 * 3600) * 1000
    try:
        rows = []
        for n in range(400):
            for kind in ("plain", 'with "quotes" \\ and\nlines'):
                rows.append(("jobs_total", {"kind": kind}, start + n * 15_250, float(n)))
            rows.append(("load", {}, start + n * 15_250, n / 7))
        body = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [otlp_metric(r) for r in rows]}]}]}
        assert server.post("/api/v1/otlp/v1/metrics", json.dumps(body).encode(), "prometheus")[0] == 200
        query = [BINARY, "query", "openmetrics", '{__name__=~"jobs_total|load"}', "--url", f"http://{server.endpoints['ui']}"]
        text = subprocess.run(query, check=True, capture_output=True, text=True).stdout
        lines = text.splitlines()
        assert lines.pop() == "# EOF" and len(lines) == 1200
        assert lines[0] == f'jobs_total{{kind="plain"}} 0 {start // 1000}.{start % 1000:03}'
        some = subprocess.run([*query, "--start", str(start / 1000 + 100), "--end", str(start / 1000 + 200)], check=True, capture_output=True, text=True)
        assert len(some.stdout.splitlines()) == 7 * 3 + 1
        wrong = subprocess.run([*query[:3], "{", *query[4:]], capture_output=True, text=True)
        assert wrong.returncode == 1 and "match[]" in wrong.stderr
        (tmp_path / "samples.om").write_text(text)
        promtool = shutil.which("promtool")
        subprocess.run([promtool, "tsdb", "create-blocks-from", "openmetrics", tmp_path / "samples.om", tmp_path / "blocks"], check=True, capture_output=True)
        (tmp_path / "blocks" / "wal").mkdir()  # promtool looks for one
        dumped = subprocess.run([promtool, "tsdb", "dump", tmp_path / "blocks"], check=True, capture_output=True, text=True).stdout

        def samples(rows, scale):
            return sorted((round(float(t) * scale), v) for _, v, t in (r.rsplit(" ", 2) for r in rows))

        assert samples(dumped.splitlines(), 1) == samples(lines, 1000)
    finally:
        server.stop()


def otlp_metric(row):
    name, labels, ms, v = row
    attributes = [{"key": k, "value": {"stringValue": x}} for k, x in labels.items()]
    point = {"timeUnixNano": str(ms * 1_000_000), "asDouble": v, "attributes": attributes}
    if name.endswith("_total"):
        return {"name": name, "sum": {"isMonotonic": True, "aggregationTemporality": 2, "dataPoints": [point]}}
    return {"name": name, "gauge": {"dataPoints": [point]}}


def test_rules_over_logs_and_sql_and_alerts_over_a_restart(tmp_path):
    (tmp_path / "rules.yml").write_text("""groups:
- name: logs
  type: logql
  interval: 1s
  rules: [{record: errors:logged, expr: 'sum by (app) (count_over_time({app="x"} |= "error" [1h]))'}]
- name: sql
  type: sql
  interval: 1s
  rules: [{alert: ManyLogs, expr: "SELECT 'logs' AS what, count(*) AS value FROM logs HAVING count(*) > 1", annotations: {summary: '{{ $value }} {{ $labels.what }}'}}]
- name: slow
  interval: 1s
  rules: [{alert: Slow, expr: vector(1), for: 8s}]
""")
    # What restores alerts is not written by users: switches do not reach it.
    features = "{promql-experimental-functions: false}"
    (tmp_path / "o.yaml").write_text(f"prometheus: {{rule_files: [rules.yml], features: {features}}}\n")
    arguments = ["--config", str(tmp_path / "o.yaml")]
    server = Server(tmp_path / "data", *arguments)
    now = time.time_ns()
    lines = [[str(now - i), text] for i, text in enumerate(["an error", "fine", "error again"])]
    body = json.dumps({"streams": [{"stream": {"app": "x"}, "values": lines}]}).encode()
    assert server.post("/loki/api/v1/push", body, listener="loki")[0] == 204
    wait_for(lambda: value(server, 'errors:logged{app="x"}') == 2)
    alerts = lambda: {a["labels"]["alertname"]: a for a in server.get("/api/v1/alerts", listener="prometheus")["data"]["alerts"]}
    assert wait_for(lambda: alerts().get("ManyLogs"))["annotations"]["summary"] == "3 logs"
    began = wait_for(lambda: alerts().get("Slow"))["activeAt"]
    time.sleep(3)
    server.stop()
    server = Server(tmp_path / "data", *arguments)
    try:
        again = wait_for(lambda: alerts().get("Slow"))
        # It goes on, moved by the time the server was away, which is short.
        assert again["state"] == "pending" and again["activeAt"][:16] >= began[:16]
        resumed = time.time()
        wait_for(lambda: alerts()["Slow"]["state"] == "firing")
        assert time.time() - resumed < 7, "the time before the restart counts"
    finally:
        server.stop()


def test_a_target_that_serves_too_much_costs_only_itself(tmp_path):
    pages = {
        "many": "".join(f'm{{i="{i}"}} 1\n' for i in range(50)),
        "long": "x" * 100_000 + "\n",
        "label": 'fine 1\nwide{l="' + "v" * 65536 + '"} 1\n',
        "broken": "ok 1\nno value\n",
        "good": "good 1\n",
    }
    targets = {name: Exporter(text).address for name, text in pages.items()}
    jobs = "".join(f"- {{job_name: {n}, sample_limit: 20, body_size_limit: 70KB, static_configs: [{{targets: ['{a}']}}]}}\n" for n, a in targets.items())
    (tmp_path / "p.yml").write_text("global: {scrape_interval: 1s}\nscrape_configs:\n" + jobs)
    (tmp_path / "o.yaml").write_text("prometheus: {config_file: p.yml}\n")
    server = Server(tmp_path / "data", "--config", str(tmp_path / "o.yaml"))
    try:
        wait_for(lambda: len(query(server, "up")) == 5)
        up = {r["metric"]["job"]: r["value"][1] for r in query(server, "up")}
        assert up == {"many": "0", "long": "0", "label": "1", "broken": "0", "good": "1"}
        shown = server.get("/api/v1/targets", listener="prometheus")["data"]["activeTargets"]
        errors = {t["scrapePool"]: t["lastError"] for t in shown}
        assert errors["many"] == "sample limit exceeded" and errors["long"] == "body size limit exceeded"
        assert "line 2" in errors["broken"]
        assert query(server, "fine") and not query(server, "wide") and not query(server, "m") and not query(server, "ok")
    finally:
        server.stop()


def json_api(answers):
    """Serves JSON by path, and what is under /api/ only for the token `s3cret`; returns its address."""

    class Api(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            path = self.path.split("?")[0]
            known = path in answers and (not path.startswith("/api/") or self.headers.get("Authorization") == "Bearer s3cret")
            body = json.dumps(answers.get(path, {})).encode()
            self.send_response(200 if known else 403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    api = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{api.server_port}"


def test_pods_of_a_cluster_and_containers_are_found(tmp_path):
    exporter = Exporter("found_total 1\n")
    host, port = exporter.address.split(":")
    pod = {
        "metadata": {"name": "web-1", "namespace": "prod", "labels": {"app": "web"}, "annotations": {"prometheus.io/scrape": "true"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "main", "ports": [{"name": "http", "containerPort": int(port)}]}]},
        "status": {"podIP": host, "phase": "Running"},
    }
    silent = json.loads(json.dumps(pod))
    silent["metadata"].update(name="web-2", annotations={})
    answers = {
        "/api/v1/namespaces/prod/pods": {"items": [pod, silent], "metadata": {}},
        "/networks": [{"Id": "n", "Name": "bridge", "Scope": "local"}],
        "/containers/json": [{"Id": "c1", "Names": ["/web"], "HostConfig": {"NetworkMode": "bridge"}, "Ports": [{"PrivatePort": int(port), "Type": "tcp"}], "NetworkSettings": {"Networks": {"bridge": {"NetworkID": "n", "IPAddress": host}}}}],
    }

    there = json_api(answers)
    config = tmp_path / "prometheus.yml"
    config.write_text(f"""
global: {{scrape_interval: 1s}}
scrape_configs:
- job_name: pods
  kubernetes_sd_configs:
  - {{role: pod, api_server: '{there}', namespaces: {{names: [prod]}}, authorization: {{credentials: s3cret}}}}
  relabel_configs:
  - {{source_labels: [__meta_kubernetes_pod_annotation_prometheus_io_scrape], regex: 'true', action: keep}}
  - {{source_labels: [__meta_kubernetes_pod_name], target_label: pod}}
  - {{regex: __meta_kubernetes_pod_label_(.+), action: labelmap}}
- job_name: containers
  docker_sd_configs: [{{host: '{there}'}}]
  relabel_configs: [{{source_labels: [__meta_docker_container_name], regex: '/(.*)', target_label: container}}]
""")
    (tmp_path / "o.yaml").write_text(f"prometheus: {{config_file: {config}}}\n")
    server = Server(tmp_path / "data", "--config", str(tmp_path / "o.yaml"))
    try:
        found = wait_for(lambda: query(server, 'found_total{job="pods"}'))
        assert [(r["metric"]["pod"], r["metric"]["app"]) for r in found] == [("web-1", "web")]
        assert wait_for(lambda: query(server, 'found_total{job="containers"}'))[0]["metric"]["container"] == "web"
        dropped = server.get("/api/v1/targets", listener="prometheus")["data"]["droppedTargetCounts"]
        assert dropped == {"containers": 0, "pods": 1}
    finally:
        server.stop()


def test_samples_are_sent_on_through_an_outage_and_a_restart(tmp_path):
    exporter = Exporter("t_total 1\n")
    port = free_port()
    other = ["--listen", f"prometheus=127.0.0.1:{port}"]
    config = tmp_path / "prometheus.yml"
    config.write_text(f"""
global: {{scrape_interval: 1s, external_labels: {{from: first}}}}
scrape_configs: [{{job_name: t, static_configs: [{{targets: ['{exporter.address}']}}]}}]
remote_write:
- url: http://127.0.0.1:{port}/api/v1/write
  write_relabel_configs: [{{source_labels: [__name__], regex: 'up|t_total', action: keep}}]
""")
    (tmp_path / "o.yaml").write_text(f"prometheus: {{config_file: {config}}}\n")
    arguments = ["--config", str(tmp_path / "o.yaml")]
    # Nobody listens at first.
    first = Server(tmp_path / "first", *arguments)
    wait_for(lambda: value(first, "count_over_time(t_total[5m])") >= 4)
    first.stop()
    queued = list((tmp_path / "first" / "remote").glob("*/*/*.request"))
    assert queued, "what was gathered is on disk"
    second = Server(tmp_path / "second", *other)
    first = Server(tmp_path / "first", *arguments)
    try:
        wait_for(lambda: value(second, 'count_over_time(t_total{from="first"}[5m])') >= 4)
        assert query(second, "scrape_duration_seconds") == []
        wait_for(lambda: not list((tmp_path / "first" / "remote").glob("*/*/*.request")))
    finally:
        first.stop()
        second.stop()


def test_what_is_sent_on_survives_a_crash_and_speaks_both_versions(tmp_path):
    """kill -9 right after an acknowledgement: the sample arrives, in the message that the file names."""
    seen = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, self.headers))
            # On to a real one, which reads what was sent.
            onward = urllib.request.Request(f"http://127.0.0.1:{port}/api/v1/write", data=body, method="POST")
            for name in ["Content-Encoding", "Content-Type", "X-Prometheus-Remote-Write-Version"]:
                onward.add_header(name, self.headers[name])
            with urllib.request.urlopen(onward) as answer:
                self.send_response(answer.status)
                self.end_headers()

    port = free_port()
    receiver = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    config = tmp_path / "prometheus.yml"
    base = f"http://127.0.0.1:{receiver.server_port}"
    config.write_text(f"""
global: {{external_labels: {{from: first}}}}
remote_write:
- {{url: '{base}/one', queue_config: {{batch_send_deadline: 1h, max_shards: 1}}}}
- {{url: '{base}/two', protobuf_message: io.prometheus.write.v2.Request, headers: {{X-Two: 'yes'}}, queue_config: {{batch_send_deadline: 1h}}, write_relabel_configs: [{{target_label: version, replacement: '2'}}]}}
""")
    (tmp_path / "o.yaml").write_text(f"prometheus: {{config_file: {config}}}\n")
    arguments = ["--config", str(tmp_path / "o.yaml")]
    first = Server(tmp_path / "first", *arguments)
    point = {"timeUnixNano": str(time.time_ns()), "asDouble": 42.0}
    total = {"isMonotonic": True, "aggregationTemporality": 2, "dataPoints": [point]}
    histogram = {"aggregationTemporality": 2, "dataPoints": [{"timeUnixNano": point["timeUnixNano"], "count": "3", "sum": 4.0, "scale": 0, "positive": {"offset": 0, "bucketCounts": ["3"]}}]}
    metrics = [{"name": "orders", "description": "Orders.", "sum": total}, {"name": "native", "exponentialHistogram": histogram}]
    body = {"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]}
    assert first.post("/api/v1/otlp/v1/metrics", json.dumps(body).encode(), "prometheus")[0] == 200
    first.process.kill()
    first.process.wait()
    assert not list((tmp_path / "first" / "remote").glob("*/*/*.request*")), "no request was made yet"
    (tmp_path / "first" / "endpoints.json").unlink()
    config.write_text(config.read_text().replace("1h", "100ms"))
    threading.Thread(target=receiver.serve_forever, daemon=True).start()
    second = Server(tmp_path / "second", "--listen", f"prometheus=127.0.0.1:{port}")
    first = Server(tmp_path / "first", *arguments)
    try:
        wait_for(lambda: value(second, 'orders_total{from="first",version=""}') == 42)
        wait_for(lambda: value(second, 'orders_total{from="first",version="2"}') == 42)
        # Native histograms are part of version 2, and have to be asked for in version 1.
        wait_for(lambda: value(second, 'histogram_count(native{version="2"})') == 3)
        assert query(second, 'native{version=""}') == []
        versions = {path: (h["X-Prometheus-Remote-Write-Version"], h["X-Two"], h["Content-Type"]) for path, h in seen}
        assert versions == {
            "/one": ("0.1.0", None, "application/x-protobuf"),
            "/two": ("2.0.0", "yes", "application/x-protobuf;proto=io.prometheus.write.v2.Request"),
        }
        wait_for(lambda: not list((tmp_path / "first" / "remote").glob("*/*/*.*")))
        # What is known of metrics goes along with them.
        assert first.post("/api/v1/otlp/v1/metrics", json.dumps(body).encode(), "prometheus")[0] == 200
        wait_for(lambda: second.get("/api/v1/metadata", "prometheus").get("data", {}).get("orders_total"))
    finally:
        first.stop()
        second.stop()
        receiver.shutdown()


TESTS = """rule_files: [rules.yml]
evaluation_interval: 1m
tests:
- interval: 1m
  external_labels: {dc: eu}
  input_series:
  - {series: 'jobs_total{queue="a"}', values: '1+2x10'}
  alert_rule_test:
  - {eval_time: 2m, alertname: TooManyJobs}
  - eval_time: 5m
    alertname: TooManyJobs
    exp_alerts:
    - exp_labels: {severity: page, queue: a}
      exp_annotations: {summary: a has 11 jobs on eu}
  promql_expr_test:
  - expr: queue:jobs:sum
    eval_time: 3m
    exp_samples: [{labels: 'queue:jobs:sum{queue="a"}', value: VALUE}]
"""


@needs_prometheus
@pytest.mark.parametrize("number, good", [("7", True), ("8", False)])
def test_rule_tests_end_as_in_promtool(tmp_path, number, good):
    (tmp_path / "rules.yml").write_text(RULES.replace("interval: 1s", "interval: 1m"))
    tests = tmp_path / "tests.yml"
    tests.write_text(TESTS.replace("VALUE", number))
    theirs = subprocess.run(["promtool", "test", "rules", str(tests)], capture_output=True, text=True)
    from running import BINARY

    ours = subprocess.run([BINARY, "test", "rules", str(tests)], capture_output=True, text=True)
    assert (theirs.returncode == 0, ours.returncode == 0) == (good, good), ours.stdout + ours.stderr + theirs.stderr
    check = subprocess.run([BINARY, "check", "rules", str(tmp_path / "rules.yml")], capture_output=True, text=True)
    assert check.returncode == 0 and "SUCCESS: 2 rules found" in check.stdout, check.stderr


def test_exemplars_outlive_a_crash(tmp_path):
    """What was acknowledged is there after kill -9, also when samples have left the log."""
    server = Server(tmp_path / "data")
    now = time.time()

    def ask(server):
        return server.get("/api/v1/query_exemplars", "prometheus", query="orders_total", start=now - 60, end=now + 60)["data"]

    exemplar = {"asDouble": 3.5, "timeUnixNano": str(time.time_ns()), "traceId": "ab" * 16, "spanId": "cd" * 8}
    point = {"timeUnixNano": str(time.time_ns()), "asDouble": 1.0, "exemplars": [exemplar]}
    total = {"isMonotonic": True, "aggregationTemporality": 2, "dataPoints": [point]}
    body = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "orders_total", "sum": total}]}]}]}
    assert server.post("/api/v1/otlp/v1/metrics", json.dumps(body).encode(), "prometheus")[0] == 200
    before = ask(server)
    assert before[0]["exemplars"][0]["labels"]["trace_id"] == "ab" * 16
    assert server.post("/api/v1/storage/compact")[0] in (200, 204)
    server.process.kill()
    server.process.wait()
    (tmp_path / "data" / "endpoints.json").unlink()
    server = Server(tmp_path / "data")
    try:
        assert ask(server) == before
    finally:
        server.stop()


def test_results_that_are_kept_are_those_of_an_evaluation(tmp_path):
    """A refreshed dashboard costs its new steps; late samples and deletes are seen at once."""
    server = Server(tmp_path / "data")
    now = int(time.time()) // 15 * 15

    def write(samples, name="jobs_total"):
        points = [{"timeUnixNano": str(t * 10**9), "asDouble": v} for t, v in samples]
        total = {"isMonotonic": True, "aggregationTemporality": 2, "dataPoints": points}
        body = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": name, "sum": total}]}]}]}
        assert server.post("/api/v1/otlp/v1/metrics", json.dumps(body).encode(), "prometheus")[0] == 200

    def ask(start, end, query="sum(rate(jobs_total[1m]))"):
        """Returns the answer, and how much of it was known; with and without what is kept it is the same."""
        def counts():
            text = urllib.request.urlopen(f"http://{server.endpoints['ui']}/metrics").read().decode()
            lines = [line for line in text.splitlines() if line.startswith("obs_results_cache_queries_total{")]
            return {line.split('"')[1]: float(line.split()[-1]) for line in lines}

        before = counts()
        params = {"query": query, "start": start, "end": end, "step": 15}
        got = server.get("/api/v1/query_range", "prometheus", **params)
        (how,) = [k for k, v in counts().items() if v > before.get(k, 0)]
        assert got == server.get("/api/v1/query_range", "prometheus", nocache="1", **params)
        return got["data"]["result"], how

    try:
        write([(now - 1800 + 15 * i, float(i * i)) for i in range(100)])
        first, how = ask(now - 1500, now - 600)
        assert how == "miss" and len(first[0]["values"]) == 61
        assert ask(now - 1500, now - 600) == (first, "hit")
        assert ask(now - 1440, now - 540)[1] == "partial"
        assert ask(now - 1440, now - 540)[1] == "hit"
        # A late sample is in the next answer, and what is before it is not evaluated again.
        write([(now - 900 + 1, 10**6)])
        late, how = ask(now - 1440, now - 540)
        assert how == "partial" and late != first
        assert ask(now - 1440, now - 915)[1] == "hit"
        # So is what a delete takes away.
        status, _ = server.post("/api/v1/admin/tsdb/delete_series?match[]=jobs_total&start=%d&end=%d" % (now - 1000, now - 900), b"", "prometheus")
        assert status == 204
        deleted, how = ask(now - 1440, now - 540)
        assert how == "partial" and deleted != late
        assert ask(now - 1440, now - 540, "jobs_total @ start()")[1] == "uncacheable"
        # Statistics are of an evaluation: the samples in the windows of each step, and where the time went.
        params = {"query": "count_over_time(jobs_total[60s])", "start": now - 1700, "end": now - 1670, "step": 15}
        data = server.get("/api/v1/query_range", "prometheus", stats="all", **params)["data"]
        per_step = data["stats"]["samples"]["totalQueryableSamplesPerStep"]
        assert per_step == [[t, int(v)] for t, v in data["result"][0]["values"]]
        assert data["stats"]["samples"]["totalQueryableSamples"] == sum(n for _, n in per_step) == 12
        times = data["stats"]["timings"]
        assert 0 < times["queryPreparationTime"] < times["evalTotalTime"] <= times["execTotalTime"]
        assert abs(times["queryPreparationTime"] + times["innerEvalTime"] - times["evalTotalTime"]) < 1e-6
        # What tenants see is their own.
        headers = {"X-Scope-OrgID": "other"}
        url = f"http://{server.endpoints['prometheus']}/api/v1/query_range?query=sum(rate(jobs_total[1m]))&step=15&start=%d&end=%d" % (now - 1440, now - 540)
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            assert json.load(answer)["data"]["result"] == []
    finally:
        server.stop()


def test_parts_of_promql_are_switched_and_steps_are_those_of_the_rules(tmp_path):
    """`features` and `lookback_delta`, read again on reload; a subquery's step is the evaluation interval."""
    (tmp_path / "prometheus.yml").write_text("global: {evaluation_interval: 15s}\n")
    rule = "{groups: [{name: g, interval: 1s, rules: [{record: late, expr: 'limitk(1, a)'}]}]}"
    (tmp_path / "rules.yml").write_text(rule)
    config = "prometheus: {config_file: prometheus.yml, rule_files: [rules.yml], lookback_delta: LOOK, features: FEATURES}\n"

    def settings(look, features):
        (tmp_path / "o.yaml").write_text(config.replace("LOOK", look).replace("FEATURES", features))

    def ask(text, time):
        try:
            got = server.get("/api/v1/query", listener="prometheus", query=text, time=time)
            return sorted((r["metric"].get("of"), r["value"][1]) for r in got["data"]["result"])
        except urllib.error.HTTPError as e:
            return e.code, json.loads(e.read())["error"]

    settings("2m", "{promql-experimental-functions: false}")
    server = Server(tmp_path / "data", "--config", str(tmp_path / "o.yaml"), "--enable-feature", "promql-delayed-name-removal,otlp-deltatocumulative")
    try:
        now = int(time.time())
        point = {"timeUnixNano": str((now - 150) * 10**9), "asInt": "7"}
        metrics = [{"name": name, "gauge": {"dataPoints": [point]}} for name in ("a", "b")]
        body = json.dumps({"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]}).encode()
        assert server.post("/api/v1/otlp/v1/metrics", body, "prometheus")[0] == 200
        replaced = 'label_replace(-{__name__=~"a|b"}, "of", "$1", "__name__", "(.+)")'
        assert ask(replaced, now - 100) == [("a", "-7"), ("b", "-7")]
        refused = (400, 'invalid parameter "query": 1:1: parse error: limitk() is experimental and must be enabled with --enable-feature=promql-experimental-functions')
        assert ask("limitk(1, a)", now - 100) == refused
        assert ask("a", now - 31) == [(None, "7")] and ask("a", now - 29) == []
        # The two minutes in which a sample counts hold eight steps of fifteen seconds.
        assert ask("count_over_time(a[3m:])", now) == [(None, "8")]
        flags = server.get("/api/v1/status/flags", listener="prometheus")["data"]
        assert flags["query.lookback-delta"] == "2m" and "promql-experimental-functions" not in flags["enable-feature"]
        failed = lambda: server.get("/api/v1/rules", listener="prometheus")["data"]["groups"][0]["rules"][0]
        assert "limitk() is experimental" in wait_for(lambda: failed().get("lastError"))
        settings("5m", "{}")
        assert server.post("/-/reload", b"", "prometheus")[0] == 200
        assert ask("limitk(1, a)", now) == [(None, "7")]
        assert server.get("/api/v1/status/flags", listener="prometheus")["data"]["query.lookback-delta"] == "5m"
        wait_for(lambda: failed()["health"] == "ok")
        settings("5m", "{promql-other: true}")
        with pytest.raises(urllib.error.HTTPError) as e:
            urllib.request.urlopen(f"http://{server.endpoints['prometheus']}/-/reload", data=b"")
        assert "promql-duration-expr" in e.value.read().decode()
    finally:
        server.stop()
