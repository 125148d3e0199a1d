from __future__ import annotations

import base64
import io
import re
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import Normalize
from PIL import Image

from captum_mllm.models.prompt_parts import PromptPart
from captum_mllm.visualization.colors import color_limits, color_table, colormap
from captum_mllm.visualization.page import ScaleView, embed_page, render_page
from tests.visualization.browser import Browser
from tests.visualization.hostile_text import HOSTILE

GRID = (4, 6)
# Cells, as (row, column), at which the maps of the answer tokens have their maximum.
PEAKS = [(0, 0), (3, 5), (1, 2), (2, 4), (0, 5)]
ANSWER = [" A", " red", " dou", "ble", " bus"]
WORDS = [[0], [1], [2, 3], [4]]

# Keys as WebDriver names them.
KEYS = {"Home": "\ue011", "End": "\ue010", "ArrowRight": "\ue014"}


def arguments(**changes: Any) -> dict[str, Any]:
    maps = np.full((len(ANSWER), *GRID), 0.1)
    for token, cell in enumerate(PEAKS):
        maps[(token, *cell)] = [0.4, 1.0, 1.0, 1.0, 0.8][token]
    weights = np.zeros((len(ANSWER), 2 + len(ANSWER)))
    weights[4] = [0.5, 0.0, 0.125, -0.25, 0.25, 0.5, 0.0]
    return {
        "images": [Image.new("RGB", (240, 160), "#446688")],
        "prompt_tokens": ["What", " is"],
        "answer_tokens": ANSWER,
        "words": WORDS,
        "image_attr": maps,
        "token_attr": weights,
        "output_probs": np.array([0.9, 0.8, 0.5, 0.25, 0.00001]),
        "top_predictions": [[(token, 0.5), (" cat", 0.25)] for token in ANSWER],
        "scales": [
            ScaleView(0.5, maps[:, ::2, ::2], np.array([0.9, 0.9, 0.5, 0.5, 0.1])),
            ScaleView(1.5, maps[:, ::-1]),
        ],
        "method": "ARC(LogitLens)",
        "model": "demo",
        **changes,
    }


def pixels(browser: Browser, selector: str = ".stage canvas") -> np.ndarray:
    script = "return document.querySelector(arguments[0]).toDataURL('image/png')"
    content = base64.b64decode(browser.run(script, selector).partition(",")[2])
    return np.array(Image.open(io.BytesIO(content)).convert("RGBA"))


def peak(drawn: np.ndarray, grid: tuple[int, int] = GRID) -> tuple[int, int]:
    """The cell of the most opaque pixel."""
    row, column = np.unravel_index(np.argmax(drawn[:, :, 3]), drawn.shape[:2])
    return int(row * grid[0] / drawn.shape[0]), int(column * grid[1] / drawn.shape[1])


def hover(browser: Browser, index: int) -> None:
    """Moves the mouse onto a word, as a person does."""
    box = browser.all("[role=option]")[index].rect
    position = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
    browser.command("Input.dispatchMouseEvent", {"type": "mouseMoved", **position})


def press(browser: Browser, key: str) -> None:
    for kind in ("keyDown", "keyUp"):
        browser.command("Input.dispatchKeyEvent", {"type": kind, "key": key, "code": key})


def choose(browser: Browser, value: str) -> None:
    browser.one(f"input[value={value}]").click()


def weights(browser: Browser, selector: str) -> list[float]:
    script = "return Number(getComputedStyle(arguments[0]).getPropertyValue('--weight'))"
    return [browser.run(script, span) for span in browser.all(selector)]


def test_hover_draws_the_map_of_the_word(browser: Browser) -> None:
    browser.open(render_page(**arguments()))
    for word, cell in ((0, PEAKS[0]), (1, PEAKS[1]), (3, PEAKS[4])):
        hover(browser, word)
        assert browser.current() == ANSWER[WORDS[word][0]].strip()
        assert peak(pixels(browser)) == cell


