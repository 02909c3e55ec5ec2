"""Progress on a terminal and elsewhere."""

from __future__ import annotations

import io
import re

import lightning
import pytest
import torch
from rich.console import Console

from trainer.callbacks import ProgressReport, _duration_text
from trainer.fit import RuntimeConfig, build_trainer


class Quadratic(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor(1.0))

    def training_step(self, batch, batch_idx):
        if batch == "fault":
            raise RuntimeError("fault")
        self.log("loss", self.value**2)
        return self.value**2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(progress: ProgressReport, tmp_path, batches=("a", "b", "c")) -> None:
    runtime = RuntimeConfig(accelerator="cpu")
    trainer = build_trainer(runtime, folder=tmp_path, callbacks=[progress])
    trainer.fit_loop.max_epochs = 1
    trainer.fit(Quadratic(), torch.utils.data.DataLoader(list(batches), batch_size=None))
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _quiet():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_lines_without_a_terminal(tmp_path, capsys):
    console = Console(file=io.StringIO(), force_terminal=False)
    run(ProgressReport("booth", max_steps=13, start_step=10, every_s=0, console=console), tmp_path)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("booth")]
    assert len(lines) == 3
    assert re.fullmatch(r"booth: step 11/13 loss 1, \d+ s left", lines[0])
    assert re.fullmatch(r"booth: step 13/13 loss 0\.4096, 0 s left", lines[2])


def test_only_the_last_line_within_an_interval(tmp_path, capsys):
    console = Console(file=io.StringIO(), force_terminal=False)
    run(ProgressReport("booth", max_steps=3, every_s=1000, console=console), tmp_path)
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines() if line.startswith("booth")] == ["3/3"]


def test_bar_on_a_terminal(tmp_path, capsys):
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=100)
    run(ProgressReport("booth", max_steps=3, console=console), tmp_path)
    assert "booth" in text.getvalue()
    assert "3/3" in text.getvalue()
    assert "loss 0.4096" in text.getvalue()
    assert "booth:" not in capsys.readouterr().err


def test_bar_is_taken_down_after_an_error(tmp_path):
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    progress = ProgressReport("booth", max_steps=3, console=console)
    with pytest.raises(RuntimeError, match="fault"):
        run(progress, tmp_path, ["a", "fault"])
    assert progress._progress is None


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7260, "2 h 01 min")]
)
def test_durations(seconds, text):
    assert _duration_text(seconds) == text
