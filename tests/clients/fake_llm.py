"""A deterministic stand-in for an OpenAI-compatible provider, on the standard library alone.

Every chat answer has 24 input tokens (8 of them cached) and 9 output tokens (3 of reasoning), so
that the cost of each call is known; `gpt-4.1-nano` neither caches nor reasons. `boom` answers 429.
"""

import base64
import json
import struct
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWER = "The capital of France is Paris."
USAGE = {
    "prompt_tokens": 24,
    "completion_tokens": 9,
    "total_tokens": 33,
    "prompt_tokens_details": {"cached_tokens": 8},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    calls = 0

    def log_message(self, *args):
        pass

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Handler.calls += 1
        if request["model"] == "boom":
            error = {"message": "Rate limit reached", "type": "rate_limit_error", "code": "rate_limit_exceeded"}
            return self.answer(429, {"error": error})
        if self.path.endswith("/embeddings"):
            return self.embeddings(request)
        return self.chat(request)

    def embeddings(self, request):
        vector = [0.5, -0.25]
        if request.get("encoding_format") == "base64":
            vector = base64.b64encode(struct.pack("<2f", *vector)).decode()
        texts = request["input"] if isinstance(request["input"], list) else [request["input"]]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i in range(len(texts))]
        usage = {"prompt_tokens": 5, "total_tokens": 5}
        self.answer(200, {"object": "list", "model": request["model"], "data": data, "usage": usage})

    def chat(self, request):
        usage = USAGE
        if request["model"] == "gpt-4.1-nano":
            usage = {k: v for k, v in USAGE.items() if not k.endswith("details")}
        base = {"id": f"chatcmpl-{Handler.calls}", "created": 1_700_000_000, "model": request["model"] + "-2024-07-18"}
        wants_tool = request.get("tools") and request["messages"][-1]["role"] != "tool"
        message, finish = {"role": "assistant", "content": ANSWER}, "stop"
        if wants_tool:
            function = {"name": request["tools"][0]["function"]["name"], "arguments": '{"city":"Paris"}'}
            message = {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}
            finish = "tool_calls"
        if not request.get("stream"):
            choice = {"index": 0, "message": message, "finish_reason": finish}
            return self.answer(200, {**base, "object": "chat.completion", "choices": [choice], "usage": usage})

        def chunk(delta, finish=None):
            return {**base, "object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        events = [chunk({"role": "assistant", "content": ""})]
        events += [chunk({"content": word}) for word in (ANSWER[:12], ANSWER[12:])]
        events += [chunk({}, finish), {**base, "object": "chat.completion.chunk", "choices": [], "usage": usage}]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for event in events:
            self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")
        self.close_connection = True


def start():
    """Starts on a free loopback port; returns the server, whose address is its base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    import threading

    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
