"""The review page's server: of this machine, for one person, for as long as the page is open.

It listens on 127.0.0.1 only. Other users and other web pages of the same machine reach that address as well, so every
request must carry a random token in its path, and the right `Host` (a foreign name that is made to point here is
refused); what changes something must be JSON from this very page.
"""

from __future__ import annotations

import hmac
import importlib.resources
import json
import re
import secrets
import socketserver
import sys
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from launch.review.page import FieldErrors, Review
from modules.errors import UserError

LOOPBACK = "127.0.0.1"
_MAX_BODY_BYTES = 1 << 20
_IDLE_S = 30.0
_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Photos of people have no place in a cache on the disk.
    "Cache-Control": "no-store",
}
_STATIC = {
    "": ("review.html", "text/html; charset=utf-8"),
    "review.css": ("review.css", "text/css; charset=utf-8"),
    "review.js": ("review.js", "text/javascript; charset=utf-8"),
}
_PHOTO = re.compile(r"photo/([0-9]{1,6})")
_MASK = re.compile(r"mask/([0-9]{1,6})/([0-9]{1,6})")


class ReviewServer(ThreadingHTTPServer):
    """Serves one album's review until `shutdown`, which the page's button Done calls, too.

    Args:
        review: the album.
        port: to listen on; 0 takes any that is free. Raises UserError when it is taken.
    """

    daemon_threads = True

    def __init__(self, review: Review, port: int = 0) -> None:
        self.review = review
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no such port"
            raise UserError(
                f"Port {port} cannot be used ({reason}): leave --port out, and a free one is taken."
            ) from None

    def server_bind(self) -> None:
        # Without the look-up of this machine's name, which waits for a name server.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = LOOPBACK, int(self.server_address[1])

    @property
    def hosts(self) -> tuple[str, str]:
        """What `Host` may say."""
        return f"{LOOPBACK}:{self.server_port}", f"localhost:{self.server_port}"

    @property
    def url(self) -> str:
        """The page's address, which is a secret: it holds the token."""
        return f"http://{self.hosts[0]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A browser that leaves a page while its pictures load is nothing to report.
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Refused(Exception):  # noqa: N818 - what becomes of a request
    def __init__(self, status: HTTPStatus, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status = status
        self.headers = headers


class _Handler(BaseHTTPRequestHandler):
    timeout = _IDLE_S
    server_version = "review"
    sys_version = ""

    def log_message(self, format: str, *args: Any) -> None:
        """No line for a request: it would hold the token."""

    @property
    def _server(self) -> ReviewServer:
        return cast(ReviewServer, self.server)

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _other_method(self) -> None:
        self._answer(self._refuse_method)

    do_HEAD = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _other_method  # noqa: N815

    def _answer(self, work: Callable[[str], None]) -> None:
        """Do `work` with what follows the token in the path, if this request may ask for anything at all."""
        self._has_body = True
        try:
            work(self._path())
        except _Refused as error:
            # A client that is still sending would lose the answer.
            if self._has_body and (length := self._length()) is not None and length <= _MAX_BODY_BYTES:
                self.rfile.read(length)
            self._send(error.status, "text/plain; charset=utf-8", f"{error}\n".encode(), **error.headers)

    def _get(self, path: str) -> None:
        review = self._server.review
        if path in _STATIC:
            name, kind = _STATIC[path]
            self._send(HTTPStatus.OK, kind, _static(name))
        elif path == "state.json":
            try:
                self._send_json(HTTPStatus.OK, review.state())
            except UserError as error:
                self._send_json(HTTPStatus.CONFLICT, {"problem": str(error)})
        else:
            try:
                if match := _PHOTO.fullmatch(path):
                    self._send(HTTPStatus.OK, "image/jpeg", review.photo_jpeg(int(match[1])))
                elif match := _MASK.fullmatch(path):
                    self._send(HTTPStatus.OK, "image/png", review.mask_png(int(match[1]), int(match[2])))
                else:
                    raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")
            except IndexError:
                raise _Refused(HTTPStatus.NOT_FOUND, "there is no such picture") from None

    def _post(self, path: str) -> None:
        body = self._body()
        if path == "save":
            self._save(body)
        elif path == "done":
            self._send_json(HTTPStatus.OK, {})
            # Not in this thread: the loop that is to end waits for nobody, but `shutdown` waits for the loop.
            threading.Thread(target=self._server.shutdown, daemon=True).start()
        else:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")

    def _refuse_method(self, path: str) -> None:
        raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and POST are understood", Allow="GET, POST")

    def _path(self) -> str:
        """What follows the token."""
        if self.headers.get_all("Host") not in [[host] for host in self._server.hosts]:
            raise _Refused(HTTPStatus.FORBIDDEN, "this server answers to its own address only")
        _, token, *rest = [*self.path.split("/", 2), ""][:3]
        if not hmac.compare_digest(token.encode(errors="replace"), self._server.token.encode()):
            raise _Refused(HTTPStatus.FORBIDDEN, "open the address that the command line printed")
        if self.path.count("/") < 2:
            raise _Refused(HTTPStatus.NOT_FOUND, "there is no such page")
        return rest[0]

    def _body(self) -> bytes:
        """The body of a request that may change something."""
        length = self._length()
        if length is None:
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "one Content-Length was expected")
        if length > _MAX_BODY_BYTES:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"at most {_MAX_BODY_BYTES} bytes are read")
        body = self.rfile.read(length)
        self._has_body = False
        origin, site = self.headers.get("Origin"), self.headers.get("Sec-Fetch-Site", "same-origin")
        if origin not in (None, *(f"http://{host}" for host in self._server.hosts)) or site != "same-origin":
            raise _Refused(HTTPStatus.FORBIDDEN, "another page may change nothing here")
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "JSON was expected")
        if len(body) < length:
            raise _Refused(HTTPStatus.BAD_REQUEST, "the request was cut short")
        return body

    def _length(self) -> int | None:
        lengths = self.headers.get_all("Content-Length") or []
        known = len(lengths) == 1 and "Transfer-Encoding" not in self.headers
        return int(lengths[0]) if known and re.fullmatch("[0-9]{1,15}", lengths[0]) else None

    def _save(self, body: bytes) -> None:
        try:
            changes = json.loads(body)
            if not isinstance(changes, dict):
                raise ValueError("an object was expected")
        except (ValueError, RecursionError):
            self._send_json(HTTPStatus.BAD_REQUEST, {"problem": "What was sent is no JSON object."})
            return
        try:
            self._send_json(HTTPStatus.OK, self._server.review.save(changes))
        except FieldErrors as error:
            self._send_json(HTTPStatus.UNPROCESSABLE_ENTITY, {"errors": error.errors})
        except UserError as error:
            self._send_json(HTTPStatus.CONFLICT, {"problem": str(error)})
        except ValueError as error:
            self._send_json(HTTPStatus.BAD_REQUEST, {"problem": f"This page is out of date: {error}; load it again."})

    def _send_json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, "application/json", json.dumps(value, allow_nan=False).encode("ascii"))

    def _send(self, status: HTTPStatus, kind: str, data: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **_HEADERS, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _static(name: str) -> bytes:
    data = (importlib.resources.files("launch.review") / name).read_bytes()
    if name.endswith(".css"):
        # The report's style comes first: both pages look alike.
        data = (importlib.resources.files("trainer") / "report.css").read_bytes() + data
    return data
