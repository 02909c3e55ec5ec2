"""The dataset's page as files: what is in them, what is escaped, and what is left alone."""

from __future__ import annotations

import json
import re
import urllib.parse
from pathlib import Path

import pytest

from launch.farm.gallery import FOLDER, LINKS, render_page, write_gallery
from launch.farm.records import STATES, AlbumRecord, State
from launch.farm.summary import MAX_FAILURES, Summary

HOSTILE = "\"'><img src=x onerror=alert(1)></script><!-- & \u2028 `${1}`"


def record(name: str, state: State = "done", **changes) -> AlbumRecord:
    files = [{"path": path, "size": 1, "sha256": "0123456789abcdef" * 4} for path in ("report.html", "turntable.png")]
    return AlbumRecord(name=name, source="photos", state=state, files=files if state == "done" else (), **changes)


def rows_of(dataset: Path, index: int) -> tuple[list[str], list[list]]:
    """Figures and rows of one file, read as the script that it is: three arguments, each of them JSON."""
    text = (dataset / FOLDER / f"rows-{index:04d}.js").read_text(encoding="ascii")
    number, figures, rows = json.loads("[" + re.fullmatch(r"galleryRows\((.*)\);\n", text, re.DOTALL)[1] + "]")
    assert number == index
    return figures, rows


def summary_of(dataset: Path) -> dict:
    text = (dataset / FOLDER / "summary.js").read_text(encoding="ascii")
    return json.loads(re.fullmatch(r"gallerySummary\((.*)\);\n", text, re.DOTALL)[1])


def times(dataset: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (dataset / FOLDER).iterdir() if path.suffix == ".js"}


def test_rows_are_what_the_records_say(tmp_path: Path) -> None:
    done = record(
        "ada",
        metrics={"avatar": {"psnr_fg": 21.5, "chamfer_cm": 1.25}, "template": {"chamfer_cm": 9.0, "psnr": 1.0}},
        timings={"booth": 10.0, "geometry": 20.25},
        finished_at="2026-01-02T03:04:05+00:00",
        attempts=2,
    )
    path = write_gallery(tmp_path, [done, record("bob", "failed", reason="It has no photos"), record("c", "waiting")],
                         Summary(counts={"done": 1, "failed": 1, "waiting": 1}))  # fmt: skip
    assert path == tmp_path / "index.html"
    figures, rows = rows_of(tmp_path, 0)
    assert figures == ["chamfer_cm", "psnr_fg"]
    report_only = 1 << [name for name, _ in LINKS].index("report.html")
    assert rows == [
        ["ada", 0, STATES.index("done"), 0, 30.2, done.finished_at, 2, report_only, "01234567", 1.25, 21.5],
        ["bob", 0, STATES.index("failed"), "It has no photos", 0, 0, 0, 0, 0, None, None],
        ["c", 0, STATES.index("waiting"), 0, 0, 0, 0, 0, 0, None, None],
    ]


def test_summary_says_how_the_farm_stands(tmp_path: Path) -> None:
    summary = Summary(
        counts={"done": 3, "running": 2},
        albums_per_hour=12.5,
        seconds_left=float("inf"),
        workers=2,
        failures=[("ada", "x" * 5000)],
    )
    write_gallery(tmp_path, [], summary)
    data = summary_of(tmp_path)
    counts = dict(zip(data["states"], data["counts"], strict=True))
    assert counts == {"waiting": 0, "running": 2, "done": 3, "failed": 0}
    assert (data["over"], data["albums_per_hour"]) == (False, 12.5)
    assert data["seconds_left"] is data["gpu_percent"] is None
    assert data["files"] == []
    assert len(data["failures"][0][1]) < 1000
    assert Summary(counts={"done": 3, "failed": 1}).over


def test_nothing_hostile_is_more_than_text(tmp_path: Path) -> None:
    names = [HOSTILE, "a/../b", "white space?#%", "na\u00efve", b"broken-\xff".decode("utf-8", "surrogateescape")]
    records = [record(name, "failed", reason=HOSTILE) for name in names]
    write_gallery(tmp_path, records, Summary(counts={"failed": 5}, failures=[(HOSTILE, HOSTILE)]))
    _, rows = rows_of(tmp_path, 0)
    assert [row[0] for row in rows] == names
    assert summary_of(tmp_path)["failures"] == [[HOSTILE, HOSTILE]]
    for name, row in zip(names, rows, strict=True):
        assert re.fullmatch(r"[\w.~%-]+", row[1], re.ASCII)
        assert urllib.parse.unquote(row[1], errors="surrogateescape") == name
    # The scripts hold no line end that a browser takes for one, and nothing but ASCII; the page holds no name at all.
    assert HOSTILE not in (tmp_path / "index.html").read_text(encoding="utf-8")


def test_the_datasets_name_is_escaped() -> None:
    page = render_page("</title><script>alert(1)</script>\udcff")
    assert "<title>&lt;/title&gt;&lt;script&gt;" in page
    assert page.count("<script>") == 1
    assert "default-src 'none'" in page
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in page


def test_rows_are_split_and_a_file_that_stays_the_same_is_left_alone(tmp_path: Path) -> None:
    records = [record(f"album-{index:02d}", "waiting") for index in range(10)]
    summary = Summary(counts={"waiting": 10})
    write_gallery(tmp_path, records, summary, rows_per_file=4)
    assert [len(rows_of(tmp_path, index)[1]) for index in range(3)] == [4, 4, 2]
    before, files = times(tmp_path), summary_of(tmp_path)["files"]
    assert [name for name, _ in files] == ["rows-0000.js", "rows-0001.js", "rows-0002.js"]

    records[5] = record("album-05", metrics={"avatar": {"psnr": 20.0}})
    write_gallery(tmp_path, records, Summary(counts={"waiting": 9, "done": 1}), rows_per_file=4)
    after = times(tmp_path)
    assert {name for name in before if after[name] != before[name]} == {"rows-0001.js", "summary.js"}
    changed = [was != now for was, now in zip(files, summary_of(tmp_path)["files"], strict=True)]
    assert changed == [False, True, False]


def test_files_of_rows_that_are_needed_no_more_go(tmp_path: Path) -> None:
    records = [record(f"album-{index}", "waiting") for index in range(5)]
    write_gallery(tmp_path, records, Summary(), rows_per_file=2)
    write_gallery(tmp_path, records[:2], Summary(), rows_per_file=2)
    assert set(times(tmp_path)) == {"rows-0000.js", "summary.js"}
    assert [name for name, _ in summary_of(tmp_path)["files"]] == ["rows-0000.js"]
    assert not list(tmp_path.rglob("*.tmp"))


def test_figures_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    write_gallery(tmp_path, [record("a", metrics={"avatar": {"psnr": float("nan"), "new": 1.0}})], Summary())
    figures, rows = rows_of(tmp_path, 0)
    assert figures == ["psnr", "new"]
    assert rows[0][-2:] == [None, 1.0]


def test_summary_checks_its_fields() -> None:
    with pytest.raises(ValueError, match="counts must be of waiting"):
        Summary(counts={"lost": 1})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=f"at most {MAX_FAILURES}"):
        Summary(failures=[("a", "b")] * (MAX_FAILURES + 1))
