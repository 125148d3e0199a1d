"""``impute_linearly``: removed pixels as noisy means of their neighbours, the baseline of ROAD."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Weights of the neighbours: sixths beside a pixel, twelfths at its corners.
_WEIGHTS = ((1 / 12, 1 / 6, 1 / 12), (1 / 6, 0.0, 1 / 6), (1 / 12, 1 / 6, 1 / 12))

# A pixel may be off the mean of its neighbours by so much, far below a level of 8 bits.
_TOLERANCE = 1e-5
_MOST_STEPS = 2000
# Below this side nothing is gained by a coarser image.
_SMALLEST = 8


def impute_linearly(
    images: Tensor, removed: Tensor, noise: float = 0.01, tolerance: float = _TOLERANCE
) -> Tensor:
    r"""
    Replace removed pixels so that each is the weighted mean of its neighbours, plus noise.

    What was removed leaves no edge by which a model could see the shape of a mask. Neighbours
    beside a pixel weigh 1/6, those at its corners 1/12; those outside of the image are left out.
    The linear system is solved by conjugate gradients, which begin with the solution of an image
    of half the size.

    Source: "A Consistent and Efficient Evaluation Strategy for Attribution Methods" (Rong et al.,
    ICML 2022, https://arxiv.org/abs/2202.00449), noisy linear imputation.

    Args:
        images (Tensor): Of shape (B, C, H, W), floating point, in [0, 1].
        removed (Tensor): Which pixels are removed, of shape (B, 1, H, W), bool.
        noise (float, optional): Standard deviation of the Gaussian noise on removed pixels, the
            same in each call; what leaves [0, 1] is cut off.
            Default: 0.01
        tolerance (float, optional): How far a pixel may be from the mean of its neighbours.
            Default: 1e-5

    Returns:
        Tensor: Of the shape and dtype of ``images``, which are as they were where nothing is
        removed. An image without any pixel left becomes its mean colour, plus noise.

    Examples::

        >>> import torch
        >>> ramp = torch.linspace(0, 1, 5).expand(1, 1, 5, 5)
        >>> removed = torch.zeros(1, 1, 5, 5, dtype=torch.bool)
        >>> removed[..., 2] = True
        >>> impute_linearly(ramp, removed, noise=0)[0, 0, 0]
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000])
    """
    values = images.detach().to(torch.promote_types(images.dtype, torch.float32))
    mean = values.mean((-2, -1), keepdim=True)
    # Where nothing is left, any constant solves the system.
    empty = removed.flatten(1).all(1)[:, None, None, None]
    found = torch.where(empty, mean, _solve(values, removed & ~empty, tolerance))
    if noise:
        generator = torch.Generator().manual_seed(0)
        field = torch.randn(images.shape[1:], generator=generator).to(found)
        found = torch.where(removed, (found + noise * field).clamp(0, 1), found)
    return found.to(images.dtype)


def _solve(images: Tensor, removed: Tensor, tolerance: float) -> Tensor:
    """The images with every removed pixel the mean of its neighbours."""
    if not removed.any():
        return images
    start = torch.where(removed, _guess(images, removed, tolerance), images)
    inside = removed.to(images)
    kernel = torch.tensor(_WEIGHTS, dtype=images.dtype, device=images.device)[None, None]

    def neighbours(values: Tensor) -> Tensor:
        planes = values.flatten(0, 1)[:, None]
        return F.conv2d(planes, kernel, padding=1).reshape(values.shape)

    total = neighbours(torch.ones_like(images[:1, :1]))
    # Conjugate gradients for the pixels that are removed; the others stay as they are.
    residual = inside * (neighbours(start) - total * start)
    direction, energy = residual, _dot(residual, residual)
    found = start
    for _ in range(_MOST_STEPS):
        # Each plane stops by itself, so that it does not depend on those beside it.
        open_planes = (residual / total).abs().amax((-2, -1), keepdim=True) > tolerance
        if not open_planes.any():
            break
        image = inside * (total * direction - neighbours(direction))
        curvature = _dot(direction, image)
        step = open_planes * energy / torch.where(curvature > 0, curvature, 1)
        found = found + step * direction
        residual = residual - step * image
        before, energy = energy, _dot(residual, residual)
        direction = residual + energy / torch.where(before > 0, before, 1) * direction
    return found


def _guess(images: Tensor, removed: Tensor, tolerance: float) -> Tensor:
    """The solution for an image of half the size, at the full one; at last the mean colour."""
    known = (~removed).to(images)
    height, width = images.shape[-2:]
    if min(height, width) <= _SMALLEST:
        count = known.sum((-2, -1), keepdim=True)
        mean = (images * known).sum((-2, -1), keepdim=True) / count.clamp_min(1)
        return mean.expand_as(images)
    share = F.avg_pool2d(known, 2, ceil_mode=True)
    coarse = F.avg_pool2d(images * known, 2, ceil_mode=True)
    coarse = coarse / torch.where(share > 0, share, 1)
    solved = _solve(coarse, share == 0, tolerance)
    return F.interpolate(solved, size=(height, width), mode="bilinear", align_corners=False)


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Scalar product for each image and channel, (B, C, 1, 1)."""
    return (first * second).sum((-2, -1), keepdim=True)
