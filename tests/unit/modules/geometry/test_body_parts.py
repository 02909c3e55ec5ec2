"""Parts of the body, by the nearest point of the template."""

from __future__ import annotations

import numpy as np
import pytest

from modules.geometry.body import load_body
from modules.geometry.body_parts import BODY_PARTS, parts_of_body, parts_of_points


@pytest.mark.parametrize("gender", ["person", "woman", "man"])
def test_every_part_is_there_and_both_sides_are_alike(gender: str) -> None:
    body = load_body(gender)  # type: ignore[arg-type]
    parts = parts_of_body(body)
    left = np.bincount(parts[body.vertices[:, 0] > 1e-4], minlength=len(BODY_PARTS))
    right = np.bincount(parts[body.vertices[:, 0] < -1e-4], minlength=len(BODY_PARTS))
    assert (left > 0).all()
    np.testing.assert_allclose(left, right, rtol=0.05, atol=3)


def test_points_are_where_one_points_at() -> None:
    body = load_body()
    head = body.vertices[body.regions["head"]]
    top, nose = head[head[:, 1].argmax()], head[head[:, 2].argmax()]
    back = head[head[:, 2].argmin()]
    places = {
        "scalp": top + np.array((0, 0.03, 0)),
        "face": nose + np.array((0, 0, 0.02)),
        "torso": body.joints["spine_middle"] + [0, 0, 0.15],
        "upper arms": (body.joints["shoulder_left"] + body.joints["elbow_left"]) / 2,
        "forearms": (body.joints["elbow_right"] + body.joints["wrist_right"]) / 2,
        "hands": body.landmarks.close_ups_m["left hand"],
        "thighs": (body.joints["hip_left"] + body.joints["knee_left"]) / 2,
        "shins": (body.joints["knee_right"] + body.joints["ankle_right"]) / 2,
        "feet": body.landmarks.close_ups_m["right foot"],
        "neck": body.joints["neck"] + [0, 0.03, 0.05],
    }
    found = parts_of_points(np.array(list(places.values())), body)
    assert [BODY_PARTS[index] for index in found] == list(places)
    assert BODY_PARTS[parts_of_points(back[None], body)[0]] in ("scalp", "neck")
