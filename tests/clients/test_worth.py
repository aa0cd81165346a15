"""What money bought: calls told by log events, budgets by key and attribute, movers, successes, GPU time, ratings."""

import decimal
import json
import os
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
from running import Server

D = decimal.Decimal
SECOND = 10**9
DAY = 86_400 * SECOND


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("worth")
    config = base / "observatory.yaml"
    config.write_text("llm:\n  attributes: [customer.tier]\n")
    s = Server(base, "--config", str(config))
    yield s
    s.stop()


def send(server, path, body, method="POST", tenant=None, listener="ui"):
    headers = {"Content-Type": "application/json", **({"X-Scope-OrgID": tenant} if tenant else {})}
    url = f"http://{server.endpoints[listener]}{path}"
    request = urllib.request.Request(url, json.dumps(body).encode() if body is not None else None, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read())


def get(server, path, tenant, **params):
    status, answer = send(server, f"{path}?{urllib.parse.urlencode(params)}", None, "GET", tenant)
    assert status == 200, answer
    return answer.get("data", answer)


def attributes(pairs):
    def value(v):
        if isinstance(v, list):
            return {"arrayValue": {"values": [value(x) for x in v]}}
        kind = {int: "intValue", float: "doubleValue", str: "stringValue"}[type(v)]
        return {kind: str(v) if isinstance(v, int) else v}

    return [{"key": k, "value": value(v)} for k, v in pairs.items()]


def span(trace, span_id, pairs, at=None, seconds=1):
    end = at or time.time_ns()
    return {
        "traceId": f"{trace:032x}", "spanId": f"{span_id:016x}", "name": "chat", "kind": 3,
        "startTimeUnixNano": str(end - seconds * SECOND), "endTimeUnixNano": str(end), "attributes": attributes(pairs),
    }


def spans(server, tenant, rows):
    body = {"resourceSpans": [{"resource": {"attributes": attributes({"service.name": "bot"})}, "scopeSpans": [{"spans": rows}]}]}
    assert send(server, "/v1/traces", body, tenant=tenant)[0] == 200


def details(server, tenant, trace, span_id, pairs):
    """The one log event that OpenTelemetry's conventions put a whole call into."""
    record = {
        "timeUnixNano": str(time.time_ns()), "severityNumber": 5, "eventName": "gen_ai.client.inference.operation.details",
        **({"traceId": f"{trace:032x}", "spanId": f"{span_id:016x}"} if trace else {}), "attributes": attributes(pairs),
    }
    body = {"resourceLogs": [{"resource": {"attributes": attributes({"service.name": "bot"})}, "scopeLogs": [{"logRecords": [record]}]}]}
    assert send(server, "/v1/logs", body, tenant=tenant)[0] == 200


CALL = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o"}
# A million input tokens of gpt-4o cost 2.50 dollars.
USED = {"gen_ai.usage.input_tokens": 1_000_000, "gen_ai.usage.output_tokens": 0}


def costs(server, tenant, **filters):
    found = get(server, "/api/v1/costs", tenant, **filters)["total"]
    return D(found["total_cost"]), found["requests"]


def test_a_call_told_by_a_log_event_costs_once(server):
    # The event alone: its span was sampled away.
    details(server, "events", 1, 1, {**CALL, **USED, "gen_ai.response.id": "chatcmpl-0123456789abcdef01"})
    assert costs(server, "events") == (D("2.5"), 1)
    # The event first, then its span, which says when it ran.
    details(server, "events", 2, 2, {**CALL, **USED})
    spans(server, "events", [span(2, 2, {**CALL, **USED}, seconds=3)])
    # The span first, without usage; the event says what was used.
    spans(server, "events", [span(3, 3, CALL, seconds=2)])
    details(server, "events", 3, 3, {**CALL, **USED})
    # A span that says it all, and its event.
    spans(server, "events", [span(4, 4, {**CALL, **USED})])
    details(server, "events", 4, 4, {**CALL, **USED})
    # An event outside of any span, of an answer that a span told already.
    details(server, "events", None, None, {**CALL, **USED, "gen_ai.response.id": "chatcmpl-0123456789abcdef01"})
    assert costs(server, "events") == (D("10"), 4)
    query = urllib.parse.quote("SELECT trace_id, duration_ms, revision, evidence FROM llm_calls ORDER BY trace_id, revision")
    found = send(server, f"/api/v1/sql?q={query}", None, "GET", "events")[1]
    latest = {int(r["trace_id"], 16): r for r in found["rows"]}
    assert latest[2]["duration_ms"] == 3000 and latest[2]["revision"] == 1
    assert latest[3]["duration_ms"] == 2000 and latest[3]["evidence"].startswith("log event: ")
    # What was said in the event is counted where no usage was sent at all.
    details(server, "events", 5, 5, {**CALL, "gen_ai.input.messages": '[{"role":"user","parts":[{"type":"text","content":"hello there"}]}]'})
    assert get(server, "/api/v1/costs", "events")["total"]["estimated_requests"] == 1


