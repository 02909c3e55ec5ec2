"""What became of an album, shown in Weights & Biases: its figures, its turntable and its avatar."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.album_run import AlbumRun
from trainer.artifacts import write_json
from trainer.canonical import hash_json
from trainer.loggers import WandbLogger
from trainer.metrics_file import METRICS_NAME, read_metrics
from trainer.tracking import Tracked, album_figures, album_metrics, run_id, tracked_albums
from trainer.visuals import VISUALS_NAME

if TYPE_CHECKING:
    from trainer.config import RunConfig

log = logging.getLogger(__name__)

_STAGES = ("assets", "booth", "geometry", "texture", "export", "evaluate")


def track_result(run: AlbumRun, config: RunConfig, metrics: dict[str, Any]) -> None:
    """Show in W&B what became of an album; trouble there is no trouble of the album."""
    try:
        timings = {name: ((run.stage(name).manifest or {}).get("timings") or {}).get("album_s") for name in _STAGES}
        took = {name: float(seconds) for name, seconds in timings.items() if seconds is not None}
        files = {"turntable": run.folder / "turntable.mp4", "avatar": run.folder / "avatar.glb"}
        shown = metrics if run.failed else [run.stage("export").outputs_hash, metrics]
        track_album(
            run.name,
            run.folder,
            tracked_albums(config, run.folder.parent, {run.name: run.folder}),
            state=hash_json([shown, run.failed]),
            figures=album_figures(metrics, took),
            media={} if run.failed else {key: path for key, path in files.items() if path.is_file()},
            failed=run.failed,
            history=list(_history(run)),
        )
    except Exception as error:
        log.warning("Weights & Biases does not show what became of %s: %s", run.name, error)


def track_album(
    name: str,
    folder: Path,
    tracked: Tracked,
    *,
    state: str,
    figures: Mapping[str, float],
    media: Mapping[str, Path],
    failed: str | None = None,
    history: Sequence[tuple[str, int, Mapping[str, Any]]] = (),
) -> None:
    """Conclude an album's run, see `WandbRuns.conclude`, unless that was done before.

    state: a hash of all that is shown. What could not be said, since W&B did not answer, is said by the next run.
    """
    kept = tracked.folder / f"{run_id(folder)}.json"
    with contextlib.suppress(OSError, ValueError):
        if json.loads(kept.read_text()) == {"album": name, "state": state}:
            return
    runs = WandbLogger(folder, dataclasses.replace(tracked, stage="", albums={name: folder})).runs
    runs.conclude(name, folder, figures=figures, media=media, failed=failed, history=history)
    runs.background.call(lambda: write_json(kept, {"album": name, "state": state}))


def _history(run: AlbumRun) -> Iterator[tuple[str, int, dict[str, Any]]]:
    """Stage, step and values of all that an album's trainings have logged and drawn."""
    for stage in ("booth", "geometry", "texture"):
        folder = run.stage(stage).path
        for row in read_metrics(folder / METRICS_NAME):
            numbers = {key: value for key, value in row.items() if key != "step" and value is not None}
            yield stage, int(row["step"]), album_metrics(numbers, run.name, stage)
        for picture in sorted((folder / VISUALS_NAME).glob("*_*.png")):
            kind, _, step = picture.stem.rpartition("_")
            yield stage, int(step), {f"{stage}/media/{kind}": picture}
