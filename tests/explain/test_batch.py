"""Inputs that are explained at once have the explanations that they have alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import Attribution, FeatureAblation, Saliency

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
from captum_mllm.attr.attention_maps import AttentionMaps
from captum_mllm.models.attentions import Attention
from tests.attr.test_attended_lens import looking_nowhere
from tests.models.test_decoding import counted
from tests.models.test_model_unchanged import snapshot, used
from tests.models.tiny_models import FAMILIES, shared

SIZES = [(84, 112), (56, 56), (168, 84)]
QUESTIONS = ["what ?", "what is in the image ?", "what ?"]
ANSWERS = ["a cat and a dog", "two", "one two three"]
GENERATION = {"max_new_tokens": 6}
SCALES = (0.5, 1.0, 2.0)
METHODS: dict[str, Callable[[MLLM], Attribution]] = {
    "LogitLens": LogitLens,
    "LogitLens of a layer": lambda mllm: LogitLens(mllm, layer=0),
    "TAM": lambda mllm: TAM(LogitLens(mllm)),
    "ARC around MSEA": lambda mllm: ARC(MSEA(LogitLens(mllm))),
    "AttendedLens": AttendedLens,
    "TAM of AttendedLens": lambda mllm: TAM(AttendedLens(mllm)),
    "MSEA of AttendedLens": lambda mllm: ARC(MSEA(AttendedLens(mllm))),
    "raw attention": lambda mllm: AttentionMaps(mllm, "raw", head_fusion="max", relative=True),
}
# The passes beside those that say an answer of the model's own.
FURTHER = {
    "LogitLens of a layer": 1,
    "ARC around MSEA": len(SCALES) - 1,
    "AttendedLens": 1,
    "TAM of AttendedLens": 1,
    "MSEA of AttendedLens": len(SCALES),
    "raw attention": 1,
}


@pytest.fixture(params=FAMILIES)
def mllm(request: pytest.FixtureRequest) -> MLLM:
    return MLLM(*shared(request.param))


def inputs() -> list[ImageTextInput]:
    random = torch.Generator().manual_seed(0)
    return [
        ImageTextInput(torch.rand(3, *size, generator=random), question)
        for size, question in zip(SIZES, QUESTIONS)
    ]


def assert_close(found: MLLMAttributionResult, expected: MLLMAttributionResult) -> None:
    assert found.input_tokens == expected.input_tokens
    assert found.output_tokens == expected.output_tokens
    assert found.method == expected.method
    for name in ("image_attr", "token_attr", "output_probs"):
        own, other = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)
    for own_scale, other_scale in zip(found.scales, expected.scales, strict=True):
        assert own_scale.scale == other_scale.scale
        torch.testing.assert_close(
            own_scale.image_attr, other_scale.image_attr, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("name", METHODS)
def test_given_answers_take_one_pass_for_each_scale(mllm: MLLM, name: str) -> None:
    options: dict[str, Any] = {"scales": SCALES} if "MSEA" in name else {}
    explainer = MLLMAttribution(METHODS[name](mllm))
    with counted(mllm) as passes:
        results = explainer.attribute_batch(inputs(), ANSWERS, **options)
    assert len(passes) == (len(SCALES) if "MSEA" in name else 1)
    for result, inp, answer in zip(results, inputs(), ANSWERS, strict=True):
        assert_close(result, explainer.attribute(inp, answer, **options))


@pytest.mark.parametrize("name", METHODS)
def test_own_answers_are_made_together(mllm: MLLM, name: str) -> None:
    options: dict[str, Any] = {"scales": SCALES} if "MSEA" in name else {}
    explainer = MLLMAttribution(METHODS[name](mllm))
    with counted(mllm) as passes:
        results = explainer.attribute_batch(inputs(), gen_args=GENERATION, **options)
    assert len(passes) == 6 + FURTHER.get(name, 0)
    for result, inp in zip(results, inputs(), strict=True):
        assert_close(result, explainer.attribute(inp, gen_args=GENERATION, **options))


def test_given_and_own_answers_and_the_prompt_go_together(mllm: MLLM) -> None:
    explainer = MLLMAttribution(TAM(LogitLens(mllm)))
    results = explainer.attribute_batch(
        inputs(), [None, "two", None], include_prompt=True, gen_args=GENERATION
    )
    for result, inp, answer in zip(results, inputs(), [None, "two", None], strict=True):
        options = {} if answer else {"gen_args": GENERATION}
        assert_close(result, explainer.attribute(inp, answer, include_prompt=True, **options))


def test_methods_with_passes_of_their_own_take_turns() -> None:
    mllm = MLLM(*shared("llava"))
    explainer = MLLMAttribution(MSEA(Saliency(mllm)))
    results = explainer.attribute_batch(inputs()[:2], ANSWERS[:2], scales=(1.0,))
    for result, inp, answer in zip(results, inputs(), ANSWERS):
        assert_close(result, explainer.attribute(inp, answer, scales=(1.0,)))


@pytest.mark.parametrize("name", ["LogitLens", "ARC around MSEA", "MSEA of AttendedLens"])
def test_contrasts_are_those_of_each_input_alone(mllm: MLLM, name: str) -> None:
    contrasts: list[Any] = [{"cat": "dog"}, None, {"three": "two", 0: "two"}]
    explainer = MLLMAttribution(METHODS[name](mllm))
    with counted(mllm) as passes:
        results = explainer.attribute_batch(inputs(), ANSWERS, contrasts=contrasts)
    with counted(mllm) as plain_passes:
        plain = explainer.attribute_batch(inputs(), ANSWERS)
    assert len(passes) == len(plain_passes)
    for result, inp, answer, contrast in zip(results, inputs(), ANSWERS, contrasts, strict=True):
        assert_close(result, explainer.attribute(inp, answer, contrast=contrast))
    different = [not torch.equal(a.image_attr, b.image_attr) for a, b in zip(results, plain)]
    assert different == [True, False, True]


def test_segments_and_words_go_to_all_inputs() -> None:
    explainer = MLLMAttribution(FeatureAblation(MLLM(*shared("llava"))))
    options: dict[str, Any] = {"segments": (2, 3), "words": "earlier", "perturbations_per_eval": 4}
    results = explainer.attribute_batch(inputs()[:2], ANSWERS[:2], **options)
    for result, inp, answer in zip(results, inputs(), ANSWERS):
        assert_close(result, explainer.attribute(inp, answer, **options))
        assert result.segments is not None


def test_reasons_and_signals_are_those_of_each_input_alone() -> None:
    explainer = MLLMAttribution(LogitLens(MLLM(*shared("qwen2_vl"))))
    more: dict[str, Any] = {"reasons": "exact", "diagnosis": True}
    results = explainer.attribute_batch(inputs()[:2], ANSWERS[:2], **more)
    for result, inp, answer in zip(results, inputs(), ANSWERS):
        alone = explainer.attribute(inp, answer, **more)
        assert result.reasons is not None and alone.reasons is not None
        values = (result.reasons.values, alone.reasons.values)
        torch.testing.assert_close(*values, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(result.signals, alone.signals, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["MSEA of AttendedLens", "ARC around MSEA"])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0), (0.5,)])
def test_no_pass_is_made_twice(name: str, scales: tuple[float, ...]) -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    explainer = MLLMAttribution(METHODS[name](mllm))
    with counted(mllm) as passes:
        results = explainer.attribute_batch(inputs(), ANSWERS, scales=scales)
    # Where 1 is not among the scales, all share a pass for the words there.
    assert len(passes) == len(scales) + (1.0 not in scales)
    for result, inp, answer in zip(results, inputs(), ANSWERS, strict=True):
        assert_close(result, explainer.attribute(inp, answer, scales=scales))


def test_attention_of_another_kind_is_had_in_turn() -> None:
    mllm = MLLM(*shared("llava"))
    explainer = MLLMAttribution(AttendedLens(mllm))
    with looking_nowhere(mllm):
        with counted(mllm) as passes:
            results = explainer.attribute_batch(inputs(), ANSWERS)
        # One for the words of all, and one for the attention of each, whose states are others.
        assert len(passes) == 1 + len(SIZES)
        for result, inp, answer in zip(results, inputs(), ANSWERS, strict=True):
            assert_close(result, explainer.attribute(inp, answer))


def test_attention_is_worked_out_for_the_rows_of_each_input_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not for those of all of them, whose number grows with the square of the batch."""
    mllm = MLLM(*shared("qwen2_vl"))
    explainer = MLLMAttribution(AttendedLens(mllm))
    scores: list[int] = []
    weights = Attention.weights

    def count(attention: Attention, rows: torch.Tensor) -> torch.Tensor:
        found = weights(attention, rows)
        scores.append(found.numel())
        return found

    monkeypatch.setattr(Attention, "weights", count)
    explainer.attribute_batch(inputs(), ANSWERS)
    together, scores[:] = sum(scores), []
    for inp, answer in zip(inputs(), ANSWERS):
        explainer.attribute(inp, answer)
    assert together == sum(scores)


