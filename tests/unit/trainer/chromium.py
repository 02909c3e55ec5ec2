"""A headless Chromium, driven over its debugging pipe: no driver, no port, no package."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-device-scale-factor=1",
    "--remote-debugging-pipe",
)


def find_chromium() -> str | None:
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Chromium:
    """One page of one browser; `events` holds everything that it reported, in order."""

    def __init__(self, executable: str, profile: Path, *, width: int = 1200, height: int = 900) -> None:
        commands_in, self._commands = os.pipe()
        self._replies, replies_out = os.pipe()

        def take_pipes() -> None:
            # The browser reads descriptor 3 and writes descriptor 4. The copies come first: either number may be taken.
            source, sink = os.dup(commands_in), os.dup(replies_out)
            spare = [os.dup(fd) for fd in (source, sink)]
            while min(spare) < 5:
                spare = [os.dup(fd) for fd in spare]
            os.dup2(spare[0], 3)
            os.dup2(spare[1], 4)

        self.process = subprocess.Popen(
            [executable, *_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=take_pipes,
            close_fds=False,
        )
        os.close(commands_in)
        os.close(replies_out)
        self.events: list[dict] = []
        self._buffer = b""
        self._next_id = 0
        target = next(
            info["targetId"] for info in self.call("Target.getTargets")["targetInfos"] if info["type"] == "page"
        )
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, *, timeout_s: float = 60, **params) -> dict:
        self._next_id += 1
        message = {"id": self._next_id, "method": method, "params": params}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + timeout_s
        while True:
            reply = self._read(deadline)
            if reply.get("id") == message["id"]:
                if "error" in reply:
                    raise RuntimeError(f"{method}: {reply['error']}")
                return reply["result"]
            self.events.append(reply)

    def _read(self, deadline: float) -> dict:
        while b"\0" not in self._buffer:
            if not select.select([self._replies], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the browser did not answer")
            chunk = os.read(self._replies, 1 << 20)
            if not chunk:
                raise RuntimeError("the browser ended")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def evaluate(self, expression: str):
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(result["exceptionDetails"])
        return result["result"].get("value")

    def wait_for(self, expression: str, *, timeout_s: float = 60) -> None:
        self.wait_until(lambda: self.evaluate(expression), timeout_s=timeout_s, what=expression)

    def wait_until(self, ready: Callable[[], object], *, timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not ready():
            if time.monotonic() > deadline:
                raise TimeoutError(f"never came true: {what}")
            time.sleep(0.05)

    def screenshot(self, selector: str | None = None, *, full_page: bool = False) -> bytes:
        params: dict = {"format": "png", "captureBeyondViewport": full_page}
        if full_page:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            params["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        if selector:
            box = self.evaluate(
                f"(() => {{ const element = document.querySelector({selector!r});"
                " element.scrollIntoView({block: 'center', behavior: 'instant'});"
                " const b = element.getBoundingClientRect();"
                " return [b.left + scrollX, b.top + scrollY, b.width, b.height]; })()"
            )
            params["clip"] = dict(zip(("x", "y", "width", "height"), map(round, box), strict=True), scale=1)
        return base64.b64decode(self.call("Page.captureScreenshot", **params)["data"])

    def problems(self) -> list[str]:
        """Console errors and warnings, uncaught exceptions, and log entries such as blocked requests."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            match event.get("method"):
                case "Runtime.exceptionThrown":
                    found.append(json.dumps(params["exceptionDetails"]))
                case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                    found.append(json.dumps(params["args"]))
                case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                    found.append(params["entry"]["text"])
        return found

    def requests(self) -> list[str]:
        """Addresses asked for, `data:` and `blob:` left out."""
        urls = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "blob:"))]

    def close(self) -> None:
        os.close(self._commands)
        os.close(self._replies)
        self.process.kill()
        self.process.wait()
