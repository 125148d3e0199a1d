"""What an attribution method found at one scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from captum_mllm.models.layout import Layout

Attributions = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class ScaleAttribution:
    r"""
    What the wrapped method found at one scale.

    Args:
        scale (float): The scale, relative to the input as given.
        inputs (tuple[Tensor, ...]): The inputs at this scale, as the method got them.
        attributions (Tensor or tuple[Tensor, ...]): Attributions as the method gave them at this
            scale, at their own size, detached.
        layouts (tuple[Layout or None, ...]): For each input where its tokens lie; None where the
            forward function does not tell.
        ask_probability (Callable): Gives the ``probability``.
    """

    scale: float
    inputs: tuple[Tensor, ...]
    attributions: Attributions
    layouts: tuple[Layout | None, ...]
    ask_probability: Callable[[], Tensor | None]

    @property
    def probability(self) -> Tensor | None:
        r"""
        Probability that the model gives the target at this scale, one per example, in [0, 1]; None
        where it is not defined. Where it was not needed for the weights of the scales, the first
        look at it costs a forward pass.
        """
        return self.ask_probability()
