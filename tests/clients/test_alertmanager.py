"""Alerts to people: the same requests as Debian's Alertmanager, its command line, every receiver,
and what must not be lost."""

import datetime
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from receiving import MailServer, Receiver, parsed
from running import BINARY, Server, free_port, until

TELEGRAM = b'{"ok":true,"result":{"message_id":1,"date":1,"chat":{"id":-12,"type":"group"},"text":"x"}}'


def answers(path, _n):
    if path.startswith("/wechat/"):
        return 200, {"Content-Type": "application/json"}, b'{"errcode":0,"access_token":"wt"}'
    if path.startswith("/telegram"):
        return 200, {"Content-Type": "application/json"}, TELEGRAM
    return 200, {}, b"ok"


def iso(seconds):
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=seconds)
    return at.isoformat().replace("+00:00", "Z")


def post_alerts(base, alerts):
    body = json.dumps(alerts).encode()
    request = urllib.request.Request(base + "/api/v2/alerts", data=body)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


def alert(name, ends=300, starts=-60, annotations=None, **labels):
    return {
        "labels": {"alertname": name, **labels},
        "annotations": annotations or {},
        "startsAt": iso(starts),
        "endsAt": iso(ends),
        "generatorURL": "http://g/?x=1&y=2",
    }


class Alerting(Server):
    """A server with an alertmanager.yml that may reach receivers on this machine."""

    def __init__(self, directory, config, extra="", keep=None):
        directory.mkdir(exist_ok=True)
        (directory / "am.yml").write_text(config)
        (directory / "observatory.yaml").write_text(
            "alertmanager: {config_file: am.yml, external_url: 'http://am.example'}\n"
            f"outbound: {{allow: [127.0.0.1]}}\n{extra}"
        )
        super().__init__(keep or directory / "data", "--config", str(directory / "observatory.yaml"))
        self.base = "http://" + self.endpoints["alertmanager"]

    def noted(self, n):
        """Waits until `n` notifications of this process are on disk: a kill before that repeats one."""
        return until(lambda: len(self.get("/api/v1/alerting/receivers")["recent"]) >= n)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)


# The kinds that Alertmanager 0.25 has, with every feature that changes what is sent.
KINDS = """
- name: all
  webhook_configs: [{url: 'URL/webhook'}, {url: 'URL/one', max_alerts: 1}]
  pagerduty_configs:
  - routing_key: rk
    url: 'URL/pagerduty'
    severity: '{{ .CommonLabels.severity }}'
    class: c
    links: [{href: 'http://x/{{ .GroupLabels.alertname }}', text: T}]
    images: [{src: 'http://i/', alt: a}]
    details: {more: '{{ .Status | title }}'}
  opsgenie_configs:
  - api_key: k
    api_url: 'URL/opsgenie/'
    tags: 'a, b'
    priority: P1
    responders: [{name: 't1,t2', type: teams}, {username: joe, type: user}]
    details: {x: '{{ .Status }}'}
    update_alerts: true
  slack_configs:
  - api_url: 'URL/slack'
    channel: '#c'
    send_resolved: true
    text: '{{ range .Alerts }}{{ .Annotations.summary }} {{ .StartsAt.Format "15:04" }} {{ end }}'
    fields: [{title: A, value: '{{ .Alerts.Firing | len }}'}, {title: B, value: b, short: true}]
    actions:
    - {type: button, text: Run, url: 'http://r/{{ .CommonLabels.severity }}', style: danger, confirm: {text: sure}}
    - {type: button, text: Press, name: n, value: v, confirm: {text: sure, ok_text: do}}
    link_names: true
    icon_emoji: ':fire:'
    mrkdwn_in: [text]
  victorops_configs:
  - {api_key: k, api_url: 'URL/victorops/', routing_key: '{{ .CommonLabels.severity }}', custom_fields: {f: '{{ .CommonLabels.a }}'}}
  sns_configs:
  - {api_url: 'URL/sns', topic_arn: 'arn:aws:sns:us-east-2:1:t', sigv4: {region: us-east-2, access_key: AK, secret_key: SK}, attributes: {k: v}}
  telegram_configs: [{bot_token: tok, api_url: 'URL/telegram', chat_id: -12}]
  wechat_configs: [{api_url: 'URL/wechat/', api_secret: s, corp_id: '{{ .Status }}', to_user: me, agent_id: '7', send_resolved: true}]
  discord_configs: [{webhook_url: 'URL/discord'}]
  webex_configs: [{api_url: 'URL/webex', room_id: r, http_config: {authorization: {credentials: c}}}]
- name: texts
  webhook_configs: [{url: 'URL/none'}]
  slack_configs:
  - api_url: 'URL/texts'
    send_resolved: true
    title: TEXT
"""

# Templates whose output must be the same to the byte.
TEXTS = [
    '{{ .GroupLabels.SortedPairs.Values | join " " }}',
    "{{ .CommonLabels }} {{ .GroupLabels.SortedPairs.Names }}",
    '{{ (.CommonLabels.Remove (stringSlice "severity")).Names }}',
    "{{ range $i, $a := .Alerts }}{{ $i }}={{ $a.Labels.instance }},{{ end }}",
    "{{ range .Alerts.Firing }}{{ .StartsAt.Unix }} {{ .EndsAt.IsZero }} {{ .Fingerprint }};{{ end }}",
    '{{ reReplaceAll "(\\\\w+) <(\\\\w+)>" "$2 $1" .GroupLabels.alertname }}|{{ match "^Hi" .GroupLabels.alertname }}',
    "{{ .CommonAnnotations.summary | toUpper | safeHtml }} {{ title .Status }}",
    "{{ .ExternalURL }} {{ .Receiver }} {{ len .Alerts }} {{ .CommonLabels.nothing }}|",
    '{{ with index .Alerts 0 }}{{ .Labels.job }} {{ .Annotations.desc }}{{ else }}none{{ end }}',
    '{{ if and (eq .Status "firing") (gt (.Alerts.Firing | len) 1) }}many{{ else }}few{{ end }}',
    '{{ define "own" }}<{{ . }}>{{ end }}{{ range .CommonLabels.SortedPairs }}{{ template "own" .Value }}{{ end }}',
    "{{ printf \"%q %-8s| %d\" .Status .Receiver (len .Alerts) }} {{ .GroupLabels.alertname | urlquery }}",
]


