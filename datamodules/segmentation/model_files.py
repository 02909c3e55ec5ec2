"""Where the files of a transformers model lie, and what tells one model from another without reading gigabytes."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from modules.errors import UserError

WAY_OUT = "or use album.segmentor.method=mini"
_HUB_ID = re.compile(r"([\w.\-]+/[\w.\-]+)(?:@([\w.\-]+))?")
_FILES = ["*.json", "*.safetensors", "*.txt"]
# Of a file of weights: its header, and this much at each of so many places.
_SAMPLE_BYTES, _NUM_SAMPLES, _MAX_HEADER = 4096, 32, 2**24


def find_model(name: str, root: Path, setting: str) -> Path:
    """The folder of a model: a local one, or a snapshot in the hub's cache, downloaded when it is not there.

    name: a folder, relative to `root`, or OWNER/NAME or OWNER/NAME@REVISION. setting: its key, for messages.
    Raises UserError when there is no such model, or none that transformers could read from safetensors.
    """
    where = f"{setting} {name}"
    folder = root / Path(name).expanduser()
    if not folder.is_dir():
        folder = _snapshot(name, where, folder)
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{where}: {folder} holds no config.json with safetensors beside it, but a folder as transformers saves it "
            f"was expected; get the model again, {WAY_OUT}"
        )
    return folder


def _snapshot(name: str, where: str, folder: Path) -> Path:
    match = _HUB_ID.fullmatch(name)
    if match is None:
        raise UserError(
            f"{where} is neither a folder (looked for {folder}) nor a hub id; name the folder of a model as "
            f"transformers saves it, OWNER/NAME or OWNER/NAME@REVISION, {WAY_OUT}"
        )
    from huggingface_hub import is_offline_mode, snapshot_download
    from huggingface_hub.errors import HTTPError, LocalEntryNotFoundError, XetDownloadError

    options: dict[str, Any] = {"revision": match[2], "allow_patterns": _FILES}
    try:
        return Path(snapshot_download(match[1], local_files_only=True, **options))
    except (LocalEntryNotFoundError, ValueError):
        pass
    reason = "the hub may not be asked (HF_HUB_OFFLINE)"
    if not is_offline_mode():
        try:
            return Path(snapshot_download(match[1], **options))
        except (HTTPError, LocalEntryNotFoundError, XetDownloadError, OSError, ValueError) as error:
            reason = f"the hub does not give it ({type(error).__name__})"
    raise UserError(
        f"{where}: there is no folder {folder}, the hub's cache does not hold that model, and {reason}; get it with "
        f"`hf download {match[1]}`, name a folder, {WAY_OUT}"
    )


def model_type(folder: Path, setting: str) -> str:
    """The family that config.json names. Raises UserError when it cannot be read."""
    try:
        return str(json.loads((folder / "config.json").read_bytes())["model_type"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{setting}: {folder / 'config.json'} is damaged or names no model_type ({type(error).__name__}); get the "
            f"model again, {WAY_OUT}"
        ) from error


def fingerprint(folder: Path) -> str:
    """A hash of what a model's output depends on, wherever its folder lies.

    Small files count as a whole; of weights the header counts, the size and samples over all of the file, so that a
    model which was only trained further is another one.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".json", ".txt"):
            digest.update(f"{path.name}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        elif path.suffix == ".safetensors":
            size = path.stat().st_size
            digest.update(f"{path.name}\0{size}\0".encode())
            with path.open("rb") as file:
                digest.update(file.read(min(int.from_bytes(file.read(8), "little"), _MAX_HEADER)))
                for index in range(_NUM_SAMPLES):
                    file.seek(max(0, size - _SAMPLE_BYTES) * index // (_NUM_SAMPLES - 1))
                    digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:16]
