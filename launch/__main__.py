"""The command line: `python -m launch VERB ...`.

A verb is a thin function that imports what it needs only when it runs, so that `--help` and a misspelt key answer
at once. A user's mistake ends in one line on standard error and exit code 2; an interrupt can be taken up again by
the same command.
"""

from __future__ import annotations

import argparse
import errno
import importlib.util
import json
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from launch.checking import add_arguments as add_check_arguments
from launch.checking import check
from launch.composition import add_verbs as add_composition_verbs
from launch.farm.verbs import add_verbs as add_farm_verbs
from launch.importing import add_verb as add_import_verb
from launch.preparing import add_verbs as add_preparing_verbs
from launch.results import one_line, print_results
from launch.review.verb import add_verb as add_review_verb
from launch.slurm import add_verbs as add_slurm_verbs
from launch.tuning_verb import add_verb as add_tune_verb
from launch.weights_verbs import add_verbs as add_weights_verbs
from modules.errors import AlbumFailed, UserError

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
OVERRIDE = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)
OVERRIDES_HELP = "key=value ... overrides the configuration, for example: seed=1 booth.joint_phase.steps=200"


class Terminated(SystemExit):
    """SIGTERM: ends like an interrupt, with the exit code that a shell expects."""

    def __init__(self) -> None:
        super().__init__(EXIT_TERMINATED)


def run(arguments: argparse.Namespace) -> int:
    """One album, or a pack of several, through all stages."""
    from trainer.config import load_config

    config = load_config(arguments.config, [*arguments.overrides, *_out_override(arguments)])
    albums = [_folder(album) for album in arguments.album]
    if arguments.name and len(albums) > 1:
        raise UserError("--name fits one album only: leave it out, and each result has its album's name.")
    # Only now: a misspelt key shall not wait for Lightning and diffusers.
    from trainer.pipeline import run_album, run_pack

    alone = len(albums) == 1
    results = [run_album(albums[0], config, name=arguments.name)] if alone else run_pack(albums, config)
    return 0 if print_results(results) else EXIT_FAILED


def studio(arguments: argparse.Namespace) -> int:
    """Synthetic people, their albums and their ground truth."""
    from datamodules.studio.config import StudioConfig
    from trainer.config import config_to_dict, load_dataclass

    config = load_dataclass(StudioConfig, None, arguments.overrides)
    if arguments.try_on:
        from datamodules.pieces import parse_pieces
        from datamodules.studio.try_on import write_try_on

        print(write_try_on(parse_pieces(arguments.try_on), Path(arguments.out)))
        return 0
    from datamodules.studio.album_writer import run_studio

    for folder in run_studio(Path(arguments.out), **config_to_dict(config)):
        print(folder)
    return 0


def evaluate(arguments: argparse.Namespace) -> int:
    """Metrics of an avatar against the ground truth of its album, as JSON."""
    from trainer.config import load_dataclass
    from trainer.evaluation_config import EvaluationConfig

    config = load_dataclass(EvaluationConfig, None, arguments.overrides)
    album = _folder(arguments.album)
    from modules.geometry.mesh import load_textured_mesh
    from trainer.evaluation import evaluate_avatar
    from trainer.ground_truth import load_ground_truth

    truth = load_ground_truth(album)
    if truth is None:
        raise UserError(f"'{album}' has no ground_truth/avatar.glb to measure against.")
    print(json.dumps(evaluate_avatar(load_textured_mesh(Path(arguments.avatar)), truth, config), indent=2))
    return 0


def likeness(arguments: argparse.Namespace) -> int:
    """How like the album the personalised model draws, against the model before: colours of assets, attention maps."""
    from trainer.config import load_dataclass
    from trainer.likeness_config import LikenessConfig

    config = load_dataclass(LikenessConfig, None, arguments.overrides)
    folders, albums = [Path(folder) for folder in arguments.folder], [_folder(album) for album in arguments.album or []]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: give an album's output, for example out/ALBUM.")
    if albums and len(albums) != len(folders):
        raise UserError(
            f"--album names {len(albums)} folders for {len(folders)} outputs: give one for each, in the same order."
        )
    from trainer.likeness import likeness_table, measure_likeness

    sources: list[Path | None] = [*albums] or [None] * len(folders)
    pairs = zip(folders, sources, strict=True)
    print(likeness_table({str(folder): measure_likeness(folder, album, config) for folder, album in pairs}))
    return 0


