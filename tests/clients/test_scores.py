"""Scores: OpenTelemetry's evaluation events of spans and logs, OpenInference's evaluations, the API."""

import json
import time
import urllib.request

import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from running import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("scores"))
    yield s
    s.stop()


def post(server, path, body):
    return server.post(path, json.dumps(body).encode())


def summary(server, **params):
    found = server.get("/api/v1/scores/summary", **params)["groups"]
    return {(g["name"], g["key"]): g for g in found}


def test_what_sdks_send_is_summed_up_by_model(server):
    provider = TracerProvider(resource=Resource.create({"service.name": "judge"}))
    exporter = OTLPSpanExporter(f"http://{server.endpoints['otlp-http']}/v1/traces")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("t")
    for i in range(10):
        with tracer.start_as_current_span("chat gpt-4o") as span:
            span.set_attribute("gen_ai.operation.name", "chat")
            span.set_attribute("gen_ai.system", "openai")
            span.set_attribute("gen_ai.request.model", "gpt-4o")
            span.set_attribute("gen_ai.response.id", f"resp-{i}")
            span.set_attribute("gen_ai.usage.input_tokens", 10)
            span.set_attribute("gen_ai.usage.output_tokens", 5)
            span.add_event(
                "gen_ai.evaluation.result",
                {"gen_ai.evaluation.name": "relevance", "gen_ai.evaluation.score.value": i / 10, "gen_ai.evaluation.score.label": "pass" if i > 4 else "fail"},
            )
            span.set_attribute("evaluations.0.evaluation.name", "toxicity")
            span.set_attribute("evaluations.0.evaluation.score", 0)
            span.set_attribute("evaluations.0.evaluation.annotator_kind", "LLM")
    # An evaluator that runs later names the response, in a log record without a trace.
    now = time.time_ns()
    record = {
        "timeUnixNano": str(now),
        "eventName": "gen_ai.evaluation.result",
        "body": {"stringValue": "judged"},
        "attributes": [
            {"key": "gen_ai.evaluation.name", "value": {"stringValue": "faithful"}},
            {"key": "gen_ai.evaluation.score.value", "value": {"doubleValue": 1}},
            {"key": "gen_ai.response.id", "value": {"stringValue": "resp-3"}},
        ],
    }
    logs = {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}
    request = urllib.request.Request(
        f"http://{server.endpoints['otlp-http']}/v1/logs", json.dumps(logs).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request).read()
    found = summary(server, by="model")
    relevance = found["relevance", "gpt-4o"]
    assert relevance["stats"]["n"] == 10 and abs(relevance["stats"]["mean"] - 0.45) < 1e-9
    assert relevance["labels"] == {"pass": 5, "fail": 5}
    # Student's t with nine degrees of freedom: 0.45 ± 2.262 · 0.3028 / √10.
    assert abs(relevance["stats"]["low"] - 0.2334) < 1e-3 and abs(relevance["stats"]["high"] - 0.6666) < 1e-3
    assert found["toxicity", "gpt-4o"]["count"] == 10
    assert found["faithful", "gpt-4o"]["count"] == 1, "joined by the id of the response"
    assert summary(server, by="source")["toxicity", "llm"]["count"] == 10
    # The streams of scores are logs like others.
    query = 'avg_over_time({score_name="relevance"} | json | unwrap value [1h]) by (model)'
    result = server.get("/loki/api/v1/query", "loki", query=query, time=str(time.time_ns()))["data"]["result"]
    assert [r["metric"] for r in result] == [{"model": "gpt-4o"}] and abs(float(result[0]["value"][1]) - 0.45) < 1e-9


