"""Tokens and adapters: no effect at the start, no effect on other albums, no change of the frozen model."""

from __future__ import annotations

import pytest
import torch

from modules.diffusion.adapters import StackedAdapter
from modules.diffusion.attention import ColumnCapture, capture_side
from modules.diffusion.backbone import Backbone
from modules.diffusion.personalization import AdapterConfig, Personalization
from modules.diffusion.routing import NO_ALBUM
from modules.diffusion.tokens import class_embedding

PROMPT = "a woman, <asset0> face, wearing <asset1> t-shirt."


def personalize(backbone: Backbone, num_albums: int = 2) -> Personalization:
    personalization = Personalization(backbone, AdapterConfig(rank=4), num_albums=num_albums, num_tokens=3)
    for album in range(num_albums):
        personalization.reset_album(album, ["face", "t-shirt"], backbone, seed=album)
    return personalization


def disturb(personalization: Personalization, album: int) -> None:
    """Give one album a visible effect."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        personalization.tokens[album] += torch.randn(personalization.tokens[album].shape, generator=generator)
        for adapter in personalization.adapters():
            adapter.up[album] += torch.randn(adapter.up[album].shape, generator=generator)


def predict(backbone: Backbone, personalization: Personalization, albums: list[int], prompt: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    noisy = torch.randn(1, 48, 8, 8, generator=generator).expand(len(albums), -1, -1, -1)
    with torch.no_grad(), personalization.routing.rows(torch.tensor(albums)):
        text = backbone.encode_text(backbone.tokenize([prompt] * len(albums)))
        return backbone.predict(noisy, torch.full((len(albums),), 300), text).clean


def test_a_fresh_personalization_changes_nothing(backbone: Backbone) -> None:
    text = backbone.encode_text(backbone.tokenize(["a woman, face."]))
    noisy = torch.randn(1, 48, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = backbone.predict(noisy, torch.tensor([300]), text).clean
    after = predict(backbone, personalize(backbone), [0], "a woman, face.")
    torch.testing.assert_close(after, before)


def test_albums_do_not_touch_each_other_or_the_frozen_rows(backbone: Backbone) -> None:
    personalization = personalize(backbone)
    before = predict(backbone, personalization, [0, 1, NO_ALBUM], "a woman, face.")
    disturb(personalization, 1)
    after = predict(backbone, personalization, [0, 1, NO_ALBUM], "a woman, face.")
    torch.testing.assert_close(after[0], before[0])
    torch.testing.assert_close(after[2], before[2])
    assert (after[1] - before[1]).abs().max() > 1e-3


def test_a_row_does_not_depend_on_its_neighbours(backbone: Backbone) -> None:
    personalization = personalize(backbone)
    disturb(personalization, 1)
    alone = predict(backbone, personalization, [1], PROMPT)
    together = predict(backbone, personalization, [0, 1, 0], PROMPT)
    torch.testing.assert_close(together[1], alone[0], atol=1e-5, rtol=1e-4)


def test_placeholders_start_at_their_class_word(backbone: Backbone) -> None:
    personalization = personalize(backbone)
    expected = class_embedding(backbone.tokenizer, backbone.text_encoder.get_input_embeddings().table, "t-shirt")
    torch.testing.assert_close(personalization.tokens[0, 1].detach(), expected)
    with pytest.raises(ValueError, match="has no tokens"):
        class_embedding(backbone.tokenizer, backbone.text_encoder.get_input_embeddings().table, "")


def test_album_state_moves_to_another_index(backbone: Backbone) -> None:
    personalization = personalize(backbone, num_albums=3)
    disturb(personalization, 0)
    expected = predict(backbone, personalization, [0], PROMPT)
    personalization.load_album_state(2, personalization.album_state(0))
    torch.testing.assert_close(predict(backbone, personalization, [2], PROMPT), expected)
    with pytest.raises(ValueError, match="tensors differ"):
        personalization.load_album_state(1, {"tokens": torch.zeros(1)})


def test_too_many_assets_are_refused(backbone: Backbone) -> None:
    personalization = personalize(backbone)
    with pytest.raises(ValueError, match="has 4 assets; this pack has 3 tokens"):
        personalization.reset_album(0, ["a", "b", "c", "d"], backbone, seed=0)


def test_the_batched_adapter_equals_a_loop_and_starts_from_its_own_seed() -> None:
    layer = torch.nn.Linear(6, 5)
    adapter = StackedAdapter(layer, num_albums=3, rank=2, alpha=4.0)
    for album in range(3):
        adapter.reset(album, torch.Generator().manual_seed(album))
    with torch.no_grad():
        adapter.up.normal_(generator=torch.Generator().manual_seed(5))
    features, albums = torch.randn(4, 7, 6), torch.tensor([2, 0, NO_ALBUM, 1])
    result = adapter(features, albums)
    for row, album in enumerate(albums.tolist()):
        expected = (
            torch.zeros(7, 5)
            if album < 0
            else features[row] @ adapter.down[album].T @ adapter.up[album].T * 4.0 / 2**0.5
        )
        torch.testing.assert_close(result[row], expected)
    alone = StackedAdapter(layer, num_albums=1, rank=2, alpha=4.0)
    alone.reset(0, torch.Generator().manual_seed(2))
    torch.testing.assert_close(alone.down[0], adapter.down[2])


def test_captured_columns_are_attention_and_leave_the_output_alone(backbone: Backbone) -> None:
    text = backbone.encode_text(backbone.tokenize(["a woman, face."]))
    noisy = torch.randn(1, 48, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = backbone.predict(noisy, torch.tensor([300]), text).clean
        capture = ColumnCapture(backbone.unet)
        every_token = torch.arange(text.shape[1])[None]
        capture.start(every_token)
        after = backbone.predict(noisy, torch.tensor([300]), text).clean
        maps = capture.maps()
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-4)
    assert maps.shape == (1, 77, 8, 8)
    torch.testing.assert_close(maps.sum(1), torch.ones(1, 8, 8))
    with pytest.raises(RuntimeError, match="no attention was captured"):
        capture.maps()


class _Unet:
    def __init__(self, **config: object) -> None:
        self.config = type("Config", (), config)


def test_capture_side_of_known_models() -> None:
    stable_diffusion = _Unet(
        sample_size=64,
        block_out_channels=(320, 640, 1280, 1280),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    assert capture_side(stable_diffusion) == 16
    with pytest.raises(ValueError, match="no cross-attention outside its middle block"):
        capture_side(_Unet(sample_size=8, block_out_channels=(8,), down_block_types=("D",), up_block_types=("U",)))
