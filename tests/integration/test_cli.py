"""What users do wrong and what machines do to them: exit code 2, one line that says what to do, nothing half done."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image

from launch.__main__ import main
from tests.integration.smoke import RESULTS, copy_until, launch, leftovers, smoke_overrides, start, tree
from trainer.config import load_config
from trainer.pipeline import AlbumResult

slow = pytest.mark.slow


def assert_one_line(errors: str, *parts: str) -> None:
    lines = [line for line in errors.splitlines() if " step " not in line]
    assert len(lines) == 1, errors
    for part in parts:
        assert part in lines[0]
    assert "Traceback" not in errors


@pytest.fixture
def run_here(capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """`python -m launch run WORDS` in this process, which saves the imports; gives (exit code, standard error)."""

    def run(*words: str | Path) -> tuple[int, str]:
        capfd.readouterr()
        code = main(["run", *map(str, words)])
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount a small file system of memory; `mount("size=1m")` gives its folder."""
    mounted: list[Path] = []

    def do(options: str) -> Path:
        if os.geteuid() != 0:
            pytest.skip("needs root to mount a small file system")
        folder = tmp_path / f"mount{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("this machine does not let tests mount a small file system")
        mounted.append(folder)
        return folder

    yield do
    for folder in mounted:
        subprocess.run(["umount", str(folder)], check=True)


# -- albums -----------------------------------------------------------------------------------------------------------


def empty_folder(album: Path, folder: Path) -> Path:
    folder.mkdir()
    return folder


def file_as_album(album: Path, folder: Path) -> Path:
    folder.write_text("no folder")
    return folder


def no_photos(album: Path, folder: Path) -> Path:
    (folder / "image").mkdir(parents=True)
    (folder / "image" / "notes.txt").write_text("no photo")
    return folder


def text_as_photo(album: Path, folder: Path) -> Path:
    shutil.copytree(album, folder)
    for path in (folder / "image").iterdir():
        path.write_text("This is not a photo.")
    return folder


def nobody(album: Path, folder: Path) -> Path:
    shutil.copytree(album, folder, ignore=shutil.ignore_patterns("mask"))
    for photo in (folder / "image").iterdir():
        Image.new("RGB", (96, 96), (128, 128, 128)).save(photo)
    return folder


def broken_description(album: Path, folder: Path) -> Path:
    shutil.copytree(album, folder)
    (folder / "album.json").write_text('{"gender": ')
    return folder


def half_a_truth(album: Path, folder: Path) -> Path:
    shutil.copytree(album, folder)
    (folder / "ground_truth" / "labels.json").unlink()
    return folder


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda album, folder: folder, "is not a folder"),
        (file_as_album, "is not a folder"),
        (empty_folder, "holds no photos"),
        (no_photos, "holds no photos"),
        (text_as_photo, "photo"),
        (nobody, "0 usable photos"),
        (broken_description, "album.json"),
        (half_a_truth, "labels.json"),
    ],
    ids=["missing", "file", "empty", "no_photos", "text_as_photo", "nobody", "description", "truth"],
)
def test_album_that_cannot_be_used(
    make: Callable[[Path, Path], Path], part: str, albums: list[Path], backbone: Path, tmp_path: Path, run_here
):
    album = make(albums[1], tmp_path / "my album")
    out = tmp_path / "out"
    code, errors = run_here(album, *smoke_overrides(out, backbone))
    assert code == 2
    assert_one_line(errors, part, "my album")
    assert leftovers(out) == []
    assert not any(name in "".join(tree(out)) for name in RESULTS)


