from __future__ import annotations

import warnings
from collections.abc import Iterator

import matplotlib
import numpy as np
import pytest
from PIL import Image

from captum_mllm.visualization import fonts, plots, text_plots
from tests.visualization.test_plots import drawn

matplotlib.use("Agg")


def test_control_characters_and_long_tokens_are_labels_too() -> None:
    tokens = ["a\n\t\0", "\ud83d", "x" * 200, ""]
    figure, axes = text_plots.token_weights(np.zeros((4, 4)), tokens, tokens)
    drawn(figure)
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[:2] == ["a\\n\\t\\x00", "\\ud83d"]
    assert len(labels[2]) == 50
    for token in tokens:
        figure, _ = plots.image_heatmap(Image.new("RGB", (8, 8)), np.ones((2, 2)), title=token)
        drawn(figure)


@pytest.fixture
def no_other_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """matplotlib's own fonts alone, which have no Chinese, whatever else is installed."""
    monkeypatch.setattr(fonts, "_fallback_fonts", list)
    monkeypatch.setattr(fonts, "_named", set())
    fonts._families.cache_clear()
    yield
    fonts._families.cache_clear()


@pytest.mark.usefixtures("no_other_fonts")
def test_missing_characters_are_told_once_and_drawn_as_boxes() -> None:
    strange = "\u4e2d"
    image, maps = Image.new("RGB", (8, 8)), [np.ones((2, 2))] * 2
    with pytest.warns(UserWarning, match="no installed font has the characters") as told:
        figure, axes = plots.word_sheet(image, maps, [f"a{strange}", strange])
    assert len(told) == 1
    assert [text.get_text() for text in axes.texts] == ["a\u25a1", "\u25a1"]
    drawn(figure)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plots.word_sheet(image, maps, [f"b{strange}", "\u6587"])


@pytest.mark.parametrize(
    ("text", "font"),
    [("\u4e2d", "Noto Sans CJK"), ("\U0001f9ff", "Noto Emoji"), ("\U00010a00", "Noto Sans of")],
)
@pytest.mark.usefixtures("no_other_fonts")
def test_the_font_to_install_is_named(text: str, font: str) -> None:
    with pytest.warns(UserWarning, match=font):
        plots.image_heatmap(Image.new("RGB", (8, 8)), np.ones((2, 2)), title=text)


def test_another_installed_font_lends_its_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    # A font of matplotlib's own that has Latin letters alone, as most fonts lack some script.
    monkeypatch.setitem(matplotlib.rcParams, "font.family", ["cmss10"])
    title = "\u0645\u0631\u062d\u0628\u0627 \u2603"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure, axes = plots.image_heatmap(Image.new("RGB", (8, 8)), np.ones((2, 2)), title=title)
        drawn(figure)
    assert axes.get_title() == title
    families = axes.title.get_fontproperties().get_family()
    assert families[0] == "cmss10"
    assert len(families) > 1
