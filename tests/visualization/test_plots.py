from __future__ import annotations

import base64
import time
import warnings
from importlib import resources
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.colors import Normalize
from PIL import Image

from captum_mllm.visualization import colors, plots, text_plots
from captum_mllm.visualization.page import render_page
from tests.visualization.test_page import arguments, page_json

matplotlib.use("Agg")
GENERATOR = np.random.default_rng(0)


def drawn(figure: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]


@pytest.mark.parametrize("signed", [False, True])
def test_the_page_and_the_plots_have_the_same_colours_to_the_byte(signed: bool) -> None:
    # Eighths of the range: they lie at the edges of the 256 colours.
    values = np.array([-8, -4, -1, 0, 1, 4, 7, 8] if signed else range(9), dtype=np.float32) / 8
    given = arguments(1, grid=(1, len(values)))
    given |= {"image_attr": values[None, None], "scales": ()}
    data = page_json(render_page(**given))
    table = np.frombuffer(base64.b64decode(data["colors"]), np.uint8).reshape(256, 3)
    assert data["signed"] is signed

    low, high = colors.color_limits([values])
    expected = colors.colormap(signed)(Normalize(low, high)(values), bytes=True)[:, :3]
    # As the page's script has it.
    share = (values / high + 1) / 2 if signed else values / high
    assert np.array_equal(table[np.minimum(np.floor(256 * share), 255).astype(int)], expected)
    assert np.array_equal(table[colors.color_entries(values, low, high)], expected)
    assert data["fade"] == colors.FADE


def test_the_page_begins_with_the_opacity_of_the_plots() -> None:
    files = resources.files("captum_mllm.visualization")
    assert f"--opacity: {colors.OPACITY};" in files.joinpath("page.css").read_text()
    assert f'value="{colors.OPACITY * 100:.0f}"' in files.joinpath("page.html").read_text()


@pytest.mark.parametrize(
    ("maps", "limits"),
    [
        ([np.array([0.0, 2.0])], (0, 2)),
        ([np.array([0.0]), np.array([-3.0, 1.0])], (-3, 3)),
        ([np.zeros(3)], (0, 1)),
        ([], (0, 1)),
        ([np.array([np.nan, np.inf, 0.5])], (0, 0.5)),
        ([np.array([np.nan])], (0, 1)),
    ],
)
def test_colours_begin_at_zero_or_lie_around_it(maps: Any, limits: tuple[float, float]) -> None:
    assert colors.color_limits(maps) == limits


def test_the_sheet_shows_each_map_over_the_image() -> None:
    image = Image.new("RGB", (40, 20), (10, 200, 30))
    maps = [np.zeros((2, 4)), np.full((2, 4), 0.5), np.full((2, 4), 1.0)]
    _, axes = plots.word_sheet(image, maps, ["a", "b", "c"], alpha=0.5)
    first, second, third = (cell.get_array()[10, 10].astype(float) for cell in axes.images)
    assert first.tolist() == [10, 200, 30]
    for shown, value in ((second, 0.5), (third, 1.0)):
        color = colors.color_table(False)[min(int(256 * value), 255)]
        cover = 0.5 * value**colors.FADE
        assert np.abs(shown - ((1 - cover) * first + cover * color)).max() <= 0.5


@pytest.mark.parametrize("columns", [None, 1, 3, 100])
@pytest.mark.parametrize("size", [(40, 30), (400, 10), (10, 400), (1, 1)])
def test_images_of_the_sheet_do_not_cover_each_other(
    size: tuple[int, int], columns: int | None
) -> None:
    figure, axes = plots.word_sheet(
        Image.new("RGB", size), [np.ones((2, 2))] * 7, list("abcdefg"), columns=columns
    )
    drawn(figure)
    boxes = [image.get_window_extent() for image in axes.images]
    boxes += [text.get_window_extent() for text in axes.texts]
    for index, one in enumerate(boxes):
        assert not any(
            min(one.x1, other.x1) - max(one.x0, other.x0) > 1
            and min(one.y1, other.y1) - max(one.y0, other.y0) > 1
            for other in boxes[:index]
        )
        assert one.y0 >= -1 and one.y1 <= figure.bbox.height + 1


