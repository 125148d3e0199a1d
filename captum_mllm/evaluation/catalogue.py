"""``METHODS``, all methods of the evaluation by name, and the combinations that no paper has."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from captum_mllm import ARC, MLLM, TAM, AttendedLens, LogitLens
from captum_mllm.evaluation.attributions import ImageContrast, LensProbability, geometric_mean
from captum_mllm.evaluation.controls import CONTROLS
from captum_mllm.evaluation.method import (
    DEFAULT_SCALES,
    Base,
    Explain,
    Method,
    Wrapper,
    attribution,
)
from captum_mllm.evaluation.published import (
    ATTENDED_LENS,
    ATTENTION,
    GRAD_CAM,
    LENS,
    PUBLISHED,
    ROLLOUT,
    SWEEPS,
    SWEPT,
)


def lens_contrast(mllm: MLLM) -> ImageContrast:
    r"""The lens, less what it says of an image of one colour."""
    return ImageContrast(LENS(mllm))


def _weighed_by_area(
    base: Base | tuple[Base, ...], wrapper: Wrapper | None = None, **options: Any
) -> Explain:
    """MSEA of attention or gradients, whose values get smaller as tokens get more."""
    weights = [scale**2 for scale in DEFAULT_SCALES]
    return attribution(base, wrapper, DEFAULT_SCALES, weights=weights, **options)


def _further(name: str, explain: Explain, every: int = SWEPT, note: str = "") -> Method:
    return Method(name, explain, "sweep", every=every, note=note)


_arc, _tam = partial(ARC, normalize=False), partial(TAM, normalize=False, filter_size=None)
_contrast = partial(LensProbability, reading="contrast")
_rank = partial(LensProbability, reading="reciprocal rank")
_CENTERED = partial(LogitLens, centered=True)
_CENTERED_NOTE = "the lens less the mean logit of the vocabulary"
# The lens reads the word alone, so it does not tell two stars apart; attention does.
_LENS_ATTENTION = (LENS, ATTENTION)

COMBINATIONS: tuple[Method, ...] = (
    Method(
        "attended-lens",
        attribution(ATTENDED_LENS),
        "combination",
        note="what an image token says, where the word attends to it",
    ),
    Method(
        "attended-lens-msea",
        attribution(ATTENDED_LENS, scales=DEFAULT_SCALES),
        "combination",
        note="the attended lens at four scales",
    ),
    Method(
        "arc-attended-lens-msea",
        attribution(ATTENDED_LENS, ARC, DEFAULT_SCALES),
        "combination",
        note="the default: ARC(MSEA(AttendedLens))",
    ),
    Method("attention-msea", _weighed_by_area(ATTENTION), "combination"),
    Method("lens-x-attention", attribution(_LENS_ATTENTION), "combination", note="their product"),
    Method("lens-x-attention-msea", _weighed_by_area(_LENS_ATTENTION), "combination"),
    Method(
        "lens-attention-mean-msea",
        _weighed_by_area(_LENS_ATTENTION, combine=geometric_mean),
        "combination",
        note="geometric mean of lens and attention",
    ),
)

#: Values of ARC's ``strength`` in the default, by what their rows are called.
ARC_STRENGTHS: dict[str, dict[str, Any]] = {
    "strength1": {"strength": 1.0},
    "cosine": {"strength": None},
}
#: Its other options likewise.
ARC_SETTINGS: dict[str, dict[str, Any]] = {
    "k5": {"top_k": 5},
    "k10": {"top_k": 10},
    "k20": {"top_k": 20},
    "p0.5": {"persistence": 0.5},
    "p0.7": {"persistence": 0.7},
    "p0.98": {"persistence": 0.98},
    "power0.5": {"power": 0.5},
    "power2": {"power": 2.0},
    "previous": {"reading": "previous"},
    "relevant": {"suppress": "relevant"},
    "activation": {"by_activation": True},
}

#: Those that are compared on few images.
FURTHER: tuple[Method, ...] = (
    *(
        _further(
            f"attended-lens-power{power:g}-msea",
            attribution(partial(AttendedLens, power=power), scales=DEFAULT_SCALES),
        )
        for power in (0.5, 1.0)
    ),
    *(
        _further(
            f"arc-{name}-attended-lens-msea",
            attribution(ATTENDED_LENS, partial(ARC, **options), DEFAULT_SCALES),
            every=1,
        )
        for name, options in ARC_STRENGTHS.items()
    ),
    *(
        _further(
            f"arc-{name}-attended-lens-msea",
            attribution(ATTENDED_LENS, partial(ARC, **options), DEFAULT_SCALES),
        )
        for name, options in ARC_SETTINGS.items()
    ),
    _further(
        "arc-cosine-msea",
        attribution(LENS, partial(ARC, strength=None), DEFAULT_SCALES),
        every=1,
        note="the strength is the cosine",
    ),
    _further(
        "lens-filtered",
        attribution(LENS, partial(ARC, suppress=None, filter_size=3)),
        every=1,
        note="TAM's rank filter alone",
    ),
    _further("centered-lens", attribution(_CENTERED), every=1, note=_CENTERED_NOTE),
    _further("arc-centered-lens-msea", attribution(_CENTERED, ARC, DEFAULT_SCALES), every=1),
    _further(
        "arc-centered-attended-lens-msea",
        attribution(partial(AttendedLens, centered=True), ARC, DEFAULT_SCALES),
        every=1,
    ),
    _further("arc-attention-msea", _weighed_by_area(ATTENTION, _arc)),
    _further("tam-attention-msea", _weighed_by_area(ATTENTION, _tam)),
    _further("rollout-msea", _weighed_by_area(ROLLOUT)),
    _further("grad-cam-msea", _weighed_by_area(GRAD_CAM), every=20),
    _further("arc-lens-x-attention-msea", _weighed_by_area(_LENS_ATTENTION, _arc)),
    _further("lens-attention-mean", attribution(_LENS_ATTENTION, combine=geometric_mean)),
    _further("rank-x-attention-msea", _weighed_by_area((_rank, ATTENTION))),
    _further("probability-msea", attribution(LensProbability, scales=DEFAULT_SCALES)),
    _further(
        "likelihood-msea",
        attribution(_contrast, scales=DEFAULT_SCALES),
        note="log-probability above its mean over the image",
    ),
    _further(
        "contrast-msea",
        attribution(lens_contrast, scales=DEFAULT_SCALES),
        note="the lens less that of an empty image",
    ),
)


#: The methods in the order of the table.
METHODS: dict[str, Method] = {
    method.name: method for method in (*PUBLISHED, *COMBINATIONS, *SWEEPS, *FURTHER, *CONTROLS)
}


def select_methods(patterns: Sequence[str]) -> list[Method]:
    r"""
    The methods that are meant by names, patterns or roles.

    Args:
        patterns (Sequence[str]): Names such as ``"lens"``, patterns such as ``"arc*"``, or roles:
            ``"method"``, ``"sweep"``, ``"combination"`` or ``"control"``.

    Returns:
        list[Method]: In the order of the table, each once.

    Raises:
        ValueError: If one of them means no method.

    Examples::

        >>> [method.name for method in select_methods(["lens", "grad-cam*"])]
        ['lens', 'grad-cam', 'grad-cam++', 'grad-cam-msea']
    """
    chosen = set()
    for pattern in patterns:
        found = {
            name
            for name, method in METHODS.items()
            if fnmatchcase(name, pattern) or method.role == pattern
        }
        if not found:
            raise ValueError(f"no method is called {pattern!r}; there are {', '.join(METHODS)}")
        chosen |= found
    return [method for name, method in METHODS.items() if name in chosen]
