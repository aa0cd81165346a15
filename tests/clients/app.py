"""An LLM application: the real openai client, instrumented as the first argument says.

usage: app.py otel|openllmetry|openinference grpc|http LLM_URL OTLP_ENDPOINT SERVICE
"""

import os
import sys

dialect, protocol, llm, endpoint, service = sys.argv[1:]
os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "true"
if dialect == "otel" and protocol == "http":
    # The conventions' current form: messages on the span instead of in log events.
    os.environ["OTEL_SEMCONV_STABILITY_OPT_IN"] = "gen_ai_latest_experimental"
    os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "SPAN_AND_EVENT"

from opentelemetry import _logs, metrics, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

if protocol == "grpc":
    from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter

    paths, options = {"traces": endpoint, "metrics": endpoint, "logs": endpoint}, {"insecure": True}
else:
    from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    paths, options = {s: f"{endpoint}/v1/{s}" for s in ("traces", "metrics", "logs")}, {}

resource = Resource.create({"service.name": service, "deployment.environment.name": "test"})
traces = TracerProvider(resource=resource)
traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=paths["traces"], **options)))
trace.set_tracer_provider(traces)
reader = PeriodicExportingMetricReader(OTLPMetricExporter(endpoint=paths["metrics"], **options), 3_600_000)
meters = MeterProvider(resource=resource, metric_readers=[reader])
metrics.set_meter_provider(meters)
logs = LoggerProvider(resource=resource)
logs.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(endpoint=paths["logs"], **options)))
_logs.set_logger_provider(logs)

if dialect == "otel":
    from opentelemetry.instrumentation.openai_v2 import OpenAIInstrumentor
elif dialect == "openllmetry":
    from opentelemetry.instrumentation.openai import OpenAIInstrumentor
else:
    from openinference.instrumentation.openai import OpenAIInstrumentor
OpenAIInstrumentor().instrument()

import openai

client = openai.OpenAI(base_url=llm + "/v1", api_key="sk-fake", max_retries=0)
MESSAGES = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "What is the capital of France?"}]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "description": "Weather of a city", "parameters": PARAMETERS}}]

with trace.get_tracer("app").start_as_current_span("handle request"):
    client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, temperature=0.2)
    stream = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, stream=True, stream_options={"include_usage": True})
    assert "".join(c.choices[0].delta.content or "" for c in stream if c.choices).endswith("Paris.")
    asked = client.chat.completions.create(model="gpt-4o-mini", messages=MESSAGES, tools=TOOLS)
    call = asked.choices[0].message
    result = {"role": "tool", "tool_call_id": call.tool_calls[0].id, "content": "18 degrees"}
    client.chat.completions.create(model="gpt-4o-mini", messages=[*MESSAGES, call.model_dump(exclude_none=True), result], tools=TOOLS)
    client.chat.completions.create(model="gpt-4.1-nano", messages=MESSAGES)
    client.embeddings.create(model="text-embedding-3-small", input=["hello", "world"])
    try:
        client.chat.completions.create(model="boom", messages=MESSAGES)
        sys.exit("the fake provider did not refuse")
    except openai.RateLimitError:
        pass

for provider in (traces, logs, meters):
    provider.force_flush()
    provider.shutdown()
