"""Combinations that no paper has."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from captum_mllm import ARC, MLLM, TAM
from captum_mllm.benchmark.cases import Base
from captum_mllm.benchmark.lens_probability import LensProbability
from captum_mllm.benchmark.map_function import MapFunction
from captum_mllm.benchmark.method import DEFAULT_SCALES, Explain, Method, Wrapper, attribution
from captum_mllm.benchmark.methods import ATTENTION, GRAD_CAM, LENS, ROLLOUT
from captum_mllm.benchmark.picture_contrast import PictureContrast


def lens_x_attention(mllm: MLLM) -> MapFunction:
    r"""
    What an image token says, where the word attends to it: the product of lens and attention.

    The lens reads the word alone, so it does not tell two stars apart; attention does.

    Args:
        mllm (MLLM): The model.

    Returns:
        MapFunction: The method.
    """
    return MapFunction(_product, LENS(mllm), ATTENTION(mllm))


def rank_x_attention(mllm: MLLM) -> MapFunction:
    r"""The same with the reciprocal rank of the word among all words in place of its logit."""
    return MapFunction(_product, LensProbability(mllm, "reciprocal rank"), ATTENTION(mllm))


def lens_contrast(mllm: MLLM) -> PictureContrast:
    r"""The lens, less what it says of a picture of one colour."""
    return PictureContrast(LENS(mllm))


def _product(first: Tensor, second: Tensor) -> Tensor:
    return first.relu() * second.relu()


def _weighed_by_area(base: Base, wrapper: Wrapper | None = None) -> Explain:
    """MSEA of attention or gradients, whose values get smaller as tokens get more."""
    weights = [scale**2 for scale in DEFAULT_SCALES]
    return attribution(base, wrapper, DEFAULT_SCALES, weights=weights)


_arc, _tam = partial(ARC, normalize=False), partial(TAM, normalize=False, filter_size=None)
_contrast = partial(LensProbability, reading="contrast")

COMBINATIONS: tuple[Method, ...] = (
    Method("attention-msea", _weighed_by_area(ATTENTION), "combination"),
    Method("arc-attention-msea", _weighed_by_area(ATTENTION, _arc), "combination"),
    Method("tam-attention-msea", _weighed_by_area(ATTENTION, _tam), "combination"),
    Method("rollout-msea", _weighed_by_area(ROLLOUT), "combination"),
    Method("grad-cam-msea", _weighed_by_area(GRAD_CAM), "combination", every=5),
    Method("lens-x-attention", attribution(lens_x_attention), "combination"),
    Method("lens-x-attention-msea", _weighed_by_area(lens_x_attention), "combination"),
    Method("rank-x-attention-msea", _weighed_by_area(rank_x_attention), "combination"),
    Method("probability-msea", attribution(LensProbability, scales=DEFAULT_SCALES), "combination"),
    Method(
        "likelihood-msea",
        attribution(_contrast, scales=DEFAULT_SCALES),
        "combination",
        note="log-probability above its mean over the picture",
    ),
    Method(
        "contrast-msea",
        attribution(lens_contrast, scales=DEFAULT_SCALES),
        "combination",
        note="the lens less that of an empty picture",
    ),
)
