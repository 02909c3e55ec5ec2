"""Batch scripts of `submit`, read back by a shell; what sbatch makes of them is tested in tests/cluster."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.cluster_config import ClusterConfig
from launch.slurm import SCRIPT, add_verbs, check_arguments, load_cluster, quoted, render
from modules.errors import UserError
from trainer.config import load_config

ROOT = Path(__file__).resolve().parents[3]
NASTY = """it's $HOME `id` "\\x" ; # ü"""


def parse(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers()

    def add(verb: Callable[[argparse.Namespace], int], module: str, *, takes_overrides: bool = True):
        child = verbs.add_parser(verb.__name__)
        child.set_defaults(verb=verb)
        return child

    add_verbs(add)
    arguments, rest = parser.parse_known_args(words)
    assert rest == []
    return arguments


def submit(*words: str) -> int:
    arguments = parse("submit", *words)
    return arguments.verb(arguments)


def rendered(kind: str = "booth", words: tuple[str, ...] = ("album",), **settings: object) -> str:
    return render(
        kind,
        words,
        ClusterConfig(**settings),  # type: ignore[arg-type]
        name="first",
        folder=Path("/jobs/50% of it"),
        workplace=Path("/my work"),
        root=ROOT,
    )


@pytest.fixture
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "album").mkdir()
    monkeypatch.chdir(tmp_path)
    return "album"


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An sbatch that notes its folder and arguments, and what `submit` would leave behind on a cluster."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$PWD $*" >{tmp_path}/called\necho "42;main"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return tmp_path / "called"


def test_words_behind_the_dashes_are_the_jobs() -> None:
    words = ("--config", "mini", "a", "--out", "x", "seed=1")
    for before in (["booth", "--cluster", "c", "--dry-run"], ["--cluster", "c", "--dry-run", "booth"]):
        arguments = parse("submit", *before, "--", *words)
        assert (arguments.kind, arguments.arguments, arguments.dry_run) == ("booth", list(words), True)


def test_options_and_defaults_of_the_kind() -> None:
    lines = rendered(
        partition="gpu", gpus_per_node="a100:4", memory="64G", sbatch=("--signal=B:USR1@300",)
    ).splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]
    assert options == [
        "--requeue",
        "--open-mode=append",
        "--job-name=first",
        '--output="/jobs/50%% of it/%x-%j.out"',
        '--chdir="/my work"',
        "--partition=gpu",
        "--nodes=1",
        "--gpus-per-node=a100:4",
        "--mem=64G",
        "--signal=B:USR1@300",
    ]
    assert lines[0] == "#!/usr/bin/env bash"
    assert lines[-1] == "exec bash '/jobs/50% of it/code/slurm/booth.sh' album"


def test_tasks_of_an_array_have_logs_of_their_own() -> None:
    text = rendered("array", sbatch=("--array=1-8",))
    assert '%x-%A_%a.out"' in text
    assert [line for line in text.splitlines() if "--array" in line] == ["#SBATCH --array=1-8"]


def test_a_shell_reads_what_was_meant(tmp_path: Path) -> None:
    (tmp_path / "code" / "slurm").mkdir(parents=True)
    show = 'printf "<%s>" "$@" "$A" "$VENV" "$CONTAINER" "$LOADED" "$SET"\n'
    (tmp_path / "code" / "slurm" / "booth.sh").write_text(show)
    cluster = ClusterConfig(
        environment={"A": NASTY},
        modules=("cuda/12.4", NASTY),
        container=("run", NASTY),
        venv=NASTY,
        setup=("export SET=$((1 + 1))",),
    )
    words = ["a b", NASTY, "x='y'", "two\nlines"]
    text = render("booth", words, cluster, name="n", folder=tmp_path, workplace=tmp_path, root=ROOT)
    module = 'module() { export LOADED="${LOADED-}|$2"; }\n'
    done = subprocess.run(["bash", "-c", module + text], capture_output=True, text=True, timeout=30, check=True)
    container = shlex.join(["run", NASTY])
    expected = [*words, NASTY, NASTY, container, f"|cuda/12.4|{NASTY}", "2"]
    assert done.stdout == "".join(f"<{word}>" for word in expected)


def test_the_environment_is_the_own_one_unless_a_container_has_another() -> None:
    assert f"export VENV={shlex.quote(sys.prefix)}" in rendered()
    assert "VENV" not in rendered(container=("apptainer", "exec", "image.sif"))


def test_quotes_of_options() -> None:
    assert quoted("a100|h100") == '"a100|h100"'
    assert quoted('a "b" \\c') == '"a \\"b\\" \\\\c"'
    assert quoted("gpu:4,craynetwork:1") == "gpu:4,craynetwork:1"


