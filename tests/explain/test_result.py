from __future__ import annotations

import gc
import inspect
import json
import re
import sys
import warnings
import weakref
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, LLMAttributionResult, visualization
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from captum_mllm import MLLM, ImageTextInput, LogitLens, MLLMAttribution, MLLMAttributionResult
from captum_mllm.demo import demo_image
from captum_mllm.explain import ScaleResult, WordWeight, result_file
from captum_mllm.models.prompt_parts import PromptPart

matplotlib.use("Agg")


def make(**changes: Any) -> MLLMAttributionResult:
    """Three tokens, two words ("a", "<b>cat"), after a prompt of two tokens."""
    weights = torch.tensor([[0.5, 1, 0, 0, 0], [0, 2, 1, 0, 0], [0.0, 0, 0, 0, 0]])
    maps = torch.zeros(3, 2, 4)
    maps[0, 0, 0], maps[1, 1, 3], maps[2, 1, 2] = 1.0, 2.0, 4.0
    parts: dict[str, Any] = {
        "input_tokens": ["what", " ?", "a", " <b>", "cat"],
        "output_tokens": ["a", " <b>", "cat"],
        "image_attr": maps,
        "token_attr": weights,
        "output_probs": torch.tensor([0.5, 0.25, 1.0]),
        "n_prompt": 2,
        "words": [(0,), (1, 2)],
        "top_predictions": [[("a", 0.5), ("the", 0.25)]] * 3,
        "images": [Image.fromarray(np.arange(96, dtype=np.uint8).reshape(4, 8, 3))],
        "scales": [
            ScaleResult(1.0, torch.rand(3, 2, 4), torch.rand(3)),
            ScaleResult(2.0, torch.rand(3, 4, 8)),
        ],
        "prompt": "what ?",
        "method": "ARC(MSEA(LogitLens))",
        "model": "toy",
    }
    return MLLMAttributionResult(**{**parts, **changes})


def test_a_map_has_the_size_of_the_image() -> None:
    result = make()
    for token in (0, -1, (0, 2), None, "a", "<b>cat"):
        array = result.map(token)
        assert array.shape == (4, 8)
        assert array.dtype == np.float32
    assert np.array_equal(result.map(1), result.map(-2))
    assert np.allclose(result.map((1, 3)), (result.map(1) + result.map(2)) / 2)
    assert np.array_equal(result.map("<b>cat"), result.map((1, 3)))
    assert np.allclose(result.map(), sum(result.map(i) for i in range(3)) / 3)
    assert np.allclose(result.map((0, 2), reduce="sum"), result.map(0) + result.map(1))
    for token in (3, -4, (2, 5), (1, 1), "dog"):
        with pytest.raises(ValueError, match=r"token|word"):
            result.map(token)
    with pytest.raises(ValueError, match="expected one of 'mean', 'sum'"):
        result.map(0, reduce="max")


@pytest.mark.parametrize(
    ("selection", "tokens"),
    [
        ("a <b>cat", [0, 1, 2]),
        (("a", 1), [0]),
        ([0, 2], [0, 2]),
        (slice(1, None), [1, 2]),
        (range(2), [0, 1]),
        (re.compile("<.>"), [1, 2]),
        (np.int64(1), [1]),
        ("A", [0]),
    ],
    ids=repr,
)
def test_one_selection_serves_maps_plots_and_weights(selection: Any, tokens: list[int]) -> None:
    result = make()
    mean = sum(result.map(token) for token in tokens) / len(tokens)
    assert np.allclose(result.map(selection), mean)
    _, axes = result.plot_image_heatmap(target_token_pos=selection)
    assert np.allclose(axes.images[1].get_array(), len(tokens) * mean)
    weights = result.token_attr[tokens].mean(0)
    assert result.text_weights(selection)[0].weight == pytest.approx(float(weights[0]))
    for method in (result.map, result.text_weights):
        with pytest.raises(TypeError, match="truth values"):
            method(True)


def test_a_repeated_word_is_told_apart_by_its_occurrence() -> None:
    result = make(
        input_tokens=["what", " ?", "a", " cat", " A"],
        output_tokens=["a", " cat", " A"],
        words=[(0,), (1,), (2,)],
    )
    assert np.array_equal(result.map("a"), result.map(0))
    assert np.array_equal(result.map("A"), result.map(2))
    with pytest.raises(ValueError, match="expected at most 1"):
        result.map(("a", 2))


