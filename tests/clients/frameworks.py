"""One chat of a framework, told by its own tracing.

usage: frameworks.py langfuse|pydantic_ai|langchain|mlflow|litellm LLM_URL SERVER OTLP_ENDPOINT SERVICE
"""

import os
import sys

framework, llm, server, endpoint, service = sys.argv[1:]
os.environ["OTEL_SERVICE_NAME"] = service
os.environ["OPENAI_API_KEY"] = "sk-fake"
base = llm + "/v1"
MESSAGES = [{"role": "system", "content": "You are terse."}, {"role": "user", "content": "What is the capital of France?"}]


def provider():
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor

    made = TracerProvider(resource=Resource.create({"service.name": service}))
    made.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")))
    trace.set_tracer_provider(made)
    return made


if framework == "langfuse":
    os.environ.update(LANGFUSE_HOST=server, LANGFUSE_BASE_URL=server, LANGFUSE_PUBLIC_KEY="pk-lf-1", LANGFUSE_SECRET_KEY="sk-lf-1")
    from langfuse import get_client
    from langfuse.openai import OpenAI

    OpenAI(base_url=base).chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    get_client().flush()
elif framework == "pydantic_ai":
    made = provider()
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    Agent.instrument_all()
    model = OpenAIChatModel("gpt-4o-mini", provider=OpenAIProvider(base_url=base, api_key="sk-fake"))
    Agent(model, system_prompt="You are terse.").run_sync("What is the capital of France?")
elif framework == "langchain":
    made = provider()
    from langchain_openai import ChatOpenAI
    from openinference.instrumentation.langchain import LangChainInstrumentor

    LangChainInstrumentor().instrument(tracer_provider=made)
    ChatOpenAI(model="gpt-4o-mini", base_url=base).invoke("What is the capital of France?")
elif framework == "mlflow":
    os.environ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"] = f"{endpoint}/v1/traces"
    os.environ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"] = "http/protobuf"
    import mlflow
    import openai

    mlflow.openai.autolog()
    openai.OpenAI(base_url=base).chat.completions.create(model="gpt-4o-mini", messages=MESSAGES)
    mlflow.flush_trace_async_logging()
elif framework == "litellm":
    os.environ.update(OTEL_EXPORTER="otlp_http", OTEL_ENDPOINT=f"{endpoint}/v1/traces", LITELLM_LOCAL_MODEL_COST_MAP="True")
    import litellm

    litellm.callbacks = ["otel"]
    litellm.completion(model="openai/gpt-4o-mini", api_base=base, messages=MESSAGES)
    import time

    # Its callbacks run on a thread of their own, which nothing waits for.
    time.sleep(3)
else:
    sys.exit(f"{framework} is not known")
