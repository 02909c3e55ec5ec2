"""The verb `submit`: a batch job of Slurm with a copy of the code and of the configuration as they are now."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from modules.errors import UserError

if TYPE_CHECKING:
    from launch.cluster_config import ClusterConfig
    from trainer.config import RunConfig

# The batch script of each kind, slurm/KIND.sh, and the verb that it runs.
KINDS = {"booth": "run", "farm": "farm", "array": "farm"}
SCRIPT, CONFIG, CODE, RECORD = "submit.sbatch", "config.yaml", "code", "submit.json"
_SETTING = re.compile(r"[A-Za-z_][\w.]*=.*", re.DOTALL)


def submit(arguments: argparse.Namespace) -> int:
    """A job for Slurm: its script, and the code and configuration as they are now, in a folder of its own."""
    from launch.cluster_config import has_controls
    from launch.snapshot import copy_code
    from trainer.artifacts import folder_errors, write_json, write_text
    from trainer.config import PROJECT_ROOT, save_config

    cluster = load_cluster(arguments.cluster)
    try:
        given = {"nodes": arguments.nodes, "time": arguments.time, "sbatch": (*cluster.sbatch, *arguments.sbatch)}
        cluster = dataclasses.replace(cluster, **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise UserError(f"submit: {error}.") from None
    if arguments.kind == "array" and cluster.nodes > 1:
        raise UserError(f"Each task of an array has one node, found {cluster.nodes}: use --sbatch=--array=1-N instead.")
    config = check_arguments(arguments.kind, arguments.arguments)
    name = arguments.name or arguments.kind
    if not re.fullmatch(r"[\w.+-]+", name):
        raise UserError(f"--name is {name!r}, expected letters, digits and .+-_ only.")
    folder = Path(arguments.folder) if arguments.folder else _new_folder(name)
    folder = folder.resolve()
    if folder.exists():
        raise UserError(f"{folder} is there already: choose another --folder.")
    if has_controls(f"{folder}{Path.cwd()}"):
        raise UserError(
            f"sbatch cannot read the path of {str(folder)!r} or of {str(Path.cwd())!r}: use another folder."
        )
    words = _with_config(arguments.arguments, folder / CONFIG)
    text = render(arguments.kind, words, cluster, name=name, folder=folder, workplace=Path.cwd(), root=PROJECT_ROOT)
    if arguments.dry_run:
        print(text, end="")
        return 0
    with folder_errors(folder):
        code = copy_code(PROJECT_ROOT, folder / CODE)
        save_config(config, folder / CONFIG)
        write_text(folder / SCRIPT, text)
    job = _sbatch(folder / SCRIPT)
    write_json(folder / RECORD, {"job": job, "kind": arguments.kind, "arguments": arguments.arguments, "code": code})
    # A pattern must stand outside of the quotes.
    log = shlex.quote(f"{folder}/{name}-{job}") + ("_*.out" if arguments.kind == "array" else ".out")
    print(f"Job {job} in {folder}")
    print(f"Follow it: squeue --job={job}; tail -F {log}")
    print(f"Save, end, and requeue it: scancel --signal=USR1 --batch {job}")
    print(f"Cancel it: scancel {job}")
    return 0


def load_cluster(name_or_path: str) -> ClusterConfig:
    """configs/clusters/NAME.yaml, or a YAML file. Raises UserError."""
    from launch.cluster_config import ClusterConfig
    from trainer.config import PROJECT_ROOT, load_dataclass

    shipped = {path.stem: path for path in sorted((PROJECT_ROOT / "configs" / "clusters").glob("slurm*.yaml"))}
    path = shipped.get(name_or_path, Path(name_or_path))
    if not path.is_file():
        raise UserError(f"No cluster '{name_or_path}': there are {', '.join(shipped)}, or give a YAML file.")
    return load_dataclass(ClusterConfig, path)


def check_arguments(kind: str, words: Sequence[str]) -> RunConfig:
    """The configuration that the arguments of the job's verb make, before the job waits in a queue for an error.

    Raises:
        UserError: a configuration, key, album or list of albums that does not exist, or an unknown option.
    """
    from trainer.config import load_config, load_dataclass

    verb = KINDS[kind]
    parser = _Parser(prog=f"submit {kind} --", add_help=False)
    parser.add_argument("albums", nargs="*")
    parser.add_argument("--config")
    parser.add_argument("--out")
    if verb == "run":
        parser.add_argument("--name")
    found, rest = parser.parse_known_args([*words])
    words_behind = [*found.albums, *rest]
    settings = [word for word in words_behind if _SETTING.fullmatch(word) and not Path(word).exists()]
    albums = [word for word in words_behind if word not in settings]
    for word in albums:
        if word.startswith("-"):
            parser.error(f"unrecognized arguments: {word}")
        if not Path(word).exists():
            raise UserError(
                f"{word} does not exist: give {'an album' if verb == 'run' else 'a folder or list of albums'}."
            )
    if not albums:
        parser.error(f"give {'albums' if verb == 'run' else 'a folder or list of albums'} behind the two dashes")
    if verb == "farm":
        from launch.farm.config import FarmConfig

        load_dataclass(FarmConfig, None, [word.removeprefix("farm.") for word in settings if word.startswith("farm.")])
        if not found.out:
            raise UserError("Say with --out where the dataset goes.")
    out = [f"out={found.out}"] if found.out and verb == "run" else []
    return load_config(found.config, [*(word for word in settings if not word.startswith("farm.")), *out])


def render(
    kind: str, words: Sequence[str], cluster: ClusterConfig, *, name: str, folder: Path, workplace: Path, root: Path
) -> str:
    """The batch script.

    words: arguments of the job's verb. name: of the job and its output. folder: of the run, with its `code`. workplace:
    where the job runs, so that relative paths mean what they mean here. root: the project that submits.
    """
    number = "%A_%a" if kind == "array" else "%j"
    # sbatch fills in what follows a per cent sign.
    output = f"{str(folder).replace('%', '%%')}/%x-{number}.out"
    options = [("job-name", name), ("output", output), ("chdir", str(workplace)), *cluster.options()]
    defaults = (
        line for line in (root / "slurm" / f"{kind}.sh").read_text().splitlines() if line.startswith("#SBATCH ")
    )
    taken = {option for option, _ in options} | {word.split("=")[0].removeprefix("--") for word in cluster.sbatch}
    lines = ["#!/usr/bin/env bash"]
    lines += [line for line in defaults if line.split()[1].split("=")[0].removeprefix("--") not in taken]
    lines += [f"#SBATCH --{option}={quoted(value)}" for option, value in options]
    lines += [
        f"#SBATCH {option}{'=' if equals else ''}{quoted(value)}" for option, equals, value in _split(cluster.sbatch)
    ]
    lines.append("")
    if cluster.modules:
        lines.append("type module >/dev/null 2>&1 || source /etc/profile")
        lines += [f"module load {shlex.quote(module)} || exit" for module in cluster.modules]
    environment = dict(cluster.environment)
    if cluster.container:
        environment["CONTAINER"] = shlex.join(cluster.container)
    # Not the container's concern, which has a Python of its own.
    if venv := cluster.venv or ("" if cluster.container else _own_environment()):
        environment["VENV"] = venv
    lines += [f"export {variable}={shlex.quote(value)}" for variable, value in environment.items()]
    lines += cluster.setup
    lines.append(shlex.join(["exec", "bash", str(folder / CODE / "slurm" / f"{kind}.sh"), *words]))
    return "\n".join(lines) + "\n"


def quoted(value: str) -> str:
    """A value as sbatch reads it in an #SBATCH line: quotes as in a shell, a backslash before what they would end."""
    if re.fullmatch(r"[\w@%+=:,./-]+", value):
        return value
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _split(options: Sequence[str]) -> list[tuple[str, bool, str]]:
    """ "--name=value" as its name, whether there is a value, and the value."""
    return [(name, bool(equals), value) for name, equals, value in (option.partition("=") for option in options)]


