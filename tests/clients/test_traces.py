"""Real tracing clients send to the binary, and their spans are found over every API."""

import base64
import gzip
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.trace.v1 import trace_pb2
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from running import Server, until


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("traces")
    strategies = directory / "sampling.json"
    strategies.write_text(json.dumps(STRATEGIES))
    config = directory / "observatory.yaml"
    config.write_text(f"sampling:\n  strategies_file: {strategies}\n")
    data = directory / "data"
    data.mkdir()
    server = Server(data, "--config", str(config))
    yield server
    server.stop()


# The five rates of the observatory's own services.
STRATEGIES = {
    "service_strategies": [
        {"service": "llm-observatory-collector", "type": "probabilistic", "param": 1.0},
        {
            "service": "llm-observatory-storage",
            "type": "probabilistic",
            "param": 0.1,
            "operation_strategies": [{"operation": "write_span", "type": "probabilistic", "param": 0.01}],
        },
        {
            "service": "llm-observatory-api",
            "type": "probabilistic",
            "param": 0.1,
            "operation_strategies": [{"operation": "graphql_query", "type": "probabilistic", "param": 0.5}],
        },
    ],
    "default_strategy": {"type": "probabilistic", "param": 0.001},
}


def request(server, listener, path, body=None, headers=None, **params):
    query = urllib.parse.urlencode(params, doseq=True)
    url = f"http://{server.endpoints[listener]}{path}?{query}"
    r = urllib.request.Request(url, data=body, headers=headers or {})
    try:
        with urllib.request.urlopen(r) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as e:
        return e.code, e.read()


def get(server, listener, path, **params):
    status, body = request(server, listener, path, **params)
    assert status == 200, body
    return json.loads(body)


def traces_of(server, service, **params):
    return until(lambda: get(server, "jaeger", "/api/traces", service=service, **params)["data"])


def tags(span):
    return {t["key"]: t["value"] for t in span["tags"]}


def call_chain(server):
    """The path Gateway → Router → MAX Serve → MCP → Memory, with the OpenTelemetry SDK."""
    exporter = OTLPSpanExporter(endpoint=f"http://{server.endpoints['otlp-grpc']}", insecure=True)
    providers = []

    def tracer(service):
        provider = TracerProvider(resource=Resource({"service.name": service, "deployment.environment": "test"}))
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        providers.append(provider)
        return provider.get_tracer("acceptance", "1.0")

    start = time.time_ns() - 60_000_000_000
    ms = 1_000_000
    steps = [
        ("gateway", "POST /v1/chat", SpanKind.SERVER, 0, 200),
        ("router", "routing_decision", SpanKind.INTERNAL, 5, 190),
        ("max-serve", "inference", SpanKind.CLIENT, 10, 120),
        ("mcp-server", "execute_tool search", SpanKind.SERVER, 30, 70),
        ("memory-engine", "retrieval", SpanKind.SERVER, 40, 40),
    ]
    context = None
    spans = []
    for service, name, kind, at, length in steps:
        span = tracer(service).start_span(name, context=context, kind=kind, start_time=start + at * ms)
        span.set_attribute("user_id", 7)
        context = trace.set_span_in_context(span)
        spans.append((span, start + (at + length) * ms))
    spans[2][0].set_attributes({"gen_ai.operation.name": "chat", "gen_ai.provider.name": "max", "model": "llama"})
    spans[3][0].add_event("tool.started", {"attempt": 1}, start + 31 * ms)
    spans[4][0].set_status(Status(StatusCode.ERROR, "index is cold"))
    for span, end in reversed(spans):
        span.end(end)
    for p in providers:
        p.shutdown()
    return format(spans[0][0].get_span_context().trace_id, "032x"), start


@pytest.fixture(scope="module")
def chain(server):
    return call_chain(server)


def test_a_trace_of_five_services_over_jaeger(server, chain):
    trace_id, start = chain
    data = until(lambda: json.loads(request(server, "jaeger", f"/api/traces/{trace_id}")[1])["data"])
    spans = {s["operationName"]: s for s in data[0]["spans"]}
    assert [(s["operationName"], s["duration"]) for s in sorted(data[0]["spans"], key=lambda s: s["startTime"])] == [
        ("POST /v1/chat", 200_000),
        ("routing_decision", 190_000),
        ("inference", 120_000),
        ("execute_tool search", 70_000),
        ("retrieval", 40_000),
    ]
    tool = spans["execute_tool search"]
    assert tool["references"] == [
        {"refType": "CHILD_OF", "traceID": trace_id, "spanID": spans["inference"]["spanID"]}
    ]
    assert tool["logs"][0]["timestamp"] == (start + 31_000_000) // 1000
    assert tool["logs"][0]["fields"] == [
        {"key": "event", "type": "string", "value": "tool.started"},
        {"key": "attempt", "type": "int64", "value": 1},
    ]
    retrieval = tags(spans["retrieval"])
    assert (retrieval["error"], retrieval["otel.status_description"], retrieval["span.kind"]) == (
        True,
        "index is cold",
        "server",
    )
    assert len(data[0]["processes"]) == 5
    assert get(server, "jaeger", "/api/services")["data"] == sorted(get(server, "jaeger", "/api/services")["data"])
    operations = get(server, "jaeger", "/api/operations", service="gateway")["data"]
    assert operations == [{"name": "POST /v1/chat", "spanKind": "server"}]
    links = get(server, "jaeger", "/api/dependencies", endTs=int(time.time() * 1000), lookback=3_600_000)["data"]
    assert {"parent": "max-serve", "child": "mcp-server", "callCount": 1} in links


def test_jaeger_search(server, chain):
    trace_id, _ = chain

    def ids(**params):
        data = get(server, "jaeger", "/api/traces", **params)["data"]
        return [t["traceID"] for t in data]

    assert ids(service="memory-engine", tags=json.dumps({"error": "true"})) == [trace_id]
    assert ids(service="memory-engine", tags=json.dumps({"error": "false"})) == []
    assert ids(service="max-serve", tags=json.dumps({"user_id": "7", "model": "llama"})) == [trace_id]
    assert ids(service="mcp-server", tag="attempt:1") == [trace_id]
    assert ids(service="gateway", minDuration="200ms", maxDuration="200ms") == [trace_id]
    assert ids(service="gateway", minDuration="200.001ms") == []
    assert ids(service="gateway", operation="nothing") == []
    status, body = request(server, "jaeger", "/api/traces")
    assert status == 400 and json.loads(body)["errors"][0]["code"] == 400
    assert request(server, "jaeger", "/api/traces/00000000000000000000000000000abc")[0] == 404
    assert request(server, "jaeger", "/api/traces/zz")[0] == 400


