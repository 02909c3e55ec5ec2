"""An album to be captioned, and a server on this machine that behaves as each test says."""

from __future__ import annotations

import json
import socketserver
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from datamodules.captioning.captioner import CaptionRequest

NAMES = ("face", "hair", "upper")
GOOD: dict[str, Any] = {
    "gender": "woman",
    "assets": [
        {"found_as": "face", "name": "face", "words": ["oval"]},
        {"found_as": "hair", "name": "haircut", "words": ["short", "curly"]},
        {"found_as": "upper", "name": "jumper", "words": ["loose"]},
    ],
}


def album_of_two() -> CaptionRequest:
    """Two photos of 64 x 48 pixels; the second one shows less."""
    rng = np.random.default_rng(0)
    photos = [rng.integers(0, 256, (64, 48, 3), dtype=np.uint8) for _ in range(2)]
    masks = []
    for names in (NAMES, NAMES[:1]):
        bands = {}
        for index, name in enumerate(names):
            bands[name] = np.zeros((64, 48), bool)
            bands[name][8 + 16 * index : 20 + 16 * index, 10:38] = True
        masks.append(bands)
    return CaptionRequest(photos=photos, masks=masks, asset_names=NAMES)


@pytest.fixture
def request_of_two() -> CaptionRequest:
    return album_of_two()


@dataclass
class Call:
    """A request as the server got it."""

    path: str
    headers: dict[str, str]
    body: Any
    time_s: float


Behaviour = Callable[[Callable[[bytes], None]], None]


@dataclass
class Server:
    """url: to be set as endpoint_url. behaviours: what is sent back, one each; the last one stays."""

    url: str
    behaviours: list[Behaviour] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def drip(self, data: bytes) -> Behaviour:
        """A byte each 20 ms, for ever."""

        def behave(send: Callable[[bytes], None]) -> None:
            send(data)
            while not self.stopped.wait(0.02):
                send(b"x")

        return behave

    def silent(self) -> Behaviour:
        return lambda send: (self.stopped.wait(20), None)[1]


def reply(status: str, body: bytes | str, headers: str = "") -> Behaviour:
    """A whole answer. status: like "200 OK". headers: lines that end with CRLF."""
    data = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status}\r\n{headers}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    return lambda send: send(head.encode("latin-1") + data)


def completion(text: Any, **choice: Any) -> Behaviour:
    """A chat completion that says `text` (as JSON unless it is text)."""
    content = text if isinstance(text, str) else json.dumps(text)
    message = {"role": "assistant", "content": content}
    return reply("200 OK", json.dumps({"choices": [{"message": message, "finish_reason": "stop", **choice}]}))


def all_that_hangs_on(error: BaseException | None) -> str:
    """An error, those that it came from, and all variables of the package's frames that they passed through."""
    text = ""
    while error is not None:
        text += repr(error)
        frames = traceback.TracebackException.from_exception(error, capture_locals=True).stack
        own = [frame for frame in frames if "/tests/" not in frame.filename]
        assert all(frame.locals for frame in own)
        text += "".join(str(frame.locals) for frame in own)
        error = error.__cause__ or error.__context__
    return text


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(socketserver.StreamRequestHandler):
        timeout = 5

        def handle(self) -> None:
            # A client that gives up closes its end while this one still speaks.
            with suppress(OSError, IndexError, ValueError):
                path = self.rfile.readline().split()[1].decode()
                headers = {}
                while line := self.rfile.readline().strip():
                    key, _, value = line.decode().partition(":")
                    headers[key.lower()] = value.strip()
                body = json.loads(self.rfile.read(int(headers["content-length"])))
                made.calls.append(Call(path, headers, body, time.monotonic()))
                made.behaviours[min(len(made.calls), len(made.behaviours)) - 1](self.send)

        def send(self, data: bytes) -> None:
            self.wfile.write(data)
            self.wfile.flush()

    class Threads(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Threads(("127.0.0.1", 0), Handler) as tcp:
        made = Server(url=f"http://127.0.0.1:{tcp.server_address[1]}/v1")
        thread = threading.Thread(target=tcp.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        yield made
        made.stopped.set()
        tcp.shutdown()
        thread.join()
