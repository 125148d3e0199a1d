"""Colour tables whose lightness follows the value evenly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["diverging_colors", "sequential_colors"]

_OKLAB_TO_CUBE_ROOT_LMS = np.array(
    [
        [1.0, 0.3963377774, 0.2158037573],
        [1.0, -0.1055613458, -0.0638541728],
        [1.0, -0.0894841775, -1.2914855480],
    ]
)
_LMS_TO_LINEAR_SRGB = np.array(
    [
        [4.0767416621, -3.3077115913, 0.2309699292],
        [-1.2684380046, 2.6097574011, -0.3413193965],
        [-0.0041960863, -0.7034186147, 1.7076147010],
    ]
)

# (lightness, chroma, hue in degrees); hues run past 360 so that they can be interpolated.
_INDIGO_TO_YELLOW = (
    (0.30, 0.12, 290.0),
    (0.54, 0.20, 358.0),
    (0.72, 0.168, 408.0),
    (0.91, 0.168, 464.0),
)
_GREY_TO_BLUE = ((0.84, 0.0, 250.0), (0.77, 0.11, 250.0), (0.50, 0.19, 261.0))
_GREY_TO_RED = ((0.84, 0.0, 45.0), (0.77, 0.11, 45.0), (0.50, 0.19, 30.0))


def sequential_colors(count: int = 256) -> np.ndarray:
    r"""
    A colour table from dark indigo (lowest) over magenta and orange to yellow (highest).

    Lightness rises strictly and evenly, so that the order of two values can be read in greyscale
    too and with any colour vision. The path is drawn in OKLab (Ottosson, 2020, "A perceptual color
    space for image processing").

    Args:
        count (int): Number of colours, at least 2. Default: 256

    Returns:
        np.ndarray: sRGB colours of shape (count, 3), uint8.

    Raises:
        ValueError: If ``count`` is less than 2.

    Examples::

        >>> colors = sequential_colors()
        >>> colors.shape, colors.dtype
        ((256, 3), dtype('uint8'))
    """
    return _to_srgb(_path(_INDIGO_TO_YELLOW, _positions(count)))


def diverging_colors(count: int = 256) -> np.ndarray:
    r"""
    A colour table from blue (lowest) over a light grey (the middle) to red (highest).

    The two arms have the same lightness at the same distance from the middle, so that neither sign
    looks stronger. The paths are drawn in OKLab (Ottosson, 2020, "A perceptual color space for
    image processing").

    Args:
        count (int): Number of colours, at least 2. Default: 256

    Returns:
        np.ndarray: sRGB colours of shape (count, 3), uint8.

    Raises:
        ValueError: If ``count`` is less than 2.

    Examples::

        >>> lowest, highest = diverging_colors(2).tolist()
        >>> lowest[2] > lowest[0], highest[0] > highest[2]
        (True, True)
    """
    signed = 2.0 * _positions(count) - 1.0
    distance = np.abs(signed)
    lch = np.where(
        signed[:, None] < 0, _path(_GREY_TO_BLUE, distance), _path(_GREY_TO_RED, distance)
    )
    return _to_srgb(lch)


def _positions(count: int) -> np.ndarray:
    if count < 2:
        raise ValueError(f"count is {count}; a colour table needs at least 2 colours.")
    return np.linspace(0.0, 1.0, count)


def _path(points: Sequence[tuple[float, float, float]], positions: np.ndarray) -> np.ndarray:
    """Lightness, chroma and hue, (N, 3), at ``positions`` in [0, 1] along an even lightness."""
    table = np.asarray(points)
    stops = (table[:, 0] - table[0, 0]) / (table[-1, 0] - table[0, 0])
    return np.stack([np.interp(positions, stops, channel) for channel in table.T], axis=-1)


def _to_srgb(lch: np.ndarray) -> np.ndarray:
    lightness, chroma, hue = lch.T
    angle = np.deg2rad(hue)
    oklab = np.stack([lightness, chroma * np.cos(angle), chroma * np.sin(angle)], axis=-1)
    linear = (oklab @ _OKLAB_TO_CUBE_ROOT_LMS.T) ** 3 @ _LMS_TO_LINEAR_SRGB.T
    linear = np.clip(linear, 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255.0 * encoded).astype(np.uint8)
