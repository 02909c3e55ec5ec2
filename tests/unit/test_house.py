"""Rules of the house: import contracts, configurations that load, no dead settings, no traces of a machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.config import RunConfig, load_dataclass

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("modules", "datamodules", "trainer", "launch")
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
MAX_LINES = 400
# Files that may be longer, and why.
LONG_FILES: dict[str, str] = {}
TEXT_SUFFIXES = {".py", ".md", ".toml", ".yaml", ".yml", ".json", ".sh", ".html", ".css", ".js", ".txt", ""}


def tracked_files() -> Iterator[Path]:
    """Files of the repository: tracked, or new and not ignored."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, done.stdout.split("\0")):
        if (ROOT / name).is_file():
            yield ROOT / name


def text_files() -> Iterator[tuple[Path, str]]:
    for path in tracked_files():
        if path.suffix in TEXT_SUFFIXES:
            try:
                yield path.relative_to(ROOT), path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


def source_trees() -> Iterator[tuple[Path, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def test_import_contracts():
    # In a process of its own: the linter silences every logger of the process that it runs in.
    script = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", CONFIGS, ids=[str(path.relative_to(ROOT / "configs")) for path in CONFIGS])
def test_every_shipped_configuration_loads_and_says_what_it_is_for(path):
    if path.parent.name == "pretrain":
        from trainer.pretrain import PretrainConfig

        load_dataclass(PretrainConfig, path)
    elif path.parent.name == "sweeps":
        from launch.sweep import read_sweep

        read_sweep(path)
    elif path.parent.name == "tune":
        from launch.tuning_config import read_space

        read_space(path, "mini")
    elif path.parent.name == "clusters":
        if path.stem.startswith("slurm"):
            from launch.slurm import load_cluster

            load_cluster(path.stem)
    else:
        load_dataclass(RunConfig, path)
    header = path.read_text(encoding="utf-8").split("\n\n")[0]
    assert header.startswith("#"), f"{path.name} opens with a comment: the command, the result and the time to expect"
    assert "python -m launch" in header


def test_every_configuration_field_is_read_somewhere():
    fields: dict[str, set[str]] = {}
    reads: set[str] = set()
    for _, tree in source_trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and node.name.endswith("Config"):
                names = {
                    item.target.id
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
                fields[node.name] = names
        reads |= set(attribute_reads(tree))
    assert fields
    unread = {f"{owner}.{name}" for owner, names in fields.items() for name in names if name not in reads}
    assert not unread, f"settings that nobody reads: {sorted(unread)}"


def attribute_reads(tree: ast.Module) -> Iterator[str]:
    """Names read as attributes, the range checks of configurations left out."""
    checks = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == "__post_init__"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and node not in checks:
            yield node.attr


def test_reader_of_fields_sees_reads_and_not_checks():
    tree = ast.parse("class A:\n  def __post_init__(self):\n    self.checked\nx = a.read\na.written = 1\n")
    assert set(attribute_reads(tree)) == {"read"}


def test_no_package_registry_and_no_path_of_a_machine():
    # Written in parts, so that this file does not name what it forbids.
    registries = ["py" + "pi.org", "python" + "hosted.org", "download.py" + "torch.org", "registry.npm" + "js.org"]
    machine_path = re.compile(r"(?<![\w.\-/])/(?:home|work|root|Users|mnt|data)/\w")
    found = []
    for path, text in text_files():
        for number, line in enumerate(text.splitlines(), start=1):
            if any(host in line for host in registries) or machine_path.search(line):
                found.append(f"{path}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_files_are_small():
    long = {
        str(path): len(text.splitlines())
        for path, text in text_files()
        if path.suffix == ".py" and len(text.splitlines()) > MAX_LINES
    }
    assert not set(long) - set(LONG_FILES), f"split these, or give the reason in LONG_FILES: {long}"


def test_nothing_large_is_tracked():
    large = [path for path in tracked_files() if path.stat().st_size > 100e6]
    assert not large


def test_every_package_folder_is_a_package():
    """A folder without __init__.py would be left out of an installation without a word."""
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            assert (path.parent / "__init__.py").is_file(), path
