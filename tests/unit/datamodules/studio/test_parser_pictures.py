"""Pictures for the parser: labels that belong to the pixels, views that belong to the camera."""

from __future__ import annotations

import dataclasses

import numpy as np

from datamodules.segmentation.classes import COARSE_PARTS, FINE_CLASSES, VIEW_CLASSES, coarse_table
from datamodules.studio.parser_pictures import (
    UNKNOWN_VIEW,
    class_frequencies,
    draw_batch,
    draw_picture,
    held_out_pictures,
)
from datamodules.studio.person import build_person, sample_person


def test_every_class_belongs_to_one_part_and_the_background_to_none() -> None:
    table = coarse_table()
    assert table[0] == 0
    assert sorted(set(table)) == list(range(len(COARSE_PARTS) + 1))
    for index, names in enumerate(COARSE_PARTS.values()):
        assert {FINE_CLASSES[i] for i, part in enumerate(table) if part == index + 1} == set(names)


def test_a_batch_depends_on_its_number_alone() -> None:
    first, again, other = draw_batch(5, 4, 48), draw_batch(5, 4, 48), draw_batch(6, 4, 48)
    assert all((first[name] == again[name]).all() for name in first)
    assert not np.array_equal(first["pictures"], other["pictures"])
    assert first["pictures"].shape == (4, 48, 48, 3)
    assert first["classes"].max() < len(FINE_CLASSES)
    assert set(first["view"]) <= {UNKNOWN_VIEW, *range(len(VIEW_CLASSES))}


def test_all_classes_and_views_come_up() -> None:
    frequency = class_frequencies(96, 48)
    assert (frequency > 0).all(), dict(zip(FINE_CLASSES, frequency, strict=True))
    assert 0.5 < frequency[0] < 0.95
    views = np.concatenate([draw_batch(number, 48, 32)["view"] for number in range(4)])
    assert set(views) == {UNKNOWN_VIEW, *range(len(VIEW_CLASSES))}


def test_labels_lie_on_their_pixels() -> None:
    spec = sample_person(11)
    garments = tuple(
        dataclasses.replace(garment, rgb=(0.9, 0.1, 0.1), second_rgb=(0.9, 0.1, 0.1)) for garment in spec.garments
    )
    person = build_person(dataclasses.replace(spec, garments=garments))
    rng = np.random.default_rng(0)
    worn = [FINE_CLASSES.index(name) for part in ("upper", "lower", "dress") for name in COARSE_PARTS[part]]
    redness = []
    for _ in range(6):
        picture = draw_picture(rng, person, None, 96)
        inside = np.isin(picture.classes, worn)
        if inside.sum() > 100:
            pixels = picture.rgb[inside].astype(float)
            redness.append((pixels[:, 0] > pixels[:, 1:].max(1)).mean())
    assert len(redness) >= 3
    assert np.mean(redness) > 0.9


def test_glasses_are_a_class_of_their_own_here_and_part_of_the_face_elsewhere() -> None:
    person = build_person(dataclasses.replace(sample_person(3), glasses=True))
    rng = np.random.default_rng(1)
    found = [draw_picture(rng, person, None, 128).classes for _ in range(12)]
    glasses = FINE_CLASSES.index("glasses")
    assert any((classes == glasses).sum() > 10 for classes in found)
    from datamodules.studio.album_writer import take_photos

    labels = np.concatenate([photo.label.ravel() for photo in take_photos(person, seed=1, num_photos=4, resolution=96)])
    assert not np.isin(glasses - 1, labels)


def test_two_people_have_no_view() -> None:
    people = [build_person(sample_person(seed)) for seed in (1, 2)]
    picture = draw_picture(np.random.default_rng(0), people[0], people[1], 64)
    assert picture.view == UNKNOWN_VIEW


def test_held_out_people_are_not_those_of_the_training() -> None:
    pictures = held_out_pictures(2, 3, 48)
    assert pictures["pictures"].shape == (6, 48, 48, 3)
    assert (pictures["view"] >= 0).all()
    wild = held_out_pictures(2, 3, 48, wild=True)
    assert not np.array_equal(wild["pictures"], pictures["pictures"])
