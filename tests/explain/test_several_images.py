"""The result of a prompt of several images, and how it comes: alone, in a batch, in a stream."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import Attribution, FeatureAblation
from PIL import Image

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    AttendedLens,
    ImageTextInput,
    LogitLens,
    MLLMAttribution,
    MLLMAttributionResult,
)
from captum_mllm.explain import ScaleResult
from tests.models.tiny_models import FAMILIES, shared

SIZES = [(84, 112), (112, 84), (140, 140)]
METHODS: dict[str, Callable[[MLLM], Attribution]] = {
    "LogitLens": LogitLens,
    "TAM": lambda mllm: TAM(LogitLens(mllm)),
    "ARC(MSEA(AttendedLens))": lambda mllm: ARC(MSEA(AttendedLens(mllm), scales=(1.0, 1.5))),
}


def question(count: int, **options: Any) -> ImageTextInput:
    generator = torch.Generator().manual_seed(count)
    images = [torch.rand(3, *size, generator=generator) for size in SIZES[:count]]
    return ImageTextInput(images, "which ?", **options)


@pytest.fixture(scope="module")
def result() -> MLLMAttributionResult:
    mllm = MLLM(*shared("qwen2_vl"))
    method = ARC(MSEA(AttendedLens(mllm), scales=(1.0, 1.5)))
    return MLLMAttribution(method).attribute(question(3), target="a cat and a dog")


def assert_same(one: MLLMAttributionResult, other: MLLMAttributionResult) -> None:
    assert one.output_words == other.output_words
    assert one.explained == other.explained
    for own, expected in zip(
        (*one.image_attrs, one.image_shares, one.token_attr, one.output_probs),
        (*other.image_attrs, other.image_shares, other.token_attr, other.output_probs),
        strict=True,
    ):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)


def test_all_images_are_explained_unless_one_is_named() -> None:
    assert question(3).explained == (0, 1, 2)
    assert question(3, explained=1).explained == (1,)
    assert [image.shape[-2:] for image in question(2).to_tensor()] == SIZES[:2]
    assert question(2, explained=1).to_tensor().shape[-2:] == SIZES[1]
    mllm = MLLM(*shared("qwen2_vl"))
    images, query = mllm.prepare(question(3), target="a")
    assert isinstance(images, tuple) and query.explained == (0, 1, 2)
    image, query = mllm.prepare(question(3, explained=2), target="a")
    assert torch.equal(image, images[2]) and query.explained == (2,)


def test_each_image_has_its_maps_and_its_share(result: MLLMAttributionResult) -> None:
    assert [len(maps) for maps in result.image_attrs] == [len(result.output_tokens)] * 3
    assert [maps.shape[1:] for maps in result.scales[0].image_attrs] == [(3, 4), (4, 3), (5, 5)]
    torch.testing.assert_close(result.image_shares.sum(1), torch.ones(len(result.output_tokens)))
    for image, size in enumerate(SIZES):
        drawn = result.map("cat", image=image)
        assert drawn.shape == size
    for token in range(len(result.output_tokens)):
        # The images have 3 x 4, 4 x 3 and 5 x 5 tokens.
        means = [float(maps[token].mean()) for maps in result.image_attrs]
        sums = [count * mean for count, mean in zip((12, 12, 25), means)]
        for share, own in zip(result.image_shares[token], sums):
            assert float(share) == pytest.approx(own / sum(sums), rel=1e-4)


def test_what_is_of_one_image_asks_which(result: MLLMAttributionResult) -> None:
    with pytest.raises(ValueError, match=r"3 images are explained, .* take image_attrs"):
        _ = result.image_attr
    with pytest.raises(ValueError, match=r"3 images are explained, .* take image_attrs"):
        _ = result.scales[0].image_attr
    with pytest.raises(ValueError, match=r"got no image, expected one of .* image=0, 1, 2"):
        result.map("cat")
    with pytest.raises(ValueError, match="got no image"):
        _ = result.image
    with pytest.raises(ValueError, match="got image=3"):
        result.map("cat", image=3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", METHODS)
def test_a_batch_equals_single_runs(name: str, family: str) -> None:
    explainer = MLLMAttribution(METHODS[name](MLLM(*shared(family))))
    inputs = [question(2), question(3), question(3, explained=1), question(1)]
    answers = ["a cat", "two", "a dog", "one"]
    together = explainer.attribute_batch(inputs, answers)
    for inp, answer, found in zip(inputs, answers, together):
        assert_same(found, explainer.attribute(inp, target=answer))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["LogitLens", "TAM"])
def test_a_stream_equals_the_whole_answer(name: str, family: str) -> None:
    explainer = MLLMAttribution(METHODS[name](MLLM(*shared(family))))
    inp = question(3)
    options = {"max_new_tokens": 6, "min_new_tokens": 6}
    with explainer.stream(inp, gen_args=options) as stream:
        steps = list(stream)
        streamed = stream.result
    expected = explainer.attribute(inp, gen_args=options)
    assert_same(streamed, expected)
    for step, word in zip(steps, expected.words, strict=True):
        shares = expected.image_shares[list(word)].mean(0)
        torch.testing.assert_close(step.image_shares, shares, rtol=1e-3, atol=1e-4)
        for image, drawn in enumerate(step.maps):
            known = expected.map((word[0], word[-1] + 1), image=image)
            np.testing.assert_allclose(drawn, known, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="3 images are explained"):
        _ = steps[0].map


def test_a_saved_result_has_all_images(result: MLLMAttributionResult, tmp_path: Path) -> None:
    result.save(tmp_path / "result.safetensors")
    read = MLLMAttributionResult.load(tmp_path / "result.safetensors")
    assert read.explained == result.explained
    for one, other in zip(read.image_attrs, result.image_attrs, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(read.image_shares, result.image_shares)
    for one, other in zip(read.scales, result.scales, strict=True):
        assert all(map(torch.equal, one.image_attrs, other.image_attrs))
    assert read.to_html() == result.to_html()


def test_segments_of_each_image_are_kept(tmp_path: Path) -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    found = MLLMAttribution(FeatureAblation(mllm)).attribute(
        question(2), target="a", segments=[(2, 2), (1, 2)]
    )
    assert found.method.endswith(
        "over a grid of 2 x 2 and a grid of 1 x 2 and the words of the prompt"
    )
    assert [int(labels.max()) for labels in found.segments] == [3, 1]
    found.save(tmp_path / "result.safetensors")
    read = MLLMAttributionResult.load(tmp_path / "result.safetensors")
    assert all(map(torch.equal, read.segments, found.segments))
    _, axes = found.plot_image_heatmap()
    assert len(axes) == 2 and [len(each.images) for each in axes] == [3, 3]


def test_plots_draw_all_images_on_one_scale(result: MLLMAttributionResult) -> None:
    _, axes = result.plot_image_heatmap(target_token_pos="cat")
    assert [each.get_title() for each in axes] == ["image 1", "image 2", "image 3"]
    assert len({each.images[1].get_clim() for each in axes}) == 1
    _, alone = result.plot_image_heatmap(target_token_pos="cat", image=2)
    assert len(alone.images) == 2
    _, sheet = result.plot_words()
    assert len(sheet.images) == 3 * len(sheet.texts) == 3 * len(result.words)
    _, sheet = result.plot_words(image=0)
    assert len(sheet.images) == len(result.words)


def test_plain_values_have_all_images(result: MLLMAttributionResult) -> None:
    found = json.loads(result.to_json())
    assert [(each["height"], each["width"]) for each in found["images"]] == SIZES
    assert len(found["words"][0]["maps"]) == 3
    assert sum(found["words"][0]["image_shares"]) == pytest.approx(1)


def test_parts_of_another_number_of_images_are_refused() -> None:
    parts: dict[str, Any] = {
        "input_tokens": ["?", "a"],
        "output_tokens": ["a"],
        "image_attr": [torch.ones(1, 2, 2), torch.ones(1, 1, 3)],
        "token_attr": torch.zeros(1, 2),
        "output_probs": torch.ones(1),
        "n_prompt": 1,
        "words": [(0,)],
        "top_predictions": [[]],
        "images": [Image.new("RGB", (4, 4)), Image.new("RGB", (6, 2))],
    }
    made = MLLMAttributionResult(**parts)
    assert made.explained == (0, 1)
    torch.testing.assert_close(made.image_shares, torch.tensor([[4 / 7, 3 / 7]]))
    for changes, message in (
        ({"explained": [0]}, "maps of 2 image"),
        ({"explained": [0, 0]}, "explained is"),
        ({"image_shares": torch.ones(1, 3)}, "image_shares have shape"),
        ({"image_shares": torch.full((1, 2), 2.0)}, "image_shares has numbers outside"),
        ({"scales": [ScaleResult(1.0, torch.ones(1, 2, 2))]}, "do not fit"),
        ({"segments": [torch.zeros(4, 4)]}, r"have shape \(4, 4\), expected \(4, 4\) and \(2, 6\)"),
    ):
        with pytest.raises(ValueError, match=message):
            MLLMAttributionResult(**{**parts, **changes})
