"""The farm without Ray: what it gives out, when it ends, what it leaves."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.farm import process
from launch.farm.cluster import Workers, await_nodes, find_workers
from launch.farm.config import FarmConfig
from launch.farm.driver import choose_size, pack_cost, run_farm, settings_hash
from launch.farm.hosts import HostUse, cluster_use
from launch.farm.manifest import source_hash
from launch.farm.plan import add_line, read_lines
from launch.farm.records import AlbumRecord, read_index, write_record
from launch.farm.summary import Summary
from launch.farm.verbs import farm
from launch.farm.view import summary_line
from launch.farm.worker import PackSpec
from launch.planner import PackCost
from modules.errors import UserError
from trainer.config import load_config

ALONE = {"scheduler": "alone", "pack_size": 2, "backoff_s": 0, "index_every_s": 0}


@pytest.fixture
def albums(tmp_path: Path) -> Path:
    for index in range(5):
        (tmp_path / "albums" / f"a{index}").mkdir(parents=True)
    return tmp_path / "albums"


@pytest.fixture
def packs(monkeypatch: pytest.MonkeyPatch) -> list[PackSpec]:
    """Packs are done at once, a4 fails; returns what was asked for."""
    done: list[PackSpec] = []

    def run(config, tick: Callable[[], None]) -> tuple[str, str]:
        spec = PackSpec.parse(config["spec"])
        done.append(spec)
        folder = Path(spec.dataset) / ".farm" / "packs" / spec.pack
        add_line(folder / "attempts.jsonl", {"event": "begin"})
        for name, source in spec.albums:
            bad = name == "a4"
            write_record(
                Path(spec.dataset),
                AlbumRecord(
                    name=name,
                    source=source,
                    state="failed" if bad else "done",
                    reason="no photo" if bad else None,
                    settings=spec.settings,
                    source_hash=source_hash(source),
                    pack=spec.pack,
                    attempts=spec.attempt,
                ),
            )
        cost = {"part": "all", "seconds": 10.0, "num_albums": len(spec.albums), "memory_gib": 1.0, "gpu_gib": None}
        add_line(folder / "attempts.jsonl", {"event": "end", **cost})
        tick()
        return "done", ""

    monkeypatch.setattr(process, "run_pack_process", run)
    return done


def test_a_farm_leaves_an_index_a_page_and_what_packs_cost(
    albums: Path, packs: list[PackSpec], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = tmp_path / "dataset"
    settings = FarmConfig(**ALONE, end_file=str(tmp_path / "end"))
    result = run_farm([albums], dataset, load_config("mini"), settings)
    assert result.stopped is None
    assert [len(spec.albums) for spec in packs] == [2, 2, 1]
    assert {spec.group for spec in packs} == {"dataset"}
    assert [(record.name, record.state) for record in read_index(dataset)] == [
        *((f"a{index}", "done") for index in range(4)),
        ("a4", "failed"),
    ]
    assert (dataset / "index.html").is_file()
    assert (tmp_path / "end").is_file()
    assert "Album a4 failed: no photo" in capsys.readouterr().err
    assert [row["seconds"] for row in read_lines(dataset / ".farm" / "costs.jsonl")] == [10, 10, 10]
    assert pack_cost(dataset, load_config("mini"), on_gpu=False).seconds_known
    config = load_config(str(packs[0].config))
    assert config == load_config("mini")
    # Once more: only what failed.
    run_farm([albums], dataset, load_config("mini"), settings)
    assert [[name for name, _ in spec.albums] for spec in packs[3:]] == [["a4"]]
    assert packs[3].attempt == 2


def test_the_verb_says_what_became_of_the_albums(
    albums: Path, packs: list[PackSpec], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from launch.__main__ import parse

    words = ["farm.scheduler=alone", "farm.cpu_stages_apart=never", "farm.pack_size=5", "seed=3"]
    arguments = parse(["farm", str(albums), "--out", str(tmp_path / "d"), "--config", "mini", *words])
    assert farm(arguments) == 1
    shown = capsys.readouterr()
    assert "4 of 5 albums done." in shown.out
    assert "Album a4: no photo." in shown.err
    assert load_config(packs[0].config).seed == 3
    with pytest.raises(UserError, match="--out"):
        farm(parse(["farm", str(albums)]))
    with pytest.raises(UserError, match=r"Unknown key 'pack_sise'.*Did you mean 'pack_size'"):
        farm(parse(["farm", str(albums), "--out", "x", "farm.pack_sise=1"]))


def test_a_signal_lets_packs_save_and_begins_none(
    albums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run(config, tick: Callable[[], None]) -> tuple[str, str]:
        signal.raise_signal(signal.SIGUSR1)
        asked.append(Path(config["stop"]).is_file())
        return "stopped", ""

    monkeypatch.setattr(process, "run_pack_process", run)
    end = tmp_path / "end"
    result = run_farm([albums], tmp_path / "d", load_config("mini"), FarmConfig(**ALONE, end_file=str(end)))
    assert asked == [True]
    assert result.stopped == signal.SIGUSR1
    assert {record.state for record in result.records.values()} == {"waiting"}
    assert not end.exists()
    assert list((tmp_path / "d" / ".farm").glob("stop-*")) == []


def test_packs_of_other_processes_are_left_to_them(
    albums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "run_pack_process", lambda config, tick: ("busy", ""))
    started_s = time.monotonic()
    result = run_farm([albums], tmp_path / "d", load_config("mini"), FarmConfig(**ALONE))
    assert time.monotonic() - started_s < 20
    assert {record.state for record in result.records.values()} == {"waiting"}


def test_settings_that_shape_no_result_change_no_hash() -> None:
    base = load_config("mini")
    same = load_config("mini", ["out=elsewhere", "runtime.num_threads=7", "runtime.logger=tensorboard"])
    assert settings_hash(base) == settings_hash(same)
    others = [["seed=1"], ["booth.joint_phase.lr=1e-5"], ["runtime.precision=32-true"], ["export.turntable_frames=3"]]
    assert len({settings_hash(base), *(settings_hash(load_config("mini", words)) for words in others)}) == 5


def test_the_size_of_packs_is_given_or_planned() -> None:
    workers = Workers(num=2, on_gpu=False, cpus=1, gpus=0, memory_gib=100)
    cost = PackCost(shared_s=10, own_s=1, seconds_known=True)
    assert choose_size(100, workers, FarmConfig(pack_size=3), cost, 1e9) == 3
    assert choose_size(100, workers, FarmConfig(), cost, 1e9) == 8
    assert choose_size(4, workers, FarmConfig(), cost, 1e9) == 2


class FakeRay:
    def __init__(self, *nodes: dict[str, float]) -> None:
        self.found = [{"Alive": True, "Resources": node} for node in nodes]

    def nodes(self) -> list[dict]:
        return [*self.found, {"Alive": False, "Resources": {"CPU": 99}}]


def test_room_for_packs_is_counted_by_machine() -> None:
    gib = 2**30
    ray = FakeRay({"CPU": 5, "memory": 8 * gib}, {"CPU": 2, "memory": 3 * gib}, {"CPU": 1, "memory": gib})
    workers = find_workers(ray, cpus=2, gpus=1, fraction=0.5)
    # Two packs on the first machine, one on the second; each may fill half of what is a pack's part.
    assert (workers.num, workers.on_gpu, workers.gpus) == (3, False, 0)
    assert workers.memory_gib == pytest.approx(1.5)
    started_s = time.monotonic()
    await_nodes(ray, 3, patience_s=30)
    assert time.monotonic() - started_s < 5
    await_nodes(ray, 4, patience_s=0.2)
    assert time.monotonic() - started_s >= 0.2
    with pytest.raises(UserError, match=r"room for a pack of 8 cores .the largest has 5 cores"):
        find_workers(ray, cpus=8, gpus=1, fraction=0.5)


def test_machines_tell_what_they_use_and_old_news_is_none(tmp_path: Path) -> None:
    assert cluster_use(tmp_path).memory_gib is None
    use = HostUse(tmp_path)
    use.report()
    (path,) = (tmp_path / ".farm" / "hosts").iterdir()
    found = cluster_use(tmp_path)
    assert found.num_hosts == 1
    assert found.memory_gib is not None
    assert found.memory_gib > 0.05
    row = {"memory_gib": 2.0, "gpu_memory_gib": 30.0, "gpu_percent": 90.0, "num_gpus": 2.0, "at": time.time()}
    path.with_name("b.json").write_text(json.dumps(row))
    path.with_name("c.json").write_text(json.dumps(row | {"gpu_percent": 30.0, "num_gpus": 1.0}))
    path.write_text(json.dumps(row | {"at": time.time() - 1000}))
    found = cluster_use(tmp_path)
    assert (found.num_hosts, found.memory_gib, found.gpu_memory_gib) == (2, 4, 60)
    assert found.gpu_percent == pytest.approx(70)


def test_a_line_says_how_the_farm_stands() -> None:
    counts = {"done": 3, "running": 2, "failed": 1, "waiting": 4}
    line = summary_line(Summary(counts=counts, albums_per_hour=12.34, seconds_left=5400, workers=2, memory_gib=7.2))
    assert line == (
        "3 of 10 albums done, 2 running, 1 failed, 4 waiting, 2 packs at work, 12.3 albums an hour, 1 h 30 min left, "
        "memory 7 GiB"
    )


class Recorder:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.ended = False

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))

    def finalize(self, status: str) -> None:
        self.ended = True


def test_a_tracker_sees_counts_and_rates(
    albums: Path, packs: list[PackSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = Recorder()
    monkeypatch.setattr("launch.farm.driver._tracker", lambda *_: tracker)
    run_farm([albums], tmp_path / "d", load_config("mini"), FarmConfig(**ALONE))
    assert tracker.ended
    steps = [step for step, _ in tracker.rows]
    assert steps == sorted(steps)
    last = tracker.rows[-1][1]
    assert {name: last[f"farm/{name}"] for name in ("done", "failed", "running", "waiting", "workers")} == {
        "done": 4,
        "failed": 1,
        "running": 0,
        "waiting": 0,
        "workers": 0,
    }
    assert last["farm/albums_per_hour"] > 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_attempts", 0, "max_attempts is 0, expected at least 1"),
        ("memory_fraction", 1.5, "memory_fraction is 1.5, expected more than 0 and at most 1"),
        ("shard_size_mb", 0.0, "shard_size_mb is 0.0, expected more than 0"),
        ("backoff_s", float("nan"), "backoff_s is nan, expected at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FarmConfig(**{field: value})
