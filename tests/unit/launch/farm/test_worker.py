"""A pack's process: what it does, how it ends, what it writes."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import trainer.pipeline
from launch.child import run_child
from launch.farm.manifest import source_hash
from launch.farm.plan import read_lines
from launch.farm.process import child_environment, run_pack_process
from launch.farm.records import read_record
from launch.farm.worker import BUSY, DONE, STOPPED, TROUBLE, PackSpec, main, run_spec
from modules.errors import OutputError, UserError
from trainer.artifacts import run_lock
from trainer.config import RunConfig, save_config
from trainer.pipeline import AlbumResult


@pytest.fixture
def spec(tmp_path: Path) -> PackSpec:
    albums = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "photo.png").write_text(name)
        albums.append((name, str(tmp_path / name)))
    save_config(RunConfig(), tmp_path / "config.yaml")
    return PackSpec(
        dataset=str(tmp_path / "dataset"),
        pack="p000001",
        part="all",
        albums=tuple(albums),
        config=str(tmp_path / "config.yaml"),
        settings="s",
        attempt=3,
    )


def attempts(spec: PackSpec) -> list[dict[str, Any]]:
    return read_lines(Path(spec.dataset) / ".farm" / "packs" / spec.pack / "attempts.jsonl")


def pretend(monkeypatch: pytest.MonkeyPatch, outcome: dict[str, str | None] | BaseException) -> list[dict[str, Any]]:
    """Put a pack that is done at once in the place of the real one; returns what it was asked for."""
    calls: list[dict[str, Any]] = []

    def run_pack(albums, config, names, *, until, on_result):
        calls.append({"names": names, "until": until, "out": config.out})
        if isinstance(outcome, BaseException):
            raise outcome
        for name in names:
            folder = Path(config.out) / name
            folder.mkdir(parents=True, exist_ok=True)
            if outcome[name] is None:
                (folder / "avatar.glb").write_bytes(b"glb")
            trace = "Traceback: here" if outcome[name] else None
            on_result(AlbumResult(name=name, folder=folder, metrics={}, failed=outcome[name], traceback=trace))

    monkeypatch.setattr(trainer.pipeline, "run_pack", run_pack)
    return calls


def test_each_album_leaves_a_record(spec: PackSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pretend(monkeypatch, {"a": None, "b": "no photo shows anybody"})
    dataset = Path(spec.dataset)
    assert run_spec(spec) == DONE
    assert calls == [{"names": ["a", "b"], "until": None, "out": str(dataset / "albums")}]
    done, failed = read_record(dataset, "a"), read_record(dataset, "b")
    assert done is not None
    assert failed is not None
    assert (done.state, done.attempts, done.pack, done.num_albums, done.settings) == ("done", 3, "p000001", 2, "s")
    assert [file["path"] for file in done.files] == ["avatar.glb"]
    assert done.source_hash == source_hash(dict(spec.albums)["a"])
    assert (failed.state, failed.reason) == ("failed", "no photo shows anybody")
    assert [file["path"] for file in failed.files] == ["traceback.txt"]
    assert (dataset / "albums" / "b" / "traceback.txt").read_text() == "Traceback: here"
    begin, first, second, end = attempts(spec)
    assert [(row["event"], row["name"], row["state"]) for row in (first, second)] == [
        ("album", "a", "done"),
        ("album", "b", "failed"),
    ]
    assert (begin["event"], begin["attempt"]) == ("begin", 3)
    assert (end["event"], end["ended"], end["num_albums"]) == ("end", "done", 2)
    assert end["memory_gib"] > 0


def test_what_is_done_is_not_done_again(spec: PackSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pretend(monkeypatch, {"a": None, "b": None})
    run_spec(spec)
    assert run_spec(spec) == DONE
    assert len(calls) == 1
    (Path(dict(spec.albums)["b"]) / "new.png").write_text("new")
    run_spec(spec)
    assert calls[1:] == [{**calls[0], "names": ["b"]}]
    run_spec(dataclasses.replace(spec, settings="other"))
    assert calls[2]["names"] == ["a", "b"]


def test_a_part_before_the_last_records_failures_only(spec: PackSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pretend(monkeypatch, {"a": None, "b": "no photo"})
    run_spec(dataclasses.replace(spec, part="prepare"))
    assert calls[0]["until"] == "assets"
    assert read_record(Path(spec.dataset), "a") is None
    assert read_record(Path(spec.dataset), "b") is not None


@pytest.mark.parametrize(
    ("error", "code", "ended"),
    [
        (OutputError("The disk of 'x' is full."), TROUBLE, "trouble"),
        (UserError("There is no backbone."), TROUBLE, "trouble"),
        (SystemExit(143), STOPPED, "stopped"),
        (KeyboardInterrupt(), STOPPED, "stopped"),
    ],
)
def test_ends_that_are_no_death(
    spec: PackSpec, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int, ended: str
) -> None:
    pretend(monkeypatch, error)
    assert run_spec(spec) == code
    assert attempts(spec)[-1]["ended"] == ended


def test_a_death_leaves_a_beginning_without_an_end(
    spec: PackSpec, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pretend(monkeypatch, ZeroDivisionError("by zero"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        assert main([json.dumps(dataclasses.asdict(spec))]) == 70
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert "ZeroDivisionError: by zero" in capfd.readouterr().err
    assert [row["event"] for row in attempts(spec)] == ["begin"]


def test_a_pack_that_another_process_has_is_left_to_it(spec: PackSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = pretend(monkeypatch, {"a": None, "b": None})
    with run_lock(Path(spec.dataset) / ".farm" / "packs" / spec.pack):
        assert run_spec(spec) == BUSY
    assert calls == []
    assert attempts(spec) == []


def trial(spec: PackSpec, tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Run another program as the pack's process."""
    path = tmp_path / "program.py"
    path.write_text(program)
    monkeypatch.setattr(
        "launch.farm.process.run_child",
        lambda command, **options: run_child([command[0], str(path)], **options),
    )
    config = {"spec": json.dumps(dataclasses.asdict(spec)), "stop": str(tmp_path / "stop"), "grace_s": 5, "threads": 1}
    return run_pack_process(config)


