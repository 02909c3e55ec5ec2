"""Jobs of `submit`, and the farm as a job array, on a real Slurm."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

import pytest

from launch.farm.plan import read_lines
from launch.farm.records import read_index
from tests.cluster.conftest import Lab
from tests.cluster.test_farm import FARM, SHORT
from tests.integration.smoke import leftovers, smoke_overrides

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
WAIT = """
await_end() {
  while [[ $(squeue --noheader --job="$1" --format=%T) =~ RUNNING|PENDING|COMPLETING|CONFIGURING ]]; do sleep 0.5; done
}
"""


def test_an_array_shares_a_dataset_and_a_task_that_is_stopped_comes_back(
    lab: Lab, albums: list[Path], backbone: Path, tmp_path: Path
) -> None:
    for index in range(4):
        shutil.copytree(albums[index % 2], tmp_path / "photos" / f"album{index}")
    words = [*smoke_overrides(Path(), backbone, *SHORT, *FARM, "farm.pack_size=1")]
    given = shlex.join(word for word in words if not word.startswith("out="))
    run = lab(
        f"""{WAIT}
        job=$(sbatch --parsable --array=1-2 --time=20 "$PROJECT/slurm/array.sh" photos --out dataset {given})
        while (($(cat dataset/.farm/packs/*/attempts.jsonl 2>/dev/null | grep --count host) < 2)); do
          [[ $(squeue --noheader --job="$job" --format=%T) =~ RUNNING|PENDING ]]
          sleep 0.2
        done
        sleep 3
        scancel --signal=USR1 --batch "${{job}}_1"
        await_end "$job"
        for task in 1 2; do
          scontrol show job "${{job}}_$task" | grep --only-matching 'JobState=[A-Z]*\\|Restarts=[0-9]*'
        done
        """,
        timeout_s=800,
        CORES=1,
        VENV=sys.prefix,
    )
    said = "\n".join(path.read_text() for path in sorted(tmp_path.glob("array-*.out")))
    assert run.stdout.split() == ["JobState=COMPLETED", "Restarts=1", "JobState=COMPLETED", "Restarts=0"], said[-8000:]
    assert len(list(tmp_path.glob("array-1_[12].out"))) == 2
    records = read_index(tmp_path / "dataset")
    assert {record.name: record.state for record in records} == {f"album{index}": "done" for index in range(4)}
    attempts = [row for path in tmp_path.glob("dataset/.farm/packs/*/attempts.jsonl") for row in read_lines(path)]
    assert {row["host"] for row in attempts if "host" in row} == {"na", "nb"}
    done = [row["name"] for row in attempts if row.get("event") == "album" and row["state"] == "done"]
    assert sorted(done) == [f"album{index}" for index in range(4)], "each once"
    assert leftovers(tmp_path / "dataset" / "albums") == []


def test_submit_runs_its_copy_of_the_code_where_it_was_called(
    lab: Lab, albums: list[Path], backbone: Path, tmp_path: Path
) -> None:
    shutil.copytree(albums[1], tmp_path / "photos of a man")
    comment = """a "b" 'c' #d \\e $HOME"""
    (tmp_path / "ours.yaml").write_text(
        """
partition: main
time: "0:10:00"
cpus_per_task: 1
environment: {GREETING: "it's $HOME"}
setup: ['echo "<$GREETING>"']
"""
    )
    words = smoke_overrides(Path("results"), backbone, *SHORT)
    run = lab(
        f"""{WAIT}
        export PYTHONPATH=$PROJECT
        folder="$PWD/a job's"
        "$PYTHON" -m launch submit booth --cluster ours.yaml --name first --folder "$folder" --sbatch=--hold \
          --sbatch={shlex.quote(f"--comment={comment}")} -- "photos of a man" {shlex.join(words)}
        echo 'print("from the copy")' >>"$folder/code/launch/__init__.py"
        scontrol show job 1 | sed --quiet 's/^ *Comment=\\(.*[^ ]\\) *$/\\1/p'
        scontrol release 1
        await_end 1
        scontrol show job 1 | grep --only-matching 'JobState=[A-Z]*\\|WorkDir=.*'
        """,
        timeout_s=600,
    )
    folder = tmp_path / "a job's"
    log = "\n".join(path.read_text() for path in folder.glob("first-1.out"))
    assert run.returncode == 0, run.stderr + log
    said = run.stdout.splitlines()
    assert said[0] == f"Job 1 in {folder}"
    assert said[-3:] == [comment, "JobState=COMPLETED", f"WorkDir={tmp_path}"], log
    assert log.startswith("<it's $HOME>\n")
    assert "from the copy" in log
    assert (tmp_path / "results" / "photos of a man" / "avatar.glb").is_file()