def ablate(arguments: argparse.Namespace) -> int:
    """The same albums with parts of the method left out or exchanged, as a table."""
    from trainer.ablation_variants import choose_variants, variant_config
    from trainer.config import load_dataclass
    from trainer.likeness_config import LikenessConfig

    prefix = "likeness."
    words = [word.removeprefix(prefix) for word in arguments.overrides if word.startswith(prefix)]
    settings = load_dataclass(LikenessConfig, None, words)
    overrides = [word for word in arguments.overrides if not word.startswith(prefix)]
    variants = choose_variants(arguments.variants.split(",") if arguments.variants else (), arguments.table)
    albums = [_folder(album) for album in arguments.album]
    for variant in variants:
        variant_config(variant, arguments.config, overrides, arguments.out)
    from trainer.ablation import ablation_table, run_ablation

    document = run_ablation(
        variants,
        albums,
        config=arguments.config,
        overrides=overrides,
        out=Path(arguments.out),
        booth_only=arguments.booth_only,
        likeness=settings,
        table=arguments.table,
        reuse=[_folder(folder) for folder in arguments.reuse or ()],
    )
    print(ablation_table(document))
    whole = all(
        not line["failed"] and not any(album["failed"] for album in line["albums"].values())
        for line in document["variants"]
    )
    return 0 if whole else EXIT_FAILED


def report(arguments: argparse.Namespace) -> int:
    """The report of a finished album, written again from its artifacts."""
    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give an album's output, for example out/ALBUM.")
    from trainer.pipeline import run_report

    print(run_report(folder))
    return 0


