"""The captioner that runs a vision-language model on this machine, through transformers' public classes.

The model is loaded for one album and dropped afterwards: what follows needs the memory.
"""

from __future__ import annotations

import gc
import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from datamodules.captioning.answer import QUESTION, make_question, parse_words
from datamodules.captioning.captioner import AlbumWords, CaptionFailed, CaptionRequest
from datamodules.captioning.config import CaptionerConfig
from datamodules.captioning.photos import choose_photos, person_crop
from modules.errors import UserError

MAX_NEW_TOKENS = 800
_HUB_ID = re.compile(r"([\w.\-]+/[\w.\-]+)(?:@([\w.\-]+))?")
_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
_SAMPLE_BYTES = 65_536


class LocalCaptioner:
    """Shows up to `max_photos` photos of an album to the model at once, and reads its greedy answer.

    device: where the model runs; None takes a GPU in bfloat16 where there is one, and the processor in float32.
    """

    def __init__(self, config: CaptionerConfig, device: str | None = None) -> None:
        self.config = config
        self.device = device

    @cached_property
    def identity(self) -> str:
        """A folder counts by its content, wherever it lies; a model of the hub by its id."""
        config = self.config
        folder = Path(config.model).expanduser()
        model = _fingerprint(folder) if folder.is_dir() else config.model
        question = hashlib.sha256(QUESTION.encode()).hexdigest()[:16]
        shown = f"{config.max_photos} x {config.max_image_px} px"
        return f"local {model} seed {config.seed} {shown} question {question}"

    def caption(self, request: CaptionRequest) -> AlbumWords:
        """Raises UserError when the model cannot be loaded, CaptionFailed when it gives no usable answer."""
        config = self.config
        indices = choose_photos(request, config.max_photos)
        pictures = [person_crop(request, index, config.max_image_px) for index in indices]
        text = self._answer(pictures, make_question(request.asset_names))
        try:
            return parse_words(text, request.asset_names)
        except CaptionFailed as failure:
            raise CaptionFailed(f"album.captioner.model {config.model}: {failure}") from None

    def _answer(self, pictures: Sequence[Image.Image], question: str) -> str:
        import torch

        from modules.memory import is_out_of_memory

        device = torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        folder = _find(self.config)
        try:
            processor, model = self._load(folder, device)
            return _generate(processor, model, pictures, question, self.config.seed)
        except UserError:
            raise
        except Exception as error:  # models of all kinds are run here, and each fails in its own way
            if is_out_of_memory(error):
                reason = "there is too little memory for it; choose a smaller model, or fewer or smaller photos"
            else:
                reason = f"it fails on these photos ({_first_line(error)})"
            raise CaptionFailed(f"album.captioner.model {self.config.model}: {reason}") from error
        finally:
            processor = model = None
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()

    def _load(self, folder: Path, device: Any) -> tuple[Any, Any]:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        from modules.memory import is_out_of_memory

        def part(name: str, load: Callable[..., Any], **options: Any) -> Any:
            try:
                return load(folder, local_files_only=True, **options)
            except Exception as error:  # a damaged file raises anything from json, safetensors or transformers
                if is_out_of_memory(error):
                    raise
                raise UserError(
                    f"album.captioner.model {self.config.model}: its {name} cannot be loaded ({_first_line(error)}); "
                    f"name the folder or hub id of a transformers model for images and text, with safetensors"
                ) from error

        dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        processor = part("processor", AutoProcessor.from_pretrained)
        if not getattr(processor, "chat_template", None) or not hasattr(processor, "image_processor"):
            raise UserError(
                f"album.captioner.model {self.config.model}: it has no chat template for images, so it cannot be "
                f"asked; name a model that was tuned to follow instructions"
            )
        model = part("model", AutoModelForImageTextToText.from_pretrained, dtype=dtype, use_safetensors=True)
        return processor, model.to(device).eval()


def _generate(processor: Any, model: Any, pictures: Sequence[Image.Image], question: str, seed: int) -> str:
    import torch

    content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)
    length = inputs["input_ids"].shape[1]
    # Greedy decoding draws nothing; the seed is for models that draw on their own. The caller's draws stay.
    cuda = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda), torch.inference_mode():
        torch.manual_seed(seed)
        # What a model's folder says about sampling has no place in greedy decoding.
        tokens = model.generate(
            **inputs,
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=MAX_NEW_TOKENS,
        )
    return str(processor.batch_decode(tokens[:, length:], skip_special_tokens=True)[0])


def _find(config: CaptionerConfig) -> Path:
    """The model's folder: a local one, or a snapshot in the hub's cache, downloaded where that is allowed."""
    folder = Path(config.model).expanduser()
    if folder.is_dir():
        return folder
    where = f"album.captioner.model {config.model}"
    match = _HUB_ID.fullmatch(config.model)
    if match is None:
        raise UserError(
            f"{where} is neither a folder (looked for {folder.absolute()}) nor a hub id: name the folder of a "
            f"transformers model for images and text, or OWNER/NAME or OWNER/NAME@REVISION"
        )
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, XetDownloadError

    options: dict[str, Any] = {"revision": match[2], "allow_patterns": _FILES}
    try:
        return Path(snapshot_download(match[1], local_files_only=True, **options))
    except (LocalEntryNotFoundError, ValueError):
        pass
    if not config.allow_network or is_offline_mode():
        raise UserError(
            f"{where}: there is no such folder, and the hub's cache does not hold that model; get it with "
            f"`hf download {match[1]}`, or set album.captioner.allow_network=true (and not HF_HUB_OFFLINE)"
        )
    try:
        return Path(snapshot_download(match[1], **options))
    except (HTTPError, LocalEntryNotFoundError, XetDownloadError, ValueError) as error:
        raise UserError(
            f"{where}: the hub does not give that model ({type(error).__name__}); check its name, or name a local "
            f"folder"
        ) from error


def _fingerprint(folder: Path) -> str:
    """A hash of a folder's files: names, sizes, and both ends of each, since weights are too long to be read twice."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")):
        size = path.stat().st_size
        digest.update(f"{path.name}\0{size}\0".encode("utf-8", "surrogateescape"))
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:160].rstrip('.:')}" if lines else type(error).__name__
