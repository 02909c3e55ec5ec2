"""What a verb that makes avatars prints at its end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.pipeline import AlbumResult


def print_results(results: Sequence[AlbumResult]) -> bool:
    """Figures, then places of avatars, then on standard error why albums failed; returns whether none did."""
    from trainer.pipeline import mean_metrics

    finished = [result for result in results if result.failed is None]
    measured = [result.metrics for result in finished if result.metrics]
    if measured:
        from trainer.metrics_table import metrics_table

        print(metrics_table(mean_metrics(measured)))
    for result in finished:
        print(one_line(f"Avatar: {result.folder / 'avatar.glb'}  Report: {result.folder / 'report.html'}"))
    for result in results:
        if result.failed is not None:
            print(one_line(f"Album {result.name}: {result.failed}."), file=sys.stderr)
    return len(finished) == len(results)


def one_line(text: str) -> str:
    """Text in which a name from somebody's disk breaks no line and gives the terminal no orders."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
