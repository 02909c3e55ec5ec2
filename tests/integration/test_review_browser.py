"""The review page in headless Chromium: what a person does on it, and what assets.yaml says afterwards."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamodules.overrides import AssetOverride, PhotoOverride, read_overrides
from launch.review.page import Review
from launch.review.server import ReviewServer
from tests.unit.launch.review.prepared import HOSTILE, write_prepared
from tests.unit.trainer.chromium import Chromium, find_chromium

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine"),
]


class Page:
    """A browser that looks at one review."""

    def __init__(self, browser: Chromium, server: ReviewServer, folder: Path) -> None:
        self.browser = browser
        self.server = server
        self.folder = folder

    def open(self) -> None:
        self.browser.call("Page.navigate", url=self.server.url)
        self.browser.wait_for("document.body?.dataset.state === 'ready'")

    def value(self, address: str, what: str = "value"):
        return self.browser.evaluate(f"document.getElementById({json.dumps(address)}).{what}")

    def text(self, address: str) -> str:
        return self.value(address, "textContent")

    def type(self, address: str, words: str) -> None:
        """Replace a field's text as a keyboard does."""
        self.browser.evaluate(f"document.getElementById({json.dumps(address)}).select()")
        self.browser.evaluate(f"document.getElementById({json.dumps(address)}).focus()")
        self.browser.call("Input.insertText", text=words)

    def choose(self, address: str, value: str) -> None:
        self.browser.evaluate(
            f"(() => {{ const select = document.getElementById({json.dumps(address)}); select.value = "
            f"{json.dumps(value)}; select.dispatchEvent(new Event('change', {{ bubbles: true }})); }})()"
        )

    def click(self, selector: str) -> None:
        self.browser.evaluate(f"document.querySelector({json.dumps(selector)}).click()")

    def drop(self, address: str) -> None:
        self.click(f"[name='{address}'][value='drop']")

    def save(self) -> None:
        self.click("#save")
        self.browser.wait_for("document.getElementById('status').textContent.startsWith('Saved to ')")

    def press(self, key: str, code: int, text: str = "", modifiers: int = 0) -> None:
        for kind in ("keyDown", "keyUp"):
            about = {"text": text} if text and kind == "keyDown" else {}
            self.browser.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key if len(key) > 1 else f"Key{key.upper()}",
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
                **about,
            )

    def decided(self):
        return read_overrides(self.folder / "assets.yaml")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    browser = Chromium(find_chromium() or "", tmp_path_factory.mktemp("profile"))
    # A test that leaves changes behind shall not be asked whether they may be lost.
    browser.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="addEventListener('beforeunload', event => { if (window.leaves) event.stopImmediatePropagation() })",
    )
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture
def page(started: Chromium, tmp_path: Path) -> Iterator[Page]:
    folder = tmp_path / "anna"
    write_prepared(folder)
    with ReviewServer(Review(folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        started.events.clear()
        shown = Page(started, server, folder)
        shown.open()
        try:
            yield shown
        finally:
            server.shutdown()
            thread.join(10)
            started.evaluate("window.leaves = true")
            started.call("Page.navigate", url="about:blank")


def test_a_person_corrects_an_album(page: Page) -> None:
    page.type("a1.name", "Blouse")
    page.type("a1.words", "Long-Sleeved")
    page.drop("a2.keep")
    page.choose("gender", "woman")
    page.choose("p1.view", "back left")
    page.click("[id='p0.m1']")
    page.drop("p2.keep")
    assert page.text("status") == "7 changes not saved"
    page.save()
    found = page.decided()
    assert found.gender == "woman"
    assert found.assets == {
        "shirt": AssetOverride(name="blouse", words="long-sleeved"),
        "cap": AssetOverride(drop=True),
    }
    assert found.photos == {
        "IMG_0001": PhotoOverride(drop_masks=("shirt",)),
        "IMG_0002": PhotoOverride(view="back left"),
        HOSTILE: PhotoOverride(drop=True),
    }
    # The fields show what was understood, and the page says what to do now.
    assert (page.value("a1.name"), page.value("a1.words")) == ("blouse", "long-sleeved")
    assert "python -m launch run ALBUM" in page.text("command")
    assert page.value("next", "hidden") is False
    assert page.value("save", "disabled") is True
    page.open()
    assert (page.value("a1.name"), page.value("p1.view"), page.value("p0.m1", "checked")) == (
        "blouse",
        "back left",
        False,
    )
    assert page.browser.evaluate("document.querySelectorAll('.gone').length") == 2


def test_page_asks_nobody_else_and_reports_no_problem(page: Page) -> None:
    page.browser.wait_for("[...document.images].every(image => image.complete && image.naturalWidth === 32)")
    assert page.browser.evaluate("document.images.length") == 3 + 8
    page.type("a0.words", "oval")
    page.save()
    assert len(page.browser.requests()) >= 3 + 11
    assert all(url.startswith((page.server.url, "about:blank")) for url in page.browser.requests())
    assert page.browser.problems() == []
    # Names are text, whatever they hold.
    assert page.browser.evaluate("document.title") == "anna: review"
    names = page.browser.evaluate("[...document.querySelectorAll('.photos .name')].map(item => item.textContent)")
    assert names == ["IMG_0001", "IMG_0002", HOSTILE]
    assert page.text("aside-list") == "IMG_0003.jpgis blurred <b>much</b>"


def test_mistakes_are_shown_beside_their_fields(page: Page) -> None:
    page.type("a1.name", "blouse/top")
    page.type("a0.words", "round")
    page.click("#save")
    page.browser.wait_for("document.getElementById('a1.name.error').textContent")
    assert "letters, digits" in page.text("a1.name.error")
    assert page.text("a0.words.error") == ""
    assert page.browser.evaluate("document.activeElement.id") == "a1.name"
    assert page.browser.evaluate("document.activeElement.getAttribute('aria-invalid')") == "true"
    assert not (page.folder / "assets.yaml").exists()
    page.type("a1.name", "top")
    assert page.text("a1.name.error") == ""
    page.save()
    assert page.decided().assets["shirt"].name == "top"

    for index in range(3):
        page.drop(f"p{index}.keep")
    page.click("#save")
    page.browser.wait_for("document.getElementById('page.error').textContent")
    assert "keep at least one asset" in page.text("page.error")
    # The answers with a status of their own are entries of the browser's log, and nothing else is.
    assert all("422" in problem for problem in page.browser.problems())


def test_masks_are_painted_as_wanted(page: Page) -> None:
    painted = "[...document.querySelectorAll('.stack .mask')].filter(mask => !mask.hidden).length"
    assert page.browser.evaluate(painted) == 8
    page.click("[data-paints='2']")
    assert page.browser.evaluate(painted) == 6
    page.click("#show-none")
    assert page.browser.evaluate(painted) == 0
    page.click("#show-all")
    page.click("[id='p0.m0']")
    assert page.browser.evaluate(painted) == 7
    assert page.text("status") == "1 change not saved"
    page.click("[id='p0.m0']")
    assert page.text("status") == ""


def test_everything_can_be_done_without_a_mouse(page: Page) -> None:
    reached = []
    page.browser.evaluate("document.body.focus()")
    for _ in range(60):
        page.press("Tab", 9)
        reached.append(page.browser.evaluate("document.activeElement.id || document.activeElement.name || ''"))
    wanted = ["gender", "a0.name", "a0.words", "a0.keep", "a2.keep", "show-all", "p0.view", "p0.m0", "p2.keep", "done"]
    assert [address for address in wanted if address not in reached] == []
    labels = page.browser.evaluate(
        "[...document.querySelectorAll('input, select')].filter(item => !item.labels.length).map(item => item.id)"
    )
    assert labels == []
    page.browser.evaluate("document.querySelector('[name=\"a2.keep\"]').focus()")
    page.press("ArrowDown", 40)
    page.press("s", 83, modifiers=2)
    page.browser.wait_for("document.getElementById('status').textContent.startsWith('Saved to ')")
    assert page.decided().assets == {"cap": AssetOverride(drop=True)}


def test_done_asks_before_changes_are_lost_and_ends_the_server(page: Page) -> None:
    leave = "dispatchEvent(new Event('beforeunload', { cancelable: true }))"
    assert page.browser.evaluate(leave) is True
    page.type("a0.words", "oval")
    assert page.browser.evaluate(leave) is False
    page.click("#done")
    assert "not saved" in page.text("page.error")
    assert page.value("done", "disabled") is False
    page.click("#done")
    page.browser.wait_for("document.body.dataset.state === 'ended'")
    assert page.text("status") == "Ended. This page can be closed."
    assert page.browser.evaluate(leave) is True
    assert page.browser.evaluate("[...document.querySelectorAll('input, select, button')].every(item => item.disabled)")
    assert not (page.folder / "assets.yaml").exists()


def test_a_server_that_is_gone_is_named(page: Page) -> None:
    page.server.shutdown()
    page.server.server_close()
    page.type("a0.words", "oval")
    page.click("#save")
    page.browser.wait_for("!document.getElementById('problem').hidden")
    assert "it has ended" in page.text("problem")
    assert page.value("save", "disabled") is False


def test_narrow_page_does_not_scroll_sideways(page: Page) -> None:
    page.type("a0.words", "oval")
    page.save()
    page.browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    try:
        assert page.browser.evaluate("document.documentElement.scrollWidth") <= 360
        assert (
            page.browser.evaluate("document.querySelector('.actions').getBoundingClientRect().height") <= 740 * 0.45 + 1
        )
    finally:
        page.browser.call("Emulation.clearDeviceMetricsOverride")


def test_dark_mode_follows_the_system(page: Page) -> None:
    brightness = "parseInt(getComputedStyle(document.body).backgroundColor.slice(4))"
    for scheme, dark in (("light", False), ("dark", True)):
        page.browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert (page.browser.evaluate(brightness) < 80) is dark
    page.browser.call("Emulation.setEmulatedMedia", features=[])
