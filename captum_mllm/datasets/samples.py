r"""``Sample``, an image with a question, an answer and labelled words.

Also ``Region``, a labelled phrase; ``LabelImage``, the category of each pixel; and ``SampleError``,
what is wrong with a row of a file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from captum_mllm.datasets.chats import Chat
from captum_mllm.datasets.masks import BoolMask, Mask, Size, read_levels

Label = Literal["yes", "no"]


class SampleError(ValueError):
    r"""
    A row that is not a sample.

    Args:
        message (str): What is wrong.
        source (str): The file and the line. Default: not known.
        id (str): The sample's id, as far as it is known. Default: not known.
    """

    def __init__(self, message: str, source: str = "", id: str = "") -> None:
        super().__init__(f"{source}: {message}" if source else message)
        self.message = message
        self.source = source
        self.id = id


@dataclass(frozen=True)
class Region:
    r"""
    A word or phrase, and the part of the image that it speaks of.

    Args:
        text (str): The word or phrase.
        mask (Mask): Read when it is needed.
        start (int, optional): Where the phrase begins in the reference answer, in characters.
            Default: None, where it first occurs in the answer that is explained.
    """

    text: str
    mask: Mask
    start: int | None = None


@dataclass(frozen=True)
class LabelImage:
    r"""
    The category of each pixel, as TAM's evaluation takes it.

    Args:
        read (Callable): From a size (H, W) to the labels, integers (H, W); 0 is the background.
        categories (Mapping[str, int]): The label of each category by its name.
        check (Callable): Raises where the labels do not fit an image of that size.
    """

    read: Callable[[Size], npt.NDArray[np.int32]]
    categories: Mapping[str, int]
    check: Callable[[Size], None]

    @classmethod
    def of_file(cls, path: Path, categories: Mapping[str, int], check: Mask) -> LabelImage:
        r"""Labels that are the grey levels of a file."""
        return cls(lambda size: read_levels(path, size), categories, check.check)


@dataclass(frozen=True, eq=False)
class Sample:
    r"""
    A row of a data set.

    Args:
        id (str): What it is called in results.
        number (int): Its place among the rows of its data set, from 0, bad ones counted.
        source (str): Its file and line, for messages.
        image_file (Path or Callable): The image file, or a function that opens the image.
        question (str): What the model is asked.
        answer (str, optional): A reference answer. Default: None
        references (tuple[str, ...]): All right answers, or captions. Default: ()
        regions (tuple[Region, ...]): Labelled words and phrases. Default: ()
        labels (LabelImage, optional): The category of each pixel. Default: None
        label (str, optional): The right answer of a yes/no question. Default: None
        facts (Mapping[str, object]): What else the row says. Default: nothing
        chat (Chat, optional): What the model is asked, where that is more than the question about
            the image. The image is that of the part without a file; without such a part all images
            are explained. Default: None
    """

    id: str
    number: int
    source: str
    image_file: Path | Callable[[], Image.Image]
    question: str
    answer: str | None = None
    references: tuple[str, ...] = ()
    regions: tuple[Region, ...] = ()
    labels: LabelImage | None = None
    label: Label | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    chat: Chat | None = None

    @cached_property
    def image(self) -> Image.Image:
        r"""
        The image, upright; read when it is first asked for.

        Raises:
            SampleError: If the file is missing or damaged.
        """
        return self.open(self.image_file)

    def open(self, file: Path | Callable[[], Image.Image]) -> Image.Image:
        r"""
        An image of the sample, upright.

        Raises:
            SampleError: If the file is missing or damaged.
        """
        try:
            if not isinstance(file, Path):
                return file()
            with Image.open(file) as image:
                image.load()
                return ImageOps.exif_transpose(image)
        except FileNotFoundError:
            raise self.error(f"there is no image {file}") from None
        # Damaged files raise errors of many types.
        except Exception as error:
            raise self.error(f"the image {file} cannot be read: {error}") from error

    @property
    def size(self) -> Size:
        """Height and width of the image, in pixels."""
        return self.image.height, self.image.width

    @cached_property
    def masks(self) -> BoolMask:
        r"""
        The mask of each region, (number of regions, H, W), bool.

        Raises:
            SampleError: If one of them cannot be read, has another size than the image, or is
                empty.
        """
        masks = np.zeros((len(self.regions), *self.size), dtype=bool)
        for index, region in enumerate(self.regions):
            try:
                masks[index] = region.mask.read(self.size)
            # Damaged files raise errors of many types, here and below.
            except Exception as error:
                raise self._mask_error(region, error) from error
            if not masks[index].any():
                raise self.error(f"the mask of {region.text!r} is empty")
        return masks

    @cached_property
    def label_image(self) -> npt.NDArray[np.int32]:
        r"""
        The label of each pixel, (H, W).

        Raises:
            SampleError: If it cannot be read, or has another size than the image.
            ValueError: If the sample has no labels.
        """
        if self.labels is None:
            raise ValueError(f"{self.source}: the sample has no label image")
        try:
            return self.labels.read(self.size)
        except Exception as error:
            raise self.error(f"the label image cannot be read: {error}") from error

    def check(self) -> None:
        r"""
        Open the image, and look whether masks and labels fit it, without decoding them.

        Raises:
            SampleError: If something is wrong.
        """
        size = self.size
        for region in self.regions:
            try:
                region.mask.check(size)
            except Exception as error:
                raise self._mask_error(region, error) from error
        if self.labels is not None:
            try:
                self.labels.check(size)
            except Exception as error:
                raise self.error(f"the label image cannot be read: {error}") from error

    def error(self, message: str) -> SampleError:
        r"""An error of this sample, with its line."""
        return SampleError(message, self.source, self.id)

    def _mask_error(self, region: Region, error: Exception) -> SampleError:
        return self.error(f"the mask of {region.text!r} cannot be used: {error}")
