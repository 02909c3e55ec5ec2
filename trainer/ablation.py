"""The ablation table: the same albums through every variant, each variant an ordinary run in a folder of its own.

Nothing here knows what a variant does: it is a list of overrides. What is finished is not done again, since that is how
runs are; a variant or an album that fails is a row with its reason, and the others go on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modules.errors import UserError
from trainer.ablation_sharing import share_stages
from trainer.ablation_variants import FULL, TableName, Variant, variant_config, variant_overrides, variant_words
from trainer.album_run import BASELINE, TEMPLATE
from trainer.artifacts import StageFolder, folder_errors, write_json, write_text
from trainer.config import RunConfig
from trainer.likeness import measure_likeness
from trainer.likeness_config import LikenessConfig
from trainer.metrics_table import FIGURES, Figure, summary
from trainer.pipeline import AlbumResult, run_pack

log = logging.getLogger(__name__)

AVATAR_FIGURES = ("chamfer_cm", "normal", "psnr_fg", "ssim_fg", "colour_error")
COLUMNS = {name: FIGURES[name] for name in AVATAR_FIGURES} | {
    "sample_colour": Figure(title="sample ΔE", digits=2, higher_is_better=False),
    "attention_iou": Figure(title="attention IoU", digits=3, higher_is_better=True),
}
GUIDANCE_FIGURES = ("chamfer_cm", "p2s_cm", "normal", "psnr_fg", "ssim_fg", "colour_error")
# How long a step of geometry and one of texture take, on average, by album and avatar.
STEP_TIME = "step_s"
TABLE_COLUMNS: dict[TableName, dict[str, Figure]] = {
    "method": COLUMNS,
    "guidance": {name: FIGURES[name] for name in GUIDANCE_FIGURES}
    | {STEP_TIME: Figure(title="s / step", digits=2, higher_is_better=False)},
}
TABLE, RESULT = "ablation.md", "ablation.json"


def run_ablation(
    variants: Sequence[Variant],
    albums: Sequence[Path],
    *,
    config: str | None,
    overrides: Sequence[str] = (),
    out: Path,
    booth_only: bool = False,
    likeness: LikenessConfig | None = None,
    table: TableName = "method",
    reuse: Sequence[Path] = (),
) -> dict[str, Any]:
    """Run the variants on the same albums; writes ablation.json and ablation.md into `out` after each of them.

    config, overrides: what `python -m launch run` would be given. booth_only: stop after the personalisation, which
    leaves the figures of likeness. likeness: its settings; the accelerator is the run's. table: whose columns are
    shown; likeness is not measured for "guidance", which leaves the personalisation as it is. reuse: output folders of
    other runs. A stage that one of them, or a variant before, has finished under the same key is taken over and not
    done again.
    Returns {"albums", "variants": [{"name", "title", "overrides", "command", "albums": {album: {"figures", "failed"}},
    "means", "changes", "failed"}]}. `means` are over the albums that have a figure, `changes` the mean of an album's
    difference from the full method, over the albums that both have.
    """
    # All of them now: a mistake in the last one shall not wait for the others to be done.
    configs = {variant.folder: variant_config(variant, config, overrides, str(out)) for variant in variants}
    runs: dict[str, dict[str, dict[str, Any]] | str] = {}
    document: dict[str, Any] = {
        "albums": [str(album) for album in albums],
        "booth_only": booth_only,
        "table": table,
        "variants": [],
    }
    settings = (likeness or LikenessConfig()) if table == "method" else None
    for variant in variants:
        if variant.folder not in runs:
            donors = [*reuse, *(out / folder for folder in runs)]
            share_stages(donors, out / variant.folder, albums, configs[variant.folder])
            runs[variant.folder] = _run(variant, albums, configs[variant.folder], out, booth_only, settings)
        document["variants"].append(_line(variant, runs[variant.folder], config, overrides, out))
        compare(document["variants"], table)
        with folder_errors(out):
            out.mkdir(parents=True, exist_ok=True)
        write_json(out / RESULT, document)
        write_text(out / TABLE, ablation_table(document))
    return document


def _run(
    variant: Variant,
    albums: Sequence[Path],
    config: RunConfig,
    out: Path,
    booth_only: bool,
    likeness: LikenessConfig | None,
) -> dict[str, dict[str, Any]] | str:
    """Album name to {"metrics", "likeness", "failed"}, or why the whole variant failed."""
    log.info("Variant %s", variant.name)
    _share_cache(out, variant.folder)
    packs = [[album] for album in albums] if variant.alone else [list(albums)]
    found: dict[str, dict[str, Any]] = {}
    for pack in packs:
        try:
            results = run_pack(pack, config, until="booth" if booth_only else None)
        except Exception as error:
            # Whatever went wrong, the other variants do not depend on it.
            reason = _reason(error)
            log.log(logging.INFO if isinstance(error, UserError) else logging.ERROR, reason, exc_info=error)
            if not variant.alone:
                return reason
            results = [AlbumResult(name=album.resolve().name, folder=out, metrics={}, failed=reason) for album in pack]
        for album, result in zip(pack, results, strict=True):
            found[result.name] = _album(album, result, config, likeness)
    return found


def _album(album: Path, result: AlbumResult, config: RunConfig, settings: LikenessConfig | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"metrics": result.metrics, "likeness": {}, "failed": result.failed}
    if result.failed is None:
        entry[STEP_TIME] = _step_time_s(result.folder, config)
    if settings is None:
        return entry
    # An album may fail after its personalisation, of which there is still something to say.
    if result.failed is None or (result.folder / "booth" / "personalization.safetensors").is_file():
        cpu = config.runtime.accelerator == "cpu"
        settings = dataclasses.replace(settings, accelerator="cpu" if cpu else settings.accelerator)
        try:
            entry["likeness"] = measure_likeness(result.folder, album, settings)
        except UserError as error:
            entry["failed"] = entry["failed"] or f"likeness: {_reason(error)}"
    return entry


def _step_time_s(folder: Path, config: RunConfig) -> float | None:
    """Seconds that a step of the two distillations took on average, for one avatar; None where it is not known."""
    steps = config.geometry.steps + config.texture.steps
    took = [StageFolder(folder / stage, stage).manifest for stage in ("geometry", "texture")]
    if not steps or any(manifest is None or "album_s" not in manifest["timings"] for manifest in took):
        return None
    # The words alone are a second avatar of the same album.
    return sum(manifest["timings"]["album_s"] for manifest in took if manifest) / steps / (2 if config.baselines else 1)


def _line(
    variant: Variant,
    run: Mapping[str, Mapping[str, Any]] | str,
    config: str | None,
    overrides: Sequence[str],
    out: Path,
) -> dict[str, Any]:
    words = variant_words(variant, config, overrides, str(out))
    command = ["python", "-m", "launch", "run", "ALBUM", *(["--config", config] if config else []), *words]
    line: dict[str, Any] = {
        "name": variant.name,
        "title": variant.title,
        "overrides": variant_overrides(variant, config, overrides),
        "command": shlex.join(command),
        "albums": {},
        "failed": run if isinstance(run, str) else None,
    }
    if not isinstance(run, str):
        line["albums"] = {
            name: {"figures": _figures(entry, variant.row), "failed": entry["failed"]} for name, entry in run.items()
        }
    return line


def _figures(entry: Mapping[str, Any], row: str) -> dict[str, float]:
    """One album's figures; those of the words alone are the frozen model's."""
    metrics = summary(entry["metrics"].get(row, {}))
    found: dict[str, Any] = {name: metrics.get(name) for name in dict.fromkeys((*AVATAR_FIGURES, *GUIDANCE_FIGURES))}
    side, moment = ("words", "before") if row == BASELINE else ("trained", "after")
    found["sample_colour"] = entry["likeness"].get(f"colour_difference_{side}")
    found["attention_iou"] = entry["likeness"].get(f"iou_{moment}")
    found[STEP_TIME] = entry.get(STEP_TIME) if row != TEMPLATE else None
    return {name: value for name, value in found.items() if value is not None}


def compare(lines: Sequence[dict[str, Any]], table: TableName = "method") -> None:
    """Fill in each variant's means, and its changes from the full method where that is among them."""
    full = next((line for line in lines if line["name"] == FULL.name), None)
    for line in lines:
        line["means"], line["changes"] = {}, {}
        for column in TABLE_COLUMNS[table]:
            own = _column(line, column)
            if own:
                line["means"][column] = float(np.mean(list(own.values())))
            base = _column(full, column) if full is not None and full is not line else {}
            both = [own[name] - base[name] for name in own if name in base]
            if both:
                line["changes"][column] = float(np.mean(both))