def test_missing_folder_is_answered_by_the_real_command_line(tmp_path: Path):
    done = launch("run", tmp_path / "absent", "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, "absent", "is not a folder")
    assert not (tmp_path / "out").exists()


def test_one_photo_is_enough(albums: list[Path], backbone: Path, tmp_path: Path, run_here, smoke_run, smoke_out: Path):
    album = Path(shutil.copytree(albums[1], tmp_path / "one"))
    for path in [*(album / "image").iterdir(), *(album / "mask").iterdir()]:
        if not path.name.startswith("photo_00"):
            path.unlink()
    out = tmp_path / "out"
    shutil.copytree(smoke_out / ".cache", out / ".cache")
    code, errors = run_here(album, *smoke_overrides(out, backbone))
    assert code == 0, errors
    assert sorted(path.name for path in (out / "one").iterdir() if path.is_file()) == sorted([*RESULTS, ".lock"])
    assert leftovers(out) == []


def test_photos_of_any_shape_and_kind(
    albums: list[Path], backbone: Path, tmp_path: Path, run_here, smoke_run, smoke_out
):
    """A grey photo, a tall one and one with transparency, as albums of users have them."""
    album = Path(shutil.copytree(albums[1], tmp_path / "mixed"))
    photos = sorted((album / "image").iterdir())
    Image.open(photos[0]).convert("L").save(photos[0])
    Image.open(photos[1]).convert("RGBA").save(photos[1].with_suffix(".png"))
    photos[1].unlink()
    for path in [photos[2], *(album / "mask").glob("photo_02_*")]:
        picture = Image.open(path)
        picture.crop((20, 0, 70, 96)).save(path)
    out = tmp_path / "out"
    shutil.copytree(smoke_out / ".cache", out / ".cache")
    code, errors = run_here(album, *smoke_overrides(out, backbone))
    assert code == 0, errors
    assert (out / "mixed" / "avatar.glb").exists()


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("textur.steps=3", ["'textur'", "Did you mean 'texture'?"]),
        ("texture.step=3", ["step", "Did you mean"]),
        ("texture.steps=-1", ["texture", "steps", "-1"]),
        ("texture.steps=many", ["texture.steps", "many"]),
        ("geometry.grid.spacing_m=0", ["spacing_m", "0"]),
        ("geometry.guidance.method=magic", ["geometry.guidance.method", "magic"]),
        ("geometry.lr=0", ["geometry", "lr"]),
        ("texture.lr=-1", ["texture", "lr"]),
        ("geometry.cameras.head=-1", ["head"]),
        ("booth.num_prior_samples=-1", ["num_prior_samples"]),
        ("booth.num_synthetic_people=-1", ["num_synthetic_people"]),
        ("booth.samples_per_step=-1", ["samples_per_step"]),
        ("seed=-1", ["seed", "-1"]),
        ("backbone.path=/no/such/model", ["/no/such/model"]),
    ],
)
def test_setting_that_cannot_be_used(
    word: str, parts: list[str], albums: list[Path], backbone: Path, tmp_path: Path, run_here
):
    out = tmp_path / "out"
    code, errors = run_here(albums[1], *smoke_overrides(out, backbone, word))
    assert code == 2
    assert_one_line(errors, *parts)
    assert leftovers(out) == []
    assert not any(name in "".join(tree(out)) for name in RESULTS)


