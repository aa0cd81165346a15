"""What frameworks tell of one and the same chat becomes one and the same call, at one cost."""

import pathlib
import subprocess
import sys

import fake_llm
import pytest
from running import Server

HERE = pathlib.Path(__file__).parent
FRAMEWORKS = {
    # (dialect, whether the framework tells which output tokens were reasoning, its own figure)
    "langfuse": ("langfuse", True, None),
    "pydantic_ai": ("pydantic_ai", True, "0.000008400000"),
    "langchain": ("openinference", True, None),
    "mlflow": ("mlflow", False, None),
    "litellm": ("litellm", True, "0.000008400000"),
}


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    server, llm = Server(tmp_path_factory.mktemp("frameworks")), fake_llm.start()
    yield server, f"http://127.0.0.1:{llm.server_address[1]}"
    server.stop()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_one_chat_is_one_call(servers, framework):
    server, llm = servers
    ui, otlp = (f"http://{server.endpoints[name]}" for name in ("ui", "otlp-http"))
    command = [sys.executable, HERE / "frameworks.py", framework, llm, ui, otlp, framework]
    subprocess.run(command, check=True, timeout=120)
    rows = server.sql(f"SELECT * FROM llm_calls WHERE service = '{framework}'")
    assert len(rows) == 1, [r["evidence"] for r in rows]
    row = rows[0]
    dialect, tells_reasoning, reported = FRAMEWORKS[framework]
    assert row["dialect"] == dialect
    # 16 × 0.15 + 8 × 0.075 + 9 × 0.60 dollars a million
    assert (row["cost_usd"], row["cost_state"]) == ("0.000008400000", "priced")
    tokens = [row[f"{part}_tokens"] for part in ("input", "cache_read", "cache_write", "output", "reasoning")]
    assert tokens == ([16, 8, 0, 6, 3] if tells_reasoning else [16, 8, 0, 9, 0])
    assert (row["request_model"] or row["response_model"]).startswith("gpt-4o-mini")
    assert (row["status"], row["operation"], row["reported_cost_usd"]) == ("success", "chat", reported)
    assert "inclusive" in row["evidence"]
    trace = server.get(f"/api/v1/traces/{row['trace_id']}/spans/{row['span_id']}")
    assert "Paris" in str(trace["conversation"]["output"]), trace["conversation"]
