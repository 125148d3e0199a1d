r"""What the training of a demo model has to know about its architecture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_mllm.demo.training.vocabulary import END, PAD, START, VOCABULARY, token_ids

WIDTH = 128

#: The longest answer, in tokens.
MAX_NEW_TOKENS = 48

#: Mean and standard deviation of the pixels, red, green and blue, that processors subtract and
#: divide by.
IMAGE_MEAN = (0.48145466, 0.4578275, 0.40821073)
IMAGE_STD = (0.26862954, 0.26130258, 0.27577711)


class Architecture(ABC):
    r"""One row of facts about a family of multimodal models, and what follows from them.

    A *view* is a number that says how finely the model sees an image: image tokens on a side, or
    tiles on a side.
    """

    #: The name that the user types.
    name: str
    #: ``model_type`` of its configuration.
    model_type: str
    #: The view that the processor chooses for the scenes, at scale 1.
    native_view: int
    #: The odds of the views in training.
    views: Mapping[int, float]
    #: The odds of the zooms of the last stages: side of the drawn image over that of its canvas.
    zooms: Mapping[float, float] = MappingProxyType({1.0: 1.0})
    #: Steps of the last stage.
    polish_steps: int = 400
    #: The scales at which it is measured, and the view of each.
    scales: Mapping[float, int]
    #: Side of the images rendered for training, in pixels.
    image_size: int
    #: Image tokens on a side of an image as the crops of the vision stages are counted.
    crop_grid: int
    #: Image tokens on a side of these crops.
    crop_sizes: tuple[int, ...]

    @abstractmethod
    def build_config(self) -> Any:
        r"""The configuration: 3 decoder layers of width 128 and a vision tower."""

    @abstractmethod
    def build_processor(self) -> Any:
        r"""The processor, for images and text."""

    @abstractmethod
    def vision(self, model: Any) -> nn.ModuleList:
        r"""The vision tower and the projector of a model."""

    @abstractmethod
    def projection(self, model: Any) -> nn.Linear:
        r"""The last linear map from the vision tower to the language model."""

    @abstractmethod
    def processor_options(self, view: int) -> dict[str, Any]:
        r"""What to pass to the image processor so that it takes a view."""

    @abstractmethod
    def features(self, model: Any, images: npt.NDArray[np.uint8], view: int) -> Tensor:
        r"""What the vision tower says about images of one size.

        Args:
            model (transformers.PreTrainedModel): The model.
            images (numpy.ndarray): (B, S, S, 3), uint8.
            view (int): How finely to see them.

        Returns:
            Tensor: (B, N, D), one row for each image token.
        """

    @abstractmethod
    def crop_features(
        self, model: Any, images: npt.NDArray[np.uint8], corners: npt.NDArray[np.int64], size: int
    ) -> Tensor:
        r"""What the vision tower says about square crops.

        Args:
            model (transformers.PreTrainedModel): The model.
            images (numpy.ndarray): (B, S, S, 3), uint8, of :attr:`image_size`.
            corners (numpy.ndarray): (B, 2) rows and columns of the crops' upper left image tokens,
                on the grid of :attr:`crop_grid` on a side.
            size (int): Image tokens on a side of the crops.

        Returns:
            Tensor: (B, size * size, D).
        """

    @abstractmethod
    def token_centers(self, view: int) -> npt.NDArray[np.float64]:
        r"""(N, 2) centres of the image tokens, (y, x) as fractions of the image's side."""

    def draw_view(self, generator: np.random.Generator, all_views: bool = True) -> int:
        r"""A view by its odds; only up to the native one unless ``all_views``."""
        views = [view for view in self.views if all_views or view <= self.native_view]
        odds = np.array([self.views[view] for view in views])
        return int(generator.choice(views, p=odds / odds.sum()))

    def image_positions(self, view: int) -> Tensor:
        r"""Positions of the image tokens, the first of them at 0: (N,), or (3, N) for M-RoPE."""
        return torch.arange(len(self.token_centers(view)))

    def token_places(self, view: int) -> npt.NDArray[np.float64] | None:
        r"""Where the vision tower sees its tokens: (N, 2) coordinates (y, x) in 0 to 1.

        None if the decoder's position encoding tells it the row and the column.
        """
        return self.token_centers(view)

    def prepare(self, model: Any) -> None:  # noqa: B027
        r"""Make a model faster for training, in place, without changing what it computes."""

    def build_model(self, seed: int = 0) -> Any:
        r"""An untrained model.

        Args:
            seed (int): Seeds the initial weights. Default: 0

        Returns:
            transformers.PreTrainedModel: The model, in float32 and evaluation mode.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = transformers.AutoModelForImageTextToText.from_config(self.build_config())
        start, end, pad = token_ids([START, END, PAD])
        model.generation_config = transformers.GenerationConfig(
            bos_token_id=start,
            eos_token_id=end,
            pad_token_id=pad,
            do_sample=False,
            max_new_tokens=MAX_NEW_TOKENS,
        )
        return model.eval()


def decoder_config(**changes: Any) -> dict[str, Any]:
    r"""The configuration of the language model: 3 layers of width 128.

    Args:
        **changes (Any): What is different in an architecture.

    Returns:
        dict[str, Any]: Arguments of a configuration of transformers.
    """
    start, end, pad = token_ids([START, END, PAD])
    return {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "intermediate_size": 352,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": pad,
        **changes,
    }


def pixels(images: npt.NDArray[np.uint8], size: int) -> Tensor:
    r"""Resize and normalise images, as the processors do.

    Args:
        images (numpy.ndarray): (B, S, S, 3), uint8.
        size (int): The side to resize to.

    Returns:
        Tensor: (B, 3, size, size), float32.
    """
    values = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    if size != values.shape[-1]:
        values = F.interpolate(values, (size, size), mode="bicubic", antialias=True).clamp(0, 255)
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (IMAGE_MEAN, IMAGE_STD))
    return (values / 255 - mean) / std


def cut(
    images: npt.NDArray[np.uint8], corners: npt.NDArray[np.int64], size: int
) -> npt.NDArray[np.uint8]:
    r"""Cut a square out of each image.

    Args:
        images (numpy.ndarray): (B, S, S, 3), uint8.
        corners (numpy.ndarray): (B, 2) rows and columns of the upper left corners, in pixels.
        size (int): Side of the squares, in pixels.

    Returns:
        numpy.ndarray: (B, size, size, 3), uint8.
    """
    return np.stack(
        [image[top : top + size, left : left + size] for image, (top, left) in zip(images, corners)]
    )


def grid_centers(rows: int) -> npt.NDArray[np.float64]:
    r"""Centres of the cells of a square grid, row by row.

    Args:
        rows (int): Cells on a side.

    Returns:
        numpy.ndarray: (rows * rows, 2), (y, x) in 0 to 1.

    Examples::

        >>> grid_centers(2).tolist()
        [[0.25, 0.25], [0.25, 0.75], [0.75, 0.25], [0.75, 0.75]]
    """
    steps = (np.arange(rows) + 0.5) / rows
    y, x = np.meshgrid(steps, steps, indexing="ij")
    return np.stack([y.ravel(), x.ravel()], axis=1)
