"""Captum's methods on pixels, summed over the cells of the image tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, IntegratedGradients, Occlusion
from torch import Tensor

from captum_mllm.evaluation.cases import Case
from captum_mllm.metrics.picture_baselines import picture_baseline


def integrated_gradients(case: Case, n_steps: int = 10) -> Tensor:
    r"""
    Integrated gradients of each scored token's logit, from the picture's mean colour.

    Args:
        case (Case): The model and the captioned picture.
        n_steps (int): Steps of the integral. Default: 10

    Returns:
        Tensor: A map for each token, (T, h, w), at least 0.
    """
    baseline = picture_baseline(case.image, "mean")
    method = IntegratedGradients(case.mllm)
    return _of_scored_tokens(case, partial(method.attribute, baselines=baseline, n_steps=n_steps))


def input_x_gradient(case: Case) -> Tensor:
    r"""Input x gradient of each scored token's logit, (T, h, w), at least 0."""
    return _of_scored_tokens(case, InputXGradient(case.mllm).attribute)


def occlusion(
    case: Case, windows: int = 7, steps: int = 14, perturbations_per_eval: int = 16
) -> Tensor:
    r"""
    How far each token's logit falls where a window of the picture takes its mean colour.

    One pass with a hidden window serves all tokens.

    Args:
        case (Case): The model and the captioned picture.
        windows (int): How many windows fit beside each other in a picture. Default: 7
        steps (int): How many steps the window takes across a picture and its own width.
            Default: 14
        perturbations_per_eval (int): Windows evaluated at a time. Default: 16

    Returns:
        Tensor: A map for each token, (T, h, w), at least 0.
    """
    ids = case.mllm.explained_ids(case.image, case.query)

    def logits(picture: Tensor) -> Tensor:
        found = case.mllm(picture, case.query)
        return found.gather(2, ids[None, :, None].expand(len(found), -1, -1))[..., 0]

    height, width = case.image.shape[-2:]
    options: dict[str, Any] = {
        "sliding_window_shapes": (3, max(height // windows, 1), max(width // windows, 1)),
        "strides": (3, max(height // steps, 1), max(width // steps, 1)),
        "baselines": picture_baseline(case.image, "mean"),
        "perturbations_per_eval": perturbations_per_eval,
    }
    # A value for each token, so that Captum returns a map for each.
    return _by_token(case, Occlusion(logits).attribute(case.image, **options).sum(1))


def _of_scored_tokens(case: Case, attribute: Callable[..., Tensor]) -> Tensor:
    """Maps of the tokens that metrics look at; those of the others are 0."""
    maps = torch.zeros(len(case.query.answer_ids), *case.image.shape[-2:])
    for token in case.scored_tokens:
        # A leaf of its own for each, as Captum leaves its gradient behind.
        picture = case.image.clone().requires_grad_()
        found = attribute(
            picture,
            target=(token, case.query.answer_ids[token]),
            additional_forward_args=(case.query,),
        )
        maps[token] = found.detach().float().cpu().sum((0, 1))
    return _by_token(case, maps)


def _by_token(case: Case, maps: Tensor) -> Tensor:
    """The positive part of what pixels (T, H, W) give together in the cell of each image token."""
    (layout,) = case.mllm.layouts(case.image, case.query)
    return F.adaptive_avg_pool2d(maps[:, None], layout.grid)[:, 0].relu()
