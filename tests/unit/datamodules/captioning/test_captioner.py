from __future__ import annotations

import pytest

from datamodules.captioning.captioner import AlbumWords, FallbackCaptioner, make_captioner
from datamodules.captioning.config import CaptionerConfig
from datamodules.captioning.endpoint import EndpointCaptioner
from datamodules.captioning.local_model import LocalCaptioner
from datamodules.captioning.names import NamesCaptioner

LOCAL = {"method": "local", "model": "owner/name"}
ENDPOINT = {"method": "endpoint", "endpoint_url": "https://host/v1", "endpoint_model": "m"}


@pytest.mark.parametrize("method", ["auto", "names"])
def test_without_a_model_the_names_are_the_segmentors(request_of_two, method):
    captioner = make_captioner(CaptionerConfig(method=method))
    assert isinstance(captioner, NamesCaptioner)
    expected = AlbumWords(names={"face": "face", "hair": "haircut", "upper": "upper"})
    assert captioner.caption(request_of_two) == expected


@pytest.mark.parametrize(("settings", "kind"), [(LOCAL, LocalCaptioner), (ENDPOINT, EndpointCaptioner)])
def test_the_settings_choose_the_captioner_and_its_fallback(settings, kind):
    bare = make_captioner(CaptionerConfig(**settings, on_failure="error"))
    backed = make_captioner(CaptionerConfig(**settings))
    assert isinstance(bare, kind)
    assert isinstance(backed, FallbackCaptioner)
    assert isinstance(backed.captioner, kind)
    # The fallback's names are not kept, so both share what is.
    assert backed.identity == bare.identity
