"""What a vision-language model is asked, and the strict reading of what it says.

An answer is untrusted text: names and words end in prompts, file names and pages. It is taken only in the one form
below; a name or word in it that is not fit for a prompt is left out, and its asset keeps the segmentor's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from datamodules.album_description import Gender
from datamodules.asset_names import GLASSES, PERSON, canonical_asset, clean_words
from datamodules.captioning.captioner import AlbumWords, CaptionFailed

MAX_WORDS = 3
_MAX_CHARACTERS = 20_000
_GENDERS: dict[str, Gender] = {
    "man": "man",
    "male": "man",
    "woman": "woman",
    "female": "woman",
    "person": "person",
}
# The stages after this one treat these in ways of their own, so nothing else may be called so, nor they otherwise.
_FIXED = ("face", "haircut", "skin", GLASSES, PERSON)
_WORD = re.compile(r"[^\W_][\w'\-]{0,23}")
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n?\s*```", re.DOTALL)
# The learned tokens carry colours and patterns; said in words they would come out twice.
_NOT_SHAPE = frozenset(
    [
        "black",
        "white",
        "grey",
        "gray",
        "red",
        "green",
        "blue",
        "yellow",
        "orange",
        "purple",
        "pink",
        "brown",
        "beige",
        "navy",
        "teal",
        "maroon",
        "turquoise",
        "gold",
        "golden",
        "silver",
        "blond",
        "blonde",
        "brunette",
        "ginger",
        "colorful",
        "colourful",
        "multicolored",
        "multicoloured",
        "striped",
        "plaid",
        "checked",
        "checkered",
        "floral",
        "dotted",
        "patterned",
        "printed",
    ]
)

QUESTION = """\
The pictures show one and the same person. A segmentation program found these things on the person: {names}.

Answer with JSON alone, in this form:
{{"gender": "woman", "assets": [{{"found_as": "upper", "name": "shirt", "words": ["short", "tight"]}}]}}