def test_budgets_by_key_and_by_any_attribute(server):
    tenant = "scopes"
    for name, scope in [("key", {"key": "k-7"}), ("gold", {"attribute:customer.tier": "gold"}), ("plan", {"attribute:plan.name": "pro*"})]:
        status, answer = send(server, "/api/v1/budgets", {"name": name, "limit": "5", "scope": scope}, tenant=tenant)
        assert status in (200, 201), answer
    spans(server, tenant, [
        span(1, 1, {**CALL, **USED, "gen_ai.api_key.id": "k-7", "customer.tier": "gold"}),
        span(2, 2, {**CALL, **USED, "customer.tier": "iron", "plan.name": "pro-2"}),
        # Too long to be an attribute that is kept.
        span(3, 3, {**CALL, **USED, "customer.tier": "x" * 300, "plan.name": "free"}),
    ])
    spent = {b["id"]: D(b["current_spend"]) for b in get(server, "/api/v1/budgets", tenant)["budgets"]}
    assert spent == {"key": D("2.5"), "gold": D("2.5"), "plan": D("2.5")}
    assert costs(server, tenant, **{"attribute:customer.tier": "gold"}) == (D("2.5"), 1)
    groups = get(server, "/api/v1/costs", tenant, group_by="attribute:customer.tier")["groups"]
    assert {g["attribute:customer.tier"]: g["requests"] for g in groups} == {"gold": 1, "iron": 1, "": 1}
    # Reservations and told usage are in the same scopes.
    ask = {"id": "r-1", "provider": "openai", "model": "gpt-4o", "input_tokens": 2_000_000, "scope": {"attribute:customer.tier": "gold"}}
    status, refusal = send(server, "/api/v1/budgets/reserve", ask, tenant=tenant)
    assert status == 402 and refusal["error"]["budget"] == "gold", refusal
    usage = {"organization_id": "o", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1_000_000, "key": "k-7", "attributes": {"customer.tier": "gold"}}
    assert send(server, "/api/v1/usage", usage, tenant=tenant)[0] == 200
    assert costs(server, tenant, key="k-7") == (D("5"), 2)
    assert send(server, "/api/v1/budgets", {"name": "x", "limit": "1", "scope": {"attribute:": "y"}}, tenant=tenant)[0] == 400


def test_a_reservation_is_settled_after_its_time_and_a_call_told_again_after_a_restart_counts_once(tmp_path):
    s = Server(tmp_path)
    assert send(s, "/api/v1/budgets", {"name": "all", "limit": "100"})[0] in (200, 201)
    ask = {"id": "slow", "provider": "openai", "model": "gpt-4o", "input_tokens": 1000, "ttl_seconds": 1}
    assert send(s, "/api/v1/budgets/reserve", ask)[0] == 200
    told = {"id": "u-1", "organization_id": "o", "provider": "openai", "model_id": "gpt-4o", "input_tokens": 1_000_000}
    assert send(s, "/api/v1/usage", told)[0] == 200
    s.process.kill()
    s.process.wait()
    # An address of the dead server must not be taken for the next one's.
    (tmp_path / "endpoints.json").unlink()
    time.sleep(1.1)
    s = Server(tmp_path)

    def budget():
        (b,) = get(s, "/api/v1/budgets", None)["budgets"]
        return D(b["current_spend"]), D(b["reserved"])

    assert budget() == (D("2.5"), D(0)), "its time is over: it sets nothing aside"
    status, answer = send(s, "/api/v1/usage", told)
    assert status == 200 and answer["data"]["is_new"] is False
    assert budget()[0] == D("2.5")
    status, settled = send(s, "/api/v1/budgets/settle", {"id": "slow", "input_tokens": 400_000})
    assert status == 200 and settled["booked"] is True, settled
    assert budget()[0] == D("3.5")
    status, again = send(s, "/api/v1/budgets/settle", {"id": "slow", "input_tokens": 400_000})
    assert status == 404 and "of the last day" in again["error"]["message"]
    s.stop()


