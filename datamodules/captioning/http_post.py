"""One POST of JSON to a server that nobody here vouches for: it may be slow, silent, huge, or repeat secrets.

The deadline holds for the whole exchange, unlike httpx's timeouts, each of which begins anew with every byte. Nothing
is retried here, and no redirect is followed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from datamodules.captioning.config import is_loopback

if TYPE_CHECKING:
    import ssl

MAX_ANSWER_BYTES = 1_000_000
# Their debug output repeats what servers write into headers.
_TALKATIVE = ("httpx", *(f"httpcore.{part}" for part in ("connection", "http11", "http2", "proxy", "socks", "request")))
_SECRET_PART = 6


class Secret:
    """A key that shows itself to nobody but `reveal`; the empty one stands for none."""

    def __init__(self, text: str) -> None:
        self._reveal: Callable[[], str] = lambda: text

    def __bool__(self) -> bool:
        return bool(self._reveal())

    def __repr__(self) -> str:
        return "Secret(...)"

    def reveal(self) -> str:
        return self._reveal()

    def is_told_by(self, text: str) -> bool:
        """Whether a text holds the key or a part of it: as it is, spaced out, backwards, percent-encoded, in base64."""
        key = self._reveal()
        part = min(_SECRET_PART, len(key))
        if not part:
            return False
        forms = [key, *(base64.b64encode(("\0" * pad + key).encode()).decode()[2 * pad : -4] for pad in range(3))]
        parts = {form[start : start + part].lower() for form in forms for start in range(len(form) - part + 1)}
        dense = "".join(character for character in text if character.isprintable() and not character.isspace())
        told = [version.lower() for version in (text, dense, unquote(text), dense[::-1])]
        return any(piece in version for version in told for piece in parts if piece)


@dataclass(frozen=True)
class Answer:
    """What came back: the HTTP status, headers in lower case, and the body's bytes."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class NoAnswer(Exception):  # noqa: N818 - it says what became of the request
    """There is no answer that could be used. again: another try may fare better."""

    def __init__(self, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.again = again


def make_tls_context() -> ssl.SSLContext:
    """What httpx would make for each client; it takes a while, which should not count against a deadline."""
    import httpx

    return httpx.create_ssl_context()


def post_json(url: str, payload: Mapping[str, Any], key: Secret, *, timeout_s: float, tls: ssl.SSLContext) -> Answer:
    """Send the payload, with the key as a bearer token unless it is empty, and read at most a megabyte of answer.

    Returns within `timeout_s`, whatever the server does. Raises NoAnswer, which names neither the key nor anything that
    the server said.
    """
    body = json.dumps(payload).encode()
    outcome: list[Answer | NoAnswer] = []

    def work() -> None:
        with _silence():
            try:
                outcome.append(asyncio.run(_within(url, body, key, timeout_s, tls)))
            except NoAnswer as failure:
                outcome.append(failure)
            except Exception as error:  # whatever else it is, its text may hold what was sent
                outcome.append(NoAnswer(f"the request failed ({type(error).__name__})", again=False))

    # In a thread of its own there is no other event loop, and looking up a host's name cannot hold up anyone.
    thread = threading.Thread(target=work, name="caption request", daemon=True)
    thread.start()
    thread.join(timeout_s + 0.5)
    result = outcome[0] if outcome else NoAnswer(f"there was no answer within {timeout_s:.3g} s", again=True)
    if isinstance(result, NoAnswer):
        # A new one: the old one's traceback leads to frames that hold the key.
        raise NoAnswer(str(result), again=result.again)
    return result


async def _within(url: str, body: bytes, key: Secret, timeout_s: float, tls: ssl.SSLContext) -> Answer:
    import httpx

    try:
        async with asyncio.timeout(timeout_s):
            return await _exchange(url, body, key, timeout_s, tls)
    except TimeoutError:
        raise NoAnswer(f"there was no whole answer within {timeout_s:.3g} s", again=True) from None
    except httpx.TimeoutException:
        raise NoAnswer(f"there was no answer within {timeout_s:.3g} s", again=True) from None
    except httpx.ConnectError as error:
        if "certificate" in str(error).lower():
            raise NoAnswer("its certificate is not trusted on this machine", again=False) from None
        raise NoAnswer("it cannot be reached", again=True) from None
    except httpx.TransportError as error:
        raise NoAnswer(f"the connection broke ({type(error).__name__})", again=True) from None


async def _exchange(url: str, body: bytes, key: Secret, timeout_s: float, tls: ssl.SSLContext) -> Answer:
    import httpx

    headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
    if key:
        headers["Authorization"] = f"Bearer {key.reveal()}"
    # A proxy is for what leaves this machine; over http it would read the key.
    proxies = not is_loopback(urlsplit(url).hostname or "")
    async with (
        httpx.AsyncClient(timeout=timeout_s, verify=tls, follow_redirects=False, trust_env=proxies) as client,
        client.stream("POST", url, content=body, headers=headers) as response,
    ):
        if response.headers.get("content-encoding", "identity") != "identity":
            raise NoAnswer("it sends compressed answers, which were not asked for", again=False)
        received = bytearray()
        async for chunk in response.aiter_raw():
            received += chunk
            if len(received) > MAX_ANSWER_BYTES:
                raise NoAnswer(f"its answer has more than {MAX_ANSWER_BYTES} bytes", again=False)
        return Answer(response.status_code, dict(response.headers), bytes(received))


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the HTTP libraries from logging in this thread."""
    own = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.thread != own

    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    for logger in loggers:
        logger.addFilter(others)
    try:
        yield
    finally:
        for logger in loggers:
            with suppress(ValueError):
                logger.removeFilter(others)
