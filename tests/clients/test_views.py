"""What lists of calls show beside the numbers, and the views that people save."""

import json
import urllib.error
import urllib.parse
import urllib.request

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from running import Server


def test_calls_are_previewed_with_what_was_said_of_them(tmp_path):
    server = Server(tmp_path / "data")
    provider = TracerProvider(resource=Resource.create({"service.name": "app"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"http://{server.endpoints['otlp-http']}/v1/traces")))
    tracer = provider.get_tracer("t")
    common = {"gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o", "gen_ai.usage.input_tokens": 10}
    with tracer.start_as_current_span("ask") as root:
        with tracer.start_as_current_span("embed", attributes={**common, "gen_ai.operation.name": "embeddings"}) as embed:
            pass
        said = [{"role": "system", "parts": [{"type": "text", "content": "Be brief."}]}, {"role": "user", "parts": [{"type": "text", "content": "Why is\n  the sky blue? " + "x" * 500}]}]
        answered = [{"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "search", "arguments": {"q": "sky"}}], "finish_reason": "tool_call"}]
        attributes = {**common, "gen_ai.operation.name": "chat", "gen_ai.usage.output_tokens": 2, "gen_ai.input.messages": json.dumps(said), "gen_ai.output.messages": json.dumps(answered)}
        with tracer.start_as_current_span("chat", attributes=attributes) as chat:
            pass
    provider.shutdown()
    trace = f"{root.context.trace_id:032x}"
    status, _ = server.post("/api/v1/feedback", json.dumps({"rating": -1, "trace_id": trace, "user_id": "ann"}).encode())
    assert status == 201
    server.post("/api/v1/feedback", json.dumps({"rating": 1, "trace_id": trace, "user_id": "ann"}).encode())
    server.post("/api/v1/scores", json.dumps({"name": "recall", "value": 0.5, "trace_id": trace, "span_id": f"{embed.context.span_id:016x}"}).encode())
    keys = [f"{trace}:{s.context.span_id:016x}" for s in (embed, chat)]
    found = previews(server, [*keys, f"{trace}:{1:016x}", f"{1:032x}:{1:016x}"])
    assert set(found) == set(keys), "of what is not there is no preview"
    assert found[keys[1]]["input"].startswith("Why is the sky blue? xxx") and len(found[keys[1]]["input"]) == 201
    assert found[keys[1]]["output"] == 'search({"q":"sky"})'
    # What is said of a trace is said of its answer; who changes their mind is one voice.
    assert [(s["name"], s["value"]) for s in found[keys[1]]["scores"]] == [("user_feedback", 1.0)]
    assert [(s["name"], s["value"]) for s in found[keys[0]]["scores"]] == [("recall", 0.5)]
    for bad in ["x", f"{trace}", f"{trace}:zz"]:
        with pytest.raises(urllib.error.HTTPError) as e:
            previews(server, [bad])
        assert e.value.code == 400
    with pytest.raises(urllib.error.HTTPError) as e:
        previews(server, keys * 101)
    assert e.value.code == 400
    # Refusals are counted, and calls counted by how they ended.
    with_refusal = {**common, "gen_ai.operation.name": "chat", "gen_ai.response.finish_reasons": ["refusal"], "gen_ai.usage.output_tokens": 1}
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"http://{server.endpoints['otlp-http']}/v1/traces")))
    provider.get_tracer("t").start_span("chat", attributes=with_refusal).end()
    provider.shutdown()
    assert server.get("/api/v1/llm/summary")["total"]["refusals"] == 1
    groups = server.get("/api/v1/costs", group_by="finish_reason,cost_state")["data"]["groups"]
    assert {(g["finish_reason"], g["cost_state"]): g["requests"] for g in groups} == {("", "priced"): 1, ("tool_call", "priced"): 1, ("content_filter", "priced"): 1}
    server.stop()


def previews(server, calls):
    query = urllib.parse.urlencode([("call", c) for c in calls])
    with urllib.request.urlopen(f"http://{server.endpoints['ui']}/api/v1/llm/previews?{query}") as answer:
        return json.load(answer)["previews"]


def test_views_are_kept_for_everybody_of_a_tenant(tmp_path):
    server = Server(tmp_path / "data")
    view = {"page": "/llm/generations", "name": "Dear <b>ones</b>", "query": "model=gpt-4o&status=error"}
    save = lambda **change: server.post("/api/v1/views", json.dumps({**view, **change}).encode())
    assert save()[0] == 201
    assert save(name="Other", page="/logs")[0] == 201
    assert save(query="model=o3")[0] == 201, "the same name is replaced"
    for change in [{"page": "//evil.example"}, {"page": "javascript:x"}, {"name": " "}, {"name": "x" * 101}, {"query": "x" * 9000}]:
        assert save(**change)[0] == 400, change
    server.process.kill()
    server.process.wait(20)
    (tmp_path / "data/endpoints.json").unlink()
    server = Server(tmp_path / "data")
    assert server.get("/api/v1/views", page="/llm/generations")["views"] == [{**view, "query": "model=o3"}]
    assert [v["page"] for v in server.get("/api/v1/views")["views"]] == ["/llm/generations", "/logs"]
    request = urllib.request.Request(f"http://{server.endpoints['ui']}/api/v1/views", headers={"X-Scope-OrgID": "other"})
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["views"] == [], "tenants have their own"
    path = "/api/v1/views?page=/logs&name=Other"
    assert server.post(path, method="DELETE") == (204, None)
    assert server.post(path, method="DELETE")[0] == 404
    assert [v["page"] for v in server.get("/api/v1/views")["views"]] == ["/llm/generations"]
    server.stop()
