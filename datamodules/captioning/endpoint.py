"""The captioner that asks a server with OpenAI's interface: `POST {endpoint_url}/chat/completions`.

Photos of a person leave the machine here, so nothing is sent without `allow_network`, and before anything is, a line
says what goes where and what it may cost.
"""

from __future__ import annotations

import base64
import email.utils
import hashlib
import json
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from datamodules.captioning.answer import QUESTION, answer_schema, make_question, parse_words
from datamodules.captioning.captioner import AlbumWords, CaptionFailed, CaptionRequest
from datamodules.captioning.config import CaptionerConfig
from datamodules.captioning.http_post import Answer, NoAnswer, Secret, make_tls_context, post_json
from datamodules.captioning.photos import choose_photos, encode_jpeg, person_crop
from modules.errors import UserError

_MAX_OUTPUT_TOKENS = 1000
_MAX_PAUSE_S = 60.0
_MAX_KEY_CHARACTERS = 4096
# Servers differ in what a picture costs; tiles of 512 px at 170 tokens, and 85 besides, are a common rule.
_TILE_PX, _TILE_TOKENS, _PICTURE_TOKENS = 512, 170, 85
_CHARACTERS_PER_TOKEN = 4
_AGAIN = (408, 429, 500, 502, 503, 504)
_MEANINGS = {
    400: "it does not understand the request",
    401: "it does not accept the key",
    403: "it does not allow this with that key",
    404: "it has no such address or model",
    408: "it did not get the request in time",
    413: "the photos are too large for it",
    422: "it does not understand the request",
    429: "there were too many requests, or the account is used up",
}


