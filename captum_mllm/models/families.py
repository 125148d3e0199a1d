"""The table of model families, a row of facts for each: Family, register_family, family_of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from captum_mllm.models.cross_tiles import CrossTiles
from captum_mllm.models.frame_groups import ShrunkSquare, VideoGrid, VideoSquare
from captum_mllm.models.geometry import Geometry
from captum_mllm.models.grids import NativeGrid, PaddedGrid, PooledGrid, RowGrid
from captum_mllm.models.newline_grid import NewlineGrid
from captum_mllm.models.query import Clip
from captum_mllm.models.slices import Slices, ThumbnailTiles
from captum_mllm.models.squares import FixedSquare, PaddedSquare
from captum_mllm.models.tiles import PaddedTiles, SplitTiles, Tiles


@dataclass(frozen=True)
class Family:
    r"""The facts of a family of multimodal models.

    Everything else is read from the model's configuration and its processor.

    Args:
        model_type (str): the name in the model's configuration.
        geometry (type[Geometry]): how its vision encoder turns an image into tokens.
        options (Mapping[str, Any]): facts for the geometry, its keyword arguments. Default: {}
        vision_type (str, optional): the ``model_type`` of the vision tower that these facts hold
            for, where models of one name have several. Default: None, any.
        merge (str, optional): where the configuration tells how many patches along a side become
            one image token, ``"vision_config.spatial_merge_size"`` for example. A number below 1
            is the inverse. Default: None, one patch is one token.
        tower (bool): whether the layers of the vision tower are known to hold their patches as the
            image tokens lie. Default: False, methods on these layers are refused.
        blocks (bool): whether the tower lists its patches by the blocks that become one token.
            Default: False, in raster order.
        answer_fills (Mapping[str, int]): values, for the tokens of an answer, of inputs that have
            one for each token. Default: {}, those of :class:`Geometry`.
        prefix (bool): whether all tokens of a prompt see each other, so that no token of it is
            predicted from what comes before it. Default: False
        capped (bool): whether the model applies its language model's ``final_logit_softcapping``.
            Default: False
        video (Callable, optional): makes the geometry of its tokens for videos, of the config,
            the processor and the :class:`Clip`. Default: None, each frame is shown as an image.
        video_options (Mapping[str, Any]): facts for it. Default: {}
    """

    model_type: str
    geometry: type[Geometry]
    options: Mapping[str, Any] = field(default_factory=dict)
    vision_type: str | None = None
    merge: str | None = None
    tower: bool = False
    blocks: bool = False
    answer_fills: Mapping[str, int] = field(default_factory=dict)
    prefix: bool = False
    capped: bool = False
    video: Callable[..., Geometry] | None = None
    video_options: Mapping[str, Any] = field(default_factory=dict)

    def make_geometry(self, config: Any, processor: Any) -> Geometry:
        r"""The geometry of a model.

        Raises:
            ValueError: for options of the processor under which its layout would be wrong.
        """
        return self._verified(self.geometry(config, processor, **self.options))

    def make_video_geometry(self, config: Any, processor: Any, clip: Clip) -> Geometry:
        r"""The geometry of a video.

        Raises:
            ValueError: as :meth:`make_geometry`, for options of the video processor.
        """
        assert self.video is not None
        return self._verified(self.video(config, processor, clip=clip, **self.video_options))

    def _verified(self, geometry: Geometry) -> Geometry:
        geometry.verify_options()
        geometry.answer_fills = {**geometry.answer_fills, **self.answer_fills}
        return geometry

    def merge_size(self, config: Any) -> int:
        r"""How many patches along a side become one image token."""
        if self.merge is None:
            return 1
        value = config
        for name in self.merge.split("."):
            value = getattr(value, name)
        return round(value if value >= 1 else 1 / value)


_MERGED = "vision_config.spatial_merge_size"
_NATIVE: dict[str, Any] = {"merge": _MERGED, "blocks": True, "video": VideoGrid}
# Limits on pixels that all frames count for.
_COUNTED = {"frames_count": True}
_QWEN3: dict[str, Any] = {**_NATIVE, "video_options": _COUNTED}
_GLM: dict[str, Any] = {**_QWEN3, "options": _COUNTED}
_FRAMES = {"pixels": "pixel_values"}

FAMILIES: dict[tuple[str, str | None], Family] = {}


def register_family(family: Family) -> None:
    r"""Make a family of your own known, or replace the facts on a known one.

    Args:
        family (Family): its row of facts.

    Examples::
        >>> from captum_mllm.models.families import FAMILIES, Family, register_family
        >>> from captum_mllm.models.grids import NativeGrid
        >>> register_family(Family("my_vl", NativeGrid))
        >>> FAMILIES.pop(("my_vl", None)).geometry.__name__
        'NativeGrid'
    """
    FAMILIES[family.model_type, family.vision_type] = family


for _family in (
    Family("qwen2_vl", NativeGrid, tower=True, **_NATIVE),
    Family("qwen2_5_vl", NativeGrid, tower=True, **_NATIVE),
    Family("qwen3_vl", NativeGrid, tower=True, **_QWEN3),
    Family("qwen3_vl_moe", NativeGrid, **_QWEN3),
    Family("qwen3_5", NativeGrid, **_QWEN3),
    Family("qwen3_5_moe", NativeGrid, **_QWEN3),
    Family("glm4v", NativeGrid, **_GLM),
    Family("glm4v_moe", NativeGrid, **_GLM),
    Family("glm46v", NativeGrid, **_GLM),
    Family("glm_ocr", NativeGrid, **_GLM),
    Family("paddleocr_vl", NativeGrid, {"blocks": False}, merge=_MERGED),
    Family("exaone4_5", NativeGrid, **_NATIVE),
    Family("hyperclovax_vision_v2", NativeGrid, **_NATIVE),
    Family("kimi_k25", PaddedGrid),
    Family("llava", RowGrid, vision_type="pixtral"),
    Family("mistral3", RowGrid, merge="spatial_merge_size"),
    Family("lighton_ocr", RowGrid, merge="spatial_merge_size"),
    Family("llava_next", NewlineGrid),
    Family("llava_next_video", NewlineGrid, video=VideoSquare),
    Family("llava_onevision", NewlineGrid, video=VideoSquare),
    Family("gemma4", PooledGrid, capped=True),
    Family("llava", FixedSquare, vision_type="clip_vision_model", tower=True),
    Family("llava", FixedSquare, vision_type="siglip_vision_model"),
    Family("vipllava", FixedSquare),
    Family("gemma3", FixedSquare),
    Family("paligemma", FixedSquare, answer_fills={"token_type_ids": 1}, prefix=True, capped=True),
    Family("deepseek_vl", PaddedSquare),
    Family("janus", PaddedSquare),
    Family(
        "internvl",
        Tiles,
        merge="downsample_ratio",
        tower=True,
        video=VideoSquare,
        video_options={**_FRAMES, "stacked": False},
    ),
    Family("got_ocr2", Tiles),
    Family("aya_vision", Tiles, merge="downsample_factor"),
    Family("cohere2_vision", Tiles, {"exact": False}, merge="downsample_factor"),
    Family("ovis2", Tiles, {"exact": False, "whole_first": True}),
    Family("idefics3", SplitTiles, merge="scale_factor"),
    Family("smolvlm", SplitTiles, merge="scale_factor", video=ShrunkSquare, video_options=_FRAMES),
    Family("llama4", PaddedTiles, {"exact": False}),
    Family("minicpmv4_6", Slices),
    Family("lfm2_vl", ThumbnailTiles),
    Family("mllama", CrossTiles, {"exact": False}),
):
    register_family(_family)


def softcap(config: Any) -> float | None:
    r"""The value that a model's logits are capped at; None where they are not."""
    family = find_family(config)
    if family is None or not family.capped:
        return None
    return getattr(config.get_text_config(), "final_logit_softcapping", None)


