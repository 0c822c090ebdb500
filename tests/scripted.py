"""A small server for tests that does what its script says: answers, is overloaded, breaks off."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agewatch.remote import Server

ANSWER = {"model": "agewatch-1@0123456789ab", "engine": "openvino-f32", "faces": []}


@dataclass
class Script:
    """What a server does: for each picture, by its bytes, answers in turn, the last one for ever; all at once at most
    `room`, more are told to come again."""

    answers: dict[bytes, list[tuple[int, object]]] = field(default_factory=dict)
    room: int = 1000
    usual: object = field(default_factory=lambda: ANSWER)
    token: str = "right"
    asked: Counter[bytes] = field(default_factory=Counter)
    inside: int = 0
    most: int = 0
    overloaded: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, picture: bytes) -> tuple[int, object]:
        with self.lock:
            turns = self.answers.get(picture, [(200, self.usual)])
            turn = turns[min(self.asked[picture], len(turns) - 1)]
            self.asked[picture] += 1
            return turn


@pytest.fixture
def script(tmp_path: Path) -> Iterator[tuple[Script, Server]]:
    plan = Script()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            picture = self.rfile.read(int(self.headers["Content-Length"]))
            with plan.lock:
                plan.inside += 1
                plan.most = max(plan.most, plan.inside)
                is_full = plan.inside > plan.room
                plan.overloaded += is_full
            threading.Event().wait(0.005)
            status, told = (429, {}) if is_full else plan.reply(picture)
            if self.headers["Authorization"] != f"Bearer {plan.token}":
                status, told = 401, {"error": {"code": "unauthorized", "message": "The token is wrong."}}
            with plan.lock:
                plan.inside -= 1
            if status == 0:  # breaks off
                self.close_connection = True
                return
            body = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if status == 503:
                self.send_header("Retry-After", "0")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        key_file = tmp_path / "key_file.json"
        key_file.write_text('{"inference": {"key": "right"}}')
        try:
            yield plan, Server(f"http://127.0.0.1:{server.server_port}", key_file)
        finally:
            server.shutdown()
