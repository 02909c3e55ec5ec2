"""PuzzleBooth's batches: unions of assets from each album, and prior images, for a pack of K albums.

A batch is a pure function of (seed, album, step): no album sees another's random numbers, and a run that was killed
goes on with the very batch it would have had. Every album has the same number of rows, however many photos it has.
Several processes, or several parts of one step, share the rows out among them: none is lost and none comes twice.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from datamodules.assets import PreparedAlbum
from datamodules.prior_images import PriorDraw, PriorImages
from datamodules.union_sampler import BackboneShape, Posterior, UnionDraw, UnionSampler, encode_posteriors, resize
from modules.contracts import BoothBatch, RowKind, Subject
from modules.diffusion.losses import NOISIEST_FROM
from modules.diffusion.prompts import AssetPhrase, ImageKind
from modules.diffusion.tokens import placeholder
from modules.errors import UserError
from modules.puzzlebooth_config import PuzzleBoothConfig

__all__ = ["BackboneShape", "PriorSample", "PuzzleBoothBatches", "UnionSampler", "album_seed", "subject_of"]


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
    """The person of an album as a distillation subject: with its tokens, or in words alone (index NO_ALBUM).

    Assets of `album.in_words` have words in any case; the others' tokens are numbered by their places in the album.
    """
    return Subject(
        name=album.name,
        gender=album.gender,
        assets=tuple(
            AssetPhrase(
                name=name,
                words=words,
                token=placeholder(position) if personalized and name not in album.in_words else "",
            )
            for position, (name, words) in enumerate(zip(album.asset_names, album.asset_words, strict=True))
        ),
        album=index,
        seed=album_seed(album.content_hash, seed),
    )


@dataclass(frozen=True, kw_only=True)
class _Row:
    album: int
    kind: RowKind
    source: UnionDraw | PriorDraw | int  # a union of a photo, a synthetic person, or the position of a prior sample
    prompt: str
    timestep: int
    noise: Tensor
    posterior_noise: Tensor


class PuzzleBoothBatches:
    """`batches(step) -> BoothBatch` for a pack; hand it to the trainer. Albums keep their own random streams.

    samplers: one per album. synthetic: people in RGB and normals, shared by all. samples: of the frozen model, one list
    per album.
    """

    def __init__(
        self,
        samplers: Sequence[UnionSampler],
        config: PuzzleBoothConfig,
        shape: BackboneShape,
        *,
        synthetic: PriorImages | None,
        samples: Sequence[Sequence[PriorSample]],
        seed: int,
    ) -> None:
        self.samplers, self.config, self.shape = list(samplers), config, shape
        self.synthetic = synthetic if config.weight_synthetic > 0 else None
        self.samples = samples if config.weight_prior > 0 else [[]] * len(self.samplers)
        self.seeds = [album_seed(sampler.album.content_hash, seed) for sampler in self.samplers]
        self.num_assets = max(len(sampler.album.asset_names) for sampler in self.samplers)
        self._encoded: dict[tuple[object, ...], Posterior] = {}

    def __call__(self, step: int, part: int = 0, num_parts: int = 1) -> BoothBatch:
        """The batch of a step, or its rows part, part + num_parts, ...: what one process or one accumulation sees.

        Raises UserError when there are fewer rows than parts.
        """
        every_row = [row for album in range(len(self.samplers)) for row in self._rows(album, step)]
        if len(every_row) < num_parts:
            raise UserError(
                f"A step has {len(every_row)} images, which {num_parts} processes or accumulations cannot share: raise "
                "booth.photos_per_step, or lower runtime.devices, runtime.num_nodes or runtime.accumulate_batches."
            )
        counts = Counter((row.album, row.kind) for row in every_row)
        rows = every_row[part::num_parts]
        input_ids = self.shape.tokenize([row.prompt for row in rows])
        columns, asset_masks = self._columns(rows, input_ids)
        side = self.shape.latent_size
        images: list[np.ndarray] = []
        latents, composed, masks = [], [], []
        for index, row in enumerate(rows):
            posterior, mask = None, torch.ones(1, side, side)
            if isinstance(row.source, UnionDraw):
                sampler = self.samplers[row.album]
                mask = _shrink(sampler.loss_mask(row.source), side)[None]
                if row.source.background is None:
                    posterior = sampler.posterior(row.source)
                else:
                    images.append(sampler.composed(row.source))
                    composed.append(index)
            else:
                posterior = self._prior_posterior(row)
            masks.append(mask)
            latents.append(torch.zeros_like(row.noise) if posterior is None else posterior.sample(row.posterior_noise))
        size = self.shape.image_size
        pixels = np.stack(images) if images else np.zeros((0, size, size, 3), np.float32)
        return {
            "latents": torch.stack(latents),
            "images": torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
            "composed": torch.tensor(composed, dtype=torch.int64),
            "posterior_noise": torch.stack([row.posterior_noise for row in rows])[composed],
            "input_ids": input_ids,
            "albums": torch.tensor([row.album for row in rows]),
            "kinds": torch.tensor([int(row.kind) for row in rows]),
            "shares": torch.tensor([num_parts / counts[row.album, row.kind] for row in rows]),
            "masks": torch.stack(masks),
            "columns": columns,
            "asset_masks": asset_masks,
            "timesteps": torch.tensor([row.timestep for row in rows]),
            "noise": torch.stack([row.noise for row in rows]),
        }

    def _columns(self, rows: Sequence[_Row], input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the sampled assets' tokens (B, A), -1 for none, and their masks (B, A, s, s)."""
        side = self.shape.capture_side
        columns = torch.full((len(rows), self.num_assets), -1, dtype=torch.int64)
        asset_masks = torch.zeros(len(rows), self.num_assets, side, side)
        for index, row in enumerate(rows):
            if not isinstance(row.source, UnionDraw):
                continue
            masks = self.samplers[row.album].asset_masks(row.source)
            for asset, mask in zip(row.source.chosen, masks, strict=True):
                position = (input_ids[index] == self.shape.first_placeholder_id + asset).nonzero()
                if not len(position):
                    # Captions of prior images may be cut; an album's token must not be.
                    raise UserError(
                        f"The prompt {row.prompt!r} is longer than the model's {input_ids.shape[1]} tokens: "
                        "use fewer or shorter asset words in album.json."
                    )
                columns[index, asset] = int(position[0, 0])
                asset_masks[index, asset] = _shrink(mask, side)
        return columns, asset_masks

    def encode_all(self) -> None:
        """Encode every prior image now, and none later: some strategies need all processes to do it together."""
        if self.synthetic is not None:
            kinds: tuple[tuple[ImageKind, int], ...] = (
                ("rgb", self.config.synthetic_rgb_per_step),
                ("normal", self.config.synthetic_normal_per_step),
            )
            wanted: list[ImageKind] = [kind for kind, count in kinds if count > 0]
            for index, kind, mirrored in product(range(len(self.synthetic)), wanted, (False, True)):
                self._synthetic_posterior(index, kind, mirrored)
        for samples in self.samples:
            for position in range(len(samples)):
                self._sample_posterior(samples, position)

    def _prior_posterior(self, row: _Row) -> Posterior:
        """The latents of a prior image, encoded when it is first drawn."""
        if isinstance(row.source, PriorDraw):
            return self._synthetic_posterior(row.source.position, row.source.kind, row.source.mirrored)
        assert isinstance(row.source, int)
        return self._sample_posterior(self.samples[row.album], row.source)

    def _synthetic_posterior(self, index: int, kind: ImageKind, mirrored: bool) -> Posterior:
        assert self.synthetic is not None
        key = (index, kind, mirrored)
        if key not in self._encoded:
            image = resize(self.synthetic.image(index, kind, mirrored), self.shape.image_size)
            self._encoded[key] = encode_posteriors([image], self.shape)[0]
        return self._encoded[key]

    def _sample_posterior(self, samples: Sequence[PriorSample], position: int) -> Posterior:
        # Albums of one gender share one list.
        key = (id(samples), position)
        if key not in self._encoded:
            self._encoded[key] = encode_posteriors([samples[position].image], self.shape)[0]
        return self._encoded[key]

    def _timestep(self, rng: np.random.Generator) -> int:
        count, fraction = self.shape.num_timesteps, self.config.high_noise_fraction
        if fraction > 0 and rng.random() < fraction:
            return int(rng.integers(round(NOISIEST_FROM * count), count))
        return int(rng.integers(count))

    def _rows(self, album: int, step: int) -> list[_Row]:
        rng = np.random.default_rng((self.seeds[album], step))
        config, samples = self.config, self.samples[album]
        drawn: list[tuple[RowKind, UnionDraw | PriorDraw | int, str]] = []
        for _ in range(config.photos_per_step):
            union = self.samplers[album].draw(rng)
            drawn.append((RowKind.PHOTO, union, union.prompt))
        for _ in range(config.samples_per_step if samples else 0):
            position = int(rng.integers(len(samples)))
            drawn.append((RowKind.PRIOR_SAMPLE, position, samples[position].prompt))
        if self.synthetic is not None:
            for _ in range(config.synthetic_rgb_per_step):
                person = self.synthetic.choose(rng, kind="rgb")
                drawn.append((RowKind.SYNTHETIC_RGB, person, person.caption))
            for _ in range(config.synthetic_normal_per_step):
                person = self.synthetic.choose(rng, kind="normal")
                drawn.append((RowKind.SYNTHETIC_NORMAL, person, person.caption))
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        shape = (2, self.shape.num_latent_channels, self.shape.latent_size, self.shape.latent_size)
        rows = []
        for kind, source, prompt in drawn:
            noise, posterior_noise = torch.randn(shape, generator=generator)
            rows.append(
                _Row(
                    album=album,
                    kind=kind,
                    source=source,
                    prompt=prompt,
                    timestep=self._timestep(rng),
                    noise=noise,
                    posterior_noise=posterior_noise,
                )
            )
        return rows


def _shrink(mask: np.ndarray, side: int) -> Tensor:
    """Area-average a mask (S, S) to (side, side)."""
    tensor = torch.from_numpy(np.ascontiguousarray(mask, dtype=np.float32))[None, None]
    return torch.nn.functional.interpolate(tensor, size=(side, side), mode="area")[0, 0]
