"""The review page's server over real sockets: who is answered, with what, and when it ends."""

from __future__ import annotations

import argparse
import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamodules.overrides import read_overrides
from launch.review import server as server_module
from launch.review.page import Review
from launch.review.server import ReviewServer
from launch.review.verb import add_verb, review
from modules.errors import UserError
from tests.unit.launch.review.prepared import write_prepared

JSON = {"Content-Type": "application/json"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_prepared(tmp_path / "anna")
    return tmp_path / "anna"


@pytest.fixture
def server(folder: Path) -> Iterator[ReviewServer]:
    with ReviewServer(Review(folder)) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join(10)
        assert not thread.is_alive()


def ask(
    server: ReviewServer, path: str, body: bytes | None = None, method: str | None = None, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body; `path` follows the token, unless it begins with a slash."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    try:
        address = path if path.startswith("/") else f"/{server.token}/{path}"
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), address, body, named)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def raw(server: ReviewServer, request: str) -> bytes:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as link:
        link.sendall(request.replace("\n", "\r\n").encode("latin-1"))
        answer = b""
        while chunk := link.recv(65536):
            answer += chunk
    return answer


def save(server: ReviewServer, changes: object, **headers: str) -> tuple[int, dict]:
    status, _, body = ask(server, "save", json.dumps(changes).encode(), **{**JSON, **headers})
    return status, json.loads(body) if body.startswith(b"{") else {}


def test_serves_the_page_and_its_parts(server: ReviewServer) -> None:
    kinds = {
        "": "text/html; charset=utf-8",
        "review.css": "text/css; charset=utf-8",
        "review.js": "text/javascript; charset=utf-8",
        "state.json": "application/json",
        "photo/0": "image/jpeg",
        "mask/0/2": "image/png",
    }
    for path, kind in kinds.items():
        status, headers, body = ask(server, path)
        assert (status, headers["Content-Type"], len(body) > 50) == (200, kind, True)
        assert headers["Content-Length"] == str(len(body))
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "Access-Control-Allow-Origin" not in headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none';")
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
    assert json.loads(ask(server, "state.json")[2])["name"] == "anna"


def test_listens_on_loopback_only_and_hides_its_versions(server: ReviewServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.server_port}/{server.token}/"
    assert len(server.token) >= 32
    assert ask(server, "")[1]["Server"].strip() == "review"


def test_tokens_differ(server: ReviewServer) -> None:
    with ReviewServer(server.review) as other:
        assert other.token != server.token


@pytest.mark.parametrize(
    "path", ["/", "/state.json", "/wrong/state.json", "//state.json", "/%00/", "/tök/".encode().decode("latin-1")]
)
def test_without_the_token_nothing_is_answered(server: ReviewServer, folder: Path, path: str) -> None:
    answer = raw(server, f"GET {path} HTTP/1.1\nHost: {server.hosts[0]}\nConnection: close\n\n")
    assert answer.startswith(b"HTTP/1.0 403 ")
    assert b"anna" not in answer
    assert server.token.encode() not in answer
    head = f"POST {path}save HTTP/1.1\nHost: {server.hosts[0]}\nContent-Type: application/json\nContent-Length: 17\n"
    assert raw(server, head + '\n{"gender": "man"}').startswith(b"HTTP/1.0 403 ")
    assert not (folder / "assets.yaml").exists()


def test_part_of_the_token_is_not_enough(server: ReviewServer) -> None:
    for token in (server.token[:-1], server.token + "x", server.token.swapcase(), ""):
        assert ask(server, f"/{token}/state.json")[0] == 403
    assert ask(server, f"/{server.token}")[0] == 404


def test_other_names_of_this_address_are_refused(server: ReviewServer, folder: Path) -> None:
    port = server.server_port
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1", f"127.0.0.1:{port}.evil.example", "localhost:1"):
        assert ask(server, "state.json", Host=host)[0] == 403
        assert save(server, {"gender": "man"}, Host=host)[0] == 403
    assert ask(server, "state.json", Host=f"localhost:{port}")[0] == 200
    path = f"GET /{server.token}/state.json HTTP/1.1\n"
    assert raw(server, f"{path}\n").startswith(b"HTTP/1.0 403 ")
    two = f"{path}Host: {server.hosts[0]}\nHost: evil.example\n\n"
    assert raw(server, two).startswith(b"HTTP/1.0 403 ")
    assert not (folder / "assets.yaml").exists()


