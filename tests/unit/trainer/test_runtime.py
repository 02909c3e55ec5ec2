"""Ranges of the runtime's configuration."""

from __future__ import annotations

import pytest

from trainer.runtime import RuntimeConfig


@pytest.mark.parametrize(
    "wrong",
    [
        {"devices": 0},
        {"num_nodes": 0},
        {"node_launcher": "on 'each"},
        {"num_threads": -1},
        {"checkpoint_every_steps": -1},
        {"log_every_steps": 0},
        {"visuals_every_steps": -1},
        {"visuals_albums": 0},
        {"checkpoint_every_s": -0.1},
        {"checkpoint_every_s": float("nan")},
        {"log_every_s": float("inf")},
    ],
)
def test_out_of_range(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"{name} is .*, expected"):
        RuntimeConfig(**wrong)


def test_several_nodes_want_a_launcher() -> None:
    with pytest.raises(ValueError, match="node_launcher is empty where num_nodes is 2, expected the beginning"):
        RuntimeConfig(num_nodes=2, node_launcher=" ")


def test_processes_are_devices_of_all_nodes_and_one_is_left_alone() -> None:
    runtime = RuntimeConfig(devices=4, num_nodes=2, node_launcher="on each", log_every_steps=3)
    assert runtime.num_processes == 8
    assert runtime.alone.num_processes == 1
    assert runtime.alone.log_every_steps == 3
