"""Lines that the binary collects itself: files as they are rotated, containers, syslog."""

import contextlib
import datetime
import gzip
import http.client
import http.server
import ipaddress
import json
import os
import shutil
import signal
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from running import Server
from test_prometheus import free_port, json_api, wait_for

needs_logrotate = pytest.mark.skipif(not shutil.which("logrotate"), reason="Debian's logrotate is not installed")
needs_rsyslog = pytest.mark.skipif(not shutil.which("rsyslogd"), reason="Debian's rsyslog is not installed")


def start(tmp_path, promtail, name="data", env=None):
    (tmp_path / "promtail.yaml").write_text(promtail)
    (tmp_path / "o.yaml").write_text("promtail: {config_file: promtail.yaml}\n")
    return Server(tmp_path / name, "--config", str(tmp_path / "o.yaml"), env=env)


def streams(server, query, limit=5000):
    start_ns = time.time_ns() - 7200 * 10**9
    got = server.get("/loki/api/v1/query_range", listener="loki", query=query, limit=limit, start=start_ns, end=time.time_ns() + 60 * 10**9, direction="forward")
    return got["data"]["result"]


def lines(server, query):
    return [line for s in streams(server, query) for _, line, *_ in s["values"]]


FILES = """
positions: {{filename: {tmp}/positions.yaml}}
clients: [{{url: "http://loki:3100/loki/api/v1/push"}}]
scrape_configs:
  - job_name: app
    static_configs:
      - targets: [localhost]
        labels: {{job: app, __path__: "{tmp}/logs/*.log", __path_exclude__: "{tmp}/logs/not*.log"}}
    pipeline_stages:
      - json: {{expressions: {{level: level, msg: msg, trace: trace_id}}}}
      - labels: {{level: }}
      - structured_metadata: {{trace_id: trace}}
      - output: {{source: msg}}
  - job_name: plain
    static_configs:
      - labels: {{job: plain, __path__: "{tmp}/logs/*.txt"}}
      - labels: {{job: old, __path__: "{tmp}/logs/*.gz"}}
"""


