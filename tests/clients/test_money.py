"""Dollars: usage, prices, the ledger, re-pricing, invoices, and budgets that hold over kill -9."""

import concurrent.futures
import datetime
import decimal
import json
import os
import random
import subprocess
import threading
import time
import urllib.request

import grpc
import pytest
from running import Server

D = decimal.Decimal
TODAY = datetime.datetime.now(datetime.UTC).date()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    s = Server(tmp_path_factory.mktemp("money"))
    yield s
    s.stop()


def send(server, path, body, method="POST"):
    status, answer = server.post(path, json.dumps(body).encode(), method=method)
    return status, answer


def usage(server, model="gpt-4o-mini", provider="openai", organization="acme", **more):
    body = {"organization_id": organization, "provider": provider, "model_id": model, **more}
    return send(server, "/api/v1/usage", body)


def total(server, **filters):
    return D(server.get("/api/v1/costs", **filters)["data"]["total"]["total_cost"])


def otlp(server, spans):
    """Sends spans (id, parent, attributes) of one trace, each batch as given."""

    def value(v):
        return {"intValue": str(v)} if isinstance(v, int) else {"stringValue": v}

    now = time.time_ns()
    rows = [
        {
            "traceId": trace,
            "spanId": span,
            **({"parentSpanId": parent} if parent else {}),
            "name": "chat",
            "kind": 3,
            "startTimeUnixNano": str(now - 10**9),
            "endTimeUnixNano": str(now),
            "attributes": [{"key": k, "value": value(v)} for k, v in attributes.items()],
        }
        for trace, span, parent, attributes in spans
    ]
    service = [{"key": "service.name", "value": {"stringValue": "agent"}}]
    body = {"resourceSpans": [{"resource": {"attributes": service}, "scopeSpans": [{"spans": rows}]}]}
    status, _ = send(server, "/v1/traces", body)
    assert status == 200


def chat(tokens, **more):
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.usage.input_tokens": tokens,
        **more,
    }


def test_usage_is_priced_booked_once_and_validated(server):
    status, answer = usage(server, input_tokens=1000, output_tokens=500, total_tokens=1500, cached_tokens=400, id="call-1")
    assert status == 200
    # 600 × 0.15 + 400 × 0.075 + 500 × 0.60 dollars a million
    assert D(answer["data"]["estimated_cost"]) == D("0.00042")
    assert answer["data"]["is_new"] and answer["meta"]["version"]
    again = usage(server, input_tokens=1000, output_tokens=500, cached_tokens=400, id="call-1")[1]
    assert not again["data"]["is_new"]
    assert total(server, organization="acme") == D("0.00042")

    def refused(field, **body):
        status, answer = usage(server, **body)
        assert (status, answer["error"]["field"]) == (400, field), answer

    refused("total_tokens", input_tokens=1, output_tokens=1, total_tokens=3)
    refused("total_tokens", input_tokens=0)
    refused("organization_id", organization="", input_tokens=1)
    refused("timestamp", input_tokens=1, timestamp="2099-01-01T00:00:00Z")
    refused("input_tokens", input_tokens=1, cached_tokens=2)
    # A form of another site's page cannot book anything.
    request = urllib.request.Request(f"http://{server.endpoints['ui']}/api/v1/usage", data=b"{}", method="POST")
    request.add_header("Content-Type", "text/plain")
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(request)
    assert e.value.code == 415
    status, answer = send(
        server,
        "/api/v1/usage",
        [
            {"organization_id": "batch", "provider": "anthropic", "model": "claude-sonnet-4-5", "input_tokens": 10},
            {"provider": "", "model": "x", "input_tokens": 1},
            {"provider": "openai", "model": "gpt-4o", "input_tokens": "many"},
        ],
    )
    assert (status, answer["data"]["accepted"], answer["data"]["rejected"]) == (200, 1, 2)
    assert [e["index"] for e in answer["data"]["errors"]] == [1, 2]


