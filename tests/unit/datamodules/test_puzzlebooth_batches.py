"""Union sampling: what a batch holds, and that it depends on nothing but seed, album and step."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.puzzlebooth import BackboneShape, PriorSample, PuzzleBoothBatches, UnionSampler, subject_of
from modules.contracts import RowKind
from modules.diffusion.routing import NO_ALBUM
from modules.errors import AlbumFailed
from modules.puzzlebooth_config import PuzzleBoothConfig
from tests.tiny_album import tiny_album

FIRST_ID = 100


def tokenize(prompts: list[str]) -> torch.Tensor:
    """One id per word; placeholders from FIRST_ID on."""
    rows = []
    for prompt in prompts:
        ids = [FIRST_ID + int(word[6:-1]) if word.startswith("<asset") else 1 for word in prompt.split()]
        rows.append((ids + [0] * 60)[:60])
    return torch.tensor(rows)


def shape(**changes: Any) -> BackboneShape:
    values: dict[str, Any] = {
        "image_size": 16,
        "latent_size": 4,
        "num_latent_channels": 48,
        "num_timesteps": 1000,
        "capture_side": 4,
        "first_placeholder_id": FIRST_ID,
        "view_vocabulary": "eight",
        "scene_words": True,
        "tokenize": tokenize,
    }
    return BackboneShape(**(values | changes))


def batches(*names: str, config: PuzzleBoothConfig | None = None, seed: int = 0) -> PuzzleBoothBatches:
    albums = [tiny_album(name, seed=ord(name)) for name in names]
    sample = PriorSample(image=np.full((16, 16, 3), 200, np.uint8), prompt="a man, front view.")
    return PuzzleBoothBatches(
        albums,
        config or PuzzleBoothConfig(photos_per_step=3),
        shape(),
        synthetic=None,
        samples=[[sample]] * len(albums),
        seed=seed,
    )


def rows_of(batch: dict[str, torch.Tensor], album: int) -> dict[str, torch.Tensor]:
    return {name: value[batch["albums"] == album] for name, value in batch.items() if name != "albums"}


def test_a_batch_keeps_its_contract() -> None:
    batch = batches("a", "b")(0)
    assert batch["images"].shape == (8, 3, 16, 16)
    assert 0 <= batch["images"].min() <= batch["images"].max() <= 1
    assert batch["albums"].tolist() == [0] * 4 + [1] * 4
    assert batch["kinds"].tolist() == [int(RowKind.PHOTO)] * 3 + [int(RowKind.PRIOR_SAMPLE)] + [
        int(RowKind.PHOTO)
    ] * 3 + [int(RowKind.PRIOR_SAMPLE)]
    assert batch["masks"].shape == (8, 1, 4, 4)
    assert batch["noise"].shape == (8, 48, 4, 4)
    assert batch["asset_masks"].shape == (8, 3, 4, 4)
    assert (batch["columns"][3] == -1).all(), "a prior image has no tokens"


def test_columns_point_at_the_tokens_of_the_sampled_assets() -> None:
    batch = batches("a")(5)
    for row in range(3):
        for asset in range(3):
            column = int(batch["columns"][row, asset])
            has_token = (batch["input_ids"][row] == FIRST_ID + asset).any()
            assert has_token == (column >= 0)
            if column >= 0:
                assert batch["input_ids"][row, column] == FIRST_ID + asset
                assert batch["asset_masks"][row, asset].max() > 0


def test_an_albums_rows_do_not_depend_on_its_pack_or_on_other_steps() -> None:
    alone, together = batches("b"), batches("a", "b", "c")
    together(0)
    expected, found = rows_of(alone(7), 0), rows_of(together(7), 1)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0)


def test_steps_and_seeds_differ() -> None:
    assert not torch.equal(batches("a")(0)["noise"], batches("a")(1)["noise"])
    assert not torch.equal(batches("a")(0)["noise"], batches("a", seed=1)(0)["noise"])


def test_padding_is_left_out_of_the_loss() -> None:
    config = PuzzleBoothConfig(compose_fraction=0, flip_probability=0, mask_dilation=0.5)
    sampler = UnionSampler(tiny_album(), config, shape(image_size=32))
    for draw in range(5):
        *_, mask, _, _ = sampler.draw(np.random.default_rng(draw))
        assert mask[:, -6:].max() == 0
        assert mask[:, :16].max() == 1


def test_composed_images_show_the_sampled_assets_on_a_plain_named_background() -> None:
    config = PuzzleBoothConfig(compose_fraction=1, flip_probability=0)
    sampler = UnionSampler(tiny_album(), config, shape(image_size=32))
    whole_person_seen = False
    for draw in range(20):
        image, prompt, mask, chosen, masks = sampler.draw(np.random.default_rng(draw))
        word = prompt.rsplit(", ", 1)[1].split()[0]
        value = {"white": 237, "gray": 128, "black": 18}[word] / 255
        assert mask.min() == 1, "the composed image is known everywhere"
        np.testing.assert_allclose(image[0, 0], value, atol=1e-6)
        outside = ~masks.max(0).astype(bool)
        if len(chosen) == 3:
            outside &= ~tiny_album().person[0]
            whole_person_seen = True
        np.testing.assert_allclose(image[outside], value, atol=1e-6)
    assert whole_person_seen


def test_flipping_swaps_left_and_right() -> None:
    album = tiny_album(num_photos=1)
    straight = UnionSampler(album, PuzzleBoothConfig(compose_fraction=0, flip_probability=0), shape(image_size=32))
    flipped = UnionSampler(album, PuzzleBoothConfig(compose_fraction=0, flip_probability=1), shape(image_size=32))
    image, prompt, mask, _, _ = straight.draw(np.random.default_rng(3))
    mirrored, mirrored_prompt, mirrored_mask, _, _ = flipped.draw(np.random.default_rng(3))
    assert "front left view" in prompt
    assert "front right view" in mirrored_prompt
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    np.testing.assert_array_equal(mirrored_mask, mask[:, ::-1])


def test_face_is_sampled_more_often() -> None:
    sampler = UnionSampler(tiny_album(), PuzzleBoothConfig(compose_fraction=0), shape())
    counts = np.zeros(3)
    for draw in range(300):
        chosen = sampler.draw(np.random.default_rng(draw))[3]
        counts[chosen] += 1
    assert counts[0] > 1.2 * counts[1]


def test_a_backbone_with_four_views_and_no_scene_words_hears_only_those() -> None:
    sampler = UnionSampler(
        tiny_album(num_photos=1),
        PuzzleBoothConfig(flip_probability=0, compose_fraction=0),
        shape(view_vocabulary="four", scene_words=False),
    )
    prompt = sampler.draw(np.random.default_rng(0))[1]
    assert prompt.endswith(", side view.")
    assert "full body" not in prompt


def test_an_album_without_any_asset_is_failed_by_name() -> None:
    album = tiny_album()
    empty = dataclasses.replace(album, masks=np.zeros_like(album.masks))
    with pytest.raises(AlbumFailed, match="album a: no photo shows any asset"):
        UnionSampler(empty, PuzzleBoothConfig(), shape())


def test_subjects_speak_with_tokens_or_in_words_alone() -> None:
    subject = subject_of(tiny_album(), 2, seed=0)
    assert [str(asset) for asset in subject.assets] == [
        "<asset0> oval face",
        "<asset1> t-shirt",
        "<asset2> long trousers",
    ]
    words = subject_of(tiny_album(), NO_ALBUM, seed=0, personalized=False)
    assert [str(asset) for asset in words.assets] == ["oval face", "t-shirt", "long trousers"]
    assert words.seed == subject.seed


def test_noisy_timesteps_can_be_drawn_more_often() -> None:
    def share(fraction: float) -> float:
        sampled = batches("a", config=PuzzleBoothConfig(photos_per_step=8, high_noise_fraction=fraction))
        times = torch.cat([sampled(step)["timesteps"] for step in range(40)])
        assert 0 <= times.min() <= times.max() < 1000
        return (times >= 700).float().mean().item()

    assert share(0.0) == pytest.approx(0.3, abs=0.08)
    assert share(1.0) == 1.0
