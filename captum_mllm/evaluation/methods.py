"""Published methods, and other settings of them."""

from __future__ import annotations

from functools import partial

from captum_mllm import ARC, TAM, AttendedLens, AttentionRollout, LogitLens, TokenGradCam
from captum_mllm.evaluation import pixel_methods
from captum_mllm.evaluation.cases import Base
from captum_mllm.evaluation.method import DEFAULT_SCALES, Method, attribution

LENS: Base = LogitLens
ATTENDED_LENS: Base = AttendedLens
ATTENTION: Base = partial(AttentionRollout, mode="raw")
LAST_ATTENTION: Base = partial(AttentionRollout, mode="raw", layers=(-1,))
ROLLOUT: Base = AttentionRollout
GRADIENT_ROLLOUT: Base = partial(AttentionRollout, mode="gradient")
GRAD_CAM: Base = TokenGradCam
GRAD_CAM_PLUS_PLUS: Base = partial(TokenGradCam, variant="grad_cam++")

_relevant = partial(ARC, suppress="relevant")
_agreement = partial(ARC, image_agreement=True)

PUBLISHED: tuple[Method, ...] = (
    Method("lens", attribution(LENS), note="logits of the image tokens"),
    Method("tam", attribution(LENS, TAM), levels=None),
    Method("arc", attribution(LENS, ARC), levels=None, note="irrelevant words suppressed"),
    Method(
        "arc-relevant", attribution(LENS, _relevant), levels=None, note="relevant words suppressed"
    ),
    Method(
        "arc-agreement",
        attribution(LENS, _agreement),
        levels=None,
        note="and image tokens weighed by their own predictions",
    ),
    Method("msea", attribution(LENS, scales=DEFAULT_SCALES), note="the lens at four scales"),
    Method("tam-msea", attribution(LENS, TAM, DEFAULT_SCALES), levels=None),
    Method(
        "arc-msea",
        attribution(LENS, ARC, DEFAULT_SCALES),
        levels=None,
        note="the paper's method: ARC(MSEA(LogitLens))",
    ),
    Method("arc-relevant-msea", attribution(LENS, _relevant, DEFAULT_SCALES), levels=None),
    Method("arc-agreement-msea", attribution(LENS, _agreement, DEFAULT_SCALES), levels=None),
    Method("attention-last", attribution(LAST_ATTENTION), note="last layer, mean of heads"),
    Method("attention", attribution(ATTENTION), note="mean of all layers and heads"),
    Method("rollout", attribution(ROLLOUT)),
    Method("gradient-rollout", attribution(GRADIENT_ROLLOUT), every=5, note="Chefer et al."),
    Method("grad-cam", attribution(GRAD_CAM), note="middle layer of the vision tower"),
    Method("grad-cam++", attribution(GRAD_CAM_PLUS_PLUS), every=5),
    Method("input-x-gradient", pixel_methods.input_x_gradient, every=20),
    Method("integrated-gradients", pixel_methods.integrated_gradients, every=20, note="10 steps"),
    Method("occlusion", pixel_methods.occlusion, every=20, note="a seventh of the side"),
)

#: Settings are compared on one picture in so many.
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
    *(
        Method(f"arc-k{k}", attribution(LENS, partial(ARC, top_k=k)), "sweep", None, SWEPT)
        for k in (5, 10, 20)
    ),
    *(
        Method(f"arc-p{p:g}", attribution(LENS, partial(ARC, persistence=p)), "sweep", None, SWEPT)
        for p in (0.5, 0.7, 0.98)
    ),
)