def test_a_call_through_gateway_and_sdk_and_an_agent_roll_up_cost_once(server):
    before = total(server, service="agent")
    trace = "11" * 16
    # The parent, which sums its children, comes first; then one child, then the other.
    otlp(server, [(trace, "aa" * 8, None, chat(3_000_000))])
    assert total(server, service="agent") - before == D("7.5")
    otlp(server, [(trace, "bb" * 8, "aa" * 8, chat(1_000_000))])
    assert total(server, service="agent") - before == D("2.5")
    otlp(server, [(trace, "cc" * 8, "aa" * 8, chat(2_000_000))])
    assert total(server, service="agent") - before == D("7.5")
    rows = server.get("/api/v1/costs/ledger", trace_id=trace, **{"from": str(TODAY), "to": str(TODAY + datetime.timedelta(1))})
    entries = [(e["kind"], e["amount_usd"], e["revision"]) for e in rows["data"]["entries"]]
    assert sorted(entries) == [("charge", "2.5", 0), ("charge", "5", 0), ("charge", "7.5", 0), ("reversal", "-7.5", 1)]
    assert D(rows["data"]["sum_usd"]) == D("7.5")
    # The same answer, seen by a gateway in a trace of its own.
    answer = {"gen_ai.response.id": "chatcmpl-0123456789abcdefghij"}
    otlp(server, [("22" * 16, "dd" * 8, None, chat(1_000_000, **answer))])
    otlp(server, [("33" * 16, "ee" * 8, None, chat(1_000_000, **answer))])
    assert total(server, service="agent") - before == D("10")
    states = server.sql("SELECT cost_state, count(*) AS n FROM llm_calls WHERE service = 'agent' GROUP BY cost_state ORDER BY 1")
    assert [(s["cost_state"], s["n"]) for s in states] == [("duplicate", 1), ("priced", 3), ("rollup", 1)]


def test_models_are_compared_by_what_was_asked_for_too(server):
    asked = {"gen_ai.request.model": "gpt-4.1-mini", "team.id": "compared"}
    served = {"gen_ai.response.model": "gpt-4.1-mini-2025-04-14"}
    failed = {"error.type": "timeout", "gen_ai.usage.input_tokens": 0}
    otlp(server, [(f"{n + 7:032x}", f"{n + 7:016x}", None, chat(10, **asked, **(served if n < 3 else failed))) for n in range(4)])

    def compared(models):
        found = server.get("/api/v1/models/compare", models=models, service="agent")["data"]["models"]
        return {m["model"]: m["requests"] for m in found}

    # Whoever fails does not say what would have served it.
    assert compared("gpt-4.1-mini") == {"gpt-4.1-mini": 4}
    assert compared("gpt-4.1-mini-2025-04-14") == {"gpt-4.1-mini-2025-04-14": 3}


def test_an_unknown_model_is_listed_priced_later_and_priced_again_once(server):
    usage(server, model="house-model-7", provider="acme-ai", organization="late", input_tokens=2_000_000, output_tokens=1_000_000)
    assert total(server, organization="late") == 0
    items = server.get("/api/v1/costs/unpriced")["data"]["items"]
    mine = [i for i in items if i["model"] == "house-model-7"]
    assert [(i["state"], i["requests"], i["total_tokens"]) for i in mine] == [("unpriced", 1, 3_000_000)]
    status, answer = send(server, "/api/v1/pricing", {"provider": "acme-ai", "model": "house-model-7", "imput": "1"})
    assert (status, "imput" in answer["error"]["message"]) == (400, True)
    status, answer = send(server, "/api/v1/pricing", {"provider": "acme-ai", "model": "house-model-7", "input": "1", "output": "2.5"})
    assert (status, answer["data"]["added"]) == (200, 1)
    ask = {"from": str(TODAY), "to": str(TODAY + datetime.timedelta(1)), "filter": {"provider": "acme-ai"}}
    shown = send(server, "/api/v1/costs/reprice", ask)[1]["data"]
    assert (shown["applied"], shown["calls"], shown["difference_usd"]) == (False, 1, "4.5")
    assert total(server, organization="late") == 0
    done = send(server, "/api/v1/costs/reprice", {**ask, "apply": True, "reason": "contract of May"})[1]["data"]
    assert (done["applied"], done["calls"]) == (True, 1)
    assert total(server, organization="late") == D("4.5")
    assert send(server, "/api/v1/costs/reprice", {**ask, "apply": True})[1]["data"]["calls"] == 0
    # A month's volume takes its steps off.
    send(server, "/api/v1/pricing", {"version": "steps", "prices": [], "volume": [{"provider": "acme-ai", "above_usd": "4", "percent": "50"}]})
    volume = server.get("/api/v1/costs", provider="acme-ai")["data"]["volume_discounts"]
    assert [(v["discount"], v["net_cost"]) for v in volume] == [("0.25", "4.25")]
    csv = urllib.request.urlopen(
        f"http://{server.endpoints['ui']}/api/v1/costs/ledger?format=csv&provider=acme-ai&from={TODAY}&to={TODAY + datetime.timedelta(1)}"
    ).read().decode().splitlines()
    assert len(csv) == 3 and "contract of May" in csv[1]


