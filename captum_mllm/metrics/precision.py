"""The precision in which scores are summed."""

from __future__ import annotations

import torch
from torch import Tensor


def in_double(values: Tensor) -> Tensor:
    r"""
    Values in float64, or in float32 on a device that has no float64 (MPS).

    Args:
        values (Tensor): Any real or boolean tensor.

    Returns:
        Tensor: The same values.
    """
    return values.to(double_dtype(values.device))


def double_dtype(device: torch.device) -> torch.dtype:
    r"""
    The most precise dtype of a device.

    Args:
        device (torch.device): The device.

    Returns:
        torch.dtype: float64, or float32 on MPS.
    """
    return torch.float32 if device.type == "mps" else torch.float64


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    r"""
    Quotient that is 0 where the denominator is 0.

    Args:
        numerator (Tensor): Of a floating-point dtype.
        denominator (Tensor): Of a shape that broadcasts with it.

    Returns:
        Tensor: The quotient.
    """
    return torch.where(
        denominator == 0, 0, numerator / torch.where(denominator == 0, 1, denominator)
    )
