"""The binary, running on free ports."""

import itertools
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request

BINARY = os.environ["OBSERVATORY_BIN"]


# Below the ports that the system gives to connections: one of those can take a port between its choice and its use,
# and who asks such a port before anybody listens may even be connected to itself.
PORTS = itertools.cycle(range(20_000, 32_000))
for _ in range(os.getpid() % 12_000):
    next(PORTS)


def free_port():
    """A port that nobody listens on, neither by TCP nor by UDP, and that is given out once."""
    for port in PORTS:
        try:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                with socket.socket(socket.AF_INET, kind) as s:
                    s.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port


def until(f, seconds=20):
    """Returns what `f` does once that is something."""
    end = time.time() + seconds
    while not (value := f()):
        assert time.time() < end, "it did not come to pass"
        time.sleep(0.05)
    return value


class Server:
    def __init__(self, directory, *arguments, env=None):
        command = [BINARY, "serve", "--data", str(directory), "--listen", "all=127.0.0.1:0", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, **(env or {})})
        endpoints = directory / "endpoints.json"
        for _ in range(500):
            if endpoints.exists():
                break
            assert self.process.poll() is None, "the server ended"
            time.sleep(0.05)
        self.endpoints = json.loads(endpoints.read_text())

    def get(self, path, listener="ui", **params):
        url = f"http://{self.endpoints[listener]}{path}?{urllib.parse.urlencode(params)}"
        with urllib.request.urlopen(url) as response:
            return json.load(response)

    def post(self, path, body=b"", listener="ui", method="POST"):
        request = urllib.request.Request(f"http://{self.endpoints[listener]}{path}", data=body, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request) as response:
                text = response.read()
                return response.status, json.loads(text) if text else None
        except urllib.error.HTTPError as e:
            return e.code, json.load(e)

    def sql(self, query):
        return self.get("/api/v1/sql", q=query)["rows"]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0
