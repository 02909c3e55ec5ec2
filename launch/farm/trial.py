"""What Ray runs: a trial of Tune is a part of a pack."""

from __future__ import annotations

from typing import Any

from ray import tune

from launch.farm.process import run_pack_process


class PackTrial(tune.Trainable):
    """One trial after the other in one actor. Its single result says how the process ended, in "ended" and "reason".

    config: see `run_pack_process`.
    """

    def setup(self, config: dict[str, Any]) -> None:
        pass

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        return True

    def step(self) -> dict[str, Any]:
        ended, reason = run_pack_process(self.config)
        return {"ended": ended, "reason": reason, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing to keep: the dataset holds everything."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing was kept."""
