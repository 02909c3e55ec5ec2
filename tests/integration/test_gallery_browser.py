"""The dataset's page of a thousand albums, opened as a file in headless Chromium."""

from __future__ import annotations

import dataclasses
import io
import json
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.farm.gallery import write_gallery
from launch.farm.records import STATES, AlbumRecord, State, album_folder
from launch.farm.summary import Summary
from tests.unit.trainer.chromium import Chromium, find_chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine"),
]
NUM_ALBUMS, PER_PAGE, ROWS_PER_FILE = 1000, 48, 300
HOSTILE = "'\"><img src=x onerror='document.title=1'><b>&amp; %41?#\\"
MADE = ("report.html", "avatar.glb", "turntable.png")


def name_of(index: int) -> str:
    # A name of a folder may hold anything but a slash.
    return HOSTILE if index == 7 else f"album-{index:04d}"


def record(index: int) -> AlbumRecord:
    state: State = (
        "failed" if index % 50 == 3 else "running" if index % 50 == 4 else "waiting" if index > 899 else "done"
    )
    done = state == "done"
    return AlbumRecord(
        name=name_of(index),
        source="photos",
        state=state,
        reason=f"Photo {index}.jpg shows <b>nobody</b></script>" if state == "failed" else None,
        attempts=1,
        metrics={"avatar": {"chamfer_cm": (index * 37 % 1000) / 100, "psnr_fg": 20 + index / 100}} if done else {},
        files=[{"path": path, "size": 1, "sha256": f"{index:064x}"} for path in MADE] if done else [],
        timings={"booth": float(index + 1)} if done else {},
        finished_at=f"2026-01-01T{index // 60:02d}:{index % 60:02d}:00+00:00" if done else None,
    )


RECORDS = [record(index) for index in range(NUM_ALBUMS)]