def test_overlay_is_the_interpolated_map_in_the_colors_of_the_table(browser: Browser) -> None:
    generator = np.random.default_rng(0)
    values = generator.random((1, *GRID))
    values[0, 0, 0], values[0, 0, 1] = 1.0, 0.0
    browser.open(
        render_page(
            images=[Image.new("RGB", (60, 40))],
            prompt_tokens=[],
            answer_tokens=["Yes"],
            words=[[0]],
            image_attr=values,
        )
    )
    drawn = pixels(browser)
    height, width = drawn.shape[:2]
    for row, column in generator.integers(0, (height, width), (200, 2)):
        down = np.clip((row + 0.5) * GRID[0] / height - 0.5, 0, GRID[0] - 1)
        right = np.clip((column + 0.5) * GRID[1] / width - 0.5, 0, GRID[1] - 1)
        top, left = int(down), int(right)
        bottom, end = min(top + 1, GRID[0] - 1), min(left + 1, GRID[1] - 1)
        down, right = (share**2 * (3 - 2 * share) for share in (down - top, right - left))
        expected = (1 - down) * (
            (1 - right) * values[0, top, left] + right * values[0, top, end]
        ) + down * ((1 - right) * values[0, bottom, left] + right * values[0, bottom, end])
        assert abs((drawn[row, column, 3] / 255) ** 1.25 - expected) < 0.01
        if expected > 0.5:
            color = color_table(False)[min(int(256 * expected), 255)].astype(int)
            assert np.abs(color - drawn[row, column, :3]).max() <= 12


