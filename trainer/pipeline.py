"""From album folders to avatars: assets, PuzzleBooth, geometry, texture, export, evaluation, report.

Each stage reads the artifact before it and writes its own folder with a manifest. What is complete and unchanged is not
done again, so the same command resumes, and a changed setting redoes only what depends on it.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import shutil
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from datamodules.assets import load_assets
from modules.errors import AlbumFailed, OutputError, UserError
from modules.geometry.body import BodyTemplate, load_body
from modules.geometry.mesh import TexturedMesh
from trainer.album_run import BASELINE, SUBJECT, TEMPLATE, AlbumRun, content_key
from trainer.artifacts import folder_errors, run_lock, write_json
from trainer.loggers import finished_trackers
from trainer.packing import STAGES, train_stages
from trainer.prepare_stage import prepare
from trainer.result_tracking import track_result

if TYPE_CHECKING:
    from trainer.config import RunConfig

Until = Literal["assets", "booth", "geometry", "texture"]
# Bytes that file systems take, less what a temporary name adds.
_LONGEST_NAME = 240
CONFIG, REPORT = "config.yaml", "report.html"
RESULTS = ("avatar.glb", "turntable.mp4", "turntable.png", REPORT)


@dataclass(frozen=True, kw_only=True)
class AlbumResult:
    """What became of one album: its folder, its metrics by row (empty without ground truth), or why it failed.

    traceback: where in the code it failed, if in its own work.
    """

    name: str
    folder: Path
    metrics: dict[str, Any]
    failed: str | None
    traceback: str | None = None


def mean_metrics(measured: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean of each headline figure over albums, by row; rows that not every album has are left out."""
    from trainer.evaluation import summary

    rows = [name for name in measured[0] if all(name in metrics for metrics in measured)]
    means = {}
    for row in rows:
        figures = [summary(metrics[row]) for metrics in measured]
        means[row] = {name: float(np.mean([one[name] for one in figures])) for name in figures[0]}
    return means


def run_album(album: Path, config: RunConfig, name: str | None = None) -> AlbumResult:
    """Turn one album into an avatar under config.out/<name>. Raises UserError when it cannot be done."""
    result = run_pack([album], config, names=[name] if name else None)[0]
    if result.failed is not None:
        raise UserError(f"Album {result.name}: {result.failed}.")
    return result


def run_pack(
    albums: Sequence[Path],
    config: RunConfig,
    names: Sequence[str] | None = None,
    *,
    until: Until | None = None,
    on_result: Callable[[AlbumResult], None] | None = None,
) -> list[AlbumResult]:
    """Take albums through all stages together. An album that fails is reported in its result; the others go on.

    names: of the output folders; the albums' folder names by default. until: the last stage that is done; None for all,
    otherwise there is no metric. on_result: told of each album as soon as it is done, or once it cannot go on. Raises
    UserError when two names are equal or the output folder is in use by another process.
    """
    out = Path(config.out)
    chosen = list(names) if names else [album.resolve().name for album in albums]
    check_names(chosen, out)
    runs = [AlbumRun(name=name, source=album, folder=out / name) for name, album in zip(chosen, albums, strict=True)]
    for run in runs:
        if not run.source.is_dir():
            run.failed = f"{run.source} is not a folder: give the folder that holds the album's photos"
    results: dict[str, AlbumResult] = {}

    def report(result: AlbumResult) -> None:
        if result.name not in results:
            results[result.name] = result
            if on_result is not None:
                on_result(result)

    def report_failed() -> None:
        for run in runs:
            if run.failed is not None:
                report(_result(run))

    with hold([run for run in runs if run.failed is None]), finished_trackers():
        for run in runs:
            if run.failed is None:
                attempt(run, lambda run=run: prepare(run, config))
        report_failed()
        if until != "assets":
            train_stages(runs, config, out=out, stages=STAGES[: STAGES.index(until) + 1] if until else STAGES)
            report_failed()
        for run in runs:
            report(_result(run) if until else conclude(run, config))
    return [results[run.name] for run in runs]


def _result(run: AlbumRun, metrics: dict[str, Any] | None = None) -> AlbumResult:
    return AlbumResult(
        name=run.name, folder=run.folder, metrics=metrics or {}, failed=run.failed, traceback=run.traceback
    )


