"""Controls: what a method has to beat before anything is claimed for it."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from captum.attr import Attribution
from torch import Tensor

from captum_mllm import ARC, MLLM, TAM, AttendedLens
from captum_mllm.evaluation.attributions import EqualWeights, LensProbability, MapFunction
from captum_mllm.evaluation.method import DEFAULT_SCALES, Base, Case, Method, attribution
from captum_mllm.evaluation.published import ATTENDED_LENS, ATTENTION, LENS

# Standard deviation of the blob, as a share of the image's sides.
_BLOB = 0.2


def power(method: Attribution, exponent: float) -> MapFunction:
    r"""
    The positive part of a method's maps, raised to a power.

    It keeps the order of the cells, and so the pointing game and the insertion curve; a gain in
    another score that it has too owes nothing to a method's idea.

    Args:
        method (Attribution): The method.
        exponent (float): The exponent, above 0.

    Returns:
        MapFunction: The method with its maps raised.
    """
    return MapFunction(lambda maps: maps.relu() ** exponent, method)


def random_maps(case: Case) -> Tensor:
    r"""Uniform noise on the grid of the image tokens, (T, h, w); the same for the same case."""
    generator = torch.Generator().manual_seed(case.example.number)
    return torch.rand(len(case.query.answer_ids), *_grid(case), generator=generator)


def uniform_maps(case: Case) -> Tensor:
    r"""The same value everywhere, (T, h, w)."""
    return torch.ones(len(case.query.answer_ids), *_grid(case))


def centered_blob(case: Case) -> Tensor:
    r"""A Gaussian blob in the middle of the image for every token, (T, h, w)."""
    height, width = _grid(case)
    down, across = (
        torch.exp(-0.5 * (((torch.arange(side) + 0.5) / side - 0.5) / _BLOB).square())
        for side in (height, width)
    )
    return torch.outer(down, across).expand(len(case.query.answer_ids), -1, -1)


def true_masks(case: Case) -> Tensor:
    r"""
    What each token speaks of, (T, H / 2, W / 2): the upper bound.

    Cells are two pixels wide, with the share of them that is covered, since Otsu's threshold of
    an image of two levels is the lower one, below which Func-IoU finds nothing.
    """
    maps = torch.zeros(len(case.query.answer_ids), *case.image.shape[-2:])
    for place, word in enumerate(case.words):
        maps[list(word.tokens)] = case.example.region(place).to(maps)
    return F.avg_pool2d(maps, 2)


def attended(lens: Base, mllm: MLLM) -> AttendedLens:
    r"""
    The attended lens with another method in place of the logit lens.

    Args:
        lens (Callable): Makes that method for a model.
        mllm (MLLM): The model.

    Returns:
        AttendedLens: The method.
    """
    method = AttendedLens(mllm)
    method.lens = lens(mllm)
    return method


def centered_lens(mllm: MLLM) -> MapFunction:
    r"""The logit lens, less its mean over the image."""
    return MapFunction(lambda maps: maps - maps.mean((2, 3), keepdim=True), LENS(mllm))


def _grid(case: Case) -> tuple[int, int]:
    (layout,) = case.mllm.layouts(case.image, case.query)
    return layout.grid


_LARGEST = DEFAULT_SCALES[-1:]
# What remains of TAM and ARC is that image and text scores are mapped to [0, 1] together.
_normalized = partial(ARC, suppress=None, normalize=True)
_squared, _cubed = partial(power, exponent=2), partial(power, exponent=3)

CONTROLS: tuple[Method, ...] = (
    Method("lens-squared", attribution(LENS, _squared), "control"),
    Method("lens-cubed", attribution(LENS, _cubed), "control"),
    Method("lens-probability", attribution(LensProbability), "control", note="softmax"),
    Method(
        "lens-normalized",
        attribution(LENS, _normalized),
        "control",
        None,
        note="ARC without its suppression",
    ),
    Method("lens-2x", attribution(LENS, scales=_LARGEST), "control", note="one pass at scale 2"),
    Method("lens-squared-2x", attribution(LENS, _squared, _LARGEST), "control"),
    Method("msea-squared", attribution(LENS, _squared, DEFAULT_SCALES), "control"),
    Method(
        "msea-normalized",
        attribution(LENS, _normalized, DEFAULT_SCALES),
        "control",
        None,
        note="ARC(MSEA) without its suppression",
    ),
    Method(
        "attended-lens-2x",
        attribution(ATTENDED_LENS, scales=_LARGEST),
        "control",
        note="one pass at scale 2",
    ),
    Method("attended-lens-squared", attribution(ATTENDED_LENS, _squared), "control"),
    Method(
        "attended-lens-msea-squared",
        attribution(ATTENDED_LENS, _squared, DEFAULT_SCALES),
        "control",
    ),
    Method(
        "attended-lens-msea-centered",
        attribution(partial(attended, centered_lens), scales=DEFAULT_SCALES),
        "control",
        note="the lens less its mean",
    ),
    Method(
        "attended-probability-msea",
        attribution(partial(attended, LensProbability), scales=DEFAULT_SCALES),
        "control",
        note="softmax in place of logits",
    ),
    Method(
        "attended-lens-msea-plain",
        attribution(ATTENDED_LENS, scales=DEFAULT_SCALES, normalize="none"),
        "control",
        note="the mean of the scales without balance",
    ),
    Method(
        "equal-attended-lens-msea",
        attribution(ATTENDED_LENS, EqualWeights, DEFAULT_SCALES),
        "control",
        note="ARC with equal weights",
    ),
    Method(
        "tam-attended-lens-msea",
        attribution(ATTENDED_LENS, TAM, DEFAULT_SCALES),
        "control",
        None,
        note="TAM around the same base",
    ),
    Method("attention-squared", attribution(ATTENTION, _squared), "control"),
    Method("attention-2x", attribution(ATTENTION, scales=_LARGEST), "control"),
    Method("random", random_maps, "control"),
    Method("uniform", uniform_maps, "control"),
    Method("blob", centered_blob, "control", note="a blob in the middle"),
    Method("true-mask", true_masks, "control", note="upper bound"),
)
