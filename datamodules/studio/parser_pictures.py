"""Studio pictures with labels for the mini parser: many framings, several people, clutter, and cameras' faults.

Nothing is stored: a person takes 15 ms to build and a picture 15 ms to render, less than a training step on them.
"""

from __future__ import annotations

import dataclasses
import io
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from datamodules.segmentation.classes import FINE_CLASSES, VIEW_CLASSES
from datamodules.studio.person import Person, PersonSpec, build_person, sample_person
from datamodules.studio.photographer import (
    Light,
    plain_background,
    random_background,
    sample_background,
    take_picture,
)
from datamodules.studio.poses import sample_pose
from datamodules.studio.vocabulary import HELD_OUT_SEED, NO_PERSON
from modules.geometry.camera import Camera, Framing, framing_target, orbit_camera, sample_camera, view_word

UNKNOWN_VIEW = -1
# Labels of the renderer are one below the parser's classes, whose first is the background; glasses are its last.
_GLASSES_LABEL = len(FINE_CLASSES) - 2
_FRAMINGS: tuple[Framing, ...] = ("full body", "upper body", "head")
_FRAMING_ODDS = (0.5, 0.27, 0.23)
_POSES, _POSE_ODDS = ("a-pose", "standing", "walking", "arms raised", "posed"), (0.1, 0.35, 0.2, 0.1, 0.25)
_OVERHEAD_FROM_DEG = 60.0
# Of so many people the one who wears most of what few wear is taken, every second time.
_CANDIDATES = 5
_RARE = {"dress": 4, "cap": 3, "skirt": 2, "tank top": 1, "shorts": 1}


class ParserPicture(NamedTuple):
    """rgb: (R, R, 3) uint8. classes: (R, R) uint8 indices into FINE_CLASSES. view: index into VIEW_CLASSES or -1."""

    rgb: np.ndarray
    classes: np.ndarray
    view: int


def draw_studio_picture(rng: np.random.Generator, person: Person, resolution: int) -> ParserPicture:
    """A picture as the studio's albums hold them (`datamodules.studio.album_writer.take_photos`)."""
    framing = _FRAMINGS[int(rng.choice(3, p=(0.5, 0.25, 0.25)))]
    word = str(rng.choice(_POSES[1:], p=(0.4, 0.2, 0.1, 0.3)))
    posed = person.posed(sample_pose(rng, word, skirt=person.has_skirt))
    camera = sample_camera(rng, framing, person.landmarks(posed))
    background, _ = sample_background(rng, resolution, plain=rng.random() < 0.3)
    light = Light(direction=(rng.normal(0, 0.6), rng.normal(0.3, 0.5), 1.0), ambient=float(rng.uniform(0.6, 0.88)))
    rgb, classes = _rendered(person, posed, camera, light, background)
    if rng.random() < 0.15:
        _occlude(rng, rgb, classes)
    if rng.random() < 0.2:
        sigma = rng.uniform(0.002, 0.006) * resolution
        rgb = gaussian_filter(rgb, (sigma, sigma, 0))
    return ParserPicture(rgb, classes, VIEW_CLASSES.index(view_word(camera.azimuth_deg, 0.0, "eight")))


def draw_picture(rng: np.random.Generator, person: Person, other: Person | None, resolution: int) -> ParserPicture:
    """A picture of `person` with clutter and a camera's faults; `other`, if given, stands beside, before or behind, and
    makes the view unknown.
    """
    background = _background(rng, resolution)
    light = Light(direction=(rng.normal(0, 0.7), rng.normal(0.3, 0.6), 1.0), ambient=float(rng.uniform(0.4, 0.92)))
    rgb, classes, camera = _take(rng, person, background, light, aside=0.0)
    view = view_word(camera.azimuth_deg, camera.elevation_deg, "eight")
    index = VIEW_CLASSES.index("overhead" if camera.elevation_deg > _OVERHEAD_FROM_DEG else view)
    if other is not None:
        aside = float(rng.choice([-1.0, 1.0]) * rng.uniform(0.25, 0.6))
        if rng.random() < 0.5:  # behind: what the first one covers stays
            behind, behind_classes, _ = _take(rng, other, background, light, aside=aside)
            covered = classes > 0
            rgb = np.where(covered[..., None], rgb, behind)
            classes = np.where(covered, classes, behind_classes)
        else:
            rgb, front_classes, _ = _take(rng, other, rgb.astype(np.float32) / 255, light, aside=aside)
            classes = np.where(front_classes > 0, front_classes, classes)
        index = UNKNOWN_VIEW
    if rng.random() < 0.2:
        _occlude(rng, rgb, classes)
    return ParserPicture(_photographed(rng, rgb), classes, index)


