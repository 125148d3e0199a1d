"""Hiding the region that explains a word, and what the model then says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_mllm import MLLM, AttendedLens, ImageTextInput, MLLMAttribution, MLLMAttributionResult
from captum_mllm.demo import demo_image
from captum_mllm.explain.intervention import (
    WhatIf,
    explained_region,
    filled,
    moved_elsewhere,
    tokens_in,
)
from captum_mllm.models.layout import Layout, Piece
from tests.models.test_mllm import random_image
from tests.models.tiny_models import shared
from tests.visualization.test_page_what_if import packed

ANSWER = "a striped red star is above a blue triangle"
Explained = tuple[MLLMAttribution, MLLMAttributionResult]


@pytest.fixture(scope="module")
def explained() -> Explained:
    explainer = MLLMAttribution(AttendedLens(MLLM.from_pretrained("demo/qwen2-vl")))
    inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
    return explainer, explainer.attribute(inp, target=ANSWER)


def test_the_word_changes_without_its_region_and_not_without_another(explained: Explained) -> None:
    explainer, result = explained
    for by in ("fill", "mean", "knockout"):
        found = explainer.what_if(result, "star", by=by, answer=False)
        assert found.changed and not found.changed_elsewhere
        word = found.words[found.selected[0]]
        assert word.word == "star" and word.after < 0.5 < word.elsewhere
        assert word.top_after[0][0].strip() != "star"
        assert found.region.sum() == found.control.sum()
        assert "star" in str(found)
    before = [word.before for word in found.words]
    expected = [float(result.output_probs[list(word)].prod()) for word in result.words]
    assert before == pytest.approx(expected, abs=1e-4)


def test_it_equals_passes_with_the_hidden_image(explained: Explained) -> None:
    explainer, result = explained
    mllm: MLLM = explainer.forward_func
    found = explainer.what_if(result, "blue triangle", margin=0.0)
    assert found.removed == "blue triangle"
    assert len(found.selected) == 2
    inp = ImageTextInput(found.image, "Describe the image.")
    image, query = mllm.prepare(inp, target=ANSWER)
    with torch.no_grad():
        logits = mllm(image, query)[0]
    places = torch.arange(len(query.answer_ids))
    probability = logits.softmax(-1)[places, list(query.answer_ids)]
    assert [word.after for word in found.words] == pytest.approx(probability.tolist(), abs=1e-4)
    changed = (logits.argmax(-1) != torch.tensor(query.answer_ids)).tolist()
    assert [word.changed for word in found.words] == changed
    ids = mllm.prepare(inp)[1].answer_ids
    assert found.answer == mllm.tokenizer.decode(list(ids), skip_special_tokens=True).strip()


def test_a_loaded_result_needs_its_input(explained: Explained, tmp_path: Path) -> None:
    explainer, result = explained
    result.save(tmp_path / "result")
    loaded = MLLMAttributionResult.load(tmp_path / "result")
    with pytest.raises(ValueError, match="inp=ImageTextInput"):
        explainer.what_if(loaded, "star")
    found = explainer.what_if(loaded, "star", inp=result.inp, answer=False)
    expected = explainer.what_if(result, "star", answer=False)
    assert isinstance(found, WhatIf)
    assert [word.after for word in found.words] == pytest.approx(
        [word.after for word in expected.words], abs=1e-5
    )


def test_wrong_arguments_are_refused(explained: Explained) -> None:
    explainer, result = explained
    for options, message in (
        ({"by": "paint"}, "by='paint'"),
        ({"margin": -1.0}, "margin=-1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            explainer.what_if(result, "star", **options)
    with pytest.raises(ValueError, match="pentagon"):
        explainer.what_if(result, "pentagon")
    other = MLLMAttribution(AttendedLens(MLLM(*shared("llava"))))
    strange = other.attribute(ImageTextInput(random_image(), "?"), target="a cat")
    with pytest.raises(ValueError, match="tokens"):
        explainer.what_if(strange, 0)
    image, question = Image.open(demo_image()), "Describe the image."
    for inp, message in (
        (ImageTextInput(image.resize((112, 112)), question), "112, 112.* pixels"),
        (ImageTextInput(image, "How do the objects relate?"), "asks 'how do"),
    ):
        for by in ("fill", "knockout"):
            with pytest.raises(ValueError, match=message):
                explainer.what_if(result, "star", by=by, inp=inp)
    whole = explainer.attribute(ImageTextInput(image, question), target=ANSWER, include_prompt=True)
    with pytest.raises(ValueError, match="'image' is of the prompt"):
        explainer.what_if(whole, "image")


def test_a_flat_map_has_no_region(explained: Explained) -> None:
    _, result = explained
    flat = MLLMAttributionResult(
        input_tokens=["?", "a"],
        output_tokens=["a"],
        image_attr=torch.ones(1, 2, 2),
        token_attr=torch.zeros(1, 2),
        output_probs=torch.ones(1),
        n_prompt=1,
        words=[(0,)],
        top_predictions=[[]],
        images=result.images,
    )
    with pytest.raises(ValueError, match="same everywhere"):
        explained_region(flat, [0])


def region_of(top: int, bottom: int, left: int, right: int) -> Tensor:
    region = torch.zeros(23, 37, dtype=torch.bool)
    region[top:bottom, left:right] = True
    return region


def test_filling_keeps_what_is_outside_and_adds_no_colour() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 3, 23, 37)
    for region in (region_of(4, 9, 3, 20), region_of(0, 23, 0, 36), region_of(0, 1, 0, 1)):
        found = filled(image, region)
        assert torch.equal(found[..., ~region], image[..., ~region])
        for channel in range(3):
            outside = image[0, channel][~region]
            inside = found[0, channel][region]
            assert outside.min() - 1e-5 <= inside.min() and inside.max() <= outside.max() + 1e-5
    # A region within one colour takes that colour, whatever is farther away.
    image[..., :30] = 0.25
    found = filled(image, region_of(8, 12, 5, 9))
    torch.testing.assert_close(found[..., 8:12, 5:9], torch.full((1, 3, 4, 4), 0.25))
    whole = filled(image, torch.ones(23, 37, dtype=torch.bool))
    torch.testing.assert_close(whole, image.mean((2, 3), keepdim=True).expand_as(image))


def test_a_region_elsewhere_has_the_same_area_and_overlaps_little() -> None:
    region = region_of(2, 8, 3, 12)
    moved = moved_elsewhere(region)
    assert moved.sum() == region.sum() and not (moved & region).any()
    assert torch.equal(moved, moved_elsewhere(region))
    # In one piece, where there is room for it.
    for seed in range(50):
        there = moved_elsewhere(region, seed)
        rows, columns = there.any(1).nonzero(), there.any(0).nonzero()
        assert rows.max() - rows.min() == 5 and columns.max() - columns.min() == 8
    tall = region_of(4, 20, 0, 10)
    assert not (moved_elsewhere(tall) & tall).any()
    nothing = torch.zeros(9, 9, dtype=torch.bool)
    assert torch.equal(moved_elsewhere(nothing), nothing)
    large = region_of(0, 20, 0, 37)
    assert moved_elsewhere(large).sum() == large.sum()


def test_tokens_of_a_region_have_their_centres_in_it() -> None:
    layout = Layout((23, 37), (Piece(4, 6, (-2, 0, 40, 23)), Piece(2, 2, (5, 5, 15, 25))))
    region = region_of(3, 20, 4, 30)
    expected = []
    for piece in layout.pieces:
        left, top, right, bottom = piece.box
        for row in range(piece.rows):
            for column in range(piece.columns):
                y = top + (row + 0.5) * (bottom - top) / piece.rows
                x = left + (column + 0.5) * (right - left) / piece.columns
                inside = 0 <= y < 23 and 0 <= x < 37
                expected.append(inside and bool(region[int(y), int(x)]))
    assert np.array_equal(tokens_in(layout, region).numpy(), expected)


def test_it_is_kept_saved_and_loaded(explained: Explained, tmp_path: Path) -> None:
    explainer, first = explained
    result = explainer.attribute(first.inp, target=ANSWER, include_prompt=True)
    kept = [explainer.what_if(result, "star"), explainer.what_if(result, "blue", by="knockout")]
    for each in kept:
        result.keep_what_if(each)
    result.save(tmp_path / "result")
    loaded = MLLMAttributionResult.load(tmp_path / "result").what_ifs
    assert len(loaded) == len(kept) == len(result.what_ifs)
    for found, expected in zip(loaded, kept):
        assert str(found) == str(expected)
        for name in ("removed", "words", "selected", "answer", "by", "shown", "changed", "area"):
            assert getattr(found, name) == getattr(expected, name), name
        for name in ("region", "control", "image"):
            assert np.array_equal(getattr(found, name), getattr(expected, name)), name
    assert kept[0].words[3].top_elsewhere[0][0].strip() == "star"
    shown = packed(result.to_html())["what_ifs"]
    assert [each["removed"] for each in shown] == ["star", "blue"]
    (word,) = shown[0]["words"]
    place = kept[0].selected[0]
    answer = packed(result.to_html())["answer"]
    assert [answer[token].strip() for token in word["tokens"]] == ["star"]
    assert word["after"] == kept[0].words[place].after and word["says_elsewhere"] is None
    assert [each["removed"] for each in result.to_dict(maps=False)["what_ifs"]] == ["star", "blue"]


def test_what_is_of_another_answer_is_not_kept(explained: Explained) -> None:
    explainer, result = explained
    other = explainer.attribute(result.inp, target="a red star")
    found = explainer.what_if(result, "star", answer=False)
    with pytest.raises(ValueError, match="those of the answer"):
        other.keep_what_if(found)
    with pytest.raises(ValueError, match="explained image"):
        result.keep_what_if(replace(found, shown=1))
    with pytest.raises(ValueError, match="explained image, bool"):
        result.keep_what_if(replace(found, region=found.region.astype(int)))
    with pytest.raises(ValueError, match="selects the words"):
        result.keep_what_if(replace(found, selected=[99]))
    words = [word._replace(after=2.0) for word in found.words]
    with pytest.raises(ValueError, match="outside of"):
        result.keep_what_if(replace(found, words=words))
    with pytest.raises(TypeError, match="strings"):
        result.keep_what_if(replace(found, answer=3))
    with pytest.raises(TypeError, match="what_if"):
        result.keep_what_if("star")
    assert result.what_ifs == ()