def config(url, text):
    route = (
        "route:\n  receiver: all\n  group_by: [alertname, a]\n  group_wait: 5s\n  group_interval: 2s\n"
        "  routes: [{receiver: texts, matchers: ['kind=text'], group_by: [alertname, a]}]\n"
    )
    kinds = KINDS.replace("URL", url).replace("TEXT", json.dumps(text))
    return f"{route}receivers:{kinds}"


def pair(ends, **more):
    note = {"summary": "It's <slow> + \"bad\"", "runbook": "http://r"}
    name = 'High <Latency> & "q"'
    # Younger than the group's wait: what is older Alertmanager tells at once, alone.
    return [
        alert(name, ends, -2, note, a="1", severity="critical", instance="b", job="z", **more),
        alert(name, ends, -1.5, {"summary": note["summary"], "desc": "häß"}, a="1", severity="critical", instance="a", job="y", **more),
    ]


class Debian:
    """Debian's Alertmanager."""

    def __init__(self, directory, text):
        directory.mkdir()
        (directory / "am.yml").write_text(text)
        port = free_port()
        self.base = f"http://127.0.0.1:{port}"
        with (directory / "log").open("w") as log:
            self.process = subprocess.Popen(
                [
                    "prometheus-alertmanager",
                    f"--config.file={directory}/am.yml",
                    f"--storage.path={directory}/data",
                    f"--web.listen-address=127.0.0.1:{port}",
                    "--cluster.listen-address=",
                    "--web.external-url=http://am.example",
                ],
                stdout=log,
                stderr=log,
            )
        for _ in range(200):
            try:
                urllib.request.urlopen(self.base + "/-/ready").read()
                return
            except OSError:
                time.sleep(0.05)
        raise AssertionError((directory / "log").read_text())

    def stop(self):
        self.process.terminate()
        self.process.wait(20)


def strip(request):
    """What must be the same: not the order of form fields, nor signatures."""
    return request["method"], request["path"], parsed(request)


def test_every_request_is_the_one_that_alertmanager_sends(tmp_path):
    """Both are told the same alerts; what arrives at the receivers is compared, firing and resolved."""
    text = " § ".join(TEXTS)
    ours, theirs = Receiver(answers), Receiver(answers)
    debian = Debian(tmp_path / "debian", config(theirs.url, text))
    server = Alerting(tmp_path / "ours", config(ours.url, text))
    first = pair(300) + pair(300, kind="text")
    ends = [{**a, "endsAt": iso(-1)} for a in first]
    prefixes = ["/webhook", "/one", "/pagerduty", "/opsgenie", "/slack", "/victorops", "/sns", "/telegram", "/wechat/message", "/discord", "/webex", "/texts"]
    for alerts, count in [(first, 1), (ends, 2)]:
        for base in [debian.base, server.base]:
            post_alerts(base, alerts)
        for prefix in prefixes:
            for receiver in [ours, theirs]:
                receiver.wait(prefix, count)
    time.sleep(0.3)
    debian.stop()
    server.stop()
    for prefix in [*prefixes, "/wechat/gettoken"]:
        got, want = ours.at(prefix), theirs.at(prefix)
        sent, expected = [strip(r) for r in got], [strip(r) for r in want]
        # Whole: what differs may be far into a text.
        assert sent == expected, f"{prefix}\n{sent}\n{expected}"
        for r in got:
            assert re.fullmatch(r"[0-9a-f]{32}", r["headers"]["idempotency-key"])
        for name in ["content-type", "authorization"]:
            if prefix != "/sns":
                assert [r["headers"].get(name) for r in got] == [r["headers"].get(name) for r in want]
    ours.stop()
    theirs.stop()


REST = """
route: {receiver: rest, group_by: [alertname], group_wait: 0s, group_interval: 1s}
receivers:
- name: rest
  pagerduty_configs: [{service_key: sk, url: 'URL/pagerduty-v1'}]
  pushover_configs: [{user_key: u, token: t, api_url: 'URL/pushover', sound: siren, html: true}]
  msteams_configs: [{webhook_url: 'URL/teams'}]
  msteamsv2_configs: [{webhook_url: 'URL/cards'}]
  rocketchat_configs: [{api_url: 'URL/rocket', token: tok, token_id: id, channel: '#c', send_resolved: true}]
  jira_configs:
  - {api_url: 'URL/jira', project: OPS, issue_type: Bug, labels: ['{{ .CommonLabels.team }}'], resolve_transition: Done, reopen_transition: Reopen, fields: {customfield_1: {value: x}}}
  email_configs:
  - {to: 'a@x.example, b@x.example', from: 'O <o@x.example>', smarthost: 'MAIL', require_tls: false, auth_username: me, auth_password: pass, text: 'plain {{ .Status }}', headers: {Subject: 'S {{ .Alerts | len }}', X-Own: y}, send_resolved: true}
"""