def test_jaeger_v3_and_the_monitor_tab(server, chain):
    trace_id, start = chain
    result = get(server, "jaeger", f"/api/v3/traces/{trace_id}")["result"]
    spans = [s for r in result["resourceSpans"] for c in r["scopeSpans"] for s in c["spans"]]
    assert len(spans) == 5 and {s["traceId"] for s in spans} == {trace_id}
    assert "gateway" in get(server, "jaeger", "/api/v3/services")["services"]
    stamp = lambda s: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(s))
    query = {
        "query.service_name": "gateway",
        "query.start_time_min": stamp(time.time() - 3600),
        "query.start_time_max": stamp(time.time() + 5),
    }
    assert get(server, "jaeger", "/api/v3/traces", **query)["result"]["resourceSpans"]
    status, body = request(server, "jaeger", "/api/v3/traces", **{"query.service_name": "x"})
    assert status == 400 and json.loads(body)["error"]["httpCode"] == 400
    window = {"endTs": start // 1_000_000 + 60_000, "lookback": 120_000, "step": 60_000}
    calls = get(server, "jaeger", "/api/metrics/calls", service="gateway", **window)
    assert calls["name"] == "service_call_rate"
    point = calls["metrics"][0]["metricPoints"][-1]["gaugeValue"]["doubleValue"]
    assert abs(point - 1 / 60) < 1e-9
    latency = get(server, "jaeger", "/api/metrics/latencies", service="gateway", quantile=0.5, **window)
    assert 131 <= latency["metrics"][0]["metricPoints"][0]["gaugeValue"]["doubleValue"] <= 263
    errors = get(server, "jaeger", "/api/metrics/errors", service="memory-engine", groupByOperation="true", **window)
    assert errors["metrics"][0]["metricPoints"][0]["gaugeValue"]["doubleValue"] == 1.0
    assert {"name": "operation", "value": "retrieval"} in errors["metrics"][0]["labels"]


def messages(text):
    """Makes message classes from lines `Message: name type number [repeated]`."""
    file = descriptor_pb2.FileDescriptorProto(name=f"{hash(text)}.proto", package=f"p{abs(hash(text))}", syntax="proto3")
    kinds = {"string": 9, "bytes": 12, "int64": 3, "int32": 5, "double": 1, "uint64": 4, "fixed64": 6}
    for block in text.strip().split("\n\n"):
        name, *fields = [l.strip() for l in block.splitlines()]
        message = file.message_type.add(name=name)
        for line in fields:
            field, kind, number, *rest = line.split()
            f = message.field.add(name=field, number=int(number), label=3 if rest else 1)
            if kind in kinds:
                f.type = kinds[kind]
            else:
                f.type, f.type_name = 11, f".{file.package}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    names = [m.name for m in file.message_type]
    return {n: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.{n}")) for n in names}


JAEGER = messages(
    """
Time
seconds int64 1
nanos int32 2

KeyValue
key string 1
v_type int32 2
v_str string 3
v_int64 int64 5

SpanRef
trace_id bytes 1
span_id bytes 2
ref_type int32 3

Process
service_name string 1
tags KeyValue 2 repeated

Span
trace_id bytes 1
span_id bytes 2
operation_name string 3
references SpanRef 4 repeated
start_time Time 6
duration Time 7
tags KeyValue 8 repeated
process Process 10

Batch
spans Span 1 repeated
process Process 2

PostSpans
batch Batch 1

Chunk
spans Span 1 repeated

GetTrace
trace_id bytes 1

Query
service_name string 1
limit int32 8

Find
query Query 1

Empty

Names
names string 1 repeated

Sampling
service string 1

Rate
rate double 1

Operation
operation string 1
sampling Rate 2

Operations
default_rate double 1
operations Operation 3 repeated

Strategy
type int32 1
probabilistic Rate 2
operations Operations 4
"""
)


def test_jaeger_over_grpc(server, chain):
    trace_id, _ = chain
    now = int(time.time())
    span = JAEGER["Span"](
        trace_id=bytes([5] * 16),
        span_id=bytes([5] * 8),
        operation_name="over grpc",
        references=[JAEGER["SpanRef"](trace_id=bytes([5] * 16), span_id=bytes([4] * 8))],
        start_time=JAEGER["Time"](seconds=now, nanos=5),
        duration=JAEGER["Time"](nanos=1_500_000),
        tags=[JAEGER["KeyValue"](key="n", v_type=2, v_int64=3)],
    )
    batch = JAEGER["Batch"](spans=[span], process=JAEGER["Process"](service_name="grpc-service"))
    empty, raw = JAEGER["Empty"], lambda m: m.SerializeToString()
    with grpc.insecure_channel(server.endpoints["jaeger-collector-grpc"]) as channel:
        post = channel.unary_unary(
            "/jaeger.api_v2.CollectorService/PostSpans", request_serializer=raw, response_deserializer=empty.FromString
        )
        post(JAEGER["PostSpans"](batch=batch))
        ask = channel.unary_unary(
            "/jaeger.api_v2.SamplingManager/GetSamplingStrategy",
            request_serializer=raw,
            response_deserializer=JAEGER["Strategy"].FromString,
        )
        strategy = ask(JAEGER["Sampling"](service="llm-observatory-storage"))
        assert strategy.probabilistic.rate == 0.1
        assert [(o.operation, o.sampling.rate) for o in strategy.operations.operations] == [("write_span", 0.01)]
        with pytest.raises(grpc.RpcError) as e:
            channel.unary_unary(
                "/jaeger.api_v2.CollectorService/Nothing", request_serializer=raw, response_deserializer=empty.FromString
            )(empty())
        assert e.value.code() == grpc.StatusCode.UNIMPLEMENTED
    with grpc.insecure_channel(server.endpoints["jaeger-grpc"]) as channel:
        chunk = JAEGER["Chunk"].FromString
        v2 = "/jaeger.api_v2.QueryService/"
        get_trace = channel.unary_stream(v2 + "GetTrace", request_serializer=raw, response_deserializer=chunk)
        back = [s for c in get_trace(JAEGER["GetTrace"](trace_id=bytes([5] * 16))) for s in c.spans]
        assert (back[0].operation_name, back[0].duration.nanos) == ("over grpc", 1_500_000)
        assert back[0].references == span.references
        found = channel.unary_stream(v2 + "FindTraces", request_serializer=raw, response_deserializer=chunk)
        query = JAEGER["Find"](query=JAEGER["Query"](service_name="gateway", limit=5))
        spans = [s for c in found(query) for s in c.spans]
        assert {s.trace_id.hex() for s in spans} == {trace_id} and len(spans) == 5
        names = channel.unary_unary(
            v2 + "GetServices", request_serializer=raw, response_deserializer=JAEGER["Names"].FromString
        )
        assert "grpc-service" in names(empty()).names
        v3 = channel.unary_stream(
            "/jaeger.api_v3.QueryService/GetTrace",
            request_serializer=raw,
            response_deserializer=trace_pb2.TracesData.FromString,
        )
        data = next(v3(JAEGER["Sampling"](service=trace_id)))
        assert sum(len(s.spans) for r in data.resource_spans for s in r.scope_spans) == 5
        with pytest.raises(grpc.RpcError) as e:
            list(get_trace(JAEGER["GetTrace"](trace_id=bytes([77] * 16))))
        assert e.value.code() == grpc.StatusCode.NOT_FOUND


def test_jaeger_client_over_udp(server):
    from jaeger_client import Config

    host, port = server.endpoints["jaeger-compact"].split(":")
    sampler, sampling_port = server.endpoints["sampling"].split(":")
    config = Config(
        config={
            "sampler": {"type": "const", "param": 1},
            "local_agent": {
                "reporting_host": host,
                "reporting_port": int(port),
                "sampling_host": sampler,
                "sampling_port": int(sampling_port),
            },
            "tags": {"zone": "eu"},
            "logging": False,
        },
        service_name="jaeger-python",
        validate=True,
    )
    tracer = config.new_tracer()
    with tracer.start_span("parent") as parent:
        parent.set_tag("http.status_code", 503)
        parent.set_tag("error", True)
        parent.log_kv({"event": "retry", "attempt": 2})
        with tracer.start_span("child", child_of=parent) as child:
            child.set_tag("span.kind", "client")
    tracer.close()
    data = traces_of(server, "jaeger-python")
    spans = {s["operationName"]: s for s in data[0]["spans"]}
    assert set(spans) == {"parent", "child"}
    assert tags(spans["parent"])["http.status_code"] == 503 and tags(spans["parent"])["error"] is True
    assert spans["child"]["references"][0]["spanID"] == spans["parent"]["spanID"]
    assert {f["key"]: f["value"] for f in spans["parent"]["logs"][0]["fields"]} == {"event": "retry", "attempt": 2}
    process = {t["key"]: t["value"] for t in data[0]["processes"]["p1"]["tags"]}
    assert process["zone"] == "eu" and "jaeger.version" in process


def thrift_batch(service, compact=False):
    from jaeger_client.thrift_gen.jaeger import ttypes
    from thrift.protocol import TBinaryProtocol, TCompactProtocol
    from thrift.transport import TTransport

    now = int(time.time() * 1e6)
    tag = ttypes.Tag
    span = ttypes.Span(
        traceIdLow=-5,
        traceIdHigh=0,
        spanId=-7,
        parentSpanId=0,
        operationName="thrift <b>",
        flags=1,
        startTime=now,
        duration=2500,
        references=[],
        tags=[
            tag(key="ratio", vType=ttypes.TagType.DOUBLE, vDouble=0.25),
            tag(key="flag", vType=ttypes.TagType.BOOL, vBool=True),
            tag(key="long", vType=ttypes.TagType.LONG, vLong=-3),
            tag(key="blob", vType=ttypes.TagType.BINARY, vBinary="\x01\x02"),
        ],
        logs=[],
    )
    batch = ttypes.Batch(process=ttypes.Process(serviceName=service, tags=[]), spans=[span])
    buffer = TTransport.TMemoryBuffer()
    protocol = TCompactProtocol.TCompactProtocol(buffer) if compact else TBinaryProtocol.TBinaryProtocol(buffer)
    batch.write(protocol)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["x-thrift", "vnd.apache.thrift.binary", "vnd.apache.thrift.compact"])
def test_thrift_over_http(server, kind):
    service = f"thrift-{kind}"
    body = thrift_batch(service, compact=kind.endswith("compact"))
    headers = {"Content-Type": f"application/{kind}"}
    status, _ = request(server, "jaeger-thrift", "/api/traces", body, headers, format="jaeger.thrift")
    assert status == 202
    span = traces_of(server, service)[0]["spans"][0]
    assert span["traceID"] == "0000000000000000fffffffffffffffb" and span["spanID"] == "fffffffffffffff9"
    assert (span["operationName"], span["duration"]) == ("thrift <b>", 2500)
    found = tags(span)
    assert (found["ratio"], found["flag"], found["long"]) == (0.25, True, -3)
    # Cut short, or announcing what is not there: refused, and nothing else is harmed.
    for bad in [body[:-9], b"\x0b\x00\x01\x7f\xff\xff\xff", b"", b"\x0f\x00\x02\x0c\x7f\xff\xff\xff"]:
        assert request(server, "jaeger-thrift", "/api/traces", bad, headers)[0] == 400
    assert request(server, "jaeger-thrift", "/api/traces", body, {"Content-Type": "text/plain"})[0] == 400
    assert traces_of(server, service)


def test_datagrams_cut_short_are_survived(server):
    for listener in ["jaeger-compact", "jaeger-binary"]:
        host, port = server.endpoints[listener].split(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            for body in [b"", b"\x82\x81\x01\x09emitBatch\x1c\x1c\x18", b"\xff" * 60_000, os.urandom(1000)]:
                s.sendto(body, (host, int(port)))
    assert get(server, "jaeger", "/api/services")["data"]


def test_py_zipkin(server):
    from py_zipkin.encoding import Encoding
    from py_zipkin.transport import SimpleHTTPTransport
    from py_zipkin.zipkin import create_attrs_for_span, zipkin_client_span, zipkin_server_span

    host, port = server.endpoints["zipkin"].split(":")

    class Transport(SimpleHTTPTransport):
        def _get_path_content_type(self, payload):
            path, kind = super()._get_path_content_type(payload)
            return path, kind

    for encoding in [Encoding.V1_JSON, Encoding.V1_THRIFT, Encoding.V2_JSON, Encoding.V2_PROTO3]:
        try:
            transport = Transport(host, int(port))
            service = f"zipkin-{encoding.name}".lower().replace("_", "-")
            with zipkin_server_span(
                service_name=service,
                span_name="serve",
                transport_handler=transport,
                zipkin_attrs=create_attrs_for_span(sample_rate=100.0, use_128bit_trace_id=True),
                encoding=encoding,
                binary_annotations={"user": "7", "error": "timeout"},
            ):
                with zipkin_client_span(service_name=service, span_name="call", annotations={"sent": time.time()}):
                    pass
        except NotImplementedError:
            continue
        spans = {s["operationName"]: s for s in traces_of(server, service)[0]["spans"]}
        assert set(spans) == {"serve", "call"}, encoding
        found = tags(spans["serve"])
        assert found["span.kind"] == "server" and found["user"] == "7", (encoding, found)
        assert found["error"] is True and found["otel.status_description"] == "timeout", (encoding, found)
        assert spans["call"]["references"][0]["spanID"] == spans["serve"]["spanID"]
        assert [f["value"] for l in spans["call"]["logs"] for f in l["fields"]] == ["sent"]


def test_zipkin_shared_spans_and_quirks(server):
    now = int(time.time() * 1e6)
    spans = [
        {
            "traceId": "463ac35c9f6413ad",
            "id": "a2fb4a1d1a96d312",
            "kind": "CLIENT",
            "name": "get",
            "timestamp": now,
            "duration": 1000,
            "localEndpoint": {"serviceName": "frontend", "ipv4": "10.0.0.1"},
            "remoteEndpoint": {"serviceName": "backend", "ipv6": "2001:db8::c001", "port": 9000},
        },
        {
            "traceId": "463ac35c9f6413ad",
            "id": "a2fb4a1d1a96d312",
            "kind": "SERVER",
            "name": "get",
            "shared": True,
            "timestamp": now + 200,
            "duration": 500,
            "localEndpoint": {"serviceName": "backend"},
            "tags": {"count": "5"},
        },
        {
            "traceId": "463ac35c9f6413ad",
            "parentId": "a2fb4a1d1a96d312",
            "id": "b2fb4a1d1a96d312",
            "name": "query",
            "timestamp": now + 300,
            "localEndpoint": {"serviceName": "backend"},
        },
    ]
    assert request(server, "zipkin", "/api/v2/spans", json.dumps(spans).encode(), {})[0] == 202
    data = until(lambda: json.loads(request(server, "jaeger", "/api/traces/463ac35c9f6413ad")[1])["data"])
    by = {(data[0]["processes"][s["processID"]]["serviceName"], s["operationName"]): s for s in data[0]["spans"]}
    client, serve, query = by["frontend", "get"], by["backend", "get"], by["backend", "query"]
    assert serve["references"][0]["spanID"] == client["spanID"] != serve["spanID"]
    assert query["references"][0]["spanID"] == serve["spanID"]
    assert tags(client)["peer.service"] == "backend" and tags(client)["net.peer.ip"] == "2001:db8::c001"
    for bad in [b"{", b"{}", json.dumps([{"traceId": "zz", "id": "1"}]).encode(), b'[{"traceId":"0","id":"1"}]']:
        assert request(server, "zipkin", "/api/v2/spans", bad)[0] == 400
    # One span without an id does not take the others down.
    some = [{"traceId": "1", "id": ""}, {"traceId": "1f", "id": "1f", "localEndpoint": {"serviceName": "some"}}]
    assert request(server, "zipkin", "/api/v2/spans", json.dumps(some).encode())[0] == 202
    assert traces_of(server, "some")


def test_sampling_strategies(server):
    for listener, path in [("sampling", "/sampling"), ("sampling", "/api/sampling"), ("jaeger-thrift", "/api/sampling")]:
        answer = get(server, listener, path, service="llm-observatory-api")
        assert answer["strategyType"] == "PROBABILISTIC"
        assert answer["probabilisticSampling"] == {"samplingRate": 0.1}
        operations = answer["operationSampling"]["perOperationStrategies"]
        assert operations == [{"operation": "graphql_query", "probabilisticSampling": {"samplingRate": 0.5}}]
    rate = lambda s: get(server, "sampling", "/sampling", service=s)["probabilisticSampling"]["samplingRate"]
    assert (rate("llm-observatory-collector"), rate("anything")) == (1.0, 0.001)
    assert request(server, "sampling", "/sampling")[0] == 400


def test_an_adaptive_strategy_steers_an_operation_to_its_target(tmp_path):
    strategy = {"service": "shop", "type": "adaptive", "target_samples_per_second": 5, "initial_sampling_probability": 1}
    strategies = {"service_strategies": [strategy]}
    (tmp_path / "sampling.json").write_text(json.dumps(strategies))
    config = tmp_path / "observatory.yaml"
    config.write_text("sampling: {strategies_file: sampling.json, calculation_interval_seconds: 5}\n")
    server = Server(tmp_path / "data", "--config", str(config))
    provider = TracerProvider(resource=Resource.create({"service.name": "shop"}))
    exporter = OTLPSpanExporter(f"http://{server.endpoints['otlp-grpc']}", insecure=True)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("t")

    def share():
        answer = get(server, "sampling", "/sampling", service="shop")
        own = answer.get("operationSampling", {}).get("perOperationStrategies", [])
        return {o["operation"]: o["probabilisticSampling"]["samplingRate"] for o in own}.get("buy", 1)

    def ask(requests, settled):
        """Sends so many requests a second, sampled as told, until the share has settled."""
        last, left = time.time(), 0.0
        end = last + 40
        while not settled(share()):
            assert last < end, share()
            now = time.time()
            left += share() * requests * (now - last)
            last = now
            while left >= 1:
                tracer.start_span("buy").end()
                left -= 1
            time.sleep(0.1)
        return share()

    try:
        assert share() == 1
        # 40 a second are eight times the target; of 4 a second more are wanted, by half at most.
        down = ask(40, lambda p: p < 0.2)
        assert down > 0.08
        up = ask(4, lambda p: p > down)
        assert up <= 1.5 * down * 1.001
    finally:
        provider.shutdown()
        server.stop()


def test_tempo_as_grafana_asks(server, chain):
    trace_id, start = chain
    assert request(server, "tempo", "/api/echo") == (200, b"echo")
    window = {"start": start // 10**9 - 60, "end": int(time.time()) + 60}
    status, body = request(
        server, "tempo", f"/api/traces/{trace_id}", headers={"Accept": "application/protobuf"}, **window
    )
    assert status == 200
    data = trace_pb2.TracesData.FromString(body)
    assert sum(len(s.spans) for r in data.resource_spans for s in r.scope_spans) == 5
    v1 = get(server, "tempo", f"/api/traces/{trace_id}")
    first = v1["batches"][0]["scopeSpans"][0]["spans"][0]
    assert base64.b64decode(first["traceId"]).hex() == trace_id and first["kind"].startswith("SPAN_KIND_")
    assert get(server, "tempo", f"/api/v2/traces/{trace_id}")["trace"]["resourceSpans"]
    assert request(server, "tempo", "/api/traces/0123")[0] == 404
    assert request(server, "tempo", "/api/traces/xyz")[0] == 400

    def found(q, **more):
        return get(server, "tempo", "/api/search", q=q, **window, **more)["traces"]

    one = found('{ resource.service.name = "gateway" && kind = server }')
    assert [t["traceID"] for t in one] == [trace_id.lstrip("0")]
    assert (one[0]["rootServiceName"], one[0]["rootTraceName"], one[0]["durationMs"]) == ("gateway", "POST /v1/chat", 200)
    assert one[0]["startTimeUnixNano"] == str(start)
    assert one[0]["serviceStats"]["memory-engine"] == {"spanCount": 1, "errorCount": 1}
    error = found('{ .deployment.environment = "test" && status = error } | select(resource.service.name, span.user_id)')[0]["spanSets"][0]
    assert error["matched"] == 1
    values = {a["key"]: a["value"] for a in error["spans"][0]["attributes"]}
    assert values["service.name"] == {"stringValue": "memory-engine"} and values["user_id"] == {"intValue": "7"}
    assert found('{ name = "routing_decision" } >> { name = "retrieval" }')
    assert not found('{ name = "retrieval" } >> { name = "routing_decision" }')
    assert found('{ rootServiceName = "gateway" && name = "inference" }')
    assert found('{ } | count() >= 5')[0]["spanSets"][0]["attributes"] == [{"key": "count()", "value": {"intValue": "5"}}]
    assert len(found('{ rootServiceName = "gateway" }', spss=2)[0]["spanSets"][0]["spans"]) == 2
    # Tags, the form before TraceQL.
    tagged = get(server, "tempo", "/api/search", tags='service.name=router user_id=7', minDuration="150ms", **window)
    assert [t["traceID"] for t in tagged["traces"]] == [trace_id.lstrip("0")]
    for bad in ["{ .a = }", "{ 1 + 1 }", '{ name =~ "(" }', "{ } | rate()"]:
        assert request(server, "tempo", "/api/search", q=bad)[0] == 400, bad
    assert request(server, "tempo", "/api/search", q="{}", limit=0)[0] == 400
    assert request(server, "tempo", "/api/search", q="{}", start=20, end=10)[0] == 400
    scopes = {s["name"]: s["tags"] for s in get(server, "tempo", "/api/v2/search/tags", **window)["scopes"]}
    assert "user_id" in scopes["span"] and "service.name" in scopes["resource"] and "duration" in scopes["intrinsic"]
    assert "attempt" in scopes["event"]
    names = get(server, "tempo", "/api/search/tags", **window)["tagNames"]
    assert "user_id" in names and "duration" not in names
    path = "/api/v2/search/tag/resource.service.name/values"
    services = get(server, "tempo", path, q='{ kind = server && span.user_id = 7 }', **window)["tagValues"]
    assert {v["value"] for v in services} == {"gateway", "mcp-server", "memory-engine"}
    assert get(server, "tempo", "/api/v2/search/tag/span.user_id/values", **window)["tagValues"][0] == {
        "type": "int",
        "value": "7",
    }
    assert "gateway" in get(server, "tempo", "/api/search/tag/service.name/values", **window)["tagValues"]
    rate = '{ resource.deployment.environment = "test" } | rate() by (resource.service.name)'
    series = get(server, "tempo", "/api/metrics/query_range", q=rate, step="60s", exemplars=2, **window)["series"]
    assert len(series) == 5
    gateway = next(s for s in series if s["promLabels"] == '{"resource.service.name"="gateway"}')
    assert sum(s["value"] for s in gateway["samples"]) == pytest.approx(1 / 60)
    assert gateway["exemplars"][0]["labels"][0]["value"]["stringValue"] == trace_id
    instant = get(server, "tempo", "/api/metrics/query", q='{ nestedSetParent < 0 && .deployment.environment = "test" } | count_over_time()', **window)
    assert instant["series"][0]["value"] == 1
    assert request(server, "tempo", "/api/metrics/query_range", q="{ }", **window)[0] == 400


TEMPO = messages(
    """
Search
limit int32 4
query string 8

Span
id string 1
name string 2

Set
spans Span 1 repeated
matched int32 2

Trace
id string 1
service string 2
name string 3
start uint64 4
duration_ms int32 5
sets Set 7 repeated

Found
traces Trace 1 repeated
"""
)


def test_tempo_streams_over_grpc(server, chain):
    trace_id, start = chain
    with grpc.insecure_channel(server.endpoints["tempo"]) as channel:
        search = channel.unary_stream(
            "/tempopb.StreamingQuerier/Search",
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=TEMPO["Found"].FromString,
        )
        query = '{ name = "inference" && .deployment.environment = "test" } >> { }'
        traces = [t for m in search(TEMPO["Search"](query=query, limit=5)) for t in m.traces]
        assert [(t.id, t.service, t.start, t.duration_ms) for t in traces] == [
            (trace_id.lstrip("0"), "gateway", start, 200)
        ]
        assert traces[0].sets[0].matched == 2
        with pytest.raises(grpc.RpcError) as e:
            list(search(TEMPO["Search"](query="{")))
        assert e.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_span_metrics_and_the_service_graph(server, chain):
    def value(query):
        result = get(server, "prometheus", "/api/v1/query", query=query)["data"]["result"]
        return result and float(result[0]["value"][1])

    calls = 'traces_spanmetrics_calls_total{service="gateway",span_kind="SPAN_KIND_SERVER"}'
    assert until(lambda: value(calls)) == 1
    assert value('traces_span_metrics_calls_total{service_name="memory-engine",status_code="STATUS_CODE_ERROR"}') == 1
    assert value('traces_spanmetrics_latency_sum{service="gateway"}') == pytest.approx(0.2)
    edge = 'traces_service_graph_request_total{client="max-serve",server="mcp-server"}'
    assert until(lambda: value(edge)) == 1
    exemplars = get(
        server,
        "prometheus",
        "/api/v1/query_exemplars",
        query='traces_spanmetrics_latency_bucket{service="gateway"}',
        start=time.time() - 600,
        end=time.time() + 60,
    )["data"]
    assert exemplars[0]["exemplars"][0]["labels"]["trace_id"] == chain[0]



def otlp(server, service, spans):
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": service}}]}
    body = json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": spans}]}]}).encode()
    return request(server, "otlp-http", "/v1/traces", body, {"Content-Type": "application/json"})


def a_span(trace_id, number, name, start_ns, ms, parent=None, **more):
    span = {
        "traceId": trace_id,
        "spanId": f"{number:016x}",
        "name": name,
        "startTimeUnixNano": str(start_ns),
        "endTimeUnixNano": str(start_ns + int(ms * 1e6)),
        **more,
    }
    if parent:
        span["parentSpanId"] = f"{parent:016x}"
    return span


# name, start and length in ms, parent by number.
COST_TREE = [
    ("POST /api/v1/costs", 0, 245, None),
    ("authenticate_user", 1, 12, 1),
    ("fetch_user_from_db", 2, 10, 2),
    ("validate_request", 14, 5, 1),
    ("calculate_cost", 20, 180, 1),
    ("fetch_pricing_data", 21, 45, 5),
    ("calculate_tokens", 67, 15, 5),
    ("calculate_total", 83, 5, 5),
    ("apply_discount", 89, 8, 5),
    ("store_cost", 201, 35, 1),
    ("insert_database", 203, 30, 10),
    ("send_notification", 236, 8, 1),
]


def test_the_tree_of_a_cost_request(server):
    trace_id, start = os.urandom(16).hex(), time.time_ns() - 30_000_000_000
    spans = [
        a_span(trace_id, n + 1, name, start + at * 1_000_000, ms, parent)
        for n, (name, at, ms, parent) in enumerate(COST_TREE)
    ]
    # Children first, in two requests, one of them twice.
    assert otlp(server, "cost-ops", spans[6:][::-1])[0] == 200
    assert otlp(server, "cost-ops", spans[:6])[0] == 200
    assert otlp(server, "cost-ops", spans[:6])[0] == 200
    tree = get(server, "ui", f"/api/v1/traces/{trace_id}/skeleton")
    by_name = dict(zip(tree["name"], zip(tree["duration"], tree["parent"], tree["start"])))
    assert len(tree["id"]) == 12
    for number, (name, at, ms, parent) in enumerate(COST_TREE):
        expected = parent and f"{parent:016x}"
        assert by_name[name] == (ms * 1_000_000, expected, at * 1_000_000), name
    leaves = get(server, "tempo", "/api/search", q='{ resource.service.name = "cost-ops" && childCount = 0 }')["traces"]
    assert leaves[0]["spanSets"][0]["matched"] == 8


def test_the_critical_path_and_the_roll_up(server):
    trace_id, start = os.urandom(16).hex(), time.time_ns() - 30_000_000_000
    spans = [
        a_span(trace_id, n + 1, name, start + at * 1_000_000, ms, parent)
        for n, (name, at, ms, parent) in enumerate(COST_TREE)
    ]
    usage = lambda n: [
        {"key": "gen_ai.request.model", "value": {"stringValue": "gpt-4o"}},
        {"key": "gen_ai.provider.name", "value": {"stringValue": "openai"}},
        {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": str(n)}},
    ]
    # The outer call repeats what the inner ones used.
    for number, tokens in ((4, 3000), (5, 1000), (6, 2000)):
        spans[number]["attributes"] = usage(tokens)
    assert otlp(server, "cost-ops", spans)[0] == 200
    tree = get(server, "ui", f"/api/v1/traces/{trace_id}/skeleton")
    path = {n: sum(length for _, length in c) / 1e6 for n, c in zip(tree["name"], tree["critical"]) if c}
    # What each step of the request adds to its 245 ms.
    assert path == {
        "POST /api/v1/costs": 5, "authenticate_user": 2, "fetch_user_from_db": 10, "validate_request": 5,
        "calculate_cost": 107, "fetch_pricing_data": 45, "calculate_tokens": 15, "calculate_total": 5,
        "apply_discount": 8, "store_cost": 5, "insert_database": 30, "send_notification": 8,
    }
    assert sum(path.values()) == pytest.approx(245)
    roll = tree["rollup"]
    assert (roll["spans"], roll["services"], roll["duration"]) == (12, 1, 245_000_000)
    assert (roll["llm"]["requests"], roll["llm"]["input_tokens"]) == (2, 3000)
    states = dict(zip(tree["name"], tree["cost_state"]))
    assert (states["calculate_cost"], states["fetch_pricing_data"]) == ("rollup", "priced")
    costs = [float(c) for c in tree["cost"] if c]
    assert len(costs) == 2 and sum(costs) == pytest.approx(float(roll["llm"]["cost_usd"])) == pytest.approx(0.0075)


def test_a_hundred_thousand_spans_come_page_by_page(server):
    trace_id, start = os.urandom(16).hex(), time.time_ns() - 60_000_000_000
    for first in range(0, 100_000, 20_000):
        numbers = range(first + 1, first + 20_001)
        spans = [a_span(trace_id, n, f"step {n % 7}", start + n * 1000, 0.001, 1 if n > 1 else None) for n in numbers]
        spans[0]["endTimeUnixNano"] = str(start + 10**9)
        assert otlp(server, "large", spans)[0] == 200
    seen, page = [], {"total": 1}
    while len(seen) < page["total"]:
        page = get(server, "ui", f"/api/v1/traces/{trace_id}/skeleton", offset=len(seen), limit=30_000)
        assert page["total"] == 100_000 and page["offset"] == len(seen) and len(page["id"]) <= 30_000
        assert all(len(page[c]) == len(page["id"]) for c in ("name", "start", "critical", "cost"))
        seen += page["id"]
    assert len(set(seen)) == 100_000 and page["rollup"]["spans"] == 100_000
    one = get(server, "ui", f"/api/v1/traces/{trace_id}/spans/{seen[77_777]}")
    assert one["name"] == "step %d" % (int(seen[77_777], 16) % 7)


def test_an_archived_trace_outlives_the_others(tmp_path):
    ids, start = [os.urandom(16).hex() for _ in range(2)], time.time_ns() - 5 * 86_400 * 10**9
    config = tmp_path / "observatory.yaml"
    config.write_text("")
    data = tmp_path / "data"
    data.mkdir()
    server = Server(data, "--config", str(config))
    usage = [
        {"key": "gen_ai.request.model", "value": {"stringValue": "gpt-4o"}},
        {"key": "gen_ai.operation.name", "value": {"stringValue": "chat"}},
        {"key": "gen_ai.usage.input_tokens", "value": {"intValue": "4000"}},
    ]
    for trace_id in ids:
        assert otlp(server, "shop", [a_span(trace_id, 1, "pay", start, 7, attributes=usage)])[0] == 200
    assert request(server, "jaeger", f"/api/archive/{ids[0]}", b"")[0] == 200
    for path, status in ((f"/api/archive/{'9' * 32}", 404), ("/api/archive/x", 400)):
        assert request(server, "jaeger", path, b"")[0] == status
    # Again, over gRPC and our own API.
    with grpc.insecure_channel(server.endpoints["jaeger-grpc"]) as channel:
        archive = channel.unary_unary(
            "/jaeger.api_v2.QueryService/ArchiveTrace", request_serializer=bytes, response_deserializer=bytes
        )
        assert archive(b"\x0a\x10" + bytes.fromhex(ids[0])) == b""
        with pytest.raises(grpc.RpcError) as e:
            archive(b"\x0a\x10" + b"\x09" * 16)
        assert e.value.code() == grpc.StatusCode.NOT_FOUND
    assert server.post(f"/api/v1/traces/{ids[0]}/archive")[0] == 204
    assert server.post("/api/v1/storage/flush")[0] == 200
    server.stop()
    config.write_text("retention: {max_age: 2d}\n")
    server = Server(data, "--config", str(config))
    until(lambda: request(server, "jaeger", f"/api/traces/{ids[1]}")[0] == 404)
    found = get(server, "jaeger", f"/api/traces/{ids[0]}")["data"][0]
    assert [s["operationName"] for s in found["spans"]] == ["pay"]
    tree = get(server, "ui", f"/api/v1/traces/{ids[0]}/skeleton")
    assert tree["archived"] and tree["rollup"]["llm"]["input_tokens"] == 4000
    assert float(tree["rollup"]["llm"]["cost_usd"]) == pytest.approx(0.01)
    assert get(server, "jaeger", "/api/traces", service="shop", start=0, end=time.time_ns() // 1000)["data"] == []
    assert request(server, "tempo", f"/api/traces/{ids[0]}")[0] == 200
    # What is deleted is deleted everywhere.
    assert server.post(f"/api/v1/traces/{ids[0]}", method="DELETE")[0] == 200
    assert request(server, "jaeger", f"/api/traces/{ids[0]}")[0] == 404
    server.stop()


def test_two_traces_are_compared_by_their_structure(server):
    ids, start = [os.urandom(16).hex() for _ in range(2)], time.time_ns() - 30_000_000_000
    for which, trace_id in enumerate(ids):
        spans = [
            a_span(trace_id, n + 1, name, start + at * 1_000_000, ms * (1 + which), parent)
            for n, (name, at, ms, parent) in enumerate(COST_TREE)
            if not (which and name == "apply_discount")
        ]
        if which:
            spans += [a_span(trace_id, 90 + n, "retry", start, 5, 10, status={"code": 2}) for n in range(3)]
        assert otlp(server, "cost-ops", spans)[0] == 200
    found = get(server, "ui", "/api/v1/traces/compare", a=ids[0], b=ids[1])
    places = {(p["depth"], p["name"]): (p["a"], p["b"]) for p in found["places"]}
    assert found["places"][0]["name"] == "POST /api/v1/costs" and not found["truncated"]
    a, b = places[0, "POST /api/v1/costs"]
    assert (a["duration"], b["duration"]) == (245_000_000, 490_000_000)
    assert places[2, "apply_discount"][1] is None and places[2, "apply_discount"][0]["spans"] == 1
    assert places[2, "retry"][0] is None and (places[2, "retry"][1]["spans"], places[2, "retry"][1]["errors"]) == (3, 3)
    assert found["b"]["rollup"]["errors"] == 3 and found["a"]["trace_id"] == ids[0]
    for query, status in (({"a": ids[0]}, 400), ({"a": ids[0], "b": "x"}, 400), ({"a": ids[0], "b": "1" * 32}, 404)):
        assert request(server, "ui", "/api/v1/traces/compare", **query)[0] == status


def test_every_exporter_for_node_is_understood(server):
    script = pathlib.Path(__file__).parent / "node" / "send.mjs"
    sent = subprocess.run(
        ["node", str(script), json.dumps(server.endpoints)], capture_output=True, text=True, timeout=60
    )
    assert sent.returncode == 0, sent.stderr
    ids = json.loads(sent.stdout)
    assert set(ids) == {"json", "proto", "grpc", "zipkin"}
    for name, trace_id in ids.items():
        found = get(server, "jaeger", f"/api/traces/{trace_id}")["data"][0]
        assert {p["serviceName"] for p in found["processes"].values()} == {f"node-{name}"}
        spans = {s["operationName"]: s for s in found["spans"]}
        root, child = spans["GET /orders"], spans["SELECT"]
        assert child["references"][0]["spanID"] == root["spanID"], name
        of_root, of_child = tags(root), tags(child)
        assert (of_root["span.kind"], of_child["span.kind"]) == ("server", "client"), name
        assert of_child["error"] is True and of_child["otel.status_code"] == "ERROR", (name, of_child)
        assert of_child["otel.status_description"] == "connection lost", (name, of_child)
        # Zipkin has no types.
        plain = (lambda v: v) if name != "zipkin" else str
        assert of_root["http.status_code"] == plain(503) and of_child["share"] == plain(0.5), name
        logs = {f["value"] for log in child["logs"] for f in log["fields"] if f["key"] in ("event", "name")}
        assert {"retry", "exception"} <= logs or name == "zipkin", child["logs"]


def test_a_value_of_16_mib_comes_back_byte_for_byte(server):
    trace_id, start = os.urandom(16).hex(), time.time_ns() - 20_000_000_000
    # Letters of three bytes, none of which repeats for long.
    text = "".join(chr(0x4E00 + i * i % 20_000) for i in range((16 << 20) // 3))
    attribute = {"key": "gen_ai.input.messages", "value": {"stringValue": text}}
    span = a_span(trace_id, 1, "large", start, 5, attributes=[attribute])
    # A body as sent may have 16 MiB, and 64 once it is unpacked.
    body = json.dumps({"resourceSpans": [{"scopeSpans": [{"spans": [span]}]}]}, ensure_ascii=False).encode()
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    status, answer = request(server, "otlp-http", "/v1/traces", gzip.compress(body, 1), headers)
    assert (status, json.loads(answer)) == (200, {})
    for place in ("head", "segment"):
        tags = get(server, "jaeger", f"/api/traces/{trace_id}")["data"][0]["spans"][0]["tags"]
        value = next(t["value"] for t in tags if t["key"] == "gen_ai.input.messages")
        assert len(value) == len(text) and value == text, place
        assert server.post("/api/v1/storage/flush")[0] == 200


def test_bad_spans_harm_no_other(server):
    start = time.time_ns() - 20_000_000_000
    good, loop, wide = (os.urandom(16).hex() for _ in range(3))
    text = lambda k, v: {"key": k, "value": {"stringValue": v}}
    status, body = otlp(
        server,
        "bad<script>",
        [
            a_span(good, 1, "good", start, 5),
            a_span(good, 2, "ends before it starts", start, -5, 1),
            a_span("0" * 32, 3, "no trace", start, 5),
            a_span(good, 0, "no id", start, 5),
            a_span(loop, 1, "a", start, 5, 2),
            a_span(loop, 2, "b", start, 5, 1),
            a_span(loop, 3, "own parent", start, 5, 3),
            a_span(
                wide,
                1,
                '<img src=x onerror="alert(1)">\u001b[31m',
                start,
                5,
                attributes=[text("__proto__", "x"), text("constructor", "y"), text("long", "z" * (1 << 20))],
                links=[{"traceId": good, "spanId": f"{n + 1:016x}"} for n in range(1000)],
            ),
        ],
    )
    assert status == 200 and json.loads(body)["partialSuccess"]["rejectedSpans"] in (2, "2")
    many = [text(f"k{n}", "v") for n in range(10_000)]
    status, body = otlp(server, "bad<script>", [a_span(os.urandom(16).hex(), 1, "many", start, 5, attributes=many)])
    assert status == 200 and "attributes" in json.loads(body)["partialSuccess"]["errorMessage"]
    spans = json.loads(request(server, "jaeger", f"/api/traces/{good}")[1])["data"][0]["spans"]
    assert {(s["operationName"], s["duration"]) for s in spans} == {("good", 5000), ("ends before it starts", 0)}
    assert len(json.loads(request(server, "jaeger", f"/api/traces/{loop}")[1])["data"][0]["spans"]) == 3
    one = json.loads(request(server, "jaeger", f"/api/traces/{wide}")[1])["data"][0]["spans"][0]
    found = tags(one)
    assert (found["__proto__"], found["constructor"], len(found["long"])) == ("x", "y", 1 << 20)
    assert len(one["references"]) == 1000
    assert get(server, "tempo", "/api/search", q='{ span.__proto__ = "x" }')["traces"]
    assert get(server, "tempo", "/api/search", q='{ name = "a" } >> { name = "b" }')["traces"]
    assert get(server, "tempo", "/api/search", q='{ resource.service.name = "bad<script>" && nestedSetLeft > 0 }')["traces"]


TAIL = """
sampling:
  tail:
    decision_wait_seconds: 3
    policies:
      - {name: errors, type: status_code, status_code: {status_codes: [ERROR]}}
      - {name: dear, type: cost, cost: {min_usd: 1.0}}
      - {name: rest, type: probabilistic, probabilistic: {sampling_percentage: 10}}
"""


def chats(start, tokens, error=lambda i: False, first=0):
    """A request of traces of one call each, with as many input tokens as told."""
    out = []
    for i, n in enumerate(tokens, first):
        facts = {
            "gen_ai.operation.name": {"stringValue": "chat"},
            "gen_ai.provider.name": {"stringValue": "openai"},
            "gen_ai.request.model": {"stringValue": "gpt-4o"},
            "gen_ai.usage.input_tokens": {"intValue": str(n)},
        }
        out.append(
            {
                "traceId": os.urandom(16).hex(),
                "spanId": f"{i + 1:016x}",
                "name": "chat gpt-4o",
                "startTimeUnixNano": str(start + i),
                "endTimeUnixNano": str(start + i + 1_000_000),
                "status": {"code": 2} if error(i) else {},
                "attributes": [{"key": k, "value": v} for k, v in facts.items()],
            }
        )
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "sampled"}}]}
    return json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [{"spans": out}]}]}).encode()


