"""Pictures: what is seen from where, labels, normals and backgrounds; and that baked textures say the same."""

from __future__ import annotations

import numpy as np
import pytest

from datamodules.studio.baking import bake_textures, ground_truth_mesh
from datamodules.studio.person import build_person, sample_person
from datamodules.studio.photographer import (
    Light,
    plain_background,
    random_background,
    sample_background,
    take_picture,
)
from datamodules.studio.vocabulary import GARMENTS, LABEL_INDEX, NO_PERSON
from modules.geometry.camera import framing_target, orbit_camera
from modules.rendering.zbuffer import clip_to_pixels, visible_triangles
from tests.unit.datamodules.studio.test_person import dressed

RESOLUTION = 96


def shot(person, azimuth_deg: float, *, framing="full body", light=None, resolution=RESOLUTION):
    target, height = framing_target(framing, person.landmarks())
    camera = orbit_camera(azimuth_deg, 0, target_m=target, frame_height_m=height)
    background = plain_background("gray", resolution)
    lighting = {} if light is None else {"light": light}
    return take_picture(person, person.vertices, camera, resolution=resolution, background=background, **lighting)


def test_the_face_is_seen_from_the_front_only() -> None:
    person = build_person(dressed("t-shirt", "trousers"))
    front, back = (shot(person, azimuth, framing="head").label for azimuth in (0, 180))
    assert (front == LABEL_INDEX["face"]).mean() > 0.1
    assert (back == LABEL_INDEX["face"]).sum() < 0.25 * (front == LABEL_INDEX["face"]).sum()
    assert (back == LABEL_INDEX["haircut"]).sum() > (front == LABEL_INDEX["haircut"]).sum()


def test_the_persons_left_side_is_on_the_right_of_a_front_view() -> None:
    person = build_person(dressed("t-shirt", "trousers"))
    person.colors[:] = 0.5
    label = shot(person, 0).label
    assert (label != NO_PERSON).any()
    camera = orbit_camera(0, 0, target_m=np.array([0, 0.85, 0]), frame_height_m=2.0)
    left_hand = person.vertices[(person.arm > 1) & (person.canonical[:, 0] > 0)].mean(0)
    assert (camera.clip_matrix() @ [*left_hand, 1])[0] > 0
    # From azimuth 90 the camera stands at the left hand, which is nearer than the right one.
    side = orbit_camera(90, 0, target_m=np.array([0, 0.85, 0]), frame_height_m=2.0)
    right_hand = person.vertices[(person.arm > 1) & (person.canonical[:, 0] < 0)].mean(0)
    assert (side.clip_matrix() @ [*left_hand, 1])[3] < (side.clip_matrix() @ [*right_hand, 1])[3]


@pytest.mark.parametrize("name", GARMENTS)
def test_every_garment_shows_in_its_colour(name: str) -> None:
    picture = shot(build_person(dressed(name)), 20)
    mask = picture.label == LABEL_INDEX[name]
    assert mask.mean() > 0.002
    red = picture.rgb[mask].astype(int)
    assert np.median(red[:, 0]) > np.median(red[:, 1:]) + 60


def test_flat_light_shows_the_albedo_and_shading_only_darkens() -> None:
    person = build_person(dressed("jumper", "trousers"))
    flat = shot(person, 0).rgb.astype(int)
    lit = shot(person, 0, light=Light(direction=(0.3, 0.5, 1), ambient=0.5)).rgb.astype(int)
    assert (lit <= flat + 1).all()
    assert (lit < flat - 20).any()


def test_normals_point_to_the_viewer_and_left_to_left() -> None:
    picture = shot(build_person(dressed("t-shirt", "trousers")), 0, framing="head")
    inside = picture.label != NO_PERSON
    normal = picture.normal.astype(float) / 127.5 - 1
    assert np.median(normal[inside][:, 2]) > 0.5
    # On the round head, normals lean outwards: x grows to the right, y upwards.
    rows, columns = np.nonzero((picture.label == LABEL_INDEX["face"]) | (picture.label == LABEL_INDEX["haircut"]))
    assert np.corrcoef(columns, normal[rows, columns, 0])[0, 1] > 0.6
    assert np.corrcoef(rows, normal[rows, columns, 1])[0, 1] < -0.4
    np.testing.assert_array_equal(np.unique(picture.normal[:2]), [128])


def test_a_picture_beside_the_person_is_background() -> None:
    person = build_person(sample_person(1))
    camera = orbit_camera(0, 0, target_m=np.array([5.0, 0.85, 0]), frame_height_m=0.3)
    picture = take_picture(person, person.vertices, camera, resolution=16, background=plain_background("white", 16))
    assert (picture.label == NO_PERSON).all()
    assert (picture.rgb == round(0.93 * 255)).all()


@pytest.mark.parametrize("seed", [0, 3, 12, 20])
def test_baked_textures_agree_with_renders(seed: int) -> None:
    person = build_person(sample_person(seed))
    albedo, labels = bake_textures(person, 1024)
    mesh = ground_truth_mesh(person, albedo)
    size = 256
    agree, total, error = 0, 0, []
    for azimuth in (0, 130):
        target, height = framing_target("full body", person.landmarks())
        camera = orbit_camera(azimuth, 5, target_m=target, frame_height_m=height)
        background = plain_background("gray", size)
        picture = take_picture(person, person.vertices, camera, resolution=size, background=background)
        clip = np.concatenate([mesh.vertices, np.ones((len(mesh.vertices), 1))], 1) @ camera.clip_matrix().T
        face, barycentric, _ = visible_triangles(clip_to_pixels(clip, size, size), mesh.faces, size, size)
        seen = (face >= 0) & (picture.label != NO_PERSON)
        weight = np.concatenate([barycentric, 1 - barycentric.sum(-1, keepdims=True)], -1)[seen]
        uv = (mesh.uv[mesh.faces[face[seen]]] * weight[..., None]).sum(1)
        column, row = np.clip((uv * 1024).astype(int), 0, 1023).T
        agree += (labels[row, column] == picture.label[seen]).sum()
        total += seen.sum()
        error.append(abs(albedo[row, column].astype(int) - picture.rgb[seen].astype(int)).mean())
    assert agree / total > 0.95
    assert max(error) < 14


def test_backgrounds() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        image = random_background(rng, 24)
        assert image.shape == (24, 24, 3)
        assert image.dtype == np.float32
        assert 0 <= image.min() <= image.max() <= 1
    image, word = sample_background(rng, 16, plain=True)
    assert word in ("white", "gray", "black")
    assert np.ptp(image) == 0
    assert sample_background(rng, 16, plain=False)[1] == "random"
    with pytest.raises(ValueError, match="word must be one of"):
        plain_background("plaid", 8)


def test_light_is_checked() -> None:
    with pytest.raises(ValueError, match=r"ambient must lie in \[0, 1\], found 1.5"):
        Light(ambient=1.5)