def placeholder_ids(config: Any) -> list[int]:
    r"""What stands for images and videos in a model's vocabulary."""
    names = ("image_token_id", "video_token_id")
    found = (getattr(config, name, None) for name in names)
    return [token for token in found if token is not None]


def family_of(config: Any) -> Family:
    r"""The family of a model's configuration.

    Raises:
        ValueError: for a family that is not in the table, and for a model without images.
    """
    model_type, vision = config.model_type, getattr(config, "vision_config", None)
    known = ", ".join(dict.fromkeys(name for name, _ in FAMILIES))
    if vision is None:
        raise ValueError(
            f"{model_type!r} is a model of text alone, expected one that takes images: {known}"
        )
    family = find_family(config)
    if family is not None:
        return family
    vision_type = getattr(vision, "model_type", None)
    raise ValueError(
        f"the family {model_type!r} is not known, expected one of {known}; its vision tower is a "
        f"{vision_type!r}. Try MLLM(model, processor, geometry='probe'), which finds where its "
        "image tokens lie, or add a row of facts with "
        "captum_mllm.models.register_family(Family(model_type, geometry))"
    )


def find_family(config: Any) -> Family | None:
    r"""The family of a model's configuration; None if it is not in the table."""
    vision_type = getattr(getattr(config, "vision_config", None), "model_type", None)
    keys = ((config.model_type, vision_type), (config.model_type, None))
    return next((FAMILIES[key] for key in keys if key in FAMILIES), None)