def test_reports(server):
    for day, tokens in enumerate([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]):
        at = datetime.datetime.combine(TODAY - datetime.timedelta(12 - day), datetime.time(12), datetime.UTC)
        for team in ("search", "ads"):
            usage(
                server, organization="reports", team=team, user_id=f"u{day % 3}", tags=["a", "b"], environment="prod",
                input_tokens=tokens * 1_000_000, timestamp=at.isoformat(), model="gpt-4o",
            )
    each = {"organization": "reports"}
    groups = server.get("/api/v1/costs", group_by="team,user", **each)["data"]["groups"]
    assert len(groups) == 6 and D(groups[0]["total_cost"]) == D("75")
    days = server.get("/api/v1/costs", group_by="day", **each)["data"]["groups"]
    assert [D(d["total_cost"]) for d in days] == [n * 5 for n in range(1, 13)]
    assert days[0]["day"] == str(TODAY - datetime.timedelta(12))
    summary = server.get("/api/v1/costs/summary", **each)["data"]
    assert D(summary["totals"]["total_cost"]) == 390 and summary["by_model"][0]["percentage"] == 100.0
    assert summary["daily"][1]["growth_percent"] == 100.0 and len(summary["top_traces"]) == 10
    items = server.get("/api/v1/costs/attribution", dimension="tag", **each)["data"]["items"]
    # A call counts under each of its tags.
    assert {i["tag"]: D(i["total_cost"]) for i in items} == {"a": 390, "b": 390}
    f = server.get("/api/v1/costs/forecast", horizon_days=3, **each)["data"]
    assert f["method"] == "linear_trend"
    assert [round(p["cost"], 6) for p in f["forecast"]] == [65, 70, 75]
    f = server.get("/api/v1/costs/anomalies", method="iqr", **each)["data"]
    assert f["points"] == 30
    shown = server.get("/api/v1/analytics", interval="week", metrics="total_cost,total_requests", **each)["data"]
    assert shown["summary"] == {"total_cost": "390", "total_requests": 24}
    compared = server.get("/api/v1/models/compare", models="gpt-4o", **each)["data"]["models"]
    assert [m["model"] for m in compared] == ["gpt-4o"]
    with pytest.raises(urllib.error.HTTPError) as e:
        server.get("/api/v1/costs", group_by="colour")
    assert e.value.code == 400
    invoice = f"date,model,cost\n{TODAY - datetime.timedelta(1)},gpt-4o,60.00\n{TODAY - datetime.timedelta(2)},gpt-4o,50\n{TODAY - datetime.timedelta(2)},o9,1\n"
    request = urllib.request.Request(
        f"http://{server.endpoints['ui']}/api/v1/costs/reconcile?provider=openai", data=invoice.encode(), headers={"Content-Type": "text/csv"}
    )
    found = json.load(urllib.request.urlopen(request))["data"]
    assert [(r["status"], r["difference_usd"]) for r in found["rows"]] == [("differs", "-5"), ("missing_in_ledger", "1"), ("matches", "0")]


