"""What is done next, and what an end means."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.farm.config import FarmConfig
from launch.farm.manifest import AlbumEntry, source_hash
from launch.farm.plan import PackPlan, add_line
from launch.farm.queue import Nothing, PackQueue
from launch.farm.records import AlbumRecord, read_record, write_record
from modules.errors import UserError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A dataset, its albums, and a queue over them with a clock of our own."""

    def __init__(self, folder: Path, num_albums: int, **settings) -> None:
        self.dataset, self.clock = folder / "dataset", Clock()
        self.entries = []
        for index in range(num_albums):
            album = folder / f"a{index}"
            album.mkdir(exist_ok=True)
            (album / "photo.png").write_text("photo")
            self.entries.append(AlbumEntry(f"a{index}", str(album)))
        self.config = FarmConfig(**{"pack_size": 2, "backoff_s": 10, **settings})
        self.queue = self.again()

    def again(self, **options) -> PackQueue:
        return PackQueue(self.dataset, self.entries, settings="s", config=self.config, clock=self.clock, **options)

    def begin(self, queue: PackQueue | None = None) -> str:
        queue = queue or self.queue
        found = queue.next()
        assert not isinstance(found, Nothing), found
        queue.begun(found[0].name)
        return found[0].name

    def finish(self, *albums: str, pack: str, state: str = "done", attempts: int = 1) -> None:
        for name in albums:
            source = dict((entry.name, entry.source) for entry in self.entries)[name]
            write_record(
                self.dataset,
                AlbumRecord(
                    name=name,
                    source=source,
                    state=state,
                    reason="no photo" if state == "failed" else None,
                    settings="s",
                    source_hash=source_hash(source),
                    pack=pack,
                    attempts=attempts,
                ),
            )

    def states(self, queue: PackQueue | None = None) -> str:
        return " ".join(record.state for _, record in sorted((queue or self.queue).records.items()))


def test_packs_are_given_out_until_all_is_done(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 3)
    first, second = bench.begin(), bench.begin()
    assert bench.states() == "running running running"
    assert bench.queue.next() is Nothing.NOW
    bench.finish("a0", pack=first)
    bench.finish("a1", pack=first, state="failed")
    assert bench.queue.ended(first, "done") == ["a0", "a1"]
    bench.finish("a2", pack=second)
    assert bench.queue.ended(second, "done") == ["a2"]
    assert bench.queue.next() is Nothing.EVER
    assert bench.queue.counts() == {"done": 2, "failed": 1, "running": 0, "waiting": 0}


def test_a_second_farm_does_only_what_is_missing_failed_or_stale(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 6)
    for pack, albums in (("p000001", ("a0", "a1")), ("p000002", ("a2", "a3")), ("p000003", ("a4",))):
        bench.finish(*albums, pack=pack)
    bench.finish("a5", pack="p000003", state="failed")
    (tmp_path / "a2" / "another.png").write_text("new")
    again = bench.again()
    assert bench.states(again) == "done done waiting done done waiting"
    assert [pack.albums for pack in PackPlan(bench.dataset).current()] == [("a0", "a1"), ("a2", "a3"), ("a4", "a5")]
    # Packs keep their albums, since a checkpoint fits no others; what is done in them is passed over by the worker.
    assert {bench.begin(again), bench.begin(again)} == {"p000002", "p000003"}
    assert again.next() is Nothing.NOW
    bench.config = FarmConfig(pack_size=2, retry_failed=False, check_sources=False)
    assert bench.states(bench.again()) == "done done done done done failed"
    other = PackQueue(bench.dataset, bench.entries, settings="other", config=bench.config)
    assert bench.states(other) == " ".join(["waiting"] * 6)


def test_albums_are_added_while_it_runs(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 2)
    bench.begin()
    more = tmp_path / "late"
    more.mkdir()
    assert bench.queue.add([*bench.entries, AlbumEntry("late", str(more))]) == ["late"]
    found = bench.queue.next()
    assert not isinstance(found, Nothing)
    assert found[0].albums == ("late",)


def test_a_pack_that_dies_begins_again_later_and_then_in_halves(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 2)
    name = bench.begin()
    assert bench.queue.ended(name, "died", "killed by signal 9") == []
    assert bench.states() == "waiting waiting"
    assert bench.queue.next() is Nothing.NOW
    bench.clock.now = 10
    assert bench.begin() == name
    bench.queue.ended(name, "died", "killed by signal 9")
    assert [pack.albums for pack in bench.queue.plan.current()] == [("a0",), ("a1",)]
    half = bench.begin()
    bench.finish("a0", pack=half)
    bench.queue.ended(half, "done")
    poison = bench.begin()
    for pause in (10, 20):
        assert bench.queue.ended(poison, "died", "killed by signal 11") == []
        bench.clock.now += pause - 1
        assert bench.queue.next() is Nothing.NOW
        bench.clock.now += 1
        assert bench.begin() == poison
    log = bench.queue.plan.pack_folder(poison) / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("Fatal Python error: Segmentation fault\n")
    assert bench.queue.ended(poison, "died", "killed by signal 11") == ["a1"]
    record = read_record(bench.dataset, "a1")
    assert record is not None
    assert (record.state, record.attempts) == ("failed", 3)
    assert record.reason is not None
    assert "died 3 times (killed by signal 11)" in record.reason
    assert "Segmentation" in (bench.dataset / "albums" / "a1" / "traceback.txt").read_text()
    assert bench.queue.next() is Nothing.EVER


