"""Random queries get the same answers from us as from a real Prometheus.

Debian's Prometheus is 2.42. What Prometheus 3 changed is left out of the queries: samples lie between
the steps, so that open and closed ends of windows are the same, and counters stay far from zero, which
limits how far a rate is extrapolated.
"""

import json
import math
import random
import shutil
import struct
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from running import Server
from test_prometheus import free_port, wait_for

pytestmark = pytest.mark.skipif(not shutil.which("prometheus"), reason="Debian's prometheus is not installed")


def varint(n):
    out = b""
    while n >= 128:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def remote_write(series):
    """The body of a request: protobuf as one uncompressed snappy literal after another."""
    body = b""
    for labels, samples in series:
        one = b"".join(field(1, field(1, n.encode()) + field(2, v.encode())) for n, v in sorted(labels.items()))
        one += b"".join(field(2, b"\x09" + struct.pack("<d", v) + b"\x10" + varint(t)) for t, v in samples)
        body += field(1, one)
    out = varint(len(body))
    for i in range(0, len(body), 65536):
        part = body[i : i + 65536]
        out += b"\xf4" + struct.pack("<H", len(part) - 1) + part
    return out


def data(dice, start):
    series = []

    def add(labels, values):
        offset = 1111 + 37 * len(series)
        series.append((labels, [(start + i * 15000 + offset, v) for i, v in enumerate(values) if v is not None]))

    for instance in "abc":
        for job in ("api", "db"):
            for code in ("200", "404", "500"):
                total, values = 1000.0, []
                for _ in range(240):
                    total = float(dice.randint(400, 500)) if dice.random() < 0.01 else total + dice.choice([0, 1, 2, 5, 10])
                    values.append(None if dice.random() < 0.05 else total)
                add({"__name__": "req_total", "instance": instance, "job": job, "code": code}, values)
            add({"__name__": "temp", "instance": instance, "job": job}, [dice.choice([None] + [dice.uniform(1, 50)] * 20) for _ in range(240)])
            buckets = [[] for _ in range(5)]
            counts = [100.0] * 5
            for _ in range(240):
                for b in range(5):
                    more = dice.randint(0, 4)
                    for upper in range(b, 5):
                        counts[upper] += more
                for b in range(5):
                    buckets[b].append(counts[b])
            for le, values in zip(("0.1", "0.5", "1", "5", "+Inf"), buckets):
                add({"__name__": "dur_bucket", "instance": instance, "job": job, "le": le}, values)
    for instance, version in (("a", "1"), ("b", "2")):
        add({"__name__": "about", "instance": instance, "version": version}, [1.0] * 240)
    return series


class Queries:
    """Random queries of what both versions answer alike."""

    def __init__(self, dice):
        self.dice = dice

    def pick(self, *choices):
        return self.dice.choice(choices)

    def filter(self):
        return self.pick("", "", "", '{job="api"}', '{instance=~"a|b"}', '{instance!="c",job!~"d.*"}', '{none=""}', '{none!=""}')

    def counter(self):
        return f"{self.pick('req_total', 'dur_bucket')}{self.filter()}"

    def selector(self):
        return f"{self.pick('req_total', 'temp', 'about', 'dur_bucket')}{self.filter()}{self.pick('', '', '', ' offset 3m')}"

    def window(self):
        return self.pick("2m", "5m", "10m", "33s")

    def by(self):
        return self.pick("", " by (job)", " by (instance)", " without (instance)", " without (code, le)", " by ()", " by (none)")

    def vector(self, depth=0):
        kind = self.dice.random()
        if depth > 2 or kind < 0.2:
            return self.selector()
        if kind < 0.35:
            return f"{self.pick('rate', 'increase', 'irate')}({self.counter()}[{self.window()}])"
        if kind < 0.5:
            function = self.pick("avg", "min", "max", "sum", "count", "last", "present", "stddev", "quantile", "changes", "resets", "deriv", "idelta", "predict")
            matrix = f"{self.pick('temp', 'req_total')}{self.filter()}[{self.window()}]"
            if function == "quantile":
                return f"quantile_over_time({self.pick('0.1', '0.5', '1')}, {matrix})"
            if function == "predict":
                return f"predict_linear({matrix}, {self.pick('60', '-600')})"
            return f"{function}({matrix})" if function in ("changes", "resets", "deriv", "idelta") else f"{function}_over_time({matrix})"
        if kind < 0.68:
            operator = self.pick("sum", "avg", "min", "max", "count", "group", "quantile")
            parameter = "0.9, " if operator == "quantile" else ""
            return f"{operator}{self.by()}({parameter}{self.vector(depth + 1)})"
        if kind < 0.78:
            inner = self.vector(depth + 1)
            return self.pick(
                f"abs({inner})", f"sqrt({inner})", f"round({inner}, 0.5)", f"clamp({inner}, 1, 20)", f"-{inner}", f"sgn({inner})", f"timestamp({inner})", f"hour({inner})", f"absent({inner})",
                f'label_replace({inner}, "new", "$1-x", "instance", "(a|b)")', f'label_join({inner}, "new", "-", "job", "instance")',
                "histogram_quantile(0.9, rate(dur_bucket[5m]))", "histogram_quantile(0.5, sum by (job, le) (rate(dur_bucket[10m])))",
            )
        operator = self.pick("+", "-", "*", "/", "%", "^", "==", "!=", ">", "<", ">=", "<=", "and", "or", "unless")
        is_set = operator in ("and", "or", "unless")
        is_bool = " bool" if operator in ("==", "!=", ">", "<", ">=", "<=") and self.dice.random() < 0.3 else ""
        if not is_set and self.dice.random() < 0.5:
            return f"({self.vector(depth + 1)} {operator}{is_bool} {self.pick('2', '0.5', '-3', '0', 'time()', 'scalar(about)')})"
        matching = self.pick("", " on (instance)", " on (job, instance)", " ignoring (code)")
        if matching and not is_set:
            matching += self.pick("", " group_left", " group_right", " group_left (version)")
        return f"({self.vector(depth + 1)} {operator}{is_bool}{matching} {self.vector(depth + 1)})"