def test_a_refusal_names_the_budget_and_metrics_show_it(server):
    scope = {"organization": "purse"}
    usage(server, organization="purse", model="gpt-4o", input_tokens=2_000_000)
    status, made = send(server, "/api/v1/budgets", {"name": "Purse of May", "limit": "6", "scope": scope, "period": "daily", "time_zone": "UTC", "hard": True})
    # What was spent before it was made counts.
    assert (status, made["current_spend"], made["id"]) == (201, "5", "purse-of-may")
    body = {"id": "r1", "scope": scope, "provider": "openai", "model": "gpt-4o", "input_tokens": 100_000, "max_output_tokens": 50_000}
    status, answer = send(server, "/api/v1/budgets/reserve", body)
    assert (status, answer["amount_usd"], answer["budgets"]) == (200, "0.75", ["purse-of-may"])
    status, answer = send(server, "/api/v1/budgets/reserve", {**body, "id": "r2"})
    e = answer["error"]
    assert status == 402
    assert (e["budget"], e["limit"], e["spent"], e["reserved"], e["requested"]) == ("Purse of May", "6", "5", "0.75", "0.75")
    assert e["resets_at"].startswith(str(TODAY + datetime.timedelta(1)))
    status, _ = send(server, "/api/v1/budgets/check", {**body, "scope": {"organization": "other"}, "id": ""})
    assert status == 200
    # Settled for less: the rest is free again, and the call is in the ledger.
    settled = send(server, "/api/v1/budgets/settle", {"id": "r1", "input_tokens": 100_000, "output_tokens": 1_000})[1]
    assert (settled["state"], settled["cost_usd"], settled["reserved_usd"]) == ("settled", "0.26", "0.75")
    assert total(server, organization="purse") == D("5.26")
    assert send(server, "/api/v1/budgets/settle", {"id": "r1", "input_tokens": 1, "output_tokens": 1})[0] == 404
    assert send(server, "/api/v1/budgets/reserve", {**body, "id": "r2", "max_output_tokens": 40_000})[0] == 200
    assert send(server, "/api/v1/budgets/cancel", {"id": "r2"})[0] == 200
    # A model without a price cannot be kept within an amount of money.
    status, answer = send(server, "/api/v1/budgets/reserve", {**body, "id": "r3", "model": "nobody-knows"})
    assert (status, answer["error"]["code"]) == (402, "UNPRICED_MODEL")
    usage(server, organization="purse", model="gpt-4o", input_tokens=400_000)
    gate = server.get("/api/v1/budgets/purse-of-may/check")
    assert gate["decision"] == "deny" and gate["budget"]["state"] == "limit_exceeded"
    for _ in range(100):
        found = server.get("/prometheus/api/v1/query", query='llm_budget_utilization_ratio{budget="purse-of-may"} > 1')["data"]["result"]
        if found:
            break
        time.sleep(0.2)
    assert found[0]["metric"]["scope"] == "organization=purse" and found[0]["metric"]["period"] == "daily"


