r"""Flat shapes as signed distance functions.

A signed distance is negative inside a shape, positive outside and zero on its outline, so that one
function serves both the exact mask (its sign) and an antialiased image (a ramp across zero).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating]

#: Every shape lies within this many radii of its centre.
EXTENT = 1.25


def _polygon(x: FloatArray, y: FloatArray, corners: npt.NDArray[np.float64]) -> FloatArray:
    squared = np.full(x.shape, np.inf)
    inside = np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0)):
        edge_x, edge_y = bx - ax, by - ay
        from_x, from_y = x - ax, y - ay
        along = (from_x * edge_x + from_y * edge_y) / (edge_x**2 + edge_y**2)
        along = np.clip(along, 0.0, 1.0)
        gap = (from_x - along * edge_x) ** 2 + (from_y - along * edge_y) ** 2
        squared = np.minimum(squared, gap)
        if edge_y != 0.0:
            # Even-odd rule: count the edges that a ray towards +x crosses.
            straddles = (ay > y) != (by > y)
            inside ^= straddles & (x < ax + edge_x * (y - ay) / edge_y)
    distance = np.sqrt(squared)
    return np.where(inside, -distance, distance)


def _circle(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.hypot(x, y) - 0.95


def _ring(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.abs(np.hypot(x, y) - 0.73) - 0.27


def _square(x: FloatArray, y: FloatArray) -> FloatArray:
    return np.maximum(np.abs(x), np.abs(y)) - 0.84


def _cross(x: FloatArray, y: FloatArray) -> FloatArray:
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - 1.0, y - 0.34), np.maximum(x - 0.34, y - 1.0))


def _moon(x: FloatArray, y: FloatArray) -> FloatArray:
    bite = np.hypot(x - 0.55, y + 0.1) - 0.8
    return np.maximum(np.hypot(x, y) - 1.0, -bite)


_TRIANGLE = np.array([(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)])

_STAR_ANGLES = np.arange(10) * np.pi / 5 - np.pi / 2
_STAR_RADII = np.where(np.arange(10) % 2 == 0, 1.05, 0.46)
_STAR = np.stack([_STAR_RADII * np.cos(_STAR_ANGLES), _STAR_RADII * np.sin(_STAR_ANGLES)], axis=1)

_TURN = np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False)
_HEART = (
    np.stack(
        [
            16 * np.sin(_TURN) ** 3,
            -(
                13 * np.cos(_TURN)
                - 5 * np.cos(2 * _TURN)
                - 2 * np.cos(3 * _TURN)
                - np.cos(4 * _TURN)
            ),
        ],
        axis=1,
    )
    / 17.0
)


def _triangle(x: FloatArray, y: FloatArray) -> FloatArray:
    return _polygon(x, y, _TRIANGLE)


def _star(x: FloatArray, y: FloatArray) -> FloatArray:
    return _polygon(x, y, _STAR)


def _heart(x: FloatArray, y: FloatArray) -> FloatArray:
    return _polygon(x, y, _HEART)


_DISTANCES: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "moon": _moon,
    "heart": _heart,
}

#: The names of the shapes there are.
SHAPES: tuple[str, ...] = tuple(_DISTANCES)


def signed_distance(shape: str, x: FloatArray, y: FloatArray) -> FloatArray:
    r"""Signed distance of points to the outline of a shape of radius 1 centred on the origin.

    The y axis points down, as in images. The distance is exact near the outline; far from it, it
    is a lower bound for the shapes that are unions or differences of simpler ones.

    Args:
        shape (str): One of :data:`SHAPES`.
        x (numpy.ndarray): Horizontal coordinates, in radii, of any shape.
        y (numpy.ndarray): Vertical coordinates, in radii, of the same shape as ``x``.

    Returns:
        numpy.ndarray: Distances in radii, of the shape of ``x``: negative inside, positive outside.

    Raises:
        ValueError: If there is no such shape.

    Examples::

        >>> import numpy as np
        >>> signed_distance("square", np.array([0.0, 2.0]), np.array([0.0, 0.0])).round(2)
        array([-0.84,  1.16])
    """
    if shape not in _DISTANCES:
        raise ValueError(f"No shape is called {shape!r}; the shapes are {', '.join(SHAPES)}.")
    return _DISTANCES[shape](x, y)
