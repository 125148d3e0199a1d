r"""The facts about a tiny InternVL: square tiles and a thumbnail, four patches to a token."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor, nn

from captum_mllm.demo.training.architecture import (
    IMAGE_MEAN,
    IMAGE_STD,
    Architecture,
    cut,
    decoder_config,
    grid_centers,
    pixels,
)
from captum_mllm.demo.training.vocabulary import IMAGE, build_tokenizer, chat_template, token_ids
from captum_mllm.models.processors import image_only

_PATCH = 8
_TILE = 96
_TOKENS = _TILE // _PATCH // 2


class InternVL(Architecture):
    r"""A view is the number of tiles on a side, of 6 x 6 image tokens and 96 x 96 pixels each.

    A picture of several tiles is followed by a thumbnail, a tile that shows all of it. The scenes,
    of 224 x 224 pixels, come as 2 x 2 tiles at scale 1.
    """

    name = "internvl"
    model_type = "internvl"
    native_view = 2
    views = MappingProxyType({1: 0.3, 2: 0.5, 3: 0.2})
    scales = MappingProxyType({0.5: 1, 1.0: 2, 1.5: 3})
    picture_size = 2 * _TILE
    crop_grid = 2 * _TOKENS
    crop_sizes = (_TOKENS,)

    def build_config(self) -> transformers.InternVLConfig:
        return transformers.InternVLConfig(
            text_config=transformers.Qwen2Config(**decoder_config()),
            vision_config=transformers.InternVLVisionConfig(
                hidden_size=64,
                intermediate_size=192,
                num_hidden_layers=3,
                num_attention_heads=2,
                attention_bias=True,
                image_size=[_TILE, _TILE],
                patch_size=[_PATCH, _PATCH],
                layer_scale_init_value=1.0,
            ),
            image_token_id=token_ids([IMAGE])[0],
            image_seq_length=_TOKENS**2,
            downsample_ratio=0.5,
            tie_word_embeddings=True,
        )

    def build_processor(self) -> Any:
        return image_only(transformers.InternVLProcessor)(
            image_processor=transformers.GotOcr2ImageProcessorPil(
                size={"height": _TILE, "width": _TILE},
                crop_to_patches=True,
                min_patches=1,
                max_patches=4,
                image_mean=list(IMAGE_MEAN),
                image_std=list(IMAGE_STD),
            ),
            tokenizer=build_tokenizer(),
            image_seq_length=_TOKENS**2,
            chat_template=chat_template(IMAGE),
        )

    def processor_options(self, view: int) -> dict[str, Any]:
        return {"crop_to_patches": True, "min_patches": view**2, "max_patches": view**2}

    def vision(self, model: Any) -> nn.ModuleList:
        return nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector])

    def projection(self, model: Any) -> nn.Linear:
        layer: nn.Linear = model.model.multi_modal_projector.linear_2
        return layer

    def features(self, model: Any, pictures: npt.NDArray[np.uint8], view: int) -> Tensor:
        values = pixels(pictures, view * _TILE)
        tiles = values.reshape(-1, 3, view, _TILE, view, _TILE).permute(0, 2, 4, 1, 3, 5)
        tiles = tiles.flatten(1, 2)
        if view > 1:
            tiles = torch.cat([tiles, pixels(pictures, _TILE).unsqueeze(1)], dim=1)
        features = model.model.get_image_features(tiles.flatten(0, 1)).pooler_output
        return features.reshape(len(pictures), -1, features.shape[-1])

    def crop_features(
        self, model: Any, pictures: npt.NDArray[np.uint8], corners: npt.NDArray[np.int64], size: int
    ) -> Tensor:
        return self.features(model, cut(pictures, corners * 2 * _PATCH, _TILE), 1)

    def token_centers(self, view: int) -> npt.NDArray[np.float64]:
        tile = grid_centers(_TOKENS)
        tiles = [(tile + (row, column)) / view for row in range(view) for column in range(view)]
        return np.concatenate(tiles + [tile] * (view > 1))

    def token_places(self, view: int) -> npt.NDArray[np.float64]:
        """Places within the tiles: the tower knows no more."""
        tiles = view**2 + (view > 1)
        return np.tile(grid_centers(_TOKENS), (tiles, 1))
