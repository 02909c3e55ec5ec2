from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.unit.trainer.chromium import Chromium, find_chromium
from tests.unit.trainer.report_content import full_content
from trainer.report import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium on this machine"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    path = write_report(folder, full_content(folder))
    browser = Chromium(find_chromium(), tmp_path_factory.mktemp("profile"))
    try:
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
        browser.call("Page.navigate", url=path.as_uri())
        browser.wait_for("document.getElementById('viewer')?.dataset.state === 'ready'")
        browser.evaluate(
            "document.querySelector('#viewer canvas').scrollIntoView({block: 'center', behavior: 'instant'})"
        )
        browser.address = path.as_uri()
        yield browser
    finally:
        browser.close()


def _canvas(browser) -> np.ndarray:
    # Two frames later, what the last input changed has been drawn.
    browser.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
    return np.asarray(Image.open(io.BytesIO(browser.screenshot("#viewer canvas"))).convert("RGB"), np.float32)


def _covered(image: np.ndarray) -> np.ndarray:
    return np.abs(image - image[20, 20]).max(-1) > 12


def _press(browser, key: str, code: str = "") -> None:
    browser.evaluate("document.querySelector('#viewer canvas').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.call("Input.dispatchKeyEvent", type=kind, key=key, code=code or key)


def test_page_opens_without_error_or_request(browser):
    assert browser.requests() == [browser.address]
    assert browser.problems() == []


def test_hostile_names_run_nothing(browser):
    assert browser.evaluate("document.title").startswith("Ada & Co </script>")


def test_viewer_draws_the_avatar_in_its_colours(browser):
    _press(browser, "0")
    image = _canvas(browser)
    height, width = image.shape[:2]
    covered = _covered(image)
    assert covered[height // 2, width // 2]
    assert 0.1 < covered.mean() < 0.7
    assert not covered[:, 10:30].any()  # the whole sphere fits with room around it
    assert not covered[10:20, 20:-20].any()
    # A striped sphere: many colours, not one flat patch.
    assert image[covered].std(0).max() > 25


def test_sphere_is_round_and_centred(browser):
    _press(browser, "0")
    image = _canvas(browser)
    rows, columns = np.nonzero(_covered(image)[15:-15, 15:-15])
    assert abs(np.ptp(rows) / np.ptp(columns) - 1) < 0.03
    assert abs((rows.min() + rows.max()) / 2 + 15 - image.shape[0] / 2) < 3
    assert abs((columns.min() + columns.max()) / 2 + 15 - image.shape[1] / 2) < 3


def test_unlit_colours_are_those_of_the_texture(browser):
    """The texture's red grows from the north pole (v = 0) to the south pole: it stands upright and is not shaded."""
    _press(browser, "0")
    _press(browser, "l")
    image = _canvas(browser)
    _press(browser, "l")
    column = image[:, image.shape[1] // 2, 0]
    rows = np.nonzero(_covered(image)[:, image.shape[1] // 2])[0]
    middle = (rows[0] + rows[-1]) // 2
    assert column[rows[0] + 6] < 60
    assert column[rows[-1] - 6] > 190
    assert abs(column[middle] - 128) < 16


@pytest.mark.parametrize("key", ["ArrowLeft", "ArrowUp", "+", "w", "t", "l"])
def test_each_key_changes_the_picture_and_home_restores_it(browser, key):
    _press(browser, "0")
    before = _canvas(browser)
    _press(browser, key)
    changed = _canvas(browser)
    if key in "wtl":
        _press(browser, key)
    _press(browser, "0")
    after = _canvas(browser)
    assert np.abs(changed - before).mean() > 0.5
    assert np.abs(after - before).mean() < 0.2


def test_dragging_turns_the_avatar(browser):
    _press(browser, "0")
    before = _canvas(browser)
    x, y = browser.evaluate(
        "(() => { const b = document.querySelector('#viewer canvas').getBoundingClientRect();"
        " return [b.left + b.width / 2, b.top + b.height / 2]; })()"
    )
    for kind, dx in (("mousePressed", 0), ("mouseMoved", 60), ("mouseReleased", 60)):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x + dx, y=y, button="left", buttons=1, clickCount=1)
    assert np.abs(_canvas(browser) - before).mean() > 0.5


def test_wheel_scrolls_the_page_unless_the_view_has_focus(browser):
    prevented = (
        "(() => { const e = new WheelEvent('wheel', {deltaY: 100, cancelable: true, bubbles: true});"
        " return !document.querySelector('#viewer canvas').dispatchEvent(e); })()"
    )
    browser.evaluate("document.activeElement.blur()")
    assert browser.evaluate(prevented) is False
    browser.evaluate("document.querySelector('#viewer canvas').focus()")
    assert browser.evaluate(prevented) is True


def test_masks_can_be_switched_off(browser):
    shown = "getComputedStyle(document.querySelector('.has-masks .masked')).display"
    assert browser.evaluate(shown) == "block"
    browser.evaluate("document.getElementById('show-masks').click()")
    assert browser.evaluate(shown) == "none"
    browser.evaluate("document.getElementById('show-masks').click()")


def test_narrow_page_does_not_scroll_sideways(browser):
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    try:
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    finally:
        browser.call("Emulation.clearDeviceMetricsOverride")


def test_page_without_webgl_says_so(browser, tmp_path):
    script = browser.call(
        "Page.addScriptToEvaluateOnNewDocument",
        source="HTMLCanvasElement.prototype.getContext = () => null",
    )
    try:
        browser.call("Page.navigate", url=browser.address)
        browser.wait_for("document.getElementById('viewer')?.dataset.state === 'failed'")
        text = browser.evaluate("document.querySelector('.viewer-message').textContent")
        assert "no WebGL" in text
        assert browser.evaluate("document.querySelector('#viewer canvas').hidden")
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
    assert browser.problems() == []