def test_files_with_a_pipeline(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    trace = "0af7651916cd43dd8448eb211c80319c"
    (logs / "a.log").write_text(json.dumps({"level": "error", "msg": "boom 你好", "trace_id": trace}) + "\n")
    (logs / "not.log").write_text("left out\n")
    (logs / "b.txt").write_bytes(b"ERROR plain\r\n\xff\xfe bytes\x00here\nno end yet")
    with gzip.open(logs / "c.gz", "wt") as f:
        f.write("packed 1\npacked 2\n")
    server = start(tmp_path, FILES.format(tmp=tmp_path))
    try:
        wait_for(lambda: len(lines(server, '{job=~"app|plain|old"}')) == 5)
        (found,) = streams(server, '{job="app"}')
        assert found["stream"] == {"job": "app", "level": "error", "filename": f"{logs}/a.log", "trace_id": trace}
        assert lines(server, '{job="app"}') == ["boom 你好"]
        assert lines(server, '{job="plain"}') == ["ERROR plain", "\ufffd\ufffd bytes\x00here"]
        assert lines(server, '{job="old"}') == ["packed 1", "packed 2"]
        # The level is found although nothing says where.
        rows = server.sql("SELECT * FROM logs WHERE line LIKE 'ERROR plain%'")
        assert "error" in rows[0].values()
        with (logs / "b.txt").open("ab") as f:
            f.write(b" now it has\n")
        wait_for(lambda: lines(server, '{job="plain"} |= "no end yet now it has"'))
        assert "/b.txt" in wait_for(lambda: (tmp_path / "positions.yaml").read_text() if (tmp_path / "positions.yaml").exists() else "")
    finally:
        server.stop()


@needs_logrotate
@pytest.mark.parametrize("mode", ["create", "copytruncate"])
def test_rotation(tmp_path, mode):
    logs = tmp_path / "logs"
    logs.mkdir()
    os.chmod(logs, 0o755)
    config = tmp_path / "rotate.conf"
    config.write_text(f"{logs}/a.log {{\n  rotate 3\n  {mode}\n  su root root\n}}\n")
    server = start(tmp_path, FILES.format(tmp=tmp_path).replace("*.log", "a.log"))
    written = 0
    try:
        def write(count):
            nonlocal written
            with (logs / "a.log").open("a") as f:
                for _ in range(count):
                    f.write(json.dumps({"level": "info", "msg": f"line {written}"}) + "\n")
                    written += 1

        for _ in range(3):
            write(300)
            wait_for(lambda: len(lines(server, '{job="app"}')) == written)
            if mode == "create":
                # What is written between copy and cut is lost by every reader; here nothing is.
                write(300)
            subprocess.run(["logrotate", "-f", "-s", str(tmp_path / "state"), str(config)], check=True)
        wait_for(lambda: len(lines(server, '{job="app"}')) >= written)
        assert sorted(lines(server, '{job="app"}')) == sorted(f"line {i}" for i in range(written))
    finally:
        server.stop()


def test_a_kill_loses_no_line(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    stop = threading.Event()
    written = []

    def write():
        while not stop.is_set():
            with (logs / "a.log").open("a") as f:
                f.write(json.dumps({"level": "info", "msg": f"line {len(written)}"}) + "\n")
                written.append(1)
            time.sleep(0.0005)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            server = start(tmp_path, FILES.format(tmp=tmp_path))
            time.sleep(2.5)
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            (tmp_path / "data" / "endpoints.json").unlink()
            # Renamed while nobody looks: the rest is read all the same.
            os.rename(logs / "a.log", logs / "a.log.1") if not (logs / "a.log.1").exists() else None
    finally:
        stop.set()
        writer.join()
    server = start(tmp_path, FILES.format(tmp=tmp_path))
    try:
        want = {f"line {i}" for i in range(len(written))}

        def got():
            out = set()
            for k in range(0, 10):
                out |= set(lines(server, f'{{job="app"}} |~ "{k}$"'))
            return out

        try:
            wait_for(lambda: got() >= want)
        except AssertionError:
            missing = sorted(want - got(), key=lambda l: int(l[5:]))
            raise AssertionError(f"{len(missing)} of {len(want)} missing: {missing[:3]} … {missing[-3:]}") from None
        assert got() == want
    finally:
        server.stop()


class FakeEngine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


def frame(stream, text):
    data = text.encode()
    return struct.pack(">BxxxL", stream, len(data)) + data


class EngineHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def address_string(self):
        return "unix"

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        path = urllib.parse.urlparse(self.path)
        if path.path == "/networks":
            self.answer([{"Id": "n1", "Name": "front", "Scope": "local"}])
        elif path.path == "/containers/json":
            self.answer([{
                "Id": "abc", "Names": ["/shop"], "HostConfig": {"NetworkMode": "front"}, "Ports": [],
                "Labels": {"com.docker.compose.project": "llm-observatory", "com.docker.compose.service": "shop"},
                "NetworkSettings": {"Networks": {"front": {"NetworkID": "n1", "IPAddress": "172.18.0.2"}}},
            }])
        elif path.path == "/containers/abc/json":
            self.answer({"Config": {"Tty": False}})
        elif path.path == "/containers/abc/logs":
            self.server.since.append(urllib.parse.parse_qs(path.query)["since"][0])
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(self.server.began))
            out = frame(1, f"{now}.000000001Z level=info started\n") + frame(2, f"{now}.000000002Z level=error broke\n")
            for part in (out[:13], out[13:]):
                self.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
                self.wfile.flush()
            if len(self.server.since) > 1:
                more = frame(1, f"{now}.000000003Z level=info again\n")
                self.wfile.write(f"{len(more):x}\r\n".encode() + more + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.send_error(404)


def test_containers(tmp_path):
    path = tmp_path / "docker.sock"
    engine = FakeEngine(str(path), EngineHandler)
    engine.since, engine.began = [], time.time() - 60
    threading.Thread(target=engine.serve_forever, daemon=True).start()
    server = start(tmp_path, f"""
positions: {{filename: {tmp_path}/positions.yaml}}
scrape_configs:
  - job_name: docker
    docker_sd_configs: [{{host: "unix://{path}", refresh_interval: 5s}}]
    relabel_configs:
      - {{source_labels: [__meta_docker_container_label_com_docker_compose_project], regex: llm-observatory, action: keep}}
      - {{source_labels: [__meta_docker_container_label_com_docker_compose_service], target_label: service}}
      - {{source_labels: [__meta_docker_container_name], regex: "/(.*)", target_label: container}}
      - {{source_labels: [__meta_docker_container_log_stream], target_label: stream}}
    pipeline_stages:
      - logfmt: {{mapping: {{level: }}}}
      - labels: {{level: }}
""")
    try:
        wait_for(lambda: len(lines(server, '{service="shop"}')) == 3)
        (broke,) = streams(server, '{stream="stderr"}')
        assert broke["stream"] == {"service": "shop", "container": "shop", "stream": "stderr", "level": "error"}
        assert broke["values"][0][0].endswith("000000002") and broke["values"][0][1] == "level=error broke"
        # The second time only what came since is asked for, and nothing is stored twice.
        assert engine.since[0] == "0.000000000" and engine.since[1].endswith(".000000002")
    finally:
        server.stop()
        engine.shutdown()


def test_pods_of_this_node(tmp_path):
    """The relabelling of Grafana's chart: files by the pod's uid and container, pods of other nodes left out."""

    def pod(name, node, uid):
        return {
            "metadata": {"name": name, "namespace": "prod", "uid": uid, "labels": {"app.kubernetes.io/name": "web"}},
            "spec": {"nodeName": node, "containers": [{"name": "main"}, {"name": "side", "ports": [{"containerPort": 80}]}]},
            "status": {"podIP": "10.0.0.1", "phase": "Running"},
        }

    pods = [pod("web-1", "node-1", "u-1"), pod("web-2", "node-2", "u-2")]

    there = json_api({"/api/v1/pods": {"items": pods, "metadata": {}}})
    for p in pods:
        for container in ("main", "side"):
            at = tmp_path / "pods" / f"prod_{p['metadata']['name']}_{p['metadata']['uid']}" / container
            at.mkdir(parents=True)
            at.joinpath("0.log").write_text(
                f"2026-01-02T03:04:05.000000006Z stdout P {container} be\n2026-01-02T03:04:05.000000007Z stdout F gan\n"
                "2026-01-02T03:04:05.000000008Z stderr F failed\n"
            )
    server = start(tmp_path, f"""
positions: {{filename: {tmp_path}/positions.yaml}}
scrape_configs:
  - job_name: kubernetes-pods
    pipeline_stages: [{{cri: {{}}}}]
    kubernetes_sd_configs: [{{role: pod, api_server: "{there}", authorization: {{credentials: s3cret}}}}]
    relabel_configs:
      - {{source_labels: [__meta_kubernetes_pod_node_name], target_label: __host__}}
      - {{source_labels: [__meta_kubernetes_namespace], target_label: namespace}}
      - {{source_labels: [__meta_kubernetes_pod_name], target_label: pod}}
      - {{source_labels: [__meta_kubernetes_pod_container_name], target_label: container}}
      - {{source_labels: [__meta_kubernetes_pod_label_app_kubernetes_io_name], target_label: app}}
      - {{source_labels: [__meta_kubernetes_pod_uid, __meta_kubernetes_pod_container_name], separator: /, target_label: __path__, replacement: "{tmp_path}/pods/*$1/*.log"}}
""", env={"HOSTNAME": "node-1"})

    def found():
        begin = 1_767_300_000 * 10**9
        got = server.get("/loki/api/v1/query_range", listener="loki", query='{app="web"}', start=begin, end=begin + 10**14, direction="forward")
        return sorted((s["stream"]["pod"], s["stream"]["container"], s["stream"]["stream"], s["stream"]["namespace"], [v[1] for v in s["values"]]) for s in got["data"]["result"])

    try:
        want = [("web-1", c, s, "prod", t) for c in ("main", "side") for s, t in (("stderr", ["failed"]), ("stdout", [f"{c} began"]))]
        wait_for(lambda: len(found()) >= 4)
        assert found() == want
    finally:
        server.stop()


SYSLOG = """
scrape_configs:
  - job_name: syslog
    syslog:
      listen_address: 127.0.0.1:{port}
      listen_protocol: {protocol}
      label_structured_data: true
      syslog_format: {format}
      labels: {{job: syslog}}
    relabel_configs:
      - {{source_labels: [__syslog_message_severity], target_label: level}}
      - {{source_labels: [__syslog_message_app_name], target_label: app}}
      - {{source_labels: [__syslog_message_hostname], target_label: host}}
      - {{source_labels: [__syslog_message_sd_shop_order], target_label: order}}
"""


def test_syslog_over_tcp(tmp_path):
    port = free_port()
    server = start(tmp_path, SYSLOG.format(port=port, protocol="tcp", format="rfc5424"))
    try:
        def send(data):
            with socket.create_connection(("127.0.0.1", port)) as s:
                s.sendall(data)
            return True

        wait_for(lambda: send(b""))
        first = b'<11>1 2026-01-02T03:04:05Z web-1 shop 7 ID1 [shop order="17"] payment failed'
        send(b"%d %s" % (len(first), first) + b"%d %s" % (len(first), first))
        send(b"<14>1 - - shop - - - by line\n<14>1 - - shop - - - without an end")
        send(b"nonsense\n<14>1 - - shop - - - after nonsense\n")
        send(b"99999999 x")
        wait_for(lambda: len(lines(server, '{job="syslog"}')) == 5)
        (failed,) = streams(server, '{job="syslog", level="error"}')
        assert failed["stream"] == {"job": "syslog", "level": "error", "app": "shop", "host": "web-1", "order": "17"}
        assert [v[1] for v in failed["values"]] == ["payment failed"] * 2
    finally:
        server.stop()


PUSHED = """
scrape_configs:
  - job_name: pushed
    loki_push_api:
      server: {{http_listen_port: {port}, grpc_listen_port: 0}}
      labels: {{via: push}}
      use_incoming_timestamp: {keep}
    relabel_configs:
      - {{source_labels: [app], regex: noise, action: drop}}
      - {{source_labels: [app], target_label: service}}
      - {{action: labeldrop, regex: app}}
    pipeline_stages:
      - match: {{selector: '{{service="shop"}}', stages: [{{regex: {{expression: 'level=(?P<level>[a-z]+)'}}}}, {{labels: {{level: }}}}]}}
      - multiline: {{firstline: '^[^ ]', max_wait_time: 1h}}
"""


def test_others_push_to_a_job(tmp_path):
    port = free_port()
    server = start(tmp_path, PUSHED.format(port=port, keep="true"))
    base = f"http://127.0.0.1:{port}"

    def send(path, body, **headers):
        headers = {k.replace("_", "-"): v for k, v in headers.items()}
        request = urllib.request.Request(base + path, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request) as response:
                return response.status
        except urllib.error.HTTPError as e:
            return e.code
        except urllib.error.URLError:
            return 0

    try:
        wait_for(lambda: send("/ready", None) == 200)
        now = time.time_ns() - 10**9
        body = {
            "streams": [
                {"stream": {"app": "shop"}, "values": [[str(now), "level=warn slow", {"trace_id": "ab"}], [str(now + 1), "level=info done"]]},
                {"stream": {"app": "noise"}, "values": [[str(now), "x"]]},
            ]
        }
        kind = "application/json"
        assert send("/loki/api/v1/push", json.dumps(body).encode(), Content_Type=kind) == 204
        # It answered because they are stored.
        (warned,) = streams(server, '{via="push", level="warn"}')
        assert warned["stream"] == {"service": "shop", "via": "push", "level": "warn", "trace_id": "ab"} or warned["stream"] == {"service": "shop", "via": "push", "level": "warn"}
        assert warned["values"][0][:2] == [str(now), "level=warn slow"]
        assert lines(server, '{service="noise"}') == []
        assert send("/promtail/api/v1/raw", gzip.compress(b"first\n  of two lines\nsecond\n"), Content_Encoding="gzip") == 204
        assert lines(server, '{via="push", service=""}') == ["first\n  of two lines", "second"]
        assert send("/loki/api/v1/push", b"{", Content_Type=kind) == 400
        assert send("/loki/api/v1/push", b"\xff\xff\xff\xff\x0f") == 400
        assert send("/promtail/api/v1/raw", b"x" * (17 << 20)) in (413, 0)
        assert send("/loki/api/v1/push", json.dumps(body).encode(), Content_Type=kind, X_Scope_OrgID="other") == 204
        assert len(lines(server, '{via="push"}')) == 4
    finally:
        server.stop()


def test_others_push_over_tls(tmp_path):
    authority = certificate(tmp_path, "ca")
    certificate(tmp_path, "server", authority)
    certificate(tmp_path, "client", authority)
    port = free_port()
    tls = "http_tls_config: {cert_file: server.crt, key_file: server.key, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt}, grpc_listen_port"
    server = start(tmp_path, PUSHED.format(port=port, keep="true").replace("grpc_listen_port", tls))
    known = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
    known.load_cert_chain(tmp_path / "client.crt", tmp_path / "client.key")
    stranger = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))

    def send(line, context, scheme="https"):
        request = urllib.request.Request(f"{scheme}://127.0.0.1:{port}/promtail/api/v1/raw", data=line)
        try:
            with urllib.request.urlopen(request, context=context, timeout=20) as response:
                return response.status
        except (OSError, http.client.HTTPException):
            return 0

    try:
        # Who connects and says nothing holds nobody up.
        wait_for(lambda: socket.create_connection(("127.0.0.1", port)))
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
        assert send(b"in secret", known) == 204
        assert send(b"from a stranger", stranger) == 0
        assert send(b"in the open", None, "http") == 0
        assert lines(server, '{via="push"}') == ["in secret"]
        # A job that changes closes its port and opens it again.
        config = tmp_path / "promtail.yaml"
        config.write_text(config.read_text().replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven"))
        server.post("/-/reload", listener="prometheus")
        wait_for(lambda: send(b"without papers", stranger) == 204)
        assert set(lines(server, '{via="push"}')) == {"in secret", "without papers"}
        for s in silent:
            s.close()
    finally:
        server.stop()


def test_syslog_over_udp(tmp_path):
    port = free_port()
    server = start(tmp_path, SYSLOG.format(port=port, protocol="udp", format="rfc3164"))
    try:
        def send():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.sendto(b"<13>Oct 11 22:14:15 host su[12]: hello", ("127.0.0.1", port))
            return lines(server, '{job="syslog", app="su", host="host"}')

        assert set(wait_for(send)) == {"hello"}
    finally:
        server.stop()


@needs_rsyslog
def test_rsyslog_sends_to_us(tmp_path):
    port, own = free_port(), free_port()
    server = start(tmp_path, SYSLOG.format(port=port, protocol="tcp", format="rfc5424"))
    config = tmp_path / "rsyslog.conf"
    config.write_text(f"""
module(load="imudp")
input(type="imudp" port="{own}" address="127.0.0.1")
action(type="omfwd" target="127.0.0.1" port="{port}" protocol="tcp" template="RSYSLOG_SyslogProtocol23Format" TCP_Framing="octet-counted")
""")
    daemon = subprocess.Popen(["rsyslogd", "-n", "-f", str(config), "-i", str(tmp_path / "rsyslog.pid")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        def send():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
                s.sendto(b"<11>Oct 11 22:14:15 box su: through rsyslog", ("127.0.0.1", own))
            return lines(server, '{job="syslog", app="su", level="error"}')

        assert "through rsyslog" in wait_for(send)[0]
    finally:
        daemon.terminate()
        daemon.wait()
        server.stop()


def certificate(folder, name, issuer=None):
    """Writes a certificate and its key; signed by `issuer`, or by itself as an authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1)).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), True)
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    (folder / f"{name}.crt").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    (folder / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
    return built, key


def test_syslog_over_tls(tmp_path):
    authority = certificate(tmp_path, "ca")
    certificate(tmp_path, "server", authority)
    certificate(tmp_path, "client", authority)
    port = free_port()
    tls = "      tls_config: {cert_file: server.crt, key_file: server.key, ca_file: ca.crt}\n    relabel_configs"
    text = SYSLOG.format(port=port, protocol="tcp", format="rfc5424").replace("    relabel_configs", tls)
    server = start(tmp_path, text)
    try:
        context = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        context.load_cert_chain(tmp_path / "client.crt", tmp_path / "client.key")

        def send(data, context=context):
            with socket.create_connection(("127.0.0.1", port)) as s, context.wrap_socket(s, server_hostname="127.0.0.1") as t:
                t.sendall(data)
                t.unwrap()
            return True

        wait_for(lambda: send(b"<14>1 - - shop - - - in secret\n"))
        wait_for(lambda: "in secret" in lines(server, '{job="syslog"}'))
        # Who shows no certificate, and who does not speak TLS, is not heard.
        stranger = ssl.create_default_context(cafile=str(tmp_path / "ca.crt"))
        with contextlib.suppress(OSError):
            send(b"<14>1 - - shop - - - from a stranger\n" * 1000, stranger)
        with socket.create_connection(("127.0.0.1", port)) as s:
            s.sendall(b"<14>1 - - shop - - - in the open\n")
            assert s.recv(100) in (b"", b"\x15\x03\x03\x00\x02\x022")
        send(b"<14>1 - - shop - - - at last\n")
        wait_for(lambda: "at last" in lines(server, '{job="syslog"}'))
        assert set(lines(server, '{job="syslog"}')) == {"in secret", "at last"}
    finally:
        server.stop()


JOURNAL = """
scrape_configs:
  - job_name: journal
    journal: {{path: {tmp}/journal, max_age: 12h, matches: "_TRANSPORT=kernel", labels: {{job: journal}}}}
    relabel_configs:
      - {{source_labels: [__journal__systemd_unit], target_label: unit}}
      - {{source_labels: [__journal_priority_keyword], target_label: level}}
    pipeline_stages:
      - regex: {{expression: "took (?P<ms>[0-9]+)"}}
      - metrics:
          took_ms: {{type: Counter, description: "Time taken.", source: ms, config: {{action: add}}}}
"""
# Answers as journalctl does, from a file with an entry a line, and tells how it was asked.
JOURNALCTL = """#!{python}
import json, os, sys, time
folder = {folder!r}
with open(folder + "/asked", "a") as f:
    f.write(json.dumps(sys.argv[1:]) + "\\n")
after = next((a.split("=", 1)[1] for a in sys.argv if a.startswith("--after-cursor=")), None)
seen, past = 0, after is None
while True:
    entries = open(folder + "/entries").read().splitlines()
    for e in entries[seen:]:
        if past:
            print(e, flush=True)
        past = past or json.loads(e)["__CURSOR"] == after
    seen = len(entries)
    if os.path.exists(folder + "/end"):
        os.unlink(folder + "/end")
        sys.exit("it ended")
    time.sleep(0.05)
"""


def test_the_journal_is_followed_from_where_it_was_left(tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "journalctl").write_text(JOURNALCTL.format(python=sys.executable, folder=str(tmp_path)))
    (tools / "journalctl").chmod(0o755)

    def entry(i, **more):
        at = str(time.time_ns() // 1000)
        with open(tmp_path / "entries", "a") as f:
            f.write(json.dumps({"__CURSOR": f"s=a;i={i}", "__REALTIME_TIMESTAMP": at, "_SYSTEMD_UNIT": "shop.service", **more}) + "\n")

    entry(1, MESSAGE="started, took 40", PRIORITY="6")
    entry(2, MESSAGE=[98, 97, 100, 255], PRIORITY="3")
    env = {"PATH": f"{tools}:{os.environ['PATH']}"}
    server = start(tmp_path, JOURNAL.format(tmp=tmp_path), env=env)
    try:
        wait_for(lambda: len(lines(server, '{job="journal"}')) == 2)
        (bad,) = streams(server, '{job="journal", level="error"}')
        assert bad["stream"] == {"job": "journal", "unit": "shop.service", "level": "error"} and bad["values"][0][1] == "bad\ufffd"
        entry(3, MESSAGE="still here, took 2", PRIORITY="6")
        wait_for(lambda: len(lines(server, '{job="journal"}')) == 3)
        asked = json.loads((tmp_path / "asked").read_text().splitlines()[0])
        assert {"--output=json", "--follow", "--since=-12h", "_TRANSPORT=kernel"} <= set(asked) and f"{tmp_path}/journal" in asked

        def counted():
            found = server.get("/api/v1/query", listener="prometheus", query="promtail_custom_took_ms")["data"]["result"]
            return found and (found[0]["metric"], found[0]["value"][1])

        wait_for(lambda: counted() == ({"__name__": "promtail_custom_took_ms", "job": "journal", "unit": "shop.service", "level": "info"}, "42"), 40)
    finally:
        server.stop()
    entry(4, MESSAGE="while away", PRIORITY="6")
    (tmp_path / "data" / "endpoints.json").unlink(missing_ok=True)
    server = start(tmp_path, JOURNAL.format(tmp=tmp_path), env=env)
    try:
        wait_for(lambda: "while away" in lines(server, '{job="journal"}'))
        assert len(lines(server, '{job="journal"}')) == 4, "nothing is read twice"
        assert "--after-cursor=s=a;i=3" in json.loads((tmp_path / "asked").read_text().splitlines()[-1])
        # It ends, is started again, and nothing is lost.
        (tmp_path / "end").touch()
        entry(5, MESSAGE="after its end", PRIORITY="6")
        wait_for(lambda: "after its end" in lines(server, '{job="journal"}'))
    finally:
        server.stop()


def test_what_is_not_supported_is_named(tmp_path):
    binary = os.environ["OBSERVATORY_BIN"]
    for text, why in [
        ("scrape_configs: [{job_name: k, kafka: {brokers: [x]}}]\nclients: []\n", "kafka is not supported"),
        ("scrape_configs: [{job_name: j, syslog: {listen_address: 'x:1', listen_protocol: udp, tls_config: {}}}]\nclients: []\n", "UDP has no TLS"),
        ("scrape_configs: [{job_name: j, pipeline_stages: [{geoip: {}}]}]\nclients: []\n", "geoip: this stage is not supported"),
        ("scrape_configs: [{job_name: j, loki_push_api: {server: {http_listen_port: 1, http_tls_config: {client_ca_file: x}}}}]\nclients: []\n", "client_ca_file needs a client_auth_type"),
        ("positions: {nope: 1}\n", "nope"),
    ]:
        (tmp_path / "p.yaml").write_text(text)
        done = subprocess.run([binary, "check", "config", str(tmp_path / "p.yaml")], capture_output=True, text=True)
        assert done.returncode == 1 and why in done.stdout + done.stderr, (text, done)
