"""The command line: quick help, one line for a mistake, exit codes, overrides anywhere."""

from __future__ import annotations

import argparse
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch import __main__ as command_line
from modules.errors import AlbumFailed, UserError

PROJECT_ROOT = Path(__file__).resolve().parents[3]


def run(*words: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch", *words]
    return subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def verb(monkeypatch):
    """Let `check` do something else; the rest of the command line is the real one."""

    def replace(function):
        monkeypatch.setattr(command_line, "check", function)
        function.__name__ = "check"
        function.__doc__ = "Something else."

    return replace


def test_help_answers_at_once_and_imports_nothing_heavy():
    script = (
        "import sys, runpy; sys.argv = ['launch', '--help']\n"
        "try: runpy.run_module('launch', run_name='__main__')\n"
        "except SystemExit as end: code = end.code\n"
        "assert code == 0\n"
        "heavy = {'torch', 'lightning', 'diffusers', 'transformers', 'numpy', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    started_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "check" in done.stdout
    assert time.monotonic() - started_s < 5  # far less in fact; the machine may be busy


@pytest.mark.parametrize(
    "words",
    [
        ["run", "no_such_album"],
        ["run", "no_such_album", "nosuch=1"],
        ["run", "no_such_album", "--config", "no_such_config"],
        ["studio", "nosuch=1"],
        ["pretrain", "nosuch=1"],
        ["evaluate", "no_such.glb", "no_such_album", "nosuch=1"],
        ["report", "no_such_folder"],
        ["likeness", "no_such_folder"],
        ["likeness", "no_such_folder", "nosuch=1"],
        ["ablate", "no_such_album"],
        ["ablate", "no_such_album", "nosuch=1"],
    ],
    ids=" ".join,
)
def test_mistakes_are_answered_before_anything_heavy_is_loaded(words):
    script = (
        "import sys; from launch.__main__ import main\n"
        "assert main(sys.argv[1:]) == 2\n"
        "heavy = {'torch', 'lightning', 'diffusers', 'transformers', 'numba', 'skimage'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1


def test_unknown_verb_and_no_verb():
    assert run("fly").returncode == 2
    assert "VERB" in run().stderr


def test_only_verbs_that_exist_are_offered(monkeypatch):
    monkeypatch.setattr(command_line.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        command_line.parse(["check"])


def test_overrides_may_stand_anywhere():
    words = ["pretrain", "seed=1", "--config", "mini", "booth.levels=[1, 2]", "--out", "x=y"]
    arguments = command_line.parse(words)
    assert arguments.overrides == ["seed=1", "booth.levels=[1, 2]"]
    assert (arguments.config, arguments.out) == ("mini", "x=y")


def test_overrides_may_stand_behind_each_list_of_folders():
    arguments = command_line.parse(["likeness", "a", "b", "seed=1", "--album", "c", "d", "num_seeds=2"])
    assert (arguments.folder, arguments.album) == (["a", "b"], ["c", "d"])
    assert sorted(arguments.overrides) == ["num_seeds=2", "seed=1"]


def test_an_override_is_no_weights():
    arguments = command_line.parse(["card", "--part", "parser", "num_people=2", "per_person=3"])
    assert (arguments.weights, sorted(arguments.overrides)) == (None, ["num_people=2", "per_person=3"])
    assert command_line.parse(["card", "weights/mini", "num_people=2"]).weights == "weights/mini"


@pytest.mark.parametrize("words", ["likeness seed=1", "likeness a --album seed=1", "ablate seed=1", "check seed=1"])
def test_overrides_are_no_folders(words, capsys):
    with pytest.raises(SystemExit):
        command_line.parse(words.split())
    assert "arguments are required: " in capsys.readouterr().err


@pytest.mark.parametrize("words", ["pretrain --sed 1", "pretrain word", "pretrain 1=2"])
def test_words_that_mean_nothing_are_refused(words, capsys):
    with pytest.raises(SystemExit) as caught:
        command_line.parse(words.split())
    assert caught.value.code == 2
    assert "unrecognized arguments" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("key 'x' is\n wrong"), 2, "key 'x' is wrong"),
        (AlbumFailed("the mesh is empty"), 1, "the mesh is empty"),
        (KeyboardInterrupt(), 130, "Interrupted; run the same command again to go on."),
        (command_line.Terminated(), 143, "Terminated; run the same command again to go on."),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "'a/b': No space left on device; mend that"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "Read-only file system; mend that"),
        (PermissionError(errno.EACCES, "Permission denied", "c"), 2, "'c': Permission denied; mend that"),
    ],
)
def test_every_foreseeable_end_is_one_line(verb, capsys, error, code, line):
    def fails(arguments: argparse.Namespace) -> int:
        raise error

    verb(fails)
    assert command_line.main(["check"]) == code
    text = capsys.readouterr().err
    assert text.startswith(line)
    assert text.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a fault"), OSError(errno.EIO, "Input/output error")])
