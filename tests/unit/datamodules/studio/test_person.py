"""People: specs, words, geometry and poses."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import trimesh

from datamodules.studio.person import HELD_OUT_SEED, PersonSpec, build_person, phrases, sample_person
from datamodules.studio.poses import sample_pose
from datamodules.studio.vocabulary import COLOR_WORDS, GARMENTS, HAIR_STYLES, LABEL_INDEX, PATTERNS, POSES
from datamodules.studio.wardrobe import GarmentSpec
from modules.geometry.skinning import axis_rotation


def dressed(*names: str, hair_style: str = "short", glasses: bool = False, **settings) -> PersonSpec:
    """A woman of average build who wears these garments in red."""
    garments = tuple(GarmentSpec(name=name, color="red", rgb=(0.8, 0.15, 0.15), **settings) for name in names)
    return dataclasses.replace(sample_person(5), garments=garments, hair_style=hair_style, glasses=glasses)


def test_spec_is_deterministic_and_passes_through_json() -> None:
    for seed in (0, 7, HELD_OUT_SEED):
        spec = sample_person(seed)
        assert spec == sample_person(seed)
        assert PersonSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert sample_person(0) != sample_person(1)


def test_surface_is_deterministic() -> None:
    first, second = build_person(sample_person(3)), build_person(sample_person(3))
    np.testing.assert_array_equal(first.vertices, second.vertices)
    np.testing.assert_array_equal(first.vertex_label, second.vertex_label)


def test_captions_say_colours_and_albums_never_do() -> None:
    for seed in range(60):
        spec = sample_person(seed)
        with_colors = {phrase.name: phrase.words.split() for phrase in phrases(spec)}
        without = {phrase.name: phrase.words.split() for phrase in phrases(spec, colors=False)}
        assert set(with_colors) == set(without)
        assert with_colors["face"] == [spec.skin_tone]
        for garment in spec.garments:
            assert garment.color in with_colors[garment.name]
            if garment.pattern != "plain":
                assert with_colors[garment.name][-2:] == [garment.pattern, garment.second_color]
        for words in without.values():
            assert not set(words) & set(COLOR_WORDS)


def test_bald_people_have_bald_words_and_no_hair() -> None:
    spec = dressed("t-shirt", hair_style="bald")
    assert next(phrase for phrase in phrases(spec) if phrase.name == "haircut").words == "bald"
    assert "haircut" not in build_person(spec).label_names()


@pytest.mark.parametrize("name", GARMENTS)
def test_every_garment_is_on_the_surface(name: str) -> None:
    person = build_person(dressed(name))
    assert name in person.label_names()
    assert (person.vertex_label == LABEL_INDEX[name]).sum() > 60
    assert np.isfinite(person.vertices).all()


@pytest.mark.parametrize("style", [style for style in HAIR_STYLES if style != "bald"])
def test_every_hair_style_is_on_the_surface(style: str) -> None:
    person = build_person(dressed("t-shirt", hair_style=style))
    hair = person.vertices[person.vertex_label == LABEL_INDEX["haircut"]]
    assert len(hair) > 60
    assert hair[:, 1].max() > 1.68
    assert (hair[:, 1].min() < 1.35) == (style == "long")


@pytest.mark.parametrize("seed", range(6))
def test_parts_other_than_skirts_and_glasses_are_closed(seed: int) -> None:
    spec = dressed("t-shirt", "cap", hair_style=("long", "bob", "curly", "short", "bald", "long")[seed])
    person = build_person(spec)
    for owner in np.unique(person.owner):
        faces = person.faces[person.owner == owner]
        assert trimesh.Trimesh(person.vertices, faces, process=False).is_watertight


def test_body_surface_stays_closed_under_clothes() -> None:
    person = build_person(sample_person(11))
    body_faces = person.faces[person.owner == -1]
    mesh = trimesh.Trimesh(person.vertices, body_faces, process=False)
    assert mesh.is_watertight
    assert mesh.volume > 0.03


def test_frame_and_bare_body() -> None:
    person = build_person(sample_person(2))
    assert person.bare_body[:, 1].min() == pytest.approx(0, abs=1e-5)
    assert np.ptp(person.bare_body[:, 1]) == pytest.approx(1.70, abs=1e-4)
    assert person.landmarks().stature_m == pytest.approx(1.70, abs=1e-4)
    assert person.vertices[:, 1].min() > -0.03


def test_longer_hems_reach_lower_and_looser_is_wider() -> None:
    def lowest(name: str, **settings: float) -> float:
        person = build_person(dressed(name, **settings))
        return float(person.vertices[person.vertex_label == LABEL_INDEX[name], 1].min())

    assert lowest("skirt", length=1.0) < lowest("skirt", length=0.0) - 0.25
    assert lowest("shorts", length=1.0) < lowest("shorts", length=0.0) - 0.08
    tight, loose = (build_person(dressed("jumper", looseness=value)).vertices for value in (0.0, 1.0))
    assert np.linalg.norm(tight - loose, axis=1).max() > 0.008


def test_a_skirt_holds_the_legs() -> None:
    person = build_person(dressed("skirt", length=1.0))
    skirt = person.vertices[person.vertex_label == LABEL_INDEX["skirt"]]
    knees = person.vertices[: person.num_body][abs(person.canonical[: person.num_body, 1] - 0.49) < 0.02]
    assert np.ptp(skirt[:, 0]) > np.ptp(knees[:, 0])
    assert np.ptp(skirt[:, 2]) > np.ptp(knees[:, 2])


def test_a_pose_is_the_identity_and_rotations_move() -> None:
    person = build_person(dressed("t-shirt", "trousers"))
    np.testing.assert_array_equal(person.posed({}), person.vertices)
    posed = person.posed({"shoulder_right": axis_rotation(2, -70)})
    right_hand = (person.arm > 1) & (person.canonical[:, 0] < 0)
    assert posed[right_hand, 1].mean() > person.vertices[right_hand, 1].mean() + 0.2


@pytest.mark.parametrize("word", POSES)
def test_posed_people_stand_on_the_floor(word: str) -> None:
    person = build_person(sample_person(9))
    rng = np.random.default_rng(0)
    posed = person.posed(sample_pose(rng, word, skirt=person.has_skirt))
    body = posed[: person.num_body]
    assert body[:, 1].min() == pytest.approx(person.vertices[: person.num_body, 1].min(), abs=1e-5)
    assert person.landmarks(posed).stature_m >= 1.6
    edges = person.faces[person.owner == -1]
    lengths = np.linalg.norm(posed[edges[:, 0]] - posed[edges[:, 1]], axis=1)
    assert lengths.max() < 0.25


def test_raised_arms_are_raised() -> None:
    person = build_person(sample_person(9))
    for seed in range(5):
        posed = person.posed(sample_pose(np.random.default_rng(seed), "arms raised"))
        hands = posed[person.arm > 1]
        assert hands[:, 1].mean() > 1.3


def test_all_patterns_are_sampled() -> None:
    found = {garment.pattern for seed in range(80) for garment in sample_person(seed).garments}
    assert found == set(PATTERNS)


def test_refused_values() -> None:
    with pytest.raises(ValueError, match="name must be one of"):
        GarmentSpec(name="toga", color="red", rgb=(1, 0, 0))
    with pytest.raises(ValueError, match="pattern must be one of"):
        GarmentSpec(name="shirt", color="red", rgb=(1, 0, 0), pattern="tartan")
    with pytest.raises(ValueError, match=r"length must lie in \[0, 1\], found 2"):
        GarmentSpec(name="shirt", color="red", rgb=(1, 0, 0), length=2)
    with pytest.raises(ValueError, match="hair_style must be one of"):
        dataclasses.replace(sample_person(0), hair_style="mohawk")
    with pytest.raises(ValueError, match="weights of shape must sum to 1"):
        dataclasses.replace(sample_person(0), shape=((3, 0.5),))
    with pytest.raises(ValueError, match="unknown pose word"):
        sample_pose(np.random.default_rng(0), "handstand")