def test_attention_of_a_vision_tower_is_had_in_turn() -> None:
    mllm = MLLM(*shared("internvl"))
    explainer = MLLMAttribution(AttentionMaps(mllm, "raw", tower="vision"))
    with counted(mllm) as passes:
        results = explainer.attribute_batch(inputs(), ANSWERS)
    # One for the image, in which the vision tower is watched, and one for the words.
    assert len(passes) == 2 * len(SIZES)
    for result, inp, answer in zip(results, inputs(), ANSWERS, strict=True):
        assert_close(result, explainer.attribute(inp, answer))


def test_equal_questions_about_different_images_are_not_mixed_up(mllm: MLLM) -> None:
    random = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 84, 84, generator=random) for _ in range(3)]
    asked = [ImageTextInput(image, "what ?") for image in images]
    explainer = MLLMAttribution(MSEA(LogitLens(mllm)))
    results = explainer.attribute_batch(asked, ["a cat"] * 3, scales=(0.5, 1.0))
    for result, inp in zip(results, asked):
        assert_close(result, explainer.attribute(inp, "a cat", scales=(0.5, 1.0)))
    assert not torch.allclose(results[0].image_attr, results[1].image_attr)


def test_bad_batches_are_refused_and_the_model_stays_as_it_was() -> None:
    mllm, _, _ = used("qwen2_vl")
    before = snapshot(mllm.model)
    explainer = MLLMAttribution(LogitLens(mllm))
    for given, error, message in (
        (([], None), ValueError, "at least one input"),
        ((inputs(), ["a cat"]), ValueError, r"3 input\(s\) and 1 target"),
        ((["an image"], None), TypeError, "expected ImageTextInput"),
        ((inputs()[0], None), TypeError, "expected a list of ImageTextInput"),
        ((None, None), TypeError, "inputs of type NoneType"),
        (("photo.jpg", None), TypeError, "inputs of type str"),
        ((inputs(), 3), TypeError, "expected a list with one for each input"),
        ((inputs(), ["a cat", "", "a dog"]), ValueError, "is empty"),
    ):
        with pytest.raises(error, match=message):
            explainer.attribute_batch(*given)
    with pytest.raises(ValueError, match="got both an answer and max_new_tokens"):
        explainer.attribute_batch(inputs(), ANSWERS, gen_args=GENERATION)
    for options, error, message in (
        ({"contrasts": [None]}, ValueError, r"3 input\(s\) and 1 contrast"),
        ({"contrasts": {"cat": "dog"}}, TypeError, "expected a list with one for each input"),
        ({"contrast": {"cat": "dog"}}, TypeError, "takes contrasts"),
        ({"target": "a cat"}, TypeError, "`targets` of several inputs"),
        ({"contrasts": [{"cat": "dog"}] * 3}, ValueError, "no word or phrase 'cat'"),
    ):
        with pytest.raises(error, match=message):
            explainer.attribute_batch(inputs(), ANSWERS, **options)
    assert snapshot(mllm.model) == before
    assert not mllm.remembers