def test_missing_backbone_is_answered_by_the_real_command_line(albums: list[Path], tmp_path: Path):
    words = smoke_overrides(tmp_path / "out", tmp_path / "no model")
    done = launch("run", albums[1], *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_line(done.stderr, "no model", "backbone.path")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("preset", ["sd15", "sd21"])
def test_a_preset_whose_weights_are_not_there_says_how_to_get_them(
    preset: str, albums: list[Path], tmp_path: Path, run_here, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = ["--config", preset, "--out", tmp_path / "out", "album.working_resolution=64"]
    code, errors = run_here(albums[1], *words)
    assert code == 2
    model = load_config(preset).backbone.path
    assert_one_line(errors, f"backbone.path {model}", f"hf download {model}", "HF_ENDPOINT", "local folder")
    assert leftovers(tmp_path) == []


def test_truncated_weights_are_named(albums: list[Path], backbone: Path, tmp_path: Path, run_here):
    """As after a download that was cut short."""
    model = Path(shutil.copytree(backbone, tmp_path / "model"))
    weights = next((model / "unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    code, errors = run_here(albums[1], *smoke_overrides(tmp_path / "out", model))
    assert code == 2
    assert_one_line(errors, str(model), "unet")


# -- the machine ------------------------------------------------------------------------------------------------------


def test_file_in_the_place_of_the_output_folder(albums: list[Path], backbone: Path, tmp_path: Path, run_here):
    (tmp_path / "out").write_text("mine")
    code, errors = run_here(albums[1], *smoke_overrides(tmp_path / "out", backbone))
    assert code == 2
    assert_one_line(errors, "out", "in the way")
    assert (tmp_path / "out").read_text() == "mine"


def test_output_folder_without_permission(albums: list[Path], backbone: Path, mount, run_here):
    out = mount("size=1m,ro")
    code, errors = run_here(albums[1], *smoke_overrides(out, backbone))
    assert code == 2
    assert_one_line(errors, str(out))


@pytest.mark.parametrize("size_kib", [8, *(pytest.param(size, marks=slow) for size in (300, 500, 800, 1200, 2000))])
def test_disk_too_small_is_named_and_with_more_room_the_run_goes_on(
    size_kib: int, albums: list[Path], backbone: Path, mount, run_here, smoke_run: list[AlbumResult], smoke_out: Path
):
    """Room for: nothing; the assets; the shared images; and so on up to the texture's checkpoints."""
    folder = mount(f"size={size_kib}k")
    out = folder / "out"
    words = smoke_overrides(out, backbone)
    code, errors = run_here(albums[1], *words)
    assert code == 2, errors
    assert_one_line(errors, str(out), "full" if "full" in errors else "No space left")
    assert not any(path.suffix == ".tmp" for path in out.rglob("*"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(folder)], check=True)
    code, errors = run_here(albums[1], *words)
    assert code == 0, errors
    assert leftovers(out) == []
    assert (out / "man" / "avatar.glb").stat().st_size == pytest.approx(
        (smoke_out / "man" / "avatar.glb").stat().st_size, rel=0.1
    )


@pytest.mark.parametrize(
    ("function", "call"),
    [
        ("trainer.booth_training.fit", 1),
        pytest.param("trainer.booth_training.fit", 2, marks=slow),
        pytest.param("trainer.guided_training.fit", 1, marks=slow),
        pytest.param("trainer.guided_training.fit", 2, marks=slow),
        pytest.param("trainer.pipeline.read_textured", 1, marks=slow),
        pytest.param("trainer.pipeline.read_textured", 2, marks=slow),
        pytest.param("trainer.pipeline.read_textured", 4, marks=slow),
    ],
    ids=["tokens", "joint", "geometry", "texture", "export", "evaluate", "report"],
)
def test_disk_that_fills_up_during_a_run(
    function: str,
    call: int,
    albums: list[Path],
    backbone: Path,
    mount,
    run_here,
    smoke_run: list[AlbumResult],
    smoke_out: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """Somebody else takes all room at the moment when a stage is about to write its results."""
    folder = mount("size=64m")
    out = folder / "out"
    copy_until("booth", smoke_out, out)
    module, _, name = function.rpartition(".")
    inner = getattr(importlib.import_module(module), name)
    calls = 0

    def fills_up(*arguments, **options):
        nonlocal calls
        calls += 1
        result = inner(*arguments, **options)
        if calls == call:
            with contextlib.suppress(OSError), (folder / "ballast").open("wb", buffering=0) as file:
                while file.write(bytes(4096)) == 4096:
                    pass
        return result

    words = smoke_overrides(out, backbone)
    with monkeypatch.context() as patch:
        patch.setattr(function, fills_up)
        code, errors = run_here(albums[1], *words)
    assert code == 2, errors
    assert_one_line(errors, str(out), "full" if "full" in errors else "No space left")
    assert not any(path.suffix == ".tmp" for path in out.rglob("*"))
    (folder / "ballast").unlink()
    code, errors = run_here(albums[1], *words)
    assert code == 0, errors
    assert leftovers(out) == []
    for result in RESULTS:
        assert (out / "man" / result).stat().st_size > 0


def test_second_run_on_the_same_folder_is_turned_away(
    albums: list[Path], backbone: Path, tmp_path: Path, run_here, smoke_run, smoke_out: Path
):
    out = tmp_path / "out"
    copy_until("texture", smoke_out, out)
    words = smoke_overrides(out, backbone, "texture.steps=100000")
    first = start("run", albums[1], *words)
    try:
        deadline_s = time.monotonic() + 120
        while not any(out.glob(".packs/texture-*/checkpoints/last.ckpt")):
            assert first.poll() is None, first.communicate()[1]
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
        code, errors = run_here(albums[1], *words)
        assert code == 2
        assert_one_line(errors, "Another process", str(out / "man"))
        assert first.poll() is None
    finally:
        first.kill()
        first.communicate()


@pytest.mark.slow
def test_the_prior_is_trained_by_two_processes(tmp_path: Path) -> None:
    words = ["processes=2", "num_people=2", "images_per_person=2", "resolution=32", "num_images=16", "batch_size=4"]
    words += ["num_sketch_images=8", "channels=[16,32]", "text_width=32", "text_layers=1", "runtime.accelerator=cpu"]
    done = launch("pretrain", "--out", tmp_path / "out", *words)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "weights" / "training.json").read_text()) == {"images_seen": 16}
