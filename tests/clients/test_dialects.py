"""Three instrumentations of one program give the same canonical LLM calls.

usage: OBSERVATORY_BIN=path python -m pytest tests/clients
"""

import json
import pathlib
import subprocess
import sys
import time

import fake_llm
import pytest
from running import Server

HERE = pathlib.Path(__file__).parent
RUNS = [(d, p) for d in ("otel", "openllmetry", "openinference") for p in ("grpc", "http")]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("data"))
    llm = fake_llm.start()
    for dialect, protocol in RUNS:
        otlp = s.endpoints[f"otlp-{protocol}"]
        url = f"http://127.0.0.1:{llm.server_address[1]}"
        command = [sys.executable, HERE / "app.py", dialect, protocol, url, f"http://{otlp}", f"{dialect}-{protocol}"]
        subprocess.run(command, check=True, timeout=120)
    yield s
    s.stop()


def calls(server, service):
    return server.sql(f"SELECT * FROM llm_calls WHERE service = '{service}' ORDER BY ts")


CHAT = {
    "provider": "openai",
    "request_model": "gpt-4o-mini",
    "response_model": "gpt-4o-mini-2024-07-18",
    "operation": "chat",
    "status": "success",
    "input_tokens": 16,
    "cache_read_tokens": 8,
    "cost_state": "priced",
    # 16 × 0.15 + 8 × 0.075 + 9 × 0.60 dollars a million
    "cost_usd": "0.000008400000",
}
EXPECTED = [
    {**CHAT, "finish_reason": "stop"},
    {**CHAT, "finish_reason": "stop"},
    {**CHAT, "finish_reason": "tool_call"},
    {**CHAT, "finish_reason": "stop"},
    # Nothing is cached here: every dialect tells all of it, so every cost is the same.
    {"provider": "openai", "request_model": "gpt-4.1-nano", "operation": "chat", "input_tokens": 24, "output_tokens": 9, "cost_usd": "0.000006000000"},
    {"provider": "openai", "operation": "embeddings", "status": "success", "input_tokens": 5, "output_tokens": 0, "cost_usd": "0.000000100000"},
    {"provider": "openai", "operation": "chat", "status": "error", "request_model": "boom", "finish_reason": None, "input_tokens": 0},
]
DIALECTS = {"otel": "otel_gen_ai", "openllmetry": "openllmetry", "openinference": "openinference"}


@pytest.mark.parametrize(("dialect", "protocol"), RUNS)
def test_calls_are_canonical(server, dialect, protocol):
    rows = calls(server, f"{dialect}-{protocol}")
    assert len(rows) == len(EXPECTED), [r["operation"] for r in rows]
    for i, (row, want) in enumerate(zip(rows, EXPECTED, strict=True)):
        if dialect == "otel" and want.get("cache_read_tokens"):
            # This instrumentation does not report what was cached: all of it costs the full price.
            want = {**want, "input_tokens": 24, "cache_read_tokens": 0, "cost_usd": "0.000009000000"}
            if i == 1 and protocol == "grpc":
                # … and its older form has no finish reason on the span of a streamed answer.
                want["finish_reason"] = None
        assert {name: row[name] for name in want} == want
        assert row["dialect"] == DIALECTS[dialect]
        assert row["environment"] == "test"
        assert 0 < row["duration_ms"] < 60_000
        if row["operation"] == "chat" and row["status"] == "success":
            assert row["output_tokens"] + row["reasoning_tokens"] == 9
            assert row["call_id"].startswith("chatcmpl-")
            assert f"openai/{row['request_model']}" in row["price_id"]
    assert "RateLimit" in rows[-1]["error_type"] or rows[-1]["error_type"] == "429", rows[-1]["error_type"]


def text(message):
    return "".join(p.get("text", "") for p in message["parts"])


@pytest.mark.parametrize(("dialect", "protocol"), RUNS)
def test_conversations_are_shown(server, dialect, protocol):
    rows = calls(server, f"{dialect}-{protocol}")

    def conversation(row):
        return server.get(f"/api/v1/traces/{row['trace_id']}/spans/{row['span_id']}")["conversation"]

    plain = conversation(rows[0])
    assert [(m["role"], text(m)) for m in plain["input"]] == [("system", "You are terse."), ("user", "What is the capital of France?")]
    assert [text(m) for m in plain["output"]] == [fake_llm.ANSWER]
    streamed = conversation(rows[1])
    assert [text(m) for m in streamed["output"]] == [fake_llm.ANSWER]
    tool = next(p for m in conversation(rows[2])["output"] for p in m["parts"] if p["type"] == "tool_call")
    assert (tool["name"], json.loads(tool["arguments"])) == ("get_weather", {"city": "Paris"})
    result = [p for m in conversation(rows[3])["input"] for p in m["parts"] if p["type"] == "tool_result"]
    assert [p["content"] for p in result] == ["18 degrees"]


def test_every_call_is_in_one_trace_with_its_application(server):
    for dialect, protocol in RUNS:
        service = f"{dialect}-{protocol}"
        traces = server.sql(f"SELECT trace_id, count(*) AS n FROM spans WHERE service = '{service}' GROUP BY 1")
        assert len(traces) == 1 and traces[0]["n"] >= 7
        jaeger = server.get(f"/jaeger/api/traces/{traces[0]['trace_id']}")["data"][0]
        assert any(s["operationName"] == "handle request" for s in jaeger["spans"])


def test_their_metrics_and_ours_answer_promql(server):
    def value(query):
        result = server.get("/prometheus/api/v1/query", query=query)["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    # What the instrumentations themselves count …
    assert value('sum(gen_ai_client_token_usage_sum{service_name="otel-grpc"}) or sum(gen_ai_client_token_usage_token_sum{service_name="otel-grpc"})') > 0
    # … and what we derive from the calls.
    for _ in range(200):
        if (value("sum(llm_requests_total)") or 0) >= len(RUNS) * len(EXPECTED):
            break
        time.sleep(0.1)
    assert value("sum(llm_requests_total)") == len(RUNS) * len(EXPECTED)
    assert value('sum(llm_requests_total{status="error"})') == len(RUNS)
    assert value('sum(llm_tokens_total{token_type="completion"}) + (sum(llm_tokens_total{token_type="reasoning"}) or vector(0))') == 9 * 5 * len(RUNS)
    spent = server.sql("SELECT sum(cost_usd) AS c FROM llm_calls")[0]["c"]
    assert value("sum(llm_cost_usd_total)") == pytest.approx(float(spent), rel=1e-9)
    assert value("llm_total_cost_tracked_dollars") == pytest.approx(float(spent), rel=1e-9)
    assert value("sum(llm_duration_seconds_count)") == len(RUNS) * len(EXPECTED)
    assert value("sum(llm_time_to_first_token_seconds_count)") > 0
