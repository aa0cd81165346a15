"""Two instances that share a store: each notification once, silences everywhere, and neither the
death of one nor that of the store keeps a page back."""

import collections
import json
import subprocess
import time
import urllib.request

import pytest
from postgres import Postgres
from receiving import Receiver
from running import until
from test_alertmanager import Alerting, alert, iso, post_alerts

CONFIG = """
route: {receiver: r, group_by: [alertname], group_wait: 1s, group_interval: 2s, repeat_interval: 1h}
receivers: [{name: r, webhook_configs: [{url: 'URL/hook'}]}]
"""


@pytest.fixture
def store():
    p = Postgres()
    yield p
    p.remove()


class Pair:
    def __init__(self, folder, store, script=None):
        self.receiver = Receiver(script)
        self.folder, self.store = folder, store
        self.instances = [self.start("one"), self.start("two")]
        until(lambda: all(len(self.peers(i)) == 2 for i in self.instances))

    def start(self, name):
        (self.folder / name / "data" / "endpoints.json").unlink(missing_ok=True)
        config = CONFIG.replace("URL", self.receiver.url)
        extra = f"control: {{postgres: '{self.store.address}', name: {name}}}\n"
        return Alerting(self.folder / name, config, extra)

    @staticmethod
    def peers(instance):
        return instance.get("/api/v2/status", "alertmanager")["cluster"]["peers"]

    def heard(self):
        """What the receiver was told: (alert, status) → how often."""
        told = [json.loads(r["body"]) for r in list(self.receiver.requests)]
        return collections.Counter((t["groupLabels"]["alertname"], t["status"]) for t in told)

    def post(self, alerts, *to):
        for n in to or (0, 1):
            post_alerts(self.instances[n].base, alerts)

    def stop(self):
        for i in self.instances:
            if i.process.poll() is None:
                i.stop()


@pytest.fixture
def pair(tmp_path, store):
    p = Pair(tmp_path, store)
    yield p
    p.stop()


def was_told(instance, name):
    groups = instance.get("/api/v1/alerting/groups")["groups"]
    return any(g["labels"] == {"alertname": name} and g["notified_ms"] for g in groups)


def state(instance):
    return instance.get("/api/v2/status", "alertmanager")["cluster"]["status"]


def metric(instance, name):
    with urllib.request.urlopen(f"http://{instance.endpoints['ui']}/metrics") as r:
        lines = r.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


def test_what_both_hear_is_told_once(pair):
    # Two replicas of a Prometheus send to both, as Alertmanager's manual has it.
    names = [f"a{i}" for i in range(40)]
    for _ in range(2):
        pair.post([alert(n, severity="page") for n in names])
    until(lambda: len(pair.heard()) == 40)
    pair.post([alert(n, ends=-1, severity="page") for n in names])
    until(lambda: len(pair.heard()) == 80)
    # The next flush of each finds nothing to tell.
    time.sleep(5)
    assert pair.heard() == {(n, s): 1 for n in names for s in ("firing", "resolved")}
    until(lambda: sum(metric(i, "alertmanager_notifications_total") for i in pair.instances) == 80)
    until(lambda: all(metric(i, "alertmanager_cluster_members") == 2 for i in pair.instances))
    assert all(metric(i, "observatory_shared_store_up") == 1 for i in pair.instances)


def test_what_one_hears_both_know(pair):
    one, two = pair.instances
    pair.post([alert("single", team="db")], 0)
    until(lambda: [a["labels"]["alertname"] for a in two.get("/api/v2/alerts", "alertmanager")] == ["single"])
    until(lambda: pair.heard())
    # A silence made at the one mutes at the other, and ends there.
    amtool = ["amtool", f"--alertmanager.url={two.base}"]
    made = subprocess.run(
        [*amtool, "silence", "add", "team=db", "--comment=c", "--author=a", "--duration=1h"],
        capture_output=True, text=True, check=True,
    )
    silence = made.stdout.strip()
    until(lambda: [s["id"] for s in one.get("/api/v2/silences", "alertmanager")] == [silence])
    until(lambda: one.get("/api/v2/alerts", "alertmanager")[0]["status"]["silencedBy"] == [silence])
    # Who is on it is known at both.
    id = one.get("/api/v2/alerts", "alertmanager")[0]["fingerprint"]
    body = json.dumps({"fingerprint": id, "owner": "ann", "note": "n"}).encode()
    assert one.post("/api/v1/alerting/acknowledge", body)[0] == 200

    def owner(instance):
        return (instance.get("/api/v1/alerting/alerts")["alerts"][0].get("acknowledged") or {}).get("owner")

    until(lambda: owner(two) == "ann")
    assert two.post(f"/api/v1/alerting/acknowledge/{id}", method="DELETE")[0] == 200
    until(lambda: owner(one) is None)
    subprocess.run([*amtool, "silence", "expire", silence], check=True)
    until(lambda: one.get("/api/v2/alerts", "alertmanager")[0]["status"]["state"] == "active")
    shown = subprocess.run([*amtool, "cluster", "show"], capture_output=True, text=True, check=True).stdout
    assert "ready" in shown and "two" in shown, shown
    assert pair.heard() == {("single", "firing"): 1}


