"""The figures of several avatars side by side."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

SUMMARY_KEYS = ("chamfer_cm", "p2s_cm", "normal", "psnr", "psnr_fg", "ssim_fg", "colour_error")
PROTOCOLS = ("corrected", "reference")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """How one figure is shown: its heading, digits behind the point, and whether more or less of it is better."""

    title: str
    digits: int
    higher_is_better: bool

    @property
    def arrow(self) -> str:
        """The direction of improvement."""
        return "↑" if self.higher_is_better else "↓"


FIGURES = {
    "chamfer_cm": Figure(title="Chamfer cm", digits=3, higher_is_better=False),
    "p2s_cm": Figure(title="P2S cm", digits=3, higher_is_better=False),
    "normal": Figure(title="Normal", digits=4, higher_is_better=False),
    "normal_angle_deg": Figure(title="Normal °", digits=1, higher_is_better=False),
    "psnr": Figure(title="PSNR dB", digits=2, higher_is_better=True),
    "psnr_fg": Figure(title="PSNR fg dB", digits=2, higher_is_better=True),
    "ssim": Figure(title="SSIM", digits=3, higher_is_better=True),
    "ssim_fg": Figure(title="SSIM fg", digits=3, higher_is_better=True),
    "silhouette_iou": Figure(title="IoU", digits=3, higher_is_better=True),
    "colour_error": Figure(title="Colour ΔE", digits=2, higher_is_better=False),
    "lpips": Figure(title="LPIPS", digits=3, higher_is_better=False),
}


def protocol_figures(metrics: Mapping, protocol: str) -> Mapping:
    """One protocol's figures; a flat mapping (what `summary` returns) counts as corrected ones."""
    if any(name in metrics for name in PROTOCOLS):
        return metrics.get(protocol, {})
    return metrics if protocol == "corrected" else {}


def summary(metrics: Mapping) -> dict[str, float]:
    """The demo's seven figures under the corrected protocol, flat; a figure that was not measured is left out."""
    figures = protocol_figures(metrics, "corrected")
    return {key: float(figures[key]) for key in SUMMARY_KEYS if isinstance(figures.get(key), (int, float))}


def best_rows(rows: Mapping[str, Mapping], key: str) -> set[str]:
    """Names of the rows with the best value of a figure; empty when fewer than two have it, or all are equal."""
    values = {name: figures[key] for name, figures in rows.items() if isinstance(figures.get(key), (int, float))}
    if len(set(values.values())) < 2:
        return set()
    best = (max if FIGURES[key].higher_is_better else min)(values.values())
    return {name for name, value in values.items() if value == best}


def format_figure(key: str, value: object) -> str:
    """A figure as text; a dash for one that was not measured."""
    if isinstance(value, (int, float)):
        return f"{value:.{FIGURES[key].digits}f}"
    return "absent" if isinstance(value, Mapping) and "absent" in value else "-"


def metrics_table(rows: Mapping[str, Mapping], *, width: int = 120) -> str:
    """A table for the terminal: one line for each row name (avatar, template, words_only, ...), the summary's columns.

    rows: name -> what `evaluate_avatar` or `summary` returned. The best value of each column carries a star.
    """
    figures = {name: protocol_figures(metrics, "corrected") for name, metrics in rows.items()}
    table = Table(title="Against ground truth (corrected protocol)", title_justify="left")
    table.add_column("")
    for key in SUMMARY_KEYS:
        table.add_column(f"{FIGURES[key].title} {FIGURES[key].arrow}", justify="right")
    best = {key: best_rows(figures, key) for key in SUMMARY_KEYS}
    for name, values in figures.items():
        cells = [format_figure(key, values.get(key)) + (" *" if name in best[key] else "") for key in SUMMARY_KEYS]
        # A name is the user's text: brackets in it are no markup.
        table.add_row(name.replace("[", r"\["), *cells)
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]
