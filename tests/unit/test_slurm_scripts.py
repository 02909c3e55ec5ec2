"""What the batch scripts share, with commands in the place of Slurm's; on a real cluster: tests/cluster."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(path for path in (ROOT / "slurm").glob("*.sh"))
# Ends 0.3 s after it was asked to, with the given code; with code 9 by itself after 5 s.
CHILD = """
trap 'sleep 0.3; exit "$1"' TERM
touch ready
for _ in {1..50}; do sleep 0.1; done
exit 9
"""


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH whose scontrol notes its arguments in scontrol.log and shows the job in job.txt."""
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(
        f'#!/usr/bin/env bash\necho "$*" >>{tmp_path}/scontrol.log\n[[ $1 != show ]] || cat {tmp_path}/job.txt\n'
    )
    scontrol.chmod(0o755)
    (tmp_path / "job.txt").write_text("JobState=RUNNING PreemptEligibleTime=2030-01-01 PreemptTime=None\n")
    (tmp_path / "child.sh").write_text(CHILD)
    return f"{tmp_path / 'bin'}:{os.environ['PATH']}"


def bash(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("VENV", "CONTAINER")}
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source {ROOT}/slurm/common.sh; {script}"],
        cwd=folder,
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def signalled(folder: Path, path: str, code: int, *signals: int, **variables: str) -> tuple[int, str, list[str]]:
    """Exit code, what is said, and requeues of a job whose command ends with `code` when it is asked to."""
    environment = os.environ | {"PATH": path, "SLURM_JOB_ID": "12"} | variables
    script = (
        f'source {ROOT}/slurm/common.sh; code=0; run_until_signal bash child.sh {code} || code=$?; echo "$asked_of_job"'
    )
    process = subprocess.Popen(
        ["bash", "-c", f"set -euo pipefail; {script}; exit $code"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end_s = time.monotonic() + 10
    while not (folder / "ready").exists() and time.monotonic() < end_s:
        time.sleep(0.01)
    for number in signals:
        process.send_signal(number)
        time.sleep(0.05)
    out, _ = process.communicate(timeout=30)
    log = folder / "scontrol.log"
    calls = log.read_text().splitlines() if log.exists() else []
    return process.returncode, out.strip(), [call for call in calls if call.startswith("requeue")]


@pytest.mark.parametrize("script", SCRIPTS, ids=[script.name for script in SCRIPTS])
def test_scripts_are_sound(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True, timeout=30)
    if shellcheck := shutil.which("shellcheck"):
        command = [shellcheck, "--external-sources", "--exclude=SC2154", str(script)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout


def test_usr1_saves_and_requeues(tmp_path: Path, path: str) -> None:
    assert signalled(tmp_path, path, 143, signal.SIGUSR1) == (0, "USR1", ["requeue 12"])


def test_a_task_of_an_array_requeues_itself_only(tmp_path: Path, path: str) -> None:
    found = signalled(
        tmp_path, path, 143, signal.SIGUSR1, signal.SIGUSR1, SLURM_ARRAY_JOB_ID="12", SLURM_ARRAY_TASK_ID="3"
    )
    assert found == (0, "USR1", ["requeue 12_3"])


def test_term_ends_for_good(tmp_path: Path, path: str) -> None:
    assert signalled(tmp_path, path, 143, signal.SIGTERM) == (143, "TERM", [])


def test_term_before_a_preemption_requeues(tmp_path: Path, path: str) -> None:
    (tmp_path / "job.txt").write_text("JobState=RUNNING PreemptTime=2030-01-01T00:00:00\n")
    assert signalled(tmp_path, path, 143, signal.SIGTERM) == (0, "TERM", ["requeue 12"])


def test_what_comes_to_its_end_all_the_same_is_not_done_again(tmp_path: Path, path: str) -> None:
    assert signalled(tmp_path, path, 0, signal.SIGUSR1) == (0, "USR1", [])


def test_an_error_is_not_done_again(tmp_path: Path, path: str) -> None:
    assert signalled(tmp_path, path, 2, signal.SIGUSR1) == (2, "USR1", [])


@pytest.mark.parametrize("code", [0, 3])
def test_without_a_signal_the_code_is_the_commands(tmp_path: Path, code: int) -> None:
    done = bash(f'run_until_signal bash -c "exit {code}" || echo "$?$asked_of_job"', tmp_path, SLURM_JOB_ID="12")
    assert done.stdout.strip() == (str(code) if code else "")


def test_python_is_that_of_the_environment_or_of_the_container(tmp_path: Path) -> None:
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").symlink_to("/bin/true")
    show = """find_python; printf '<%s>' "${python[@]}" """
    venv = str(tmp_path / "venv")
    assert bash(show, tmp_path, root=str(tmp_path), VENV=venv).stdout == f"<{venv}/bin/python>"
    os.rename(venv, tmp_path / ".venv")
    assert bash(show, tmp_path, root=str(tmp_path)).stdout == f"<{tmp_path}/.venv/bin/python>"
    assert bash(show, tmp_path, root="/nowhere").stdout.endswith(("/python>", "/python3>"))
    container = "apptainer exec 'my image.sif'"
    found = bash(show, tmp_path, root=str(tmp_path), CONTAINER=container).stdout
    assert found == "<apptainer><exec><my image.sif><python>"
    done = bash("find_python", tmp_path, root=str(tmp_path), VENV="/nowhere")
    assert (done.returncode, "There is no /nowhere/bin/python: set VENV" in done.stderr) == (127, True)


def test_python_finds_the_project_and_not_the_folder_it_is_started_in(tmp_path: Path) -> None:
    (tmp_path / "trainer").mkdir()
    (tmp_path / "trainer" / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    shown = "import trainer; print(trainer.__file__)"
    done = bash(f'find_root; "$TRY" -c "{shown}"', tmp_path, TRY=shutil.which("python3") or "python3", PYTHONPATH="/x")
    assert done.stdout.strip() == str(ROOT / "trainer" / "__init__.py")


def test_settings_of_the_user_win(tmp_path: Path) -> None:
    script = 'setting a.b 1 x a.b=2; setting c 3 x a.b=2; setting d 4; echo "${settings[@]}"'
    assert bash(script, tmp_path).stdout.strip() == "c=3 d=4"
