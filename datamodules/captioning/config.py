"""Settings of the captioner; `album.captioner.KEY=value` on the command line."""

from __future__ import annotations

import ipaddress
import math
import re
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")


@dataclass(frozen=True, kw_only=True)
class CaptionerConfig:
    """Who names the assets of an album, says their shape in words, and the noun for the person.

    Attributes:
        method: "auto" takes the album's own JSON where there is one, and the segmentor's names otherwise; "names" takes
            the segmentor's names, without words; "local" asks a vision-language model on this machine; "endpoint" asks
            a server with OpenAI's interface.
        model: for "local": a folder or a hub id (OWNER/NAME or OWNER/NAME@REVISION) of a transformers model that turns
            images and text into text.
        endpoint_url: for "endpoint": the address before `/chat/completions`, for example https://host/v1; plain http is
            for this machine only.
        endpoint_model: for "endpoint": the model's name there.
        api_key_variable: the environment variable that holds the key; where it is empty or missing, no key is sent.
        allow_network: may photos be sent to the endpoint, or a model be downloaded; nothing is without it.
        timeout_s: for one request from its beginning to the last byte of the answer.
        deadline_s: for all tries together, pauses included.
        max_retries: further tries after 429, a server's error, a timeout or a dropped connection.
        backoff_s: pause before the first further try; it doubles with each, and half of it is left to chance.
        max_photos: so many photos of the album are shown to the model.
        max_image_px: longer side of such a photo.
        max_image_bytes: of such a photo as a JPEG file.
        usd_per_1000_tokens: price of input tokens, for the estimate that is printed before the call; 0 is unknown.
        max_cost_usd: nothing is sent where the estimate, all tries included, is higher; 0 for no bound.
        seed: of the model's decoding and of the pauses.
        on_failure: "fallback" goes on with the segmentor's names when the model gives no usable answer; "error" ends.
    """

    method: Literal["auto", "names", "local", "endpoint"] = "auto"
    model: str = ""
    endpoint_url: str = ""
    endpoint_model: str = ""
    api_key_variable: str = "PUZZLEBOOTH_CAPTION_KEY"
    allow_network: bool = False
    timeout_s: float = 60.0
    deadline_s: float = 180.0
    max_retries: int = 3
    backoff_s: float = 1.0
    max_photos: int = 3
    max_image_px: int = 768
    max_image_bytes: int = 400_000
    usd_per_1000_tokens: float = 0.0
    max_cost_usd: float = 0.0
    seed: int = 0
    on_failure: Literal["fallback", "error"] = "fallback"

    def __post_init__(self) -> None:
        if self.method not in ("auto", "names", "local", "endpoint"):
            raise ValueError(f'method must be "auto", "names", "local" or "endpoint", found {self.method!r}')
        if self.on_failure not in ("fallback", "error"):
            raise ValueError(f'on_failure must be "fallback" or "error", found {self.on_failure!r}')
        # Whoever puts the key itself here must not find it in a log, so neither of these values is repeated.
        if not _VARIABLE.fullmatch(self.api_key_variable):
            raise ValueError(
                "api_key_variable must be the name of an environment variable, in capitals, digits and underscores "
                "(never the key itself); what was found is not repeated here"
            )
        if self.endpoint_url:
            check_endpoint_url(self.endpoint_url)
        if self.method == "local" and not self.model:
            raise ValueError('method "local" needs model, a folder or a hub id')
        for name in ("endpoint_url", "endpoint_model"):
            if self.method == "endpoint" and not getattr(self, name):
                raise ValueError(f'method "endpoint" needs {name}')
        ranges = {
            "timeout_s": (0.05, 3600),
            "deadline_s": (0.05, 86400),
            "max_retries": (0, 20),
            "backoff_s": (0, 600),
            "max_photos": (1, 16),
            "max_image_px": (64, 4096),
            "max_image_bytes": (10_000, 20_000_000),
            "usd_per_1000_tokens": (0, 1000),
            "max_cost_usd": (0, 1e6),
            "seed": (0, 2**31 - 1),
        }
        for name, (least, most) in ranges.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and least <= value <= most):
                raise ValueError(f"{name} must lie in [{least:g}, {most:g}], found {value}")
        if self.max_cost_usd and not self.usd_per_1000_tokens:
            raise ValueError("max_cost_usd bounds an estimate that needs usd_per_1000_tokens, found 0")


def check_endpoint_url(url: str) -> None:
    """Raise ValueError unless it is https (http on this machine) without a user, query or fragment in it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise ValueError("endpoint_url cannot be read as an address; https://HOST/v1 is expected") from None
    # A password or a key may hide in any of these, so the address is not repeated.
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            "endpoint_url must not hold a user, a password, a query or a fragment; the key is read from the "
            "environment variable that api_key_variable names"
        )
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("endpoint_url must be like https://HOST/v1, in plain ASCII")
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        raise ValueError(
            f"endpoint_url must begin with https:// (http:// is for this machine only), found {parts.scheme}:// "
            f"and the host {host}"
        )


def is_loopback(host: str) -> bool:
    """Whether it is a name or an address of this very machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
