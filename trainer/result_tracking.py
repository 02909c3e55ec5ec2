"""What became of an album, shown in Weights & Biases: its figures, its turntable and its avatar."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from trainer.album_run import AlbumRun
from trainer.canonical import hash_json
from trainer.loggers import track_album
from trainer.tracking import album_figures, tracked_albums

if TYPE_CHECKING:
    from trainer.config import RunConfig

log = logging.getLogger(__name__)


def track_result(run: AlbumRun, config: RunConfig, metrics: dict[str, Any]) -> None:
    """Show in W&B what became of an album; trouble there is no trouble of the album."""
    try:
        stages = {name: run.stage(name) for name in ("assets", "booth", "geometry", "texture", "export", "evaluate")}
        timings = {name: ((stage.manifest or {}).get("timings") or {}).get("album_s") for name, stage in stages.items()}
        took = {name: float(seconds) for name, seconds in timings.items() if seconds is not None}
        media = {"turntable": run.folder / "turntable.mp4", "avatar": run.folder / "avatar.glb"}
        shown = metrics if run.failed else [stages["export"].outputs_hash, metrics]
        track_album(
            run.name,
            run.folder,
            tracked_albums(config, run.folder.parent, {run.name: run.folder}),
            state=hash_json([shown, run.failed]),
            figures=album_figures(metrics, took),
            media={} if run.failed else {key: path for key, path in media.items() if path.is_file()},
            failed=run.failed,
        )
    except Exception as error:
        log.warning("Weights & Biases does not show what became of %s: %s", run.name, error)