def _column(line: Mapping[str, Any], column: str) -> dict[str, float]:
    albums: Mapping[str, Any] = line["albums"]
    return {name: album["figures"][column] for name, album in albums.items() if column in album["figures"]}


def ablation_table(document: Mapping[str, Any]) -> str:
    """The result as Markdown: a table of means with the changes from the full method, failures, and the overrides."""
    columns = TABLE_COLUMNS[document.get("table", "method")]
    headings = [f"{figure.title} {figure.arrow}" for figure in columns.values()]
    rows = [["variant", "albums", *headings], ["---"] + ["---:"] * (len(headings) + 1)]
    failures = []
    for line in document["variants"]:
        whole = [name for name, album in line["albums"].items() if album["failed"] is None]
        rows.append(
            [
                line["title"],
                f"{len(whole)}/{len(document['albums'])}",
                *(_cell(line, column, figure) for column, figure in columns.items()),
            ]
        )
        if line["failed"]:
            failures.append(f"- {line['title']}: {line['failed']}")
        failures += [
            f"- {line['title']}, {name}: {album['failed']}" for name, album in line["albums"].items() if album["failed"]
        ]
    parts = ["\n".join(f"| {' | '.join(row)} |" for row in rows)]
    if failures:
        parts.append("What failed:\n\n" + "\n".join(failures))
    overrides = [f"- {line['title']}: `{' '.join(line['overrides'])}`" for line in document["variants"]]
    parts.append(
        "Overrides (means over albums; in brackets the change from the full method):\n\n" + "\n".join(overrides)
    )
    return "\n\n".join(parts) + "\n"


def _cell(line: Mapping[str, Any], column: str, figure: Figure) -> str:
    if column not in line["means"]:
        return "-"
    digits = figure.digits
    change = line["changes"].get(column)
    return f"{line['means'][column]:.{digits}f}" + ("" if change is None else f" ({change:+.{digits}f})")


def _share_cache(out: Path, folder: str) -> None:
    """Let all variants use one folder of prior images: its entries are named by what they depend on."""
    shared, link = out / ".cache", out / folder / ".cache"
    with folder_errors(out):
        shared.mkdir(parents=True, exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        # Where the file system knows no links, every variant makes its own.
        with contextlib.suppress(OSError):
            if not link.exists():
                link.symlink_to(Path("..") / ".cache", target_is_directory=True)


def _reason(error: BaseException) -> str:
    lines = str(error).splitlines()
    return (lines[0].rstrip(".") if lines else "") or type(error).__name__
