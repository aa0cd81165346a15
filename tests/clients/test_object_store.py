"""Older segments and backups in a real S3-compatible server.

usage: OBSERVATORY_BIN=path python -m pytest tests/clients
"""

import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import boto3
import pytest
from running import BINARY, Server, free_port

KEYS = {"AWS_ACCESS_KEY_ID": "canary-key", "AWS_SECRET_ACCESS_KEY": "canary-secret", "AWS_REGION": "us-east-1", "AWS_ALLOW_HTTP": "true"}
HOUR = 3600
LINES = 20_000


@pytest.fixture(scope="module")
def s3():
    port = free_port()
    script = pathlib.Path(sys.executable).parent / "moto_server"
    process = subprocess.Popen([script, "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
    for _ in range(200):
        try:
            client.create_bucket(Bucket="telemetry")
            break
        except Exception:
            assert process.poll() is None, "the S3 server ended"
            time.sleep(0.1)
    yield client
    process.kill()


def endpoint(s3):
    return s3.meta.endpoint_url


def keys(s3, prefix):
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="telemetry", Prefix=prefix)
    return [o["Key"] for page in pages for o in page.get("Contents", [])]


def config(path, url, prefix):
    path.write_text(
        f"data:\n  disk_reserve_bytes: 0\n  tier:\n    url: s3://telemetry/{prefix}\n    after: 30m\n    options:\n      aws_endpoint: {url}\n"
    )
    return ["--config", str(path)]


def push(server, hours_ago):
    """Lines of yesterday: a segment of their own, not one with the server's own metrics."""
    rng = random.Random(7)
    start = int(time.time()) - hours_ago * HOUR
    for part in range(10):
        values = [[str((start * 1000 + i) * 1_000_000), f"request {i} took {rng.random():.9f} s"] for i in range(part * LINES // 10, (part + 1) * LINES // 10)]
        body = {"streams": [{"stream": {"app": "gateway"}, "values": values}]}
        assert server.post("/loki/api/v1/push", json.dumps(body).encode(), listener="loki")[0] == 204
    return start


def otlp_gauge(server, start):
    points = [{"timeUnixNano": str((start + 15 * i) * 10**9), "asDouble": i / 4} for i in range(100)]
    metric = {"name": "temperature", "gauge": {"dataPoints": points}}
    body = {"resourceMetrics": [{"resource": {}, "scopeMetrics": [{"metrics": [metric]}]}]}
    assert server.post("/v1/metrics", json.dumps(body).encode(), listener="otlp-http")[0] == 200


def answers(server, start):
    everything = {"start": start - 60, "end": start + HOUR}
    return [
        server.get("/loki/api/v1/query_range", listener="loki", query='{app="gateway"}', limit=5000, **everything),
        server.get("/loki/api/v1/query_range", listener="loki", query='{app="gateway"} |= "request 777 "', **everything),
        server.get("/api/v1/query_range", listener="prometheus", query="temperature", step=60, **everything),
        server.sql("SELECT count(*) AS n FROM logs"),
    ]


def data_of(answer):
    """Statistics differ between two runs of a query, data does not."""
    return [a["data"]["result"] if isinstance(a, dict) else a for a in answer]


def is_partial(answer):
    return "missing" in answer or bool(answer.get("warnings"))


def local_segments(data):
    return list((data / "segments").rglob("*.seg"))


def run(*arguments, endpoint):
    env = {**os.environ, **KEYS, "AWS_ENDPOINT": endpoint}
    done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True, env=env, timeout=120)
    return done.returncode, done.stdout + done.stderr


def test_older_segments_move_and_still_answer(s3, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    arguments = config(tmp_path / "c.yaml", endpoint(s3), "tier")
    server = Server(data, *arguments, env=KEYS)
    start = push(server, 30)
    otlp_gauge(server, start)
    assert server.post("/api/v1/storage/flush")[0] == 200
    before = data_of(answers(server, start))
    assert len(before[0][0]["values"]) == 5000 and len(before[1][0]["values"]) == 1
    assert before[3] == [{"n": LINES}]
    assert len(local_segments(data)) >= 2
    status, moved = server.post("/api/v1/storage/tier")
    assert (status, moved["segments"] >= 2) == (200, True), moved
    objects = keys(s3, "tier/segments/")
    assert len(objects) == moved["segments"]
    # Only what is younger than half an hour (the server's own metrics) is left here.
    assert data_of(answers(server, start)) == before
    server.stop()

    # Nothing of it is on this machine now.
    shutil.rmtree(data / "cache")
    assert not [p for p in local_segments(data) if p.stat().st_size > 50_000]
    code, text = run("verify", data, endpoint=endpoint(s3))
    assert code == 0 and f"{len(objects)} segments in the object store were not checked" in text, text
    code, text = run("verify", data, "--objects", "s3://telemetry/tier", endpoint=endpoint(s3))
    assert code == 0 and "not checked" not in text, text
    server = Server(data, *arguments, env=KEYS)
    assert data_of(answers(server, start)) == before
    cached = sum(p.stat().st_size for p in (data / "cache").iterdir())
    assert cached > 50_000
    # A page of the cache that went bad is fetched again.
    for page in (data / "cache").iterdir():
        damaged = bytearray(page.read_bytes())
        for i in range(0, len(damaged), 1000):
            damaged[i] ^= 1
        page.write_bytes(damaged)
    server.stop()
    server = Server(data, *arguments, env=KEYS)
    assert data_of(answers(server, start)) == before
    server.stop()

    # Without the object store the rest is served, and what is missing is named.
    shutil.rmtree(data / "cache")
    down = config(tmp_path / "down.yaml", f"http://127.0.0.1:{free_port()}", "tier")
    server = Server(data, *down, env=KEYS)
    for answer in answers(server, start)[:3]:
        assert answer["status"] == "success" and is_partial(answer), answer
    server.stop()

    # An object that lost a byte costs its block, and says so.
    key = max(objects, key=lambda k: s3.head_object(Bucket="telemetry", Key=k)["ContentLength"])
    body = bytearray(s3.get_object(Bucket="telemetry", Key=key)["Body"].read())
    body[len(body) // 3] ^= 4
    s3.put_object(Bucket="telemetry", Key=key, Body=bytes(body))
    code, text = run("verify", data, "--objects", "s3://telemetry/tier", endpoint=endpoint(s3))
    assert code == 1 and "DAMAGE" in text, text
    server = Server(data, *arguments, env=KEYS)
    assert any(is_partial(a) for a in answers(server, start)[:2])

    # What is deleted leaves the bucket too.
    assert server.post("/api/v1/tenants/default", method="DELETE")[0] == 200
    assert server.sql("SELECT count(*) AS n FROM logs") == [{"n": 0}]
    server.post("/api/v1/storage/compact")
    assert server.post("/api/v1/storage/tier")[0] == 200
    assert not set(keys(s3, "tier/segments/")) & set(objects)
    text = json.dumps(server.get("/api/v1/status/config", listener="prometheus"))
    assert "canary-secret" not in text
    server.stop()


def test_a_backup_in_the_object_store_comes_back(s3, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    server = Server(data, *config(tmp_path / "c.yaml", endpoint(s3), "own"), env=KEYS)
    start = push(server, 30)
    otlp_gauge(server, start)
    assert server.post("/api/v1/storage/flush")[0] == 200
    # Half of it comes out of the object store into the backup.
    assert server.post("/api/v1/storage/tier")[0] == 200
    before = data_of(answers(server, start))
    url = f"http://{server.endpoints['ui']}"
    code, text = run("backup", "s3://telemetry/backups/monday", "--url", url, endpoint=endpoint(s3))
    assert code == 0 and "every block checked" in text, text
    code, text = run("backup", "s3://telemetry/backups/monday", "--url", url, endpoint=endpoint(s3))
    assert code == 2 and "not empty" in text, text
    server.stop()

    code, text = run("restore", "s3://telemetry/backups/monday", tmp_path / "back", endpoint=endpoint(s3))
    assert code == 0, text
    server = Server(tmp_path / "back")
    assert data_of(answers(server, start)) == before
    server.stop()

    # Cut short, it is no backup; damaged, it does not come back.
    listed = keys(s3, "backups/monday/")
    segment = max(listed, key=lambda k: s3.head_object(Bucket="telemetry", Key=k)["ContentLength"])
    body = bytearray(s3.get_object(Bucket="telemetry", Key=segment)["Body"].read())
    body[len(body) // 2] ^= 1
    s3.put_object(Bucket="telemetry", Key=segment, Body=bytes(body))
    code, text = run("restore", "s3://telemetry/backups/monday", tmp_path / "bad", endpoint=endpoint(s3))
    assert code == 1 and "damaged" in text and not (tmp_path / "bad").exists(), text
    s3.delete_object(Bucket="telemetry", Key="backups/monday/BACKUP.json")
    code, text = run("restore", "s3://telemetry/backups/monday", tmp_path / "none", endpoint=endpoint(s3))
    assert code == 2 and "BACKUP.json" in text, text