@pytest.mark.parametrize("method", ["HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"])
def test_other_methods_are_refused(server: ReviewServer, method: str) -> None:
    address = f"/{server.token}/save"
    answer = raw(server, f"{method} {address} HTTP/1.1\nHost: {server.hosts[0]}\n\n")
    assert answer.startswith(b"HTTP/1.0 405 ")
    assert b"Allow: GET, POST\r\n" in answer
    assert raw(server, f"{method} /x/save HTTP/1.1\nHost: {server.hosts[0]}\n\n").startswith(b"HTTP/1.0 403 ")
    assert ask(server, "save")[0] == ask(server, "done")[0] == 404  # GET changes nothing


@pytest.mark.parametrize(
    "path",
    [
        "../assets.yaml",
        "..%2f..%2fassets%2fassets.json",
        "photo/../../assets/assets.json",
        "photo/-1",
        "photo/3",
        "photo/٣",
        "photo/0/",
        "photo/" + "9" * 400,
        "mask/0/3",
        "mask/0/-1",
        "mask/0",
        "server.py",
        "page.py",
        "review.css/",
        "state.json?x",
        "//etc/passwd",
    ],
)
def test_there_is_no_way_to_other_files(server: ReviewServer, path: str) -> None:
    target = path.encode().decode("latin-1")
    answer = raw(server, f"GET /{server.token}/{target} HTTP/1.1\nHost: {server.hosts[0]}\n\n")
    assert answer.startswith(b"HTTP/1.0 404 ")
    assert len(answer) < 1000


def test_saving_writes_the_file(server: ReviewServer, folder: Path) -> None:
    status, state = save(server, {"a1.name": "Blouse", "p1.view": "left"}, Origin=f"http://{server.hosts[0]}")
    assert (status, state["values"]["a1.name"], state["pending"]) == (200, "blouse", True)
    assert read_overrides(folder / "assets.yaml").assets["shirt"].name == "blouse"


def test_mistakes_come_back_beside_their_fields(server: ReviewServer, folder: Path) -> None:
    status, answer = save(server, {"a1.name": "a/b", "a0.words": "{}"})
    assert (status, set(answer["errors"])) == (422, {"a1.name", "a0.words"})
    status, answer = save(server, {"a99.name": "x"})
    assert (status, "load it again" in answer["problem"]) == (400, True)
    assert not (folder / "assets.yaml").exists()


def test_a_damaged_file_is_left_alone_and_named(server: ReviewServer, folder: Path) -> None:
    (folder / "assets.yaml").write_text("a: [")
    assert save(server, {"gender": "man"})[0] == 409
    status, _, body = ask(server, "state.json")
    assert (status, "not valid YAML" in json.loads(body)["problem"]) == (409, True)
    assert (folder / "assets.yaml").read_text() == "a: ["


def test_a_folder_that_cannot_be_written_is_named(server: ReviewServer, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise UserError(f"{path} cannot be written")

    monkeypatch.setattr("launch.review.page.write_bytes", refuse)
    status, answer = save(server, {"gender": "man"})
    assert (status, "cannot be written" in answer["problem"]) == (409, True)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"x"', b"\xff", b"[" * 100_000, b'{"gender": NaN}'])
def test_malformed_bodies(server: ReviewServer, folder: Path, body: bytes) -> None:
    status, _, answer = ask(server, "save", body, **JSON)
    assert status == 400
    assert json.loads(answer)["problem"]
    assert not (folder / "assets.yaml").exists()


@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {**JSON, "Origin": "http://evil.example"},
        {**JSON, "Origin": "null"},
        {**JSON, "Sec-Fetch-Site": "cross-site"},
        {**JSON, "Sec-Fetch-Site": "none"},
    ],
)
def test_other_pages_may_change_nothing(server: ReviewServer, folder: Path, headers: dict[str, str]) -> None:
    assert ask(server, "save", b'{"gender": "man"}', **headers)[0] in (403, 415)
    assert ask(server, "done", b"{}", **headers)[0] in (403, 415)
    assert ask(server, "state.json")[0] == 200
    assert not (folder / "assets.yaml").exists()


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ("Content-Length: 1048577\n", 413),
        ("Content-Length: 999999999999999\n", 413),
        ("Content-Length: -1\n", 411),
        ("Content-Length: 1e3\n", 411),
        ("Content-Length: " + "9" * 5000 + "\n", 411),
        ("Content-Length: 2\nContent-Length: 2\n", 411),
        ("", 411),
        ("Transfer-Encoding: chunked\n", 411),
        ("Transfer-Encoding: chunked\nContent-Length: 2\n", 411),
    ],
)
def test_lengths_that_are_not_taken(server: ReviewServer, lines: str, status: int) -> None:
    head = f"POST /{server.token}/save HTTP/1.1\nHost: {server.hosts[0]}\nContent-Type: application/json\n"
    assert raw(server, f"{head}{lines}\n").startswith(f"HTTP/1.0 {status} ".encode())


