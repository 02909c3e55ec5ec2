"""Stage folders: whole or not at all, whatever ends the process; the same call always goes on."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import trainer.artifacts as artifacts
from modules.errors import UserError
from trainer.artifacts import MANIFEST_NAME, StageFolder, folder_errors, run_lock, write_json, write_text

INPUTS = {"album": "abc"}
CONFIG = {"learning_rate": 1e-4}
PROJECT_ROOT = Path(__file__).resolve().parents[3]


NAMES = ("a.bin", "b/c.bin")


def make(folder: Path, content: str = "weights", config: dict | None = None, names: tuple[str, ...] = NAMES):
    """One stage from beginning to end, as the pipeline does it."""
    config = CONFIG if config is None else config
    stage = StageFolder(folder, "booth")
    key = stage.key(INPUTS, config, 0)
    if stage.status(key) != "complete":
        work = stage.working(key)
        for name in names:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            (work / name).write_text(f"{content} {name}")
        (work / "checkpoints").mkdir(exist_ok=True)
        (work / "checkpoints" / "last.ckpt").write_text("scratch")
        stage.commit(key, inputs=INPUTS, config=config, seed=0, metrics={"loss": 0.5}, timings={"train_s": 1.0})
    return stage, key


def assert_whole(folder: Path, content: str = "weights", names: tuple[str, ...] = NAMES) -> None:
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {*names, MANIFEST_NAME}
    for name in names:
        assert (folder / name).read_text() == f"{content} {name}"


def test_a_stage_from_missing_to_complete(tmp_path):
    folder = tmp_path / "out" / "booth"
    assert StageFolder(folder, "booth").status("0" * 64) == "missing"
    stage, key = make(folder)
    assert stage.status(key) == "complete"
    assert_whole(folder)
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    assert manifest["inputs"] == INPUTS
    assert manifest["config"] == CONFIG
    assert manifest["state"] == "complete"
    assert manifest["timings"] == {"train_s": 1.0}
    assert manifest["versions"]["torch"].startswith("2.")
    assert [entry["path"] for entry in manifest["outputs"]] == ["a.bin", "b/c.bin"]
    assert manifest["outputs"][0]["sha256"] == artifacts.hash_file(folder / "a.bin")
    assert stage.metrics == {"loss": 0.5}
    assert stage.reason is None
    assert stage.output("b/c.bin") == folder / "b/c.bin"
    with pytest.raises(FileNotFoundError, match=r"no output 'd\.bin'"):
        stage.output("d.bin")


def test_key_depends_on_inputs_configuration_seed_and_stage(tmp_path):
    stage = StageFolder(tmp_path, "booth")
    keys = {
        stage.key(INPUTS, CONFIG, 0),
        stage.key({"album": "abd"}, CONFIG, 0),
        stage.key(INPUTS, {"learning_rate": 2e-4}, 0),
        stage.key(INPUTS, CONFIG, 1),
        StageFolder(tmp_path, "geometry").key(INPUTS, CONFIG, 0),
    }
    assert len(keys) == 5
    assert stage.key(INPUTS, CONFIG, 0) in keys


def test_another_configuration_replaces_the_result_and_its_files(tmp_path):
    stage, key = make(tmp_path)
    other = {"learning_rate": 2e-4}
    assert stage.status(stage.key(INPUTS, other, 0)) == "stale"
    stage, other_key = make(tmp_path, "newer", other, names=("a.bin",))
    assert stage.status(other_key) == "complete"
    assert stage.status(key) == "stale"
    assert_whole(tmp_path, "newer", ("a.bin",))
    assert not (tmp_path / "b").exists()


def test_files_that_the_stage_did_not_write_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    make(tmp_path)
    make(tmp_path, "newer", {"learning_rate": 2e-4})
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text("shorter")])
def test_missing_or_shorter_file_is_stale(tmp_path, damage: Callable[[Path], object]):
    stage, key = make(tmp_path)
    damage(tmp_path / "a.bin")
    assert stage.status(key) == "stale"
    stage, key = make(tmp_path)
    assert stage.status(key) == "complete"


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff", '{"schema": 99}'])
def test_unreadable_manifest_counts_as_none_or_stale(tmp_path, content):
    stage, key = make(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text(content, encoding="latin-1")
    assert stage.status(key) in ("missing", "stale")
    make(tmp_path)
    assert_whole(tmp_path)


def test_working_folder_survives_and_those_of_other_keys_do_not(tmp_path):
    stage = StageFolder(tmp_path, "booth")
    first, second = stage.key(INPUTS, CONFIG, 0), stage.key(INPUTS, CONFIG, 1)
    (stage.working(first) / "half").touch()
    assert (StageFolder(tmp_path, "booth").working(first) / "half").exists()
    stage.working(second)
    assert [path.name for path in tmp_path.iterdir()] == [f".work-{second[:12]}"]


def test_failure_is_kept_with_its_reason_until_forgotten(tmp_path):
    stage, _ = make(tmp_path)
    key = stage.key(INPUTS, CONFIG, 7)
    stage.working(key)
    stage.fail(key, "the mesh is empty", inputs=INPUTS, config=CONFIG, seed=7)
    assert stage.status(key) == "failed"
    assert stage.reason == "the mesh is empty"
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_NAME]
    with pytest.raises(FileNotFoundError, match="not complete"):
        _ = stage.outputs_hash
    stage.forget()
    assert stage.status(key) == "missing"


def test_outputs_hash_follows_the_contents(tmp_path):
    hashes = [make(tmp_path / str(i), content)[0].outputs_hash for i, content in enumerate(("x", "x", "y"))]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("first_content", [None, "former"])
def test_a_kill_before_any_system_call_of_a_commit(tmp_path, monkeypatch, first_content):
    """Whichever rename, removal or flush the process dies before, the same call afterwards gives the whole result."""

    class KilledError(BaseException):
        pass

    names = ("replace", "unlink", "fsync", "rmdir")
    real = {name: getattr(os, name) for name in names}
    for last_call in range(100):
        folder = tmp_path / str(last_call)
        if first_content:
            make(folder, first_content, {"learning_rate": 2e-4}, names=("a.bin", "old/d.bin"))
        calls = 0

        def counted(name, last_call=last_call):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls > last_call:
                    raise KilledError
                return real[name](*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in names:
                patch.setattr(os, name, counted(name))
            try:
                make(folder)
            except KilledError:
                killed = True
            else:
                killed = False
        make(folder)
        assert_whole(folder)
        if not killed:
            break
    assert 5 < last_call < 99


def test_kill_minus_nine_at_random_moments(tmp_path):
    """A real SIGKILL, again and again, then one call that may end."""
    script = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[2])
        from pathlib import Path
        from tests.unit.trainer.test_artifacts import make
        while True:
            for rate in (1.0, 2.0):
                make(Path(sys.argv[1]), str(rate), {"rate": rate})
                print(flush=True)
        """
    )
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path / "stage"), str(PROJECT_ROOT)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline()
        time.sleep(random.uniform(0, 0.05))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.stdout.close()
        for rate in (1.0, 2.0):
            make(tmp_path / "stage", str(rate), {"rate": rate})
            assert_whole(tmp_path / "stage", str(rate))


