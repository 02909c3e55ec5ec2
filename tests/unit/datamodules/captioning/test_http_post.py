from __future__ import annotations

import pytest

from datamodules.captioning.http_post import NoAnswer, Secret, make_tls_context, post_json
from tests.unit.datamodules.captioning.conftest import all_that_hangs_on, reply

KEY = "sk-Zq7-correct+horse"


@pytest.mark.parametrize("behaviour", ["huge", "dropped", "slow", "compressed"])
def test_a_failure_leads_to_nothing_that_holds_the_key(server, behaviour):
    behaviours = {
        "huge": reply("200 OK", b"x" * 1_000_001),
        "dropped": lambda send: None,
        "slow": server.silent(),
        "compressed": reply("200 OK", b"", "Content-Encoding: br\r\n"),
    }
    server.behaviours = [behaviours[behaviour]]
    with pytest.raises(NoAnswer) as caught:
        post_json(server.url, {}, Secret(KEY), timeout_s=0.3, tls=make_tls_context())
    assert caught.value.again == (behaviour in ("dropped", "slow"))
    assert server.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert KEY not in all_that_hangs_on(caught.value)


def test_an_address_that_cannot_be_called_is_a_failure():
    with pytest.raises(NoAnswer, match="the request failed") as caught:
        post_json("http://127.0.0.1:99999/v1", {}, Secret(KEY), timeout_s=0.3, tls=make_tls_context())
    assert KEY not in all_that_hangs_on(caught.value)


def test_an_answer_of_the_greatest_size_is_read(server):
    server.behaviours = [reply("200 OK", b"x" * 1_000_000, "X-Some: Header\r\n")]
    answer = post_json(server.url, {"a": 1}, Secret(""), timeout_s=5, tls=make_tls_context())
    assert (answer.status, len(answer.body), answer.headers["x-some"]) == (200, 1_000_000, "Header")
    assert server.calls[0].body == {"a": 1}
    assert "Header" not in repr(answer)


def test_a_secret_shows_itself_only_when_it_is_asked():
    secret = Secret(KEY)
    assert KEY not in f"{secret} {secret!r} {vars(secret)}"
    assert secret.reveal() == KEY
    assert secret
    assert not Secret("")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (KEY, True),
        (f"wrong key {KEY.upper()}!", True),
        ("..." + KEY[-6:], True),
        ("..." + KEY[-5:], False),
        ("\n".join(KEY), True),
        ("the model does not exist", False),
        ("", False),
    ],
)
def test_a_secret_knows_texts_that_tell_it(text, told):
    assert Secret(KEY).is_told_by(text) is told
    assert not Secret("").is_told_by(text)
    assert Secret("ab").is_told_by("a b")
