"""What notifications are sent to: an HTTP server and a mail server that remember everything."""

import base64
import http.server
import json
import socketserver
import threading
import time
import urllib.parse


class Receiver:
    """Answers every request, by default 200, and keeps them. `script` decides the answer by path."""

    def __init__(self, script=None):
        outer = self
        self.requests = []
        self.lock = threading.Lock()
        self.script = script or (lambda _path, _n: (200, {}, b"ok"))

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                with outer.lock:
                    n = sum(r["path"] == self.path for r in outer.requests)
                    outer.requests.append(
                        {
                            "method": self.command,
                            "path": self.path,
                            "headers": {k.lower(): v for k, v in self.headers.items()},
                            "body": body,
                            "at": time.time(),
                        }
                    )
                status, headers, answer = outer.script(self.path, n)
                self.send_response(status)
                for k, v in headers.items():
                    self.send_header(k, v)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = handle_any

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                # A client that is killed breaks its connections.
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def at(self, prefix):
        with self.lock:
            return [r for r in self.requests if r["path"].startswith(prefix)]

    def wait(self, prefix, count=1, seconds=20):
        """Waits until so many requests came in at a path, and returns them."""
        for _ in range(int(seconds / 0.05)):
            found = self.at(prefix)
            if len(found) >= count:
                return found
            time.sleep(0.05)
        raise AssertionError(f"{len(self.at(prefix))} of {count} requests at {prefix}")

    def bodies(self, prefix):
        return [parsed(r) for r in self.at(prefix)]

    def clear(self):
        with self.lock:
            self.requests.clear()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()


def parsed(request):
    body = request["body"]
    if "form" in request["headers"].get("content-type", ""):
        return dict(urllib.parse.parse_qsl(body.decode()))
    return json.loads(body) if body else None


class MailServer:
    """Takes mail without TLS; wants PLAIN credentials when some are given."""

    def __init__(self, user=None, password=None):
        outer = self
        self.mails = []

        class Handler(socketserver.StreamRequestHandler):
            def say(self, text):
                self.wfile.write(text.encode() + b"\r\n")

            def handle(self):
                self.say("220 mail")
                mail = {"to": [], "auth": None}
                while line := self.rfile.readline():
                    command = line.decode().strip()
                    word = command.upper().split(" ")[0]
                    if word == "EHLO":
                        mail["hello"] = command[5:]
                        self.say("250-mail")
                        self.say("250 AUTH PLAIN LOGIN" if user else "250 8BITMIME")
                    elif word == "AUTH":
                        fields = base64.b64decode(command.split(" ")[2]).split(b"\0")
                        mail["auth"] = (fields[1].decode(), fields[2].decode())
                        good = mail["auth"] == (user, password)
                        self.say("235 ok" if good else "535 bad credentials")
                    elif word == "MAIL":
                        mail["from"] = command.split(":", 1)[1].split(">")[0].strip("< ")
                        self.say("250 ok")
                    elif word == "RCPT":
                        mail["to"].append(command.split(":", 1)[1].split(">")[0].strip("< "))
                        self.say("250 ok")
                    elif word == "DATA":
                        self.say("354 go on")
                        data = []
                        while (text := self.rfile.readline()) != b".\r\n":
                            data.append(text)
                        mail["data"] = b"".join(data)
                        outer.mails.append(mail)
                        mail = {"to": [], "auth": mail["auth"]}
                        self.say("250 taken")
                    elif word == "QUIT":
                        self.say("221 bye")
                        return
                    else:
                        self.say("250 ok")

        self.server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"127.0.0.1:{self.server.server_address[1]}"

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
