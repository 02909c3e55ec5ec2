"""GroundingDINO and SAM through transformers' public classes: where they run, how they are asked, and when they load.

Each model loads at its first use and stays in main memory. `at_work` brings it to its device for a while; with offload
it leaves the GPU afterwards, so that the other model and later stages find it empty.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from datamodules.segmentation.config import GroundedSamConfig
from datamodules.segmentation.detections import (
    STOP,
    Detection,
    FloatBox,
    prompt_positions,
    prompt_text,
    read_detections,
)
from datamodules.segmentation.model_files import WAY_OUT, fingerprint, model_type
from modules.errors import UserError
from modules.memory import is_out_of_memory

T = TypeVar("T")
R = TypeVar("R")

SETTING = "album.segmentor.grounded_sam"
_DETECTORS = ("grounding-dino", "mm-grounding-dino")
_SAM, _SAM2 = ("sam",), ("sam2", "sam2_video")
# Boxes that SAM's decoder sees at once; each takes a mask at full size.
_NUM_BOXES = 16
# Both families of SAM were trained with ImageNet's statistics.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def choose_device(config: GroundedSamConfig) -> tuple[torch.device, torch.dtype]:
    """Where the models run, and with which numbers. Raises UserError when the device that is asked for is not there."""
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"{SETTING}.device is {name}, but torch finds no such device here; set it to auto or cpu")
    half = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    return device, torch.bfloat16 if half else torch.float32


def _empty_cache() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class _Network:
    """A model of a folder, loaded when it is first asked for."""

    families: tuple[str, ...] = ()
    setting = ""

    def __init__(self, folder: Path, config: GroundedSamConfig, batch_size: int) -> None:
        """Raises UserError when the folder holds a model of another kind."""
        self.folder = folder
        self.batch_size = batch_size
        self.config = config
        self.device, self.dtype = choose_device(config)
        self.family = model_type(folder, self.setting)
        if self.family not in self.families:
            raise UserError(
                f"{self.setting}: {folder} holds a model of type {self.family}, but one of "
                f"{', '.join(self.families)} was expected; name another folder, {WAY_OUT}"
            )

    @property
    def identity(self) -> str:
        """The model, whatever its folder is called."""
        return f"{self.family} {fingerprint(self.folder)} {str(self.dtype).removeprefix('torch.')}"

    @cached_property
    def model(self) -> Any:
        """On the CPU, in its precision. Raises UserError when weights are damaged or belong to another model."""
        return self._part("model", self._load_model)

    def _load_model(self) -> Any:
        model, info = self._kind().from_pretrained(
            self.folder, local_files_only=True, use_safetensors=True, dtype=self.dtype, output_loading_info=True
        )
        missing = sorted(set(info["missing_keys"]) & {name for name, _ in model.named_parameters()})
        if missing:
            # transformers would go on with random numbers in their place.
            raise ValueError(f"the weights lack {len(missing)} tensors, such as {missing[0]}")
        return model.eval()

    def _kind(self) -> Any:
        raise NotImplementedError

    def _part(self, name: str, load: Callable[[], T]) -> T:
        try:
            return load()
        except Exception as error:  # a damaged file raises anything from json, safetensors or transformers
            if is_out_of_memory(error):
                raise UserError(f"there is too little memory for {self._advice}") from error
            lines = str(error).strip().splitlines() or [""]
            raise UserError(
                f"{self.setting}: the {name} of {self.folder} cannot be loaded ({type(error).__name__}: "
                f"{lines[0][:160].rstrip('.:')}); get the model again, {WAY_OUT}"
            ) from error

    @property
    def _advice(self) -> str:
        return (
            f"{self.setting} {self.folder} on {self.device}; name a smaller model, set {SETTING}.device=cpu, {WAY_OUT}"
        )

    def in_batches(self, items: Sequence[T], run: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
        """What `run` gives for the items, one result each; `batch_size` is halved when a batch does not fit.

        Raises UserError when a single item does not fit.
        """
        results: list[R] = []
        while len(results) < len(items):
            batch = items[len(results) : len(results) + self.batch_size]
            try:
                results += run(batch)
                continue
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if len(batch) == 1:
                    raise UserError(f"there is too little memory for {self._advice}") from error
            # Outside the handler, whose traceback holds on to what filled the memory.
            self.batch_size = len(batch) // 2
            _empty_cache()
        return results

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Have the model on its device meanwhile."""
        model = self.model
        try:
            try:
                model.to(self.device)
            except Exception as error:
                if is_out_of_memory(error):
                    raise UserError(f"there is too little memory for {self._advice}") from error
                raise
            with torch.inference_mode():
                yield
        finally:
            if self.config.offload and self.device.type != "cpu":
                model.to("cpu")
                _empty_cache()


