"""Settings of the segmentors; light to import."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from datamodules.asset_names import CANONICAL_ASSETS, GLASSES, PERSON, canonical_asset

SegmentorMethod = Literal["auto", "given", "mini", "grounded_sam"]


@dataclass(frozen=True, kw_only=True)
class GroundedSamConfig:
    """GroundingDINO finds boxes for words, SAM turns boxes into masks, both through transformers.

    detector, segmenter: folders, or hub ids as OWNER/NAME or OWNER/NAME@REVISION; the segmenter may be a SAM or a
    SAM 2. box_threshold, text_threshold: of the detector (PuzzleAvatar's values). face_threshold: of faces, since the
    back of a head passes for one at lower scores (GroundingDINO's own default). prompts: words for the assets that are
    looked for, brought to their names by `canonical_asset` ("hair" finds the haircut). batch_size: photos per call of
    the detector, halved when they do not fit. device: "auto" is a GPU where there is one. precision: "auto" is bf16 on
    CUDA and fp32 elsewhere. offload: keep only the model that is at work on the GPU.
    """

    detector: str = "IDEA-Research/grounding-dino-base"
    segmenter: str = "facebook/sam-vit-huge"
    box_threshold: float = 0.20
    text_threshold: float = 0.25
    face_threshold: float = 0.35
    # GroundingDINO knows "hair" better than "haircut"; the name that is kept is the same.
    prompts: tuple[str, ...] = (*("hair" if name == "haircut" else name for name in CANONICAL_ASSETS), GLASSES)
    batch_size: int = 4
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    offload: bool = True

    def __post_init__(self) -> None:
        for name in ("box_threshold", "text_threshold", "face_threshold"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in (0, 1), found {getattr(self, name)}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {self.batch_size}")
        if not self.prompts:
            raise ValueError("prompts must name at least one asset")
        for prompt in self.prompts:
            # Raises for what could not be the name of an asset.
            if canonical_asset(prompt) == PERSON:
                raise ValueError(f"prompts must name assets, found {prompt!r}; whole persons are looked for anyway")
        if len(set(self.prompts)) < len(self.prompts):
            raise ValueError("prompts must not name an asset twice in the same words")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device must be auto, cpu, cuda or cuda:N, found {self.device!r}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"precision must be auto, fp32 or bf16, found {self.precision!r}")


@dataclass(frozen=True, kw_only=True)
class SegmentorConfig:
    """Where masks come from.

    method: "given" takes the album's own masks only; "mini" and "grounded_sam" make those of photos that have none;
    "auto" is "mini". weights: folder of the mini parser. photo_px: longer side to which photos are decoded before a
    person is looked for and cut out. side_px: longer side at which the mini parser sees a person.
    least_share: a second garment of the upper body (a jacket over a shirt) is one when it makes up this share of what
    is worn there, mean over the photos.
    crop: cut photos to the subject where it is small in them. margin: of the cut, as a fraction of the person's box.
    """

    method: SegmentorMethod = "auto"
    weights: str = "weights/mini_parser"
    photo_px: int = 1024
    side_px: int = 192
    least_share: float = 0.2
    crop: bool = True
    margin: float = 0.15
    grounded_sam: GroundedSamConfig = field(default_factory=GroundedSamConfig)

    def __post_init__(self) -> None:
        if self.method not in ("auto", "given", "mini", "grounded_sam"):
            raise ValueError(f"method must be auto, given, mini or grounded_sam, found {self.method!r}")
        if self.side_px < 64 or self.side_px % 16:
            raise ValueError(f"side_px must be a multiple of 16 from 64 on, found {self.side_px}")
        if self.photo_px < self.side_px:
            raise ValueError(f"photo_px must be at least side_px ({self.side_px}), found {self.photo_px}")
        if not 0 < self.least_share < 1:
            raise ValueError(f"least_share must lie in (0, 1), found {self.least_share}")
        if not 0 <= self.margin <= 1:
            raise ValueError(f"margin must lie in [0, 1], found {self.margin}")
