"""The verb `bench`: runs the `bench()` functions of tests/benchmarks and writes their figures by name.

The benchmarks stand with the tests, which are no part of an installation, so they are loaded by their path.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from modules.errors import UserError

PROJECT_ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = PROJECT_ROOT / "tests" / "benchmarks"
RESULT = "bench.json"


def run_benchmarks(out: Path, names: Sequence[str] = (), *, folder: Path = BENCHMARKS) -> str:
    """Run bench_<name>.py of `folder` one after the other (all of them when no names are given).

    Writes out/bench.json, {"name": {"figure": number}}; returns its text. Raises UserError for a name without a file
    and where there are no benchmarks, as in an installation without the checkout.
    """
    found = {path.stem.removeprefix("bench_"): path for path in sorted(folder.glob("bench_*.py"))}
    if not found:
        raise UserError(f"{folder} holds no benchmarks (bench_*.py): run this verb from a checkout of the project.")
    for name in names:
        if name not in found:
            raise UserError(f"There is no benchmark {name!r}: choose from {', '.join(found)}.")
    figures = {}
    for name in names or found:
        print(f"{name} ...", file=sys.stderr, flush=True)
        figures[name] = _load(found[name]).bench()
    from trainer.artifacts import folder_errors, write_json

    with folder_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    write_json(out / RESULT, figures)
    return json.dumps(figures, indent=2)


def _load(path: Path) -> ModuleType:
    # Benchmarks share shapes with the tests, which only the checkout's root leads to.
    if str(PROJECT_ROOT) not in sys.path:
        sys.path.append(str(PROJECT_ROOT))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, "bench", None)):
        raise UserError(f"{path} has no function bench() that returns figures by name: add one.")
    return module
