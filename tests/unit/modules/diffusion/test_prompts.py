"""The wording of prompts."""

from __future__ import annotations

from modules.diffusion.prompts import AssetPhrase, compose_prompt

FACE = AssetPhrase(name="face", token="<asset0>")
HAIR = AssetPhrase(name="haircut", words="short dreadlocks", token="<asset1>")
SHIRT = AssetPhrase(name="shirt", token="<asset2>")
PANTS = AssetPhrase(name="pants", token="<asset3>")


def test_the_papers_sentence() -> None:
    assert compose_prompt("man", [PANTS, SHIRT, HAIR, FACE], view="front") == (
        "a high-resolution DSLR colored image of a man, <asset0> face, <asset1> short dreadlocks haircut, "
        "wearing <asset3> pants, and <asset2> shirt, front view."
    )


def test_normals_have_their_own_head_and_unknown_words_are_left_out() -> None:
    assert compose_prompt("person", [FACE], kind="normal") == "a detailed sculpture of a person, <asset0> face."


def test_scene_words_come_in_order() -> None:
    prompt = compose_prompt("woman", [SHIRT], view="back", framing="head", pose="a-pose", background="gray")
    assert prompt.endswith("woman, wearing <asset2> shirt, head, a-pose, back view, gray background.")