def summary_of(records: list[AlbumRecord]) -> Summary:
    failed = [(one.name, one.reason or "") for one in records if one.state == "failed"]
    return Summary(
        counts={state: sum(one.state == state for one in records) for state in STATES},
        albums_per_hour=120.0,
        seconds_left=3 * 3600.0,
        elapsed_s=600.0,
        gpu_percent=87.4,
        gpu_memory_gib=61.25,
        memory_gib=12.0,
        workers=4,
        failures=failed[::-1][:20],
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("farm") / "people <i>&amp;"
    strip = np.zeros((32, 4 * 32, 3), np.uint8)
    strip[:, :32, 0] = 255
    strip[:, 32:, 2] = 255
    data = io.BytesIO()
    Image.fromarray(strip).save(data, "PNG")
    for one in RECORDS:
        if one.state == "done":
            album_folder(folder, one.name).mkdir(parents=True)
            for path in MADE:
                (album_folder(folder, one.name) / path).write_bytes(data.getvalue() if path.endswith(".png") else b"x")
    write_gallery(folder, RECORDS, summary_of(RECORDS), rows_per_file=ROWS_PER_FILE)
    return folder


@pytest.fixture(scope="module")
def started(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(find_chromium() or "", tmp_path_factory.mktemp("profile"))
    try:
        yield browser
    finally:
        browser.close()


def open_page(browser: Chromium, dataset: Path, hash_: str = "") -> None:
    browser.call("Page.navigate", url="about:blank")
    browser.call("Page.navigate", url=(dataset / "index.html").as_uri() + hash_)
    browser.wait_for("document.body?.dataset.state === 'ready'")


@pytest.fixture
def browser(started: Chromium, dataset: Path) -> Chromium:
    open_page(started, dataset)
    return started


def names(browser: Chromium) -> list[str]:
    return browser.evaluate("[...document.querySelectorAll('.album .name')].map(element => element.textContent)")


def text(browser: Chromium, selector: str) -> str:
    return browser.evaluate(f"document.querySelector({json.dumps(selector)}).textContent")


def set_value(browser: Chromium, selector: str, value: str, event: str) -> None:
    browser.evaluate(
        f"(() => {{ const element = document.querySelector({json.dumps(selector)});"
        f" element.value = {json.dumps(value)}; element.dispatchEvent(new Event({event!r}, {{ bubbles: true }})); }})()"
    )


def click(browser: Chromium, selector: str) -> None:
    browser.evaluate(f"document.querySelector({json.dumps(selector)}).click()")


def hash_of(browser: Chromium) -> dict[str, str]:
    return dict(urllib.parse.parse_qsl(browser.evaluate("location.hash").removeprefix("#")))


def wanted(**about) -> list[AlbumRecord]:
    return [one for one in RECORDS if all(getattr(one, key) == value for key, value in about.items())]


def test_page_shows_how_the_farm_stands_and_its_first_albums(browser: Chromium) -> None:
    shown = dict(
        browser.evaluate(
            "[...document.querySelectorAll('#figures > div')]"
            ".map(cell => [cell.querySelector('dt').textContent, cell.querySelector('dd').textContent])"
        )
    )
    for state in STATES:
        assert shown[state] == str(len(wanted(state=state)))
    assert (shown["albums per hour"], shown["time left"], shown["elapsed"]) == ("120", "3 h 0 min", "10 min")
    assert (shown["GPU"], shown["GPU memory"], shown["memory"]) == ("87 %", "61.3 GiB", "12.0 GiB")
    assert text(browser, "#status") == "running"
    assert names(browser) == sorted(one.name for one in RECORDS)[:PER_PAGE]
    assert text(browser, "h1") == "people <i>&amp;"
    assert browser.evaluate("document.querySelectorAll('#failures li').length") == 20


def test_page_asks_nobody_and_reports_no_problem(browser: Chromium, dataset: Path) -> None:
    for _ in range(3):
        click(browser, "#pager [data-step='1']")
    browser.wait_for("[...document.images].some(image => image.complete && image.naturalWidth)")
    folder = dataset.as_uri() + "/"
    assert browser.requests()
    assert all(url.startswith(folder) or url == "about:blank" for url in browser.requests())
    assert browser.problems() == []
    assert browser.evaluate("document.title").startswith("people <i>&amp; ")


def test_states_search_order_and_pages(browser: Chromium) -> None:
    click(browser, "[data-state='failed']")
    failed = wanted(state="failed")
    assert names(browser) == [one.name for one in failed]
    reasons = browser.evaluate("[...document.querySelectorAll('.album .why')].map(element => element.textContent)")
    assert reasons == [one.reason for one in failed]
    assert hash_of(browser) == {"state": "failed"}

    set_value(browser, "#search", "Photo 35", "input")
    assert names(browser) == ["album-0353"]
    click(browser, "[data-state='']")
    set_value(browser, "#search", "ALBUM-01 ", "input")
    assert text(browser, "#found") == "100 albums"
    assert text(browser, "#pages") == "3"
    click(browser, "#pager [data-step='1']")
    assert names(browser) == [f"album-01{index:02d}" for index in range(48, 96)]
    set_value(browser, "#page", "3", "change")
    assert names(browser) == [f"album-01{index:02d}" for index in range(96, 100)]
    assert browser.evaluate("document.querySelector(\"#pager [data-step='1']\").disabled")
    assert browser.evaluate("document.querySelectorAll('.album img').length") <= 4
    set_value(browser, "#search", "nobody like that", "input")
    assert text(browser, "#found") == "No album is like that."
    assert names(browser) == []


def test_order_by_figures_and_time_puts_the_best_first_and_the_unmeasured_last(browser: Chromium) -> None:
    done = wanted(state="done")
    set_value(browser, "#sort", "chamfer_cm", "change")
    order = sorted(done, key=lambda one: one.metrics["avatar"]["chamfer_cm"])
    assert names(browser) == [one.name for one in order[:PER_PAGE]]
    set_value(browser, "#sort", "psnr_fg", "change")
    assert names(browser) == [one.name for one in done[::-1][:PER_PAGE]]
    click(browser, "#direction")
    assert names(browser) == [one.name for one in done[:PER_PAGE]]
    set_value(browser, "#sort", "finished", "change")
    assert names(browser) == [one.name for one in done[::-1][:PER_PAGE]]
    set_value(browser, "#page", "1000", "change")
    assert {text(browser, ".album .state")} <= {"failed", "running", "waiting"}


def test_links_and_pictures_lead_to_files_whatever_the_name(browser: Chromium, dataset: Path) -> None:
    links = browser.evaluate("[...document.querySelectorAll('.album .links a, .album img')].map(e => e.href || e.src)")
    shown = [one for one in sorted(RECORDS, key=lambda one: one.name)[:PER_PAGE] if one.state == "done"]
    assert HOSTILE in [one.name for one in shown]
    assert len(links) == 3 * len(shown)
    found = {Path(urllib.request.url2pathname(urllib.parse.urlsplit(link).path)) for link in links}
    assert found == {album_folder(dataset, one.name) / path for one in shown for path in MADE}
    assert all(path.is_file() for path in found)


def test_thumbnail_is_the_first_view_of_the_strip(browser: Chromium) -> None:
    browser.wait_for("(image => image?.complete && image.naturalWidth === 128)(document.querySelector('.album img'))")
    image = np.asarray(Image.open(io.BytesIO(browser.screenshot(".album img"))).convert("RGB"))
    height, width = image.shape[:2]
    assert abs(height - width) <= 2
    inside = image[height // 3 : -10, 10:-10].reshape(-1, 3)
    assert (inside == (255, 0, 0)).all()


def test_address_keeps_the_view_and_a_bad_one_does_no_harm(started: Chromium, dataset: Path) -> None:
    open_page(started, dataset, "#state=done&sort=psnr_fg&down=1&page=2&q=album-0")
    done = [one.name for one in wanted(state="done") if one.name.startswith("album-0")]
    assert names(started) == done[::-1][PER_PAGE : 2 * PER_PAGE]
    open_page(started, dataset, "#state=%3Cb%3E&sort=__proto__&page=-4&down=x")
    assert len(names(started)) == PER_PAGE
    assert started.problems() == []


def test_page_follows_the_farm_without_losing_the_view(started: Chromium, dataset: Path) -> None:
    # The page's clock runs faster, so that it looks again soon.
    script = started.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="const later = setTimeout; window.setTimeout = (work, ms) => later(work, ms / 100)",
    )
    try:
        open_page(started, dataset, "#state=failed&q=album-09")
        assert names(started) == ["album-0903", "album-0953"]
        started.evaluate("window.kept = document.querySelector('.album')")
        # An album that is not shown goes: the cards that are stay the very same elements.
        write_gallery(dataset, RECORDS[:-1], summary_of(RECORDS[:-1]), rows_per_file=ROWS_PER_FILE)
        started.wait_for("document.querySelector('.states .count').textContent === '99'")
        assert started.evaluate("window.kept === document.querySelector('.album')")
        ended = [dataclasses.replace(one, state="done") if one.state != "failed" else one for one in RECORDS]
        ended[999] = dataclasses.replace(ended[999], state="failed", reason="The driver of <album-0999> is gone")
        write_gallery(dataset, ended, summary_of(ended), rows_per_file=ROWS_PER_FILE)
        started.wait_for("document.querySelectorAll('.album').length === 3")
        assert names(started) == ["album-0903", "album-0953", "album-0999"]
        assert text(started, "#status") == "done, 21 failed"
        assert started.evaluate("location.hash") == "#state=failed&q=album-09"
        assert started.problems() == []
    finally:
        started.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
        write_gallery(dataset, RECORDS, summary_of(RECORDS), rows_per_file=ROWS_PER_FILE)


def test_narrow_page_does_not_scroll_sideways(browser: Chromium) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    try:
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")


def test_page_without_its_data_says_so(started: Chromium, dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_bytes((dataset / "index.html").read_bytes())
    started.call("Page.navigate", url=(tmp_path / "index.html").as_uri())
    started.wait_for("document.body?.dataset.state === 'failed'")
    assert text(started, "#problem").startswith("gallery/summary.js cannot be read")
    started.events.clear()  # the missing file is a problem that this test wants