gender: "man" or "woman", or "person" where that cannot be seen.
assets: one entry for each thing of the list above.
found_as: the thing as the list calls it.
name: the plain English noun for it, one or two words, such as shirt, t-shirt, jumper, jacket, dress, skirt, shorts, \
trousers, shoes or cap. Face and haircut keep their names.
words: one to three adjectives for its shape, cut, length or fit, such as short, curly, long-sleeved or loose. \
No colour, no pattern, no brand, no text that can be read in the pictures.
"""


def make_question(asset_names: Sequence[str]) -> str:
    """The text that goes with the pictures."""
    return QUESTION.format(names=", ".join(asset_names))


def answer_schema(asset_names: Sequence[str]) -> dict[str, Any]:
    """The JSON schema of an answer, of keywords that servers with strict schemas understand."""
    asset = {
        "type": "object",
        "properties": {
            "found_as": {"type": "string", "enum": list(asset_names)},
            "name": {"type": "string"},
            "words": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["found_as", "name", "words"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {
            "gender": {"type": "string", "enum": ["man", "woman", "person"]},
            "assets": {"type": "array", "items": asset},
        },
        "required": ["gender", "assets"],
        "additionalProperties": False,
    }


def parse_words(text: str, asset_names: Sequence[str]) -> AlbumWords:
    """Read a model's answer: JSON as in `answer_schema`, bare or in one code fence, and nothing besides.

    Raises CaptionFailed for any other form, and for assets that were not asked for or come twice. Of an answer in that
    form, names and words that cannot stand in a prompt are left out, which the notes say.
    """
    answer = _load(text)
    _check_keys(answer, ("gender", "assets"), "the answer")
    gender = answer["gender"]
    if not isinstance(gender, str) or gender.strip().lower() not in _GENDERS:
        raise _refused(f'its gender is {_show(gender)}, but "man", "woman" or "person" was expected')
    if not isinstance(answer["assets"], list):
        raise _refused(f"its assets are {_show(answer['assets'])}, but a list was expected")
    notes: list[str] = []
    proposed: dict[str, str] = {}
    said: dict[str, str] = {}
    for entry in answer["assets"]:
        _check_keys(entry, ("found_as", "name", "words"), "an asset")
        found_as = entry["found_as"]
        if not isinstance(found_as, str) or found_as not in asset_names:
            raise _refused(f"it speaks of {_show(found_as)}, which was not asked for")
        if found_as in proposed:
            raise _refused(f"it speaks of {_show(found_as)} twice")
        proposed[found_as] = _name(entry["name"], found_as, notes)
        said[found_as] = _shape_words(entry["words"], found_as, notes)
    for name in asset_names:
        if name not in proposed:
            notes.append(f"the model says nothing of {name}, which keeps its name")
    # In the request's order, not in that of the answer.
    names = _distinct({name: proposed.get(name, canonical_asset(name)) for name in asset_names}, notes)
    words: dict[str, str] = {}
    for found_as, name in names.items():
        if said.get(found_as) and name not in words:
            words[name] = said[found_as]
    return AlbumWords(gender=_GENDERS[gender.strip().lower()], names=names, words=words, notes=tuple(notes))


def _load(text: str) -> dict[str, Any]:
    if len(text) > _MAX_CHARACTERS:
        raise _refused(f"it has {len(text)} characters, and no more than {_MAX_CHARACTERS} are read")
    text = text.strip()
    if fenced := _FENCED.fullmatch(text):
        text = fenced[1]
    try:
        answer = json.loads(text, object_pairs_hook=_table, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _refused(f"it is no JSON ({error.msg} in line {error.lineno}, column {error.colno})") from None
    except CaptionFailed:
        raise
    except (RecursionError, ValueError):
        raise _refused("it is nested too deeply, or holds a number without end") from None
    if not isinstance(answer, dict):
        raise _refused(f"it is {_show(answer)}, but an object was expected")
    return answer


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _refused("it holds the same key twice")
    return table


def _no_constant(text: str) -> float:
    raise ValueError(text)


def _check_keys(value: Any, keys: tuple[str, ...], what: str) -> None:
    if not isinstance(value, dict) or set(value) != set(keys):
        found = ", ".join(_show(key) for key in list(value)[:5]) if isinstance(value, dict) else _show(value)
        raise _refused(f"{what} has {found or 'nothing'}, but exactly {', '.join(keys)} was expected")


def _name(name: Any, found_as: str, notes: list[str]) -> str:
    own = canonical_asset(found_as)
    if not isinstance(name, str):
        raise _refused(f"the name for {_show(found_as)} is {_show(name)}, but text was expected")
    try:
        canonical = canonical_asset(name)
    except ValueError:
        notes.append(f"the model's name for {found_as}, {_show(name)}, cannot stand in a prompt")
        return own
    if canonical != own and (own in _FIXED or canonical in _FIXED or len(canonical.split()) > MAX_WORDS):
        notes.append(f"{found_as} keeps its name, since it cannot be called {_show(canonical)}")
        return own
    return canonical


def _shape_words(words: Any, found_as: str, notes: list[str]) -> str:
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _refused(f"the words for {_show(found_as)} are {_show(words)}, but a list of texts was expected")
    if len(words) > 20:
        raise _refused(f"it has {len(words)} words for {_show(found_as)}, but at most {MAX_WORDS} were asked for")
    try:
        said = clean_words(" ".join(words)).replace(",", " ").split()
    except ValueError:
        notes.append(f"the model's words for {found_as} cannot stand in a prompt and were left out")
        return ""
    fit = [word for word in dict.fromkeys(said) if _WORD.fullmatch(word) and word not in _NOT_SHAPE]
    if len(fit) != len(set(said)):
        notes.append(f"of the model's words for {found_as}, those that are no plain words of shape were left out")
    if len(fit) > MAX_WORDS:
        notes.append(f"of the model's words for {found_as}, the first {MAX_WORDS} were taken")
    return " ".join(fit[:MAX_WORDS])


def _distinct(names: dict[str, str], notes: list[str]) -> dict[str, str]:
    """Where two assets would share a name, one that had it before keeps it, or else the first; the others go back."""
    own = {found_as: canonical_asset(found_as) for found_as in names}
    names = dict(names)
    while True:
        taken: dict[str, str] = {}
        # Those under their own name come first; sorting keeps the order otherwise.
        for found_as in sorted(names, key=lambda key: names[key] != own[key]):
            name = names[found_as]
            other = taken.setdefault(name, found_as)
            if other != found_as and own[other] != own[found_as] and name != own[found_as]:
                notes.append(f"{found_as} keeps its name, since {other} is called {name}, too")
                names[found_as] = own[found_as]
                break
        else:
            return names


def _show(value: Any) -> str:
    """A value of the answer for a message: short, printable, in one line."""
    if not isinstance(value, str):
        kinds = {dict: "an object", list: "a list", bool: "true or false", type(None): "null"}
        return kinds.get(type(value), "a number")
    short = value if len(value) <= 40 else value[:37] + "..."
    return f'"{short}"' if short.isprintable() else ascii(short)


def _refused(reason: str) -> CaptionFailed:
    return CaptionFailed(f"the model's answer cannot be used: {reason}")