def test_kinds_that_are_newer_than_debians(tmp_path):
    state = {"issue": False, "done": False}

    def script(path, _n):
        def answer(v):
            return 200, {"Content-Type": "application/json"}, json.dumps(v).encode()

        if path == "/jira/search":
            status = {"statusCategory": {"key": "done" if state["done"] else "new"}}
            return answer({"issues": [{"key": "OPS-1", "fields": {"status": status}}] if state["issue"] else []})
        if path == "/jira/issue":
            state["issue"] = True
            return 201, {}, b'{"key":"OPS-1"}'
        if path.endswith("/transitions"):
            return answer({"transitions": [{"id": "7", "name": "Done"}]})
        if path.startswith("/rocket"):
            return answer({"success": True})
        return 200, {}, b"ok"

    receiver, mail = Receiver(script), MailServer("me", "pass")
    server = Alerting(tmp_path, REST.replace("URL", receiver.url).replace("MAIL", mail.address))
    note = {"summary": "<b>slow</b>"}
    post_alerts(server.base, [alert("High", annotations=note, severity="critical", team="core")])
    prefixes = ["/pagerduty-v1", "/pushover", "/teams", "/cards", "/rocket", "/jira/issue"]
    for p in prefixes:
        receiver.wait(p)
    key = parsed(receiver.at("/pagerduty-v1")[0])["incident_key"]
    assert re.fullmatch("[0-9a-f]{64}", key)
    v1 = parsed(receiver.at("/pagerduty-v1")[0])
    assert (v1["service_key"], v1["event_type"], v1["description"]) == ("sk", "trigger", "[FIRING:1] High (critical core)")
    assert v1["details"]["num_firing"] == "1" and "severity = critical" in v1["details"]["firing"]
    push = dict(urllib.parse.parse_qsl(receiver.at("/pushover")[0]["path"].split("?")[1], keep_blank_values=True))
    assert push == {
        "user": "u", "token": "t", "title": "[FIRING:1] High (critical core)", "sound": "siren", "html": "1", "url_title": "",
        "url": "http://am.example/#/alerts?receiver=rest", "priority": "2", "retry": "60", "expire": "3600", "message": push["message"],
    }
    assert push["message"].startswith("&lt;b&gt;slow&lt;/b&gt;\n\nAlerts Firing:")
    card = parsed(receiver.at("/teams")[0])
    assert (card["@context"], card["type"], card["themeColor"]) == ("http://schema.org/extensions", "MessageCard", "8C1A1A")
    assert card["title"] == card["summary"] == "[FIRING:1] High (critical core)" and "# Alerts Firing:" in card["text"]
    body = parsed(receiver.at("/cards")[0])["attachments"][0]["content"]
    assert body["version"] == "1.2" and body["body"][0]["color"] == "Attention" and body["msteams"] == {"width": "full"}
    rocket = receiver.at("/rocket")[0]
    assert rocket["path"] == "/rocket/api/v1/chat.postMessage"
    assert (rocket["headers"]["x-user-id"], rocket["headers"]["x-auth-token"]) == ("id", "tok")
    assert parsed(rocket)["channel"] == "#c" and parsed(rocket)["attachments"][0]["color"] == "red"
    fields = parsed(receiver.at("/jira/issue")[0])["fields"]
    assert fields["project"] == {"key": "OPS"} and fields["issuetype"] == {"name": "Bug"} and fields["priority"] == {"name": "High"}
    assert fields["labels"] == ["core", f"ALERT{{{key}}}"] and fields["customfield_1"] == {"value": "x"}
    for _ in range(200):
        if mail.mails:
            break
        time.sleep(0.05)
    got = mail.mails[0]
    assert got["auth"] == ("me", "pass") and got["to"] == ["a@x.example", "b@x.example"] and got["from"] == "o@x.example"
    text = got["data"].decode()
    assert "Subject: S 1\r\n" in text and "X-Own: y\r\n" in text and "multipart/alternative" in text and "plain firing" in text
    assert "&lt;b&gt;slow" in text.replace("=\r\n", "") and "<b>slow" not in text
    post_alerts(server.base, [alert("High", -1, annotations=note, severity="critical", team="core")])
    receiver.wait("/pagerduty-v1", 2)
    assert parsed(receiver.at("/pagerduty-v1")[1])["event_type"] == "resolve"
    moved = receiver.wait("/jira/issue/OPS-1/transitions", 2)
    assert [r["method"] for r in moved] == ["GET", "POST"] and parsed(moved[1]) == {"transition": {"id": "7"}}
    server.stop()
    receiver.stop()
    mail.stop()


HOOK = """
route: {receiver: hook, group_by: [alertname], group_wait: 0s, group_interval: 1s, repeat_interval: 1h}
receivers:
- name: hook
  webhook_configs: [{url: 'URL/hook'}]
"""


def test_temporary_refusals_are_tried_again_and_others_not(tmp_path):
    def script(path, n):
        if path == "/hook":
            return [(503, {}, b""), (429, {"Retry-After": "1"}, b""), (200, {}, b"")][min(n, 2)]
        return 404, {}, b"secret page"

    receiver = Receiver(script)
    text = HOOK + "- name: gone\n  webhook_configs: [{url: 'URL/gone'}]\n"
    text = text.replace("route: {", "route: {routes: [{receiver: gone, group_interval: 1h, matchers: ['to=gone']}], ")
    server = Alerting(tmp_path, text.replace("URL", receiver.url).replace("group_interval: 1s", "group_interval: 20s"))
    post_alerts(server.base, [alert("a"), alert("b", to="gone")])
    got = receiver.wait("/hook", 3)
    pauses = [b["at"] - a["at"] for a, b in zip(got, got[1:])]
    assert 0.4 < pauses[0] < 2 and 0.9 < pauses[1] < 3, pauses
    assert len({r["headers"]["idempotency-key"] for r in got}) == 1
    time.sleep(1)
    assert len(receiver.at("/gone")) == 1
    # The page says what is wrong, and nothing of what the answer held.
    [hook, gone] = server.get("/api/v1/alerting/receivers")["receivers"]
    assert hook["integrations"][0]["trouble"] is None
    assert gone["integrations"][0]["trouble"]["error"] == "unexpected status code 404"
    sent = {n["integration"]: n["error"] for n in server.get("/api/v1/alerting/receivers")["recent"]}
    assert sent == {"hook/webhook/0": None, "gone/webhook/0": "unexpected status code 404"}
    server.stop()
    receiver.stop()


def test_nothing_is_lost_or_said_twice_over_kill_9(tmp_path):
    """Alerts, silences, what was sent and what is still to be sent survive; the peer loses them."""
    receiver = Receiver()
    text = HOOK.replace("URL", receiver.url)
    server = Alerting(tmp_path, text)
    post_alerts(server.base, [alert("told", team="a"), alert("silenced", team="b")])
    receiver.wait("/hook", 2)
    server.noted(2)
    wish = {
        "matchers": [{"name": "team", "value": "b", "isRegex": False, "isEqual": True}],
        "startsAt": iso(0), "endsAt": iso(3600), "createdBy": "me", "comment": "why",
    }
    status, made = server.post("/api/v2/silences", json.dumps(wish).encode(), listener="alertmanager")
    assert status == 200
    server.kill()
    (tmp_path / "data/endpoints.json").unlink()
    server = Alerting(tmp_path, text)
    listed = server.get("/api/v2/alerts", listener="alertmanager")
    assert {a["labels"]["alertname"]: a["status"]["silencedBy"] for a in listed} == {"told": [], "silenced": [made["silenceID"]]}
    # Both groups were told: nobody is told again, though several intervals pass.
    time.sleep(2.5)
    assert len(receiver.at("/hook")) == 2
    # What ends is told still, in order; what is silenced is not.
    post_alerts(server.base, [alert("told", -1, team="a"), alert("silenced", -1, team="b")])
    got = receiver.wait("/hook", 3)
    time.sleep(1.5)
    assert len(receiver.at("/hook")) == 3
    assert (parsed(got[2])["status"], parsed(got[2])["groupLabels"]) == ("resolved", {"alertname": "told"})
    server.stop()
    receiver.stop()


