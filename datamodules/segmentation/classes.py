"""What the mini parser tells apart, and how its fine classes become the assets of an album.

The network has a class for each of the studio's labels and for glasses; scores are published for the coarse parts, into
which an album's garments fall without overlap: what is worn above, below, or both.
"""

from __future__ import annotations

from datamodules.asset_names import GLASSES
from datamodules.studio.vocabulary import LABELS
from datamodules.views import EIGHT_VIEWS

BACKGROUND = "background"
# Order of the network's output channels.
FINE_CLASSES: tuple[str, ...] = (BACKGROUND, *LABELS, GLASSES)
# Coarse part to the fine classes that it is made of.
COARSE_PARTS: dict[str, tuple[str, ...]] = {
    "face": ("face",),
    "hair": ("haircut",),
    "upper": ("t-shirt", "shirt", "jumper", "jacket", "tank top"),
    "lower": ("skirt", "shorts", "trousers"),
    "dress": ("dress",),
    "shoes": ("shoes",),
    "cap": ("cap",),
    "glasses": (GLASSES,),
    "skin": ("skin",),
}
# What a head is made of.
HEAD_CLASSES: tuple[str, ...] = ("face", "haircut", "cap", GLASSES)
# Order of the view head's outputs.
VIEW_CLASSES: tuple[str, ...] = (*EIGHT_VIEWS, "overhead")


def coarse_table() -> tuple[int, ...]:
    """For each fine class the index of its part in `COARSE_PARTS`, plus one; 0 for the background."""
    part_of = {name: index + 1 for index, names in enumerate(COARSE_PARTS.values()) for name in names}
    return tuple(part_of.get(name, 0) for name in FINE_CLASSES)
