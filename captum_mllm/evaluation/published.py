"""Published methods, other settings of them, and Captum's methods on pixels."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import InputXGradient, IntegratedGradients, Occlusion
from torch import Tensor

from captum_mllm import ARC, TAM, AttendedLens, AttentionMaps, LogitLens, TokenCam
from captum_mllm.evaluation.method import DEFAULT_SCALES, Base, Case, Method, attribution
from captum_mllm.metrics.image_baselines import image_baseline


def integrated_gradients(case: Case, n_steps: int = 10) -> Tensor:
    r"""
    Integrated gradients of each scored token's logit, from the image's mean colour.

    Args:
        case (Case): The model and the captioned image.
        n_steps (int): Steps of the integral. Default: 10

    Returns:
        Tensor: A map for each token, (T, h, w), at least 0.
    """
    baseline = image_baseline(case.image, "mean")
    method = IntegratedGradients(case.mllm)
    return _of_scored_tokens(case, partial(method.attribute, baselines=baseline, n_steps=n_steps))


def input_x_gradient(case: Case) -> Tensor:
    r"""Input x gradient of each scored token's logit, (T, h, w), at least 0."""
    return _of_scored_tokens(case, InputXGradient(case.mllm).attribute)


def occlusion(
    case: Case, windows: int = 7, steps: int = 14, perturbations_per_eval: int = 16
) -> Tensor:
    r"""
    How far each token's logit falls where a window of the image takes its mean colour.

    One pass with a hidden window serves all tokens.

    Args:
        case (Case): The model and the captioned image.
        windows (int): How many windows fit beside each other in an image. Default: 7
        steps (int): How many steps the window takes across an image and its own width.
            Default: 14
        perturbations_per_eval (int): Windows evaluated at a time. Default: 16

    Returns:
        Tensor: A map for each token, (T, h, w), at least 0.
    """
    ids = case.mllm.explained_ids(case.image, case.query)

    def logits(image: Tensor) -> Tensor:
        found = case.mllm(image, case.query)
        return found.gather(2, ids[None, :, None].expand(len(found), -1, -1))[..., 0]

    height, width = case.image.shape[-2:]
    options: dict[str, Any] = {
        "sliding_window_shapes": (3, max(height // windows, 1), max(width // windows, 1)),
        "strides": (3, max(height // steps, 1), max(width // steps, 1)),
        "baselines": image_baseline(case.image, "mean"),
        "perturbations_per_eval": perturbations_per_eval,
    }
    # A value for each token, so that Captum returns a map for each.
    return _by_token(case, Occlusion(logits).attribute(case.image, **options).sum(1))


def _of_scored_tokens(case: Case, attribute: Callable[..., Tensor]) -> Tensor:
    """Maps of the tokens that metrics look at; those of the others are 0."""
    maps = torch.zeros(len(case.query.answer_ids), *case.image.shape[-2:])
    for token in case.scored_tokens:
        # A leaf of its own for each, as Captum leaves its gradient behind.
        image = case.image.clone().requires_grad_()
        found = attribute(
            image,
            target=(token, case.query.answer_ids[token]),
            additional_forward_args=(case.query,),
        )
        maps[token] = found.detach().float().cpu().sum((0, 1))
    return _by_token(case, maps)


def _by_token(case: Case, maps: Tensor) -> Tensor:
    """The positive part of what pixels (T, H, W) give together in the cell of each image token."""
    (layout,) = case.mllm.layouts(case.image, case.query)
    return F.adaptive_avg_pool2d(maps[:, None], layout.grid)[:, 0].relu()


LENS: Base = LogitLens
ATTENDED_LENS: Base = AttendedLens
ATTENTION: Base = partial(AttentionMaps, mode="raw")
LAST_ATTENTION: Base = partial(AttentionMaps, mode="raw", layers=(-1,))
ROLLOUT: Base = AttentionMaps
GRADIENT_ROLLOUT: Base = partial(AttentionMaps, mode="gradient")
GRAD_CAM: Base = TokenCam
GRAD_CAM_PLUS_PLUS: Base = partial(TokenCam, variant="grad_cam++")

_relevant = partial(ARC, suppress="relevant")
_agreement = partial(ARC, image_agreement=True)

PUBLISHED: tuple[Method, ...] = (
    Method("lens", attribution(LENS), note="logits of the image tokens"),
    Method("tam", attribution(LENS, TAM), levels=None),
    Method("arc", attribution(LENS, ARC), note="irrelevant words suppressed"),
    Method("arc-relevant", attribution(LENS, _relevant), note="relevant words suppressed"),
    Method(
        "arc-agreement",
        attribution(LENS, _agreement),
        note="and image tokens weighed by their own predictions",
    ),
    Method("msea", attribution(LENS, scales=DEFAULT_SCALES), note="the lens at four scales"),
    Method("tam-msea", attribution(LENS, TAM, DEFAULT_SCALES), levels=None),
    Method(
        "arc-msea",
        attribution(LENS, ARC, DEFAULT_SCALES),
        note="the paper's method: ARC(MSEA(LogitLens))",
    ),
    Method("arc-relevant-msea", attribution(LENS, _relevant, DEFAULT_SCALES)),
    Method("arc-agreement-msea", attribution(LENS, _agreement, DEFAULT_SCALES)),
    Method("attention-last", attribution(LAST_ATTENTION), note="last layer, mean of heads"),
    Method("attention", attribution(ATTENTION), note="mean of all layers and heads"),
    Method("rollout", attribution(ROLLOUT)),
    Method("gradient-rollout", attribution(GRADIENT_ROLLOUT), every=5, note="Chefer et al."),
    Method("grad-cam", attribution(GRAD_CAM), note="middle layer of the vision tower"),
    Method("grad-cam++", attribution(GRAD_CAM_PLUS_PLUS), every=5),
    Method("input-x-gradient", input_x_gradient, every=20),
    Method("integrated-gradients", integrated_gradients, every=20, note="10 steps"),
    Method("occlusion", occlusion, every=20, note="a seventh of the side"),
)

#: Settings are compared on one image in so many.
SWEPT = 5

_SCALE_SETS = (
    (1.0, 1.5),
    (1.0, 2.0),
    (0.5, 1.0),
    (0.75, 1.0, 1.25),
    (1.0, 1.5, 2.0),
    (0.75, 1.0, 1.25, 1.5),
)


def _scales_name(scales: tuple[float, ...]) -> str:
    return "msea@" + "+".join(f"{scale:g}" for scale in scales)


SWEEPS: tuple[Method, ...] = (
    *(
        Method(_scales_name(scales), attribution(LENS, scales=scales), "sweep", every=SWEPT)
        for scales in _SCALE_SETS
    ),
    Method(
        "msea-max",
        attribution(LENS, scales=DEFAULT_SCALES, normalize="max"),
        "sweep",
        "map",
        every=SWEPT,
    ),
)
