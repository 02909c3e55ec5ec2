"""What a Slurm cluster wants to know about a job: configs/clusters/*.yaml; light to import."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields

_TIME = re.compile(r"(\d+-)?\d+(:\d{1,2}){1,2}|\d+-\d+")
_MEMORY = re.compile(r"\d+[KMGT]?")
_VARIABLE = re.compile(r"[A-Za-z_]\w*")


def has_controls(text: str) -> bool:
    """Whether there are line breaks, or other characters that a line of a batch script cannot hold."""
    return any(ord(letter) < 32 for letter in text)


@dataclass(frozen=True, kw_only=True)
class ClusterConfig:
    """A cluster's partition and habits. What is empty, or 0, is left to the cluster.

    Attributes:
        partition, account, qos, constraint: sbatch's options of these names.
        nodes: machines of a job.
        gpus_per_node: how many, "4", or of a kind, "a100:4".
        gres: other generic resources, and GPUs of clusters that know no gpus_per_node.
        cpus_per_task: cores on each node.
        memory: of each node, such as "64G".
        time: limit as "HH:MM:SS" or "D-HH:MM:SS". A plain number is refused: YAML reads 12:00:00 without quotes as one.
        modules: loaded by `module load`, in this order.
        container: words of a command that runs what follows in a container; Python is then the container's.
        venv: a virtual environment; "" for the one that submits, or the container's own Python.
        environment: variables, taken literally.
        setup: lines of shell before the start. Variables without braces: $HOME.
        sbatch: further options of sbatch, each with its dashes.
    """

    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    nodes: int = 1
    gpus_per_node: str = ""
    gres: str = ""
    cpus_per_task: int = 0
    memory: str = ""
    time: str = ""
    modules: tuple[str, ...] = ()
    container: tuple[str, ...] = ()
    venv: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    setup: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            words = [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else []
            for word in [*words, *(self.environment.values() if item.name == "environment" else ())]:
                if has_controls(word):
                    raise ValueError(
                        f"{item.name} holds {word!r}, expected words without line breaks or other controls"
                    )
        for name, least in (("nodes", 1), ("cpus_per_task", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.time and not _TIME.fullmatch(self.time):
            raise ValueError(f"time is {self.time!r}, expected HH:MM:SS or D-HH:MM:SS (in quotes in YAML)")
        if self.memory and not _MEMORY.fullmatch(self.memory):
            raise ValueError(f"memory is {self.memory!r}, expected a number with K, M, G or T, such as 64G")
        for name in self.environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"environment names {name!r}, expected letters, digits and underscores")
        for option in self.sbatch:
            if not option.startswith("--"):
                raise ValueError(f"sbatch holds {option!r}, expected an option such as --mail-type=END")

    def options(self) -> list[tuple[str, str]]:
        """sbatch's options and their values, in the order of the fields; further ones are in `sbatch`."""
        named = {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "constraint": self.constraint,
            "nodes": str(self.nodes),
            "gpus-per-node": self.gpus_per_node,
            "gres": self.gres,
            "cpus-per-task": str(self.cpus_per_task or ""),
            "mem": self.memory,
            "time": self.time,
        }
        return [(name, value) for name, value in named.items() if value]
