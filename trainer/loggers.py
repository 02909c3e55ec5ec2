"""Where metrics go: always `metrics.jsonl`, and Weights & Biases or TensorBoard where asked for."""

from __future__ import annotations

import contextlib
import logging
import os
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from modules.errors import UserError
from trainer.artifacts import folder_errors
from trainer.metrics_file import METRICS_NAME, JsonlLogger, read_metrics
from trainer.runtime import LoggerKind
from trainer.tracking import (
    PATIENCE_S,
    TRACKERS_NAME,
    Background,
    Tracked,
    album_metrics,
    mean_figures,
    run_id,
    wandb_mode,
)

__all__ = [
    "METRICS_NAME",
    "TRACKERS_NAME",
    "JsonlLogger",
    "SafeLogger",
    "WandbLogger",
    "WandbRuns",
    "build_loggers",
    "finished_trackers",
    "read_metrics",
]

log = logging.getLogger(__name__)

# Marks the runs that were begun here, as opposed to one that a caller has open.
_JOB_TYPE = "puzzlebooth"
_PROJECT = "puzzlebooth"


class SafeLogger(Logger):
    """Passes everything on to another logger until that one fails; from then on it is silent.

    A tracker's server or disk trouble must never end a training that took hours.

    Args:
        inner: the tracker.
        first_step: added to every step of a metric: steps that earlier phases did.
    """

    def __init__(self, inner: Logger, *, first_step: int = 0) -> None:
        super().__init__()
        self.inner = inner
        self.first_step = first_step
        self._broken = False

    @property
    def name(self) -> str | None:
        return self.inner.name

    @property
    def version(self) -> int | str | None:
        return self.inner.version

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._pass_on("log_hyperparams", params, *args, **kwargs)

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._pass_on("log_metrics", metrics, None if step is None else step + self.first_step)

    def log_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Show a picture (H, W, 3) uint8 in a tracker that takes some (W&B, TensorBoard).

        step: counted over all phases.
        """
        if hasattr(self.inner, "log_image"):
            self._pass_on("log_image", name, [image], step=step)
        elif hasattr(type(self.inner), "experiment"):
            # Asked for inside the guard: reading the property opens the tracker's files.
            board: Any = self.inner
            self._guarded(lambda: board.experiment.add_image(name, image, global_step=step, dataformats="HWC"))

    def save(self) -> None:
        self._pass_on("save")

    def finalize(self, status: str) -> None:
        self._pass_on("finalize", status)

    def _pass_on(self, method: str, *args: Any, **kwargs: Any) -> None:
        self._guarded(lambda: getattr(self.inner, method)(*args, **kwargs))

    def _guarded(self, call: Callable[[], object]) -> None:
        if self._broken:
            return
        try:
            call()
        except Exception as error:
            self._broken = True
            log.warning("%s failed and is switched off: %s", type(self.inner).__name__, error)


def build_loggers(
    kind: LoggerKind,
    folder: Path,
    *,
    start_step: int = 0,
    first_step: int = 0,
    trackers: Path | Tracked | None = None,
) -> list[Logger]:
    """The loggers of a training; the first one is always the `JsonlLogger`.

    Args:
        kind: which further logger. W&B is offline when there is neither a key nor a mode.
        folder: the training folder.
        start_step: see `JsonlLogger`.
        first_step: see `JsonlLogger`.
        trackers: where TensorBoard's events or W&B's runs go, and which albums they show; folder/trackers, and a run
            with the training folder's name, when None.

    Raises:
        UserError: the tracker's package is not installed, or its folder cannot be written.
    """
    loggers: list[Logger] = [JsonlLogger(folder / METRICS_NAME, start_step, first_step=first_step)]
    tracked = trackers if isinstance(trackers, Tracked) else Tracked(folder=trackers or folder / TRACKERS_NAME)
    try:
        match kind:
            case "jsonl":
                pass
            case "wandb":
                loggers.append(SafeLogger(WandbLogger(folder, tracked, start_step), first_step=first_step))
            case "tensorboard":
                from lightning.pytorch.loggers import TensorBoardLogger

                # What an earlier process logged past its last checkpoint is logged again; the picture of the step that
                # the checkpoint was made at is not.
                purge = start_step + 1 if start_step else 0
                events = tracked.folder / tracked.training
                board = TensorBoardLogger(save_dir=events, name="", version="", purge_step=purge)
                loggers.append(SafeLogger(board, first_step=first_step))
    except ModuleNotFoundError as error:
        raise UserError(
            f"runtime.logger is '{kind}', but its package is not installed: "
            f"pip install {kind}, or set runtime.logger=jsonl."
        ) from error
    return loggers


class WandbLogger(Logger):
    """Shows a training in Weights & Biases: one run per album, which all of the album's stages and resumes share.

    Its calls return at once, see `WandbRuns`.

    Args:
        folder: the training folder, which stands for an album where `tracked` names none.
        tracked: whose training it is.
        start_step: the step from which the training goes on.

    Raises:
        ModuleNotFoundError: there is no W&B.
        UserError: the folder for its files cannot be written.
    """

    def __init__(self, folder: Path, tracked: Tracked, start_step: int = 0) -> None:
        super().__init__()
        import wandb  # noqa: F401 - to be missed now, and not in a thread

        with folder_errors(tracked.folder):
            tracked.folder.mkdir(parents=True, exist_ok=True)
        self.tracked, self.albums = tracked, dict(tracked.albums) or {folder.name: folder}
        self.runs = _wandb_runs()
        self.runs.open(self.albums, tracked, start_step)

    @property
    def name(self) -> str:
        return "wandb"

    @property
    def version(self) -> str:
        return ",".join(run_id(folder) for folder in self.albums.values())

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the runs have the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.runs.log(self.albums, dict(metrics), self.tracked.stage, step)

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        """key: `samples/<album>` for one of an album."""
        kind, _, album = key.partition("/")
        chosen = {album: self.albums[album]} if album in self.albums else self.albums
        self.runs.log_images(chosen, kind if album in self.albums else key, images, self.tracked.stage, step)

    def finalize(self, status: str) -> None:
        """Wait until W&B has what was logged, for a minute at most."""
        self.runs.background.wait()


class WandbRuns:
    """The runs that this process has open in W&B. All talk with W&B is in a thread of its own.

    Where the process is a run of a sweep, or its caller has a run open, all albums are shown in that one: as they would
    be in their own where there is one album, under `album/<name>/` and with means over them where there are more.
    """

    def __init__(self) -> None:
        self.background = Background("Weights & Biases")
        self._runs: dict[str, Any] = {}
        self._shared: Any = None
        self._is_ours = False
        # Run and stage of trainings that this process has told from their beginning.
        self._told: set[tuple[str, str]] = set()
        # Of the albums in the shared run, with their figures once they have some.
        self._figures: dict[str, Mapping[str, float]] = {}

    def open(self, albums: Mapping[str, Path], tracked: Tracked, start_step: int = 0) -> None:
        """Have a run for each of the albums (name to folder), whose training goes on from a step."""
        if start_step == 0:
            self._told |= {(run_id(folder), tracked.stage) for folder in albums.values()}
        self.background.call(partial(self._open, dict(albums), tracked))

    def log(self, albums: Mapping[str, Path], metrics: Mapping[str, float], stage: str, step: int | None) -> None:
        """Show a pack's row of metrics in the runs of its albums."""

        def work() -> None:
            for name, folder in albums.items():
                self._log(name, folder, album_metrics(metrics, name, stage), stage, step)

        self.background.call(work)

    def log_images(self, albums: Mapping[str, Path], key: str, images: list[Any], stage: str, step: int | None) -> None:
        """Show pictures (H, W, 3) uint8 in the runs of albums."""

        def work() -> None:
            import wandb

            for name, folder in albums.items():
                shown = [wandb.Image(image) for image in images]
                # A loss may have the picture's name.
                self._log(name, folder, {f"{stage}/media/{key}" if stage else key: shown}, stage, step)

        self.background.call(work)

    def conclude(
        self,
        name: str,
        folder: Path,
        *,
        figures: Mapping[str, float],
        media: Mapping[str, Path],
        failed: str | None = None,
        history: Sequence[tuple[str, int, Mapping[str, Any]]] = (),
    ) -> None:
        """Put figures into the summary of an album's run, log its video (.mp4) and model (.glb), and end the run.

        history: stage, step and values (numbers, or paths of pictures) of all that its trainings have told. Offline, a
        killed process takes much of it along, so that what this process has not told itself is told again.
        """

        def work() -> None:
            run = self._shared or self._runs.pop(run_id(folder), None)
            if run is None:
                return
            if wandb_mode() == "offline":
                for stage, step, values in history:
                    if (run_id(folder), stage) not in self._told:
                        run.log(self._named(name, values) | {f"{stage}/step": step})
            summary = dict(figures) | ({"failed": failed} if failed else {})
            if self._shared is not None:
                self._figures[name] = figures
                summary = self._named(name, summary)
                summary |= mean_figures([measured for measured in self._figures.values() if measured])
            if media:
                run.log(self._named(name, media))
            run.summary.update(summary)
            if self._shared is None:
                run.finish(exit_code=1 if failed else 0)

        self.background.call(work)

    def finish(self) -> None:
        """End all runs that were begun here; waits for a minute at most."""

        def work() -> None:
            for run in [*self._runs.values(), *([self._shared] if self._is_ours else [])]:
                run.finish()
            self._runs, self._shared = {}, None

        if not self.background.is_broken:
            self.background.call(work)
            self.background.wait()

    def _open(self, albums: Mapping[str, Path], tracked: Tracked) -> None:
        import wandb

        if self._shared is None and not self._runs:
            if wandb.run is not None:
                self._shared = wandb.run
            elif os.environ.get("WANDB_SWEEP_ID"):
                self._shared, self._is_ours = wandb.init(**self._options(tracked, len(albums))), True
        if self._shared is not None:
            self._figures |= {name: {} for name in albums if name not in self._figures}
        for name, folder in albums.items():
            key = run_id(folder)
            if self._shared is None and key not in self._runs:
                options = self._options(tracked, len(albums)) | {"id": key, "name": name}
                options["group"] = tracked.group or folder.resolve().parent.name
                options["config"] |= {"album_name": name}
                self._runs[key] = wandb.init(**options)
            run, stage = self._shared or self._runs[key], f"{tracked.stage}/" if tracked.stage else ""
            if stage or not tracked.albums:
                # Stages, and what a killed process had logged past its checkpoint, count their steps on their own.
                run.define_metric(f"{stage}step")
                run.define_metric(f"{self._begin(name)}{stage}*", step_metric=f"{stage}step")

    def _begin(self, name: str) -> str:
        """How the names of an album's metrics begin."""
        return f"album/{name}/" if self._shared is not None and len(self._figures) > 1 else ""

    def _named(self, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """An album's values under their names, files as W&B's media."""
        begin = self._begin(name)
        return {f"{begin}{key}": _media(value) if isinstance(value, Path) else value for key, value in values.items()}

    def _options(self, tracked: Tracked, num_albums: int) -> dict[str, Any]:
        import wandb

        mode = wandb_mode()
        settings = wandb.Settings(
            init_timeout=PATIENCE_S / 2,
            finish_timeout=PATIENCE_S / 2,
            console="off",
            # The machine need not be watched once for each album.
            x_disable_stats=bool(self._runs),
            silent=mode != "online",
        )
        options = {
            "project": os.environ.get("WANDB_PROJECT") or _PROJECT,
            "job_type": _JOB_TYPE,
            "dir": str(tracked.folder),
            "mode": mode,
            "reinit": "create_new",
            "settings": settings,
            "config": dict(tracked.config),
        }
        if tracked.albums:
            options["tags"] = [tracked.pack]
            options["config"] |= {"pack": tracked.pack, "num_albums": num_albums}
        return options | ({"resume": "allow"} if mode == "online" else {})

    def _log(self, name: str, folder: Path, values: Mapping[str, Any], stage: str, step: int | None) -> None:
        run = self._shared or self._runs.get(run_id(folder))
        if run is not None:
            run.log(self._named(name, values) | ({} if step is None else {f"{stage}/step" if stage else "step": step}))


def _media(path: Path) -> Any:
    import wandb

    match path.suffix:
        case ".mp4":
            return wandb.Video(str(path), format="mp4")
        case ".glb":
            return wandb.Object3D(str(path))
        case _:
            return wandb.Image(str(path))


@contextlib.contextmanager
def finished_trackers() -> Iterator[None]:
    """Ends the runs in W&B that were begun inside."""
    try:
        yield
    finally:
        if _RUNS:
            _RUNS.pop().finish()


_RUNS: list[WandbRuns] = []


def _wandb_runs() -> WandbRuns:
    """Those of this process."""
    if not _RUNS:
        _RUNS.append(WandbRuns())
    return _RUNS[0]