def test_an_alert_that_ends_while_its_receiver_is_away_is_told_of_later(tmp_path):
    away = {"is": True}
    receiver = Receiver(lambda _p, _n: (503, {}, b"") if away["is"] else (200, {}, b""))
    text = HOOK.replace("URL", receiver.url)
    server = Alerting(tmp_path, text)
    post_alerts(server.base, [alert("short")])
    receiver.wait("/hook", 1)
    # An attempt must have been given up before it is owed.
    time.sleep(11)
    post_alerts(server.base, [alert("short", -1)])
    time.sleep(1)
    server.kill()
    (tmp_path / "data/endpoints.json").unlink()
    receiver.clear()
    away["is"] = False
    server = Alerting(tmp_path, text)
    got = receiver.wait("/hook", 2)
    assert [parsed(r)["status"] for r in got] == ["firing", "resolved"]
    assert parsed(got[0])["alerts"][0]["labels"] == {"alertname": "short"}
    server.stop()
    receiver.stop()


def amtool(server, *arguments, code=0):
    command = ["amtool", f"--alertmanager.url={server.base}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    return done.stdout


def test_amtool_works(tmp_path):
    routes = (
        "route:\n  receiver: all\n  group_by: [alertname]\n  routes:\n"
        "  - {receiver: db, matchers: ['team=\"db\"'], continue: true}\n  - {receiver: crit, matchers: ['severity=\"critical\"']}\n"
        "receivers: [{name: all}, {name: db, slack_configs: [{api_url: 'https://hooks.example/canary'}]}, {name: crit}]\n"
        "inhibit_rules: [{source_matchers: ['severity=\"critical\"'], target_matchers: ['severity=\"warning\"'], equal: [instance]}]\n"
    )
    server = Alerting(tmp_path, routes)
    amtool(server, "alert", "add", "disk", "severity=critical", "instance=a", "team=db", "--annotation=summary=full", "--generator-url=http://g")
    amtool(server, "alert", "add", "slow", "severity=warning", "instance=a")
    amtool(server, "alert", "add", "slow", "severity=warning", "instance=b")
    everything = amtool(server, "-o", "json", "alert", "query")
    # amtool leaves out what is suppressed.
    assert sorted(a["labels"]["instance"] for a in json.loads(everything)) == ["a", "b"]
    inhibited = json.loads(amtool(server, "-o", "json", "alert", "query", "--inhibited"))
    assert [a["labels"]["alertname"] for a in inhibited] == ["slow"]
    assert "disk" in amtool(server, "alert", "query", "severity=~crit.*", "instance!=b")
    assert amtool(server, "alert", "query", "-r", "db").count("disk") == 1
    first = amtool(server, "silence", "add", "alertname=slow", "instance=~b|c", "--author=me", "--comment=why", "--duration=2h").strip()
    assert re.fullmatch(r"[0-9a-f-]{36}", first)
    assert json.loads(amtool(server, "-o", "json", "alert", "query", "--silenced"))[0]["status"]["silencedBy"] == [first]
    assert first in amtool(server, "silence", "query") and amtool(server, "silence", "query", "-q", "alertname=other") == ""
    # (This amtool prints an address where the id should be.)
    amtool(server, "silence", "update", "--duration=4h", first)
    [updated] = json.loads(amtool(server, "-o", "json", "silence", "query"))
    assert updated["id"] == first and updated["endsAt"] > iso(3 * 3600)
    exported = amtool(server, "-o", "json", "silence", "query")
    amtool(server, "silence", "expire", first)
    assert amtool(server, "silence", "query", "-q") == ""
    assert first in amtool(server, "silence", "query", "--expired", "-q")
    amtool(server, "silence", "expire", "00000000-0000-0000-0000-000000000000", code=1)
    saved = tmp_path / "silences.json"
    saved.write_text(exported)
    imported = amtool(server, "silence", "import", "--force", str(saved)).strip()
    assert imported and imported != first
    shown = amtool(server, "config", "show")
    assert "receiver: all" in shown and "canary" not in shown
    assert 'severity="critical"' in amtool(server, "config", "routes", "show")
    found = amtool(server, "config", "routes", "test", "team=db", "severity=critical")
    assert found.strip() == "db,crit"
    amtool(server, "config", "routes", "test", "team=db", "--verify.receivers=all", code=1)
    (tmp_path / "am.yml").write_text(routes.replace("name: crit}]", "name: crit}, {name: fresh}]"))
    urllib.request.urlopen(urllib.request.Request(server.base + "/-/reload", data=b"")).read()
    assert {"name": "fresh"} in server.get("/api/v2/receivers", listener="alertmanager")
    server.stop()


def test_a_real_prometheus_sends_its_alerts(tmp_path):
    receiver = Receiver()
    server = Alerting(tmp_path / "am", HOOK.replace("URL", receiver.url))
    (tmp_path / "rules.yml").write_text(
        "groups: [{name: g, interval: 1s, rules: [{alert: Always, expr: vector(1), labels: {severity: page}, annotations: {summary: 'v {{ $value }}'}}]}]\n"
    )
    (tmp_path / "prometheus.yml").write_text(
        "global: {evaluation_interval: 1s, external_labels: {replica: a}}\nrule_files: [rules.yml]\n"
        f"alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{server.endpoints['alertmanager']}']}}]}}]}}\n"
    )
    process = subprocess.Popen(
        ["prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb", "--web.listen-address=127.0.0.1:0", "--rules.alert.resend-delay=1s"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    got = parsed(receiver.wait("/hook", 1, 40)[0])
    process.terminate()
    process.wait(20)
    assert got["alerts"][0]["labels"] == {"alertname": "Always", "replica": "a", "severity": "page"}
    assert got["commonAnnotations"] == {"summary": "v 1"}
    server.stop()
    receiver.stop()


def test_our_rules_reach_our_receivers_and_a_real_alertmanager(tmp_path):
    receiver, theirs = Receiver(), Receiver()
    debian = Debian(tmp_path / "debian", HOOK.replace("URL", theirs.url))
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours/rules.yml").write_text(
        "groups: [{name: g, interval: 1s, rules: [{alert: Always, expr: 'vector(1) > 0', labels: {severity: page}}]}]\n"
    )
    (tmp_path / "ours/prometheus.yml").write_text(
        f"rule_files: [rules.yml]\nalerting: {{alertmanagers: [{{static_configs: [{{targets: ['{debian.base[7:]}']}}]}}]}}\n"
    )
    server = Alerting(tmp_path / "ours", HOOK.replace("URL", receiver.url), "prometheus: {config_file: prometheus.yml}\n")
    for r in [receiver, theirs]:
        got = parsed(r.wait("/hook")[0])["alerts"][0]
        assert got["labels"] == {"alertname": "Always", "severity": "page"}
        assert "/graph?g0.expr=vector%281%29+%3E+0&g0.tab=1" in got["generatorURL"]
    server.stop()
    debian.stop()
    receiver.stop()
    theirs.stop()


def refused(server, path, body, listener="alertmanager", kind="application/json", method="POST"):
    request = urllib.request.Request(f"http://{server.endpoints[listener]}{path}", data=body, method=method)
    request.add_header("Content-Type", kind)
    with pytest.raises(urllib.error.HTTPError) as e:
        urllib.request.urlopen(request)
    return e.value.code, e.value.read().decode()


def test_what_is_wrong_is_refused_as_alertmanager_does(tmp_path):
    server = Alerting(tmp_path, "route: {receiver: n}\nreceivers: [{name: n}]\n")
    good, bad = alert("good"), {"labels": {}}
    code, text = refused(server, "/api/v2/alerts", json.dumps([good, bad]).encode())
    assert (code, "at least one label pair required" in text) == (400, True)
    # The good one was taken.
    assert [a["labels"]["alertname"] for a in server.get("/api/v2/alerts", listener="alertmanager")] == ["good"]
    assert refused(server, "/api/v2/alerts", b"{")[0] == 400
    assert refused(server, "/api/v2/alerts", b"[]", kind="text/plain")[0] == 415
    backwards = {**good, "startsAt": iso(10), "endsAt": iso(5)}
    assert "start time must be before end time" in refused(server, "/api/v2/alerts", json.dumps([backwards]).encode())[1]
    silence = {"matchers": [], "startsAt": iso(0), "endsAt": iso(60), "createdBy": "a", "comment": "b"}

    def try_silence(**change):
        return refused(server, "/api/v2/silences", json.dumps({**silence, **change}).encode())

    matcher = {"name": "a", "value": "b", "isRegex": False}
    assert try_silence() == (400, '"invalid silence: at least one matcher required"')
    assert try_silence(matchers=[{**matcher, "value": ".*", "isRegex": True}])[0] == 400
    assert try_silence(matchers=[matcher], endsAt=iso(-5), startsAt=iso(-9))[1] == '"failed to create silence: end time can\'t be in the past"'
    assert try_silence(matchers=[matcher], endsAt=iso(-5))[1] == '"failed to create silence: start time must be before end time"'
    assert try_silence(matchers=[matcher], id="nope") == (404, '"silence not found"')
    assert refused(server, "/api/v2/silence/nope", None, method="DELETE")[0] == 404
    assert refused(server, "/api/v2/alerts?filter=x", None, method="GET") == (400, '"bad matcher format: x"')
    assert refused(server, "/api/v2/alerts?active=maybe", None, method="GET")[0] == 422
    server.stop()


def run(*arguments, code=0):
    done = subprocess.run([BINARY, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, (done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_owners_previews_back_tests_and_tests_of_receivers(tmp_path):
    receiver = Receiver()
    server = Alerting(tmp_path, HOOK.replace("URL", receiver.url).replace("repeat_interval: 1h", "repeat_interval: 1s"))
    url = "http://" + server.endpoints["ui"]
    post_alerts(server.base, [alert("a", team="x")])
    receiver.wait("/hook", 2)
    [one] = server.get("/api/v1/alerting/alerts")["alerts"]
    assert run("alert", "ack", one["fingerprint"], "--owner", "ann", "--note", "on it", "--url", url).strip() == "acknowledged"
    time.sleep(1.2)
    receiver.clear()
    time.sleep(2.5)
    # Who is on it is not reminded; what is new is told all the same.
    assert receiver.at("/hook") == []
    assert "on it: ann" in run("alert", "list", "team=x", "--url", url)
    post_alerts(server.base, [alert("a", team="y")])
    receiver.wait("/hook", 1)
    body = {"matchers": [{"name": "team", "value": "x|z", "isRegex": True}]}
    status, seen = server.post("/api/v1/alerting/silences/preview", json.dumps(body).encode())
    assert status == 200 and [a["labels"]["team"] for a in seen["alerts"]] == ["x"]
    receiver.clear()
    assert run("alert", "test", "hook", "severity=info", "--url", url).strip() == "hook/webhook/0: delivered"
    assert parsed(receiver.at("/hook")[0])["commonLabels"] == {"alertname": "TestAlert", "severity": "info"}
    assert "there is no receiver" in run("alert", "test", "nobody", "--url", url, code=1)
    # A rule over history: a metric that is 1 for two of five minutes.
    now = int(time.time())
    lines = "".join(
        json.dumps({"s": 1}) and f"load {1 if 120 <= i < 240 else 0} {(now - 300 + i) * 1000}\n" for i in range(0, 300, 15)
    )
    points = [
        {"asInt": str(int(line.split()[1])), "timeUnixNano": line.split()[2] + "000000"} for line in lines.splitlines()
    ]
    metric = {"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": "load", "gauge": {"dataPoints": points}}]}]}]}
    assert server.post("/v1/metrics", json.dumps(metric).encode(), listener="otlp-http")[0] == 200
    text = run("alert", "backtest", "load > 0", "--for", "1m", "--start", now - 300, "--end", now, "--step", "15", "--url", url)
    assert text.startswith("would have fired 1 time ") and "{__name__" not in text
    server.stop()
    receiver.stop()


