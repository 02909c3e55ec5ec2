"""The dataset's page: how the farm stands, and every album with its picture, state and figures.

    DATASET/index.html              the page: always the same text; it needs no server and asks no network
    DATASET/gallery/summary.js      how the farm stands and which files of rows there are; read by the page every 10 s
    DATASET/gallery/rows-0000.js    rows of the first albums; 0001 of the next ones

Rows are scripts because a page that was opened as a file may load nothing else. All text is data in them (JSON in
ASCII) and only ever becomes text of the page, so that no name can be taken for HTML or for a program.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import importlib.resources
import json
import math
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from launch.farm.records import ALBUMS, STATES, AlbumRecord
from launch.farm.summary import Summary
from trainer.artifacts import folder_errors, run_lock, write_text
from trainer.metrics_table import FIGURES

PAGE, FOLDER, SUMMARY = "index.html", "gallery", "summary.js"
ROWS_PER_FILE = 5000
PICTURE = "turntable.png"
# Files of an album that the page links to, with the link's word.
LINKS = (
    ("report.html", "Report"),
    ("avatar.glb", "GLB"),
    ("turntable.mp4", "Film"),
    ("traceback.txt", "Traceback"),
)
# Figures that a card shows, the others are for sorting.
ON_CARD = ("chamfer_cm", "psnr_fg", "colour_error")
_MAX_REASON = 600
_LINK_BITS = {path: 1 << index for index, (path, _) in enumerate(LINKS)}


def write_gallery(
    dataset: Path, records: Sequence[AlbumRecord], summary: Summary, *, rows_per_file: int = ROWS_PER_FILE
) -> Path:
    """Write DATASET/index.html and its data, every file whole or not at all; returns the page's path.

    A file of rows that would not change is left alone. Raises UserError when the disk is full.
    """
    folder = dataset / FOLDER
    # Two farms may fill one dataset; they write its page one after the other.
    with run_lock(folder, wait=True):
        files = []
        for index, start in enumerate(range(0, len(records), rows_per_file)):
            text = _rows_text(index, records[start : start + rows_per_file])
            path = folder / f"rows-{index:04d}.js"
            write_text(path, text)
            files.append([path.name, hashlib.sha256(text.encode("ascii")).hexdigest()[:16]])
        # The list of files comes after the files, and those that it names no more go last.
        write_text(folder / SUMMARY, f"gallerySummary({_data(_summary_data(summary, files))});\n")
        named = {name for name, _ in files}
        with folder_errors(folder):
            for path in folder.glob("rows-*.js"):
                if path.name not in named:
                    path.unlink(missing_ok=True)
        write_text(dataset / PAGE, render_page(dataset.resolve().name))
    return dataset / PAGE


def render_page(title: str) -> str:
    """The page's HTML; a policy in it admits only its own script and style, by their hashes, and what they load."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    own = importlib.resources.files("launch.farm")
    report_style = (importlib.resources.files("trainer") / "report.css").read_text(encoding="utf-8")
    style = report_style + (own / "gallery.css").read_text(encoding="utf-8")
    script = (own / "gallery.js").read_text(encoding="utf-8")
    return environment.from_string((own / "gallery.html").read_text(encoding="utf-8")).render(
        title=_sound(title),
        states=STATES,
        style=Markup(style),
        style_hash=_policy_hash(style),
        script=Markup(script),
        script_hash=_policy_hash(script),
    )


def _summary_data(summary: Summary, files: list[list[str]]) -> dict[str, Any]:
    return {
        "written_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "over": summary.over,
        "counts": [summary.count(state) for state in STATES],
        "albums_per_hour": _finite(summary.albums_per_hour),
        "seconds_left": _finite(summary.seconds_left),
        "elapsed_s": _finite(summary.elapsed_s),
        "gpu_percent": _finite(summary.gpu_percent),
        "gpu_memory_gib": _finite(summary.gpu_memory_gib),
        "memory_gib": _finite(summary.memory_gib),
        "workers": summary.workers,
        "failures": [[name, _shortened(reason)] for name, reason in summary.failures],
        "states": STATES,
        "albums": ALBUMS,
        "picture": PICTURE,
        "links": LINKS,
        "figures": {
            key: {
                "title": figure.title,
                "arrow": figure.arrow,
                "digits": figure.digits,
                "down": figure.higher_is_better,
            }
            for key, figure in FIGURES.items()
        },
        "on_card": ON_CARD,
        "files": files,
    }


def _rows_text(index: int, records: Sequence[AlbumRecord]) -> str:
    """A script that hands its rows to the page: lists, since names of fields would double their size."""
    figures = sorted({key for record in records for key in record.metrics.get("avatar", ())}, key=_figure_order)
    rows = ",\n".join(_data(_row(record, figures)) for record in records)
    return f"galleryRows({index}, {_data(figures)}, [\n{rows}\n]);\n"


def _row(record: AlbumRecord, figures: Sequence[str]) -> list[Any]:
    """[name, folder, state, reason, seconds, finished, attempts, links, picture, *figures]; 0 or null is "none".

    folder is the part of an address, 0 where it is the name itself; links has a bit for each of LINKS; picture is the
    picture's first eight hash digits, by which a browser notices a new one.
    """
    folder = urllib.parse.quote(os.fsencode(record.name), safe="")
    links, picture = 0, ""
    for file in record.files:
        links |= _LINK_BITS.get(file["path"], 0)
        if file["path"] == PICTURE:
            picture = str(file.get("sha256", ""))[:8] or "1"
    measured: Mapping[str, float] = record.metrics.get("avatar", {})
    return [
        record.name,
        0 if folder == record.name else folder,
        STATES.index(record.state),
        _shortened(record.reason) if record.reason else 0,
        round(record.seconds, 1),
        record.finished_at or 0,
        record.attempts,
        links,
        picture or 0,
        *(_finite(measured.get(key), digits=5) for key in figures),
    ]


def _figure_order(key: str) -> tuple[int, str]:
    known = list(FIGURES)
    return (known.index(key) if key in FIGURES else len(known), key)


def _shortened(reason: str) -> str:
    return reason if len(reason) <= _MAX_REASON else reason[: _MAX_REASON - 1] + "…"


def _finite(value: float | None, digits: int = 3) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _data(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _sound(text: str) -> str:
    """Without halves of characters, which a file name may hold and UTF-8 may not."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _policy_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