def test_a_full_disk_leaves_the_former_result_whole(tmp_path, monkeypatch):
    stage, key = make(tmp_path)

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=f"disk of '{tmp_path}' is full"):
            make(tmp_path, "newer", {"learning_rate": 2e-4})
    assert stage.status(key) == "complete"
    make(tmp_path, "newer", {"learning_rate": 2e-4})
    assert_whole(tmp_path, "newer")


def test_commit_whose_files_were_cleaned_up_is_done_again(tmp_path):
    stage = StageFolder(tmp_path, "booth")
    key = stage.key(INPUTS, CONFIG, 0)
    write_json(stage.working(key) / artifacts.COMMIT_NAME, {"outputs": [{"path": "a.bin", "size": 3}], "replaces": []})
    assert stage.status(key) == "missing"
    make(tmp_path)
    assert_whole(tmp_path)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EACCES, "Cannot write"),
        (errno.EROFS, "Cannot write"),
    ],
)
def test_folder_errors_name_the_folder(number, words):
    with pytest.raises(UserError, match=rf"(?s){words}|'out/x'") as caught, folder_errors(Path("out/x")):
        raise OSError(number, os.strerror(number))
    assert words in str(caught.value)
    assert "'out/x'" in str(caught.value)


def test_other_system_errors_are_not_the_users():
    with pytest.raises(OSError, match="Input/output"), folder_errors(Path("x")):
        raise OSError(errno.EIO, "Input/output error")


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="in the way"):
        make(tmp_path / "out" / "booth")


def test_write_text_replaces_whole_and_leaves_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    write_text(path, "one")

    def broken(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(UserError, match="is full"):
        write_text(path, "two")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_lock_lets_one_process_in(tmp_path):
    with run_lock(tmp_path / "album"), pytest.raises(UserError, match="Another process"), run_lock(tmp_path / "album"):
        pass
    with run_lock(tmp_path / "album"):
        pass


def test_git_revision_is_none_outside_a_checkout(monkeypatch):
    def absent(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", absent)
    artifacts.git_revision.cache_clear()
    try:
        assert artifacts.git_revision() is None
    finally:
        artifacts.git_revision.cache_clear()