def _with_config(words: Sequence[str], path: Path) -> list[str]:
    """The words with `path` as the configuration, which has all of it."""
    kept, behind_option = [], False
    for word in words:
        if behind_option or word == "--config":
            behind_option = not behind_option
        elif not word.startswith("--config="):
            kept.append(word)
    return [*kept, "--config", str(path)]


def _own_environment() -> str:
    return sys.prefix if (Path(sys.prefix) / "bin" / "python").exists() else ""


def _new_folder(name: str) -> Path:
    first = Path("out") / "jobs" / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = [first, *(first.with_name(f"{first.name}-{number}") for number in range(2, 100))]
    return next(folder for folder in candidates if not folder.exists())


def _sbatch(script: Path) -> str:
    """Submit a script; returns the job's number."""
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", script.name], cwd=script.parent, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise UserError(
            f"There is no sbatch here: run this on a login node, or there: cd {script.parent} && sbatch {script.name}"
        ) from None
    if done.returncode != 0:
        raise UserError(f"sbatch has refused {script}: {' '.join(done.stderr.split())}")
    # Of a federation's clusters the name follows.
    return done.stdout.strip().split(";")[0]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog} {message}.")


def add_verbs(add: Any) -> None:
    """Put the verb into the command line; `add(verb, module)` makes a verb's parser."""
    if child := add(submit, "launch.cluster_config", takes_overrides=False):
        child.add_argument(
            "kind",
            metavar="KIND",
            choices=list(KINDS),
            help="booth: an album or a pack on N nodes; farm: many albums, with Ray; array: the same without",
        )
        child.add_argument(
            "arguments",
            metavar="ARGUMENT",
            nargs="+",
            help="behind two dashes: what `run` (booth) or `farm` (farm, array) is to be given",
        )
        child.add_argument("--cluster", metavar="NAME", required=True, help="configs/clusters/NAME.yaml or a YAML file")
        child.add_argument("--nodes", metavar="N", type=int, help="machines (default: the cluster's)")
        child.add_argument("--time", metavar="TIME", help="limit as HH:MM:SS or D-HH:MM:SS (default: the cluster's)")
        child.add_argument(
            "--sbatch",
            metavar="OPTION",
            action="append",
            default=[],
            help="another option of sbatch, such as --sbatch=--array=1-8; may be repeated",
        )
        child.add_argument("--name", metavar="NAME", help="of the job (default: the kind)")
        child.add_argument("--folder", metavar="DIR", help="of the run (default: out/jobs/NAME-TIME)")
        child.add_argument("--dry-run", action="store_true", help="print the script and do nothing")
