"""PuzzleBooth's batches: union sampling of assets from each album, and prior images, for a pack of K albums.

A batch is a pure function of (seed, album, step): no album sees another's random numbers, and a run that was killed
goes on with the very batch it would have had.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from datamodules.assets import PreparedAlbum
from datamodules.prior_images import PriorImages
from datamodules.views import mirror_view, parse_view
from modules.contracts import BoothBatch, RowKind, Subject
from modules.diffusion.prompts import AssetPhrase, Scene, compose_prompt
from modules.diffusion.tokens import placeholder
from modules.errors import AlbumFailed, UserError
from modules.geometry.camera import ViewVocabulary
from modules.puzzlebooth_config import PuzzleBoothConfig

_PLAIN = {"white": 237, "gray": 128, "black": 18}


@dataclass(frozen=True, kw_only=True)
class BackboneShape:
    """What batches need to know of the backbone: sizes, vocabulary, and how prompts become token ids (L,)."""

    image_size: int
    latent_size: int
    num_latent_channels: int
    num_timesteps: int
    capture_side: int
    first_placeholder_id: int
    view_vocabulary: ViewVocabulary
    scene_words: bool
    tokenize: Callable[[list[str]], Tensor]


@dataclass(frozen=True, kw_only=True)
class PriorSample:
    """An image (S, S, 3) uint8 that the frozen model drew for a prompt without tokens."""

    image: np.ndarray
    prompt: str


def album_seed(content_hash: str, seed: int) -> int:
    """A seed that depends on the album's content and the run's seed, and on nothing else of the pack."""
    digest = hashlib.sha256(f"{seed}:{content_hash}".encode()).digest()
    return int.from_bytes(digest[:6], "big")


def subject_of(album: PreparedAlbum, index: int, seed: int, *, personalized: bool = True) -> Subject:
    """The person of an album as a distillation subject: with its tokens, or in words alone (index NO_ALBUM)."""
    return Subject(
        name=album.name,
        gender=album.gender,
        assets=tuple(
            AssetPhrase(name=name, words=words, token=placeholder(position) if personalized else "")
            for position, (name, words) in enumerate(zip(album.asset_names, album.asset_words, strict=True))
        ),
        album=index,
        seed=album_seed(album.content_hash, seed),
    )


class UnionSampler:
    """Draws (image, prompt, masks) of one album. Arrays are brought to the backbone's image size once."""

    def __init__(self, album: PreparedAlbum, config: PuzzleBoothConfig, shape: BackboneShape) -> None:
        if not album.present.any():
            raise AlbumFailed(f"album {album.name}: no photo shows any asset")
        self.album, self.config, self.shape = album, config, shape
        size = shape.image_size
        usable = [index for index in range(len(album.images)) if album.present[index].any()]
        self.photos = usable
        self.images = {index: _resize(album.images[index], size) for index in usable}
        self.valid = {index: _resize(album.valid[index].astype(np.float32), size) for index in usable}
        self.person = {index: _resize(album.person[index].astype(np.float32), size) for index in usable}
        self.masks = {
            index: np.stack([_resize(mask.astype(np.float32), size) for mask in album.masks[index]]) for index in usable
        }
        self.grown = {
            index: np.stack([self._grow(mask, name) for mask, name in zip(masks, album.asset_names, strict=True)])
            for index, masks in self.masks.items()
        }

    def _grow(self, mask: np.ndarray, name: str) -> np.ndarray:
        """Dilate a soft mask (S, S): borders belong to the asset too, and a face wants its surroundings."""
        reach = self.config.mask_dilation * self.shape.image_size
        if name == "face" and (mask > 0.5).any():
            rows = np.nonzero((mask > 0.5).any(1))[0]
            reach += self.config.face_dilation * (rows[-1] - rows[0] + 1) / 2
        side = 2 * round(reach) + 1
        return mask if side <= 1 else ndimage.grey_dilation(mask, size=(side, side))

    def draw(self, rng: np.random.Generator) -> tuple[np.ndarray, str, np.ndarray, list[int], np.ndarray]:
        """One photo with a random union of its assets.

        Returns image (S, S, 3) float32 in [0, 1], prompt, loss mask (S, S), chosen assets, and their masks (len, S, S).
        """
        album, config = self.album, self.config
        index = self.photos[int(rng.integers(len(self.photos)))]
        present = np.nonzero(album.present[index])[0]
        weight = np.array([config.face_weight if album.asset_names[a] == "face" else 1.0 for a in present])
        count = int(rng.integers(1, len(present) + 1))
        chosen = sorted(rng.choice(present, count, replace=False, p=weight / weight.sum()).tolist())
        compose = rng.random() < config.compose_fraction
        if compose and rng.random() < 0.5:
            chosen = present.tolist()
        mirrored = rng.random() < config.flip_probability
        background_word = str(rng.choice(list(_PLAIN)))

        image = self.images[index].astype(np.float32) / 255
        masks = self.masks[index][chosen]
        background = album.backgrounds[index]
        if compose:
            shown = self.person[index] if len(chosen) == len(present) else masks.max(0)
            # The composed image is clean everywhere, padding included, so all of it is trained on.
            image = image * shown[..., None] + (1 - shown[..., None]) * (_PLAIN[background_word] / 255)
            loss_mask = np.ones_like(shown)
            background = background_word
        else:
            loss_mask = self.grown[index][chosen].max(0) * self.valid[index]
        view = album.views[index]
        if mirrored:
            image, masks, loss_mask = image[:, ::-1], masks[..., ::-1], loss_mask[:, ::-1]
            view = mirror_view(view)
        if self.shape.view_vocabulary == "four" and view is not None:
            view = parse_view(view, "four")
        scene: Scene = (
            {"framing": album.framings[index], "pose": album.poses[index], "background": background}
            if self.shape.scene_words
            else {}
        )
        assets = [
            AssetPhrase(name=album.asset_names[a], words=album.asset_words[a], token=placeholder(a)) for a in chosen
        ]
        prompt = compose_prompt(album.gender, assets, view=view, **scene)
        return image, prompt, loss_mask, chosen, masks


