"""Copies of the code for a job."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launch import snapshot
from launch.snapshot import copy_code
from modules.errors import UserError


def write(root: Path, *names: str) -> None:
    """Files that hold their names."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def git(root: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(root), *identity, *words], check=True, capture_output=True, timeout=30)


def names(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()
    )


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    write(root, "launch/__main__.py", "kept", "gone", "weights/model", "out/result", "secret")
    (root / ".gitignore").write_text("out/\nsecret\n")
    return root


def test_with_git_changes_and_new_files_come_along(root: Path, tmp_path: Path) -> None:
    git(root, "init")
    git(root, "add", "launch/__main__.py", "kept", "gone", "weights", ".gitignore")
    git(root, "commit", "--message", "first")
    (root / "launch" / "__main__.py").write_text("changed")
    (root / "gone").unlink()
    (root / "new ü").write_text("new")
    found = copy_code(root, tmp_path / "code")
    assert {".gitignore", "kept", "launch/__main__.py", "new ü"} <= set(names(tmp_path / "code"))
    assert not {"gone", "secret", "out/result"} & set(names(tmp_path / "code"))
    assert (tmp_path / "code" / "launch" / "__main__.py").read_text() == "changed"
    assert (tmp_path / "code" / "weights").is_symlink()
    assert (tmp_path / "code" / "weights" / "model").read_text() == "weights/model"
    assert len(str(found["commit"])) == 40
    assert {"gone", "launch/__main__.py", "new ü"} <= set(found["changed"])  # type: ignore[arg-type]


def test_without_git_all_but_results_comes_along(root: Path, tmp_path: Path) -> None:
    write(root, "launch/out/kept", "launch/__pycache__/x", ".cache/x", "env/pyvenv.cfg", "env/lib/x", "x.egg-info/x")
    found = copy_code(root, tmp_path / "code")
    copied = names(tmp_path / "code")
    assert {"kept", "secret", "launch/__main__.py", "launch/out/kept"} <= set(copied)
    left_out = ("launch/__pycache__", ".cache", "env", "out", "weights", "x.egg-info")
    assert not [name for name in copied if name.startswith(left_out)]
    assert found["commit"] is None
    assert found["num_files"] == len(copied)


def test_too_much_is_refused_with_the_largest_file(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MAX_SNAPSHOT_MB", 1)
    (root / "film.mp4").write_bytes(bytes(2_500_000))
    with pytest.raises(UserError, match=r"has 3 MB, and a job takes at most 1 along.*largest file is film\.mp4, 2 MB"):
        copy_code(root, tmp_path / "code")
    assert not (tmp_path / "code").exists()
