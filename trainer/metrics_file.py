"""The file of a training's metrics, which is always written."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from trainer.artifacts import folder_errors, write_text

METRICS_NAME = "metrics.jsonl"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics.jsonl, in the order of writing; a last line that a kill cut short is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class JsonlLogger(Logger):
    """Appends one JSON object per logged step: `{"step": 10, "loss": 0.25}`; a value that is not finite is null.

    Args:
        path: the file.
        start_step: the step from which the training goes on; rows of later steps, written by a run that was
            killed after its last checkpoint, are dropped.
        first_step: added to every step that is logged: steps that earlier phases did.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, path: Path, start_step: int = 0, *, first_step: int = 0) -> None:
        super().__init__()
        self.path = path
        self.first_step = first_step
        with folder_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        kept = [json.dumps(row) + "\n" for row in read_metrics(path) if row["step"] < start_step]
        write_text(path, "".join(kept))

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: the manifest keeps the configuration."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row: dict[str, Any] = {"step": None if step is None else step + self.first_step}
        for name, value in metrics.items():
            if name != "epoch":  # Lightning adds it; the whole training is one epoch
                row[name] = float(value) if math.isfinite(value) else None
        # Opened for each row, so that what is written survives a kill.
        with folder_errors(self.path.parent), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def log_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Nothing to do: whoever draws pictures writes them as files, too."""
