from __future__ import annotations

import pytest

from datamodules.captioning.config import CaptionerConfig

BASE = {"method": "endpoint", "endpoint_url": "https://host/v1", "endpoint_model": "m"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "gpt"}, 'method must be "auto", "names", "local" or "endpoint", found \'gpt\''),
        ({"on_failure": "panic"}, 'on_failure must be "fallback" or "error"'),
        ({"method": "local"}, "needs model"),
        ({"method": "endpoint", "endpoint_model": "m"}, "needs endpoint_url"),
        ({"method": "endpoint", "endpoint_url": "https://host/v1"}, "needs endpoint_model"),
        ({"endpoint_url": "http://host/v1"}, "must begin with https://"),
        ({"endpoint_url": "http://127.0.0.1.evil.example/v1"}, "must begin with https://"),
        ({"endpoint_url": "ftp://localhost/v1"}, "must begin with https://"),
        ({"endpoint_url": "https://host:port/v1"}, "cannot be read"),
        ({"endpoint_url": "https://"}, "must be like https://HOST/v1"),
        ({"endpoint_url": "https://ho st/v1"}, "must be like https://HOST/v1"),
        ({"timeout_s": 0}, r"timeout_s must lie in \[0.05, 3600\], found 0"),
        ({"deadline_s": float("nan")}, "deadline_s must lie in"),
        ({"max_retries": -1}, "max_retries must lie in"),
        ({"backoff_s": -1}, "backoff_s must lie in"),
        ({"max_photos": 0}, "max_photos must lie in"),
        ({"max_image_px": 8}, "max_image_px must lie in"),
        ({"max_image_bytes": 100}, "max_image_bytes must lie in"),
        ({"usd_per_1000_tokens": -1}, "usd_per_1000_tokens must lie in"),
        ({"seed": -1}, "seed must lie in"),
        ({"max_cost_usd": 1.0}, "needs usd_per_1000_tokens"),
    ],
)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        CaptionerConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"api_key_variable": "sk-hush-123"},
        {"api_key_variable": "hush123"},
        {"endpoint_url": "https://me:hush@host/v1"},
        {"endpoint_url": "https://hush@host/v1"},
        {"endpoint_url": "https://host/v1?key=hush"},
        {"endpoint_url": "https://host/v1#hush"},
    ],
)
def test_a_key_in_the_wrong_setting_is_not_repeated(settings):
    with pytest.raises(ValueError, match="must") as caught:
        CaptionerConfig(**settings)
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://localhost:8000/v1", "http://127.0.0.9/v1", "http://[::1]:1/v1", "https://a.b"])
def test_addresses_that_are_safe(url):
    assert CaptionerConfig(**{**BASE, "endpoint_url": url}).endpoint_url == url


def test_nothing_is_sent_by_default():
    assert CaptionerConfig().method == "auto"
    assert not CaptionerConfig(**BASE).allow_network