def draw_people(seed: int, count: int, *, rng: np.random.Generator) -> list[Person]:
    """`count` people with seeds from `seed` to `seed + _CANDIDATES * count`: every second one wears something rare, and
    some have glasses who had none.
    """
    people = []
    for number in range(count):
        specs = [sample_person(seed + _CANDIDATES * number + index) for index in range(_CANDIDATES)]
        spec = max(specs, key=_rarity) if number % 2 else specs[0]
        if not spec.glasses and rng.random() < 0.2:
            spec = dataclasses.replace(spec, glasses=True)
        people.append(build_person(spec))
    return people


def _rarity(spec: PersonSpec) -> int:
    return sum(_RARE.get(garment.name, 0) for garment in spec.garments) + spec.glasses


def draw_batch(
    seed: int,
    num_pictures: int,
    resolution: int,
    *,
    per_person: int = 2,
    share_of_two: float = 0.12,
    share_of_studio: float = 0.4,
) -> dict[str, np.ndarray]:
    """A batch for training: pictures (B, R, R, 3) uint8, classes (B, R, R) uint8, view (B,) int64.

    share_of_studio: of pictures like those of the studio's albums; of the others, share_of_two show two people.

    The people are drawn among the seeds below HELD_OUT_SEED; everything depends on the arguments alone.
    """
    rng = np.random.default_rng((seed, 53))
    num_people = -(-num_pictures // per_person)
    first = int(rng.integers(0, HELD_OUT_SEED - _CANDIDATES * num_people))
    people = draw_people(first, num_people, rng=rng)
    drawn = []
    for index in range(num_pictures):
        person = people[index // per_person]
        if rng.random() < share_of_studio:
            drawn.append(draw_studio_picture(rng, person, resolution))
            continue
        other = people[int(rng.integers(num_people))] if rng.random() < share_of_two else None
        drawn.append(draw_picture(rng, person, other, resolution))
    return {
        "pictures": np.stack([picture.rgb for picture in drawn]),
        "classes": np.stack([picture.classes for picture in drawn]),
        "view": np.array([picture.view for picture in drawn], np.int64),
    }


def held_out_pictures(
    num_people: int, per_person: int, resolution: int, *, wild: bool = False, first: int = HELD_OUT_SEED
) -> dict[str, np.ndarray]:
    """As `draw_batch`, of people that no training sees, one in each picture: as in the studio's albums, or `wild`."""
    rng = np.random.default_rng((first, 59))
    drawn = []
    for number in range(num_people):
        person = build_person(sample_person(first + number))
        for _ in range(per_person):
            drawn.append(
                draw_picture(rng, person, None, resolution) if wild else draw_studio_picture(rng, person, resolution)
            )
    return {
        "pictures": np.stack([picture.rgb for picture in drawn]),
        "classes": np.stack([picture.classes for picture in drawn]),
        "view": np.array([picture.view for picture in drawn], np.int64),
    }


def class_frequencies(num_pictures: int = 256, resolution: int = 96) -> np.ndarray:
    """(C,) share of the pixels of each class in training pictures."""
    classes = draw_batch(1, num_pictures, resolution)["classes"]
    return np.bincount(classes.ravel(), minlength=len(FINE_CLASSES)) / classes.size


def _take(
    rng: np.random.Generator, person: Person, background: np.ndarray, light: Light, *, aside: float
) -> tuple[np.ndarray, np.ndarray, Camera]:
    posed = person.posed(sample_pose(rng, str(rng.choice(_POSES, p=_POSE_ODDS)), skirt=person.has_skirt))
    framing = _FRAMINGS[int(rng.choice(3, p=_FRAMING_ODDS))]
    target, height = framing_target(framing, person.landmarks(posed))
    # From crops that cut into the person to people who are small in the picture.
    height *= float(np.exp(rng.uniform(np.log(0.75), np.log(1.1 if rng.random() < 0.6 else 2.4))))
    overhead = rng.random() < 0.05
    elevation = rng.uniform(62, 82) if overhead else rng.normal(6, 12)
    camera = orbit_camera(
        float(rng.uniform(-180, 180)),
        float(np.clip(elevation, -40, 84)),
        target_m=target,
        frame_height_m=height,
        fov_y_deg=float(rng.uniform(24, 62)),
    )
    rotation = camera.rotation.astype(np.float64)
    shift = rng.normal(0, 0.07, 2) * height
    shift[0] += aside * height
    eye = camera.eye_m - shift[0] * rotation[0] + shift[1] * rotation[1]
    roll = np.radians(rng.normal(0, 5))
    turn = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    camera = dataclasses.replace(
        camera, rotation=(turn @ rotation).astype(np.float32), eye_m=np.asarray(eye, np.float32)
    )
    return *_rendered(person, posed, camera, light, background), camera


def _rendered(
    person: Person, posed: np.ndarray, camera: Camera, light: Light, background: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    picture = take_picture(
        person,
        posed,
        camera,
        resolution=len(background),
        light=light,
        background=background,
        glasses_label=_GLASSES_LABEL,
    )
    return picture.rgb, np.where(picture.label == NO_PERSON, 0, picture.label + 1).astype(np.uint8)


def _background(rng: np.random.Generator, resolution: int) -> np.ndarray:
    """(R, R, 3) float32: plain, soft, or cluttered with shapes and cloth-like noise of many scales."""
    kind = rng.random()
    if kind < 0.15:
        return plain_background(str(rng.choice(["white", "gray", "black"])), resolution, float(rng.normal(0, 0.03)))
    image = random_background(rng, resolution)
    if kind < 0.35:
        return image
    rows, columns = np.mgrid[:resolution, :resolution] / resolution
    for _ in range(int(rng.integers(2, 14))):
        colour, centre = rng.uniform(0, 1, 3), rng.uniform(-0.1, 1.1, 2)
        size = np.exp(rng.uniform(np.log(0.03), np.log(0.5), 2))
        angle = rng.uniform(0, np.pi)
        x, y = columns - centre[0], rows - centre[1]
        along, across = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
        if rng.random() < 0.5:
            inside = (abs(along) < size[0]) & (abs(across) < size[1])
        else:
            inside = (along / size[0]) ** 2 + (across / size[1]) ** 2 < 1
        strength = rng.uniform(0.4, 1)
        shade = 1 + rng.uniform(-0.6, 0.6) * along[inside][:, None] / size[0]
        image[inside] = (1 - strength) * image[inside] + strength * np.clip(colour * shade, 0, 1)
    for scale in (4, 12, 40):
        if rng.random() < 0.6:
            coarse = rng.normal(0, rng.uniform(0.02, 0.18), (scale, scale, 3 if rng.random() < 0.5 else 1))
            image += zoom(coarse, (resolution / scale, resolution / scale, 1), order=1)[:resolution, :resolution]
    return np.clip(image, 0, 1).astype(np.float32)


def _occlude(rng: np.random.Generator, rgb: np.ndarray, classes: np.ndarray) -> None:
    """Put something of one colour before the person, in place; it counts as background."""
    size = len(rgb)
    rows, columns = np.mgrid[:size, :size] / size
    if rng.random() < 0.5:
        angle, offset, width = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8), rng.uniform(0.02, 0.09)
        hidden = abs((columns - 0.5) * np.cos(angle) + (rows - 0.5) * np.sin(angle) + 0.5 - offset) < width / 2
    else:
        centre, radius = rng.uniform(0.1, 0.9, 2), rng.uniform(0.05, 0.16)
        hidden = (columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 < radius**2
    rgb[hidden] = rng.uniform(10, 245, 3)
    classes[hidden] = 0


def _photographed(rng: np.random.Generator, rgb: np.ndarray) -> np.ndarray:
    """What a camera adds: exposure, colour cast, saturation, blur, noise, compression."""
    image = rgb.astype(np.float32) / 255
    image = image ** float(np.exp(rng.normal(0, 0.25))) * rng.uniform(0.75, 1.15, 3) ** float(rng.random() < 0.5)
    grey = image.mean(2, keepdims=True)
    image = grey + (image - grey) * rng.uniform(0.4, 1.4)
    image = (image - 0.5) * rng.uniform(0.7, 1.25) + 0.5 + rng.normal(0, 0.05)
    if rng.random() < 0.35:
        sigma = float(rng.uniform(0.3, 1.6))
        image = gaussian_filter(image, (sigma, sigma, 0))
    if rng.random() < 0.5:
        image = image + rng.normal(0, rng.uniform(0.005, 0.06), image.shape)
    result = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    if rng.random() < 0.4:
        buffer = io.BytesIO()
        Image.fromarray(result).save(buffer, "JPEG", quality=int(rng.integers(25, 95)))
        result = np.array(Image.open(buffer))
    return result