def test_messages_stay_away_from_this_machine_unless_allowed(tmp_path):
    receiver = Receiver()
    text = HOOK.replace("URL", receiver.url)
    server = Alerting(tmp_path, text)
    (tmp_path / "observatory.yaml").write_text("alertmanager: {config_file: am.yml}\n")
    server.stop()
    server = Server(tmp_path / "data", "--config", str(tmp_path / "observatory.yaml"))
    out = run("alert", "test", "hook", "--url", "http://" + server.endpoints["ui"], code=1)
    assert "outbound.allow" in out and receiver.requests == []
    server.stop()
    receiver.stop()


def test_a_broken_template_does_not_lose_the_page(tmp_path):
    receiver = Receiver()
    text = (
        "route: {receiver: s, group_wait: 0s}\nreceivers:\n- name: s\n  slack_configs:\n"
        "  - {api_url: 'URL/slack', title: '{{ template \"no.such\" . }}', text: '{{ range $i := 1000000000 }}{{ $i }}{{ end }}'}\n"
    )
    server = Alerting(tmp_path, text.replace("URL", receiver.url))
    post_alerts(server.base, [alert("Broken {{ .Status }}", severity="page")])
    got = parsed(receiver.wait("/slack")[0])["attachments"][0]
    assert got["title"].startswith("[FIRING:1] Broken {{ .Status }} (the template of this message failed: ")
    assert got["text"].startswith("[FIRING:1] Broken")
    server.stop()
    receiver.stop()