class Detector(_Network):
    """GroundingDINO: words to boxes."""

    families = _DETECTORS
    setting = f"{SETTING}.detector"

    def __init__(self, folder: Path, config: GroundedSamConfig) -> None:
        super().__init__(folder, config, config.batch_size)

    def _kind(self) -> Any:
        from transformers import AutoModelForZeroShotObjectDetection

        return AutoModelForZeroShotObjectDetection

    @cached_property
    def processor(self) -> Any:
        """Brings pictures to the model's size, and text to its tokens."""
        from transformers import AutoProcessor

        def load() -> Any:
            processor = AutoProcessor.from_pretrained(self.folder, local_files_only=True)
            if processor.tokenizer.convert_tokens_to_ids(STOP) in (None, processor.tokenizer.unk_token_id):
                # transformers makes an empty one where there is none.
                raise ValueError("its tokenizer has no vocabulary")
            return processor

        return self._part("processor", load)

    def find(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[Detection]]:
        """For each picture (H, W, 3) uint8 the boxes that a prompt fits, best first; call it while `at_work`."""
        # Only pictures of one shape share a batch: padding shows through the backbone's windows, and what is found in
        # a picture must not depend on its neighbours.
        shapes: dict[tuple[int, ...], list[int]] = {}
        for index, picture in enumerate(pictures):
            shapes.setdefault(picture.shape, []).append(index)
        found: dict[int, list[Detection]] = {}
        for indices in shapes.values():
            alike = [pictures[index] for index in indices]
            found |= zip(indices, self.in_batches(alike, lambda batch: self._find(batch, prompts)), strict=True)
        return [found[index] for index in range(len(pictures))]

    def _find(self, pictures: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[Detection]]:
        text = prompt_text(prompts)
        inputs = self.processor(
            images=[Image.fromarray(picture) for picture in pictures], text=[text] * len(pictures), return_tensors="pt"
        )
        positions = self._positions(inputs["input_ids"][0].tolist(), prompts)
        output = self.model(**inputs.to(self.device, dtype=self.dtype))
        probabilities = output.logits.float().sigmoid().cpu().numpy()
        boxes = output.pred_boxes.float().cpu().numpy()
        return [
            read_detections(
                probabilities[index],
                boxes[index],
                positions,
                prompts,
                box_threshold=self.config.box_threshold,
                text_threshold=self.config.text_threshold,
                size=picture.shape[:2],
            )
            for index, picture in enumerate(pictures)
        ]

    def _positions(self, tokens: Sequence[int], prompts: Sequence[str]) -> list[list[int]]:
        tokenizer = self.processor.tokenizer
        special = {tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id}
        positions = prompt_positions(tokens, tokenizer.convert_tokens_to_ids(STOP), special)
        longest = int(self.model.config.max_text_len)
        if len(positions) != len(prompts) or not all(positions) or len(tokens) > longest:
            raise UserError(
                f"{SETTING}.prompts are {len(prompts)} phrases of {len(tokens)} tokens, but {self.folder} reads "
                f"{longest} tokens of plain words; name fewer or simpler assets"
            )
        return positions


class Segmenter(_Network):
    """SAM or SAM 2 on single pictures: boxes to masks."""

    families = (*_SAM, *_SAM2)
    setting = f"{SETTING}.segmenter"

    def __init__(self, folder: Path, config: GroundedSamConfig) -> None:
        super().__init__(folder, config, _NUM_BOXES)

    def _kind(self) -> Any:
        from transformers import Sam2Model, SamModel

        return SamModel if self.family in _SAM else Sam2Model

    def masks(self, picture: np.ndarray, boxes: Sequence[FloatBox]) -> np.ndarray:
        """(N, H, W) bool for a picture (H, W, 3) uint8 and N boxes; call it while `at_work`."""
        height, width = picture.shape[:2]
        if not boxes:
            return np.zeros((0, height, width), bool)
        frame, inner = self._frame(picture)
        scale = np.array([inner[1] / width, inner[0] / height] * 2)
        embedding = self.in_batches([frame], lambda one: [self.model.get_image_embeddings(one[0])])[0]

        def decode(batch: Sequence[FloatBox]) -> list[np.ndarray]:
            scaled = torch.tensor(np.array(batch) * scale, dtype=torch.float32, device=self.device)[None]
            # A box says which of the things at a point is meant, so one mask is asked for.
            output = self.model(image_embeddings=embedding, input_boxes=scaled, multimask_output=False)
            logits = output.pred_masks[0, :, :1].float()
            logits = F.interpolate(logits, frame.shape[-2:], mode="bilinear", align_corners=False)
            logits = logits[..., : inner[0], : inner[1]]
            logits = F.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
            return list((logits[:, 0] > 0).cpu().numpy())

        return np.stack(self.in_batches(boxes, decode))

    def _frame(self, picture: np.ndarray) -> tuple[torch.Tensor, tuple[int, int]]:
        """The picture as the model sees it, (1, 3, S, S), and the height and width that it has therein.

        What SamProcessor and Sam2Processor do, written here since the latter needs torchvision: SAM gets a picture in
        its shape with nothing below or beside it, SAM 2 gets it stretched to a square.
        """
        size = self.model.config.prompt_encoder_config.image_size
        side = int(size if isinstance(size, int) else size[0])
        height, width = picture.shape[:2]
        inner = (side, side)
        if self.family in _SAM:
            scale = side / max(height, width)
            inner = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        small = np.array(Image.fromarray(picture).resize(inner[::-1], Image.Resampling.BILINEAR), np.float32)
        values = (small / 255 - np.array(_MEAN, np.float32)) / np.array(_DEVIATION, np.float32)
        frame = torch.zeros(1, 3, side, side)
        frame[0, :, : inner[0], : inner[1]] = torch.from_numpy(values).permute(2, 0, 1)
        return frame.to(self.device, self.dtype), inner
