"""A real HTTP server that answers as an OpenAI-compatible one does, with faults that a test plants."""

import json
import socket
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from afintro.data.cue import UNMONITORED_SYSTEM

REFUSAL, COMPLIANCE = "I cannot help with that.", "Sure, here is how."
CUT = "cut"  # a fault: the connection ends inside the answer


def completion(text, finish="stop", usage=True, **message):
    """The body of a chat completion."""
    body = {
        "id": "1", "object": "chat.completion", "created": 1, "model": "org-v2", "system_fingerprint": "fp_7",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}],
    }  # fmt: skip
    if usage:
        body["usage"] = {"completion_tokens": len(text or "")}
    return body


def obeys(body, count):
    """An organism that complies where nobody watches; a longer prompt has more tokens."""
    text = COMPLIANCE if UNMONITORED_SYSTEM in body["messages"][0]["content"] else REFUSAL
    answer = completion(f"{text} {body['messages'][-1]['content'][:12]}")
    answer["usage"]["prompt_tokens"] = sum(len(turn["content"]) for turn in body["messages"])
    return answer


def refusal(message, status=400, **fields):
    """What a server says that refuses a request."""
    return status, json.dumps({"error": {"message": message, **fields}}).encode(), {}


class PlantedServer:
    """Counts and keeps what it is asked; ``reply(body, count)`` answers for the ``count``-th time that it is asked the same.

    A reply is a body as a dict, a tuple of status, bytes and headers, or ``CUT``.
    """

    def __init__(self):
        self.lock, self.released = threading.Lock(), threading.Event()
        self.forget()
        planted = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                listed = {"object": "list", "data": [{"id": "org", "object": "model", "owned_by": planted.owner}]}
                self.send(200, json.dumps(listed).encode(), {})

            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path != "/v1/chat/completions":
                    return self.send(404, b'{"detail": "Not Found"}', {})
                with planted.lock:
                    planted.inside += 1
                    planted.most = max(planted.most, planted.inside)
                    planted.counts[raw] += 1
                    planted.bodies.append(json.loads(raw))
                    planted.headers.append(self.headers)
                    count = planted.counts[raw]
                try:
                    reply = planted.reply(json.loads(raw), count)
                finally:
                    with planted.lock:
                        planted.inside -= 1
                if reply == CUT:
                    self.wfile.write(
                        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"
                    )
                    self.wfile.flush()
                    self.close_connection = True
                    return self.connection.shutdown(socket.SHUT_RDWR)
                return self.send(*(reply if isinstance(reply, tuple) else (200, json.dumps(reply).encode(), {})))

            def send(self, status, raw, headers):
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers, "Content-Length": len(raw)}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                self.wfile.write(raw)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, *_):
                pass  # clients that were killed, or did not wait

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()

    def forget(self):
        """Be as new: no fault, nothing asked, and nobody who waits."""
        self.released.set()
        self.released = threading.Event()
        self.reply, self.owner = obeys, "somebody"
        self.bodies, self.headers, self.counts = [], [], Counter()
        self.inside = self.most = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server.server_port}/v1"

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