def test_it_is_captums_result() -> None:
    result = make()
    assert torch.equal(result.seq_attr, result.token_attr.sum(0))
    assert result.output_words == ["a", "<b>cat"]
    figure, _ = result.plot_token_attr()
    figure.canvas.draw()


@pytest.mark.parametrize("token", [None, 0, (0, 2), "a"])
def test_the_heatmap_is_drawn_over_the_image(token: Any) -> None:
    figure, axes = make().plot_image_heatmap(target_token_pos=token)
    figure.canvas.draw()
    image, overlay = axes.images
    assert np.array_equal(image.get_array(), np.asarray(make().image))
    # Captum sums over a range, and over all.
    assert np.array_equal(overlay.get_array(), make().map(token, reduce="sum"))


def test_zero_and_signed_maps_are_drawn_too() -> None:
    for maps in (torch.zeros(3, 2, 4), -torch.rand(3, 2, 4)):
        result = make(image_attr=maps)
        for figure, _ in (result.plot_image_heatmap(), result.plot_words()):
            figure.canvas.draw()
            pixels = np.asarray(figure.canvas.buffer_rgba())
            assert np.isfinite(pixels).all()


def test_the_plots_take_captums_arguments() -> None:
    for name in ("plot_image_heatmap", "plot_token_attr", "plot_seq_attr"):
        ours = inspect.signature(getattr(MLLMAttributionResult, name)).parameters
        captums = inspect.signature(getattr(LLMAttributionResult, name)).parameters
        assert list(ours)[: len(captums)] == list(captums)
        for parameter in captums:
            assert ours[parameter].default == captums[parameter].default
            assert ours[parameter].kind == captums[parameter].kind
        figure, axes = getattr(make(), name)()
        assert isinstance(figure, Figure)
        assert isinstance(axes, Axes)
        assert getattr(make(), name)(show=True) is None


def test_segments_have_borders_and_labels() -> None:
    segments = torch.zeros(4, 8, dtype=torch.int64)
    segments[:, 4:] = 7
    result = make(segments=segments)
    _, axes = result.plot_image_heatmap(border_width=1)
    assert [text.get_text() for text in axes.texts] == ["0", "7"]
    columns = [text.get_position()[0] for text in axes.texts]
    assert columns[0] < 4 <= columns[1]
    _, _, borders = axes.images
    assert (borders.get_array()[..., 3] > 0).any(0).tolist() == [False] * 4 + [True] + [False] * 3
    _, axes = result.plot_image_heatmap(border_width=0, show_legends=False)
    assert (len(axes.images), len(axes.texts)) == (2, 0)


def test_the_sheet_has_an_image_for_each_word() -> None:
    figure, axes = make().plot_words(columns=3)
    figure.canvas.draw()
    assert [title.get_text() for title in axes.texts] == ["a", "<b>cat"]
    assert len(axes.images) == 2


def test_plots_name_the_unit_of_the_maps() -> None:
    for unit, label in (("logits", "Attribution (logits)"), ("", "Attribution")):
        result = make(unit=unit)
        for plot in (result.plot_words(), result.plot_image_heatmap(target_token_pos=0)):
            assert plot[0].axes[-1].get_ylabel() == label


def test_plots_are_gone_when_nothing_refers_to_them() -> None:
    result = make()
    plots = [result.plot_words, result.plot_image_heatmap, result.plot_token_attr]
    for plot in (*plots, result.plot_seq_attr):
        figure = plot()[0]
        figure.canvas.draw()
        gone = weakref.ref(figure)
        del figure
        gc.collect()
        assert gone() is None
        plot(show=True)
    assert pyplot.get_fignums() == []


def test_dollars_are_no_formulas() -> None:
    tokens = ["costs", " $$", "$x$", " $5", " \\alpha$_"]
    result = make(input_tokens=tokens, output_tokens=tokens[2:])
    for plot in (result.plot_words, result.plot_token_attr, result.plot_seq_attr):
        figure, axes = plot()
        figure.canvas.draw()
        texts = [*axes.texts, *axes.get_xticklabels(), *axes.get_yticklabels()]
        with_dollars = [text for text in texts if "$" in text.get_text()]
        assert with_dollars
        assert not any(text.get_parse_math() for text in with_dollars)
    with matplotlib.rc_context({"text.usetex": True}):
        axes = result.plot_words()[1]
        assert not any(text.get_usetex() for text in axes.texts)
    figure, axes = result.plot_image_heatmap(target_token_pos=0)
    figure.canvas.draw()
    assert axes.get_title() == "$x$"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_or_bfloat16_are_drawn(value: float) -> None:
    result = make()
    result.token_attr = result.token_attr.bfloat16()
    result.seq_attr = result.seq_attr.bfloat16()
    result.token_attr[0, 1] = result.seq_attr[1] = value
    for plot in (result.plot_token_attr, result.plot_seq_attr):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure, _ = plot()
            figure.canvas.draw()


