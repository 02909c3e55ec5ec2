"""The project's code as it is now, copied into a folder: what a job runs does not change while it waits in a queue."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from modules.errors import UserError

MAX_SNAPSHOT_MB = 200
# Too large for a copy, and told apart by their hashes: a link takes their place.
_LINKED = "weights"
# Where there is no git to say what belongs to the project: results at the top, and what tools leave anywhere.
_RESULTS, _TRACES = {"out", "build", _LINKED}, {"node_modules", "__pycache__"}
_PROOF = Path("launch") / "__main__.py"


def copy_code(root: Path, target: Path) -> dict[str, object]:
    """Copy what git tracks, changes included, and new files that it does not ignore; without git, all but results.

    `weights` becomes a link. target: a folder that does not exist yet.

    Returns:
        What was copied: "commit" (None without git), "changed" files, "num_files" and "num_bytes".

    Raises:
        UserError: it is more than MAX_SNAPSHOT_MB.
    """
    listed = _git(root, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    names = [] if listed is None else [Path(name) for name in listed.split("\0") if name]
    known = _PROOF in names
    if not known:
        names = list(_walk(root))
    names = [name for name in names if name.parts[0] != _LINKED and (root / name).is_file()]
    sizes = {name: (root / name).stat().st_size for name in names}
    if sum(sizes.values()) > MAX_SNAPSHOT_MB * 1e6:
        largest = max(sizes, key=lambda name: sizes[name])
        raise UserError(
            f"The code in '{root}' has {sum(sizes.values()) / 1e6:.0f} MB, and a job takes at most {MAX_SNAPSHOT_MB} "
            f"along: move data elsewhere or name it in .gitignore (the largest file is {largest}, "
            f"{sizes[largest] / 1e6:.0f} MB)."
        )
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target / name)
    if (root / _LINKED).is_dir():
        (target / _LINKED).symlink_to((root / _LINKED).resolve(), target_is_directory=True)
    commit = _git(root, "rev-parse", "HEAD") if known else None
    status = _git(root, "status", "--porcelain", "--untracked-files=all", "-z", ".") if known else None
    return {
        "commit": commit.strip() if commit else None,
        "changed": sorted(line[3:] for line in (status or "").split("\0") if line[2:3] == " "),
        "num_files": len(names),
        "num_bytes": sum(sizes.values()),
    }


def _git(root: Path, *words: str) -> str | None:
    """What git says; None where it is missing or knows nothing of this folder."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _walk(root: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".")
            and name not in _TRACES
            and not (name in _RESULTS and Path(folder) == root)
            and not name.endswith(".egg-info")
            and not (Path(folder) / name / "pyvenv.cfg").exists()
        )
        for name in sorted(files):
            if not name.endswith(".pyc"):
                yield (Path(folder) / name).relative_to(root)
