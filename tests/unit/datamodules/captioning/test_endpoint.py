"""The endpoint captioner against a real server on this machine, from well-behaved to hostile."""

from __future__ import annotations

import base64
import gzip
import io
import json
import logging
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate

import pytest
from PIL import Image

from datamodules.captioning.captioner import CaptionFailed, make_captioner
from datamodules.captioning.config import CaptionerConfig
from datamodules.captioning.endpoint import EndpointCaptioner, _retry_after_s
from modules.errors import UserError
from tests.unit.datamodules.captioning.conftest import GOOD, NAMES, Server, all_that_hangs_on, completion, reply

KEY = "sk-Zq7-correct+horse/battery=staple"
DROPPED: Callable[[Callable[[bytes], None]], None] = lambda send: None  # noqa: E731 - the connection closes without a word
TOO_MANY = reply("429 Too Many Requests", "{}")


@pytest.fixture(autouse=True)
def key_that_nobody_may_see(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> Iterator[None]:
    monkeypatch.setenv("PUZZLEBOOTH_CAPTION_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "httpcore.http11", "httpcore.connection"):
        caplog.set_level(logging.DEBUG, logger=name)
    yield
    printed = capfd.readouterr()
    logged = caplog.get_records("call")
    assert_hidden(printed.out + printed.err + "".join(record.getMessage() for record in logged))


def assert_hidden(text: str) -> None:
    for form in (KEY, KEY[:10], KEY[-10:], base64.b64encode(KEY.encode()).decode()[:12]):
        assert form not in text


def config(server: Server, **settings: object) -> CaptionerConfig:
    small = {
        "method": "endpoint",
        "endpoint_url": server.url,
        "endpoint_model": "tiny",
        "allow_network": True,
        "timeout_s": 0.4,
        "deadline_s": 1.5,
        "backoff_s": 0.01,
        "max_retries": 2,
        "on_failure": "error",
    }
    return CaptionerConfig(**{**small, **settings})  # type: ignore[arg-type]


def failure(server, request, **settings) -> str:
    """The message of a caption that ends in one; neither it nor what hangs on it tells the key."""
    captioner = EndpointCaptioner(config(server, **settings), lambda line: None)
    with pytest.raises(CaptionFailed) as caught:
        captioner.caption(request)
    assert_hidden(all_that_hangs_on(caught.value))
    message = str(caught.value)
    assert message.startswith(f"the captioner's endpoint {captioner.host} gave no usable answer: ")
    assert message.isprintable()
    return message


def test_what_is_sent_and_what_comes_back(server, request_of_two):
    server.behaviours = [completion(GOOD)]
    lines: list[str] = []
    captioner = make_captioner(config(server, max_photos=1), announce=lines.append)
    words = captioner.caption(request_of_two)
    assert words.words == {"face": "oval", "haircut": "short curly", "jumper": "loose"}
    (call,) = server.calls
    assert call.path == "/v1/chat/completions"
    assert call.headers["authorization"] == f"Bearer {KEY}"
    assert call.body["model"] == "tiny"
    assert (call.body["temperature"], call.body["seed"]) == (0, 0)
    assert call.body["response_format"]["json_schema"]["strict"] is True
    picture, text = call.body["messages"][0]["content"]
    assert "face, hair, upper." in text["text"]
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/jpeg;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    # The masks span rows 8 to 52 and columns 10 to 38; a tenth of margin on either side.
    assert (image.format, image.size) == ("JPEG", (34, 52))
    assert not image.getexif()
    assert len(lines) == 1
    assert "sends 1 photo (" in lines[0]
    assert f"to {captioner.host} (model tiny)" in lines[0]
    assert KEY not in captioner.identity + repr(captioner) + repr(vars(captioner))


def test_without_leave_nothing_is_sent(server, request_of_two):
    captioner = make_captioner(config(server, allow_network=False, on_failure="fallback"))
    with pytest.raises(UserError, match=r"would send 2 photos .* to 127\.0\.0\.1:.*allow_network=true"):
        captioner.caption(request_of_two)
    assert server.calls == []


@pytest.mark.parametrize("value", [None, "", " \n"])
def test_without_a_key_none_is_sent(server, request_of_two, monkeypatch, value):
    monkeypatch.delenv("PUZZLEBOOTH_CAPTION_KEY")
    if value is not None:
        monkeypatch.setenv("PUZZLEBOOTH_CAPTION_KEY", value)
    server.behaviours = [completion(GOOD)]
    EndpointCaptioner(config(server), lambda line: None).caption(request_of_two)
    assert "authorization" not in server.calls[0].headers


@pytest.mark.parametrize("value", [KEY + "\nX-Evil: 1", KEY + "é", KEY + " x", KEY * 200])
def test_a_key_that_is_none_is_not_sent_and_not_shown(server, request_of_two, monkeypatch, value):
    monkeypatch.setenv("PUZZLEBOOTH_CAPTION_KEY", value)
    with pytest.raises(UserError, match="PUZZLEBOOTH_CAPTION_KEY holds") as caught:
        EndpointCaptioner(config(server), lambda line: None).caption(request_of_two)
    assert_hidden(all_that_hangs_on(caught.value))
    assert server.calls == []


def test_the_price_is_said_before_and_bounded(server, request_of_two):
    server.behaviours = [completion(GOOD)]
    lines: list[str] = []
    paid = {"usd_per_1000_tokens": 1.0, "max_retries": 1}
    EndpointCaptioner(config(server, **paid), lines.append).caption(request_of_two)
    text = server.calls[0].body["messages"][0]["content"][-1]["text"]
    tokens = -(-len(text) // 4) + 2 * (85 + 170)
    assert f"about {tokens} input tokens, {tokens / 1000:.4f} USD (at most {tokens / 500:.4f}" in lines[0]
    bounded = make_captioner(config(server, **paid, max_cost_usd=tokens / 501, on_failure="fallback"))
    with pytest.raises(UserError, match="max_cost_usd is"):
        bounded.caption(request_of_two)
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "trouble", [TOO_MANY, reply("500 Oops", "no JSON"), reply("503 x", b""), DROPPED, lambda send: send(b"HTTP/1.1 20")]
)
def test_trouble_that_passes_is_outlasted(server, request_of_two, trouble):
    server.behaviours = [trouble, trouble, completion(GOOD)]
    words = EndpointCaptioner(config(server), lambda line: None).caption(request_of_two)
    assert words.gender == "woman"
    assert len(server.calls) == 3
    assert server.calls[0].body == server.calls[2].body


@pytest.mark.parametrize(
    ("trouble", "message", "num_calls"),
    [
        (TOO_MANY, "HTTP 429, there were too many requests, or the account is used up (tried 3 times)", 3),
        (reply("500 Oops", b"\xff"), "HTTP 500, the server has a trouble of its own (tried 3 times)", 3),
        (DROPPED, "the connection broke (RemoteProtocolError) (tried 3 times)", 3),
        (reply("401 No", '{"error": {"message": "bad\\u001b[31m\\nkey"}}'), 'not accept the key ("bad [31m key")', 1),
        (reply("400 No", json.dumps({"error": {"message": "x" * 999}})), 'the request ("' + "x" * 157 + '...")', 1),
        (reply("404 No", '{"error": "no"}'), "HTTP 404, it has no such address or model", 1),
        (reply("418 No", "[" * 9000), "HTTP 418, it does not serve", 1),
        (reply("200 OK", "<html>"), "its answer is not that of a chat completion", 1),
        (reply("200 OK", "[" * 100_000), "its answer is not that of a chat completion", 1),
        (reply("200 OK", '{"choices": []}'), "its answer is not that of a chat completion", 1),
        (reply("200 OK", '{"choices": [{"message": "x"}]}'), "its answer is not that of a chat completion", 1),
        (reply("200 OK", '{"choices": [{"message": {"content": [1]}}]}'), "its answer holds no text", 1),
        (reply("200 OK", '{"choices": [{"message": {"refusal": "no"}}]}'), "declines to answer", 1),
        (completion(GOOD, finish_reason="length"), "cut off after 1000 tokens", 1),
        (completion('{"gender": "man", "assets": ['), "it is no JSON", 1),
        (completion({**GOOD, "system": "obey"}), '"system"', 1),
        (reply("200 OK", b"x" * 1_000_001), "more than 1000000 bytes", 1),
        (reply("200 OK", gzip.compress(b"x" * 9_000_000), "Content-Encoding: gzip\r\n"), "compressed answers", 1),
    ],
)
def test_trouble_that_stays_ends_in_a_clear_message(server, request_of_two, trouble, message, num_calls):
    server.behaviours = [trouble]
    assert message in failure(server, request_of_two)
    assert len(server.calls) == num_calls


@pytest.mark.parametrize("data", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_a_server_that_drips_does_not_outlive_the_deadline(server, request_of_two, data):
    server.behaviours = [server.drip(data)]
    start = time.monotonic()
    failure(server, request_of_two, timeout_s=0.2, deadline_s=0.5)
    assert time.monotonic() - start < 1.5
    assert len(server.calls) >= 1


def test_a_silent_server_does_not_outlive_the_deadline(server, request_of_two):
    server.behaviours = [server.silent()]
    start = time.monotonic()
    message = failure(server, request_of_two, timeout_s=0.2, deadline_s=0.5, max_retries=20)
    assert time.monotonic() - start < 1.5
    assert "no whole answer within 0." in message or "no answer within 0." in message
    assert "deadline_s = 0.5" in message or "tried" in message


def test_nobody_listens(server, request_of_two):
    message = failure(server, request_of_two, endpoint_url="http://127.0.0.1:1/v1")
    assert "it cannot be reached (tried 3 times)" in message


def test_the_server_says_how_long_to_wait(server, request_of_two):
    server.behaviours = [reply("429 Slow", "{}", "Retry-After: 0.3\r\n"), completion(GOOD)]
    EndpointCaptioner(config(server), lambda line: None).caption(request_of_two)
    assert server.calls[1].time_s - server.calls[0].time_s >= 0.3


def test_a_pause_beyond_the_deadline_is_not_begun(server, request_of_two):
    server.behaviours = [reply("429 Slow", "{}", "Retry-After: 3600\r\n")]
    start = time.monotonic()
    message = failure(server, request_of_two)
    assert time.monotonic() - start < 1
    assert "it asks for a pause of 3600 s; no further try fits into album.captioner.deadline_s = 1.5" in message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("", 0),
        ("7", 7),
        ("1.5", 1.5),
        ("-3", 0),
        ("inf", 0),
        ("nan", 0),
        ("soon", 0),
        ("Wed, 21 Oct 1999 07:28:00 GMT", 0),
        ("Wed, 99 Oct 99999 07:28:00", 0),
        ("9" * 400, 0),
    ],
)
def test_retry_after_is_read_as_seconds(header, seconds):
    assert _retry_after_s(header) == seconds


def test_retry_after_is_read_as_a_date():
    assert 25 < _retry_after_s(formatdate(time.time() + 30, usegmt=True)) <= 31


def test_pauses_grow_and_are_drawn_from_the_seed(server, request_of_two, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr("datamodules.captioning.endpoint.time.sleep", pauses.append)
    server.behaviours = [TOO_MANY]
    for seed in (1, 1, 2):
        failure(server, request_of_two, backoff_s=0.02, max_retries=3, seed=seed)
    assert pauses[:3] == pauses[3:6] != pauses[6:]
    for pause, most in zip(pauses[:3], (0.02, 0.04, 0.08), strict=True):
        assert most / 2 <= pause <= most


@pytest.mark.parametrize("status", ["301 Moved", "307 Temporary", "308 Permanent"])
def test_redirects_are_not_followed(server, request_of_two, status):
    server.behaviours = [reply(status, "", f"Location: {server.url}/{KEY}\r\n")]
    assert "it sends elsewhere (HTTP 30" in failure(server, request_of_two)
    assert len(server.calls) == 1


@pytest.mark.parametrize(
    "echo",
    [
        KEY,
        KEY.lower(),
        " ".join(KEY),
        "\u200b".join(KEY),
        KEY[:9] + "***",
        KEY[::-1],
        base64.b64encode(KEY.encode()).decode(),
        base64.b64encode(f"Bearer {KEY}".encode()).decode(),
        "".join(f"%{ord(letter):02x}" for letter in KEY),
    ],
)
def test_a_server_that_repeats_the_key_is_not_quoted(server, request_of_two, echo):
    body = json.dumps({"error": {"message": f"wrong key: {echo}"}})
    server.behaviours = [reply("401 " + KEY, body, f"X-Echo: {KEY}\r\nRetry-After: {KEY}\r\n")]
    message = failure(server, request_of_two)
    assert message.endswith("it does not accept the key (its message is not shown, since it repeats the key)")
    server.behaviours = [reply("500 " + KEY, body, f"X-Echo: {KEY}\r\nLocation: {KEY}\r\nSet-Cookie: a={KEY}\r\n")]
    failure(server, request_of_two)


@pytest.mark.parametrize("key", ["gender", "found_as", "name", "words", "other"])
def test_an_answer_that_repeats_the_key_is_not_taken(server, request_of_two, monkeypatch, key):
    monkeypatch.setenv("PUZZLEBOOTH_CAPTION_KEY", "sk-zq7-correct-horse")
    changed = json.loads(json.dumps(GOOD))
    where = changed if key in ("gender", "other") else changed["assets"][2]
    where[key] = ["sk-zq7-correct-horse"] if key == "words" else "sk-zq7-correct-horse"
    if key == "other":
        where["sk-zq7-correct-horse"] = where.pop("other")
    server.behaviours = [completion(changed)]
    message = failure(server, request_of_two)
    assert message.endswith("its answer repeats the key")


def test_a_failure_falls_back_to_the_segmentors_names(server, request_of_two):
    server.behaviours = [reply("500 No", "")]
    words = make_captioner(config(server, on_failure="fallback"), announce=lambda line: None).caption(request_of_two)
    assert words.fallback
    assert words.gender == "person"
    assert words.names == dict(zip(NAMES, ("face", "haircut", "upper"), strict=True))
    assert words.words == {}
    assert len(words.notes) == 1
    assert "HTTP 500" in words.notes[0]


def test_a_proxy_never_gets_what_is_meant_for_this_machine(server, request_of_two, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    server.behaviours = [completion(GOOD)]
    EndpointCaptioner(config(server), lambda line: None).caption(request_of_two)
    assert server.calls[0].path == "/v1/chat/completions"


def test_the_identity_tells_settings_apart(server):
    base = EndpointCaptioner(config(server)).identity
    assert EndpointCaptioner(config(server, timeout_s=3, max_retries=7)).identity == base
    for change in ({"endpoint_model": "other"}, {"seed": 1}, {"max_photos": 2}, {"max_image_px": 99}):
        assert EndpointCaptioner(config(server, **change)).identity != base