def test_submits_from_its_folder_with_code_and_configuration(
    album: str, sbatch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--name", "first", "--folder", "job", "--nodes", "3", "--time", "1:00:00"]
    assert submit("booth", "--cluster", "slurm_cpu", *words, "--", album, "--config", "mini", "seed=7") == 0
    folder = tmp_path / "job"
    assert sbatch.read_text() == f"{folder} --parsable {SCRIPT}\n"
    text = (folder / SCRIPT).read_text()
    assert "#SBATCH --nodes=3\n" in text
    assert "#SBATCH --time=1:00:00\n" in text
    assert text.endswith(f"{folder}/code/slurm/booth.sh album seed=7 --config {folder}/config.yaml\n")
    assert load_config(str(folder / "config.yaml")) == load_config("mini", ["seed=7"])
    for name in ("launch/slurm.py", "slurm/common.sh", "trainer/worker.py", "configs/mini.yaml"):
        assert (folder / "code" / name).read_bytes() == (ROOT / name).read_bytes()
    assert (folder / "code" / "weights").resolve() == ROOT / "weights"
    said = capsys.readouterr().out
    assert f"Job 42 in {folder}" in said
    assert f"tail -F {folder}/first-42.out" in said
    assert "scancel 42" in said
    with pytest.raises(UserError, match="is there already: choose another --folder"):
        submit("booth", "--cluster", "slurm_cpu", *words, "--", album)


def test_a_dry_run_leaves_nothing(album: str, sbatch: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert submit("farm", "--cluster", "slurm_gpu", "--dry-run", "--", album, "--out", "d", "farm.pack_size=2") == 0
    said = capsys.readouterr().out
    assert said.startswith("#!/usr/bin/env bash\n")
    assert "/code/slurm/farm.sh album --out d farm.pack_size=2 --config " in said
    assert not sbatch.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["album", "bin"]


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("booth", ("nowhere",), "nowhere does not exist: give an album"),
        ("booth", ("seed=1",), "give albums behind the two dashes"),
        ("booth", ("album", "--confg", "mini"), "unrecognized arguments: --confg"),
        ("booth", ("album", "--config", "mni"), "No configuration 'mni': did you mean 'mini'"),
        ("booth", ("album", "booth.rnk=1"), r"Unknown key 'booth\.rnk'"),
        ("farm", ("album",), "Say with --out where the dataset goes"),
        ("array", ("album", "--out", "d", "farm.pack=2"), "Unknown key 'pack'"),
        ("farm", ("album", "--name", "n", "--out", "d"), "unrecognized arguments: --name"),
    ],
)
def test_mistakes_are_found_before_the_queue(album: str, kind: str, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_arguments(kind, words)


def test_mistakes_of_the_job(album: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = ("--cluster", "slurm_cpu", "--folder", "job")
    with pytest.raises(UserError, match="No cluster 'nowhere': there are slurm_cpu, slurm_gpu"):
        load_cluster("nowhere")
    with pytest.raises(UserError, match="submit: time is '90', expected HH:MM:SS"):
        submit("booth", *base, "--time", "90", "--", album)
    with pytest.raises(UserError, match="Each task of an array has one node, found 2"):
        submit("array", *base, "--nodes", "2", "--", album, "--out", "d")
    with pytest.raises(UserError, match="--name is 'a b', expected letters"):
        submit("booth", *base, "--name", "a b", "--", album)
    with pytest.raises(UserError, match="sbatch cannot read the path"):
        submit("booth", "--cluster", "slurm_cpu", "--folder", "a\n#SBATCH --uid=0", "--", album)


def test_without_sbatch_it_says_where_to_go_on(album: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git = tmp_path / "bin"
    git.mkdir()
    monkeypatch.setenv("PATH", str(git))
    with pytest.raises(UserError, match=r"There is no sbatch here.*cd .*job && sbatch submit\.sbatch"):
        submit("booth", "--cluster", "slurm_cpu", "--folder", "job", "--", album)


def test_what_sbatch_refuses_is_said(album: str, sbatch: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"sbatch has refused .*submit\.sbatch: sbatch: error: invalid partition"):
        submit("booth", "--cluster", "slurm_cpu", "--folder", "job", "--", album)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partition": "a\n#SBATCH --uid=0"}, "partition holds .*, expected words without line breaks"),
        ({"setup": ("a\nb",)}, "setup holds"),
        ({"environment": {"A": "x\ny"}}, "environment holds"),
        ({"environment": {"A-B": "x"}}, "environment names 'A-B'"),
        ({"time": "43200"}, r"time is '43200', expected HH:MM:SS or D-HH:MM:SS \(in quotes in YAML\)"),
        ({"memory": "64 GB"}, "memory is '64 GB', expected a number with"),
        ({"nodes": 0}, "nodes is 0, expected at least 1"),
        ({"cpus_per_task": -1}, "cpus_per_task is -1"),
        ({"sbatch": ("-x",)}, "sbatch holds '-x', expected an option"),
    ],
)
def test_ranges_of_the_cluster(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClusterConfig(**settings)  # type: ignore[arg-type]


def test_times_that_slurm_knows() -> None:
    for text in ("1:00:00", "30:00", "2-12", "2-12:00:00", ""):
        assert dict(dataclasses.replace(ClusterConfig(), time=text).options()).get("time", "") == text


def test_a_clusters_file(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text("modules: [cuda]\nenvironment: {OMP_NUM_THREADS: 4}\ntime: 1-0:00:00\n")
    cluster = load_cluster(str(path))
    assert list(cluster.modules) == ["cuda"]
    assert cluster.environment == {"OMP_NUM_THREADS": "4"}
    path.write_text("time: 12:00:00\n")
    with pytest.raises(UserError, match="in quotes in YAML"):
        load_cluster(str(path))
    path.write_text('setup: ["a\\nb"]\n')
    with pytest.raises(UserError, match="setup holds"):
        load_cluster(str(path))
