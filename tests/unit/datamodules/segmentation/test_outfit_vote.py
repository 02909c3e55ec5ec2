"""Photos vote on what is worn."""

from __future__ import annotations

from datamodules.segmentation.detections import Detection, FloatBox
from datamodules.segmentation.outfit_vote import assign, decide_outfit

TORSO, WITHIN_TORSO, LEGS, BODY = (20, 20, 80, 100), (35, 20, 65, 100), (25, 100, 75, 180), (20, 20, 80, 150)
LEFT_FOOT, RIGHT_FOOT, HEAD, CROWN = (25, 180, 45, 195), (55, 180, 75, 195), (40, 0, 60, 20), (40, 0, 60, 6)


def seen(box: FloatBox, **scores: float) -> Detection:
    """Names with underscores for blanks."""
    ranked = sorted(scores.items(), key=lambda item: -item[1])
    return Detection(box=box, scores={name.replace("_", " "): score for name, score in ranked})


def test_a_garment_has_one_name_in_all_photos():
    shirt, jumper = seen(TORSO, shirt=0.5, jumper=0.4), seen(TORSO, jumper=0.6, shirt=0.3)
    photos = [[shirt], [shirt], [jumper], [shirt, seen((21, 20, 80, 100), jumper=0.45)]]
    worn = decide_outfit(photos, 0.2)
    assert worn == {"upper": ("shirt",)}
    assert [assign(photo, worn) for photo in photos] == [{"shirt": [TORSO]}] * 4


def test_a_jacket_over_a_shirt_is_two_garments():
    open_jacket = [seen(TORSO, jacket=0.6), seen(WITHIN_TORSO, t_shirt=0.5)]
    photos = [open_jacket, open_jacket, [seen(TORSO, jacket=0.7)]]
    renamed = [
        [Detection(box=one.box, scores={k.replace("t ", "t-"): v for k, v in one.scores.items()}) for one in p]
        for p in photos
    ]
    worn = decide_outfit(renamed, 0.2)
    assert worn == {"upper": ("jacket", "t-shirt")}
    assert assign(renamed[0], worn) == {"jacket": [TORSO], "t-shirt": [WITHIN_TORSO]}
    # Seen in one of three only, it is a mistake.
    assert decide_outfit([renamed[0], renamed[2], renamed[2]], 0.2) == {"upper": ("jacket",)}


def test_below_the_waist_there_is_one_garment():
    photos = [[seen(LEGS, trousers=0.6), seen((25, 100, 75, 130), shorts=0.4)]] * 3
    worn = decide_outfit(photos, 0.2)
    assert worn == {"lower": ("trousers",)}
    assert assign(photos[0], worn) == {"trousers": [LEGS]}


def test_two_shoes_are_one_asset_and_two_faces_are_not():
    photo = [seen(LEFT_FOOT, shoes=0.4), seen(RIGHT_FOOT, shoes=0.6), seen(HEAD, face=0.7), seen(LEGS, face=0.4)]
    assert assign(photo, decide_outfit([photo], 0.2)) == {"shoes": [RIGHT_FOOT, LEFT_FOOT], "face": [HEAD]}


def test_a_dress_stands_against_what_would_be_in_its_place():
    dressed = [seen(BODY, dress=0.6), seen(LEGS, skirt=0.4), seen(TORSO, shirt=0.3)]
    portrait = [seen(TORSO, shirt=0.5)]
    behind_a_table = [seen(LEGS, skirt=0.5)]
    photos = [dressed, dressed, portrait, dressed]
    worn = decide_outfit(photos, 0.2)
    assert worn == {"dress": ("dress",)}
    assert assign(dressed, worn) == {"dress": [BODY]}
    # Half of a dress is taken for a shirt or a skirt.
    assert assign(portrait, worn) == {"dress": [TORSO]}
    assert assign(behind_a_table, worn) == {"dress": [LEGS]}


def test_a_jacket_may_be_worn_over_a_dress():
    photo = [seen(BODY, dress=0.5), seen(TORSO, jacket=0.6)]
    worn = decide_outfit([photo] * 3, 0.2)
    assert worn == {"upper": ("jacket",), "dress": ("dress",)}
    assert assign(photo, worn) == {"dress": [BODY], "jacket": [TORSO]}
    # Without it the bodice shows, which is no jacket.
    assert assign([seen(BODY, dress=0.5), seen(TORSO, shirt=0.4)], worn) == {"dress": [BODY]}


def test_a_doubtful_dress_gives_way():
    photo = [seen(BODY, dress=0.3), seen(TORSO, shirt=0.5), seen(LEGS, trousers=0.6)]
    worn = decide_outfit([photo, photo, [seen(BODY, dress=0.4)]], 0.2)
    assert worn == {"upper": ("shirt",), "lower": ("trousers",)}
    assert assign([seen(BODY, dress=0.4)], worn) == {}


def test_a_cap_in_one_photo_of_six_is_a_mistake():
    head, cap = [seen(HEAD, face=0.8)], [seen(HEAD, face=0.8), seen(CROWN, cap=0.4)]
    assert decide_outfit([head] * 5 + [cap], 0.2) == {"face": ("face",)}
    assert decide_outfit([head] * 4 + [cap], 0.2) == {"face": ("face",), "cap": ("cap",)}
    # Photos without the head do not count against it.
    assert "cap" in decide_outfit([[seen(LEGS, trousers=0.5)]] * 20 + [cap], 0.2)


def test_what_is_not_known_has_a_part_of_its_own():
    photo = [seen(TORSO, shirt=0.5), seen(TORSO, scarf=0.4)]
    worn = decide_outfit([photo], 0.2)
    assert worn == {"upper": ("shirt",), "scarf": ("scarf",)}
    assert assign(photo, worn) == {"shirt": [TORSO], "scarf": [TORSO]}


def test_nothing_seen_is_nothing_worn():
    assert decide_outfit([], 0.2) == {}
    assert decide_outfit([[], []], 0.2) == {}
    assert assign([], {"upper": ("shirt",)}) == {}