def bench(arguments: argparse.Namespace) -> int:
    """How fast this machine is at the parts of a run, as JSON in DIR/bench.json."""
    from launch.bench import run_benchmarks

    print(run_benchmarks(Path(arguments.out), arguments.names))
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of every verb whose implementation is there."""
    description = "Turns personal photo albums into textured 3D avatars."
    parser = argparse.ArgumentParser(prog="python -m launch", description=description, epilog=OVERRIDES_HELP)
    parser.add_argument("-v", "--verbose", action="store_true", help="log more, and show the traceback of any error")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def add(verb: Callable[[argparse.Namespace], int], module: str, *, takes_overrides: bool = True) -> Any:
        if importlib.util.find_spec(module) is None:
            return None
        summary = (verb.__doc__ or "").strip().splitlines()[0]
        child = verbs.add_parser(
            verb.__name__, help=summary, description=summary, epilog=OVERRIDES_HELP if takes_overrides else None
        )
        child.set_defaults(verb=verb, takes_overrides=takes_overrides)
        return child

    if child := add(run, "trainer.pipeline"):
        child.add_argument(
            "album",
            metavar="ALBUM",
            nargs="+",
            help="a folder of photos; masks and words are optional; several share a pack",
        )
        child.add_argument("--config", metavar="NAME", help="configs/NAME.yaml or a YAML file")
        child.add_argument("--out", metavar="DIR", help="where results go (default: out)")
        child.add_argument("--name", metavar="NAME", help="name of the result's folder (default: the album's)")
    if child := add(studio, "datamodules.studio.album_writer"):
        child.add_argument("--out", metavar="DIR", default="out/studio", help="where albums go (default: %(default)s)")
        child.add_argument(
            "--try-on",
            metavar="ALBUM:ASSET,ASSET",
            nargs="+",
            help="no albums, but the ground truth of a person made of pieces of studio albums, in DIR/ground_truth",
        )
    add_composition_verbs(add)
    add_farm_verbs(add)
    add_slurm_verbs(add)
    add_tune_verb(add)
    add_import_verb(add)
    add_review_verb(add)
    add_preparing_verbs(add)
    add_weights_verbs(add)
    if child := add(evaluate, "trainer.evaluation"):
        child.add_argument("avatar", metavar="AVATAR", help="a GLB file, for example out/ALBUM/avatar.glb")
        child.add_argument("album", metavar="ALBUM", help="album folder with ground_truth/")
    if child := add(likeness, "trainer.likeness"):
        child.add_argument("folder", metavar="FOLDER", nargs="+", help="albums' outputs, for example out/ALBUM")
        child.add_argument("--album", metavar="ALBUM", nargs="+", help="their albums, in the same order, for the truth")
    if child := add(ablate, "trainer.ablation"):
        child.add_argument("album", metavar="ALBUM", nargs="+", help="album folders; they share a pack where they can")
        child.add_argument("--config", metavar="NAME", help="configs/NAME.yaml or a YAML file")
        child.add_argument("--out", metavar="DIR", default="out/ablation", help="where it goes (default: %(default)s)")
        child.add_argument("--variants", metavar="A,B", help="only these (default: all)")
        child.add_argument("--booth-only", action="store_true", help="stop after the personalisation: only its figures")
        child.add_argument(
            "--table",
            choices=("method", "guidance"),
            default="method",
            help="parts of the method, or ways to guide the same personalised model (default: %(default)s)",
        )
        child.add_argument(
            "--reuse",
            metavar="DIR",
            action="append",
            help="the output of other runs, whose finished stages are taken over",
        )
    if child := add(report, "trainer.pipeline", takes_overrides=False):
        child.add_argument("folder", metavar="FOLDER", help="an album's output, for example out/ALBUM")
    if child := add(bench, "launch.bench", takes_overrides=False):
        child.add_argument("names", metavar="NAME", nargs="*", help="only these (default: all of tests/benchmarks)")
        child.add_argument("--out", metavar="DIR", default="out", help="where bench.json goes (default: %(default)s)")
    if child := add(check, "launch.preflight"):
        add_check_arguments(child)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse; overrides may stand anywhere after the verb, and end up in `.overrides`."""
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    overrides = [word for word in rest if OVERRIDE.fullmatch(word)]
    unknown = [word for word in rest if word not in overrides] or ([] if arguments.takes_overrides else overrides)
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    for name in ("folder", "album", "albums", "pieces"):
        if isinstance(words := getattr(arguments, name, None), list):
            # Overrides that stand behind the albums look like further albums to argparse.
            taken = [word for word in words if OVERRIDE.fullmatch(word) and not Path(word).is_dir()]
            setattr(arguments, name, [word for word in words if word not in taken])
            overrides = [*taken, *overrides]
            if len(taken) == len(words):
                parser.error(f"the following arguments are required: {name.upper()}")
    if isinstance(weights := getattr(arguments, "weights", None), str) and OVERRIDE.fullmatch(weights):
        # The same for an optional word.
        arguments.weights = None
        overrides = [weights, *overrides]
    arguments.overrides = overrides
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and turn every foreseeable end into an exit code and at most one line."""
    _prepare_environment()
    arguments = parse(sys.argv[1:] if argv is None else argv)
    level = logging.INFO if arguments.verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s: %(message)s")
    former = signal.signal(signal.SIGTERM, _terminate)
    try:
        code: int = arguments.verb(arguments)
        sys.stdout.flush()
        return code
    except (UserError, AlbumFailed) as error:
        if arguments.verbose:
            raise
        return _end(str(error), EXIT_FAILED if isinstance(error, AlbumFailed) else EXIT_USER_ERROR)
    except KeyboardInterrupt:
        return _end("Interrupted; run the same command again to go on.", EXIT_INTERRUPTED)
    except Terminated:
        return _end("Terminated; run the same command again to go on.", EXIT_TERMINATED)
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; keep the interpreter from complaining at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except OSError as error:
        if arguments.verbose or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        where = f"'{error.filename}': " if error.filename else ""
        return _end(f"{where}{error.strerror}; mend that and run the same command again to go on.", EXIT_USER_ERROR)
    finally:
        signal.signal(signal.SIGTERM, former)


def _prepare_environment() -> None:
    """Settings that libraries read when they are loaded; what the user has set stays."""
    for name, value in (
        # Busy-waiting threads make a shared machine several times slower.
        ("OMP_WAIT_POLICY", "passive"),
        ("TOKENIZERS_PARALLELISM", "false"),
        ("HF_HUB_DISABLE_TELEMETRY", "1"),
        ("HF_HUB_DISABLE_PROGRESS_BARS", "1"),
        ("TRANSFORMERS_VERBOSITY", "error"),
        ("DIFFUSERS_VERBOSITY", "error"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True"),
    ):
        os.environ.setdefault(name, value)


def _terminate(number: int, frame: Any) -> NoReturn:
    # Slurm sends it more than once, and the first is enough.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _end(message: str, code: int) -> int:
    print(one_line(" ".join(message.split())), file=sys.stderr)
    return code


def _folder(path: str) -> Path:
    """An album's folder, checked before anything heavy is loaded."""
    if not Path(path).is_dir():
        raise UserError(f"{path} is not a folder: give the folder that holds the album's photos.")
    return Path(path)


def _out_override(arguments: argparse.Namespace) -> list[str]:
    return [f"out={arguments.out}"] if arguments.out else []


if __name__ == "__main__":
    sys.exit(main())
