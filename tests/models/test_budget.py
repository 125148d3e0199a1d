"""What an explanation costs is known before it runs, and kept in bounds."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from captum_mllm import ARC, MLLM, MSEA, ImageTextInput, LogitLens, MLLMAttribution
from captum_mllm.models.budget import check_context, estimate, fit_scales
from captum_mllm.models.context import context_length
from captum_mllm.models.query import Query
from tests.models.test_decoding import counted
from tests.models.tiny_models import FAMILIES, build, shared

SCALES = (0.5, 1.0, 1.5, 2.0)
SIZES = [(84, 112), (60, 200), (301, 97)]


def input_of(size: tuple[int, int]) -> ImageTextInput:
    return ImageTextInput(torch.zeros(3, *size), "what is in the image ?")


def query_of(mllm: MLLM, size: tuple[int, int]) -> Query:
    return mllm.prepare(input_of(size), target="a cat")[1]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_tokens_are_those_of_a_pass(family: str, size: tuple[int, int]) -> None:
    mllm = MLLM(*shared(family))
    inp = input_of(size)
    query = mllm.prepare(inp, target="a cat")[1]
    found = estimate(mllm, inp, SCALES, answer_tokens=len(query.answer_ids))
    assert [each.scale for each in found] == list(SCALES)
    for each in found:
        sides = [round(side * each.scale) for side in size]
        encoding = mllm.encode((torch.zeros(1, 3, *sides),), query)
        assert each.image_tokens == encoding.layouts[0].n_tokens
        assert each.passes == encoding.windows
        # The last token of the answer is not an input.
        assert each.tokens == encoding.inputs["input_ids"].shape[1] + 1
    memory = [each.memory for each in found]
    assert memory == sorted(memory)


def test_a_phone_photo_is_estimated_without_its_pixels() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    mllm.processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 12_845_056}
    photo = ImageTextInput(torch.zeros(1).expand(3, 3024, 4032), "what is in the image ?")
    found = [each.image_tokens for each in estimate(mllm, photo, SCALES)]
    # Its cap on pixels moves with the scale.
    assert found == [3888, 15552, 34992, 62208]


@pytest.fixture
def narrow() -> MLLM:
    model, processor = build("qwen2_vl")
    model.config.get_text_config().max_position_embeddings = 200
    return MLLM(model, processor)


def test_scales_that_fit_stay(narrow: MLLM) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert fit_scales(narrow, input_of((84, 112)), SCALES) == SCALES
        check_context(narrow, query_of(narrow, (84, 112)), SCALES)


def test_scales_beyond_the_context_are_lowered(narrow: MLLM) -> None:
    inp = input_of((224, 224))
    with pytest.warns(UserWarning, match=r"scales \(1.5, 2.0\) make more tokens .* context of 200"):
        fitting = fit_scales(narrow, inp, SCALES)
    assert fitting[:2] == (0.5, 1.0)
    assert len(fitting) == 3
    assert 1 < fitting[2] < 1.5
    for each in estimate(narrow, inp, fitting):
        assert each.tokens <= 200
    (next_larger,) = estimate(narrow, inp, (fitting[2] * 1.1,))
    assert next_larger.tokens > 200
    with pytest.raises(ValueError, match=r"make 33\d tokens at scale 2, but the model's context"):
        check_context(narrow, query_of(narrow, (224, 224)), (1.0, 2.0))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("limit", [40, 150])
def test_an_own_limit_is_kept(family: str, limit: int) -> None:
    mllm = MLLM(*shared(family))
    inp = input_of((224, 300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitting = fit_scales(mllm, inp, SCALES, max_image_tokens=limit)
    assert fitting == tuple(sorted(fitting))
    assert all(each.image_tokens <= limit for each in estimate(mllm, inp, fitting))


def test_what_fits_at_no_scale_is_refused(narrow: MLLM) -> None:
    inp = ImageTextInput(torch.zeros(3, 84, 112), "what is in the image ? " * 60)
    with pytest.raises(ValueError, match="do not fit the model's context of 200 tokens at any"):
        fit_scales(narrow, inp, SCALES)
    with pytest.raises(ValueError, match="max_image_tokens=0"):
        fit_scales(narrow, inp, SCALES, max_image_tokens=0)


def test_the_context_is_that_of_the_language_model() -> None:
    assert context_length(shared("llava")[0].config) == 8192


@pytest.mark.parametrize("target", [None, "a cat"])
def test_scales_beyond_the_context_are_refused_before_any_pass(
    narrow: MLLM, target: str | None
) -> None:
    explainer = MLLMAttribution(ARC(MSEA(LogitLens(narrow))))
    with counted(narrow) as passes:
        for explain in (
            lambda: explainer.attribute(input_of((224, 224)), target),
            lambda: explainer.attribute_batch([input_of((56, 56)), input_of((224, 224))]),
        ):
            named = r"tokens at scale 2, but the model.s context has 200; .*max_image_tokens"
            with pytest.raises(ValueError, match=named):
                explain()
    assert not passes


@pytest.mark.parametrize("limit", ["context", 60])
def test_scales_are_lowered_where_it_is_asked_for(narrow: MLLM, limit: Any) -> None:
    explainer = MLLMAttribution(MSEA(LogitLens(narrow)))
    inp = input_of((224, 224))
    with pytest.warns(UserWarning, match="the scales are now"):
        result = explainer.attribute(inp, "a cat", max_image_tokens=limit)
    with pytest.warns(UserWarning, match="the scales are now"):
        (batched,) = explainer.attribute_batch([inp], ["a cat"], max_image_tokens=limit)
    largest = max(scale.image_attr[0].numel() for scale in result.scales)
    assert largest <= (60 if limit == 60 else 180)
    assert [scale.scale for scale in result.scales] == [scale.scale for scale in batched.scales]
    assert result.scales[0].scale == 0.5
    assert "scales=(0.5," in result.method


def test_a_single_scale_is_not_lowered(narrow: MLLM) -> None:
    explainer = MLLMAttribution(LogitLens(narrow))
    with (
        pytest.warns(UserWarning, match="make more tokens"),
        pytest.raises(ValueError, match="Logit Lens sees the image at scale 1 alone"),
    ):
        explainer.attribute(input_of((224, 224)), "a cat", max_image_tokens=np.int64(10))


def test_a_large_image_is_no_fault_of_the_scale(
    narrow: MLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captum_mllm.models.images.MOST_PIXELS", 1000)
    assert estimate(narrow, input_of((84, 84)))[0].scale == 1
    with pytest.raises(ValueError, match="scale 2 makes an input"):
        estimate(narrow, input_of((84, 84)), (2.0,))


@pytest.mark.parametrize("limit", [0, -1, 2.5, True])
def test_limits_are_integers_of_at_least_one(narrow: MLLM, limit: Any) -> None:
    explainer = MLLMAttribution(MSEA(LogitLens(narrow)))
    error = ValueError if type(limit) is int else TypeError
    with pytest.raises(error, match=r"max_image_tokens=.*, expected an integer"):
        explainer.attribute(input_of((84, 84)), "a cat", max_image_tokens=limit)


def test_a_pass_of_an_enlarged_image_has_to_fit_the_context(narrow: MLLM) -> None:
    image, query = narrow.prepare(input_of((224, 224)), target="a cat")
    larger = torch.nn.functional.interpolate(image, size=(448, 448))
    with pytest.raises(ValueError, match="tokens at scale 2, but the model's context has 200"):
        narrow.states(larger, query)
    # What the user gives is seen as it is.
    narrow.model.config.get_text_config().max_position_embeddings = 20
    assert narrow.states(image, query).predicting.isfinite().all()