def test_a_pack_that_gets_on_between_its_deaths_is_not_given_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1)
    for stage in ("assets", "booth", "geometry", "texture", "export"):
        name = bench.begin()
        folder = bench.dataset / "albums" / "a0" / stage
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        assert bench.queue.ended(name, "died") == []
        bench.clock.now += 1000
    assert bench.states() == "waiting"


def test_a_lost_machine_counts_for_less_than_a_death(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1)
    for _ in range(11):
        assert bench.queue.ended(bench.begin(), "lost", "its machine has gone") == []
        bench.clock.now += 1000
    assert bench.queue.ended(bench.begin(), "lost", "its machine has gone") == ["a0"]


def test_deaths_of_a_killed_farm_are_remembered(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1)
    path = bench.queue.plan.attempts_path("p000001")
    for _ in range(11):
        add_line(path, {"event": "begin"})
    again = bench.again()
    assert again.ended(bench.begin(again), "lost", "its machine has gone") == ["a0"]
    assert again.records["a0"].attempts == 12


def test_a_full_disk_is_no_album_s_fault_and_has_an_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 2, pack_size=1, max_trouble_s=60)
    first, second = bench.begin(), bench.begin()
    assert bench.queue.ended(first, "trouble", "The disk is full.") == []
    # Both tell of the same trouble, and while it lasts nothing is begun.
    assert bench.queue.ended(second, "trouble", "The disk is full.") == []
    for pause in (10, 20, 40):
        bench.clock.now += pause - 1
        assert bench.queue.next() is Nothing.NOW
        bench.clock.now += 1
        name = bench.begin()
        if pause < 40:
            bench.queue.ended(name, "trouble", "The disk is full.")
    with pytest.raises(UserError, match=r"gives up after 1 minutes .* The disk is full"):
        bench.queue.ended(name, "trouble", "The disk is full.")
    assert bench.states() == "waiting waiting"


def test_a_success_ends_the_counting_of_troubles(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 3, max_trouble_s=1, pack_size=1)
    first, second = bench.begin(), bench.begin()
    bench.queue.ended(first, "trouble", "full")
    bench.finish("a1", pack=second)
    bench.queue.ended(second, "done")
    bench.clock.now += 100
    assert bench.queue.ended(bench.begin(), "trouble", "full") == []
    bench.clock.now += 100
    name = bench.begin()
    with pytest.raises(UserError, match="gives up"):
        bench.queue.ended(name, "trouble", "full")


def test_a_pack_of_another_farm_is_looked_at_again(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 2)
    name = bench.begin()
    bench.queue.ended(name, "busy")
    assert bench.queue.only_busy()
    assert bench.queue.next() is Nothing.NOW
    bench.finish("a0", "a1", pack=name, attempts=7)
    bench.clock.now += 30
    bench.queue.ended(bench.begin(), "busy")
    assert bench.states() == "done done"
    assert bench.queue.next() is Nothing.EVER


def test_a_failure_of_an_earlier_farm_is_no_failure_of_this_one(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 1)
    name = bench.begin()
    bench.finish("a0", pack=name, state="failed")
    bench.queue.ended(name, "done")
    add_line(bench.queue.plan.attempts_path(name), {"event": "begin"})
    add_line(bench.queue.plan.attempts_path(name), {"event": "end"})
    again = bench.again()
    assert bench.states(again) == "waiting"
    again.ended(bench.begin(again), "died", "killed")
    assert bench.states(again) == "waiting"


def test_stages_on_cpus_come_in_their_order_and_not_too_early(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 12, pack_size=1)
    queue = bench.again(apart=True, num_workers=1)

    def give() -> tuple[str, str]:
        found = queue.next()
        assert not isinstance(found, Nothing), found
        return found[0].name, found[1]

    given = [give() for _ in range(6)]
    assert given == [(f"p00000{index}", "prepare") for index in range(1, 7)]
    for name, _ in given:
        queue.ended(name, "done")
    # One trains and two wait for its device; what is prepared besides is enough.
    assert [give() for _ in range(3)] == [(f"p00000{index}", "train") for index in range(1, 4)]
    assert queue.next() is Nothing.NOW
    queue.ended("p000001", "done")
    assert give() == ("p000001", "finish")
    assert give() == ("p000004", "train")
    queue.ended("p000002", "done")
    queue.ended("p000003", "done")
    assert [give()[1] for _ in range(4)] == ["finish", "finish", "train", "train"]
    assert give() == ("p000007", "prepare")
    assert queue.attempt_of("p000001") == 1


def test_a_farm_that_stops_begins_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 4)
    name = bench.begin()
    bench.queue.drained = True
    assert bench.queue.next() is Nothing.NOW
    bench.queue.ended(name, "stopped")
    assert bench.queue.next() is Nothing.EVER
    assert bench.states() == "waiting waiting waiting waiting"