def test_movers_and_successes(server):
    tenant, now = "movers", time.time_ns()
    rows = []
    for i in range(4):
        rows.append(span(100 + i, 100 + i, {**CALL, **USED}, at=now - 10 * DAY))
    for i in range(6):
        prompt = {"langfuse.observation.prompt.name": "p", "langfuse.observation.prompt.version": f"v{i % 2}", "gen_ai.conversation.id": f"s{i // 2}"}
        rows.append(span(200 + i, 200 + i, {**CALL, **USED, **prompt, "gen_ai.usage.input_tokens": 2_000_000}, at=now - DAY))
    rows.append(span(300, 300, {**CALL, **USED, "gen_ai.request.model": "gpt-4o-mini"}, at=now - DAY))
    spans(server, tenant, rows)
    found = get(server, "/api/v1/costs/movers", tenant, dimension="model")
    first, second = found["movers"]
    # From 4 × 2.50 to 6 × 5: two more at the old cost, six dearer by 2.50.
    assert (first["value"], D(first["change"]), D(first["by_volume"]), D(first["by_unit_cost"])) == ("gpt-4o", 20, 5, 15)
    assert second["value"] == "gpt-4o-mini" and second["is_new"] and D(second["by_volume"]) == D("0.15")
    assert D(found["total"]["change"]) == D("20.15")
    # Traces 200 to 202 were judged; 201 failed, and ann changed her mind about 202.
    for trace, value, user in [(200, 1, "ann"), (201, -1, "bob"), (202, -1, "ann"), (202, 1, "ann")]:
        body = {"rating": value, "trace_id": f"{trace:032x}", "user_id": user}
        assert send(server, "/api/v1/feedback", body, tenant=tenant)[0] == 201
        time.sleep(0.002)
    found = get(server, "/api/v1/costs/outcomes", tenant, by="prompt_version")
    assert (found["total"]["scored"], found["total"]["successes"], D(found["total"]["cost_per_success"])) == (3, 2, D("7.5"))
    by_version = {g["prompt_version"]: g for g in found["groups"]}
    assert D(by_version["v0"]["cost_per_success"]) == 5 and by_version["v1"]["cost_per_success"] is None
    ratings = get(server, "/api/v1/scores/summary", tenant)["groups"][0]["stats"]
    assert ratings["n"] == 3, "one voice for each person and thing"
    summary = get(server, "/api/v1/costs/summary", tenant)
    assert summary["sessions"] == 3 and summary["traces"] == 11
    assert send(server, "/api/v1/costs/outcomes?unit=day", None, "GET", tenant)[0] == 400


def test_a_second_of_a_gpu(server):
    tenant, now = "gpus", time.time_ns() // 10**6
    assert send(server, "/api/v1/costs/gpu", None, "GET", tenant)[0] == 404
    spans(server, tenant, [span(1, 1, {**CALL, **USED})])
    points = lambda values: [{"timeUnixNano": str((now - 600_000 + i * 60_000) * 10**6), "asDouble": v} for i, v in enumerate(values)]
    metric = {"name": "gpu_utilization_percent", "gauge": {"dataPoints": [
        {**p, "attributes": attributes({"gpu_id": g})} for g, vs in (("0", [50.0] * 6), ("1", [100.0] * 6)) for p in points(vs)
    ]}}
    body = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [metric]}]}]}
    assert send(server, "/v1/metrics", body, tenant=tenant)[0] == 200
    found = get(server, "/api/v1/costs/gpu", tenant, gpu_hour_usd="3.6")
    assert (found["gpus"], found["gpu_seconds"], found["busy_gpu_seconds"]) == (2, 600, 450)
    assert abs(found["usd_per_gpu_second"] - 2.5 / 600) < 1e-12
    # 600 seconds at 0.001 dollars, a quarter of them idle; a million tokens.
    hardware = found["hardware"]
    assert abs(hardware["total_usd"] - 0.6) < 1e-9 and abs(hardware["idle_usd"] - 0.15) < 1e-9
    assert abs(hardware["usd_per_million_tokens"] - 0.6) < 1e-9
    one = get(server, "/api/v1/costs/gpu", tenant, gpus='{gpu_id="1"}')
    assert (one["gpus"], one["gpu_seconds"]) == (1, 300)