def ask(base, path, parameters):
    try:
        with urllib.request.urlopen(base + path, data=urllib.parse.urlencode(parameters).encode()) as r:
            return json.load(r)
    except urllib.error.HTTPError as e:
        return json.load(e)


def close(a, b):
    a, b = float(a), float(b)
    return a == b or (math.isnan(a) and math.isnan(b)) or abs(a - b) <= 1e-9 * max(abs(a), abs(b), 1e-6)


def difference(ours, theirs):
    if ours["status"] != theirs["status"]:
        return f"{ours.get('error', 'an answer')} | {theirs.get('error', 'an answer')}"
    if ours["status"] == "error":
        return None
    rows = [{json.dumps(r["metric"], sort_keys=True): r.get("values") or [r["value"]] for r in x["data"]["result"]} for x in (ours, theirs)]
    if set(rows[0]) != set(rows[1]):
        return f"only here {sorted(set(rows[0]) - set(rows[1]))[:3]}, only there {sorted(set(rows[1]) - set(rows[0]))[:3]}"
    for metric, points in rows[0].items():
        other = rows[1][metric]
        if len(points) != len(other):
            return f"{metric}: {len(points)} points, not {len(other)}"
        for (t, a), (u, b) in zip(points, other):
            if t != u or not close(a, b):
                return f"{metric}: {a} at {t}, not {b} at {u}"
    return None


@pytest.mark.parametrize("seed", [1, 2])
def test_answers_agree(tmp_path, seed):
    dice = random.Random(seed)
    (tmp_path / "p.yml").write_text("")
    port = free_port()
    command = ["prometheus", f"--config.file={tmp_path}/p.yml", f"--storage.tsdb.path={tmp_path}/p", f"--web.listen-address=127.0.0.1:{port}", "--web.enable-remote-write-receiver"]
    real = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = Server(tmp_path / "data")
    ours, theirs = f"http://{server.endpoints['prometheus']}", f"http://127.0.0.1:{port}"
    now = int(time.time())
    try:
        wait_for(lambda: urllib.request.urlopen(theirs + "/-/ready").status == 200)
        body = remote_write(data(dice, (now - 3600) * 1000))
        for base in (ours, theirs):
            headers = {"Content-Encoding": "snappy", "Content-Type": "application/x-protobuf", "X-Prometheus-Remote-Write-Version": "0.1.0"}
            urllib.request.urlopen(urllib.request.Request(base + "/api/v1/write", data=body, headers=headers)).read()
        queries, wrong, answered = Queries(dice), [], 0
        for _ in range(300):
            text = queries.vector()
            if dice.random() < 0.5:
                path, when = "/api/v1/query_range", {"start": now - 1800 + 7.5, "end": now - 300 + 7.5, "step": dice.choice([15, 60, 97])}
            else:
                path, when = "/api/v1/query", {"time": now - dice.choice([303.5, 633.5, 1200.5])}
            here, there = (ask(base, path, {"query": text, **when}) for base in (ours, theirs))
            answered += there["status"] == "success"
            found = difference(here, there)
            if found:
                wrong.append(f"{text} {when}: {found}")
        assert answered > 200
        assert not wrong, "\n".join(wrong[:10])
    finally:
        real.terminate()
        real.wait(20)
        server.stop()