def test_the_death_of_one_keeps_nothing_back(tmp_path, store):
    # The receiver hangs: whoever is first is at it when it is killed.
    is_slow = [True]

    def script(_path, _n):
        if is_slow[0]:
            time.sleep(60)
        return 200, {}, b"ok"

    pair = Pair(tmp_path, store, script)
    pair.post([alert("held")])
    until(lambda: len(pair.receiver.requests) == 1)
    time.sleep(3)
    assert len(pair.receiver.requests) == 1, "both are at it"
    is_slow[0] = False
    holder = ["one", "two"].index(store.ask("SELECT name FROM observatory_claims c JOIN observatory_instances i ON i.id = holder"))
    pair.instances[holder].kill()
    # The other takes over once the dead one has not been heard of for 15 s.
    until(lambda: len(pair.receiver.requests) == 2, 30)
    # What the dead one would have heard, the living one tells.
    pair.post([alert("held", ends=-1)], 1 - holder)
    until(lambda: pair.heard()["held", "resolved"] == 1)
    # It comes back, and repeats nothing.
    pair.instances[holder] = pair.start(["one", "two"][holder])
    pair.post([alert("later")])
    until(lambda: pair.heard()["later", "firing"] == 1)
    time.sleep(4)
    assert pair.heard() == {("held", "firing"): 2, ("held", "resolved"): 1, ("later", "firing"): 1}
    pair.stop()


def test_the_death_of_the_store_keeps_nothing_back(pair, store):
    one, two = pair.instances
    pair.post([alert("before")])
    until(lambda: pair.heard()["before", "firing"] == 1)
    # A restart of the store is no reason to tell things twice.
    store.stop()
    pair.post([alert("meanwhile")])
    time.sleep(3)
    store.start()
    until(lambda: pair.heard()["meanwhile", "firing"] == 1)
    until(lambda: all(state(i) == "ready" for i in pair.instances))
    # Both know that it was told.
    until(lambda: all(was_told(i, "meanwhile") for i in pair.instances))
    # Without it each tells by itself: rather twice than never.
    store.stop()
    until(lambda: all(state(i) == "settling" for i in pair.instances))
    pair.post([alert("alone")], 1)
    until(lambda: pair.heard()["alone", "firing"] == 1, 30)
    silence = {
        "matchers": [{"name": "alertname", "value": "x", "isRegex": False}],
        "startsAt": iso(0), "endsAt": iso(600), "createdBy": "a", "comment": "c",
    }
    status, made = one.post("/api/v2/silences", json.dumps(silence).encode(), "alertmanager")
    assert status == 200
    store.start()
    until(lambda: [s["id"] for s in two.get("/api/v2/silences", "alertmanager")] == [made["silenceID"]], 30)
    until(lambda: len(one.get("/api/v2/alerts", "alertmanager")) == 3)
    pair.post([alert(n, ends=-1) for n in ("before", "meanwhile", "alone")])
    until(lambda: sum(n for (_, s), n in pair.heard().items() if s == "resolved") == 3)
    time.sleep(4)
    assert pair.heard() == {(n, s): 1 for n in ("before", "meanwhile", "alone") for s in ("firing", "resolved")}


def test_the_password_stays_where_it_is(pair, store):
    one = pair.instances[0]
    store.stop()
    until(lambda: state(one) == "settling")
    for path in ("/api/v1/status/config", "/api/v2/status", "/api/v1/status/flags"):
        listener = "alertmanager" if "v2" in path else "prometheus"
        with urllib.request.urlopen(f"http://{one.endpoints[listener]}{path}") as r:
            assert store.PASSWORD not in r.read().decode(), path
    store.start()
    until(lambda: state(one) == "ready")


def test_a_wrong_address_is_refused_at_the_start(tmp_path):
    (tmp_path / "o.yaml").write_text("control: {postgres: 'mysql://u:canary@h/db'}\n")
    from running import BINARY

    done = subprocess.run([BINARY, "check", "config", str(tmp_path / "o.yaml")], capture_output=True, text=True)
    assert done.returncode != 0
    assert "control.postgres" in done.stderr + done.stdout
    assert "canary" not in done.stderr + done.stdout