SECRETS = {"SLACK_WEBHOOK_URL": "http://slack/x", "PAGERDUTY_ROUTING_KEY": "k", "PAGERDUTY_SERVICE_KEY": "k", "PLATFORM_WEBHOOK_URL": "http://p/x"}

# Every receiver of the built-in route sets, and the labels of an alert that reaches it.
CHANNELS = {
    "storage": {
        "default": "x=y",
        "slack-database,slack-warnings": "severity=warning component=database",
        "pagerduty-database,slack-database,pagerduty-critical,slack-critical": "severity=critical component=database",
        "pagerduty-backup,slack-backup,pagerduty-critical,slack-critical": "severity=critical component=backup",
        "slack-info,email-ops": "severity=info component=cache",
    },
    "ai-platform": {
        "slack-default": "severity=warning component=gateway",
        "slack-critical": "severity=critical component=api",
        "slack-critical,slack-gpu": "severity=critical component=gpu",
        "slack-drift": "severity=warning component=drift-monitor",
        "slack-critical,slack-budget": "severity=critical component=memory-budget",
        "slack-critical,slack-infrastructure": "severity=critical component=infrastructure",
    },
    "cost-ops": {"default": "x=y", "critical": "severity=critical", "warning": "severity=warning"},
    "optimizer": {
        "default": "x=y",
        "database-oncall,infrastructure-team": "severity=critical component=database",
        "security-oncall": "severity=critical component=security",
        "pagerduty-critical,platform-team": "severity=critical component=api",
        "ml-team,slack-warnings": "severity=warning component=llm",
        "infrastructure-team,slack-warnings": "severity=warning component=kubernetes",
        "email-info": "severity=info",
    },
}


@pytest.mark.parametrize("name", CHANNELS)
def test_every_channel_of_the_built_in_route_sets_is_reached(name):
    env = {**os.environ, **SECRETS}
    reached = set()
    for receivers, labels in CHANNELS[name].items():
        command = [BINARY, "test", "route", f"profile:{name}", *labels.split(), "--expect", receivers]
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        assert done.returncode == 0, (labels, done.stdout, done.stderr)
        reached.update(receivers.split(","))
    done = subprocess.run([BINARY, "check", "alertmanager", f"profile:{name}", "--output", "json"], capture_output=True, text=True, env=env)
    [report] = json.loads(done.stdout)["files"]
    assert done.returncode == 0 and set(report["receivers"]) == reached and report["findings"] == []


def test_routes_that_no_alert_reaches_are_found(tmp_path):
    """The trees of the origins, with the routes by component behind those by severity."""
    file = tmp_path / "am.yml"
    file.write_text(
        "route:\n  receiver: d\n  routes:\n"
        "  - {receiver: crit, matchers: ['severity=\"critical\"']}\n  - {receiver: warn, matchers: ['severity=\"warning\"']}\n  - {receiver: info, matchers: ['severity=\"info\"']}\n"
        "  - {receiver: backup, matchers: ['component=\"backup\"']}\n  - {receiver: dead, matchers: ['severity=\"info\"', 'component=\"x\"']}\n"
        "receivers: [{name: d}, {name: crit}, {name: warn}, {name: info}, {name: backup}, {name: dead}]\n"
    )
    text = run("check", "alertmanager", file, "--rules", "pack:storage", code=1)
    assert 'unreachable route: route {component="x",severity="info"} to "dead"' in text
    assert 'no rule reaches it: route {component="backup"} to "backup": alert "BackupFailed" matches it and goes to crit' in text
    file.write_text("route: {receiver: d}\nreceivers: [{name: d, webhook_configs: [{url: 'http://x/', http_config: {basic_aut: {}}}]}]\n")
    assert 'unknown key "basic_aut"; did you mean "basic_auth"?' in run("check", "alertmanager", file, code=1)
    file.write_text("route: {receiver: nobody}\nreceivers: [{name: d}]\n")
    assert 'undefined receiver "nobody" used in route' in run("check", "alertmanager", file, code=1)
    file.write_text("route:\n  receiver: d\n  group_wiat: 1s\nreceivers: [{name: d}]\n")
    assert f"{file}:3:3: unknown key \"group_wiat\"; did you mean \"group_wait\"?" in run("check", "alertmanager", file, code=1)