def test_weights_of_the_earlier_words_are_a_table() -> None:
    result = make(
        prompt_parts=[
            PromptPart("system", 1),
            PromptPart("user", image=0, turn=1),
            PromptPart("user", 1, turn=1),
        ]
    )
    assert result.text_weights("<b>cat") == [
        WordWeight("what", 0.0, "prompt", "system", (0,)),
        WordWeight("?", 1.0, "prompt", "user", (1,)),
        WordWeight("a", 0.5, "answer", "assistant", (2,)),
    ]
    assert [row.weight for row in result.text_weights((1, 3), reduce="sum")] == [0, 2, 1]
    assert [row.word for row in result.text_weights()] == ["what", "?"]
    assert [row.word for row in result.text_weights(0)] == ["what", "?"]


def test_words_do_not_go_over_from_one_text_into_the_next() -> None:
    joined = make(input_tokens=["it", "and", "a", " <b>", "cat"])
    assert [row.word for row in joined.text_weights(0)] == ["itand"]
    parts = [PromptPart("user", 1), PromptPart("user", image=0), PromptPart("user", 1)]
    apart = make(input_tokens=["it", "and", "a", " <b>", "cat"], prompt_parts=parts)
    assert [(row.word, row.weight) for row in apart.text_weights(0)] == [("it", 0.5), ("and", 1.0)]


def test_it_is_written_as_json() -> None:
    result = make()
    whole = json.loads(result.to_json())
    assert whole == result.to_dict()
    assert whole["answer"] == "a <b>cat"
    assert whole["finished"] is None
    assert make(finished=False).to_dict()["finished"] is False
    assert whole["image"] == {"width": 8, "height": 4}
    first, second = whole["words"]
    assert (second["word"], second["tokens"], second["probability"]) == ("<b>cat", [1, 2], 0.25)
    assert np.allclose(second["map"], result.image_attr[1:].mean(0))
    assert second["text_weights"][1] == {
        "word": "?",
        "weight": 1.0,
        "source": "prompt",
        "role": "",
    }
    assert first["top_predictions"] == [["a", 0.5], ["the", 0.25]]
    assert "map" not in result.to_dict(maps=False)["words"][0]


def test_weights_are_a_dataframe() -> None:
    pytest.importorskip("pandas")
    table = make().to_dataframe()
    assert list(table.word) == ["a", "a", "<b>cat", "<b>cat", "<b>cat"]
    assert list(table.weight) == [0.5, 1.0, 0.0, 1.0, 0.5]
    assert list(table.earlier_position) == [0, 1, 0, 1, 2]


def test_a_missing_pandas_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        make().to_dataframe()


def test_maps_go_straight_into_captums_visualizer() -> None:
    result = make()
    figure, _ = visualization.visualize_image_attr(
        result.map(1)[..., None],
        np.asarray(result.image),
        method="blended_heat_map",
        use_pyplot=False,
    )
    figure.canvas.draw()


def test_weights_go_straight_into_captums_text_visualizer() -> None:
    pytest.importorskip("IPython")
    records = make().text_records()
    assert [float(record.word_attributions.max()) for record in records] == [1, 1, 0]
    page = visualization.visualize_text(records).data
    assert "&lt;b&gt;" in page
    assert " <b>" not in page


