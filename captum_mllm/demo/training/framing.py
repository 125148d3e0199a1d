r"""Pictures as a camera takes them that comes closer or goes away, for towers of one resolution."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from captum_mllm.datasets.scenes import Scene
from captum_mllm.demo.training.architecture import IMAGE_MEAN


def frame(
    pictures: npt.NDArray[np.uint8],
    scenes: list[Scene],
    zoom: float,
    generator: np.random.Generator,
) -> npt.NDArray[np.uint8]:
    r"""Draw pictures larger or smaller onto canvases of their size, each at a random place.

    What a smaller picture leaves free has the processors' mean colour, with which LLaVA pads. Of a
    larger one the canvas shows a part that holds the objects, or some of them if they do not fit.

    Args:
        pictures (numpy.ndarray): (B, S, S, 3), uint8.
        scenes (list[Scene]): What they show.
        zoom (float): Side of the drawn pictures over that of the canvases, above 0.
        generator (numpy.random.Generator): Decides the places.

    Returns:
        numpy.ndarray: (B, S, S, 3), uint8.
    """
    side = pictures.shape[1]
    drawn = round(side * zoom)
    values = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    resized = F.interpolate(values, (drawn, drawn), mode="bicubic", antialias=True)
    enlarged = resized.clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy()
    margin = np.rint(255 * np.array(IMAGE_MEAN)).astype(np.uint8)
    framed = np.tile(margin, (len(pictures), side, side, 1))
    for canvas, picture, scene in zip(framed, enlarged, scenes):
        top, left = (_corner(scene, axis, drawn, side, generator) for axis in ("y", "x"))
        part = picture[max(0, top) : top + side, max(0, left) : left + side]
        down, right = max(0, -top), max(0, -left)
        canvas[down : down + part.shape[0], right : right + part.shape[1]] = part
    return framed


def _corner(scene: Scene, axis: str, drawn: int, side: int, generator: np.random.Generator) -> int:
    """Where the canvas begins on the drawn picture, in pixels; before it if negative."""
    free = drawn - side
    if free <= 0:
        return int(generator.integers(free, 1))
    first = min(getattr(thing, axis) - thing.radius for thing in scene.objects) * drawn
    last = max(getattr(thing, axis) + thing.radius for thing in scene.objects) * drawn
    low, high = sorted((last - side, first))
    return int(np.clip(np.rint(generator.uniform(low, high)), 0, free))
