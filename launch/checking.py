"""The verb `check`: what this machine offers, and whether an album will do before hours are spent on it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modules.errors import UserError

if TYPE_CHECKING:
    from datamodules.assets import PreparedAlbum
    from launch.doctor import Examination
    from launch.estimate import Estimate
    from trainer.config import RunConfig

_EXIT_FAILED, _EXIT_USER_ERROR = 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Patient:
    """An album, and what was found out about it; `error` where it cannot be used at all."""

    folder: Path
    album: PreparedAlbum | None = None
    found: Examination | None = None
    has_truth: bool = False
    error: str = ""


def check(arguments: argparse.Namespace) -> int:
    """What this machine offers; with albums, whether they will do, what to add, and how long a run will take."""
    albums, json_wanted = [Path(album) for album in arguments.album], arguments.json
    if not albums:
        for option, given in (
            ("--json", json_wanted),
            ("--config", arguments.config),
            ("--no-timing", arguments.no_timing),
        ):
            if given:
                raise UserError(f"{option} goes with albums: name a folder of photos, or leave it out.")
        from launch.preflight import print_checks, run_checks

        return 0 if print_checks(run_checks(Path(arguments.out or "out"))) else _EXIT_FAILED
    from trainer.config import load_config

    out = [f"out={arguments.out}"] if arguments.out else []
    config = load_config(arguments.config, [*arguments.overrides, *out])
    for album in albums:
        if not album.is_dir():
            raise UserError(f"{album} is not a folder: give the folder that holds the album's photos.")
    return _check_albums(albums, config, arguments)


def add_arguments(child: argparse.ArgumentParser) -> None:
    """The arguments of `check`."""
    child.add_argument(
        "album",
        metavar="ALBUM",
        nargs="*",
        # Not a list: overrides without an album are refused by those who parse.
        default=(),
        help="folders of photos to look at; without one, the machine is looked at",
    )
    child.add_argument("--config", metavar="NAME", help="configs/NAME.yaml or a YAML file that a run would use")
    child.add_argument("--out", metavar="DIR", help="where results would go (default: out)")
    child.add_argument("--no-timing", action="store_true", help="do not measure what a run takes on this machine")
    child.add_argument("--json", action="store_true", help="print JSON")


def _check_albums(albums: Sequence[Path], config: RunConfig, arguments: argparse.Namespace) -> int:
    from launch.doctor import advise, describe

    patients = [_examine(album, config) for album in albums]
    estimates, untimed = _estimates(patients, config, wanted=not arguments.no_timing)
    document = []
    for patient in patients:
        if patient.found is None:
            document.append({"album": str(patient.folder), "error": patient.error})
            print(f"{patient.error}.", file=sys.stderr)
            continue
        estimate = estimates.get(patient.folder)
        document.append(_as_json(patient, estimate, untimed))
        if not arguments.json:
            lines = [*describe(patient.found), *_time_lines(estimate, untimed), *advise(patient.found)]
            print("\n".join(lines))
    if arguments.json:
        print(json.dumps({"albums": document}, indent=1, ensure_ascii=False))
    if any(patient.found is None for patient in patients):
        return _EXIT_USER_ERROR
    return 0 if all(patient.found.will_do for patient in patients if patient.found) else _EXIT_FAILED


def _examine(folder: Path, config: RunConfig) -> _Patient:
    from datamodules.overrides import OVERRIDES_FILE, read_overrides
    from datamodules.unsaved_album import prepare_unsaved
    from launch.doctor import examine
    from launch.estimate import model_cells
    from trainer.config import PROJECT_ROOT
    from trainer.ground_truth import load_ground_truth

    try:
        # What was decided with `review` counts, as it would in a run.
        decisions = read_overrides(
            Path(config.out) / folder.resolve().name / OVERRIDES_FILE, config.album.view_vocabulary
        )
        album = prepare_unsaved(
            folder, config.album, PROJECT_ROOT, overrides=decisions, announce=lambda line: print(line, file=sys.stderr)
        )
        has_truth = load_ground_truth(folder) is not None
    except UserError as error:
        return _Patient(folder=folder, error=" ".join(str(error).rstrip(".").split()))
    found = examine(album, model_cells(config), config.album.selection)
    return _Patient(folder=folder, album=album, found=found, has_truth=has_truth)


def _estimates(patients: Sequence[_Patient], config: RunConfig, *, wanted: bool) -> tuple[dict[Path, Estimate], str]:
    """By folder; and why there are none."""
    well = [patient for patient in patients if patient.album is not None]
    if not wanted or not well:
        return {}, "not measured"
    from launch.estimate import estimate, num_subjects
    from launch.step_costs import measure

    if sys.stderr.isatty():
        print("A few steps of each training are timed; --no-timing leaves that out.", file=sys.stderr)
    # The machine is measured once, with the album that has the most parts.
    largest = max((patient.album for patient in well if patient.album), key=lambda album: len(album.asset_names))
    try:
        costs = measure(config, largest, {num_subjects(config, has_truth=patient.has_truth) for patient in well})
    except UserError as error:
        return {}, " ".join(str(error).rstrip(".").split())
    return {
        patient.folder: estimate(
            costs,
            config,
            num_assets=len(patient.album.asset_names),
            gender=patient.album.gender,
            has_truth=patient.has_truth,
        )
        for patient in well
        if patient.album is not None
    }, ""


def _time_lines(found: Estimate | None, untimed: str) -> list[str]:
    if found is None:
        return [f"  time and memory of a run: {untimed}"]
    crowded = ""
    if found.crowded_seconds > 1.3 * found.seconds:
        crowded = f"; about {_duration(found.crowded_seconds)} with what else runs here now"
    parts = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in found.parts.items() if seconds >= 1)
    how = (
        "a few steps of each training" if found.whole_steps else "single images, since whole steps would take long here"
    )
    lines = [
        f"  time of a run on this machine ({found.device}): about {_duration(found.seconds)}{crowded}",
        f"    {parts}",
        f"  memory: about {found.memory_gib:.1f} GiB"
        + ("" if found.free_gib is None else f", of {found.free_gib:.1f} GiB that are free"),
        f"    both rest on {how}, timed now; believe them within a factor of two",
    ]
    if found.free_gib is not None and found.memory_gib > found.free_gib:
        lines.append("    that is more than is free: end other programs, or run it on a larger machine")
    return lines


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} days"


def _as_json(patient: _Patient, estimate: Estimate | None, untimed: str) -> dict[str, Any]:
    found = patient.found
    assert found is not None
    plain = dataclasses.asdict(found)
    for name in ("lost_photos", "lost_parts"):
        plain[name] = [{"name": item.name, "reason": item.reason} for item in getattr(found, name)]
    return {
        "album": str(patient.folder),
        **plain,
        "will_do": found.will_do,
        "verdict": found.verdict,
        "estimate": None if estimate is None else dataclasses.asdict(estimate),
        "no_estimate_because": untimed or None,
    }
