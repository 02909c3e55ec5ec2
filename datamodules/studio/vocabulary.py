"""The words of the studio: colours, skins, hair, patterns, garments and poses, with the values that paint them."""

from __future__ import annotations

# sRGB in [0, 255]; people's garments are jittered around these.
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (200, 40, 40),
    "blue": (45, 80, 195),
    "green": (45, 145, 60),
    "yellow": (228, 203, 50),
    "black": (32, 32, 34),
    "white": (236, 236, 236),
    "gray": (130, 130, 130),
    "purple": (130, 60, 165),
    "orange": (232, 130, 38),
    "pink": (236, 140, 178),
    "brown": (115, 75, 45),
    "cyan": (70, 192, 202),
    "navy": (30, 40, 92),
    "beige": (214, 194, 158),
}
HAIR_COLORS: dict[str, tuple[int, int, int]] = {
    "blond": (224, 188, 108),
    "black": (36, 29, 26),
    "brown": (96, 60, 36),
    "red": (168, 72, 36),
    "gray": (152, 152, 152),
}
SKIN_TONES: dict[str, tuple[int, int, int]] = {
    "pale": (240, 208, 186),
    "tan": (206, 157, 122),
    "brown": (150, 101, 71),
    "dark": (96, 63, 46),
}
PATTERNS = ("plain", "striped", "checked", "dotted", "logo")
HAIR_STYLES = ("bald", "short", "curly", "bob", "long", "ponytail", "bun")
POSES = ("a-pose", "standing", "walking", "arms raised", "posed")
BACKGROUNDS = ("white", "gray", "black", "random")

# Index in label maps. 0 is bare skin that belongs to no asset; glasses belong to the face.
LABELS = (
    "skin",
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
GARMENTS = LABELS[3:]
LABEL_INDEX = {name: index for index, name in enumerate(LABELS)}
# People that train the prior have smaller seeds; held-out albums, which the prior never saw, start here.
HELD_OUT_SEED = 10_000_000
NO_PERSON = 255  # background of a rendered label map
COLOR_WORDS = tuple(sorted({*COLORS, *HAIR_COLORS, *SKIN_TONES}))
