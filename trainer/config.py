"""The configuration: dataclass defaults <- YAML delta <- `key=value` of the command line, checked at every step.

Each class is configured by a frozen dataclass that lives beside it; `RunConfig` composes them.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from datamodules.album import AlbumConfig
from modules.avatar_config import GeometryConfig, TextureConfig
from modules.diffusion.config import BackboneConfig
from modules.errors import UserError
from modules.puzzlebooth_config import PuzzleBoothConfig
from trainer.artifacts import to_plain, write_text
from trainer.evaluation_config import EvaluationConfig
from trainer.export_config import ExportConfig
from trainer.runtime import RuntimeConfig

PROJECT_ROOT = Path(__file__).resolve().parents[1]

ConfigT = TypeVar("ConfigT")


def load_dataclass(cls: type[ConfigT], yaml_path: Path | None = None, overrides: Sequence[str] = ()) -> ConfigT:
    """Build a `cls` from its defaults, a YAML delta and dotlist overrides such as `booth.joint_phase.lr=2e-6`.

    Args:
        cls: a frozen dataclass whose fields are plain types, `Literal`s, tuples or further dataclasses.
        yaml_path: a YAML file with the keys that differ from the defaults; may be empty.
        overrides: `key=value` words; the value is read as YAML (`1e-5` is a number).

    Raises:
        UserError: one sentence that names the file or word, the key, what was found and what was expected.
    """
    config = OmegaConf.structured(cls)
    if yaml_path is not None:
        config = _merge(config, _read_yaml(yaml_path), cls, f"in '{yaml_path}'")
    for word in overrides:
        key, equals, _ = word.partition("=")
        if not equals or not key.strip():
            raise UserError(f"'{word}' on the command line is not of the form key=value.")
        try:
            delta = OmegaConf.from_dotlist([word])
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            raise UserError(f"'{word}' on the command line cannot be read: {_first_line(error)}.") from error
        config = _merge(config, delta, cls, "on the command line")
    return _construct(config)


def config_to_dict(config: object) -> dict[str, Any]:
    """The configuration as plain nested dictionaries, lists, numbers and words."""
    return to_plain(config)


def save_config(config: object, path: Path) -> None:
    """Write the whole resolved configuration as YAML that `load_dataclass` reads back to an equal object."""
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(config_to_dict(config))))


def config_path(name_or_path: str) -> Path:
    """`mini` -> configs/mini.yaml of the project; anything with a slash or .yaml is a path.

    Raises:
        UserError: there is no such file.
    """
    shipped = {path.stem: path for path in sorted((PROJECT_ROOT / "configs").glob("*.yaml"))}
    if name_or_path in shipped:
        return shipped[name_or_path]
    path = Path(name_or_path)
    if path.is_file():
        return path
    near = difflib.get_close_matches(name_or_path, shipped, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(shipped) or 'none'}, or give a YAML file."
    raise UserError(f"No configuration '{name_or_path}': {hint}")


def all_keys(cls: type) -> Iterator[str]:
    """Every dotted key of a tree of dataclasses, sections included."""
    hints = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        yield item.name
        if dataclasses.is_dataclass(hints[item.name]):
            for key in all_keys(typing.cast(type, hints[item.name])):
                yield f"{item.name}.{key}"


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides what one run does.

    Attributes:
        seed: of every random generator of the run.
        out: folder of the results; a run writes to out/<album's name>.
        baselines: where there is ground truth, also make an avatar from the words alone, to compare with.
        backbone: which diffusion model.
        album: how an album is read.
        booth: personalisation.
        geometry: the shape's distillation.
        texture: the colours' distillation.
        export: avatar.glb and the turntable.
        evaluation: metrics, where there is ground truth.
        runtime: device, precision, checkpoints, logging.
    """

    seed: int = 0
    out: str = "out"
    baselines: bool = True
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    album: AlbumConfig = field(default_factory=AlbumConfig)
    booth: PuzzleBoothConfig = field(default_factory=PuzzleBoothConfig)
    geometry: GeometryConfig = field(default_factory=GeometryConfig)
    texture: TextureConfig = field(default_factory=TextureConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}, expected 0 to 4294967295")
        if not self.out.strip():
            raise ValueError("out is empty, expected the name of a folder")
        if self.baselines and self.uses_truth:
            raise ValueError(
                'baselines must be false where guidance.method is "truth": an avatar distilled from the ground truth '
                "is no baseline of words"
            )

    @property
    def uses_truth(self) -> bool:
        """Whether a stage is distilled from the ground truth in the model's place."""
        return "truth" in (self.geometry.guidance.method, self.texture.guidance.method)


