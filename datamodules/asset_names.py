"""Names of assets: which are known, how other spellings are brought to them, and their order in prompts and arrays."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

CANONICAL_ASSETS: tuple[str, ...] = (
    "face",
    "haircut",
    "t-shirt",
    "shirt",
    "jumper",
    "jacket",
    "tank top",
    "dress",
    "skirt",
    "shorts",
    "trousers",
    "shoes",
    "cap",
)
GLASSES = "glasses"
# Not an asset: the mask of the whole person, bare skin included.
PERSON = "person"

_ALIASES = {
    "hair": "haircut",
    "hairstyle": "haircut",
    "t shirt": "t-shirt",
    "tshirt": "t-shirt",
    "tee": "t-shirt",
    "sweater": "jumper",
    "pullover": "jumper",
    "tanktop": "tank top",
    "tank-top": "tank top",
    "pants": "trousers",
    "shoe": "shoes",
    "eyeglasses": GLASSES,
    "sunglasses": GLASSES,
    "spectacles": GLASSES,
}
_SAFE_NAME = re.compile(r"[^\W_][\w '\-]{0,39}")
_SAFE_WORDS = re.compile(r"[\w ,.'&/()\-]{0,120}")


def canonical_asset(text: str) -> str:
    """The name under which an asset is kept: lower case, single spaces, synonyms joined ("hair" is "haircut").

    Raises ValueError for a name that is empty, longer than 40 characters or holds other than letters, digits, spaces,
    hyphens, underscores and apostrophes; names go into file names and prompts.
    """
    name = " ".join(unicodedata.normalize("NFC", text).replace("_", " ").lower().split())
    if not _SAFE_NAME.fullmatch(name):
        raise ValueError(f"asset name {text[:60]!a} must be 1 to 40 letters, digits, spaces or hyphens")
    return _ALIASES.get(name, name)


def clean_words(text: str) -> str:
    """Shape words as they go into a prompt: lower case and single spaces.

    Raises ValueError for more than 120 characters, and for characters that could pass for a placeholder token.
    """
    words = " ".join(unicodedata.normalize("NFC", text).lower().split())
    if not _SAFE_WORDS.fullmatch(words):
        raise ValueError(f"the words {text[:60]!a} must be at most 120 letters, digits and plain punctuation")
    return words


def order_assets(names: Iterable[str]) -> list[str]:
    """Without repeats: the known ones as in `CANONICAL_ASSETS` (face first), then the others alphabetically."""
    rank = {name: index for index, name in enumerate(CANONICAL_ASSETS)}
    return sorted(set(names), key=lambda name: (rank.get(name, len(rank)), name))
