from __future__ import annotations

import pytest

from tests.unit.trainer.report_content import metrics_row
from trainer.metrics_table import SUMMARY_KEYS, best_rows, format_figure, metrics_table, summary


def test_summary_takes_the_corrected_figures():
    flat = summary(metrics_row(1.5))
    assert list(flat) == list(SUMMARY_KEYS)
    assert flat["psnr_fg"] == 15.5
    assert flat["colour_error"] == 12.0


def test_summary_leaves_out_what_was_not_measured():
    row = metrics_row(1.0)
    row["corrected"]["colour_error"] = None
    assert "colour_error" not in summary(row)
    assert summary({"reference": {"psnr": 20.0}}) == {}


def test_summary_of_a_summary_is_itself():
    flat = summary(metrics_row(2.0))
    assert summary(flat) == flat


def test_table_names_rows_and_stars_the_best():
    text = metrics_table(
        {"avatar": metrics_row(1.0), "template": metrics_row(2.0), "words_only": summary(metrics_row(1.5))}
    )
    lines = {word: line for line in text.splitlines() for word in ("avatar", "template", "words_only") if word in line}
    assert lines["avatar"].count("*") == 6  # all but SSIM, which is equal everywhere
    assert "*" not in lines["template"]
    assert "1.500" in lines["words_only"]


@pytest.mark.parametrize("width", [60, 120])
def test_table_is_plain_text(width):
    text = metrics_table({"[red]name": metrics_row(1.0)}, width=width)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= width
    if width == 120:
        assert "[red]name" in text


def test_best_rows_needs_a_difference():
    assert best_rows({"a": {"psnr": 1.0}, "b": {"psnr": 2.0}}, "psnr") == {"b"}
    assert best_rows({"a": {"normal": 1.0}, "b": {"normal": 2.0}}, "normal") == {"a"}
    assert best_rows({"a": {"psnr": 1.0}, "b": {}}, "psnr") == set()


@pytest.mark.parametrize(("value", "text"), [(1.23456, "1.235"), (None, "-"), ({"absent": "why"}, "absent")])
def test_figures_as_text(value, text):
    assert format_figure("lpips", value) == text
