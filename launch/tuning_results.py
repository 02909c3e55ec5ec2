"""What a search has found so far: one small file per trial and rung, the table of them, and the best configuration."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launch.search_space import point_words
from launch.tuning_config import Search
from trainer.artifacts import folder_errors, write_json, write_text
from trainer.metrics_table import FIGURES, format_figure

TABLE, RESULT, BEST = "tune.md", "tune.json", "best.yaml"
# An album that failed counts like an avatar that could hardly be worse: half a person's height away, black, or absent.
WORST: Mapping[str, float] = {
    "chamfer_cm": 100.0,
    "p2s_cm": 100.0,
    "normal": 4.0,
    "normal_angle_deg": 180.0,
    "psnr": 0.0,
    "psnr_fg": 0.0,
    "ssim": -1.0,
    "ssim_fg": -1.0,
    "silhouette_iou": 0.0,
    "colour_error": 100.0,
    "lpips": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class RungResult:
    """What one training of a trial came to.

    Attributes:
        trial: its name.
        rung: 1 for the first.
        share: of the steps.
        point: key to value.
        words: key=value words that the training was given, its folder left out.
        value: mean of the metric over all albums; one that failed counts as the worst.
        figures: album to its figure, of those that have one.
        failed: album to the reason why it has none.
        seconds: that it took; 0 for one that another trial had done already.
        taken_from: that other trial and its rung; None for one that was trained.
    """

    trial: str
    rung: int
    share: float
    point: Mapping[str, Any]
    words: Sequence[str]
    value: float
    figures: Mapping[str, float] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    taken_from: str | None = None


def mean_value(metric: str, figures: Mapping[str, float], num_albums: int) -> float:
    """Mean over all albums, where those without a figure have the worst."""
    return (sum(figures.values()) + (num_albums - len(figures)) * WORST[metric]) / num_albums


def write_result(search: Search, result: RungResult) -> None:
    """Keep a result beside its rung's folder. Raises UserError when the disk is full."""
    folder = search.trial_folder(result.trial)
    with folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"rung_{result.rung}.json", dataclasses.asdict(result))


def read_results(search: Search) -> list[RungResult]:
    """All results so far, by trial and rung."""
    found = []
    for path in sorted(search.trial_folder("").glob("*/rung_*.json")):
        try:
            found.append(RungResult(**json.loads(path.read_text())))
        except (OSError, ValueError, TypeError):
            # Written by another version of the project: it is done again.
            continue
    return sorted(found, key=lambda result: (result.trial, result.rung))


def best_result(search: Search, results: Sequence[RungResult]) -> RungResult | None:
    """The best of those that were trained with all steps and measured on every album; None where there is none."""
    whole = [result for result in results if result.share >= 1 and not result.failed]
    if not whole:
        return None
    return (max if search.tune.higher_is_better else min)(whole, key=lambda result: result.value)


def write_summary(search: Search, *, finished: bool) -> str:
    """Write tune.json, tune.md and, once there is one, best.yaml; returns the text of tune.md.

    tune.json holds {"metric", "higher_is_better", "scheduler", "finished", "albums", "best": the result or None,
    "results": all of them}. Raises UserError when the disk is full.
    """
    out, results = Path(search.out), read_results(search)
    best = best_result(search, results)
    document = {
        "metric": search.tune.metric,
        "higher_is_better": search.tune.higher_is_better,
        "scheduler": search.tune.scheduler,
        "finished": finished,
        "albums": list(search.albums),
        "best": None if best is None else dataclasses.asdict(best),
        "results": [dataclasses.asdict(result) for result in results],
    }
    if best is not None:
        from trainer.config import save_config

        save_config(search.best_config(best.point), out / BEST)
    text = summary_table(search, results, best, finished=finished)
    write_text(out / TABLE, text)
    write_json(out / RESULT, document)
    return text


def summary_table(search: Search, results: Sequence[RungResult], best: RungResult | None, *, finished: bool) -> str:
    """The results as Markdown: a line per trial with its values, its figure at every rung, and what failed."""
    metric, figure = search.tune.metric, FIGURES[search.tune.metric]
    keys = [dimension.key for dimension in search.dimensions if dimension.kind != "fixed"]
    rungs = range(1, search.tune.last_rung + 1)
    headings = [f"{search.tune.share(rung):.0%} of steps" for rung in rungs]
    if search.tune.scheduler == "pbt":
        headings = [f"generation {rung}" for rung in rungs]
    rows = [["trial", *keys, *headings], ["---"] * (1 + len(keys)) + ["---:"] * len(headings)]
    for name in dict.fromkeys(result.trial for result in results):
        own = {result.rung: result for result in results if result.trial == name}
        cells = []
        for rung in rungs:
            text = format_figure(metric, own[rung].value) if rung in own else "-"
            cells.append(f"**{text}**" if rung in own and own[rung] is best else text)
        # A population changes its values from one generation to the next; shown are the last ones.
        rows.append([name, *(str(own[max(own)].point.get(key)) for key in keys), *cells])
    state = "" if finished else " The search is not finished: the same command goes on."
    parts = [f"Mean {figure.title} {figure.arrow} of the avatars of {len(search.albums)} album(s).{state}"]
    parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    if best is not None:
        parts.append(
            f"Best: {best.trial}, {format_figure(metric, best.value)}, with `{' '.join(point_words(best.point))}`. "
            f"Run it with `python -m launch run ALBUM --config {Path(search.out) / BEST}`."
        )
    elif finished:
        parts.append("No trial came to its end with all albums measured, so there is no best configuration.")
    failures = [
        f"- {result.trial}, rung {result.rung}, {album}: {reason}"
        for result in results
        for album, reason in result.failed.items()
    ]
    if failures:
        parts.append("What failed, and counts as the worst:\n\n" + "\n".join(failures))
    return "\n\n".join(parts) + "\n"
