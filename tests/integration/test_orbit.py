"""Renders all round, as files of an album."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.integration.smoke import config_of, leftovers, times, tree
from trainer.pipeline import AlbumResult, run_album, run_report


def orbit_of(folder: Path) -> list[str]:
    return tree(folder / "orbit") if (folder / "orbit").is_dir() else []


def test_orbit_comes_to_the_album_and_goes_again(
    smoke_run: list[AlbumResult], albums: list[Path], smoke_out: Path, backbone: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    woman = Path(shutil.copytree(smoke_out / "woman", out / "woman"))
    before = times(woman)

    def run(frames: int) -> None:
        run_album(albums[0], config_of(out, backbone, f"export.orbit_frames={frames}", "export.orbit_resolution=32"))
        assert leftovers(out) == []

    run(3)
    assert orbit_of(woman) == ["000.png", "001.png", "002.png", "cameras.json"]
    for name in orbit_of(woman):
        assert (woman / "orbit" / name).read_bytes() == (woman / "export" / "orbit" / name).read_bytes()
    after = times(woman)
    stages = {name.split("/")[0] for name in before if after[name] != before[name]}
    assert stages <= {"export", "report.html", "config.yaml", "turntable.mp4"}, "only the export is done again"

    run(2)
    assert orbit_of(woman) == ["000.png", "001.png", "cameras.json"]
    assert len(json.loads((woman / "orbit" / "cameras.json").read_text())["frames"]) == 2
    shutil.rmtree(woman / "orbit")
    run_report(woman)
    assert orbit_of(woman) == ["000.png", "001.png", "cameras.json"]

    run(0)
    assert not (woman / "orbit").exists()
    assert not (woman / "export" / "orbit").exists()
    assert tree(woman) == sorted(before)