def test_calls_of_grafanas_data_source(tmp_path):
    """What Grafana asks an Alertmanager of implementation "Prometheus", in its order and forms."""
    server = Alerting(tmp_path, "route: {receiver: ops, group_by: [team]}\nreceivers: [{name: ops}]\n")
    post_alerts(server.base, [alert("a", team="x"), alert("b", team="x"), alert("c", team="y")])

    def call(path, body=None, method="GET"):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(server.base + path, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
            return json.loads(text) if text else None

    status = call("/api/v2/status")
    assert set(status) == {"cluster", "config", "uptime", "versionInfo"} and status["cluster"]["status"] == "disabled"
    groups = call("/api/v2/alerts/groups")
    assert [(g["labels"], g["receiver"], len(g["alerts"])) for g in groups] == [
        ({"team": "x"}, {"name": "ops"}, 2),
        ({"team": "y"}, {"name": "ops"}, 1),
    ]
    assert set(groups[0]["alerts"][0]) == {
        "annotations", "endsAt", "fingerprint", "generatorURL", "labels", "receivers", "startsAt", "status", "updatedAt",
    }
    wish = {
        "matchers": [{"name": "team", "value": "x", "isRegex": False, "isEqual": True}],
        "startsAt": iso(0), "endsAt": iso(7200), "createdBy": "grafana", "comment": "made by hand",
    }
    made = call("/api/v2/silences", wish, "POST")
    query = "/api/v2/alerts?filter=team%3D%22x%22&silenced=true&active=false&inhibited=false"
    assert [a["status"]["silencedBy"] for a in call(query)] == [[made["silenceID"]]] * 2
    assert call("/api/v2/alerts/groups?silenced=false&inhibited=false&active=true")[0]["labels"] == {"team": "y"}
    [silence] = call("/api/v2/silences")
    assert silence["status"] == {"state": "active"} and silence["id"] == made["silenceID"]
    changed = call("/api/v2/silences", {**wish, "id": made["silenceID"], "matchers": [{**wish["matchers"][0], "value": "y"}]}, "POST")
    assert changed["silenceID"] != made["silenceID"]
    assert call(f"/api/v2/silence/{made['silenceID']}")["status"] == {"state": "expired"}
    call(f"/api/v2/silence/{changed['silenceID']}", method="DELETE")
    assert [s["status"]["state"] for s in call("/api/v2/silences")] == ["expired", "expired"]
    server.stop()


def test_objectives_become_rules(tmp_path):
    (tmp_path / "slos.yml").write_text(
        "slos:\n- name: api\n  objective: 99.9\n  window: 30d\n"
        "  sli: {bad: 'sum(rate(bad_total[$window]))', total: 'sum(rate(all_total[$window]))'}\n"
    )
    shown = run("check", "slo", tmp_path / "slos.yml")
    assert "record slo:sli_error:ratio_rate30d: " in shown and "alert SLOErrorBudgetBurn: " in shown
    server = Alerting(tmp_path, "route: {receiver: n}\nreceivers: [{name: n}]\n", "prometheus: {slo_files: [slos.yml]}\n")
    groups = server.get("/api/v1/rules", listener="prometheus")["data"]["groups"]
    burns = [r for g in groups for r in g["rules"] if r["name"] == "SLOErrorBudgetBurn"]
    assert [g["name"] for g in groups] == ["slo:api", "slo:api:long"]
    assert [(r["labels"]["long"], r["labels"]["severity"]) for r in burns] == [("1h", "critical"), ("6h", "critical"), ("1d", "warning"), ("3d", "warning")]
    server.stop()
    (tmp_path / "slos.yml").write_text("slos: [{name: x, objective: 101, window: 30d, sli: {latency: l, threshold: 1}}]\n")
    assert "objective is a percentage above 0 and below 100" in run("check", "slo", tmp_path / "slos.yml", code=1)


def test_slack_messages_of_a_group_are_changed_in_place(tmp_path):
    """With a bot's token: the first message is posted, later ones change it, the next episode posts anew."""
    answer = json.dumps({"ok": True, "ts": "17.42", "channel": "C9"}).encode()
    receiver = Receiver(lambda _p, _n: (200, {"Content-Type": "application/json; charset=utf-8"}, answer))
    text = (
        "route: {receiver: s, group_by: [alertname], group_wait: 0s, group_interval: 1s}\nreceivers:\n- name: s\n  slack_configs:\n"
        f"  - api_url: '{receiver.url}/api/chat.postMessage'\n    channel: '#ops'\n    update_message: true\n    send_resolved: true\n"
        "    http_config: {authorization: {credentials: xoxb-1}}\n"
    )
    server = Alerting(tmp_path, text)
    post_alerts(server.base, [alert("x", i="1")])
    receiver.wait("/api/", 1)
    post_alerts(server.base, [alert("x", i="2")])
    receiver.wait("/api/", 2)
    server.noted(2)
    server.kill()
    (tmp_path / "data/endpoints.json").unlink()
    server = Alerting(tmp_path, text)
    post_alerts(server.base, [alert("x", -1, i="1"), alert("x", -1, i="2")])
    receiver.wait("/api/", 3)
    time.sleep(1.2)
    post_alerts(server.base, [alert("x", i="1")])
    got = receiver.wait("/api/", 4)
    assert [r["path"].rsplit("/", 1)[1] for r in got] == ["chat.postMessage", "chat.update", "chat.update", "chat.postMessage"]
    assert [(b.get("ts"), b["channel"]) for b in map(parsed, got)] == [(None, "#ops"), ("17.42", "C9"), ("17.42", "C9"), (None, "#ops")]
    assert {r["headers"]["authorization"] for r in got} == {"Bearer xoxb-1"}
    server.stop()
    receiver.stop()


def test_a_receiver_that_hangs_delays_no_other(tmp_path):
    def script(path, _n):
        if path == "/slow":
            time.sleep(30)
        return 200, {}, b""

    receiver = Receiver(script)
    text = (
        "route: {receiver: fast, group_by: [alertname], group_wait: 0s, routes: [{receiver: slow, matchers: [to=slow]}]}\n"
        f"receivers: [{{name: fast, webhook_configs: [{{url: '{receiver.url}/fast'}}]}}, {{name: slow, webhook_configs: [{{url: '{receiver.url}/slow'}}]}}]\n"
    )
    server = Alerting(tmp_path, text)
    post_alerts(server.base, [alert(f"s{i}", to="slow") for i in range(50)])
    receiver.wait("/slow", 8)
    begun = time.time()
    post_alerts(server.base, [alert(f"f{i}") for i in range(50)])
    got = receiver.wait("/fast", 50)
    assert max(r["at"] for r in got) - begun < 1.5
    # Of one receiver only so many at once.
    assert len(receiver.at("/slow")) == 8
    server.kill()
    receiver.stop()


def random_tree(dice, depth, names):
    route = {"receiver": names(), "continue": dice.random() < 0.3}
    values = ["x", "y", "z", ""]
    matchers = []
    for _ in range(dice.randrange(1, 3)):
        op = dice.choice(["=", "!=", "=~", "!~"])
        value = dice.choice(values) if op in ("=", "!=") else dice.choice(["x|y", ".+", "z.*", "[xy]"])
        matchers.append(f'{dice.choice("abc")}{op}"{value}"')
    route["matchers"] = matchers
    if depth:
        route["routes"] = [random_tree(dice, depth - 1, names) for _ in range(dice.randrange(0, 4))]
    return route


def test_random_routing_trees_route_as_amtool_says(tmp_path):
    dice, n = random.Random(8), 0
    for _ in range(40):
        made = []

        def name():
            made.append(f"r{len(made)}")
            return made[-1]

        root = {"receiver": name(), "routes": [random_tree(dice, 2, name) for _ in range(4)]}
        file = tmp_path / "am.yml"
        file.write_text(json.dumps({"route": root, "receivers": [{"name": m} for m in made]}))
        for _ in range(3):
            labels = [f"{label}={dice.choice('xyz')}" for label in "abc" if dice.random() < 0.7] or ["d=1"]
            command = ["amtool", "config", "routes", "test", f"--config.file={file}", *labels]
            want = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            got = json.loads(run("test", "route", file, *labels, "--output", "json"))
            assert ",".join(got["receivers"]) == want, (file.read_text(), labels)
            n += len(got["receivers"])
    assert n > 100


def test_secrets_stay_where_they_are(tmp_path):
    """Forty-one canaries in every field that holds a secret; what fails, is asked and is logged names none."""
    receiver = Receiver(lambda _p, _n: (500, {}, b"canaryanswer"))
    u, count = receiver.url.replace("http://", "http://canaryuser:canarypass@"), iter(range(99))

    def canary():
        return f"canary{next(count)}"

    (tmp_path / "secret").write_text(canary())
    http = f"http_config: {{basic_auth: {{username: me, password: {canary()}}}}}"
    bearer = f"http_config: {{authorization: {{credentials: {canary()}}}}}"
    oauth = f"http_config: {{oauth2: {{client_id: me, client_secret: {canary()}, token_url: '{u}/{canary()}'}}}}"
    text = f"""
global:
  slack_api_url: '{u}/{canary()}'
  smtp_smarthost: '127.0.0.1:1'
  smtp_from: a@x.example
  smtp_auth_username: me
  smtp_auth_password: {canary()}
  opsgenie_api_key: {canary()}
  victorops_api_key: {canary()}
route: {{receiver: all, group_wait: 0s, group_interval: 1s}}
receivers:
- name: all
  webhook_configs: [{{url: '{u}/{canary()}?token={canary()}', {http}}}, {{url: '{u}/x', {oauth}}}, {{url_file: secret}}]
  slack_configs: [{{channel: c}}, {{channel: c, api_url: '{u}/{canary()}', {bearer}}}]
  pagerduty_configs: [{{routing_key: {canary()}, url: '{u}/{canary()}'}}, {{service_key: {canary()}, url: '{u}/x'}}]
  opsgenie_configs: [{{api_url: '{u}/x'}}]
  victorops_configs: [{{routing_key: {canary()}, api_url: '{u}/x'}}]
  pushover_configs: [{{user_key: {canary()}, token: {canary()}, api_url: '{u}/x'}}]
  telegram_configs: [{{bot_token: {canary()}, chat_id: 1, api_url: '{u}/x'}}]
  discord_configs: [{{webhook_url: '{u}/{canary()}'}}]
  msteams_configs: [{{webhook_url: '{u}/{canary()}'}}]
  msteamsv2_configs: [{{webhook_url: '{u}/{canary()}'}}]
  sns_configs: [{{api_url: '{u}/x', phone_number: '1', sigv4: {{region: r, access_key: {canary()}, secret_key: {canary()}}}}}]
  rocketchat_configs: [{{channel: c, token: {canary()}, token_id: {canary()}, api_url: '{u}/x'}}]
  email_configs: [{{to: b@x.example, require_tls: false}}]
"""
    log = tmp_path / "log"
    with log.open("w") as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            server = Alerting(tmp_path, text)
        finally:
            os.dup2(saved, 2)
            os.close(saved)
    post_alerts(server.base, [alert("x")])
    receiver.wait("/", 15)
    ui = "http://" + server.endpoints["ui"]
    shown = run("alert", "test", "all", "--url", ui, code=1)
    for path in ["/alertmanager/api/v2/status", "/api/v1/alerting/receivers", "/alertmanager/api/v2/alerts", "/metrics", "/api/v1/alerting/groups"]:
        with urllib.request.urlopen(ui + path) as answer:
            shown += answer.read().decode()
    with urllib.request.urlopen(f"http://{server.endpoints['prometheus']}/api/v1/status/config") as answer:
        shown += answer.read().decode()
    server.stop()
    shown += log.read_text() + run("check", "alertmanager", tmp_path / "am.yml", "--output", "json")
    # The configuration is shown, and still one that can be read.
    assert "smtp_auth_password: <secret>" in shown and "unexpected status code 500" in shown
    assert not re.findall(r"canary\w*", shown)
    receiver.stop()


POLICY = """
route:
  receiver: hook
  group_by: [g]
  group_wait: 500ms
  group_interval: 1s
  repeat_interval: 1h
  routes:
  - {receiver: quiet, matchers: ['kind=q'], continue: true}
receivers:
- name: hook
  webhook_configs: [{url: 'URL/hook'}]
- name: quiet
  webhook_configs: [{url: 'URL/quiet', send_resolved: false}]
inhibit_rules:
- {source_matchers: [severity=critical], target_matchers: [severity=warning], equal: [g]}
"""


def test_forty_groups_are_told_the_same_in_the_same_order(tmp_path):
    """Alerts come and go at random, inhibit each other and are silenced for a while, here and there."""
    dice = random.Random(5)
    receivers = [Receiver(), Receiver()]
    debian = Debian(tmp_path / "debian", POLICY.replace("URL", receivers[0].url))
    server = Alerting(tmp_path / "ours", POLICY.replace("URL", receivers[1].url))
    bases, fires, silences = [debian.base, server.base], {}, []

    def call(base, path, body, method):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(base + path, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as answer:
            return answer.read()

    for step in range(6):
        batch = []
        for g in range(40):
            for name, severity in [("c", "critical"), ("w", "warning"), ("i", "info")]:
                if dice.random() < 0.35:
                    fires[g, name] = not fires.get((g, name))
                    kind = {"kind": "q"} if g % 2 else {}
                    ends, starts = (600, 0) if fires[g, name] else (-0.01, -0.5)
                    batch.append(alert(name, ends, starts, g=str(g), severity=severity, **kind))
        for base in bases:
            post_alerts(base, batch)
        if step == 2:
            matcher = {"name": "g", "value": "1.*", "isRegex": True, "isEqual": True}
            wish = {"matchers": [matcher], "startsAt": iso(0), "endsAt": iso(600), "createdBy": "a", "comment": "c"}
            silences = [json.loads(call(b, "/api/v2/silences", wish, "POST"))["silenceID"] for b in bases]
        if step == 4:
            for base, silence in zip(bases, silences):
                call(base, f"/api/v2/silence/{silence}", None, "DELETE")
        # Longer than any group waits, so that both see each state.
        time.sleep(3)
    debian.stop()
    server.stop()
    told = []
    for receiver in receivers:
        groups = {}
        for request in receiver.requests:
            body = parsed(request)
            alerts = sorted((a["labels"]["alertname"], a["status"]) for a in body["alerts"])
            groups.setdefault((request["path"], body["groupKey"]), []).append((body["status"], alerts))
        told.append(groups)
        receiver.stop()
    assert told[1] == told[0]
    assert sum(map(len, told[0].values())) > 90
