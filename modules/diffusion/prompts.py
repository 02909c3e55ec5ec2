"""Prompts. Training, captioning and distillation all speak through `compose_prompt`, so they cannot drift apart.

Wording after PuzzleAvatar (Xiu et al., TOG 2024), section 3: "a high-resolution DSLR colored image of a woman, <asset0>
face, <asset1> haircut, wearing <asset2> shirt, and <asset3> pants, front view."
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

ImageKind = Literal["rgb", "normal"]

HEADS: dict[ImageKind, str] = {
    "rgb": "a high-resolution DSLR colored image of a",
    "normal": "a detailed sculpture of a",
}
NEGATIVE_PROMPT = "a blurry, distorted, low quality image"
# These belong to the person; everything else is worn.
BODY_ASSETS = ("face", "haircut")


@dataclass(frozen=True, kw_only=True)
class AssetPhrase:
    """How one asset is said: `<asset2> wide shirt` has the token "<asset2>", the words "wide", the name "shirt"."""

    name: str
    words: str = ""
    token: str = ""

    def __str__(self) -> str:
        return " ".join(part for part in (self.token, self.words, self.name) if part)


class Scene(TypedDict, total=False):
    """The words of `compose_prompt` on everything around the assets, for models that know such words."""

    framing: str | None
    pose: str | None
    background: str | None


def compose_prompt(
    gender: str,
    assets: Sequence[AssetPhrase],
    *,
    kind: ImageKind = "rgb",
    view: str | None = None,
    framing: str | None = None,
    pose: str | None = None,
    background: str | None = None,
) -> str:
    """The prompt for an image of these assets. What is None is unknown and stays unsaid.

    gender: the noun, "man", "woman" or "person". view: a view word ("front"). framing: "full body", "upper body" or
    "head". pose: "a-pose", "standing", ... background: "gray", "random", ... The face comes first, then hair, then
    what is worn.
    """
    order = {name: index for index, name in enumerate(BODY_ASSETS)}
    body = sorted((asset for asset in assets if asset.name in order), key=lambda asset: order[asset.name])
    worn = [str(asset) for asset in assets if asset.name not in order]
    parts = [f"{HEADS[kind]} {gender}", *map(str, body)]
    if worn:
        listed = worn[0] if len(worn) == 1 else ", ".join(worn[:-1]) + f", and {worn[-1]}"
        parts.append(f"wearing {listed}")
    parts += [word for word in (framing, pose) if word]
    if view:
        parts.append(f"{view} view")
    if background:
        parts.append(f"{background} background")
    return ", ".join(parts) + "."
