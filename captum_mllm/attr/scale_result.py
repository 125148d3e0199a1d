"""What one scale of MSEA contributed to an explanation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ScaleResult:
    r"""What one scale of MSEA saw.

    Args:
        scale (float): size of the picture relative to the original.
        image_attr (Tensor): its maps, shape (T, h, w).
        output_probs (Tensor or None): probability of each token at this scale, shape (T,).
    """

    scale: float
    image_attr: Tensor
    output_probs: Tensor | None = None
