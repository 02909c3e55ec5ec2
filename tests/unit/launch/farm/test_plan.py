"""The plan of packs, which processes share and kills cut short."""

from __future__ import annotations

import json
from pathlib import Path

from launch.farm.plan import PackPlan, add_line, read_lines


def names(packs) -> list[tuple[str, ...]]:
    return [pack.albums for pack in packs]


def test_a_plan_is_what_was_added_last(tmp_path: Path) -> None:
    plan = PackPlan(tmp_path)
    plan.add([["a", "b", "c"], ["d"]])
    assert names(PackPlan(tmp_path).current()) == [("a", "b", "c"), ("d",)]
    halves = plan.split("p000001")
    assert names(halves) == [("a", "b"), ("c",)]
    assert [pack.parent for pack in halves] == ["p000001", "p000001"]
    assert names(PackPlan(tmp_path).current()) == [("d",), ("a", "b"), ("c",)]
    assert plan.split("p000002") == []


def test_two_processes_plan_together(tmp_path: Path) -> None:
    one, two = PackPlan(tmp_path), PackPlan(tmp_path)
    one.add([["a", "b"]])
    assert names(two.add([["b", "c"], ["a"]])) == [("c",)]
    # What one has split is not split again.
    first = one.split("p000001")
    assert two.split("p000001") == first
    one.refresh()
    assert one.packs == two.packs


def test_packs_that_have_not_begun_may_be_regrouped(tmp_path: Path) -> None:
    plan = PackPlan(tmp_path)
    begun, fresh = plan.add([["a", "b"], ["c", "d", "e"]])
    add_line(plan.attempts_path(begun.name), {"event": "begin"})
    assert names(plan.regroup([begun, fresh], 2)) == [("c", "d"), ("e",)]
    assert names(plan.current()) == [("a", "b"), ("c", "d"), ("e",)]


def test_a_line_that_a_kill_cut_short_does_not_count(tmp_path: Path) -> None:
    plan = PackPlan(tmp_path)
    plan.add([["a"]])
    path = tmp_path / ".farm" / "plan.jsonl"
    with path.open("a") as file:
        file.write('{"name": "p000002", "alb')
    again = PackPlan(tmp_path)
    assert names(again.current()) == [("a",)]
    again.add([["b"]])
    assert [json.loads(line)["albums"] for line in path.read_text().splitlines()] == [["a"], ["b"]]
    assert names(PackPlan(tmp_path).current()) == [("a",), ("b",)]


def test_lines_are_read_back_but_for_a_broken_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "lines.jsonl"
    assert read_lines(path) == []
    add_line(path, {"a": 1})
    with path.open("a") as file:
        file.write('{"b"')
    assert read_lines(path) == [{"a": 1}]