def test_it_is_read_as_it_was_saved(tmp_path: Path) -> None:
    image = make().image
    result = make(
        images=[Image.new("RGB", (3, 2), "red"), image],
        explained=[1],
        prompt_parts=[PromptPart("user", 2, turn=1)],
        segments=torch.arange(32).reshape(4, 8),
        unit="logits",
        finished=False,
    )
    path = tmp_path / "result.safetensors"
    result.save(path)
    read = MLLMAttributionResult.load(path)
    for name in ("image_attr", "token_attr", "output_probs", "seq_attr"):
        assert torch.equal(getattr(read, name), getattr(result, name))
    for name in ("input_tokens", "output_tokens", "words", "top_predictions", "n_prompt"):
        assert getattr(read, name) == getattr(result, name)
    for name in ("prompt", "method", "model", "prompt_parts", "explained", "unit", "finished"):
        assert getattr(read, name) == getattr(result, name)
    assert [np.asarray(image).tolist() for image in read.images] == [
        np.asarray(image).tolist() for image in result.images
    ]
    assert torch.equal(read.segments, result.segments)
    for one, other in zip(read.scales, result.scales, strict=True):
        assert one.scale == other.scale
        assert torch.equal(one.image_attr, other.image_attr)
    assert read.scales[1].output_probs is None
    assert read.to_html() == result.to_html()


@pytest.mark.parametrize("lost", ["image.0", "image_attr.0", "scale.1.image_attr.0"])
def test_a_file_without_a_part_is_refused(lost: str, tmp_path: Path) -> None:
    path = tmp_path / "result.safetensors"
    make().save(path)
    tensors, facts = result_file.read_result(path)
    del tensors[lost]
    result_file.write_result(path, tensors, facts)
    with pytest.raises(ValueError, match=r"lacks a part of a result|is not a whole result"):
        MLLMAttributionResult.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"words": [[0], ["1", 2]]},
        {"words": None},
        {"n_prompt": "2"},
        {"input_tokens": [1, 2, 3, 4, 5]},
        {"top_predictions": [[["a"]], [], []]},
        {"top_predictions": [[["a", "much"]], [], []]},
        {"prompt_parts": [{"role": "user", "n_tokens": 3}]},
        {"prompt_parts": [{"role": "user", "n_token": 2}]},
        {"scales": [float(2), -1.0]},
        {"scales": ["1.0", 2.0]},
        {"explained": [1]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_file_with_other_facts_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "result.safetensors"
    make().save(path)
    tensors, facts = result_file.read_result(path)
    result_file.write_result(path, tensors, {**facts, **change})
    with pytest.raises(ValueError, match="is not a whole result"):
        MLLMAttributionResult.load(path)


@pytest.mark.parametrize("name", ["save", "save_html"])
def test_a_path_that_cannot_be_written_is_refused_by_name(name: str, tmp_path: Path) -> None:
    write = getattr(make(), name)
    with pytest.raises(FileNotFoundError, match="create it first"):
        write(tmp_path / "absent" / "file")
    with pytest.raises(IsADirectoryError, match="it is a folder"):
        write(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_attr": torch.zeros(2, 2, 4)},
        {"image_attr": torch.zeros(3, 8)},
        {"token_attr": torch.zeros(3, 4)},
        {"output_probs": torch.zeros(2)},
        {"words": [(0,), (2,)]},
        {"n_prompt": 4},
        {"top_predictions": []},
        {"scales": [ScaleResult(1.0, torch.zeros(2, 2, 4))]},
        {"words": [(0,), (), (1, 2)]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        make(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"images": []}, ValueError, "indices of the 0 image"),
        ({"output_probs": torch.tensor([0.5, 0.5, 1.5])}, ValueError, r"outside of \[0, 1\]"),
        ({"method": 3}, TypeError, "are strings"),
        ({"prompt_parts": [PromptPart(None, 2)]}, TypeError, "are strings"),
        ({"images": [np.zeros((4, 8, 3))]}, TypeError, "PIL.Image.Image"),
        ({"explained": [1]}, ValueError, r"explained is \(1,\)"),
        ({"prompt_parts": [PromptPart("user", 3)]}, ValueError, "have 3 tokens together"),
        ({"segments": torch.zeros(8, 4)}, ValueError, r"expected \(4, 8\)"),
        ({"input_tokens": [0, 1, 2, 3, 4]}, TypeError, "not strings"),
        ({"scales": [ScaleResult(0.0, torch.zeros(3, 2, 4))]}, ValueError, "positive number"),
        ({"scales": [ScaleResult(1.0, torch.full((3, 2, 4), torch.nan))]}, ValueError, "finite"),
    ],
)
def test_parts_are_refused_by_name(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(**changes)


def test_what_does_not_say_whether_an_answer_was_finished_is_refused() -> None:
    with pytest.raises(TypeError, match="finished is 'yes', expected True, False or None"):
        make(finished="yes")


@pytest.mark.parametrize("part", ["image_attr", "token_attr", "output_probs"])
def test_numbers_that_are_not_finite_are_refused(part: str) -> None:
    whole = getattr(make(), part)
    with pytest.raises(ValueError, match=f"{part} has numbers that are not finite"):
        make(**{part: torch.full_like(whole, torch.nan)})


def test_half_precision_is_kept_as_float32(tmp_path: Path) -> None:
    half = make(image_attr=make().image_attr.bfloat16(), token_attr=make().token_attr.bfloat16())
    half.save(tmp_path / "result.safetensors")
    read = MLLMAttributionResult.load(tmp_path / "result.safetensors")
    assert read.image_attr.dtype == read.token_attr.dtype == torch.float32
    assert torch.equal(read.image_attr, make().image_attr)


def test_a_word_of_the_prompt_gives_way_to_the_answers() -> None:
    repeated = make(
        input_tokens=["a", " dog", "a", " <b>", "cat"],
        output_tokens=["a", " dog", "a", " <b>", "cat"],
        image_attr=torch.arange(5.0)[:, None, None].expand(5, 2, 4),
        token_attr=torch.zeros(5, 5),
        output_probs=torch.ones(5),
        top_predictions=[[]] * 5,
        words=[(0,), (1,), (2,), (3, 4)],
        scales=[],
    )
    assert repeated.map("a").max() == 2
    assert repeated.map("dog").max() == 1


def test_the_page_and_the_notebook_view_are_made(tmp_path: Path) -> None:
    result = make()
    result.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == result.to_html()
    assert "ARC(MSEA(LogitLens))" in page
    assert result._repr_html_().startswith("<iframe")


def test_a_chat_has_its_turns_and_images() -> None:
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    scene = Image.open(demo_image())
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a red"},
                {"type": "image"},
                {"type": "text", "text": "star"},
                {"type": "image"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "a blue ring"}]},
        {"role": "user", "content": [{"type": "text", "text": "describe the image"}]},
    ]
    inp = ImageTextInput([scene, scene.crop((0, 0, 112, 56))], messages=messages, explained=1)
    result = MLLMAttribution(LogitLens(mllm)).attribute(inp, target="a red star")
    assert result.prompt_parts == [
        PromptPart("user", 2, turn=0),
        PromptPart("user", image=0, turn=0),
        PromptPart("user", 1, turn=0),
        PromptPart("user", image=1, turn=0),
        PromptPart("assistant", 3, turn=1),
        PromptPart("user", 3, turn=2),
    ]
    assert [image.size for image in result.images] == [scene.size, (112, 56)]
    assert result.image.size == (112, 56)
    assert [(row.word, row.role) for row in result.text_weights(0)] == [
        *[("a", "user"), ("red", "user"), ("star", "user")],
        *[("a", "assistant"), ("blue", "assistant"), ("ring", "assistant")],
        *[("describe", "user"), ("the", "user"), ("image", "user")],
    ]
    assert '"role":"assistant"' in result.to_html()