def check_names(names: Sequence[str], out: Path) -> None:
    """Raises UserError for names of output folders that are equal, or that cannot be a folder's name."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"Two albums would both be written to {out / name}: give them different names.")
        if name in ("", ".", "..") or "/" in name or name.startswith(".") or len(os.fsencode(name)) > _LONGEST_NAME:
            raise UserError(f"{name[:80]!r} cannot be an output folder's name: use --name with letters and digits.")


def conclude(run: AlbumRun, config: RunConfig) -> AlbumResult:
    """Export, measure and report an album whose trained stages are complete; nothing is done for one that failed."""
    metrics: dict[str, Any] = {}
    if run.failed is None:
        attempt(run, lambda: _export(run, config))
    if run.failed is None:
        metrics = _evaluate(run, config)
        _save_config(run, config)
        _report(run, config, metrics)
    if config.runtime.logger == "wandb":
        track_result(run, config, metrics)
    return _result(run, metrics)


def run_report(folder: Path) -> Path:
    """Write the report of a finished album again, from its artifacts; `folder` is config.out/<name>. Returns its path.

    Raises UserError when the folder does not hold a finished album.
    """
    from trainer.config import RunConfig, load_dataclass

    again = "finish it with `python -m launch run` first"
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} holds no finished album (there is no {CONFIG}): {again}.")
    config = load_dataclass(RunConfig, folder / CONFIG)
    with run_lock(folder):
        run = AlbumRun(name=folder.resolve().name, source=folder, folder=folder)
        for name in ("assets", "booth", "geometry", "texture", "export"):
            if (run.stage(name).manifest or {}).get("state") != "complete":
                raise UserError(f"{folder} holds no finished album (its {name} stage is not complete): {again}.")
        run.prepared = load_assets(run.stage("assets").path)
        _publish_export(run)
        evaluation = run.stage("evaluate")
        measured = (evaluation.manifest or {}).get("state") == "complete"
        metrics = json.loads(evaluation.output("protocols.json").read_text()) if measured else {}
        _report(run, config, metrics)
    return folder / REPORT


def attempt(run: AlbumRun, work: Any) -> None:
    """Do an album's own work; a user's mistake in it fails the album and not the pack. A full disk is nobody's own."""
    try:
        work()
    except OutputError:
        raise
    except (AlbumFailed, UserError) as error:
        run.failed = str(error).rstrip(".")
        run.traceback = traceback.format_exc()


def hold(runs: Sequence[AlbumRun]) -> Any:
    """The locks of the albums' output folders, as a context manager. Raises UserError when one is in use."""
    stack = contextlib.ExitStack()
    try:
        for run in sorted(runs, key=lambda run: run.name):
            stack.enter_context(run_lock(run.folder))
    except BaseException:
        stack.close()
        raise
    return stack


def read_textured(path: Path) -> TexturedMesh:
    """A baked mesh that the texture stage wrote."""
    with np.load(path) as file:
        return TexturedMesh(vertices=file["vertices"], faces=file["faces"], uv=file["uv"], texture=file["texture"])


def _export(run: AlbumRun, config: RunConfig) -> None:
    from trainer.export import export_avatar, left_out

    stage = run.stage("export")
    missing = left_out(config.export)
    # Once a package that was missing is there, its file is made.
    inputs = {"texture": run.stage("texture").outputs_hash, "body": run.album.gender, "left_out": ",".join(missing)}
    settings = config.export.key_settings()
    key = stage.key(inputs, settings, config.seed)
    if stage.status(key) != "complete":
        started = time.monotonic()
        mesh = read_textured(run.stage("texture").output(f"{SUBJECT}.npz"))
        export_avatar(mesh, stage.working(key), config.export, load_body(run.album.gender))  # type: ignore[arg-type]
        stage.commit(
            key,
            inputs=inputs,
            config=settings,
            seed=config.seed,
            timings={"album_s": time.monotonic() - started},
            extra={"left_out": missing},
        )
    _publish_export(run)