def test_a_fault_of_ours_keeps_its_traceback(verb, error):
    def fails(arguments: argparse.Namespace) -> int:
        raise error

    verb(fails)
    with pytest.raises(type(error)):
        command_line.main(["check"])


def test_verbose_shows_where_a_mistake_was_found(verb):
    def fails(arguments: argparse.Namespace) -> int:
        raise UserError("wrong")

    verb(fails)
    with pytest.raises(UserError):
        command_line.main(["-v", "check"])


def test_reader_that_goes_away():
    script = "import sys; from launch.__main__ import main; sys.exit(main(['check']))"
    process = subprocess.Popen(
        [sys.executable, "-c", script], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_real_signals(tmp_path, number, code):
    script = textwrap.dedent(
        """
        import sys, time
        from pathlib import Path
        from launch import __main__ as command_line

        def check(arguments):
            "Waits."
            Path(sys.argv[1]).touch()
            time.sleep(60)

        command_line.check = check
        sys.exit(command_line.main(["check"]))
        """
    )
    ready = tmp_path / "ready"
    process = subprocess.Popen([sys.executable, "-c", script, str(ready)], cwd=PROJECT_ROOT, stderr=subprocess.PIPE)
    while not ready.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, text = process.communicate(timeout=30)
    assert process.returncode == code
    assert b"run the same command again" in text
    assert b"Traceback" not in text


def test_environment_is_set_before_libraries_load_and_the_users_settings_stay(monkeypatch, verb):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    seen = {}

    def look(arguments: argparse.Namespace) -> int:
        seen.update(os.environ)
        return 0

    verb(look)
    assert command_line.main(["check"]) == 0
    assert seen["OMP_WAIT_POLICY"] == "passive"
    assert seen["TOKENIZERS_PARALLELISM"] == "true"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["run", "no_such_album"], "no_such_album"),
        (["run", "no_such_album", "--config", "no_such_config"], "No configuration 'no_such_config'"),
        (["run", "no_such_album", "boot.x=1"], "Did you mean 'booth'?"),
        (["run", "no_such_album", "--out", ""], "no_such_album"),
        (["studio", "num_people=0"], "num_people"),
        (["studio", "num_peple=1"], "Did you mean 'num_people'?"),
        (["pretrain", "num_peple=1"], "Did you mean 'num_people'?"),
        (["evaluate", "no_such.glb", "no_such_album"], "no_such_album"),
        (["report", "no_such_folder"], "no_such_folder is not a folder"),
        (["bench", "no_such_benchmark"], "no benchmark 'no_such_benchmark'"),
    ],
)
def test_mistakes_of_every_verb(words, line, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command_line.main(words) == 2
    text = capsys.readouterr().err
    assert line in text
    assert text.count("\n") == 1


def test_check_succeeds_here(capsys):
    assert command_line.main(["check"]) == 0
    assert "torch" in capsys.readouterr().out


def test_evaluate_prints_the_metrics_of_an_avatar(tmp_path, capsys):
    """An avatar equal to its ground truth has no distance to it."""
    from modules.geometry.mesh import TexturedMesh, save_textured_mesh

    corners = np.array([[0, 0, 0], [0.4, 0, 0], [0, 1.7, 0], [0, 0, 0.4]], dtype=np.float32)
    mesh = TexturedMesh(
        vertices=corners,
        faces=np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]], dtype=np.int32),
        uv=np.array([[0, 0], [1, 0], [0, 1], [1, 1]], dtype=np.float32),
        texture=np.full((8, 8, 3), 128, dtype=np.uint8),
    )
    truth = tmp_path / "album" / "ground_truth"
    truth.mkdir(parents=True)
    save_textured_mesh(truth / "avatar.glb", mesh)
    Image.fromarray(np.ones((8, 8), dtype=np.uint8)).save(truth / "labels.png")
    (truth / "labels.json").write_text('{"assets": ["skin", "dress"]}')
    words = ["evaluate", str(truth / "avatar.glb"), str(tmp_path / "album"), "num_samples=500", "resolution=64"]
    assert command_line.main(words) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["corrected"]["chamfer_cm"] == pytest.approx(0, abs=1e-3)


def test_several_albums_and_overrides_in_any_order(tmp_path: Path) -> None:
    arguments = command_line.parse(["run", "seed=1", "a", "b", "texture.steps=3", "--out", str(tmp_path)])
    assert arguments.album == ["a", "b"]
    assert sorted(arguments.overrides) == ["seed=1", "texture.steps=3"]
    with pytest.raises(SystemExit):
        command_line.parse(["run", "seed=1"])


def test_a_name_fits_one_album_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    assert command_line.main(["run", str(tmp_path / "a"), str(tmp_path / "b"), "--name", "c"]) == 2
    assert "--name fits one album only" in capsys.readouterr().err
