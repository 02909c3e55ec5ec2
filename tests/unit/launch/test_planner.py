"""How many albums a pack should have."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from launch.planner import PackCost, first_cost, measured_cost, plan_pack_size, seconds_left, weights_gib

COST = PackCost(shared_s=100, own_s=50, shared_gib=2, own_gib=1, seconds_known=True)


def plan(**changes) -> int:
    settings = {"num_albums": 1000, "num_workers": 1, "device_gib": 100.0, "largest": 8}
    return plan_pack_size(changes.pop("cost", COST), **{**settings, **changes})


def test_large_packs_share_what_can_be_shared() -> None:
    assert plan() == 8
    assert plan(largest=3) == 3


def test_no_pack_is_planned_beyond_memory_or_deadline() -> None:
    assert plan(device_gib=6.5) == 4
    assert plan(device_gib=0.1) == 1
    assert plan(deadline_s=260) == 3
    # Before anything is measured a deadline says nothing about packs.
    assert plan(cost=PackCost(shared_gib=0, own_gib=0), deadline_s=0.1) == 8


def test_no_worker_is_left_without_work_for_the_sake_of_large_packs() -> None:
    assert plan(num_albums=8, num_workers=4) == 2
    assert plan(num_albums=8, num_workers=8) == 1
    assert plan(num_albums=3, num_workers=8) == 1
    # 9 albums on 4 workers: three rounds of one (450 s), two of two (400 s), one of three (250 s).
    assert plan(num_albums=9, num_workers=4) == 3


def test_costs_are_learnt_from_packs_that_are_done() -> None:
    rows = [
        {"num_albums": size, "seconds": 100 + 50 * size, "memory_gib": 2 + 0.5 * size, "gpu_gib": 3 + size}
        for size in (2, 4, 8)
    ]
    cost = measured_cost(rows, PackCost(), on_gpu=False)
    assert cost.seconds_known
    assert (cost.shared_s, cost.own_s) == pytest.approx((100, 50))
    assert (cost.shared_gib, cost.own_gib) == pytest.approx((2, 0.5))
    assert measured_cost(rows, PackCost(), on_gpu=True).memory_gib(5) == pytest.approx(8)
    # Of one size only: it is met, and divided as the guess divides it.
    one = measured_cost(rows[:1], PackCost(shared_s=0.4, own_s=0.6), on_gpu=False)
    assert one.seconds(2) == pytest.approx(200)
    assert one.shared_s / one.own_s == pytest.approx(0.4 / 0.6)
    # Noise must not make a larger pack seem cheaper.
    falling = [{"num_albums": 1, "seconds": 300}, {"num_albums": 8, "seconds": 100}]
    noisy = measured_cost(falling, PackCost(), on_gpu=False)
    assert noisy.own_s > 0
    assert noisy.shared_s > 0
    assert measured_cost([{"num_albums": 3}], COST, on_gpu=False) is COST


def test_time_left_is_known_once_packs_are_measured() -> None:
    assert seconds_left(COST, sizes=[2, 2, 1], num_workers=2) == pytest.approx((200 + 200 + 150) / 2)
    assert seconds_left(PackCost(), sizes=[2], num_workers=1) is None


def test_the_first_guess_comes_from_the_size_of_the_model(tmp_path: Path) -> None:
    save_file({"a": np.zeros((1024, 256), np.float16), "b": np.zeros((), np.float16)}, tmp_path / "x.safetensors")
    assert weights_gib(tmp_path) == pytest.approx((1024 * 256 + 1) * 4 / 2**30)
    cost = first_cost(3.2, 10)
    # Stable Diffusion's UNet: some 9 GiB for ten rows, besides twice its weights.
    assert 5 < cost.own_gib < 15
    assert cost.memory_gib(1) > cost.own_gib + 6.4
    (tmp_path / "x.safetensors").unlink()
    (tmp_path / "x.bin").write_bytes(b"0" * 1024)
    assert weights_gib(tmp_path) == 1024 / 2**30
    assert not math.isinf(cost.seconds(8))
