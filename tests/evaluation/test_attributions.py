"""The lens as probabilities, ranks and contrasts, against loops over tokens."""

from __future__ import annotations

import pytest
import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm import LogitLens
from captum_mllm.evaluation.attributions import ImageContrast, LensProbability, MapFunction
from captum_mllm.evaluation.method import Case


def lens_logits(case: Case) -> Tensor:
    """Logits of the image tokens, (N, V), float64."""
    states = case.mllm.states(case.image, case.query)
    weight = case.mllm.model.get_output_embeddings().weight.double()
    return states.image[0][0].double() @ weight.T


@pytest.mark.parametrize("reading", ["probability", "contrast", "reciprocal rank"])
def test_readings_equal_loops(case: Case, reading: str) -> None:
    logits = lens_logits(case)
    maps = case.maps(LensProbability(case.mllm, reading)).flatten(1)
    likelihood = logits.log_softmax(-1)
    for token, found in zip(case.query.answer_ids, maps.double()):
        expected = {
            "probability": likelihood[:, token].exp(),
            "contrast": (likelihood[:, token] - likelihood[:, token].mean()).clamp(min=0),
            "reciprocal rank": 1.0 / (1 + (logits > logits[:, [token]]).sum(1)).double(),
        }[reading]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_reading_is_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="reading='odds'"):
        LensProbability(case.mllm, "odds")


def test_a_contrast_is_what_the_image_adds(case: Case) -> None:
    lens = LogitLens(case.mllm)
    grey = case.image.mean((2, 3), keepdim=True).expand_as(case.image)
    arguments = {"additional_forward_args": (case.query,)}
    expected = (lens.attribute(case.image, **arguments) - lens.attribute(grey, **arguments)).relu()
    torch.testing.assert_close(case.maps(ImageContrast(lens)), expected[:, 0])
    empty = ImageContrast(lens).attribute(grey, None, (case.query,))
    assert empty.max() < 1e-4


def test_a_function_of_maps_gets_those_of_each_method(case: Case) -> None:
    methods: list[Attribution] = [LogitLens(case.mllm), LensProbability(case.mllm)]
    product = MapFunction(lambda first, second: first * second, *methods)
    first, second = (case.maps(method) for method in methods)
    torch.testing.assert_close(case.maps(product), first * second)