def test_four_hundred_words_take_seconds() -> None:
    maps = [GENERATOR.random((24, 32)) for _ in range(400)]
    start = time.process_time()
    figure, axes = plots.word_sheet(Image.new("RGB", (448, 448)), maps, ["word"] * 400)
    drawn(figure)
    # 54 s with an axis for each image.
    assert time.process_time() - start < 15
    assert len(axes.images) == 400


def test_large_photographs_are_drawn_small() -> None:
    photograph = Image.new("RGB", (4000, 3000))
    figure, axes = plots.word_sheet(photograph, [np.ones((60, 80))] * 30, ["x"] * 30)
    assert sum(image.get_array().nbytes for image in axes.images) < 20_000_000
    figure, axes = plots.image_heatmap(photograph, np.ones((60, 80)))
    image, overlay = axes.images
    assert image.get_array().shape == (1200, 1600, 3)
    assert list(image.get_extent()) == list(overlay.get_extent()) == [-0.5, 3999.5, 2999.5, -0.5]
    drawn(figure)


def test_an_image_is_as_it_was(tmp_path: Any) -> None:
    for mode in ("RGB", "L", "P", "RGBA", "1"):
        image = Image.new(mode, (2000, 20))
        plots.image_heatmap(image, np.ones((2, 2)))
        assert (image.size, image.mode) == ((2000, 20), mode)


def test_a_map_of_nothing_but_nan_covers_nothing() -> None:
    image = Image.new("RGB", (8, 8), "teal")
    map_ = np.full((8, 8), np.nan, np.float32)
    figure, axes = plots.image_heatmap(image, map_)
    drawn(figure)
    assert (axes.images[1].get_alpha() == 0).all()
    _, axes = plots.word_sheet(image, [map_], ["x"])
    assert (axes.images[0].get_array() == (0, 128, 128)).all()


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_borders_are_as_wide_as_asked_for(width: int) -> None:
    segments = np.zeros((20, 30), int)
    segments[:, 15:] = 1
    opaque = plots._borders(segments, width)[..., 3] > 0
    assert (opaque.sum(1) == width).all()
    assert opaque[0].nonzero()[0].mean() == pytest.approx(15, abs=1)


def test_the_label_of_a_segment_lies_on_it() -> None:
    segments = np.zeros((9, 9), int)
    segments[2:7, 2:7] = 3
    segments[4, 4] = -1
    for name, (row, column) in plots._places(segments).items():
        assert segments[int(row), int(column)] == name


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_options_out_of_range_are_refused(alpha: float) -> None:
    image = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\]"):
        plots.word_sheet(image, [np.ones((2, 2))], ["x"], alpha=alpha)
    with pytest.raises(ValueError, match=r"expected a number in \[0, 1\]"):
        plots.image_heatmap(image, np.ones((2, 2)), alpha=alpha)
    with pytest.raises(ValueError, match="columns=0"):
        plots.word_sheet(image, [], [], columns=0)


def test_many_tokens_are_drawn_in_seconds_at_a_size_that_can_be_saved() -> None:
    start = time.process_time()
    figure, axes = text_plots.token_weights(
        GENERATOR.random((300, 800)), ["in"] * 800, ["out"] * 300
    )
    drawn(figure)
    assert time.process_time() - start < 20
    assert max(figure.get_size_inches()) <= 60
    assert len(axes.get_xticklabels()) <= 120
    figure, _ = text_plots.token_sums(GENERATOR.random(800), ["in"] * 800)
    drawn(figure)
    assert max(figure.get_size_inches()) <= 60


def test_labels_stand_at_their_tokens() -> None:
    tokens = [str(index) for index in range(500)]
    _, axes = text_plots.token_weights(np.zeros((1, 500)), tokens, ["a"])
    axes.figure.canvas.draw()
    for tick, label in zip(axes.get_xticks(), axes.get_xticklabels()):
        assert label.get_text() == str(int(tick))


def test_records_for_captum_are_escaped_and_scaled() -> None:
    weights = torch.tensor([[1.0, -4.0], [0.0, 0.0]])
    first, second = text_plots.text_records(["<b>", "\n"], ["&", "c"], weights, [0.5, 1.0])
    assert first.raw_input_ids == ["&lt;b&gt;", "\\n"]
    assert (first.pred_class, first.pred_prob, first.attr_score) == ("&amp;", 0.5, -3.0)
    assert first.word_attributions.tolist() == [0.25, -1.0]
    assert second.word_attributions.tolist() == [0.0, 0.0]