def test_the_context_of_a_session_is_a_memory_budget(server):
    tenant = "memory"
    # 64,000 of 128,000 tokens.
    spans(server, tenant, [span(1, 1, {**CALL, "gen_ai.usage.input_tokens": 64_000, "gen_ai.conversation.id": "talk"})])
    deadline = time.time() + 40
    while True:
        query = urllib.parse.quote('{__name__=~"memory_budget_.*"}')
        _, answer = send(server, f"/api/v1/query?query={query}", None, "GET", tenant, "prometheus")
        values = {r["metric"]["__name__"]: (r["metric"]["session_id"], float(r["value"][1])) for r in answer["data"]["result"]}
        if values or time.time() > deadline:
            break
        time.sleep(0.2)
    assert values == {
        "memory_budget_total_bytes": ("talk", 512_000), "memory_budget_used_bytes": ("talk", 256_000), "memory_budget_utilization": ("talk", 50),
    }


def test_ratings_that_fall_are_a_drift_of_accuracy(server):
    tenant, now = "accuracy", time.time_ns()
    rows, ratings = [], []
    for week, share in ((10, 0.95), (2, 0.7)):
        for i in range(400):
            trace = week * 10_000 + i
            # What is said turns from one direction to another.
            vector = [1.0 + (i % 7) / 10, 0.2, (i % 5) / 10] if week == 10 else [0.2, 1.0 + (i % 7) / 10, (i % 5) / 10]
            at = now - week * DAY + i * SECOND
            rows.append(span(trace, trace, {**CALL, "gen_ai.usage.input_tokens": 100 + i % 50, "drift.embedding": vector}, at=at))
            ratings.append({"name": "user_feedback", "source": "human", "value": 1 if i < 400 * share else -1, "trace_id": f"{trace:032x}", "timestamp": str(at / SECOND)})
    for i in range(0, len(rows), 200):
        spans(server, tenant, rows[i : i + 200])
        status, answer = send(server, "/api/v1/scores", ratings[i : i + 200], tenant=tenant)
        assert status == 201, answer
    status, found = send(server, "/api/v1/drift/check", {}, tenant=tenant)
    (one,) = found["scope_results"]
    accuracy = one["accuracy"]
    assert (accuracy["n_ref"], accuracy["n_cur"], accuracy["status"]) == (400, 400, "critical")
    assert abs(accuracy["baseline"] - 0.95) < 1e-9 and abs(accuracy["current"] - 0.7) < 1e-9
    embedding = next(f for f in one["features"] if f["name"] == "embedding")
    assert embedding["kind"] == "embedding" and embedding["distance"] > 0.1
    assert one["status"] == "critical" and found["severity"] == "critical"
    incidents = get(server, "/api/v1/drift/incidents", tenant)["incidents"]
    assert "accuracy (95 % to 70 %)" in incidents[0]["summary"]


def test_the_terminal(server):
    def run(*args):
        url = f"http://{server.endpoints['ui']}"
        done = subprocess.run([os.environ["OBSERVATORY_BIN"], *args, "--url", url, "--tenant", "movers"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "gpt-4o-mini" in run("cost", "movers") and "total $10 to $30.15" in run("cost", "movers")
    assert "2 of 3 succeeded, $7.5 each" in run("cost", "outcomes")
    assert "user_feedback" in run("score", "summary")
    assert "0.9 stored" in run("score", "set", "relevance", "0.9", "--trace-id", f"{200:032x}")
    assert "relevance" in run("score", "list", "--name", "relevance")
