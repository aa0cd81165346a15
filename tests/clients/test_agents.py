"""Who acts in a trace: agents, models, tools, MCP servers and memories; and media in messages."""

import base64
import json
import urllib.error
import urllib.request

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode
from running import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("agents"))
    yield s
    s.stop()


def tracer(server, service):
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(f"http://{server.endpoints['otlp-http']}/v1/traces")))
    return provider.get_tracer("t")


def ask(op, **more):
    return {"gen_ai.operation.name": op, **{k.replace("__", "."): v for k, v in more.items()}}


def chat(**more):
    return ask("chat", gen_ai__provider__name="openai", gen_ai__request__model="gpt-4o", gen_ai__usage__input_tokens=1000, gen_ai__usage__output_tokens=100, **more)


def edges(graph):
    name = lambda a: f"{a['kind']}:{a['name']}"
    return {(name(e["from"]), name(e["to"])): e for e in graph["edges"]}


def test_who_asked_whom(server):
    gateway, tools, memory = (tracer(server, s) for s in ["gateway", "weather-mcp", "memory"])
    with gateway.start_as_current_span("POST /chat", kind=SpanKind.SERVER) as root:
        with gateway.start_as_current_span("invoke_agent Travel", attributes=ask("invoke_agent", gen_ai__agent__name="Travel")):
            for _ in range(2):
                with gateway.start_as_current_span("chat gpt-4o", attributes=chat()):
                    pass
            with gateway.start_as_current_span("execute_tool forecast", attributes=ask("execute_tool", gen_ai__tool__name="forecast")) as tool:
                with gateway.start_as_current_span("tools/call forecast", kind=SpanKind.CLIENT, attributes={"mcp.method.name": "tools/call", "gen_ai.tool.name": "forecast", "server.address": "10.0.0.7"}):
                    # The other side of the same request.
                    with tools.start_as_current_span("tools/call forecast", kind=SpanKind.SERVER, attributes={"mcp.method.name": "tools/call"}):
                        with memory.start_as_current_span("search_memory", attributes=ask("search_memory", gen_ai__memory__store__id="trips")):
                            pass
                tool.set_status(Status(StatusCode.ERROR, "no forecast"))
            with gateway.start_as_current_span("between"):
                with gateway.start_as_current_span("invoke_agent Booking", attributes=ask("invoke_agent")):
                    with gateway.start_as_current_span("chat gpt-4o", attributes=chat(gen_ai__conversation__id="s-1")):
                        pass
    id = f"{root.context.trace_id:032x}"
    found = edges(server.get(f"/api/v1/traces/{id}/agents"))
    assert set(found) == {
        ("service:gateway", "agent:Travel"),
        ("agent:Travel", "model:gpt-4o"),
        ("agent:Travel", "tool:forecast"),
        ("tool:forecast", "mcp_server:weather-mcp"),
        ("mcp_server:weather-mcp", "memory:trips"),
        ("agent:Travel", "agent:Booking"),
        ("agent:Booking", "model:gpt-4o"),
    }
    model = found["agent:Travel", "model:gpt-4o"]
    # 1,000 tokens in at $2.50 and 100 out at $10 a million, twice.
    assert (model["calls"], model["tokens"], model["cost_usd"]) == (2, 2200, "0.007")
    assert found["agent:Travel", "tool:forecast"]["errors"] == 1
    # Over a range, and of the traces of one session.
    assert set(edges(server.get("/api/v1/llm/agents"))) == set(found)
    of_session = server.get("/api/v1/llm/agents", session="s-1")
    assert of_session["traces"] == 1 and set(edges(of_session)) == set(found)
    assert server.get("/api/v1/llm/agents", session="other") == {"traces": 0, "traces_left_out": 0, "actors_left_out": 0, "actors": [], "edges": []}
    with gateway.start_as_current_span("alone", attributes=chat()):
        pass
    latest = server.get("/api/v1/llm/agents", traces="1")
    assert (latest["traces"], latest["traces_left_out"]) == (1, 1)
    assert set(edges(latest)) == {("service:gateway", "model:gpt-4o")}
    # Without a span of the tool's own its request is the tool's.
    with gateway.start_as_current_span("tools/call add", kind=SpanKind.CLIENT, attributes={"mcp.method.name": "tools/call", "gen_ai.tool.name": "add"}) as root:
        with tools.start_as_current_span("tools/call add", kind=SpanKind.SERVER, attributes={"mcp.method.name": "tools/call", "gen_ai.tool.name": "add"}):
            pass
    assert set(edges(server.get(f"/api/v1/traces/{root.context.trace_id:032x}/agents"))) == {("service:gateway", "tool:add"), ("tool:add", "mcp_server:weather-mcp")}
    with pytest.raises(urllib.error.HTTPError) as e:
        server.get(f"/api/v1/traces/{'1' * 32}/agents")
    assert e.value.code == 404


PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")


def test_media_is_referred_to_and_served_as_it_is(server):
    page = "<script>alert(1)</script>"
    parts = [
        {"type": "text", "content": "What is this?"},
        {"type": "blob", "modality": "image", "mime_type": "image/png", "content": base64.b64encode(PNG).decode()},
        {"type": "uri", "modality": "image", "uri": "https://example.org/cat.png"},
        {"type": "image_url", "image_url": {"url": "data:text/html;base64," + base64.b64encode(page.encode()).decode()}},
        {"type": "file", "modality": "document", "mime_type": "application/pdf", "file_id": "file-9"},
        {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "not base64!"},
    ]
    said = json.dumps([{"role": "user", "parts": parts}])
    span = tracer(server, "app").start_span("chat", attributes=chat(gen_ai__input__messages=said))
    span.end()
    context = span.get_span_context()
    base = f"/api/v1/traces/{context.trace_id:032x}/spans/{context.span_id:016x}"
    shown = server.get(base)["conversation"]["input"][0]["parts"]
    assert shown[1:] == [
        {"type": "media", "modality": "image", "mime_type": "image/png", "href": f"{base}/media/0"},
        {"type": "media", "modality": "image", "mime_type": "", "uri": "https://example.org/cat.png"},
        {"type": "media", "modality": "image", "mime_type": "text/html", "href": f"{base}/media/1"},
        {"type": "media", "modality": "document", "mime_type": "application/pdf", "file_id": "file-9"},
        {"type": "media", "modality": "image", "mime_type": "image/png", "href": f"{base}/media/2"},
    ]
    fetch = lambda n: urllib.request.urlopen(f"http://{server.endpoints['ui']}{base}/media/{n}")
    with fetch(0) as image:
        assert image.read() == PNG and image.headers["content-type"] == "image/png"
    # Markup is a download, never a page of ours.
    with fetch(1) as file:
        assert file.read() == page.encode()
        headers = {k.lower(): v for k, v in file.headers.items()}
    assert headers["content-type"] == "application/octet-stream" and headers["content-disposition"] == "attachment"
    assert headers["x-content-type-options"] == "nosniff" and headers["content-security-policy"] == "default-src 'none'; sandbox"
    for n, code in [(2, 422), (3, 404)]:
        with pytest.raises(urllib.error.HTTPError) as e:
            fetch(n)
        assert e.value.code == code
