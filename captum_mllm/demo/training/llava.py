r"""The facts about a tiny LLaVA-1.5: pictures of one size, a CLIP tower, a Llama decoder."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from captum_mllm.demo.training.architecture import (
    IMAGE_MEAN,
    IMAGE_STD,
    Architecture,
    decoder_config,
    grid_centers,
    pixels,
)
from captum_mllm.demo.training.vocabulary import IMAGE, build_tokenizer, chat_template, token_ids

_PATCH = 8
_GRID = 14
_SIZE = _PATCH * _GRID


class Llava(Architecture):
    r"""There is one view: 14 x 14 image tokens of a square of 112 x 112 pixels.

    As in LLaVA-1.5 the image tokens are the patches' states before the tower's last layer, without
    the class token. The last layer is never used, neither there nor here.
    """

    name = "llava-1.5"
    model_type = "llava"
    native_view = _GRID
    views = MappingProxyType({_GRID: 1.0})
    # Above 1 as windows at a finer scale do, below as a margin does.
    zooms = MappingProxyType(
        {0.5: 0.1, 0.65: 0.1, 0.8: 0.1, 0.9: 0.1, 1.0: 0.4, 1.25: 0.08, 1.5: 0.07, 2.0: 0.05}
    )
    scales = MappingProxyType({1.0: _GRID})
    picture_size = _SIZE
    crop_grid = _GRID
    crop_sizes = (5, 6, 7)

    def build_config(self) -> transformers.LlavaConfig:
        return transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**decoder_config()),
            vision_config=transformers.CLIPVisionConfig(
                hidden_size=96,
                intermediate_size=288,
                num_hidden_layers=4,
                num_attention_heads=4,
                image_size=_SIZE,
                patch_size=_PATCH,
                projection_dim=96,
            ),
            image_token_index=token_ids([IMAGE])[0],
            image_seq_length=_GRID**2,
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            tie_word_embeddings=True,
        )

    def build_processor(self) -> Any:
        return transformers.LlavaProcessor(
            image_processor=transformers.CLIPImageProcessorPil(
                size={"shortest_edge": _SIZE},
                crop_size={"height": _SIZE, "width": _SIZE},
                image_mean=list(IMAGE_MEAN),
                image_std=list(IMAGE_STD),
            ),
            tokenizer=build_tokenizer(),
            patch_size=_PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            chat_template=chat_template(),
        )

    def processor_options(self, view: int) -> dict[str, Any]:
        return {}

    def vision(self, model: Any) -> nn.ModuleList:
        return nn.ModuleList([model.model.vision_tower, model.model.multi_modal_projector])

    def projection(self, model: Any) -> nn.Linear:
        layer: nn.Linear = model.model.multi_modal_projector.linear_2
        return layer

    def features(self, model: Any, pictures: npt.NDArray[np.uint8], view: int) -> Tensor:
        cells = torch.arange(_GRID**2).expand(len(pictures), -1)
        return self._features(model, pictures, cells)

    def crop_features(
        self, model: Any, pictures: npt.NDArray[np.uint8], corners: npt.NDArray[np.int64], size: int
    ) -> Tensor:
        # A crop keeps the positions that its patches have in the picture; the others are left out.
        rows, columns = (torch.from_numpy(corners[:, axis, None]) for axis in (0, 1))
        steps = torch.arange(size)
        cells = (rows + steps).unsqueeze(2) * _GRID + (columns + steps).unsqueeze(1)
        return self._features(model, pictures, cells.flatten(1))

    def _features(self, model: Any, pictures: npt.NDArray[np.uint8], cells: Tensor) -> Tensor:
        """(B, N, D) of the patches of these indices, (B, N); the tower sees no others."""
        tower = model.model.vision_tower
        embeddings = tower.embeddings
        weight = embeddings.patch_embedding.weight.flatten(1)
        squares = F.unfold(pixels(pictures, _SIZE), _PATCH, stride=_PATCH).mT
        chosen = squares.gather(1, cells.unsqueeze(2).expand(-1, -1, squares.shape[2]))
        places = embeddings.position_embedding.weight
        first = (embeddings.class_embedding + places[0]).expand(len(pictures), 1, -1)
        states = torch.cat([first, F.linear(chosen, weight) + places[1:][cells]], dim=1)
        states = tower.pre_layrnorm(states)
        for layer in tower.encoder.layers[:-1]:
            states = layer(states, attention_mask=None)
        features: Tensor = model.model.multi_modal_projector(states[:, 1:])
        return features

    def token_centers(self, view: int) -> npt.NDArray[np.float64]:
        return grid_centers(view)