class EndpointCaptioner:
    """Asks the server about up to `max_photos` photos of an album, in one request."""

    def __init__(self, config: CaptionerConfig, announce: Callable[[str], None] = print) -> None:
        self.config = config
        self.announce = announce
        self.host = urlsplit(config.endpoint_url).netloc

    @property
    def identity(self) -> str:
        config = self.config
        shown = f"{config.max_photos} x {config.max_image_px} px, {config.max_image_bytes} bytes"
        question = hashlib.sha256(QUESTION.encode()).hexdigest()[:16]
        url = config.endpoint_url.rstrip("/")
        return f"endpoint {url} {config.endpoint_model} seed {config.seed} {shown} question {question}"

    def caption(self, request: CaptionRequest) -> AlbumWords:
        """Raises UserError when the settings do not allow the call, CaptionFailed when it gives no usable answer."""
        config = self.config
        indices = choose_photos(request, config.max_photos)
        crops = [person_crop(request, index, config.max_image_px) for index in indices]
        files = [encode_jpeg(crop, config.max_image_bytes) for crop in crops]
        question = make_question(request.asset_names)
        size = f"{len(files)} {'photo' if len(files) == 1 else 'photos'} ({sum(map(len, files)) / 1000:.0f} kB)"
        if not config.allow_network:
            raise UserError(
                f"the captioner would send {size} of the person and the list of assets to {self.host} (model "
                f"{config.endpoint_model}), which needs your leave: set album.captioner.allow_network=true, or "
                f"album.captioner.method=names to do without"
            )
        key = self._key()
        cost = self._estimate(crops, question)
        self.announce(f"captioner: sends {size} of the person to {self.host} (model {config.endpoint_model}): {cost}")
        text = self._ask(self._payload(files, question, request.asset_names), key)
        repeated = self._failed("its answer repeats the key")
        try:
            words = parse_words(text, request.asset_names)
        except CaptionFailed as failure:
            raise repeated if key.is_told_by(str(failure)) else self._failed(str(failure)) from None
        # A key may well pass for a name of an asset.
        if key.is_told_by("\n".join([*words.names.values(), *words.words.values(), *words.notes])):
            raise repeated
        return words

    def _key(self) -> Secret:
        name = self.config.api_key_variable
        # Read here and not earlier, and held in nothing that could be printed.
        key = Secret(os.environ.get(name, "").strip())
        if key and not (
            len(key.reveal()) <= _MAX_KEY_CHARACTERS and all("!" <= character <= "~" for character in key.reveal())
        ):
            raise UserError(
                f"the environment variable {name} holds spaces, line breaks or characters that no key has (it is not "
                f"shown here); set it to the key alone"
            )
        return key

    def _estimate(self, crops: Sequence[Image.Image], question: str) -> str:
        """The estimate in words; UserError when it is above `max_cost_usd`."""
        config = self.config
        tokens = math.ceil(len(question) / _CHARACTERS_PER_TOKEN)
        for crop in crops:
            tiles = math.ceil(crop.width / _TILE_PX) * math.ceil(crop.height / _TILE_PX)
            tokens += _PICTURE_TOKENS + _TILE_TOKENS * tiles
        if not config.usd_per_1000_tokens:
            return f"about {tokens} input tokens (set album.captioner.usd_per_1000_tokens to see a price)"
        once = tokens / 1000 * config.usd_per_1000_tokens
        at_most = once * (1 + config.max_retries)
        if config.max_cost_usd and at_most > config.max_cost_usd:
            raise UserError(
                f"the captioner's call to {self.host} is estimated at {once:.4f} USD, {at_most:.4f} with all tries, "
                f"but album.captioner.max_cost_usd is {config.max_cost_usd:g}: raise it, or send fewer or smaller "
                f"photos (max_photos, max_image_px)"
            )
        return f"about {tokens} input tokens, {once:.4f} USD (at most {at_most:.4f} if every try is charged)"

    def _payload(self, files: Sequence[bytes], question: str, asset_names: Sequence[str]) -> dict[str, Any]:
        urls = [f"data:image/jpeg;base64,{base64.b64encode(file).decode()}" for file in files]
        pictures = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
        schema = {"name": "album_words", "strict": True, "schema": answer_schema(asset_names)}
        return {
            "model": self.config.endpoint_model,
            "messages": [{"role": "user", "content": [*pictures, {"type": "text", "text": question}]}],
            "response_format": {"type": "json_schema", "json_schema": schema},
            "temperature": 0,
            "seed": self.config.seed,
            "max_tokens": _MAX_OUTPUT_TOKENS,
        }

    def _ask(self, payload: dict[str, Any], key: Secret) -> str:
        """The text of the model's answer, after as many tries as are needed and allowed."""
        config = self.config
        url = config.endpoint_url.rstrip("/") + "/chat/completions"
        chance = random.Random(config.seed)
        tls = make_tls_context()
        end = time.monotonic() + config.deadline_s
        tries = 0
        while True:
            tries += 1
            wanted_pause_s = 0.0
            try:
                timeout_s = min(config.timeout_s, max(0.01, end - time.monotonic()))
                answer = post_json(url, payload, key, timeout_s=timeout_s, tls=tls)
                if answer.status == 200:
                    return self._text(answer)
                reason = self._refusal(answer, key)
                again = answer.status in _AGAIN
                wanted_pause_s = _retry_after_s(answer.headers.get("retry-after", ""))
            except NoAnswer as failure:
                reason, again = str(failure), failure.again
            if not again:
                raise self._failed(reason)
            if tries > config.max_retries:
                raise self._failed(f"{reason} (tried {tries} times)")
            pause_s = min(_MAX_PAUSE_S, config.backoff_s * 2 ** (tries - 1)) * (0.5 + 0.5 * chance.random())
            pause_s = max(pause_s, wanted_pause_s)
            if time.monotonic() + pause_s >= end:
                asked = f", and it asks for a pause of {wanted_pause_s:.0f} s" if wanted_pause_s else ""
                raise self._failed(
                    f"{reason}{asked}; no further try fits into album.captioner.deadline_s = {config.deadline_s:g}"
                )
            time.sleep(pause_s)

    def _text(self, answer: Answer) -> str:
        try:
            content = json.loads(answer.body)
            choice = content["choices"][0]
            message = choice["message"]
            text = message.get("content")
            finished, refused = choice.get("finish_reason"), message.get("refusal")
        except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
            raise self._failed("its answer is not that of a chat completion, which is JSON with choices") from None
        if refused:
            raise self._failed("the model declines to answer")
        if finished == "length":
            raise self._failed(f"the model's answer is cut off after {_MAX_OUTPUT_TOKENS} tokens")
        if not isinstance(text, str):
            raise self._failed("its answer holds no text")
        return text

    def _refusal(self, answer: Answer, key: Secret) -> str:
        """Why there is no answer, from a status other than 200; the server's own words are quoted with care."""
        status = answer.status
        if 300 <= status < 400:
            return f"it sends elsewhere (HTTP {status}), where nothing is sent; set endpoint_url to the final address"
        meaning = _MEANINGS.get(status, "the server has a trouble of its own" if status >= 500 else "it does not serve")
        return f"HTTP {status}, {meaning}{_quote(answer.body, key)}"

    def _failed(self, reason: str) -> CaptionFailed:
        return CaptionFailed(f"the captioner's endpoint {self.host} gave no usable answer: {reason}")


def _quote(body: bytes, key: Secret) -> str:
    """The message of an error as OpenAI's servers send it; nothing where there is none, or where it tells the key."""
    try:
        text = json.loads(body)["error"]["message"]
    except (ValueError, RecursionError, LookupError, TypeError):
        return ""
    if not isinstance(text, str):
        return ""
    if key.is_told_by(text):
        return " (its message is not shown, since it repeats the key)"
    text = "".join(character if character.isprintable() else " " for character in text)
    text = " ".join(text.split())
    return f' ("{text if len(text) <= 160 else text[:157] + "..."}")' if text else ""


def _retry_after_s(header: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or as a date; 0 for none that can be read."""
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = email.utils.parsedate_to_datetime(header)
        except (ValueError, TypeError, IndexError, OverflowError):
            return 0.0
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