def test_signed_maps_use_both_arms(browser: Browser) -> None:
    maps = arguments()["image_attr"]
    maps[0] = 0.0
    maps[0, 0, 0], maps[0, 3, 5] = -1.0, 1.0
    browser.open(render_page(**arguments(image_attr=maps)))
    hover(browser, 0)
    drawn = pixels(browser).astype(int)
    assert np.abs(drawn[0, 0, :3] - color_table(True)[0]).max() <= 2
    assert np.abs(drawn[-1, -1, :3] - color_table(True)[-1]).max() <= 2
    assert drawn[drawn.shape[0] // 2, drawn.shape[1] // 2, 3] == 0
    assert (browser.text("#lowest"), browser.text("#highest")) == ("\u22121", "1")


def test_word_of_two_tokens_shows_mean_and_product(browser: Browser) -> None:
    browser.open(render_page(**arguments()))
    choose(browser, "own")
    hover(browser, 2)
    drawn = pixels(browser)[:, :, 3]
    height, width = drawn.shape
    for row, column in (PEAKS[2], PEAKS[3]):
        cell = drawn[int((row + 0.5) * height / 4), int((column + 0.5) * width / 6)]
        assert cell >= 250
    assert browser.text("#highest") == "0.55"
    assert browser.text("#probability b") == "12.5%"
    assert "product" in browser.one("#probability").get_attribute("title")
    assert "first of 2 tokens" in browser.text("#predictions-heading")

    choose(browser, "tokens")
    assert [option.text for option in browser.all("[role=option]")] == [
        "A",
        "red",
        "dou",
        "ble",
        "bus",
    ]
    assert browser.current() == "dou"
    assert peak(pixels(browser)) == PEAKS[2]
    assert browser.text("#probability b") == "50%"
    hover(browser, 3)
    assert peak(pixels(browser)) == PEAKS[3]
    assert browser.all("#predictions .name")[0].text == "ble"

    choose(browser, "words")
    assert browser.current() == "double"


def test_click_pins_until_escape(browser: Browser) -> None:
    browser.open(render_page(**arguments()))
    browser.all("[role=option]")[1].click()
    hover(browser, 3)
    assert browser.current() == "red"
    assert browser.one("#pinned").is_displayed()
    press(browser, "Escape")
    assert not browser.one("#pinned").is_displayed()
    hover(browser, 0)
    assert browser.current() == "A"

    browser.all("[role=option]")[1].click()
    browser.all("[role=option]")[1].click()
    assert not browser.one("#pinned").is_displayed()


def test_keys_walk_through_the_answer(browser: Browser) -> None:
    browser.open(render_page(**arguments()))
    browser.run("document.querySelector('[role=option][tabindex=\"0\"]').focus()")
    for key, word in (
        ("Home", 0),
        ("ArrowLeft", 0),
        ("ArrowRight", 1),
        ("End", 3),
        ("ArrowRight", 3),
        ("ArrowLeft", 2),
        ("Enter", 2),
        ("ArrowRight", 3),
    ):
        press(browser, key)
        assert browser.run(
            """
            const options = [...document.querySelectorAll("[role=option]")];
            return [
              options.indexOf(document.activeElement),
              options.findIndex((option) => option.ariaSelected === "true"),
              options.findIndex((option) => option.tabIndex === 0),
            ];
            """
        ) == [word, word, word]
    assert peak(pixels(browser)) == PEAKS[4]
    assert browser.one("#pinned").is_displayed()
    assert browser.text("#live") == (
        "bus, probability <0.01%, strongest in the image: top right, pinned"
    )


def test_keys_follow_the_direction_of_the_text(browser: Browser) -> None:
    tokens = ["حافلة", " حمراء", " في", " الشارع", " هنا"]
    browser.open(render_page(**arguments(answer_tokens=tokens)))
    browser.run("document.querySelector('[role=option][tabindex=\"0\"]').focus()")
    press(browser, "Home")
    press(browser, "ArrowLeft")
    assert browser.current() == "حمراء"
    first, second = (option.rect["x"] for option in browser.all("[role=option]")[:2])
    assert second < first


def test_focused_word_is_never_covered(browser: Browser) -> None:
    count = 300
    page = render_page(
        images=[Image.new("RGB", (200, 200))],
        prompt_tokens=["What"],
        answer_tokens=[f" word{index}" for index in range(count)],
        words=[[index] for index in range(count)],
        image_attr=np.ones((count, 2, 2)),
        token_attr=np.tril(np.ones((count, 1 + count))),
        top_predictions=[[(letter, 0.1) for letter in "abcde"]] * count,
    )
    for width in (400, 1280):
        browser.open(page, width=width, height=800)
        browser.run("document.querySelector('[role=option]').focus()")
        for key in ("End", *["ArrowLeft"] * 20, "Home"):
            press(browser, key)
            assert browser.run(
                """
                const box = document.activeElement.getBoundingClientRect();
                const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                return document.elementFromPoint(x, y) === document.activeElement;
                """
            )


def test_earlier_words_are_shaded_by_their_weight(browser: Browser) -> None:
    browser.open(render_page(**arguments()))
    hover(browser, 3)
    assert weights(browser, ".context") == pytest.approx([0.667, 0.0], abs=0.006)
    # The word of two tokens weighs their sum, 0.75, the largest.
    assert weights(browser, ".unit") == pytest.approx([0.167, 0.333, 1.0, 0.0], abs=0.006)
    assert ["against" in (span.get_attribute("class") or "") for span in browser.all(".unit")] == [
        False,
        True,
        False,
        False,
    ]
    assert [name.text for name in browser.all("#earlier .name")] == [
        "␣double",
        "What",
        "␣red",
        "␣A",
    ]
    values = [float(value.text.replace("\u2212", "-")) for value in browser.all("#earlier .value")]
    assert values == pytest.approx([0.75, 0.5, -0.25, 0.125], abs=0.006)
    hover(browser, 0)
    assert weights(browser, ".unit") == [0.0] * 4
    assert not browser.one("#earlier").is_displayed()


@pytest.mark.parametrize("finished", [True, False, None])
def test_an_answer_that_was_cut_off_has_a_note(browser: Browser, finished: bool | None) -> None:
    browser.open(render_page(**arguments(finished=finished)))
    notes = browser.all("#cut")
    assert len(notes) == (finished is False)
    assert all(note.is_displayed() and "cut off here" in note.text for note in notes)


def test_colour_range_of_all_words_or_of_each(browser: Browser) -> None:
    browser.open(render_page(**arguments(unit="logits")))
    hover(browser, 0)
    # Weak maps look weak, and the scale says how far the word reaches.
    assert browser.text("#highest") == "1"
    assert pixels(browser)[:, :, 3].max() == round(255 * 0.4**0.8)
    bar, reach = browser.one("#bar").rect, browser.one("#reach").rect
    assert reach["x"] + reach["width"] / 2 == pytest.approx(bar["x"] + 0.4 * bar["width"], abs=1.5)
    meaning = browser.text("#meaning")
    assert "in logits" in meaning
    assert "1 is the most of all words, of which this word reaches 0.4." in meaning
    choose(browser, "own")
    assert browser.text("#highest") == "0.4"
    assert pixels(browser)[:, :, 3].max() == 255
    assert not browser.one("#reach").is_displayed()
    assert "0.4 is the most of this word: weak words are coloured" in browser.text("#meaning")
    label = browser.one("#range-of-colours").get_attribute("aria-label")
    assert label == "Attribution to the image, in logits, colours from 0 to 0.4"


CHAT = [
    PromptPart("system", 1, turn=0),
    PromptPart("user", image=0, turn=1),
    PromptPart("user", 2, turn=1),
    PromptPart("user", image=1, turn=1),
    PromptPart("user", 1, turn=1),
    PromptPart("assistant", 1, turn=2),
]


def test_turns_and_images_of_a_chat(browser: Browser) -> None:
    browser.open(
        render_page(
            **arguments(
                images=[Image.new("RGB", (30, 20), "red"), Image.new("RGB", (240, 160), "teal")],
                explained=[1],
                prompt_tokens=["Brief", "What", " is", "this", " Dog"],
                prompt_parts=CHAT,
                token_attr=None,
            )
        )
    )
    assert [heading.text for heading in browser.all(".turn h3")] == ["system", "user", "assistant"]
    assert [text.text for text in browser.all(".turn p")] == [
        "Brief",
        "image 1 What is image 2 this",
        "Dog",
    ]
    assert [item.text for item in browser.all("#thumbnails li")] == [
        "image 1",
        "image 2, explained",
    ]
    (marked,) = browser.all("#thumbnails .explained")
    assert marked.text == "image 2, explained"
    assert browser.run("return document.querySelector('#thumbnails img').naturalWidth") == 30


def test_roles_are_text(browser: Browser) -> None:
    parts = [PromptPart(HOSTILE[1], 1), PromptPart("user", 1, turn=1)]
    browser.open(render_page(**arguments(prompt_parts=parts)))
    assert browser.one(".turn h3").text == HOSTILE[1]
    assert browser.run("return window.hacked") is None


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("turns", [1, 30])
def test_a_long_prompt_is_folded(browser: Browser, width: int, turns: int) -> None:
    count = 600
    parts = [PromptPart("user", count // turns, turn=turn) for turn in range(turns)]
    page = render_page(
        images=[Image.new("RGB", (240, 160))],
        prompt_tokens=[f" word{index}" for index in range(count)],
        prompt_parts=parts,
        answer_tokens=ANSWER,
        words=WORDS,
        image_attr=arguments()["image_attr"],
        token_attr=np.tril(np.ones((5, count + 5)), count - 1),
    )
    browser.open(page, width=width)
    answer, turns_box = browser.one("#answer-text"), browser.one("#turns")
    folded = answer.rect["y"]
    assert folded + answer.rect["height"] < 900
    assert turns_box.get_attribute("tabindex") == "0"
    # The question stands at the end of a chat, and at the beginning of a text.
    last = browser.all(".context")[-1].rect
    inside = turns_box.rect["y"] <= last["y"] < turns_box.rect["y"] + turns_box.rect["height"]
    assert inside is (turns > 1)
    button = browser.one("#fold")
    assert (button.text, button.get_attribute("aria-expanded")) == ("show all", "false")
    button.click()
    assert (button.text, button.get_attribute("aria-expanded")) == ("show less", "true")
    assert answer.rect["y"] > folded + 300
    button.click()
    assert answer.rect["y"] == folded


def test_a_short_prompt_is_not_folded(browser: Browser) -> None:
    browser.open(render_page(**arguments()))
    assert not browser.one("#fold").is_displayed()
    assert browser.one("#turns").get_attribute("tabindex") == "-1"
    assert browser.all(".turn h3") == []


def test_the_colours_of_the_page_are_those_of_the_plots_to_the_byte(browser: Browser) -> None:
    for signed in (False, True):
        # Only opaque pixels come back unchanged, so the fading is left out.
        values = np.linspace(-1 if signed else 0, 1, 97)[None, None]
        page = render_page(**arguments(image_attr=np.repeat(values, 5, 0), scales=()))
        browser.open(page)
        drawn = browser.run(
            """
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [arguments[0].length, 1];
            const data = JSON.parse(document.getElementById("data").textContent);
            const paint = heatmap.painter({ ...data, fade: 0 });
            paint(canvas, arguments[0], [1, canvas.width], 1);
            return [...canvas.getContext("2d").getImageData(0, 0, canvas.width, 1).data];
            """,
            values[0, 0].tolist(),
        )
        low, high = color_limits([values])
        expected = colormap(signed)(Normalize(low, high)(values[0, 0]), bytes=True)
        shown = np.array(drawn).reshape(-1, 4)
        assert np.array_equal(shown[shown[:, 3] == 255], expected[shown[:, 3] == 255])
        assert (shown[:, 3] == 255).sum() > 90


def test_opacity_slider(browser: Browser) -> None:
    browser.open(render_page(**arguments()))
    assert browser.one(".stage canvas").value_of_css_property("opacity") == "0.75"
    browser.run("document.getElementById('opacity').focus()")
    for key, opacity in (("Home", "0"), ("ArrowRight", "0.05"), ("End", "1")):
        browser.one("#opacity").send_keys(KEYS[key])
        assert browser.one(".stage canvas").value_of_css_property("opacity") == opacity
        assert browser.one("#bar").value_of_css_property("opacity") == opacity


def test_scales_show_their_own_maps(browser: Browser) -> None:
    browser.open(render_page(**arguments()))
    hover(browser, 1)
    assert [item.text.split() for item in browser.all(".scale p")] == [
        ["0.5\u00d7", "90%"],
        ["1.5\u00d7"],
    ]
    assert peak(pixels(browser, ".scale:nth-of-type(2) canvas")) == (0, 5)
    hover(browser, 2)
    assert browser.text(".scale span") == "25%"


@pytest.mark.parametrize("mode", ["words", "tokens"])
def test_hostile_tokens_are_shown_and_run_nothing(browser: Browser, mode: str) -> None:
    tokens = [*HOSTILE, "a\nb", " ", ""]
    count = len(tokens)
    page = render_page(
        images=[Image.new("RGB", (8, 8))],
        prompt_tokens=tokens,
        answer_tokens=tokens,
        words=[*[[index] for index in range(count - 2)], [count - 2, count - 1]],
        image_attr=np.ones((count, 2, 2)),
        token_attr=np.tril(np.ones((count, 2 * count)), count - 1),
        top_predictions=[[(token, 0.1) for token in tokens]] * count,
        method=HOSTILE[0],
        model=HOSTILE[1],
        title=HOSTILE[1],
    )
    browser.open(page)
    choose(browser, mode)
    hover(browser, 2)
    shown = [browser.run("return arguments[0].textContent", span) for span in browser.all(".unit")]
    assert shown[:5] == HOSTILE[:5]
    visible = ["<U+2028><U+2029>", "\ufffd", "<U+0000><U+001B>", "<U+202E>evil", "a↵\nb", "␣"]
    assert shown[5:] == visible + (["∅"] if mode == "tokens" else [])
    assert browser.one("h1").text == HOSTILE[1]
    assert browser.one("#source").text == f"{HOSTILE[0]} · {HOSTILE[1]}"
    assert len(browser.all(".context")) == count
    names = [browser.run("return arguments[0].textContent", x) for x in browser.all(".name")]
    assert names[:5] == HOSTILE[:5]
    assert browser.run("return window.hacked") is None
    assert len(browser.all("script")) == 2


def test_every_unit_has_a_box_to_point_at(browser: Browser) -> None:
    tokens = ["", " ", "\n", "\t", "."]
    browser.open(render_page(**arguments(answer_tokens=tokens, words=[[i] for i in range(5)])))
    assert all(option.rect["width"] > 2 for option in browser.all("[role=option]"))
    labels = [option.get_attribute("aria-label") for option in browser.all("[role=option]")]
    assert labels == ["empty token", "space", "line break", "white space", "."]


@pytest.mark.parametrize("width", [320, 400, 700, 896, 1280])
def test_no_horizontal_scroll(browser: Browser, width: int) -> None:
    changes = {"answer_tokens": [" A", " " + "long" * 60, " dou", "ble", " bus"]}
    browser.open(render_page(**arguments(**changes, title="x" * 200)), width=width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    browser.run("document.querySelector('[role=option]').focus()")
    for key in ("Home", *["ArrowRight"] * (len(WORDS) - 1)):
        press(browser, key)
        assert browser.run("return document.documentElement.scrollWidth") <= width


def test_columns_follow_the_width(browser: Browser) -> None:
    page = render_page(**arguments())
    browser.open(page, width=1280)
    assert browser.one("#answer").rect["x"] > browser.one(".stage img").rect["x"] + 400
    browser.open(page, width=400)
    assert browser.one("#answer").rect["x"] < 40
    assert browser.one("#answer").rect["y"] > browser.one(".stage img").rect["y"] + 100


def test_dark_scheme_has_colors_of_its_own(browser: Browser) -> None:
    page = render_page(**arguments())
    brightness = {}
    for scheme in ("light", "dark"):
        browser.open(page, scheme=scheme)
        for name in ("background-color", "color"):
            color = browser.one("body").value_of_css_property(name)
            brightness[scheme, name] = sum(map(int, re.findall(r"\d+", color)[:3])) / 3
    assert brightness["light", "background-color"] > 200 > 100 > brightness["light", "color"]
    assert brightness["dark", "color"] > 200 > 100 > brightness["dark", "background-color"]


def test_what_is_missing_leaves_nothing(browser: Browser) -> None:
    page = render_page(
        images=[Image.new("RGB", (1000, 50))],
        prompt_tokens=[],
        answer_tokens=["Yes"],
        words=[[0]],
        image_attr=np.zeros((1, 1, 1)),
        title="",
    )
    browser.open(page)
    missing = "#title, #source, #prompt, #units, #range, #slider, #scales, #detail, #help"
    assert browser.all(missing) == []
    assert browser.one("#no-evidence").is_displayed()
    assert not browser.one("#legend").is_displayed()
    assert not pixels(browser).any()
    assert browser.text("#live") == "Yes, no evidence in the image"
    box = browser.one(".stage img").rect
    assert box["width"] / box["height"] == pytest.approx(20, rel=0.05)


def test_one_cell_covers_the_whole_image(browser: Browser) -> None:
    browser.open(render_page(**arguments(image_attr=np.full((5, 1, 1), 0.5))))
    assert (pixels(browser)[:, :, 3] == 255).all()
    assert "strongest in the image: centre" in browser.text("#live")


def test_page_opens_at_the_strongest_map(browser: Browser) -> None:
    browser.open(render_page(**arguments()))
    assert browser.current() == "red"


def test_embedded_page_works_in_its_sandbox(browser: Browser) -> None:
    page = render_page(**arguments())
    browser.open(f"<!doctype html><meta charset='utf-8'>{embed_page(page, height=500)}")
    assert browser.one("iframe").rect["height"] == 500
    browser.driver.switch_to.frame(browser.one("iframe"))
    assert browser.current() == "red"
    assert peak(pixels(browser)) == PEAKS[1]
    assert browser.run("return window.origin") == "null"
    browser.driver.switch_to.default_content()


def three_images(**changes: Any) -> dict[str, Any]:
    """Each word has its evidence in another image, the last one in two of them."""
    maps = [np.full((len(ANSWER), *grid), 0.0) for grid in ((4, 6), (3, 3), (6, 2))]
    for token, (image, value) in enumerate([(0, 0.4), (1, 1.0), (2, 0.8), (2, 0.8), (0, 0.5)]):
        maps[image][token, 1, 1] = value
    maps[1][4, 2, 0] = 1.0
    shares = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1], [0.25, 0.75, 0]])
    scenes = [Image.new("RGB", size, "#446688") for size in ((240, 160), (160, 160), (80, 240))]
    return {
        **arguments(images=scenes, image_attr=maps, image_shares=shares, scales=()),
        **changes,
    }


def drawn_images(browser: Browser) -> list[np.ndarray]:
    script = (
        "return [...document.querySelectorAll('.stage canvas')]"
        ".map((canvas) => canvas.toDataURL('image/png'))"
    )
    contents = [base64.b64decode(uri.partition(",")[2]) for uri in browser.run(script)]
    return [np.array(Image.open(io.BytesIO(content)).convert("RGBA")) for content in contents]


def test_several_images_show_their_maps_on_one_scale_and_their_shares(browser: Browser) -> None:
    browser.open(render_page(**three_images()))
    names = [each.text for each in browser.all(".stage figcaption span")]
    assert names == ["image 1", "image 2", "image 3"]
    for word, shares in enumerate((["100%", "0%", "0%"], ["0%", "100%", "0%"])):
        hover(browser, word)
        assert [each.text for each in browser.all(".stage figcaption b")] == shares
        drawn = [each[:, :, 3].max() for each in drawn_images(browser)]
        assert [bool(each) for each in drawn] == [share != "0%" for share in shares]
    hover(browser, 3)
    assert [each.text for each in browser.all(".stage figcaption b")] == ["25%", "75%", "0%"]
    first, second, third = (each[:, :, 3].max() / 255 for each in drawn_images(browser))
    assert (first**1.25, second, third) == (pytest.approx(0.5, abs=0.02), 1.0, 0.0)
    assert "strongest in image 2: bottom left" in browser.text("#live")
    assert "image 1 25%, image 2 75%, image 3 0%" in browser.text("#live")
    line = "return getComputedStyle(document.querySelectorAll('.unit')[3]).backgroundImage"
    assert "25%" in browser.run(line) and "100%" in browser.run(line)
    assert not browser.all("#thumbnails li")
    assert not browser.messages()


@pytest.mark.parametrize(("width", "columns"), [(1280, 3), (400, 2)])
def test_several_images_wrap_where_there_is_no_room(
    browser: Browser, width: int, columns: int
) -> None:
    browser.open(render_page(**three_images()), width=width)
    boxes = [each.rect for each in browser.all(".stage img")]
    assert len({box["x"] for box in boxes}) == columns
    for box, ratio in zip(boxes, (1.5, 1.0, 1 / 3)):
        assert box["width"] / box["height"] == pytest.approx(ratio, rel=0.02)
    wide = browser.run("return document.documentElement.scrollWidth")
    assert wide <= width


def test_scales_show_all_images(browser: Browser) -> None:
    given = three_images()
    given["scales"] = [ScaleView(2.0, [maps[:, ::-1] for maps in given["image_attr"]])]
    browser.open(render_page(**given))
    assert len(browser.all(".scale .frame canvas")) == 3


def test_images_that_are_not_explained_stay_thumbnails(browser: Browser) -> None:
    given = three_images()
    for name in ("image_attr", "image_shares"):
        given[name] = given[name][:2] if name == "image_attr" else given[name][:, :2]
    browser.open(render_page(**given, explained=[0, 2]))
    assert [each.text for each in browser.all(".stage figcaption span")] == ["image 1", "image 3"]
    names = [item.text for item in browser.all("#thumbnails li")]
    assert names == ["image 1, explained", "image 2", "image 3, explained"]


@pytest.mark.parametrize("width", [400, 1280])
def test_many_images_leave_the_answer_in_sight(browser: Browser, width: int) -> None:
    count = 12
    given = three_images(
        images=[Image.new("RGB", (160, 160), "teal")] * count,
        image_attr=[np.ones((len(ANSWER), 2, 2))] * count,
        image_shares=np.full((len(ANSWER), count), 1 / count),
    )
    browser.open(render_page(**given), width=width, height=800)
    answer = browser.one("#answer-text").rect
    assert answer["y"] + answer["height"] < 800
    assert browser.run("const box = document.getElementById('stages'); return box.tabIndex") == 0
