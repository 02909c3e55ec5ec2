"""One mechanism for resume, caching and reporting: a stage owns a folder with a `manifest.json`.

Life of a stage folder, safe against `kill -9` at any point:

    STAGE/.work-KEY/               outputs under their final names, and scratch (`checkpoints/`, dot files)
    STAGE/.work-KEY/.commit.json   the finished manifest: from here on there are only renames, which `status` can finish
    STAGE/OUTPUTS                  renamed out of the working folder one by one
    STAGE/manifest.json            `.commit.json` renamed: the stage is complete exactly when this file is there

Every byte is written before the first rename, so a full disk leaves the former result or none, never half of one.
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import functools
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from modules.errors import FolderInUse, OutputError
from trainer.canonical import canonical_json, hash_file, hash_json, hash_tree, to_plain

__all__ = [
    "MANIFEST_SCHEMA",
    "StageFolder",
    "Status",
    "canonical_json",
    "folder_errors",
    "hash_file",
    "hash_json",
    "hash_tree",
    "run_lock",
    "to_plain",
    "write_json",
    "write_text",
]

MANIFEST_SCHEMA = 1
MANIFEST_NAME = "manifest.json"
COMMIT_NAME = ".commit.json"
SCRATCH_FOLDER = "checkpoints"
Status = Literal["missing", "stale", "complete", "failed"]

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_NO_PERMISSION = (errno.EACCES, errno.EPERM, errno.EROFS)


@contextlib.contextmanager
def folder_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission or a file in the way into an `OutputError` that names `folder`."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            message = f"The disk of '{folder}' is full: free some space and run the same command again to go on."
        elif error.errno in _NO_PERMISSION:
            message = f"Cannot write in '{folder}' ({error.strerror}): allow it, or choose another folder with --out."
        elif error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
            message = f"'{error.filename or folder}' is in the way of a folder: move it, or choose another with --out."
        else:
            raise
        raise OutputError(message) from error


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all (temporary name, flush to disk, rename).

    A file that holds just this text already keeps its time. Raises UserError when the disk is full or the folder cannot
    be written.
    """
    # Always the same name: what a kill leaves is overwritten, and `run_lock` keeps a second process away.
    temporary = path.with_name(f".{path.name}.tmp")
    with folder_errors(path.parent):
        if path.is_file() and path.read_bytes() == text.encode():
            return
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` (anything `to_plain` takes) as indented JSON, atomically."""
    write_text(path, json.dumps(to_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def run_lock(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold `folder` (created when missing) for this process; the kernel frees it when the process ends.

    Raises FolderInUse when another process holds it (with `wait` its end is awaited), OutputError when the folder
    cannot be written.
    """
    with folder_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            message = f"Another process is at work in '{folder}': wait for it, or choose another --out."
            raise FolderInUse(message) from error
        except OSError as error:
            # Some network file systems know no locks; better to go on unlocked than not at all.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
        yield


class StageFolder:
    """The folder of one stage of one album.

    Args:
        path: the folder, for example OUT/ALBUM/booth; it is created when something is written.
        stage: the stage's name, kept in the manifest; a manifest of another stage counts as stale.
    """

    def __init__(self, path: Path, stage: str) -> None:
        self.path = Path(path)
        self.stage = stage

    def key(self, inputs: Mapping[str, str], config: object, seed: int) -> str:
        """SHA-256 that changes when an input's hash, the configuration or the seed changes."""
        return hash_json({"stage": self.stage, "inputs": dict(inputs), "config": config, "seed": seed})

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest on disk; None when there is none or it cannot be read."""
        return _read_json(self.path / MANIFEST_NAME)

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the last complete (or failed) run; empty when there is none."""
        return (self.manifest or {}).get("metrics", {})

    @property
    def reason(self) -> str | None:
        """Why the stage failed; None when it did not."""
        return (self.manifest or {}).get("reason")

    @property
    def outputs_hash(self) -> str:
        """Hash of the committed files' names and contents: the next stage's input.

        Raises:
            FileNotFoundError: the stage is not complete.
        """
        manifest = self.manifest
        if manifest is None or manifest["state"] != "complete":
            raise FileNotFoundError(f"stage '{self.stage}' in {self.path} is not complete")
        return hash_json({entry["path"]: entry["sha256"] for entry in manifest["outputs"]})

    def output(self, name: str) -> Path:
        """Path of a committed file.

        Raises:
            FileNotFoundError: the manifest does not list it.
        """
        manifest = self.manifest or {"outputs": []}
        if name not in (entry["path"] for entry in manifest["outputs"]):
            raise FileNotFoundError(f"stage '{self.stage}' in {self.path} has no output '{name}'")
        return self.path / name

    def status(self, key: str) -> Status:
        """State of the folder with respect to `key`; first finishes a commit that was cut short.

        complete: same key and every listed file is there with its size; failed: same key, failed before;
        stale: another key, or files missing; missing: nothing has been committed.
        """
        self._finish_commit(key)
        manifest = self.manifest
        if manifest is None:
            return "missing"
        if (manifest.get("schema"), manifest.get("stage"), manifest.get("key")) != (MANIFEST_SCHEMA, self.stage, key):
            return "stale"
        if manifest["state"] == "failed":
            return "failed"
        whole = all(_size(self.path / entry["path"]) == entry["size"] for entry in manifest["outputs"])
        if whole:
            # A kill right after the commit's last rename leaves the emptied working folder.
            self._remove_working_folders()
        return "complete" if whole else "stale"

    def working(self, key: str) -> Path:
        """The working folder of `key`, created when missing and kept between kills; those of other keys are deleted.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        folder = self._working_path(key)
        with folder_errors(self.path):
            folder.mkdir(parents=True, exist_ok=True)
        self._remove_working_folders(but=folder)
        return folder

    def commit(
        self,
        key: str,
        *,
        inputs: Mapping[str, str],
        config: object,
        seed: int,
        metrics: Mapping[str, Any] | None = None,
        timings: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
        reproducible: bool = False,
    ) -> None:
        """Move every output from the working folder into place and write the manifest last.

        Args:
            key: what `key(inputs, config, seed)` gave.
            inputs: name -> hash of what the stage read.
            config: the part of the resolved configuration that the stage depends on.
            seed: seed of the run.
            metrics: finite numbers or words that the report shows.
            timings: name -> seconds.
            extra: further plain data, kept under "extra".
            reproducible: leave the time of day out, so that equal work gives equal bytes.

        Raises:
            UserError: the disk is full or the folder cannot be written; the former result is still whole then.
        """
        folder = self.working(key)
        with folder_errors(self.path):
            names = sorted(_output_names(folder))
            manifest = self._manifest_head(key, "complete", inputs, config, seed, metrics, timings)
            manifest = {name: value for name, value in manifest.items() if not reproducible or name != "finished_at"}
            manifest["outputs"] = [
                {"path": name, "size": (folder / name).stat().st_size, "sha256": hash_file(folder / name)}
                for name in names
            ]
            manifest["extra"] = dict(extra or {})
            manifest["replaces"] = sorted(self._listed_outputs() - set(names))
            _flush_to_disk([folder / name for name in names])
        write_json(folder / COMMIT_NAME, manifest)
        self._finish_commit(key)

    def fail(
        self,
        key: str,
        reason: str,
        *,
        inputs: Mapping[str, str] | None = None,
        config: object = None,
        seed: int | None = None,
        metrics: Mapping[str, Any] | None = None,
        timings: Mapping[str, float] | None = None,
    ) -> None:
        """Record that the stage cannot be done, with the reason; drops the working folder and any former outputs."""
        with folder_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        manifest = self._manifest_head(key, "failed", inputs or {}, config, seed, metrics, timings)
        manifest |= {"reason": reason, "outputs": []}
        former = self._listed_outputs()
        write_json(self.path / MANIFEST_NAME, manifest)
        self._remove(former)
        self._remove_working_folders()

    def forget(self) -> None:
        """Drop the manifest, so that the stage runs again; the working folder stays."""
        with folder_errors(self.path):
            (self.path / MANIFEST_NAME).unlink(missing_ok=True)

    def _manifest_head(
        self,
        key: str,
        state: str,
        inputs: Mapping[str, str],
        config: object,
        seed: int | None,
        metrics: Mapping[str, Any] | None,
        timings: Mapping[str, float] | None,
    ) -> dict[str, Any]:
        return {
            "schema": MANIFEST_SCHEMA,
            "stage": self.stage,
            "state": state,
            "reason": None,
            "key": key,
            "inputs": dict(inputs),
            "config": to_plain(config),
            "config_hash": hash_json(config),
            "seed": seed,
            "versions": versions(),
            "git_revision": git_revision(),
            "finished_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "timings": dict(timings or {}),
            "metrics": to_plain(dict(metrics or {})),
        }

    def _finish_commit(self, key: str) -> None:
        """Do the renames of a commit whose intent is written; each step may be repeated."""
        folder = self._working_path(key)
        intent = _read_json(folder / COMMIT_NAME)
        if intent is None:
            return
        for entry in intent["outputs"]:
            if _size(folder / entry["path"]) is None and _size(self.path / entry["path"]) != entry["size"]:
                # A file of the intent is gone (somebody cleaned up): the intent is worthless, the checkpoints are not.
                (folder / COMMIT_NAME).unlink()
                return
        with folder_errors(self.path):
            (self.path / MANIFEST_NAME).unlink(missing_ok=True)
            for entry in intent["outputs"]:
                source, target = folder / entry["path"], self.path / entry["path"]
                if source.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(source, target)
            self._remove(intent["replaces"])
            os.replace(folder / COMMIT_NAME, self.path / MANIFEST_NAME)
        self._remove_working_folders()

    def _listed_outputs(self) -> set[str]:
        return {entry["path"] for entry in (self.manifest or {}).get("outputs", [])}

    def _remove(self, names: set[str] | list[str]) -> None:
        for name in names:
            path = self.path / name
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
                for parent in path.parents:
                    if parent == self.path:
                        break
                    parent.rmdir()

    def _remove_working_folders(self, but: Path | None = None) -> None:
        for folder in self.path.glob(".work-*"):
            if folder != but:
                shutil.rmtree(folder, ignore_errors=True)

    def _working_path(self, key: str) -> Path:
        return self.path / f".work-{key[:12]}"


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, of the project and of the packages that shape a result; a missing one is left out."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in ("puzzlebooth", "torch", "lightning", "diffusers", "transformers", "numpy", "xatlas"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def git_revision() -> str | None:
    """Commit of the checkout that this file lies in, with "+" when files were changed; None outside one."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        run = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, timeout=10, check=True)
        revision = run(["git", "rev-parse", "HEAD"]).stdout.strip()
        changed = run(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return revision + ("+" if changed else "")


def _output_names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        scratch = any(part == SCRATCH_FOLDER or part.startswith(".") for part in relative.parts)
        if path.is_file() and not scratch and path.suffix != ".tmp":
            yield relative.as_posix()


def _flush_to_disk(paths: list[Path]) -> None:
    # Delayed allocation reports a full disk only here; finding out after the renames would be too late.
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
