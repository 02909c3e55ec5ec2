"""YAML of a person's hand, read strictly: text, lists and tables only, with a sentence for everything else.

All scalars stay text, so that the photo `001`, the word `no` and the time `12:30` mean what is written.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from modules.errors import UserError

_NOTHING = ("", "~", "null")


def parse_yaml(path: Path, data: bytes, *, max_bytes: int, max_depth: int = 5) -> Any:
    """The bytes of `path` as nested dicts (keys are text), lists, text, and None for what is left empty.

    Read event by event, so that nothing is built of a file before it is known to be harmless. Raises UserError for more
    than `max_bytes`, other encodings than UTF-8, broken YAML, anchors and aliases (a few lines of them can stand for
    gigabytes), tags, a second document, a key that is given twice, and nesting deeper than `max_depth`.
    """
    if len(data) > max_bytes:
        raise UserError(f"{path} has {len(data)} bytes, but at most {max_bytes} are read; keep only decisions in it")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    try:
        return _Builder(path, yaml.parse(text, Loader=yaml.BaseLoader), max_depth).document()
    except UserError:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{path} is not valid YAML: {error.problem or error.context}{where}; mend that place") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UserError(f"{path} has a character in line {line} that YAML does not allow; remove it") from None
    except (yaml.YAMLError, ValueError, OverflowError):
        # A number in an escape or a directive that is out of all bounds.
        raise UserError(f"{path} is not valid YAML; write it as in the documentation of assets.yaml") from None


class _Builder:
    def __init__(self, path: Path, events: Iterator[Any], max_depth: int) -> None:
        self.path = path
        self.events = events
        self.max_depth = max_depth

    def document(self) -> Any:
        value = None
        documents = 0
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    self._refuse(event, "a second document begins", "one document")
                value = self._node(next(self.events), 0)
        return value

    def _node(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            self._refuse(event, "there is an anchor or an alias (& or *)", "every value written out")
        if event.tag is not None:
            self._refuse(event, "there is a tag (!)", "plain text")
        if isinstance(event, yaml.ScalarEvent):
            return None if event.style is None and event.value in _NOTHING else event.value
        if depth == self.max_depth:
            self._refuse(event, f"values are nested more than {self.max_depth} deep", "a flatter file")
        if isinstance(event, yaml.SequenceStartEvent):
            items = []
            while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
                items.append(self._node(event, depth + 1))
            return items
        table: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent | yaml.AliasEvent):
                self._refuse(event, "a key is a list or a table", "a word as key")
            self._node(event, depth + 1)  # refuses anchors, aliases and tags of keys, too
            if event.value in table:
                self._refuse(event, f"the key {shown(event.value)} is given twice", "each key once")
            table[event.value] = self._node(next(self.events), depth + 1)
        return table

    def _refuse(self, event: Any, found: str, expected: str) -> None:
        raise UserError(f"{self.path}, line {event.start_mark.line + 1}: {found}, but {expected} was expected")


def kind(value: Any) -> str:
    """What a value is, for a sentence."""
    match value:
        case None:
            return "empty"
        case dict():
            return "a table"
        case list():
            return "a list"
    return shown(str(value))


def shown(text: str) -> str:
    """Text in quotes for a sentence, cut to 60 characters, nothing in it that a terminal would obey."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return f'"{short}"' if short.isprintable() else ascii(short)