class PuzzleBoothBatches:
    """`batches(step) -> BoothBatch` for a pack; hand it to the trainer. Albums keep their own random streams."""

    def __init__(
        self,
        albums: Sequence[PreparedAlbum],
        config: PuzzleBoothConfig,
        shape: BackboneShape,
        *,
        synthetic: PriorImages | None,
        samples: Sequence[Sequence[PriorSample]],
        seed: int,
    ) -> None:
        self.config, self.shape, self.synthetic, self.samples = config, shape, synthetic, samples
        self.samplers = [UnionSampler(album, config, shape) for album in albums]
        self.seeds = [album_seed(album.content_hash, seed) for album in albums]
        self.num_assets = max(len(album.asset_names) for album in albums)

    def __call__(self, step: int) -> BoothBatch:
        rows = [row for album in range(len(self.samplers)) for row in self._rows(album, step)]
        prompts = [row.prompt for row in rows]
        input_ids = self.shape.tokenize(prompts)
        columns = torch.full((len(rows), self.num_assets), -1, dtype=torch.int64)
        side, latent = self.shape.capture_side, self.shape.latent_size
        asset_masks = torch.zeros(len(rows), self.num_assets, side, side)
        for index, row in enumerate(rows):
            for asset, mask in zip(row.chosen, row.asset_masks, strict=True):
                position = (input_ids[index] == self.shape.first_placeholder_id + asset).nonzero()
                if not len(position):
                    # Captions of prior images may be cut; an album's token must not be.
                    raise UserError(
                        f"The prompt {row.prompt!r} is longer than the model's {input_ids.shape[1]} tokens: "
                        "use fewer or shorter asset words in album.json."
                    )
                columns[index, asset] = int(position[0, 0])
                asset_masks[index, asset] = _shrink(mask, side)
        return {
            "images": torch.from_numpy(np.stack([row.image for row in rows]).transpose(0, 3, 1, 2).copy()),
            "input_ids": input_ids,
            "albums": torch.tensor([row.album for row in rows]),
            "kinds": torch.tensor([int(row.kind) for row in rows]),
            "masks": torch.stack([_shrink(row.mask, latent) for row in rows])[:, None],
            "columns": columns,
            "asset_masks": asset_masks,
            "timesteps": torch.tensor([row.timestep for row in rows]),
            "noise": torch.stack([row.noise for row in rows]),
        }

    def _timestep(self, rng: np.random.Generator) -> int:
        count, fraction = self.shape.num_timesteps, self.config.high_noise_fraction
        if fraction > 0 and rng.random() < fraction:
            return int(rng.integers(round(0.7 * count), count))
        return int(rng.integers(count))

    def _rows(self, album: int, step: int) -> list[_Row]:
        rng = np.random.default_rng((self.seeds[album], step))
        config = self.config
        size = self.shape.image_size
        drawn: list[tuple[RowKind, np.ndarray, str, np.ndarray, list[int], np.ndarray]] = []
        for _ in range(config.photos_per_step):
            drawn.append((RowKind.PHOTO, *self.samplers[album].draw(rng)))
        everywhere, nothing = np.ones((size, size), np.float32), np.zeros((0, size, size), np.float32)
        if config.weight_prior > 0 and self.samples[album]:
            for _ in range(config.samples_per_step):
                sample = self.samples[album][int(rng.integers(len(self.samples[album])))]
                image = sample.image.astype(np.float32) / 255
                drawn.append((RowKind.PRIOR_SAMPLE, image, sample.prompt, everywhere, [], nothing))
        if config.weight_synthetic > 0 and self.synthetic is not None:
            for kind, count in (
                (RowKind.SYNTHETIC_RGB, config.synthetic_rgb_per_step),
                (RowKind.SYNTHETIC_NORMAL, config.synthetic_normal_per_step),
            ):
                if count:
                    images, prompts, _ = self.synthetic.draw(
                        count, rng, kind="rgb" if kind == RowKind.SYNTHETIC_RGB else "normal"
                    )
                    for pixels, prompt in zip(images, prompts, strict=True):
                        image = _resize(pixels, size).astype(np.float32) / 255
                        drawn.append((kind, image, prompt, everywhere, [], nothing))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        shape = (self.shape.num_latent_channels, self.shape.latent_size, self.shape.latent_size)
        return [
            _Row(
                album=album,
                kind=kind,
                image=image.astype(np.float32),
                prompt=prompt,
                mask=mask,
                chosen=chosen,
                asset_masks=asset_masks,
                timestep=self._timestep(rng),
                noise=torch.randn(shape, generator=generator),
            )
            for kind, image, prompt, mask, chosen, asset_masks in drawn
        ]


@dataclass(frozen=True)
class _Row:
    album: int
    kind: RowKind
    image: np.ndarray
    prompt: str
    mask: np.ndarray
    chosen: list[int]
    asset_masks: np.ndarray
    timestep: int
    noise: Tensor


def _shrink(mask: np.ndarray, side: int) -> Tensor:
    """Area-average a mask (S, S) to (side, side)."""
    tensor = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
    return torch.nn.functional.interpolate(tensor, size=(side, side), mode="area")[0, 0]


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """Bring (R, R) or (R, R, 3) to `size`: area average downwards, bilinear upwards; the type stays."""
    if image.shape[0] == size:
        return image
    tensor = torch.from_numpy(np.ascontiguousarray(image)).float()
    tensor = tensor[None, None] if image.ndim == 2 else tensor.permute(2, 0, 1)[None]
    shrinking = image.shape[0] > size
    resized = torch.nn.functional.interpolate(
        tensor, size=(size, size), mode="area" if shrinking else "bilinear", antialias=False
    )
    result = resized[0, 0] if image.ndim == 2 else resized[0].permute(1, 2, 0)
    array = result.numpy()
    return array.round().astype(np.uint8) if image.dtype == np.uint8 else array.astype(image.dtype)