def load_config(name_or_path: str | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration of a run: configs/<name>.yaml or a YAML file (None for the defaults), then overrides.

    Raises:
        UserError: see `load_dataclass` and `config_path`.
    """
    return load_dataclass(RunConfig, None if name_or_path is None else config_path(name_or_path), overrides)


def _read_yaml(path: Path) -> DictConfig:
    try:
        delta = OmegaConf.load(path)
    except OSError as error:
        raise UserError(f"Cannot read the configuration '{path}': {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        problem = getattr(error, "problem", None) or _first_line(error)
        raise UserError(f"'{path}' is not valid YAML{where}: {problem}.") from error
    if not isinstance(delta, DictConfig):
        raise UserError(f"'{path}' holds a list, expected 'key: value' lines.")
    return delta


def _merge(config: DictConfig, delta: DictConfig, cls: type, where: str) -> DictConfig:
    try:
        return typing.cast(DictConfig, OmegaConf.merge(config, delta))
    except (OmegaConfBaseException, TypeError, ValueError):
        pass
    # Only leaf by leaf can the culprit be named in every case.
    for key, value in _leaves(typing.cast(dict, OmegaConf.to_container(delta, resolve=False))):
        try:
            OmegaConf.merge(config, _nested(key, value))
        except ConfigKeyError as error:
            raise UserError(unknown_key(key, cls, where)) from error
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            expected = _expected(cls, key)
            raise UserError(f"'{key}' is {value!r} {where}, {expected}: {_first_line(error)}.") from error
    raise AssertionError("a delta whose leaves merge one by one must merge as a whole")


def unknown_key(key: str, cls: type, where: str) -> str:
    """What is said of a dotted key that `cls` does not have; where: such as "on the command line"."""
    keys = list(all_keys(cls))
    known = set(keys)
    parts = key.split(".")
    # The shortest unknown prefix is the misspelt part: in `boot.lr` it is `boot`, not the whole.
    length = next(i for i in range(1, len(parts) + 1) if ".".join(parts[:i]) not in known)
    wrong = ".".join(parts[:length])
    section = ".".join(parts[: length - 1])
    siblings = [name for name in keys if name.rpartition(".")[0] == section]
    near = (
        difflib.get_close_matches(wrong, siblings, n=1, cutoff=0.6)
        or [name for name in keys if name.rpartition(".")[2] == parts[length - 1]]
        or difflib.get_close_matches(wrong, keys, n=1, cutoff=0.6)
    )
    hint = f"Did you mean '{near[0]}'?" if near else f"Expected one of {', '.join(siblings) or 'no further keys'}."
    return f"Unknown key '{wrong}' {where}. {hint}"


def _expected(cls: type, key: str) -> str:
    hint: Any = cls
    for part in key.split("."):
        hints = typing.get_type_hints(hint) if dataclasses.is_dataclass(hint) else {}
        if part not in hints:
            break
        hint = hints[part]
    if typing.get_origin(hint) is typing.Literal:
        return f"expected one of {', '.join(map(str, typing.get_args(hint)))}"
    if dataclasses.is_dataclass(hint):
        return f"expected keys of the section ({', '.join(item.name for item in dataclasses.fields(hint))})"
    return f"expected {hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else hint}"


def _construct(config: DictConfig, prefix: str = "") -> Any:
    """`OmegaConf.to_object`, section by section from the leaves up, so that a range error can name its section."""
    for name in map(str, config):
        child = None if OmegaConf.is_missing(config, name) else config[name]
        if isinstance(child, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(child)):
            _construct(child, f"{prefix}{name}.")
    try:
        return OmegaConf.to_object(config)
    except MissingMandatoryValue as error:
        raise UserError(f"'{prefix}{error.key or ''}' has no default: give it in the YAML or as key=value.") from error
    except ValueError as error:
        section = f"In section '{prefix[:-1]}': " if prefix else ""
        raise UserError(f"{section}{_first_line(error)}.") from error


def _leaves(tree: dict[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value


def _nested(key: str, value: Any) -> DictConfig:
    for part in reversed(key.split(".")):
        value = {part: value}
    return OmegaConf.create(value)


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
