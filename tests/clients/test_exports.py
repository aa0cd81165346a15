"""Exports: files of calls and of the ledger, made in the background, read by real programs."""

import csv
import decimal
import gzip
import io
import json
import os
import subprocess
import time
import urllib.error
import urllib.request

import duckdb
import pytest
from running import BINARY, Server, until

D = decimal.Decimal
DAY = 86_400 * 10**9


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("exports")
    s = Server(directory)
    now = time.time_ns()
    value = lambda v: {"intValue": str(v)} if isinstance(v, int) else {"stringValue": v}
    for day in range(3):
        spans = []
        for n in range(400):
            start = now - (day + 1) * DAY + n * 60 * 10**9
            attributes = {
                "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai",
                "gen_ai.request.model": "gpt-4o" if n % 2 else "gpt-4o-mini",
                "gen_ai.usage.input_tokens": 1000 + n, "gen_ai.usage.output_tokens": n,
                "user.id": '=cmd|"x",\n' if n == 7 else f"u{n % 5}",
            }
            spans.append({
                "traceId": os.urandom(16).hex(), "spanId": os.urandom(8).hex(), "name": "chat", "kind": 3,
                "startTimeUnixNano": str(start), "endTimeUnixNano": str(start + (n + 1) * 10**6),
                "attributes": [{"key": k, "value": value(v)} for k, v in attributes.items()],
            })
        body = {"resourceSpans": [{"resource": {}, "scopeSpans": [{"spans": spans}]}]}
        assert s.post("/v1/traces", json.dumps(body).encode())[0] == 200
    yield s
    s.stop()


def send(server, path, body=None, method="POST"):
    return server.post(path, json.dumps(body).encode() if body is not None else b"", method=method)


def fetched(server, path="/api/v1/export/traces", **ask):
    status, answer = send(server, path, ask)
    assert status == 202, answer
    job = done(server, answer["data"]["job_id"])
    assert job["status"] == "completed" and job["progress"] == 100, job
    url = f"http://{server.endpoints['ui']}{job['download_url']}"
    with urllib.request.urlopen(url) as r:
        content = r.read()
    assert len(content) == job["file_size_bytes"]
    # As a browser asks.
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept-Encoding": "gzip"})) as r:
        packed = r.read()
        packed = gzip.decompress(packed) if r.headers["Content-Encoding"] == "gzip" else packed
    assert packed == content
    return job, content


def done(server, id):
    of = lambda: server.get(f"/api/v1/export/jobs/{id}")["data"]
    until(lambda: of()["status"] not in ("pending", "processing"))
    return of()


def test_every_format_says_the_same(server, tmp_path):
    sums = server.get("/api/v1/costs", **{"from": str(int(time.time()) - 4 * 86_400)})["data"]["total"]
    job, content = fetched(server)
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    assert (job["rows"], len(rows), job["truncated"]) == (1200, 1200, False)
    assert sum(D(r["cost_usd"]) for r in rows) == D(sums["total_cost"])
    assert [r["timestamp"] for r in rows] == sorted(r["timestamp"] for r in rows)
    # A spreadsheet must not run what users wrote.
    assert sum(r["user_id"] == "'=cmd|\"x\",\n" for r in rows) == 3
    _, content = fetched(server, format="jsonl", compression="gzip")
    lines = [json.loads(line) for line in gzip.decompress(content).splitlines()]
    assert [(r["span_id"], r["cost_usd"], r["input_tokens"]) for r in lines] == [
        (r["span_id"], r["cost_usd"], int(r["input_tokens"])) for r in rows
    ]
    _, content = fetched(server, format="json")
    assert json.loads(content) == lines
    _, content = fetched(server, format="parquet")
    file = tmp_path / "calls.parquet"
    file.write_bytes(content)
    n, cost, tokens, kind = duckdb.sql(
        f"SELECT count(*), sum(cost_usd), sum(input_tokens), typeof(any_value(cost_usd)) FROM '{file}'"
    ).fetchall()[0]
    assert (n, cost, tokens) == (1200, D(sums["total_cost"]), sum(int(r["input_tokens"]) for r in rows))
    assert kind.startswith("DECIMAL")


