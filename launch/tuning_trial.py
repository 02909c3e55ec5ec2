"""One training of a trial: a process of its own that runs `python -m launch run`, and what it came to.

Nothing here knows of Ray. A training that was killed goes on from its checkpoints when it is started again, since that
is how runs are; stages that another trial has finished with the same settings are taken over.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launch.child import run_child
from launch.tuning_config import Search
from launch.tuning_results import RungResult, mean_value, read_results, write_result
from modules.errors import UserError
from trainer.ablation_sharing import share_stages
from trainer.album_run import SUBJECT
from trainer.artifacts import StageFolder, folder_errors
from trainer.config import PROJECT_ROOT, RunConfig, load_config
from trainer.metrics_table import protocol_figures

log = logging.getLogger(__name__)


class TrialStoppedError(RuntimeError):
    """A training could not be done for a reason that is not the fault of its settings, such as a full disk."""


def run_rung(
    search: Search,
    name: str,
    rung: int,
    point: Mapping[str, Any],
    *,
    run: Callable[..., int] = run_child,
) -> RungResult:
    """Train the albums with a point's values and a rung's share of the steps, measure them, and keep the result.

    A result that is there already is taken, be it this trial's or that of another one with the very same settings.
    run: see `run_child`.

    Raises:
        TrialStoppedError: the training ended for a reason that concerns the machine. What it has done is kept.
    """
    try:
        words = search.words(point, rung)
        config = load_config(search.config, words)
    except UserError as error:
        # Each value alone is possible, these together are not.
        return _keep(search, name, rung, point, [], {}, {Path(album).name: str(error) for album in search.albums})
    for result in read_results(search):
        if list(result.words) == words:
            if (result.trial, result.rung) == (name, rung):
                return result
            taken_from = result.taken_from or f"{result.trial}, rung {result.rung}"
            return _keep(search, name, rung, point, words, result.figures, result.failed, taken_from=taken_from)
    folder = search.rung_folder(name, rung)
    _share(search, folder, config)
    command = [sys.executable, "-m", "launch", "run", *search.albums]
    command += ["--config", search.config] if search.config else []
    # A node's Slurm variables describe the allocation, not this process, which trains on its own.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    if search.tune.gpus_per_trial == 0:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    started = time.monotonic()
    output = search.trial_folder(name) / f"rung_{rung}.log"
    for attempt in range(1 + search.tune.max_crashes):
        begins_at = output.stat().st_size if output.exists() else 0
        code = run([*command, *words, f"out={folder}"], log=output, env=environment, cwd=PROJECT_ROOT)
        said = _lines(output, begins_at)
        # One that failed for a reason says so of an album (1), or of settings, disks and folders (2).
        if code in (0, 2) or (code == 1 and any(line.startswith("Album ") for line in said)):
            break
        log.warning("%s, rung %d died (exit code %d), attempt %d: see %s.", name, rung, code, attempt + 1, output)
    figures, failed = {}, {}
    for album in (Path(path).name for path in search.albums):
        figure = read_figure(folder / album, search.tune.metric)
        if figure is not None:
            figures[album] = figure
            continue
        prefix = f"Album {album}: "
        reason = next((line.removeprefix(prefix) for line in said if line.startswith(prefix)), "")
        if not reason and code == 2:
            # Neither an album nor a value of the space: a full disk, or another process in the folder.
            raise TrialStoppedError(f"{name}, rung {rung}: {said[-1] if said else f'see {output}'}")
        if not reason:
            reason = f"it has no {search.tune.metric}" if code == 0 else f"the training died (exit code {code})"
            reason += f": see {output}"
        failed[album] = reason.rstrip(".")
    return _keep(search, name, rung, point, words, figures, failed, seconds=time.monotonic() - started)


def read_figure(folder: Path, metric: str) -> float | None:
    """An album's figure from its output folder; None where the album is not finished or has no such figure."""
    stage = StageFolder(folder / "evaluate", "evaluate")
    if (stage.manifest or {}).get("state") != "complete":
        return None
    try:
        metrics = json.loads(stage.output("protocols.json").read_text())
    except (OSError, ValueError):
        return None
    value = protocol_figures(metrics.get(SUBJECT, {}), "corrected").get(metric)
    return float(value) if isinstance(value, int | float) else None


def _keep(
    search: Search,
    name: str,
    rung: int,
    point: Mapping[str, Any],
    words: list[str],
    figures: Mapping[str, float],
    failed: Mapping[str, str],
    *,
    seconds: float = 0.0,
    taken_from: str | None = None,
) -> RungResult:
    result = RungResult(
        trial=name,
        rung=rung,
        share=search.tune.share(rung),
        point=dict(point),
        words=words,
        value=mean_value(search.tune.metric, figures, len(search.albums)),
        figures=dict(figures),
        failed=dict(failed),
        seconds=round(seconds, 1),
        taken_from=taken_from,
    )
    write_result(search, result)
    return result


def _share(search: Search, folder: Path, config: RunConfig) -> None:
    """Begin with what other trials and rungs have finished under the same settings, and with one folder of images."""
    shared, link = search.trial_folder(".cache"), folder / ".cache"
    with folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        shared.mkdir(parents=True, exist_ok=True)
        # Where the file system knows no links, every rung makes its own.
        with contextlib.suppress(OSError):
            if not link.exists():
                link.symlink_to(Path("..") / ".." / ".cache", target_is_directory=True)
    donors = [path for path in sorted(search.trial_folder("").glob("*/rung_*")) if path.is_dir() and path != folder]
    share_stages(donors, folder, [Path(album) for album in search.albums], config)


def _lines(path: Path, begins_at: int) -> list[str]:
    """Lines that were appended to a log since it was so many bytes long."""
    with path.open("rb") as file:
        file.seek(begins_at)
        return [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
