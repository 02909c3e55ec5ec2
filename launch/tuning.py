"""A search over any settings, measured on albums with ground truth."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

from launch.tuning_config import Search, dimensions_of, read_space
from launch.tuning_results import RESULT, read_results, write_summary
from modules.errors import UserError
from trainer.artifacts import run_lock, to_plain, write_json
from trainer.config import config_path, load_config

REQUEST = "search.json"


def build_search(
    space: Path, albums: Sequence[Path], *, config: str | None, overrides: Sequence[str], out: Path
) -> Search:
    """A search whose every value has been tried on the configuration. Raises UserError."""
    overrides = [word for word in overrides if not word.startswith("out=")]
    base = load_config(config, overrides)
    found = read_space(space, config, overrides)
    names = [album.resolve().name for album in albums]
    for album, name in zip(albums, names, strict=True):
        if not (album / "ground_truth").is_dir():
            raise UserError(
                f"{album} has no ground_truth folder to measure against: give an album of `python -m launch studio`."
            )
        if names.count(name) > 1:
            raise UserError(f"Two albums are called '{name}': give them different names.")
    metric, evaluation = found.tune.metric, base.evaluation
    if metric == "lpips" and not evaluation.lpips_backbone:
        raise UserError("tune.metric is lpips, which needs evaluation.lpips_backbone: a file with VGG-16's weights.")
    if evaluation.protocol == "reference":
        raise UserError(f"tune.metric {metric} is of the corrected protocol: set evaluation.protocol=both.")
    return Search(
        out=str(out.resolve()),
        albums=tuple(str(album.resolve()) for album in albums),
        config=None if config is None else str(config_path(config).resolve()),
        overrides=tuple(overrides),
        tune=found.tune,
        dimensions=dimensions_of(found, space),
    )


def run_search(search: Search) -> tuple[str, bool]:
    """Do a search, or what a kill has left of it; returns the text of tune.md, and whether a best one was found.

    Raises UserError when the folder holds another search or is in use, and as `launch.tuning_ray.drive` does.
    """
    if importlib.util.find_spec("ray") is None:
        raise UserError("`tune` schedules its trials with Ray, which is not installed: pip install 'ray[tune]'.")
    out = Path(search.out)
    with run_lock(out):
        if not _same_search(search):
            if (out / REQUEST).exists() and read_results(search):
                raise UserError(
                    f"{out} holds another search (other albums, values or settings): choose another --out, or delete "
                    "that one."
                )
            write_json(out / REQUEST, to_plain(search))
        done = (out / RESULT).is_file() and json.loads((out / RESULT).read_text())["finished"]
        if not done:
            from launch.tuning_ray import drive

            drive(search)
        text = write_summary(search, finished=True)
    return text, json.loads((out / RESULT).read_text())["best"] is not None


def _same_search(search: Search) -> bool:
    try:
        return bool(json.loads((Path(search.out) / REQUEST).read_text()) == json.loads(json.dumps(to_plain(search))))
    except (OSError, ValueError):
        return False