@pytest.mark.parametrize(
    ("program", "ended", "reason"),
    [
        ("", "done", ""),
        ("raise SystemExit(75)", "busy", ""),
        ("print('The disk is full.'); raise SystemExit(74)", "trouble", "The disk is full."),
        ("print('last words'); raise SystemExit(70)", "died", "exit code 70: last words"),
        ("import os; os.kill(os.getpid(), 11)", "died", "killed by signal 11"),
    ],
)
def test_how_a_process_ended_is_told(
    spec: PackSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, ended: str, reason: str
) -> None:
    assert trial(spec, tmp_path, program, monkeypatch) == (ended, reason)


def test_a_process_is_asked_to_stop(spec: PackSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It asks for its end itself, once it is ready for it.
    program = (
        "import pathlib, signal, time\nsignal.signal(15, lambda *_: exit(143))\n"
        f"pathlib.Path({str(tmp_path / 'stop')!r}).touch()\ntime.sleep(60)"
    )
    assert trial(spec, tmp_path, program, monkeypatch) == ("stopped", "")


def test_the_environment_of_a_process() -> None:
    found = child_environment({"SLURM_NTASKS": "4", "PATH": "/bin", "PYTHONPATH": "/x", "OMP_NUM_THREADS": "9"}, 2)
    assert "SLURM_NTASKS" not in found
    assert (found["PATH"], found["OMP_NUM_THREADS"]) == ("/bin", "2")
    root, other = found["PYTHONPATH"].split(os.pathsep)
    assert (Path(root) / "launch").is_dir()
    assert other == "/x"
