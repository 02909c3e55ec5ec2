"""Training images of the prior, written as shards of people."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.studio.person import HELD_OUT_SEED, Person, build_person, phrases, sample_person
from datamodules.studio.photographer import FLAT_LIGHT, Light, Picture, sample_background, take_picture
from datamodules.studio.poses import sample_pose
from datamodules.studio.surface import vertex_normals
from datamodules.studio.vocabulary import LABEL_INDEX
from modules.geometry.camera import Camera, Framing, sample_camera, view_word

PEOPLE_PER_SHARD = 250
SHARE_A_POSE = 0.6
FRAMING_ODDS: dict[Framing, float] = {"full body": 5 / 8, "upper body": 1.5 / 8, "head": 1.5 / 8}
_ACTIVE_POSES, _ACTIVE_ODDS = ("standing", "walking", "arms raised", "posed"), (0.35, 0.2, 0.12, 0.33)
# An asset is part of the caption when this share of its surface is in the frame, or this share of the pixels shows it.
_MIN_SHARE_IN_FRAME, _MIN_SHARE_OF_PIXELS = 0.3, 0.012


def assets_in_frame(person: Person, posed: np.ndarray, camera: Camera, picture: Picture) -> list[dict[str, Any]]:
    """Name, caption words and share of the pixels of each asset in the frame, even when its front is turned away."""
    clip = np.concatenate([posed, np.ones((len(posed), 1), np.float32)], 1) @ camera.clip_matrix().T
    inside = (abs(clip[:, :2]) < clip[:, 3:]).all(1)
    num_labels = max(LABEL_INDEX.values()) + 1
    total = np.bincount(person.vertex_label, minlength=num_labels)
    framed = np.bincount(person.vertex_label[inside], minlength=num_labels)
    pixels = np.bincount(picture.label.ravel(), minlength=256)
    listed = []
    for phrase in phrases(person.spec):
        index = LABEL_INDEX[phrase.name]
        share = float(pixels[index]) / picture.label.size
        if phrase.name == "haircut" and phrase.words == "bald":
            in_frame = inside[person.vertex_label == LABEL_INDEX["face"]].mean() >= _MIN_SHARE_IN_FRAME
        else:
            in_frame = framed[index] >= _MIN_SHARE_IN_FRAME * max(total[index], 1)
        if in_frame or share >= _MIN_SHARE_OF_PIXELS:
            listed.append({"name": phrase.name, "words": phrase.words, "visible": round(share, 4)})
    return listed


def photograph_for_prior(
    seed: int, *, resolution: int, num_images: int
) -> list[tuple[np.ndarray, np.ndarray, dict[str, Any]]]:
    """All images of one person: rgb and normal (R, R, 3) uint8 and the meta entry. Depends on nothing but the
    arguments.
    """
    rng = np.random.default_rng([seed, 29])
    person = build_person(sample_person(seed))
    standing_normals = vertex_normals(person.vertices, person.faces)
    num_a_pose = round(SHARE_A_POSE * num_images)
    images = []
    for index in range(num_images):
        a_pose = index < num_a_pose
        word = "a-pose" if a_pose else str(rng.choice(_ACTIVE_POSES, p=_ACTIVE_ODDS))
        posed = person.posed(sample_pose(rng, word, skirt=person.has_skirt))
        normals = standing_normals if a_pose else vertex_normals(posed, person.faces)
        framing: Framing = list(FRAMING_ODDS)[int(rng.choice(len(FRAMING_ODDS), p=list(FRAMING_ODDS.values())))]
        camera = sample_camera(rng, framing, person.landmarks(posed))
        background, background_word = sample_background(
            rng, resolution, plain=rng.random() < (0.88 if a_pose else 0.45)
        )
        light = FLAT_LIGHT
        if not a_pose or rng.random() < 0.5:
            spread = 0.35 if a_pose else 0.6
            direction = (rng.normal(0, spread), rng.normal(0.25, spread), 1.0)
            light = Light(direction=direction, ambient=rng.uniform(0.75, 0.9) if a_pose else rng.uniform(0.55, 0.85))
        picture = take_picture(
            person, posed, camera, resolution=resolution, light=light, background=background, normals=normals
        )
        meta = {
            "gender": person.spec.gender,
            "assets": assets_in_frame(person, posed, camera, picture),
            "view": view_word(camera.azimuth_deg, camera.elevation_deg, "eight"),
            "framing": framing,
            "pose": word,
            "background": background_word,
        }
        images.append((picture.rgb, picture.normal, meta))
    return images


def _write_shard(first_seed: int, *, out: Path, num_people: int, resolution: int, images_per_person: int) -> Path:
    path = out / f"people_{first_seed}.npz"
    rgb, normal, meta = [], [], []
    for seed in range(first_seed, first_seed + num_people):
        for image in photograph_for_prior(seed, resolution=resolution, num_images=images_per_person):
            rgb.append(image[0])
            normal.append(image[1])
            meta.append(json.dumps(image[2]))
    temporary = path.with_suffix(".tmp.npz")
    np.savez(temporary, rgb=np.stack(rgb), normal=np.stack(normal), meta=np.array(meta))
    os.replace(temporary, path)
    return path


def _write_job(job: tuple[int, int], *, out: Path, resolution: int, images_per_person: int) -> Path:
    return _write_shard(job[0], out=out, num_people=job[1], resolution=resolution, images_per_person=images_per_person)


def write_prior_shards(
    out: Path,
    *,
    num_people: int,
    seed: int,
    resolution: int = 64,
    images_per_person: int = 8,
    num_workers: int = 2,
    people_per_shard: int = PEOPLE_PER_SHARD,
) -> list[Path]:
    """Write `out/people_<first seed>.npz` for the people `seed`, `seed + 1`, ...; existing shards are kept.

    Each shard holds rgb and normal (N, R, R, 3) uint8 and meta (N,) JSON strings {"gender", "assets": [{"name",
    "words", "visible"}], "view", "framing", "pose", "background"}; "visible" is the asset's share of the pixels (a
    face seen from behind is in the frame with 0). The bytes depend on the seed only, not on `num_workers`.
    Raises ValueError for held-out seeds.
    """
    if seed < 0 or seed + num_people > HELD_OUT_SEED:
        raise ValueError(
            f"the seeds of the prior's people must lie in [0, {HELD_OUT_SEED}), found {seed} to {seed + num_people - 1}"
        )
    out.mkdir(parents=True, exist_ok=True)
    starts = range(seed, seed + num_people, people_per_shard)
    jobs = [(start, min(people_per_shard, seed + num_people - start)) for start in starts]
    missing = [job for job in jobs if not (out / f"people_{job[0]}.npz").exists()]
    write = functools.partial(_write_job, out=out, resolution=resolution, images_per_person=images_per_person)
    if num_workers <= 1 or len(missing) <= 1:
        for job in missing:
            write(job)
    else:
        with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
            pool.map(write, missing, chunksize=1)
    return [out / f"people_{start}.npz" for start in starts]


def write_held_out_shards(out: Path, *, num_people: int, resolution: int, images_per_person: int = 8) -> Path:
    """One shard of people that no prior is trained on, to measure it with; an existing one is kept."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"people_{HELD_OUT_SEED}.npz"
    if path.exists():
        return path
    return _write_shard(
        HELD_OUT_SEED, out=out, num_people=num_people, resolution=resolution, images_per_person=images_per_person
    )
