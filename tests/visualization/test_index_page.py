"""The index in a browser: it opens fast, finds words, fits narrow screens, and is safe."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captum_mllm.visualization.index_page import Entry, render_index
from tests.visualization.browser import Browser

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u202e\ud800"


def entries(folder: Path, count: int) -> list[Entry]:
    generator = np.random.default_rng(0)
    found = []
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        levels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        size = (128, 96) if number % 2 else (72, 128)
        Image.fromarray(levels).resize(size).save(path, quality=70)
        animal = "zebra" if number % 50 == 7 else "horse"
        answer = f"A {animal} stands in a field beside a fence of wood, number {number}. " * 3
        page = f"pages/{number:06d}.html"
        found.append(Entry(page, path, f"COCO_val2014_{number:012d}.jpg", "What is it?", answer))
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    found = entries(tmp_path_factory.mktemp("thumbnails"), 500)
    found[3] = found[3]._replace(title=HOSTILE, question=HOSTILE, answer=HOSTILE)
    return render_index(found, f"photos {HOSTILE}", ["index.html", "index-2.html"], 0, skipped=2)


def shown(browser: Browser) -> int:
    return int(browser.run("return document.querySelectorAll('li:not([hidden])').length"))


def type_in(browser: Browser, text: str) -> None:
    browser.run(
        "const box = document.getElementById('search'); box.value = arguments[0];"
        "box.dispatchEvent(new Event('input'))",
        text,
    )


@pytest.mark.parametrize("width", [1280, 400])
def test_five_hundred_results(browser: Browser, page: str, width: int) -> None:
    start = time.monotonic()
    browser.open(page, width=width)
    ready = browser.run(
        "const [entry] = performance.getEntriesByType('navigation'); return entry.loadEventEnd"
    )
    assert time.monotonic() - start < 20
    # Milliseconds, as the browser counts them from the call to the last image in sight.
    assert 0 < ready < 2000
    assert shown(browser) == 500
    assert browser.run("return document.documentElement.scrollWidth") <= width
    # Names that differ at their end are shown to the end.
    heights = "const b = document.querySelector('b'); return [b.scrollHeight, b.clientHeight]"
    whole, seen = browser.run(heights)
    assert whole <= seen
    type_in(browser, "ZEBRA field")
    assert shown(browser) == 10
    assert browser.text("#count") == "10 of 500"
    type_in(browser, "no such animal")
    assert shown(browser) == 0
    assert browser.one("#nothing").is_displayed()
    type_in(browser, "")
    assert shown(browser) == 500 and browser.text("#count") == "500"


def test_whatever_texts_hold_is_shown_and_not_run(browser: Browser, page: str) -> None:
    browser.open(page)
    expected = HOSTILE.replace("\u202e", "\ufffd").replace("\ud800", "\ufffd")
    assert browser.text("li:nth-child(4) b") == expected
    assert browser.text("h1") == f"photos {expected}"
    assert browser.run("return document.scripts.length") == 1
    links = browser.run("return [...document.querySelectorAll('nav a')].map(a => a.textContent)")
    assert links == ["1", "2"]
    assert browser.text("label").endswith("answers of this page")
    assert browser.run("return document.querySelector('a').getAttribute('href')") == "index.html"


def test_the_keyboard_comes_to_the_search_first(browser: Browser, page: str) -> None:
    browser.open(page)
    order = browser.run(
        "return [...document.querySelectorAll('input, a')].slice(0, 4).map(e => e.tagName)"
    )
    assert order == ["INPUT", "A", "A", "A"]
    assert browser.run("return document.querySelector('label').htmlFor") == "search"


def test_an_index_of_nothing() -> None:
    page = render_index([], "empty", ["index.html"], 0)
    assert "<li>" not in page and "<nav" not in page
