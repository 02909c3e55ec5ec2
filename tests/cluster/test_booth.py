"""PuzzleBooth over the two nodes of a Slurm cluster: same result as in one process, stopped and requeued or not."""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path

import pytest

from tests.cluster.conftest import Lab
from tests.integration.smoke import RESULTS, leftovers, smoke_overrides
from tests.integration.test_scale_out import BOOTH, assert_close, train
from trainer.checkpoint import find_checkpoint
from trainer.loggers import read_metrics

# Minutes where other work goes on beside, and seconds where none does.
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
STEPS, BEGUN = 23, 6
# Nothing but a signal makes a checkpoint.
LONG = ("booth.joint_phase.steps=20", "runtime.checkpoint_every_steps=0", "runtime.checkpoint_every_s=0")
SCRIPT = """
export VENV=${PYTHON%/bin/python}
state() { scontrol --oneliner show job "$job" | sed 's/.* \\(JobState=[A-Z_]*\\).* \\(Restarts=[0-9]*\\).*/\\1 \\2/'; }
# wait_until COMMAND: for five minutes at most, and not beyond the end of the job.
wait_until() {
  for ((i = 0; i < 3000; i++)); do
    eval "$1" && return
    [[ $(state) != *FAILED* ]] || break
    sleep 0.1
  done
  echo "waited in vain for: $1; $(state)" >&2
  return 1
}
steps() { cat out/.packs/booth-*/metrics.jsonl 2>/dev/null | wc -l; }
# on NODES COMMAND: once on each of these nodes, beside the job.
on() { srun --overlap --mem=0 --jobid="$job" --nodelist="$1" --ntasks-per-node=1 "${@:2}"; }
worker="-m trainer.worker $PWD/out"
job=$(sbatch --parsable --nodes=2 --time=10 "$PROJECT/slurm/booth.sh" "$ALBUM" "${WORDS[@]}")
"""


def booth(lab: Lab, tmp_path: Path, album: Path, backbone: Path, script: str, *words: str):
    """Train an album with booth.sh in tmp_path/out on two nodes while `script` goes on."""
    overrides = smoke_overrides(tmp_path / "out", backbone, *BOOTH, *words)
    given = f"BEGUN={BEGUN} ALBUM={album}\nWORDS=({shlex.join(overrides)})"
    return lab(f"{given}\n{SCRIPT}\n{script}", timeout_s=800)


def log_of(tmp_path: Path) -> str:
    (path,) = tmp_path.glob("booth-*.out")
    return path.read_text()


@pytest.mark.parametrize(
    ("strategy", "tolerance"), [("ddp", 2e-3), pytest.param("deepspeed_stage_2", 5e-3, marks=needs_deepspeed)]
)
def test_two_nodes_stopped_by_usr1_go_on_to_the_result_of_one_process(
    lab: Lab, albums: list[Path], backbone: Path, tmp_path: Path, strategy: str, tolerance: float
) -> None:
    script = """
wait_until '(($(steps) >= BEGUN))'
on na,nb pgrep --count -f -- "$worker"
scancel --signal=USR1 --batch "$job"
wait_until '[[ $(state) == *Restarts=1 ]]'
cp -r out/.packs/booth-* stopped
wait_until '[[ $(state) == JobState=COMPLETED* ]]'
"""
    done = booth(lab, tmp_path, albums[0], backbone, script, *LONG, f"runtime.strategy={strategy}")
    log = log_of(tmp_path)
    assert done.returncode == 0, done.stderr + log
    assert done.stdout.split() == ["1", "1"], "one worker on each node"
    stopped = find_checkpoint(tmp_path / "stopped")
    assert stopped is not None
    assert BEGUN <= stopped.num_steps == len(read_metrics(tmp_path / "stopped" / "metrics.jsonl")) < STEPS
    assert "goes back to the queue" in log
    expected = train(albums[:1], tmp_path / "alone", backbone, *LONG[:1])["woman"]
    found = read_metrics(tmp_path / "out" / "woman" / "booth" / "metrics.jsonl")
    assert [row["step"] for row in found] == list(range(STEPS))
    for one, two in zip(expected, found, strict=True):
        assert two == pytest.approx(one, rel=tolerance)
    assert_close(tmp_path / "alone" / "woman", tmp_path / "out" / "woman", tolerance)
    assert all((tmp_path / "out" / "woman" / name).is_file() for name in RESULTS)
    assert leftovers(tmp_path / "out") == []


def test_scancel_saves_and_ends(lab: Lab, albums: list[Path], backbone: Path, tmp_path: Path) -> None:
    script = """
wait_until '(($(steps) >= BEGUN))'
scancel "$job"
wait_until '[[ $(state) == JobState=CANCELLED* ]]'
wait_until '[[ -z $(squeue --noheader --job="$job") ]]'
state
"""
    done = booth(lab, tmp_path, albums[0], backbone, script, *LONG)
    assert done.returncode == 0, done.stderr + log_of(tmp_path)
    assert done.stdout.strip() == "JobState=CANCELLED Restarts=0"
    (work,) = (tmp_path / "out" / ".packs").glob("booth-*")
    stopped = find_checkpoint(work)
    assert stopped is not None
    assert stopped.num_steps >= BEGUN, log_of(tmp_path)
    assert "go on" in log_of(tmp_path)


def test_a_worker_that_dies_on_one_node_ends_all(lab: Lab, albums: list[Path], backbone: Path, tmp_path: Path) -> None:
    script = """
wait_until '(($(steps) >= BEGUN))'
on nb pkill -9 -f -- "$worker"
for ((i = 0; i < 3000; i++)); do [[ $(state) != *RUNNING* ]] && break; sleep 0.1; done
scontrol --oneliner show job "$job" | grep --only-matching 'JobState=[A-Z]*\\|ExitCode=[0-9:]*'
"""
    done = booth(lab, tmp_path, albums[0], backbone, script, *LONG)
    assert done.stdout.split() == ["JobState=FAILED", "ExitCode=2:0"], done.stderr + log_of(tmp_path)
    assert "A process of the 2 that trained together has died" in log_of(tmp_path)
