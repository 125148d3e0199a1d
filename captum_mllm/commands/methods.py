"""``METHODS``: how each method of the command line is put together."""

from __future__ import annotations

from typing import NamedTuple

ONE_SCALE = (1.0,)
FOUR_SCALES = (0.5, 1.0, 1.5, 2.0)


class Recipe(NamedTuple):
    r"""
    How a method of the command line is put together; classes are named as in ``captum_mllm``.

    Args:
        base (str): The attribution of a model.
        wrapper (str, optional): What is around it, or around MSEA of it. Default: None
        scales (tuple[float, ...]): The scales where none are given. Default: 1 alone.
        streams (bool): Whether it explains words while the model answers. Default: True
    """

    base: str
    wrapper: str | None = None
    scales: tuple[float, ...] = ONE_SCALE
    streams: bool = True


METHODS: dict[str, Recipe] = {
    # While a model answers, nothing keeps its attention.
    "attended-lens": Recipe("AttendedLens", "ARC", scales=FOUR_SCALES, streams=False),
    "arc": Recipe("LogitLens", "ARC", scales=FOUR_SCALES),
    "msea": Recipe("LogitLens", scales=FOUR_SCALES),
    "tam": Recipe("LogitLens", "TAM"),
    "logit-lens": Recipe("LogitLens"),
    "rollout": Recipe("AttentionMaps", streams=False),
    "token-cam": Recipe("TokenCam", streams=False),
}
DEFAULT_METHOD = "attended-lens"
DEFAULT_STREAMED = "arc"
