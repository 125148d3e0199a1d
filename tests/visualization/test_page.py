from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captum_mllm.models.prompt_parts import PromptPart
from captum_mllm.visualization.page import ScaleView, embed_page, render_page
from tests.visualization.hostile_text import HOSTILE


def arguments(
    count: int = 3, prompt_count: int = 2, grid: tuple[int, int] = (2, 3)
) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {
        "images": [Image.new("RGB", (40, 30), "teal")],
        "prompt_tokens": [f" prompt{index}" for index in range(prompt_count)],
        "answer_tokens": [f" answer{index}" for index in range(count)],
        "words": [[index] for index in range(count)],
        "image_attr": generator.random((count, *grid), dtype=np.float32),
        "token_attr": np.tril(generator.random((count, prompt_count + count)), prompt_count - 1),
        "output_probs": np.linspace(0.1, 1.0, count),
        "top_predictions": [[(" bus", 0.75), ("\n", 0.125)]] * count,
        "scales": [ScaleView(0.5, generator.random((count, 1, 2)), np.full(count, 0.5))],
    }


class _Scripts(HTMLParser):
    """Collects the content of each element of raw text, as a browser would read it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.contents: list[tuple[str, str]] = []
        self.references: list[str] = []
        self.policy = ""
        self._tag = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        values = dict(attrs)
        self.references += [values[name] or "" for name in ("src", "href") if name in values]
        if values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""

    def handle_data(self, content: str) -> None:
        if self._tag in ("script", "style") and content.strip():
            self.contents.append((self._tag, content))

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""


def page_json(page: str) -> dict[str, Any]:
    scripts = [content for tag, content in _Scripts(page).contents if tag == "script"]
    assert len(scripts) == 2
    return dict(json.loads(scripts[0]))


def unpack(packed: dict[str, Any]) -> np.ndarray:
    cells = np.frombuffer(base64.b64decode(packed["cells"]), np.uint8)
    rows = cells.reshape(len(packed["steps"]), *packed["grid"]).astype(np.float64)
    for index, (step, zero) in enumerate(zip(packed["steps"], packed["zeros"], strict=True)):
        rows[index] = (rows[index] - zero) * step
    return rows


def image_of(page: str) -> Image.Image:
    (uri,) = [reference for reference in _Scripts(page).references if reference]
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize("low", [0.0, -1.0, -0.01, -1e30, -1e-300])
@pytest.mark.parametrize("high", [0.0, 1.0, 1e-7, 1e30, 1e300])
def test_maps_survive_to_one_part_in_255(low: float, high: float) -> None:
    share = np.random.default_rng(1).random((4, 5, 7))
    maps = low + share * (high - low)
    maps[:, 0, 0], maps[:, 0, 1], maps[:, 0, 2] = 0.0, low, high
    given = arguments(4, grid=(5, 7)) | {"image_attr": maps}
    restored = unpack(page_json(render_page(**given))["maps"][0])
    assert np.abs(restored - maps).max() <= (high - low) / 255
    assert (restored[:, 0, 0] == 0).all()


def test_each_token_has_its_own_precision() -> None:
    maps = np.random.default_rng(2).random((3, 4, 4)) * np.array([1e-6, 1.0, 1e6])[:, None, None]
    restored = unpack(page_json(render_page(**arguments() | {"image_attr": maps}))["maps"][0])
    assert (np.abs(restored - maps).max(axis=(1, 2)) <= maps.max(axis=(1, 2)) / 255).all()


def test_weights_and_numbers_arrive() -> None:
    given = arguments()
    data = page_json(render_page(**given, method="ARC(LogitLens)", model="demo"))
    assert np.abs(unpack(data["weights"] | {"grid": [5]}) - given["token_attr"]).max() <= 1 / 255
    assert data["probs"] == given["output_probs"].tolist()
    assert data["predictions"] == [[[" bus", 0.75], ["\n", 0.125]]] * 3
    assert data["words"] == [[0], [1], [2]]
    assert data["scales"][0]["scale"] == 0.5
    assert data["scales"][0]["probs"] == [0.5, 0.5, 0.5]
    assert np.abs(unpack(data["scales"][0]["maps"][0]) - given["scales"][0].maps).max() <= 1 / 255
    assert (data["method"], data["model"], data["ratios"][0]) == ("ARC(LogitLens)", "demo", 40 / 30)


def test_turns_have_their_texts_and_images() -> None:
    sizes = [(40, 30), (800, 400)]
    parts = [
        PromptPart("system", 1, turn=0),
        PromptPart("user", image=0, turn=1),
        PromptPart("user", 2, turn=1),
        PromptPart("user", image=1, turn=1),
        PromptPart("assistant", 1, turn=2),
        PromptPart("assistant", 0, turn=3),
    ]
    given = arguments(prompt_count=4) | {"images": [Image.new("RGB", size) for size in sizes]}
    data = page_json(render_page(**given, explained=[1], prompt_parts=parts, unit="logits"))
    assert data["turns"] == [
        {"role": "system", "parts": [{"span": [0, 1]}]},
        {"role": "user", "parts": [{"image": 0}, {"span": [1, 3]}, {"image": 1}]},
        {"role": "assistant", "parts": [{"span": [3, 4]}]},
        {"role": "assistant", "parts": [{"span": [4, 4]}]},
    ]
    assert (data["explained"], data["ratios"], data["unit"]) == ([1], [2.0], "logits")
    thumbnails = [
        Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
        for uri in data["thumbnails"]
    ]
    assert [image.size for image in thumbnails] == [(40, 30), (192, 96)]


def test_one_image_has_no_thumbnail() -> None:
    data = page_json(render_page(**arguments()))
    assert data["thumbnails"] == []
    assert data["turns"] == [{"role": "", "parts": [{"span": [0, 2]}]}]


@pytest.mark.parametrize("negative", ["image_attr", "scales", None])
def test_colors_diverge_where_a_map_is_negative(negative: str | None) -> None:
    given = arguments()
    if negative == "image_attr":
        given["image_attr"][1, 0, 0] = -1e-6
    elif negative == "scales":
        given["scales"] = [ScaleView(2.0, np.full((3, 1, 1), -1.0))]
    assert page_json(render_page(**given))["signed"] is (negative is not None)


def test_hostile_text_stays_data() -> None:
    given = arguments(len(HOSTILE), len(HOSTILE))
    given["prompt_tokens"] = given["answer_tokens"] = HOSTILE
    given["top_predictions"] = [[(token, 0.5)] for token in HOSTILE]
    page = render_page(**given, method=HOSTILE[0], model=HOSTILE[5], title="".join(HOSTILE))
    data = page_json(page)
    assert data["answer"] == data["prompt"] == HOSTILE
    assert "hacked = 1</script>" not in page
    block = page.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(block) == data
    assert block.isascii()
    assert not set("<>&") & set(block)
    assert not re.search("[\ud800-\udfff\u2028\u2029\x00]", page)
    page.encode("utf-8")


def test_page_loads_nothing() -> None:
    page = render_page(**arguments())
    assert "://" not in page
    assert not re.search(r"\beval\(|new Function|innerHTML|@import|url\(", page)
    assert all(uri.startswith("data:image/") for uri in filter(None, _Scripts(page).references))


def test_policy_allows_the_pages_own_style_and_script_alone() -> None:
    parsed = _Scripts(render_page(**arguments()))
    hashes = {
        f"{tag}-src 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for tag, text in parsed.contents
        if not text.startswith("{")
    }
    directives = {directive.strip() for directive in parsed.policy.split(";")}
    assert directives == hashes | {
        "default-src 'none'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    }


def test_large_explanation_stays_below_three_megabytes() -> None:
    given = arguments(256, 256, (64, 64)) | {"scales": ()}
    assert len(render_page(**given)) < 3_000_000


@pytest.mark.parametrize(
    ("size", "shown"),
    [((40, 30), (40, 30)), ((3200, 100), (1600, 50)), ((2, 4000), (1, 1600)), ((1, 1), (1, 1))],
)
def test_image_is_reduced_for_display_only(size: tuple[int, int], shown: tuple[int, int]) -> None:
    page = render_page(**arguments() | {"images": [Image.new("RGB", size, "teal")]})
    assert image_of(page).size == shown
    assert page_json(page)["ratios"][0] == size[0] / size[1]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "LA"])
def test_image_of_any_mode(mode: str) -> None:
    assert (
        image_of(render_page(**arguments() | {"images": [Image.new(mode, (8, 8))]})).mode == "RGB"
    )


def test_image_encoding_follows_its_content() -> None:
    noise = np.random.default_rng(3).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    photograph = Image.fromarray(noise).resize((400, 400), Image.Resampling.BICUBIC)
    assert image_of(render_page(**arguments() | {"images": [photograph]})).format == "JPEG"
    drawing = image_of(render_page(**arguments()))
    assert drawing.format == "PNG"
    assert drawing.getpixel((3, 3)) == (0, 128, 128)


def test_image_metadata_is_left_out() -> None:
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "jpeg", exif=exif, comment=b"taken at home")
    page = render_page(**arguments() | {"images": [Image.open(buffer)]})
    shown = image_of(page)
    assert not shown.getexif()
    assert "comment" not in shown.info


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": [np.zeros((3, 4, 3))]}, TypeError, "PIL.Image.Image"),
        ({"images": []}, ValueError, r"expected 1 of 0 image\(s\)"),
        ({"explained": [-1]}, ValueError, r"explained is \(-1,\)"),
        ({"prompt_parts": [PromptPart("user", 1)]}, ValueError, "have 1 tokens together; expected"),
        (
            {"prompt_parts": [PromptPart("user", 2), PromptPart("user", image=1)]},
            ValueError,
            r"prompt_parts\[1\] is image 1; expected one of 1",
        ),
        ({"images": [Image.new("RGB", (0, 4))]}, ValueError, r"\(0, 4\)"),
        ({"prompt_tokens": "Describe"}, TypeError, "prompt_tokens is one string"),
        ({"answer_tokens": [1, 2, 3]}, TypeError, r"answer_tokens\[0\] is a int"),
        ({"answer_tokens": []}, ValueError, "answer_tokens is empty"),
        ({"words": [[0], [1]]}, ValueError, "name token None where 2 is expected"),
        ({"words": [[0, 2], [1]]}, ValueError, "name token 2 where 1 is expected"),
        ({"words": [[0, 1], [1, 2]]}, ValueError, "name token 1 where 2 is expected"),
        ({"words": [[0], [], [1, 2]]}, ValueError, r"words\[1\] is empty"),
        ({"words": [[0.0], [1.0], [2.0]]}, TypeError, "integer"),
        ({"image_attr": np.zeros((2, 4, 4))}, ValueError, r"\(2, 4, 4\); expected \(3, h, w\)"),
        ({"image_attr": np.zeros((3, 16))}, ValueError, r"expected \(3, h, w\)"),
        ({"image_attr": np.zeros((3, 0, 4))}, ValueError, "at least one cell"),
        ({"image_attr": np.full((3, 2, 2), np.nan)}, ValueError, "image_attr holds NaN"),
        ({"image_attr": np.full((3, 2, 2), np.inf)}, ValueError, "image_attr holds NaN"),
        ({"image_attr": np.zeros((3, 2, 2), complex)}, TypeError, "complex128; give real numbers"),
        ({"token_attr": np.zeros((3, 4))}, ValueError, r"\(3, 4\); expected \(3, 5\)"),
        ({"token_attr": np.ones((3, 5))}, ValueError, r"token_attr\[0, 2\] is 1.0"),
        ({"token_attr": np.full((3, 5), np.nan)}, ValueError, "token_attr holds NaN"),
        ({"output_probs": np.zeros(2)}, ValueError, r"\(2,\); expected \(3,\)"),
        ({"output_probs": np.array([0.5, -2.3, 0.1])}, ValueError, "Exponentiate"),
        ({"output_probs": np.array([0.5, 1.1, 0.1])}, ValueError, r"in \[0, 1\]"),
        ({"top_predictions": [[]]}, ValueError, "has 1 entries; expected 3"),
        (
            {"top_predictions": [[], [(7, 0.5)], []]},
            TypeError,
            r"top_predictions\[1\]\[0\] is a int",
        ),
        ({"top_predictions": [[], [], [("a", 2.0)]]}, ValueError, r"top_predictions\[2\] runs"),
        (
            {"scales": [ScaleView(0.0, np.zeros((3, 1, 1)))]},
            ValueError,
            r"scales\[0\].scale is 0.0",
        ),
        ({"scales": [ScaleView(1.0, np.zeros((2, 1, 1)))]}, ValueError, r"scales\[0\].maps has"),
        (
            {"scales": [ScaleView(1.0, np.zeros((3, 1, 1)), np.full(3, 7.0))]},
            ValueError,
            r"scales\[0\].probs runs from 7.0",
        ),
    ],
)
def test_bad_input_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        render_page(**arguments() | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_shares": np.ones((3, 3))}, r"image_shares has shape \(3, 3\)"),
        ({"image_shares": np.full((3, 2), 2.0)}, "a share in \\[0, 1\\]"),
        ({"explained": [0]}, r"explained is \(0,\); expected 2 of 2 image"),
        ({"image_attr": []}, "expected 0 of 2|image_attr is empty"),
        ({"image_attr": [np.ones((3, 1, 1)), np.ones((2, 1, 1))]}, r"image_attr\[1\] has shape"),
        ({"scales": [ScaleView(1.0, np.ones((3, 1, 1)))]}, r"maps of 1 image\(s\); expected 2"),
    ],
)
def test_parts_of_another_number_of_images_are_refused(
    change: dict[str, Any], message: str
) -> None:
    given = arguments() | {
        "images": [Image.new("RGB", (4, 4)), Image.new("RGB", (6, 2))],
        "image_attr": [np.ones((3, 2, 2)), np.ones((3, 1, 3))],
        "image_shares": np.full((3, 2), 0.5),
        "scales": [],
    }
    assert page_json(render_page(**given))["shares"] == [[0.5, 0.5]] * 3
    with pytest.raises(ValueError, match=message):
        render_page(**given | change)


def test_rounding_of_probabilities_is_forgiven() -> None:
    probs = np.array([1 + 1e-7, -1e-8, 0.5])
    data = page_json(render_page(**arguments() | {"output_probs": probs}))
    assert data["probs"] == [1.0, 0.0, 0.5]


class _Elements(HTMLParser):
    """Collects the elements of a piece of markup."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_embedded_page_keeps_the_page() -> None:
    page = render_page(**arguments() | {"answer_tokens": HOSTILE[:3]})

    ((tag, frame),) = _Elements(embed_page(page, height=300)).found
    assert tag == "iframe"
    assert frame["srcdoc"] == page
    assert frame["sandbox"] == "allow-scripts"
    assert "height: 300px" in str(frame["style"])


@pytest.mark.parametrize("height", [0, -5])
def test_embedded_page_needs_a_height(height: int) -> None:
    with pytest.raises(ValueError, match="height is"):
        embed_page("<p></p>", height=height)


def _luminance(color: str) -> float:
    channels = np.array([int(color[start : start + 2], 16) for start in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    ("text", "background"),
    [
        *[(text, background) for text in ("ink", "quiet") for background in ("paper", "card")],
        *[("ink", background) for background in ("for", "against", "line")],
        ("accent", "paper"),
        ("accent", "card"),
    ],
)
def test_text_has_enough_contrast(text: str, background: str, dark: bool) -> None:
    colors: dict[str, str] = {}
    for name in ("document.css", "page.css"):
        style = resources.files("captum_mllm.visualization").joinpath(name).read_text()
        roots = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
        colors.update(re.findall(r"--(\w+): (#\w{6});", roots[int(dark)]))
    first, second = sorted((_luminance(colors[text]), _luminance(colors[background])))
    assert (second + 0.05) / (first + 0.05) >= 4.5