def test_tail_sampling_survives_a_crash_and_counts_stay_right(tmp_path):
    config = tmp_path / "observatory.yaml"
    config.write_text(TAIL)
    server = Server(tmp_path / "data", "--config", str(config))
    start = time.time_ns() - 10_000_000_000

    def spans(first, last):
        tokens = [1_000_000 if i % 500 == 7 else 1_000 for i in range(first, last)]
        return chats(start, tokens, lambda i: i % 100 == 0, first)

    json_type = {"Content-Type": "application/json"}
    try:
        for first in range(0, 2000, 500):
            assert request(server, "otlp-http", "/v1/traces", spans(first, first + 500), json_type)[0] == 200
        # Acknowledged, not decided, and cut off.
        server.process.kill()
        server.process.wait()
        (tmp_path / "data" / "endpoints.json").unlink()
        server = Server(tmp_path / "data", "--config", str(config))
        window = {"start": start // 10**9 - 60, "end": int(time.time()) + 60}

        def count(q):
            series = get(server, "tempo", "/api/metrics/query", q=q + " | count_over_time()", **window)["series"]
            return series[0]["value"] if series else 0

        errors = until(lambda: count('{ resource.service.name = "sampled" && status = error }'))
        assert errors == 20
        # What they cost was told by calls that were stored before the crash.
        assert count("{ span.gen_ai.usage.input_tokens = 1000000 }") == 4
        everything = count('{ resource.service.name = "sampled" }')
        assert 1500 < everything < 2500
        stored = get(server, "ui", "/api/v1/sql", q="select count(*) as n from spans where service = 'sampled'")["rows"]
        assert 100 < stored[0]["n"] < 400
        # What was paid is known to the last call.
        paid = get(server, "ui", "/api/v1/sql", q="select count(*) as n from llm_calls")["rows"]
        assert paid[0]["n"] == 2000
    finally:
        server.process.kill()
        server.process.wait()


def test_a_call_unlike_those_before_it_keeps_its_trace(tmp_path):
    config = tmp_path / "observatory.yaml"
    config.write_text("sampling: {tail: {decision_wait_seconds: 1, policies: [{name: odd, type: drift}]}}")
    server = Server(tmp_path / "data", "--config", str(config))
    try:
        start = time.time_ns() - 10_000_000_000
        tokens = [1_000 + i % 200 for i in range(400)] + [60_000] + [1_000 + i % 200 for i in range(100)]
        body = chats(start, tokens)
        assert request(server, "otlp-http", "/v1/traces", body, {"Content-Type": "application/json"})[0] == 200
        counter = 'sampling_traces_total{decision="dropped"} 500'
        until(lambda: counter in request(server, "ui", "/metrics")[1].decode())
        rows = get(server, "ui", "/api/v1/sql", q="select count(*) as n from spans")["rows"]
        assert rows[0]["n"] == 1
        assert get(server, "tempo", "/api/search", q="{ span.gen_ai.usage.input_tokens = 60000 }")["traces"]
    finally:
        server.process.kill()
        server.process.wait()