def test_a_reservation_outside_of_any_budget_is_settled_too(server):
    def ask(path, body):
        request = urllib.request.Request(f"http://{server.endpoints['ui']}/api/v1/budgets/{path}", data=json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        request.add_header("X-Scope-OrgID", "nobody-budgets")
        return json.load(urllib.request.urlopen(request))

    ask("reserve", {"id": "free", "provider": "openai", "model": "gpt-4o", "input_tokens": 1000, "max_output_tokens": 1000})
    settled = ask("settle", {"id": "free", "input_tokens": 1000, "output_tokens": 100})
    assert (settled["state"], settled["cost_usd"]) == ("settled", "0.0035")


def check_request(headers, body=b""):
    """A CheckRequest of envoy.service.auth.v3, field by field."""

    def field(number, payload):
        length, out = len(payload), b""
        while True:
            out += bytes([length & 0x7F | (0x80 if length > 0x7F else 0)])
            length >>= 7
            if not length:
                return bytes([number << 3 | 2]) + out + payload

    entries = b"".join(field(3, field(1, k.encode()) + field(2, v.encode())) for k, v in headers.items())
    http = entries + field(11, body)
    return field(1, field(4, field(2, http)))


def test_envoy_asks_over_grpc(server):
    send(server, "/api/v1/budgets", {"name": "gate", "limit": "0.01", "scope": {"team": "gated"}, "period": "total"})
    channel = grpc.insecure_channel(server.endpoints["ui"])
    ask = channel.unary_unary("/envoy.service.auth.v3.Authorization/Check")

    def code(tokens, team="gated"):
        body = json.dumps({"model": "gpt-4o", "max_tokens": tokens, "messages": []}).encode()
        answer = ask(check_request({"x-budget-team": team, "x-budget-provider": "openai"}, body), timeout=10)
        return answer

    assert b"BUDGET_EXCEEDED" not in code(500)
    refused = code(2000)
    assert b"BUDGET_EXCEEDED" in refused and b"gate" in refused
    assert b"BUDGET_EXCEEDED" not in code(2000, team="free")


def test_a_thousand_streams_never_spend_more_than_a_cent_over_kill_9(tmp_path):
    """Streams reserve, some die, most settle; the server is killed in the middle, twice."""
    data = tmp_path / "data"
    data.mkdir()
    server = Server(data)
    status, _ = send(server, "/api/v1/budgets", {"name": "cent", "limit": "0.01", "scope": {"team": "cent"}, "period": "monthly"})
    assert status == 201
    holder, lock = [server], threading.Lock()
    told = []
    chance = random.Random(7)
    plans = [(i, chance.randrange(50, 400), chance.random(), chance.random()) for i in range(1000)]

    def attempt(path, body):
        """Until an answer comes: what a careful client does when the server dies under it."""
        for _ in range(200):
            try:
                return send(holder[0], path, body)
            except (OSError, ValueError):
                time.sleep(0.05)
        raise AssertionError("no answer")

    def stream(plan):
        i, tokens, use, die = plan
        body = {"id": f"s{i}", "scope": {"team": "cent"}, "provider": "openai", "model": "gpt-4o", "input_tokens": tokens, "max_output_tokens": tokens}
        status, answer = attempt("/api/v1/budgets/reserve", body)
        assert status in (200, 402, 429), (status, answer)
        if status != 200:
            return "refused"
        if die < 0.1:
            return "abandoned"
        used = int(tokens * use)
        body = {"id": f"s{i}", "input_tokens": tokens, "output_tokens": used}
        status, answer = attempt("/api/v1/budgets/settle", body)
        # 404: it was settled, and the answer died with the server.
        assert status in (200, 404), (status, answer)
        with lock:
            told.append(answer.get("cost_usd"))
        return "settled"

    def killer():
        for _ in range(2):
            while len(told) < 3:
                time.sleep(0.01)
            holder[0].process.kill()
            holder[0].process.wait()
            (data / "endpoints.json").unlink(missing_ok=True)
            holder[0] = Server(data)
            with lock:
                told.clear()

    thread = threading.Thread(target=killer, daemon=True)
    thread.start()
    with concurrent.futures.ThreadPoolExecutor(64) as pool:
        outcomes = list(pool.map(stream, plans))
    thread.join(20)
    server = holder[0]
    spent = total(server, team="cent")
    budget = server.get("/api/v1/budgets/cent")
    assert 0 < spent <= D("0.01"), spent
    assert D(budget["current_spend"]) == spent
    assert spent + D(budget["reserved"]) <= D("0.01")
    assert outcomes.count("refused") > 500 and outcomes.count("settled") > 5
    # A restart counts the same from the ledger.
    server.stop()
    server = Server(data)
    assert D(server.get("/api/v1/budgets/cent")["current_spend"]) == spent
    server.stop()


def test_drift_is_found_named_and_resolved(server):
    chance = random.Random(3)

    def calls(n, low, high, days):
        start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)
        rows = [
            {
                "organization_id": "drift", "provider": "openai", "model": "gpt-4.1", "project": "chatbot",
                "input_tokens": chance.randint(low, high), "output_tokens": chance.randint(50, 90),
                "timestamp": (start + datetime.timedelta(seconds=i)).isoformat(),
            }
            for i in range(n)
        ]
        status, answer = send(server, "/api/v1/usage", rows)
        assert (status, answer["data"]["accepted"]) == (200, n)

    calls(900, 100, 200, 5)
    found = send(server, "/drift/check", {"model": "gpt-4.1"})[1]
    assert (found["status"], found["drift_detected"], found["severity"]) == ("success", False, "normal"), found
    assert {r["scope"] for r in found["scope_results"]} == {"global", "project=chatbot"}
    calls(500, 150, 400, 4)
    found = send(server, "/drift/check", {"model": "gpt-4.1"})[1]
    assert (found["drift_detected"], found["severity"]) == (True, "critical")
    worst = found["scope_results"][0]["features"][0]
    assert worst["name"] in ("prompt_tokens", "cost_usd") and worst["psi_corrected"] > 0.25 and worst["n_cur"] == 500
    incidents = server.get("/api/v1/drift/incidents", status="open")["incidents"]
    assert {(i["model"], i["scope"], i["severity"]) for i in incidents} == {("gpt-4.1", "global", "critical"), ("gpt-4.1", "project=chatbot", "critical")}
    assert "prompt_tokens" in incidents[0]["summary"]
    for _ in range(100):
        series = server.get("/prometheus/api/v1/query", query='drift_score{model="gpt-4.1", scope="global"} > 0.25')["data"]["result"]
        if series:
            break
        time.sleep(0.2)
    assert series
    # It stays that way; against a baseline pinned after the change nothing moves.
    calls(3000, 150, 400, 3)
    calls(500, 150, 400, 2)
    ago = lambda days: (datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    pinned = {"model": "gpt-4.1", "baseline_from": ago(3.5), "baseline_to": ago(2.5)}
    assert send(server, "/drift/check", pinned)[1]["severity"] == "normal"
    assert server.get("/api/v1/drift/incidents", status="open")["incidents"] == []
    assert len(server.get("/api/v1/drift/incidents", status="resolved")["incidents"]) == 2
    assert server.get("/drift/summary")["open_incidents"] == 0
    status, answer = send(server, "/drift/check", {"baseline_from": "then"})
    assert (status, "then" in answer["error"]["message"]) == (400, True)


def test_the_terminal_says_the_same(server, tmp_path):
    usage(server, organization="cli", team="terminal", input_tokens=1_000_000)

    def run(*arguments, code=0):
        done = subprocess.run([os.environ["OBSERVATORY_BIN"], *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == code, (done.stdout, done.stderr)
        return done.stdout + done.stderr

    at = ["--url", f"http://{server.endpoints['ui']}"]
    out = run("cost", "report", "--by", "team,model", "--month", "--where", "organization=cli", *at)
    assert "terminal" in out and "gpt-4o-mini" in out and "total $0.15 over 1 requests" in out
    assert "budget-of-cli" in run("budget", "set", "Budget of CLI", "--limit", "0.1", "--scope", "organization=cli", *at)
    assert "limit_exceeded" in run("budget", "list", *at)
    refusal = run("budget", "check", "--provider", "openai", "--model", "gpt-4o", "--input-tokens", "9", "--scope", "organization=cli", *at, code=1)
    assert 'budget "Budget of CLI"' in refusal
    run("budget", "delete", "budget-of-cli", *at)
    assert "not applied" in run("cost", "reprice", "--month", *at)
    run("cost", "reprice", *at, code=2)
    assert "critical" in run("drift", "check", "--model", "gpt-4.1", *at, code=1)
    assert "resolved" in run("drift", "incidents", *at)
    invoice = tmp_path / "invoice.csv"
    invoice.write_text(f"date,model,cost\n{TODAY},gpt-99,12\n")
    assert "missing_in_ledger" in run("cost", "reconcile", str(invoice), "--provider", "openai", *at, code=1)
    # Without a server: the book that the program carries.
    out = run("price", "calc", "--provider", "anthropic", "--model", "claude-sonnet-4-5", "--input", "1000", "--cache-write", "1000", "--output-tokens", "1000")
    assert "$0.02175" in out
    assert "unpriced" in run("price", "calc", "--provider", "openai", "--model", "gpt-99", code=1)
    table = tmp_path / "prices.csv"
    table.write_text("provider,model,input,output\nopenai,gpt-99,1,2\n")
    run("price", "import", str(table), "--from", "csv", "--version", "mine", "--out", str(tmp_path / "mine.json"))
    out = run("price", "--file", str(tmp_path / "mine.json"), "calc", "--provider", "openai", "--model", "gpt-99", "--input", "1000000")
    assert "$1" in out and "mine/openai/gpt-99" in out


def test_the_openapi_document_is_valid_and_names_what_is_served(server):
    from openapi_spec_validator import validate

    document = server.get("/api/v1/openapi.json")
    validate(document)
    for path, methods in document["paths"].items():
        for method in methods:
            request = urllib.request.Request(
                f"http://{server.endpoints['ui']}{path.replace('{id}', 'nobody')}",
                data=b"[]" if method in ("post", "put") else None,
                method=method.upper(),
                headers={"Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request) as answer:
                    status, body = answer.status, answer.read()
            except urllib.error.HTTPError as e:
                status, body = e.code, e.read()
            # The page answers what no API serves; those paths must not be among these.
            assert status != 405 and b"<html" not in body, (path, method, status)
            if status == 404:
                assert json.loads(body)["error"]["code"] == "NOT_FOUND", (path, method)
    # … and nothing is served that it leaves out.
    import pathlib
    import re

    source = pathlib.Path(__file__).parents[2] / "crates/obs-server/src/money"
    routes = {r for f in source.glob("*.rs") for r in re.findall(r'\.route\(\s*"(/api/v1/[^"]+)"', f.read_text())}
    assert routes - {"/api/v1/openapi.json"} <= set(document["paths"])
