"""The base class of geometries, which say where the tokens of an image lie."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PretrainedConfig

from captum_mllm.models.layout import Box, Layout, Size

# By how much a window may be stretched before another one is needed.
_STRETCH = 1.05
_SIZE_NAMES = ("height", "width", "shortest_edge", "longest_edge", "max_height", "max_width")


# Towers that add an embedding for each of as many places as they were made for.
_FIXED_TOWERS = ("clip_vision_model", "siglip_vision_model", "ovis2_vision", "got_ocr2_vision")


class Geometry(ABC):
    r"""Where the tokens of an image lie, and what another scale of it means.

    The scale of an image is its size relative to its native size, the size at which the user gave
    it: an image twice as high and wide as it was shall become about four times the tokens.

    Args:
        config (PretrainedConfig): the model's configuration.
        processor (Any): the model's processor.
    """

    # Values of the image processor's options without which tokens lie in another way.
    required: ClassVar[dict[str, tuple[Any, ...]]] = {"do_resize": (True,)}
    # Whether the decoder looks at images by cross-attention, so that no token stands for them.
    crosses: ClassVar[bool] = False
    # What it prepares, and the name that the model takes the pixels by.
    kind: ClassVar[str] = "image"
    pixels: str = "pixel_values"

    def __init__(self, config: PretrainedConfig, processor: Any) -> None:
        self.config: Any = config
        self.vision: Any = config.vision_config
        self.processor = processor
        # What inputs that have a value for each token have for those of an answer.
        self.answer_fills = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}

    @property
    def media_processor(self) -> Any:
        """What prepares the images, or the video."""
        return getattr(self.processor, f"{self.kind}_processor")

    def option(self, name: str, default: Any = None) -> Any:
        r"""An option of the image processor, with the value that the processor calls it with.

        Arguments that the tokenizer was made with go before the processor's own, and these before
        the image processor's.
        """
        tokenizer = getattr(self.processor, "tokenizer", None)
        given = getattr(tokenizer, "init_kwargs", {})
        if name in given and name in self.accepted:
            return getattr(tokenizer, name, given[name])
        own = getattr(self.processor, f"{self.kind}s_kwargs", {})
        if name in own:
            return own[name]
        value = getattr(self.media_processor, name, None)
        return default if value is None else value

    @property
    def accepted(self) -> frozenset[str]:
        """The names of the options that the image processor takes."""
        taken = getattr(self.media_processor, "valid_kwargs", None)
        return frozenset(getattr(taken, "__annotations__", ()))

    @property
    def size(self) -> dict[str, int]:
        """The option ``size``, by the names of its parts."""
        return self._named_size("size")

    def check_options(self) -> None:
        r"""Refuse options of the image processor under which the layout would be wrong.

        Raises:
            ValueError: which names the option, its value, and the values that are possible.
        """
        for name, allowed in self.required.items():
            value = self.option(name)
            if value not in allowed:
                expected = " or ".join(f"{name}={choice}" for choice in allowed)
                raise ValueError(
                    f"the {self.kind} processor has {name}={value!r}, for which it is not known "
                    f"where image tokens lie; expected {expected}. Set it on "
                    f"`processor.{self.kind}_processor`"
                )
        given = getattr(self.processor, f"{self.kind}s_kwargs", {})
        unknown = sorted(set(given) - self.accepted) if self.accepted else []
        if unknown:
            raise ValueError(
                f"`processor.{self.kind}s_kwargs` has {', '.join(unknown)}, which a "
                f"{type(self.media_processor).__name__} does not take; expected some of "
                f"{', '.join(sorted(self.accepted))}"
            )

    def check_side(self, made: int) -> None:
        r"""Refuse squares of another size than the tower's, which may fail late or not at all.

        Args:
            made (int): pixels along a side of what the processor makes.

        Raises:
            ValueError: if the tower takes one size, and it is another.
        """
        own = getattr(self.vision, "image_size", None)
        if self.vision.model_type in _FIXED_TOWERS and isinstance(own, int) and made != own:
            raise ValueError(
                f"the {self.kind} processor makes images of {made} x {made} pixels "
                f"(size={self.size}, crop_size={self.option('crop_size')}), the model sees "
                f"{own} x {own}"
            )

    def verify_options(self) -> None:
        r"""Call :meth:`check_options`, and name the options where these cannot even be read.

        Raises:
            ValueError: for options that do not fit the geometry.
        """
        try:
            self.check_options()
        except ValueError:
            raise
        except Exception as error:
            # Options may be of any type, and lack any part.
            raise ValueError(
                f"the options of the {type(self.media_processor).__name__} do not fit "
                f"{type(self).__name__} ({type(error).__name__}: {error}). These are not the "
                f"defaults: {self.changed_options}"
            ) from error

    @property
    def changed_options(self) -> dict[str, Any]:
        """The image processor's options that are not the defaults of its class."""
        processor = self.media_processor
        named = ("size", "crop_size", "do_resize", "do_pad", "do_center_crop")
        options = {name: self.option(name) for name in sorted({*self.accepted, *named})}
        return {
            name: value
            for name, value in options.items()
            if value != getattr(type(processor), name, None) and not callable(value)
        }

    @property
    def options_key(self) -> str:
        """Equal for equal options, also of the processor and the tokenizer, which go before."""
        given = getattr(getattr(self.processor, "tokenizer", None), "init_kwargs", {})
        before = [given.get(name) for name in sorted(self.accepted)]
        own = getattr(self.processor, f"{self.kind}s_kwargs", {})
        return f"{self.media_processor.to_json_string()}{own}{before}"

    def frozen(self) -> str | None:
        """The options that give images of every size the same number of tokens; None if none do,
        or if the encoder has no other number."""
        return None

    def windows(self, size: Size, native: Size) -> list[Box]:
        """The boxes of the image that the model sees in a pass each; by default all of it."""
        return [(0, 0, size[1], size[0])]

    def processor_options(self, size: Size, native: Size) -> dict[str, Any]:
        """What to pass to the image processor at this scale; nothing at the native one."""
        return {}

    def check_scale(self, size: Size, native: Size, layout: Layout) -> None:  # noqa: B027
        r"""Compare what came back from the processor with what was asked of it.

        Args:
            size (tuple[int, int]): height and width of the image at this scale.
            native (tuple[int, int]): height and width at which the user gave it.
            layout (Layout): what the processor made of it.

        Raises:
            ValueError: if the scale is not the one that was asked for.
        """

    @abstractmethod
    def layout(self, size: Size, inputs: dict[str, Any], index: int, n_tokens: int) -> Layout:
        """The layout of the image ``index`` of the processor's output.

        Args:
            size (tuple[int, int]): height and width of the image.
            inputs (dict[str, Any]): what the image processor returned.
            index (int): which of the images in ``inputs``.
            n_tokens (int): how many image tokens the image has.
        """

    def drawn(self, layout: Layout, n_tokens: int) -> Tensor:
        """Indices of the image tokens that lie on the image, (layout.n_tokens,); by default all."""
        return torch.arange(n_tokens)

    def positions(self, placeholders: Tensor, layout: Layout, index: int) -> Tensor:
        r"""Where the states of an image's tokens are among those that the decoder looks at.

        Args:
            placeholders (Tensor): positions of the image's placeholders in the prompt, (N,).
            layout (Layout): the image's layout.
            index (int): which image of the prompt.
        """
        return placeholders[self.drawn(layout, len(placeholders))]

    @abstractmethod
    def pixel_values(self, images: Tensor, layout: Layout) -> Tensor:
        """What the processor makes of (B, 3, H, W) images in [0, 1], or of (B, 3 F, H, W) groups of
        frames, differentiable."""

    def join(self, parts: list[Tensor], rows: int) -> Tensor:
        """Pixels of several images of ``rows`` prompts, from those of each image over all rows."""
        return torch.cat([part.unflatten(0, (rows, -1)) for part in parts], dim=1).flatten(0, 1)

    def fill(self, values: Tensor, shape: torch.Size) -> Tensor:
        """Pixels with the padding behind them that the processor adds, by default none."""
        return values

    def _named_size(self, name: str) -> dict[str, int]:
        size = self.option(name)
        if isinstance(size, int):
            square = self.option("default_to_square", True)
            return {"height": size, "width": size} if square else {"shortest_edge": size}
        read: Any = size.get if isinstance(size, dict) else lambda part: getattr(size, part, None)
        named = {part: read(part) for part in _SIZE_NAMES}
        return {part: length for part, length in named.items() if length is not None}

    def _refuse_scale(self, asked: str, came: str) -> None:
        raise ValueError(
            f"at this scale the {self.kind} processor makes {came}, expected {asked}. Do options "
            f"hold it fixed? It has size={self.size}; remove what does, or explain at scale 1 alone"
        )


