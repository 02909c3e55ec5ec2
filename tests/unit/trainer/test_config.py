"""The loader: defaults <- YAML <- key=value, and one sentence for every mistake."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from modules.errors import UserError
from trainer.config import RunConfig, all_keys, config_path, config_to_dict, load_config, load_dataclass, save_config


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    lr: float = 1e-3
    num_steps: int = 10

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr}, expected more than 0")


@dataclass(frozen=True, kw_only=True)
class BoothConfig:
    kind: Literal["adapter", "full"] = "adapter"
    levels: tuple[float, float] = (0.25, 0.75)
    sizes: tuple[int, ...] = (8, 16)
    token_phase: PhaseConfig = field(default_factory=PhaseConfig)
    joint_phase: PhaseConfig = field(default_factory=PhaseConfig)


@dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    seed: int = 0
    folder: Path = Path("out")
    limit_m: float | None = None
    weights: dict[str, float] = field(default_factory=dict)
    booth: BoothConfig = field(default_factory=BoothConfig)


@dataclass(frozen=True, kw_only=True)
class NeedyConfig:
    name: str
    seed: int = 0


def load(tmp_path: Path, text: str = "", *overrides: str) -> ExampleConfig:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return load_dataclass(ExampleConfig, path, overrides)


def mistake(tmp_path: Path, text: str = "", *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, text, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_defaults():
    assert load_dataclass(ExampleConfig) == ExampleConfig()


def test_empty_yaml_is_the_defaults(tmp_path):
    assert load(tmp_path, "# nothing but a comment\n") == ExampleConfig()


def test_command_line_beats_yaml_beats_defaults(tmp_path):
    config = load(tmp_path, "seed: 1\nbooth: {joint_phase: {lr: 2.0e-6, num_steps: 7}}", "booth.joint_phase.lr=3e-6")
    assert config.seed == 1
    assert config.booth.joint_phase == PhaseConfig(lr=3e-6, num_steps=7)
    assert config.booth.token_phase == PhaseConfig()


def test_numbers_without_a_point_are_numbers(tmp_path):
    assert load(tmp_path, "booth: {token_phase: {lr: 1e-5}}").booth.token_phase.lr == 1e-5


def test_types_of_python_come_back(tmp_path):
    words = ["booth.levels=[0.1,0.2]", "booth.sizes=[1,2,3]", "folder=/a/b", "weights.x=1", "limit_m=2"]
    config = load(tmp_path, "", *words)
    assert config.booth.levels == (0.1, 0.2)
    assert config.booth.sizes == (1, 2, 3)
    assert config.folder == Path("/a/b")
    assert config.weights == {"x": 1.0}
    assert config.limit_m == 2.0
    assert isinstance(config.booth.joint_phase, PhaseConfig)


def test_saved_configuration_loads_to_the_same(tmp_path):
    config = load(tmp_path, "", "booth.token_phase.lr=1e-7", "weights.x=0.1", "folder=a b/c", "booth.sizes=[]")
    save_config(config, tmp_path / "resolved.yaml")
    assert load_dataclass(ExampleConfig, tmp_path / "resolved.yaml") == config
    assert config_to_dict(config)["booth"]["levels"] == [0.25, 0.75]


@pytest.mark.parametrize(
    ("word", "wrong", "right"),
    [
        ("sed=1", "sed", "seed"),
        ("boot.kind=full", "boot", "booth"),
        ("booth.join_phase.lr=1", "booth.join_phase", "booth.joint_phase"),
        ("booth.joint_phase.lrr=1", "booth.joint_phase.lrr", "booth.joint_phase.lr"),
        ("num_steps=3", "num_steps", "booth.token_phase.num_steps"),
        ("seed.x=3", "seed.x", None),
        ("zzzzzz=1", "zzzzzz", None),
    ],
)
def test_misspelt_key(tmp_path, word, wrong, right):
    message = mistake(tmp_path, "", word)
    assert f"'{wrong}'" in message
    assert "command line" in message
    if right:
        assert f"Did you mean '{right}'?" in message


def test_misspelt_key_of_a_file_names_the_file(tmp_path):
    message = mistake(tmp_path, "booth:\n  levles: [0, 1]\n")
    assert f"'{tmp_path / 'x.yaml'}'" in message
    assert "Did you mean 'booth.levels'?" in message


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("seed=abc", ["'seed'", "'abc'", "int"]),
        ("seed=1.5", ["'seed'", "1.5", "int"]),
        ("seed=true", ["'seed'", "True", "int"]),
        ("booth.kind=both", ["'booth.kind'", "'both'", "adapter, full"]),
        ("booth.levels=[1,2,3]", ["'booth.levels'", "[1, 2, 3]", "tuple[float, float]"]),
        ("booth=3", ["'booth'", "3", "token_phase"]),
        ("booth.joint_phase.lr=null", ["'booth.joint_phase.lr'", "None", "float"]),
        ("booth.joint_phase.lr=-1", ["'booth.joint_phase'", "lr is -1.0", "more than 0"]),
        ("booth.joint_phase.lr=nan", ["'booth.joint_phase'", "lr is nan", "more than 0"]),
        ("seed", ["'seed'", "key=value"]),
        ("=3", ["'=3'", "key=value"]),
        ("booth.levels=[1,", ["'booth.levels=[1,'", "cannot be read"]),
    ],
)
def test_wrong_value(tmp_path, word, words):
    message = mistake(tmp_path, "", word)
    for expected in words:
        assert expected in message, message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: [1\nx: 2\n", "is not valid YAML (line"),
        ("- seed\n", "holds a list"),
        ("seed: abc\n", "'seed' is 'abc'"),
        ("\x00", "is not valid YAML"),
    ],
)
def test_wrong_file(tmp_path, text, words):
    message = mistake(tmp_path, text)
    assert words in message
    assert str(tmp_path / "x.yaml") in message


def test_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"Cannot read .*none\.yaml"):
        load_dataclass(ExampleConfig, tmp_path / "none.yaml")


def test_key_without_default_is_asked_for():
    assert load_dataclass(NeedyConfig, None, ["name=x"]) == NeedyConfig(name="x")
    with pytest.raises(UserError, match="'name' has no default"):
        load_dataclass(NeedyConfig)


def test_unknown_name_of_a_configuration():
    with pytest.raises(UserError, match="No configuration 'minni'"):
        config_path("minni")


def test_configuration_by_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 5\n")
    assert load_config(str(path)).seed == 5


@pytest.mark.parametrize("word", ["seed=-1", "out=''"])
def test_ranges_of_the_run(word):
    with pytest.raises(UserError, match="expected"):
        load_config(None, [word])


def test_run_configuration_is_saved_and_read_back(tmp_path):
    save_config(RunConfig(), tmp_path / "run.yaml")
    assert load_config(str(tmp_path / "run.yaml")) == RunConfig()
    assert "runtime.checkpoint_every_s" in set(all_keys(RunConfig))