def test_segments_of_the_method_are_those_of_the_plot() -> None:
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    inp = ImageTextInput(Image.open(demo_image()), "describe the image .")
    explainer = MLLMAttribution(FeatureAblation(mllm))
    result = explainer.attribute(inp, target="a", segments=(2, 3), perturbations_per_eval=6)
    assert result.segments is not None
    assert result.segments.unique().tolist() == [0, 1, 2, 3, 4, 5]
    _, axes = result.plot_image_heatmap()
    assert [text.get_text() for text in axes.texts] == list("012345")


values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**40) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_change_of_a_file_is_a_result_or_a_reasoned_error(data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "result"
        make(prompt_parts=[PromptPart("user", 2)], segments=torch.zeros(4, 8)).save(path)
        tensors, facts = result_file.read_result(path)
        if data.draw(st.booleans()):
            name = data.draw(st.sampled_from(sorted(facts)))
            facts[name] = data.draw(values)
        else:
            name = data.draw(st.sampled_from(sorted(tensors)))
            shape = data.draw(st.lists(st.integers(0, 4), max_size=4))
            kind = data.draw(st.sampled_from([torch.uint8, torch.float16, torch.int64, torch.bool]))
            tensors[name] = torch.zeros(shape, dtype=kind)
        try:
            result_file.write_result(path, tensors, facts)
            read = MLLMAttributionResult.load(path)
        except ValueError:
            return
        # What is read can be shown.
        read.to_json()
        read.to_html()
        read.plot_words()
        repr(read)