def _publish_export(run: AlbumRun) -> None:
    from trainer.export import OPTIONAL_FILES, ORBIT_FOLDER, orbit_files

    stage = run.stage("export")
    made = {output["path"] for output in (stage.manifest or {}).get("outputs", ())}
    for name in sorted({*RESULTS[:3], *OPTIONAL_FILES, *made, *orbit_files(run.folder)}):
        if name in made:
            publish(stage.output(name), run.folder / name)
        else:  # a former run's, made with other settings
            (run.folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there is none, or it is not empty
        (run.folder / ORBIT_FOLDER).rmdir()


def publish(source: Path, target: Path) -> None:
    """Copy a stage's file to the album's folder, whole or not at all."""
    temporary = target.with_name(f".{target.name}.tmp")
    with folder_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and filecmp.cmp(source, target, shallow=False):
            return
        try:
            shutil.copyfile(source, temporary)
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


def mean_color_template(body: BodyTemplate, texture: np.ndarray, covered: np.ndarray) -> TexturedMesh:
    """The bare body in one colour, the mean of the truth's texture over the covered texels: a floor for metrics."""
    color = texture[covered].reshape(-1, 3).mean(0).round().astype(np.uint8)
    return TexturedMesh(
        vertices=body.vertices.astype(np.float32),
        faces=body.faces.astype(np.int32),
        uv=np.full((len(body.vertices), 2), 0.5, np.float32),
        texture=np.broadcast_to(color, (4, 4, 3)).copy(),
    )


def _evaluate(run: AlbumRun, config: RunConfig) -> dict[str, Any]:
    """Rows avatar, template and words_only of the metrics table; empty without ground truth."""
    if not run.has_truth:
        # Figures of a truth that is no longer there would be taken for this avatar's.
        (run.folder / "metrics.json").unlink(missing_ok=True)
        shutil.rmtree(run.stage("evaluate").path, ignore_errors=True)
        return {}
    from trainer.evaluation import evaluate_avatar
    from trainer.ground_truth import load_ground_truth

    stage = run.stage("evaluate")
    texture = run.stage("texture")
    inputs = {"texture": texture.outputs_hash, "truth": content_key(run.source / "ground_truth")}
    key = stage.key(inputs, (config.evaluation, config.baselines), config.seed)
    if stage.status(key) != "complete":
        started = time.monotonic()
        truth = load_ground_truth(run.source)
        assert truth is not None
        rows = {SUBJECT: read_textured(texture.output(f"{SUBJECT}.npz"))}
        rows[TEMPLATE] = mean_color_template(load_body(run.album.gender), truth.mesh.texture, truth.clothed)  # type: ignore[arg-type]
        if config.baselines:
            rows[BASELINE] = read_textured(texture.output(f"{BASELINE}.npz"))
        metrics = {name: evaluate_avatar(mesh, truth, config.evaluation) for name, mesh in rows.items()}
        write_json(stage.working(key) / "protocols.json", metrics)
        stage.commit(
            key,
            inputs=inputs,
            config=config.evaluation,
            seed=config.seed,
            timings={"album_s": time.monotonic() - started},
        )
    metrics = json.loads(stage.output("protocols.json").read_text())
    from trainer.evaluation import summary

    write_json(run.folder / "metrics.json", {name: summary(row) for name, row in metrics.items()})
    return metrics


def _save_config(run: AlbumRun, config: RunConfig) -> None:
    """The settings of what lies in the folder, written only once all of it does."""
    from trainer.config import save_config

    save_config(config, run.folder / CONFIG)


def _report(run: AlbumRun, config: RunConfig, metrics: dict[str, Any]) -> None:
    from omegaconf import OmegaConf

    from trainer.config import config_to_dict
    from trainer.loggers import read_metrics
    from trainer.report import ReportContent, ReportPhoto, write_report
    from trainer.report_charts import album_curves
    from trainer.samples import read_samples
    from trainer.visual_files import read_visuals
    from trainer.visuals import VISUALS_NAME

    album = run.album
    photos = [
        ReportPhoto(
            name=stem,
            image=album.images[index],
            masks={
                name: album.masks[index, position]
                for position, name in enumerate(album.asset_names)
                if album.present[index, position]
            },
            caption=", ".join(word for word in (album.views[index], album.framings[index], album.poses[index]) if word),
        )
        for index, stem in enumerate(album.stems)
    ]
    losses: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for stage in ("booth", "geometry", "texture"):
        losses[stage] = album_curves(read_metrics(run.stage(stage).path / "metrics.jsonl"), run.name)
    stages = ("assets", "booth", "geometry", "texture", "export", "evaluate")
    manifests = {name: run.stage(name).manifest or {} for name in stages}
    content = ReportContent(
        name=run.name,
        photos=photos,
        set_aside=[(aside.name, aside.reason) for aside in album.set_aside],
        samples=read_samples(run.stage("booth").path),
        training=read_visuals(run.stage("booth").path / VISUALS_NAME),
        losses=losses,
        mesh=read_textured(run.stage("texture").output(f"{SUBJECT}.npz")),
        turntable_video=run.folder / "turntable.mp4",
        turntable_strip=_read_image(run.folder / "turntable.png"),
        metrics=metrics,
        config_yaml=OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config))),
        timings_s={
            name: manifest["timings"]["album_s"] for name, manifest in manifests.items() if manifest.get("timings")
        },
        versions=manifests["texture"].get("versions", {}),
    )
    write_report(run.folder, content)


def _read_image(path: Path) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))