def test_a_body_that_never_comes_holds_nobody_up(server: ReviewServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module._Handler, "timeout", 0.2)
    head = f"POST /{server.token}/save HTTP/1.1\nHost: {server.hosts[0]}\nContent-Type: application/json\n"
    started = time.monotonic()
    assert raw(server, f"{head}Content-Length: 10\n\n{{}}") == b""
    assert raw(server, "GET /") == b""
    assert time.monotonic() - started < 10
    assert ask(server, "state.json")[0] == 200


def test_savings_at_the_same_time_lose_nothing(server: ReviewServer, folder: Path) -> None:
    changes = [{"gender": "woman"}, *({f"a{index}.words": f"word {index}"} for index in range(3))]
    changes += [{f"p{index}.view": "left"} for index in range(3)] + [{f"p{index}.m0": False} for index in range(3)]
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda one=one: statuses.append(save(server, one)[0])) for one in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert statuses == [200] * len(changes)
    found = read_overrides(folder / "assets.yaml")
    assert found.gender == "woman"
    assert [found.assets[name].words for name in ("face", "shirt", "cap")] == ["word 0", "word 1", "word 2"]
    assert all(entry.view == "left" and entry.drop_masks == ("face",) for entry in found.photos.values())
    assert len(found.photos) == 3


def test_a_port_that_is_taken_is_named(server: ReviewServer) -> None:
    for port in (server.server_port, 70_000, -1):
        with pytest.raises(UserError, match=f"Port {port} cannot be used"):
            ReviewServer(server.review, port)


def test_verb_serves_until_done_and_says_what_goes_on(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_verb(lambda verb, module, **_: parser)
    arguments = parser.parse_args([str(folder), "--no-browser"])
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(review(arguments)))
    thread.start()
    printed = ""
    while "Ctrl-C" not in printed:
        assert thread.is_alive()
        printed += capfd.readouterr().out
        time.sleep(0.02)
    address = printed.split()[1]
    port, token = int(address.split(":")[2].split("/")[0]), address.split("/")[3]
    for path, body in (("save", b'{"gender": "man"}'), ("done", b"{}")):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("POST", f"/{token}/{path}", body, JSON)
        assert connection.getresponse().status == 200
        connection.close()
    thread.join(20)
    assert codes == [0]
    out, err = capfd.readouterr()
    assert "assets.yaml holds what was decided" in out
    assert "run ALBUM --out" in out
    # Requests leave no lines.
    assert err == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_ctrl_c_ends_the_verb(folder: Path) -> None:
    script = (
        "import argparse, sys; from launch.review.verb import review; "
        "sys.exit(review(argparse.Namespace(folder=sys.argv[1], port=0, no_browser=True)))"
    )
    command = [sys.executable, "-c", script, str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=Path(__file__).parents[4]) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Open http://127.0.0.1:")
        assert "Ctrl-C" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out.strip() == ""  # nothing was decided, so nothing is to be done


def test_verb_refuses_a_folder_without_a_prepared_album(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no prepared album"):
        review(argparse.Namespace(folder=str(tmp_path), port=0, no_browser=True))