def spread_windows(size: Size, native: Size, seen: Box) -> list[Box]:
    r"""Windows through which an encoder of fixed resolution sees an enlarged image.

    Args:
        size (tuple[int, int]): height and width of the enlarged image.
        native (tuple[int, int]): its native height and width.
        seen (tuple[float, float, float, float]): the box of the native image that the model sees.

    Returns:
        list: boxes of one size, each about as large as ``seen``, that cover the image; up to the
        native size one box of the whole image.
    """
    height, width = size
    if height * width <= native[0] * native[1]:
        return [(0, 0, width, height)]
    left, top, right, bottom = seen
    down, across = min(bottom - top, height), min(right - left, width)
    rows, columns = _count(height, down), _count(width, across)
    stretch = max(height / (rows * down), width / (columns * across), 1)
    down, across = min(round(down * stretch), height), min(round(across * stretch), width)
    return [
        (left, top, left + across, top + down)
        for top in _spread(height, down, rows)
        for left in _spread(width, across, columns)
    ]


def _count(length: int, window: float) -> int:
    """As few windows as cover the length, if they may be stretched by a few percent."""
    return max(math.ceil(length / (window * _STRETCH)), 1)


def _spread(length: int, window: int, count: int) -> list[int]:
    """Starts of evenly spread windows."""
    if count == 1:
        return [(length - window) // 2]
    return [round(index * (length - window) / (count - 1)) for index in range(count)]
