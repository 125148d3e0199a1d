"""Options of any type and size are taken for what they are, or refused by name and range."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import FeatureAblation, IntegratedGradients

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    AttendedLens,
    AttentionMaps,
    ImageTextInput,
    LogitLens,
    MLLMAttribution,
)
from captum_mllm._options import check_choice, check_flag, check_number, check_whole, number_tuple
from tests.models.tiny_models import shared

NO_NUMBERS = [True, np.bool_(True), "0.5", b"1", [0.5], np.array(0.5), torch.tensor(0.5), 1j]
OUTSIDE = [math.nan, math.inf, -math.inf, -0.1, 10**400, np.float32("nan")]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=repr)
def test_what_is_no_number_is_refused(value: Any) -> None:
    with pytest.raises(TypeError, match=r"got k=.*, expected a number in \[0, inf\)"):
        check_number("k", value, "[0, inf)")
    with pytest.raises(TypeError, match=r"got k=.*, expected an integer of at least 0"):
        check_whole("k", value, 0)


@pytest.mark.parametrize("value", OUTSIDE, ids=lambda value: repr(value)[:9])
def test_what_lies_outside_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"got k=.*, expected a number in \[0, inf\) or None"):
        check_number("k", value, "[0, inf)", optional=True)


def test_the_ends_of_an_interval_are_those_that_are_written() -> None:
    check_number("p", 0, "[0, 1]")
    check_number("p", np.float32(1), "[0, 1]")
    check_number("p", Fraction(1, 2), "(0, 1)")
    check_number("p", None, "(0, 1)", optional=True)
    for end in (0, 1.0):
        with pytest.raises(ValueError, match=r"expected a number in \(0, 1\)"):
            check_number("p", end, "(0, 1)")
    with pytest.raises(TypeError, match="got p=None"):
        check_number("p", None, "(0, 1)")
    check_whole("k", np.int64(3), 3)
    with pytest.raises(ValueError, match="got k=2, expected an integer of at least 3"):
        check_whole("k", 2, 3)


def test_texts_are_no_truth_values_and_arrays_no_choices() -> None:
    check_flag("on", np.bool_(False))
    for value in ("no", None, 0, 1.0):
        with pytest.raises(TypeError, match=r"got on=.*, expected True or False"):
            check_flag("on", value)
    for given in (np.array(["a", "b"]), ["a"], 3, "c"):
        with pytest.raises(ValueError, match="expected one of 'a', 'b'"):
            check_choice("kind", given, ("a", "b"))


def test_numbers_are_read_from_sequences_alone() -> None:
    for given in ([1, 2.5], (1, 2.5), np.array([1, 2.5]), torch.tensor([1, 2.5])):
        assert number_tuple("scales", given) == (1, 2.5)
    assert number_tuple("scales", [torch.tensor(1.0), np.float32(2)]) == (1, 2)
    for wrong in (
        {1.0: 2.0},
        {1.0, 2.0},
        "12",
        b"12",
        1.0,
        None,
        [[1.0]],
        [True],
        ["1"],
        [10**400],
    ):
        with pytest.raises(ValueError, match=r"got scales=.*, expected a sequence of numbers"):
            number_tuple("scales", wrong)


@pytest.fixture(scope="module")
def mllm() -> MLLM:
    return MLLM(*shared("llava"))


METHODS: list[tuple[str, Callable[[MLLM], Any]]] = [
    ("strength", lambda mllm: ARC(LogitLens(mllm), strength="0.5")),  # type: ignore[arg-type]
    ("strength", lambda mllm: ARC(LogitLens(mllm), strength=True)),
    ("persistence", lambda mllm: ARC(LogitLens(mllm), persistence=None)),  # type: ignore[arg-type]
    ("power", lambda mllm: ARC(LogitLens(mllm), power=10**400)),
    ("power", lambda mllm: AttendedLens(mllm, power=math.nan)),
    ("normalize", lambda mllm: ARC(LogitLens(mllm), normalize="none")),  # type: ignore[arg-type]
    ("by_activation", lambda mllm: ARC(LogitLens(mllm), by_activation="no")),  # type: ignore[arg-type]
    ("kernel_size", lambda mllm: TAM(LogitLens(mllm), filter_size=True)),
    ("residual", lambda mllm: AttentionMaps(mllm, residual="half")),  # type: ignore[arg-type]
    ("layers", lambda mllm: AttentionMaps(mllm, mode="raw", layers=[True])),
    ("layers", lambda mllm: AttentionMaps(mllm, mode="raw", layers=["0"])),  # type: ignore[list-item]
    ("layers", lambda mllm: AttentionMaps(mllm, mode="raw", layers=1)),  # type: ignore[arg-type]
    ("relative", lambda mllm: AttentionMaps(mllm, relative="yes")),  # type: ignore[arg-type]
    ("scale", lambda mllm: MSEA(LogitLens(mllm), scales=(1.0, math.inf))),
    ("scales", lambda mllm: MSEA(LogitLens(mllm), scales=(1.0, True))),
    ("scales", lambda mllm: MSEA(LogitLens(mllm), scales={0.5: 2, 1.0: 1})),  # type: ignore[arg-type]
    ("weights", lambda mllm: MSEA(LogitLens(mllm), scales=(1.0, 2.0), weights=(1, True))),
    ("output_size", lambda mllm: MSEA(LogitLens(mllm), output_size=(True, 4))),
]


@pytest.mark.parametrize(("name", "make"), METHODS, ids=[name for name, _ in METHODS])
def test_methods_name_the_option(mllm: MLLM, name: str, make: Callable[[MLLM], Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b"):
        make(mllm)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"include_prompt": "no"}, "got include_prompt='no', expected True or False"),
        ({"diagnosis": 1}, "got diagnosis=1"),
        ({"additional_forward_args": ()}, "additional_forward_args for the method"),
        ({"max_image_tokens": "all"}, "got max_image_tokens='all', expected an integer"),
        ({"query": 1, "inputs": 2}, "inputs, query for the method"),
        ({"gen_args": {"do_sample": "no"}, "target": None}, "got do_sample='no'"),
        ({"gen_args": {"stopping_criteria": len}, "target": None}, "expected a list"),
    ],
)
def test_arguments_of_an_explanation_are_told_apart(
    mllm: MLLM, options: dict[str, Any], message: str
) -> None:
    inp = ImageTextInput(torch.rand(3, 84, 84), "what is it ?")
    with pytest.raises(TypeError, match=message):
        MLLMAttribution(ARC(LogitLens(mllm))).attribute(inp, **{"target": "a cat", **options})


@pytest.mark.parametrize("steps", [0, -1, True, 2.0, "3"])
def test_counts_of_captums_methods_are_at_least_1(mllm: MLLM, steps: Any) -> None:
    inp = ImageTextInput(torch.rand(3, 84, 84), "what is it ?")
    for method, name in (
        (IntegratedGradients, "n_steps"),
        (FeatureAblation, "perturbations_per_eval"),
    ):
        with pytest.raises((TypeError, ValueError), match=f"got {name}="):
            MLLMAttribution(method(mllm)).attribute(inp, target="a", **{name: steps})


def test_a_misspelt_option_is_not_ignored(mllm: MLLM) -> None:
    inp = ImageTextInput(torch.rand(3, 84, 84), "what is it ?")
    for method in (FeatureAblation(mllm), MSEA(FeatureAblation(mllm)), ARC(FeatureAblation(mllm))):
        with pytest.raises(TypeError, match="Feature Ablation does not take segment;"):
            MLLMAttribution(method).attribute(inp, target="a", segment=(2, 2))


def test_a_size_is_not_taken_for_a_scale(mllm: MLLM) -> None:
    inp = ImageTextInput(torch.rand(3, 84, 84), "what is it ?")
    with pytest.raises(ValueError, match=r"28224 x 28224 pixels; scales are factors"):
        MLLMAttribution(MSEA(LogitLens(mllm))).attribute(inp, target="a cat", scales=(1.0, 336))


@pytest.mark.parametrize("inp", [None, "photo.jpg", ["what ?"], {"text": "what ?"}], ids=repr)
def test_only_inputs_are_explained(mllm: MLLM, inp: Any) -> None:
    explainer = MLLMAttribution(LogitLens(mllm))
    for ask in (explainer.attribute, explainer.stream, mllm.prepare):
        with pytest.raises(TypeError, match="expected ImageTextInput"):
            ask(inp)