def test_a_single_text_is_no_list_of_answers() -> None:
    explainer = MLLMAttribution(LogitLens(MLLM(*shared("qwen2_vl"))))
    with pytest.raises(TypeError, match="expected a list with one for each input"):
        explainer.attribute_batch(inputs()[:2], "no")


def test_answers_may_be_a_column_of_a_table() -> None:
    explainer = MLLMAttribution(LogitLens(MLLM(*shared("qwen2_vl"))))
    for targets in (np.array(["a cat", "no"]), torch.tensor([[5, 6], [7, 8]])):
        expected = explainer.attribute_batch(inputs()[:2], list(targets))
        found = explainer.attribute_batch(inputs()[:2], targets)  # type: ignore[arg-type]
        for one, other in zip(found, expected, strict=True):
            assert one.output_tokens == other.output_tokens
            assert torch.equal(one.image_attr, other.image_attr)


def test_padding_is_no_part_of_an_answer() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    explainer = MLLMAttribution(LogitLens(mllm))
    given = inputs()[:2]
    answers = [mllm.prepare(inp, max_new_tokens=6)[1].answer_ids for inp in given]
    # One answer ends early, with a token that the other has not; words fill up the batch.
    end = next(token for token in answers[0] if token not in answers[1])
    padding = mllm.tokenizer(" cat", add_special_tokens=False)["input_ids"][0]
    options = {"max_new_tokens": 6, "eos_token_id": end, "pad_token_id": padding}
    together = explainer.attribute_batch(given, gen_args=options)
    for inp, found in zip(given, together):
        assert_close(found, explainer.attribute(inp, gen_args=options))
    assert len(together[0].output_tokens) < len(together[1].output_tokens)