def test_the_api_takes_scores_and_feedback_and_refuses_nonsense(server):
    trace_id = f"{trace.INVALID_TRACE_ID + 0xABC:032x}"
    scores = [
        {"name": "correct", "value": 1, "trace_id": trace_id, "comment": "as the key has it"},
        {"name": "tone", "label": "rude", "session_id": "s-1", "source": "human"},
    ]
    assert post(server, "/api/v1/scores", scores) == (201, {"stored": 2})
    for rating in (1, -1, True):
        assert post(server, "/api/v1/feedback", {"rating": rating, "trace_id": trace_id})[0] == 201
    listed = server.get("/api/v1/scores", trace_id=trace_id)["scores"]
    assert sorted((s["name"], s["value"]) for s in listed) == [
        ("correct", 1), ("user_feedback", -1), ("user_feedback", 1), ("user_feedback", 1),
    ]
    assert server.get("/api/v1/scores", session_id="s-1")["scores"][0]["label"] == "rude"
    stats = summary(server)["user_feedback", ""]["stats"]
    assert stats["n"] == 3 and abs(stats["positive"] - 2 / 3) < 1e-9 and stats["low"] < 0 < stats["high"]
    for path, body, why in [
        ("/api/v1/scores", {"name": "x", "trace_id": trace_id}, "neither a value nor a label"),
        ("/api/v1/scores", {"value": 1, "trace_id": trace_id}, "must have a name"),
        ("/api/v1/scores", {"name": "x", "value": 1}, "name what is scored"),
        ("/api/v1/scores", {"name": "x", "value": 1, "trace_id": "zz"}, "trace_id is not hexadecimal"),
        ("/api/v1/scores", {"name": "x", "value": 1, "session_id": "s", "timestamp": "noon"}, "not a time"),
        ("/api/v1/scores", {"name": "x" * 20_000, "value": 1, "session_id": "s"}, "may have 16384 bytes"),
        ("/api/v1/feedback", {"rating": 5, "trace_id": trace_id}, "rating is 1 or -1"),
    ]:
        status, answer = post(server, path, body)
        assert status == 400 and why in answer["error"], (body, status, answer)
    assert post(server, "/api/v1/scores", [{"name": "x"}] * 1001)[0] == 413


def test_sessions_span_traces(server):
    provider = TracerProvider(resource=Resource.create({"service.name": "bot"}))
    exporter = OTLPSpanExporter(f"http://{server.endpoints['otlp-http']}/v1/traces")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("t")
    traces = []
    for i in range(3):
        # An agent's span that sums up its call: one call, not two.
        with tracer.start_as_current_span("invoke_agent helper") as agent:
            agent.set_attribute("gen_ai.operation.name", "invoke_agent")
            agent.set_attribute("gen_ai.conversation.id", "talk-1")
            agent.set_attribute("gen_ai.usage.input_tokens", 1000)
            agent.set_attribute("gen_ai.usage.output_tokens", 100)
            with tracer.start_as_current_span("chat gpt-4o") as span:
                span.set_attribute("gen_ai.operation.name", "chat")
                span.set_attribute("gen_ai.system", "openai")
                span.set_attribute("gen_ai.request.model", "gpt-4o")
                span.set_attribute("gen_ai.conversation.id", "talk-1")
                span.set_attribute("user.id", "ann")
                span.set_attribute("gen_ai.usage.input_tokens", 1000)
                span.set_attribute("gen_ai.usage.output_tokens", 100)
            traces.append(f"{span.get_span_context().trace_id:032x}")
    assert post(server, "/api/v1/feedback", {"rating": 1, "trace_id": traces[0]})[0] == 201
    assert post(server, "/api/v1/feedback", {"rating": -1, "session_id": "talk-1"})[0] == 201
    found = server.get("/api/v1/llm/sessions", sort="cost")
    (session,) = [s for s in found["sessions"] if s["session_id"] == "talk-1"]
    assert [t["trace_id"] for t in session["traces"]] == traces and session["users"] == ["ann"]
    assert session["sums"]["requests"] == 3 and session["sums"]["input_tokens"] == 3000
    # 3 × (1,000 × $2.50 + 100 × $10) per million.
    assert session["sums"]["cost_usd"] == "0.0105", session["sums"]
    assert session["scores"]["user_feedback"]["n"] == 2 and session["scores"]["user_feedback"]["mean"] == 0
    assert server.get("/api/v1/llm/sessions", user="nobody")["sessions"] == []
