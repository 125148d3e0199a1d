r"""``ARCHITECTURES``: the facts about the tiny Qwen2-VL, LLaVA-1.5 and InternVL, by name."""

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
    WIDTH,
    Architecture,
    cut,
    decoder_config,
    grid_centers,
    pixels,
)
from captum_mllm.demo.training.attention import use_fast_vision
from captum_mllm.demo.training.vocabulary import (
    IMAGE,
    VIDEO,
    VISION_END,
    VISION_START,
    build_tokenizer,
    chat_template,
    token_ids,
)
from captum_mllm.models.loading import image_only

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
    image_size = 112
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

    def features(self, model: Any, images: npt.NDArray[np.uint8], view: int) -> Tensor:
        grids = torch.tensor([[1, view, view]]).expand(len(images), -1)
        values = patches(pixels(images, view * _PATCH))
        features: Tensor = model.model.visual(values, grid_thw=grids).pooler_output
        return features.view(len(images), view**2, -1)

    def crop_features(
        self, model: Any, images: npt.NDArray[np.uint8], corners: npt.NDArray[np.int64], size: int
    ) -> Tensor:
        return self.features(model, cut(images, corners * _PATCH, size * _PATCH), size)

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
    r"""Cut images into patches, as Qwen2-VL's processor does.

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
    image_size = _SIZE
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

    def features(self, model: Any, images: npt.NDArray[np.uint8], view: int) -> Tensor:
        cells = torch.arange(_GRID**2).expand(len(images), -1)
        return self._features(model, images, cells)

    def crop_features(
        self, model: Any, images: npt.NDArray[np.uint8], corners: npt.NDArray[np.int64], size: int
    ) -> Tensor:
        # A crop keeps the positions that its patches have in the image; the others are left out.
        rows, columns = (torch.from_numpy(corners[:, axis, None]) for axis in (0, 1))
        steps = torch.arange(size)
        cells = (rows + steps).unsqueeze(2) * _GRID + (columns + steps).unsqueeze(1)
        return self._features(model, images, cells.flatten(1))

    def _features(self, model: Any, images: npt.NDArray[np.uint8], cells: Tensor) -> Tensor:
        """(B, N, D) of the patches of these indices, (B, N); the tower sees no others."""
        tower = model.model.vision_tower
        embeddings = tower.embeddings
        weight = embeddings.patch_embedding.weight.flatten(1)
        squares = F.unfold(pixels(images, _SIZE), _PATCH, stride=_PATCH).mT
        chosen = squares.gather(1, cells.unsqueeze(2).expand(-1, -1, squares.shape[2]))
        places = embeddings.position_embedding.weight
        first = (embeddings.class_embedding + places[0]).expand(len(images), 1, -1)
        states = torch.cat([first, F.linear(chosen, weight) + places[1:][cells]], dim=1)
        states = tower.pre_layrnorm(states)
        for layer in tower.encoder.layers[:-1]:
            states = layer(states, attention_mask=None)
        features: Tensor = model.model.multi_modal_projector(states[:, 1:])
        return features

    def token_centers(self, view: int) -> npt.NDArray[np.float64]:
        return grid_centers(view)


_TILE = 96
_TOKENS = _TILE // _PATCH // 2


class InternVL(Architecture):
    r"""A view is the number of tiles on a side, of 6 x 6 image tokens and 96 x 96 pixels each.

    An image of several tiles is followed by a thumbnail, a tile that shows all of it. The scenes,
    of 224 x 224 pixels, come as 2 x 2 tiles at scale 1.
    """

    name = "internvl"
    model_type = "internvl"
    native_view = 2
    views = MappingProxyType({1: 0.3, 2: 0.5, 3: 0.2})
    scales = MappingProxyType({0.5: 1, 1.0: 2, 1.5: 3})
    image_size = 2 * _TILE
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

    def features(self, model: Any, images: npt.NDArray[np.uint8], view: int) -> Tensor:
        values = pixels(images, view * _TILE)
        tiles = values.reshape(-1, 3, view, _TILE, view, _TILE).permute(0, 2, 4, 1, 3, 5)
        tiles = tiles.flatten(1, 2)
        if view > 1:
            tiles = torch.cat([tiles, pixels(images, _TILE).unsqueeze(1)], dim=1)
        features = model.model.get_image_features(tiles.flatten(0, 1)).pooler_output
        return features.reshape(len(images), -1, features.shape[-1])

    def crop_features(
        self, model: Any, images: npt.NDArray[np.uint8], corners: npt.NDArray[np.int64], size: int
    ) -> Tensor:
        return self.features(model, cut(images, corners * 2 * _PATCH, _TILE), 1)

    def token_centers(self, view: int) -> npt.NDArray[np.float64]:
        tile = grid_centers(_TOKENS)
        tiles = [(tile + (row, column)) / view for row in range(view) for column in range(view)]
        return np.concatenate(tiles + [tile] * (view > 1))

    def token_places(self, view: int) -> npt.NDArray[np.float64]:
        """Places within the tiles: the tower knows no more."""
        tiles = view**2 + (view > 1)
        return np.tile(grid_centers(_TOKENS), (tiles, 1))


#: One row of facts for each, by name.
ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture for architecture in (Qwen2VL(), Llava(), InternVL())
}
