r"""Images of scenes, with the exact mask of each object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from captum_mllm.datasets.scenes import BACKGROUND, COLORS, Scene, SceneObject
from captum_mllm.datasets.shapes import EXTENT, signed_distance

#: The size, in pixels, at which the strength of the noise is stated.
_NOISE_SIZE = 224
_LUMINANCE_NOISE = 8.0
_CHANNEL_NOISE = 6.0
_TEXTURE = 8.0
_TEXTURE_CELLS = 4
_BRIGHTNESS = {"dark": (45.0, 80.0), "light": (175.0, 215.0)}
_STRIPES_PER_SIDE = 14.0
_STRIPE_BRIGHTNESS = 0.35


@dataclass(frozen=True)
class RenderedScene:
    r"""An image and its ground truth.

    Args:
        image (numpy.ndarray): The image, (size, size, 3), uint8.
        masks (numpy.ndarray): The visible part of each object, (number of objects, size, size),
            bool: the pixels whose centre lies in the shape and in none painted after it.
    """

    image: npt.NDArray[np.uint8]
    masks: npt.NDArray[np.bool_]

    @property
    def background(self) -> npt.NDArray[np.bool_]:
        r"""The pixels that belong to no object, (size, size), bool."""
        return ~self.masks.any(axis=0)

    def region(self, objects: Sequence[int]) -> npt.NDArray[np.bool_]:
        r"""The pixels that belong to some objects, such as those that a word speaks of.

        Args:
            objects (Sequence[int]): Indices of objects, and
                :data:`~captum_mllm.datasets.scenes.BACKGROUND` for the background.

        Returns:
            numpy.ndarray: (size, size), bool; empty where there are no objects.
        """
        region = np.zeros(self.image.shape[:2], dtype=bool)
        for index in objects:
            region |= self.background if index == BACKGROUND else self.masks[index]
        return region


def _texture(generator: np.random.Generator, size: int) -> npt.NDArray[np.float32]:
    """Smooth brightness variation: bilinear interpolation of a coarse grid of normal values."""
    knots = generator.standard_normal((_TEXTURE_CELLS + 1, _TEXTURE_CELLS + 1), dtype=np.float32)
    position = (np.arange(size, dtype=np.float32) + 0.5) / size * _TEXTURE_CELLS
    cell = np.minimum(position.astype(int), _TEXTURE_CELLS - 1)
    weight = (position - cell)[:, None]
    rows = knots[cell] * (1 - weight) + knots[cell + 1] * weight
    columns: npt.NDArray[np.float32] = rows[:, cell] * (1 - weight.T) + rows[:, cell + 1] * weight.T
    return columns


def _window(center: float, reach: float, size: int) -> slice:
    """The pixels within ``reach`` of ``center`` along one axis, one more on either side."""
    first = int(np.floor((center - reach) * size)) - 1
    last = int(np.ceil((center + reach) * size)) + 1
    return slice(min(max(first, 0), size), min(max(last, 0), size))


def _paint(
    canvas: npt.NDArray[np.float32], mask: npt.NDArray[np.bool_], thing: SceneObject
) -> None:
    """Paint an object onto the canvas and its mask, in place."""
    size = canvas.shape[0]
    reach = EXTENT * thing.radius
    rows, columns = _window(thing.y, reach, size), _window(thing.x, reach, size)
    x, y = thing.own_frame(
        (np.arange(columns.start, columns.stop)[None, :] + 0.5) / size,
        (np.arange(rows.start, rows.stop)[:, None] + 0.5) / size,
    )
    distance = signed_distance(thing.shape, x, y)
    mask[rows, columns] = distance < 0
    # A ramp one pixel wide across the outline: the share of each pixel that the shape covers.
    coverage = np.clip(0.5 - distance * thing.radius * size, 0.0, 1.0)[..., None]
    paint = np.array(COLORS[thing.color]) + np.array(thing.shade)
    if thing.striped:
        across = (x + y) * thing.radius * 2 * np.pi * _STRIPES_PER_SIDE
        dark = np.sin(across + thing.phase) > 0.35
        paint = paint * np.where(dark, _STRIPE_BRIGHTNESS, 1.0)[..., None]
    window = canvas[rows, columns]
    window += coverage * (paint - window)


def render(scene: Scene, size: int = 224) -> RenderedScene:
    r"""Draw a scene.

    The image is a pure function of the scene and the size. Noise is white with the same density
    at every size, so a small rendering looks like a large one scaled down.

    Args:
        scene (Scene): The scene.
        size (int): Width and height of the image, in pixels. Default: 224

    Returns:
        RenderedScene: The image and the objects' masks.

    Raises:
        ValueError: If the size is not positive.

    Examples::

        >>> from captum_mllm.datasets.sampling import sample_scene
        >>> image = render(sample_scene(0, objects=2), size=64)
        >>> image.image.shape, image.masks.shape
        ((64, 64, 3), (2, 64, 64))
    """
    if size < 1:
        raise ValueError(f"The size must be at least 1 pixel, but is {size}.")
    generator = np.random.default_rng(scene.seed)
    canvas = np.empty((size, size, 3), dtype=np.float32)
    canvas[:] = generator.uniform(*_BRIGHTNESS[scene.background]) + generator.uniform(-12, 12, 3)
    canvas += _TEXTURE * _texture(generator, size)[..., None]
    density = size / _NOISE_SIZE
    luminance = generator.standard_normal((size, size, 1), dtype=np.float32)
    canvas += _LUMINANCE_NOISE * density * luminance
    channels = generator.standard_normal((size, size, 3), dtype=np.float32)

    masks = np.zeros((len(scene.objects), size, size), dtype=bool)
    for index, thing in enumerate(scene.objects):
        _paint(canvas, masks[index], thing)
        masks[:index] &= ~masks[index]
    canvas += _CHANNEL_NOISE * density * channels
    return RenderedScene(np.clip(canvas, 0, 255).astype(np.uint8), masks)
