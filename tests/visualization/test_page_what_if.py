"""What the page shows of hidden regions, and of predictions that were not said."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from captum_mllm.visualization.page import AlternativesView, HiddenWord, WhatIfView, render_page
from captum_mllm.visualization.page_what_if import outline
from tests.visualization.browser import Browser
from tests.visualization.hostile_text import HOSTILE
from tests.visualization.test_page_browser import GRID, KEYS, arguments, peak, pixels

REGION = np.zeros((160, 240), dtype=bool)
REGION[20:60, 30:90] = True
VIEW = WhatIfView(
    removed="red",
    place=0,
    region=REGION,
    control=np.roll(REGION, 100, 1),
    words=[HiddenWord([1], 0.8, 0.125, 0.75, " blue", None)],
    answer="A blue bus.",
)


def alternatives(**changes: Any) -> AlternativesView:
    """Two predictions to each token, the other of which has its own peak for each token."""
    maps = np.full((5, 1, *GRID), 0.0)
    for token in range(5):
        maps[token, 0, 3, token] = 0.5
    weights = np.zeros((5, 1, 7))
    weights[4, 0, 1] = 0.5
    parts: dict[str, Any] = {"ranks": np.ones((5, 1), int), "maps": [maps], "weights": weights}
    return AlternativesView(**{**parts, **changes})


def packed(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)
    assert found is not None
    return dict(json.loads(found[1]))


def area_within(path: str) -> float:
    """By Green's theorem, from the borders that run down."""
    steps = re.findall(r"M(\d+) (\d+)v(\d+)", path)
    by_line: dict[int, list[int]] = {}
    for x, y, length in steps:
        for line in range(int(y), int(y) + int(length)):
            by_line.setdefault(line, []).append(int(x))
    return sum(
        end - start
        for crossings in by_line.values()
        for start, end in zip(sorted(crossings)[::2], sorted(crossings)[1::2])
    )


def test_outlines_enclose_the_region() -> None:
    torn = np.random.default_rng(0).random((40, 70)) > 0.5
    for region in (REGION, torn, ~np.zeros((3, 5), bool), np.zeros((3, 5), bool)):
        size, path = outline(region)
        share = region.size / (size[0] * size[1])
        if max(region.shape) <= 128:
            assert size == region.shape[::-1]
            assert area_within(path) == region.sum()
        else:
            assert max(size) == 128
            assert area_within(path) * share >= region.sum()
        assert re.fullmatch(r"(M\d+ \d+[hv]\d+)*", path)


def test_the_page_carries_what_ifs_as_text() -> None:
    hostile = " ".join(HOSTILE)
    word = HiddenWord([1], 0.8, 0.1, 0.75, hostile, None)
    view = WhatIfView(hostile, 0, REGION, REGION, [word], hostile)
    page = render_page(**arguments(what_ifs=[view]))
    (found,) = packed(page)["what_ifs"]
    assert found["removed"] == found["answer"] == found["words"][0]["says"] == hostile
    assert found["area"] == pytest.approx(REGION.mean())
    assert "</script><" not in page.partition('id="data">')[2].partition("</script>")[0]
    assert page.count("<script") == 2


def test_without_them_the_page_has_none() -> None:
    data = packed(render_page(**arguments()))
    assert data["what_ifs"] is data["alternatives"] is None


def test_what_does_not_fit_is_refused() -> None:
    word = VIEW.words[0]
    for view, error in (
        (WhatIfView("red", 1, REGION, REGION, [word]), "one of 1 image"),
        (WhatIfView("red", 0, REGION, REGION[1:], [word]), "one shape"),
        (WhatIfView("red", 0, REGION, REGION, [word._replace(tokens=[5])]), "from 0 to 4"),
        (WhatIfView("red", 0, REGION, REGION, [word._replace(after=1.5)]), "probabilities"),
    ):
        with pytest.raises(ValueError, match=error):
            render_page(**arguments(what_ifs=[view]))
    for changes, error in (
        ({"ranks": np.full((5, 1), 2)}, "top predictions"),
        ({"ranks": np.ones((4, 1), int)}, "expected"),
        ({"maps": [np.zeros((5, 1, 2, 2))]}, "expected"),
        ({"maps": [np.full((5, 1, *GRID), np.nan)]}, "NaN"),
        ({"weights": np.zeros((5, 1, 6))}, "weights"),
    ):
        with pytest.raises(ValueError, match=error):
            render_page(**arguments(alternatives=alternatives(**changes)))


def test_a_word_shows_what_is_said_without_its_region(browser: Browser) -> None:
    by_attention = replace(VIEW, words=[VIEW.words[0]._replace(tokens=[4])], in_image=False)
    browser.open(render_page(**arguments(what_ifs=[VIEW, by_attention])))
    units = browser.all("[role=option]")
    units[3].click()
    assert browser.text("#what-ifs h3") == "If nothing attends to the region of “red”"
    units[0].click()
    assert browser.all("#what-ifs h3") == [] and browser.all(".frame path") == []
    units[1].click()
    assert "“red”" in browser.text("#what-ifs h3")
    values = [each.text for each in browser.all("#what-ifs .value")]
    assert values == ["80%", "13%", "75%"]
    sentence = browser.text("#what-ifs p")
    assert "says “blue”" in sentence and "still says so" in sentence and "A blue bus." in sentence
    assert sentence in browser.text("#live")
    region, control = browser.one(".frame .region").rect, browser.one(".frame .elsewhere").rect
    frame = browser.one(".frame").rect
    assert region["x"] - frame["x"] == pytest.approx(frame["width"] * 30 / 240, abs=3)
    assert region["height"] == pytest.approx(frame["height"] * 40 / 160, abs=4)
    assert control["x"] > region["x"] + region["width"]


def test_a_click_on_a_prediction_shows_why_it_was_not_said(browser: Browser) -> None:
    browser.open(render_page(**arguments(alternatives=alternatives())))
    units = browser.all("[role=option]")
    units[1].click()
    own = peak(pixels(browser))
    (button,) = browser.all("#predictions button")
    assert button.get_attribute("aria-label") == "Why not “cat”?"
    button.click()
    assert own == (3, 5) and peak(pixels(browser)) == (3, 1)
    assert browser.text("#instead") == "rather than “cat”"
    assert "rather than cat" in browser.text("#live")
    assert "rather than for “cat”" in browser.text("#meaning")
    assert not browser.one("#scales").is_displayed()
    (button,) = browser.all("#predictions button")
    assert button.get_attribute("aria-pressed") == "true"
    assert browser.driver.switch_to.active_element == button
    # By keys: again, which goes back, then once more and away with Escape.
    button.send_keys("\ue007")
    assert peak(pixels(browser)) == own and browser.text("#instead") == ""
    browser.driver.switch_to.active_element.send_keys("\ue007")
    assert peak(pixels(browser)) == (3, 1)
    browser.driver.switch_to.active_element.send_keys("\ue00c")
    assert peak(pixels(browser)) == own
    # Another word begins with its own map; the weights are those of the contrast.
    units[3].click()
    assert browser.text("#earlier .name") != "␣is"
    browser.one("#predictions button").click()
    assert [each.text for each in browser.all("#earlier .name")] == ["␣is"]
    units[3].send_keys(KEYS["Home"])
    assert browser.text("#instead") == ""
