"""The verb `bench`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import __main__ as command_line
from launch.bench import BENCHMARKS, _load, run_benchmarks
from modules.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "bench_one.py").write_text("def bench():\n    return {'steps_per_s': 2.5}\n")
    (folder / "bench_two.py").write_text("from tests.numerics import shapes\ndef bench():\n    return {'ms': 7.0}\n")
    (folder / "helper.py").write_text("raise AssertionError('not a benchmark')\n")
    return folder


def test_figures_of_all_benchmarks_by_name(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = run_benchmarks(tmp_path / "deep" / "out", folder=folder)
    expected = {"one": {"steps_per_s": 2.5}, "two": {"ms": 7.0}}
    assert json.loads(text) == expected
    assert json.loads((tmp_path / "deep" / "out" / "bench.json").read_text()) == expected
    assert [path.name for path in (tmp_path / "deep" / "out").iterdir()] == ["bench.json"]
    assert capsys.readouterr().err == "one ...\ntwo ...\n"


def test_only_those_that_are_named(folder: Path, tmp_path: Path) -> None:
    assert json.loads(run_benchmarks(tmp_path, ["two"], folder=folder)) == {"two": {"ms": 7.0}}


def test_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no benchmark 'three': choose from one, two"):
        run_benchmarks(tmp_path, ["three"], folder=folder)
    with pytest.raises(UserError, match="run this verb from a checkout"):
        run_benchmarks(tmp_path, folder=tmp_path / "nowhere")
    (folder / "bench_one.py").write_text("bench = 3\n")
    with pytest.raises(UserError, match=r"bench_one.py has no function bench\(\)"):
        run_benchmarks(tmp_path, folder=folder)
    assert not (tmp_path / "bench.json").exists()


def test_verb_names_the_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["bench", "nothing", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("There is no benchmark 'nothing': choose from ")


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("bench_*.py")), ids=lambda path: path.stem)
def test_every_shipped_benchmark_can_be_loaded(path: Path) -> None:
    assert callable(_load(path).bench)