def test_the_ledger_is_exported_to_the_last_digit(server, tmp_path):
    sums = server.get("/api/v1/costs", **{"from": str(int(time.time()) - 4 * 86_400)})["data"]["total"]
    _, content = fetched(server, "/api/v1/export/ledger", format="parquet", limit=1_000_000)
    file = tmp_path / "ledger.parquet"
    file.write_bytes(content)
    parts = dict(duckdb.sql(f"SELECT part, sum(amount_usd) FROM '{file}' GROUP BY part").fetchall())
    assert sum(parts.values()) == D(sums["total_cost"]) and parts["input"] == D(sums["input_cost"])


def test_filters_limits_and_what_is_refused(server):
    job, content = fetched(server, filters={"model": "gpt-4o", "user": ["u1", "u3"], "min_duration_ms": 200})
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert rows and all(r["model"] == "gpt-4o" and r["user_id"] in ("u1", "u3") for r in rows)
    assert all(float(r["duration_ms"]) >= 200 for r in rows) and job["filters"]["model"] == ["gpt-4o"]
    job, content = fetched(server, limit=10)
    assert (job["rows"], job["truncated"], len(list(csv.reader(io.StringIO(content.decode(), newline=""))))) == (10, True, 11)
    for ask, part in (
        ({"format": "xlsx"}, "unknown variant"), ({"limit": 0}, "limit must be"), ({"limit": 10**7}, "limit must be"),
        ({"from": "soon"}, "from:"), ({"filters": {"colour": "red"}}, "filters.colour"),
        ({"filters": {"min_cost": "much"}}, "filters.min_cost"), ({"from": "2026-02-02", "to": "2026-02-01"}, "ends before"),
        ({"format": "parquet", "compression": "gzip"}, "compressed inside"), ({"page": 1}, "unknown field"),
    ):
        status, answer = send(server, "/api/v1/export/traces", ask)
        assert status == 400 and part in answer["error"]["message"], (ask, answer)
    for method, path in (("GET", ""), ("DELETE", ""), ("GET", "/download")):
        status, answer = send(server, f"/api/v1/export/jobs/nobody{path}", method=method)
        assert (status, answer["error"]["code"]) == (404, "NOT_FOUND")


def test_jobs_are_listed_removed_and_another_tenants_alone(server):
    job, _ = fetched(server, limit=1)
    id = job["job_id"]
    for path in ("/api/v1/export/jobs", "/api/v1/exports"):
        assert server.get(path)["data"]["jobs"][0]["job_id"] == id
    url = f"http://{server.endpoints['ui']}/api/v1/export/jobs/{id}/download"
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(urllib.request.Request(url, headers={"X-Scope-OrgID": "other"}))
    assert e.value.code == 404
    assert send(server, f"/api/v1/export/jobs/{id}", method="DELETE")[0] == 204
    assert send(server, f"/api/v1/export/jobs/{id}", method="GET")[0] == 404


def test_the_terminal_writes_a_file(server, tmp_path):
    file = tmp_path / "out.parquet"
    command = [
        BINARY, "cost", "export", "ledger", "--format", "parquet", "--to-file", str(file),
        "--where", "model=gpt-4o", "--url", f"http://{server.endpoints['ui']}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "1200 rows" in done.stdout, done
    assert duckdb.sql(f"SELECT DISTINCT model FROM '{file}'").fetchall() == [("gpt-4o",)]
    # What is there is not written over.
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0 and "failed to create" in done.stderr, done


def test_jobs_survive_a_crash(tmp_path):
    s = Server(tmp_path)
    body = {"organization_id": "acme", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1000}
    assert send(s, "/api/v1/usage", body)[0] == 200
    kept, content = fetched(s)
    # Begun, and killed at once: it is made again.
    status, answer = send(s, "/api/v1/export/ledger", {"from": "2025-01-01"})
    s.process.kill()
    s.process.wait()
    (tmp_path / "endpoints.json").unlink()
    (tmp_path / "exports" / "stray.csv").write_text("x")
    s = Server(tmp_path)
    assert status == 202
    again = done(s, answer["data"]["job_id"])
    assert again["status"] == "completed" and again["rows"] >= 1, again
    with urllib.request.urlopen(f"http://{s.endpoints['ui']}{kept['download_url']}") as r:
        assert r.read() == content
    assert not (tmp_path / "exports" / "stray.csv").exists()
    # A tenant that is deleted leaves no file behind.
    assert s.post("/api/v1/tenants/default", method="DELETE")[0] == 200
    assert list((tmp_path / "exports").iterdir()) == []
    s.stop()
