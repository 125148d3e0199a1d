r"""The facts about a tiny Qwen2-VL: pictures of any size, positions in rows and columns."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor, nn

from captum_mllm.demo.training.architecture import (
    WIDTH,
    Architecture,
    cut,
    decoder_config,
    grid_centers,
    pixels,
)
from captum_mllm.demo.training.fast_vision import use_fast_vision
from captum_mllm.demo.training.vocabulary import (
    IMAGE,
    VIDEO,
    VISION_END,
    VISION_START,
    build_tokenizer,
    chat_template,
    token_ids,
)
from captum_mllm.models.processors import image_only

_PATCH = 8


class Qwen2VL(Architecture):
    r"""A view is the number of image tokens on a side; at scale 1 it is 14, of 112 pixels."""

    name = "qwen2-vl"
    model_type = "qwen2_vl"
    native_view = 14
    # Scales 0.5 to 2, and some sizes between them.
    views = MappingProxyType(
        {7: 0.2, 8: 0.05, 10: 0.15, 12: 0.05, 14: 0.25, 17: 0.1, 19: 0.05, 21: 0.1, 28: 0.05}
    )
    scales = MappingProxyType({0.5: 7, 0.75: 10, 1.0: 14, 1.25: 17, 1.5: 21, 2.0: 28})
    # It has to learn more views than the others.
    polish_steps = 2400
    picture_size = 112
    crop_grid = 14
    crop_sizes = (5, 6, 7)

    def build_config(self) -> transformers.Qwen2VLConfig:
        image, video, start, end = token_ids([IMAGE, VIDEO, VISION_START, VISION_END])
        # Half of the head dimension (16) is shared out to time, height and width.
        rope = {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [4, 6, 6]}
        return transformers.Qwen2VLConfig(
            text_config=decoder_config(rope_parameters=rope),
            vision_config={
                "depth": 3,
                "embed_dim": 96,
                "hidden_size": WIDTH,
                "num_heads": 4,
                "mlp_ratio": 3,
                "patch_size": _PATCH,
                "spatial_merge_size": 1,
                "temporal_patch_size": 2,
                "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0},
            },
            image_token_id=image,
            video_token_id=video,
            vision_start_token_id=start,
            vision_end_token_id=end,
            tie_word_embeddings=True,
        )

    def build_processor(self) -> Any:
        image_processor = transformers.Qwen2VLImageProcessorPil(
            size=self.processor_options(self.native_view)["size"],
            patch_size=_PATCH,
            merge_size=1,
        )
        return image_only(transformers.Qwen2VLProcessor)(
            image_processor=image_processor,
            tokenizer=build_tokenizer(),
            chat_template=chat_template(),
        )

    def processor_options(self, view: int) -> dict[str, Any]:
        longest = (view * _PATCH) ** 2
        shortest = longest * 4**2 // self.native_view**2
        return {"size": {"shortest_edge": shortest, "longest_edge": longest}}

    def vision(self, model: Any) -> nn.ModuleList:
        return nn.ModuleList([model.model.visual])

    def projection(self, model: Any) -> nn.Linear:
        layer: nn.Linear = model.model.visual.merger.mlp[2]
        return layer

    def features(self, model: Any, pictures: npt.NDArray[np.uint8], view: int) -> Tensor:
        grids = torch.tensor([[1, view, view]]).expand(len(pictures), -1)
        values = patches(pixels(pictures, view * _PATCH))
        features: Tensor = model.model.visual(values, grid_thw=grids).pooler_output
        return features.view(len(pictures), view**2, -1)

    def crop_features(
        self, model: Any, pictures: npt.NDArray[np.uint8], corners: npt.NDArray[np.int64], size: int
    ) -> Tensor:
        return self.features(model, cut(pictures, corners * _PATCH, size * _PATCH), size)

    def token_centers(self, view: int) -> npt.NDArray[np.float64]:
        return grid_centers(view)

    def image_positions(self, view: int) -> Tensor:
        rows = torch.arange(view).repeat_interleave(view)
        columns = torch.arange(view).repeat(view)
        return torch.stack([torch.zeros_like(rows), rows, columns])

    def token_places(self, view: int) -> None:
        return None

    def prepare(self, model: Any) -> None:
        use_fast_vision(model)


def patches(values: Tensor) -> Tensor:
    r"""Cut pictures into patches, as Qwen2-VL's processor does.

    Args:
        values (Tensor): (B, 3, S, S).

    Returns:
        Tensor: (B * N, 3 * 2 * 8 * 8): each patch twice, once for each of the two moments that the
        vision tower expects.
    """
    rows = values.shape[-1] // _PATCH
    cells = values.reshape(-1, 3, rows, _PATCH, rows, _PATCH).permute(0, 2, 4, 1, 3, 5)
    twice = cells.unsqueeze(4).expand(-1, -1, -1, -1, 2, -1, -1)
    return twice.reshape(len(values) * rows**2, -1)
