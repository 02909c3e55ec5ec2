"""What a synthetic person looks like: a spec that fits in JSON, its random draw from a seed, and its words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.studio.vocabulary import COLORS, HAIR_COLORS, HAIR_STYLES, PATTERNS, SKIN_TONES
from datamodules.studio.wardrobe import GarmentSpec, worn_order
from modules.diffusion.prompts import AssetPhrase
from modules.geometry.body import body_data


@dataclass(frozen=True, kw_only=True)
class PersonSpec:
    """Everything that decides how a person looks; `to_json` and `from_json` round-trip it.

    shape: pairs of (index of a sampled body, weight), weights sum to 1. gender: "woman" or "man". skin_tone,
    hair_color,
    hair_style: words of the vocabulary. *_rgb: jittered sRGB in [0, 1]. hair_length: 0 to 1 within the style.
    """

    seed: int
    gender: str
    shape: tuple[tuple[int, float], ...]
    skin_tone: str
    skin_rgb: tuple[float, float, float]
    hair_style: str
    hair_color: str
    hair_rgb: tuple[float, float, float]
    hair_length: float
    garments: tuple[GarmentSpec, ...]
    glasses: bool = False
    face_word: str = "oval"

    def __post_init__(self) -> None:
        if self.hair_style not in HAIR_STYLES:
            raise ValueError(f"hair_style must be one of {HAIR_STYLES}, found {self.hair_style!r}")
        total = sum(weight for _, weight in self.shape)
        if abs(total - 1) > 1e-3:
            raise ValueError(f"the weights of shape must sum to 1, found {total}")

    def to_json(self) -> dict[str, Any]:
        """Plain lists, numbers and strings."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> PersonSpec:
        """The inverse of `to_json`, after any passage through JSON."""
        fields = dict(data)
        fields["shape"] = tuple((int(index), float(weight)) for index, weight in fields["shape"])
        fields["skin_rgb"], fields["hair_rgb"] = tuple(fields["skin_rgb"]), tuple(fields["hair_rgb"])
        fields["garments"] = tuple(
            GarmentSpec(**{**g, "rgb": tuple(g["rgb"]), "second_rgb": tuple(g["second_rgb"])})
            for g in fields["garments"]
        )
        return PersonSpec(**fields)


def _jittered(rng: np.random.Generator, rgb: tuple[int, int, int], spread: float = 7.0) -> tuple[float, float, float]:
    # Greys stay grey: their channels move together.
    hue_spread = spread * (0.25 + 0.75 * min((max(rgb) - min(rgb)) / 120, 1.0))
    moved = np.array(rgb) + rng.normal(0, spread) + rng.normal(0, hue_spread, 3)
    r, g, b = (np.clip(moved, 4, 251) / 255).round(4).tolist()
    return r, g, b


def sample_garment(rng: np.random.Generator, name: str, *, plain: bool = False) -> GarmentSpec:
    """A garment of random colours and cut."""
    first, second = (str(word) for word in rng.choice(list(COLORS), 2, replace=False))
    top = name not in ("skirt", "shorts", "trousers", "shoes", "cap")
    odds = [0.46, 0.20, 0.13, 0.12, 0.09] if top else [0.74, 0.11, 0.09, 0.06, 0.0]
    pattern = "plain" if plain or name in ("shoes", "cap", "jacket") else str(rng.choice(PATTERNS, p=odds))
    if name == "dress" and pattern == "logo":
        pattern = "dotted"
    return GarmentSpec(
        name=name,
        color=first,
        rgb=_jittered(rng, COLORS[first]),
        pattern=pattern,
        second_color=second,
        second_rgb=_jittered(rng, COLORS[second]),
        length=round(float(rng.random()), 3),
        sleeve=round(float(rng.random()), 3),
        looseness=round(float(rng.random()), 3),
        frequency=round(float(rng.uniform(0.7, 1.25)), 3),
        open=bool(name == "jacket" and rng.random() < 0.65),
    )


def _sample_outfit(rng: np.random.Generator, woman: bool) -> list[GarmentSpec]:
    if woman and rng.random() < 0.22:
        garments = [sample_garment(rng, "dress")]
    else:
        top = str(rng.choice(["t-shirt", "shirt", "jumper", "tank top", "jacket"], p=[0.30, 0.19, 0.18, 0.12, 0.21]))
        garments = [sample_garment(rng, top)]
        if top == "jacket" and garments[0].open:
            garments.append(sample_garment(rng, "t-shirt"))
        odds = [0.46, 0.20, 0.34] if woman else [0.70, 0.30, 0.0]
        garments.append(sample_garment(rng, str(rng.choice(["trousers", "shorts", "skirt"], p=odds))))
    if rng.random() < 0.9:
        garments.append(sample_garment(rng, "shoes"))
    if rng.random() < 0.14:
        garments.append(sample_garment(rng, "cap"))
    return garments


def sample_person(seed: int) -> PersonSpec:
    """The person of this seed. Seeds from HELD_OUT_SEED on are never used to train the prior."""
    rng = np.random.default_rng([seed, 17])
    data = body_data()
    woman = bool(rng.random() < 0.5)
    bodies = np.nonzero(data.is_woman == woman)[0]
    bodies = bodies[bodies >= 2]
    first, second = (int(index) for index in rng.choice(bodies, 2, replace=False))
    weight = round(float(rng.uniform(0.3, 0.95)), 3)
    skin = str(rng.choice(list(SKIN_TONES)))
    hair_odds = {"pale": [0.3, 0.1, 0.3, 0.15, 0.15], "tan": [0.12, 0.32, 0.36, 0.08, 0.12]}
    color = str(rng.choice(list(HAIR_COLORS), p=hair_odds.get(skin, [0.05, 0.55, 0.22, 0.04, 0.14])))
    style_odds = [0.03, 0.17, 0.09, 0.19, 0.30, 0.13, 0.09] if woman else [0.16, 0.56, 0.13, 0.05, 0.07, 0.02, 0.01]
    return PersonSpec(
        seed=seed,
        gender="woman" if woman else "man",
        shape=((first, weight), (second, round(1 - weight, 3))),
        skin_tone=skin,
        skin_rgb=_jittered(rng, SKIN_TONES[skin], 3.5),
        hair_style=str(rng.choice(HAIR_STYLES, p=style_odds)),
        hair_color=color,
        hair_rgb=_jittered(rng, HAIR_COLORS[color], 5.0),
        hair_length=round(float(rng.random()), 3),
        garments=tuple(_sample_outfit(rng, woman)),
        glasses=bool(rng.random() < 0.18),
        face_word=str(rng.choice(["oval", "round", "long", "square"])),
    )


def phrases(spec: PersonSpec, *, colors: bool = True) -> list[AssetPhrase]:
    """What the person consists of, as said in prompts: face, haircut, then garments from outside inwards.

    colors: captions of the prior say them ("red striped white t-shirt"); an album's shape words never do.
    """
    bald = spec.hair_style == "bald"
    hair = spec.hair_style if bald or not colors else f"{spec.hair_color} {spec.hair_style}"
    # The sampled faces do not differ in the shape that the word claims, so the prior is not taught it.
    listed = [
        AssetPhrase(name="face", words=spec.skin_tone if colors else spec.face_word),
        AssetPhrase(name="haircut", words=hair),
    ]
    for garment in worn_order(spec.garments):
        words = [garment.shape_words(), garment.color_words() if colors else ""]
        listed.append(AssetPhrase(name=garment.name, words=" ".join(word for word in words if word)))
    return listed
