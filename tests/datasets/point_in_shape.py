"""Whether a point lies in a shape of radius 1: one point at a time, by elementary geometry."""

from __future__ import annotations

import math


def _corners(shape: str) -> list[tuple[float, float]]:
    if shape == "triangle":
        return [(0.0, -1.0), (0.95, 0.8), (-0.95, 0.8)]
    if shape == "star":
        corners = []
        for tip in range(5):
            outer = math.radians(-90 + 72 * tip)
            inner = outer + math.radians(36)
            corners.append((1.05 * math.cos(outer), 1.05 * math.sin(outer)))
            corners.append((0.46 * math.cos(inner), 0.46 * math.sin(inner)))
        return corners
    corners = []
    for step in range(24):
        t = math.radians(15 * step)
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        corners.append((x / 17, -y / 17))
    return corners


def _turns(corners: list[tuple[float, float]], x: float, y: float) -> bool:
    """Whether the outline, seen from the point, turns all the way round."""
    total = 0.0
    for (ax, ay), (bx, by) in zip(corners, corners[1:] + corners[:1]):
        angle = math.atan2(by - y, bx - x) - math.atan2(ay - y, ax - x)
        total += (angle + math.pi) % (2 * math.pi) - math.pi
    return abs(total) > math.pi


def contains(shape: str, x: float, y: float) -> bool:
    """Whether the shape contains the point."""
    reach = math.sqrt(x * x + y * y)
    if shape == "circle":
        return reach < 0.95
    if shape == "ring":
        return 0.46 < reach < 1.0
    if shape == "square":
        return -0.84 < x < 0.84 and -0.84 < y < 0.84
    if shape == "cross":
        return (abs(x) < 1 and abs(y) < 0.34) or (abs(x) < 0.34 and abs(y) < 1)
    if shape == "moon":
        return reach < 1 and math.dist((x, y), (0.55, -0.1)) > 0.8
    return _turns(_corners(shape), x, y)
