"""``LanguageModel`` adapts a multimodal LLM to Captum's attribution of language models."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from captum_mllm.models.backbone import Backbone
from captum_mllm.models.cross_tiles import CrossTiles
from captum_mllm.models.encoding import CROSS_MASK
from captum_mllm.models.images import ImageLike, read_image
from captum_mllm.models.pixels import to_pil

# What belongs to the tokens of a text; all else that a processor gives belongs to its images.
_TEXT = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids", CROSS_MASK)
# What does not grow along with the tokens, and is computed anew.
_STALE = ("mm_token_type_ids", "position_ids", "cache_position", CROSS_MASK)


class LanguageModel(nn.Module):
    r"""
    A multimodal LLM for :class:`~captum.attr.LLMAttribution` and
    :class:`~captum.attr.LLMGradientAttribution`.

    These append the tokens of the answer to ``input_ids`` themselves and leave the other inputs as
    the processor gave them, or drop them. So the attention mask, the types and the positions of
    the tokens are computed from the tokens here; images are shown with the first tokens, and a
    cache gets only those that it does not hold yet. Every combination of ``use_cached_outputs``
    and ``forward_in_tokens`` then gives the same values.

    ``ImageMaskInput`` brings the image along. ``TextTokenInput`` and ``TextTemplateInput`` bring
    text alone: give the image to :meth:`~captum_mllm.MLLM.as_language_model`, and write the
    prompt with :meth:`expand`.

    Args:
        backbone (Backbone): the model. It is shared, and not changed.
        images (Sequence[PIL.Image.Image, numpy.ndarray or Tensor]): the images that the
            placeholders of a text without pixels stand for; see :class:`ImageTextInput`.
            Default: (), none.

    Examples::
        >>> from captum.attr import FeatureAblation, LLMAttribution, TextTemplateInput
        >>> from PIL import Image
        >>> from captum_mllm import MLLM
        >>> from captum_mllm.demo import demo_image
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> language_model = mllm.as_language_model(Image.open(demo_image()))
        >>> inp = TextTemplateInput(
        ...     language_model.expand(mllm.processor.image_token + "{} the {}."),
        ...     values=["Describe", "image"],
        ... )
        >>> explainer = LLMAttribution(FeatureAblation(language_model), mllm.tokenizer)
        >>> explainer.attribute(inp, target="a red circle").token_attr.shape
        torch.Size([3, 2])
    """

    def __init__(self, backbone: Backbone, images: Sequence[ImageLike] = ()) -> None:
        super().__init__()
        self.backbone = backbone
        self.model = backbone.model
        self.training = self.model.training
        forward = inspect.signature(self.model.forward).parameters
        self._takes_types = "mm_token_type_ids" in forward
        opened = [to_pil(read_image(image)) for image in images]
        # What the processor writes instead of each image's placeholder.
        self._written = [self._tokens_of(image) for image in opened]
        self._n_tokens = sum(tokens.count(backbone.image_token_id) for tokens in self._written)
        self._shown = self._process(opened) if opened else {}
        self._shown = {name: value for name, value in self._shown.items() if name not in _TEXT}

    @property
    def config(self) -> Any:
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    def get_input_embeddings(self) -> nn.Module:
        r"""The embedding of tokens, the layer for ``LayerIntegratedGradients``."""
        return self.model.get_input_embeddings()

    def expand(self, text: str) -> str:
        r"""A text with each image's placeholder written out as the model reads it.

        Args:
            text (str): with one placeholder, ``mllm.processor.image_token``, for each image.

        Returns:
            str: with as many as the image has tokens, and what else the processor puts there.

        Raises:
            ValueError: if the number of placeholders is not that of the images.
        """
        placeholder = self.backbone.processor.image_token
        parts = text.split(placeholder)
        if len(parts) - 1 != len(self._written):
            raise ValueError(
                f"the text has {len(parts) - 1} placeholder(s) {placeholder!r} for "
                f"{len(self._written)} image(s); give the images to as_language_model, and "
                "write one placeholder for each"
            )
        for index, tokens in enumerate(self._written):
            parts[index] += "".join(self.backbone.tokenizer.decode([token]) for token in tokens)
        return "".join(parts)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        **inputs: Any,
    ) -> Any:
        r"""
        Args:
            input_ids (Tensor): all tokens up to here, those in the cache too, shape (B, S).
            attention_mask (Tensor, optional): 0 at tokens that are padding, shape (B, S) or
                shorter where tokens were appended. Default: None, no padding.
            past_key_values (Cache, optional): what an earlier call returned. Default: None
            use_cache (bool, optional): whether to return a cache. Default: None, no.
            **inputs (Any): pixels and what else the processor gives with them, and arguments of
                the model's own ``forward``.

        Returns:
            CausalLMOutputWithPast: with ``logits`` of the tokens that are not in the cache,
            (B, S - cached, V), and ``past_key_values``.

        Raises:
            ValueError: for placeholders without an image, or of another number than its tokens.
        """
        arguments = self._complete(input_ids, attention_mask, inputs)
        if past_key_values is not None:
            cached = past_key_values.get_seq_length()
            arguments = {
                name: value for name, value in arguments.items() if "pixel_values" not in name
            }
            for name in ("input_ids", "position_ids", "mm_token_type_ids", "token_type_ids"):
                if arguments.get(name) is not None:
                    arguments[name] = arguments[name][..., cached:]
        with self.backbone.evaluating():
            return self.model(
                **arguments, past_key_values=past_key_values, use_cache=bool(use_cache)
            )

    @torch.no_grad()
    def generate(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Any
    ) -> Tensor:
        r"""The tokens followed by the model's answer; see the model's own ``generate``."""
        arguments = self._complete(input_ids, attention_mask, inputs)
        # Only where they follow the image's grid does the model not count them by itself.
        if arguments["position_ids"] is None or arguments["position_ids"].ndim < 3:
            arguments.pop("position_ids")
        # A placeholder without an image behind it would break every later pass.
        suppressed = arguments.get("suppress_tokens") or []
        arguments["suppress_tokens"] = [*suppressed, self.backbone.image_token_id]
        with self.backbone.evaluating():
            return self.model.generate(**arguments)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **inputs: Any) -> dict[str, Any]:
        r"""Nothing is left out here: :meth:`forward` knows what a cache holds."""
        return {"input_ids": input_ids, **inputs}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], **kwargs: Any
    ) -> dict[str, Any]:
        return {**model_kwargs, "past_key_values": outputs.past_key_values}

    def _process(self, images: list[Image.Image]) -> dict[str, Tensor]:
        """What the processor gives for images and their placeholders."""
        text = self.backbone.processor.image_token * len(images)
        given = [images] if len(images) > 1 else images
        return dict(self.backbone.processor(images=given, text=[text], return_tensors="pt"))

    def _tokens_of(self, image: Image.Image) -> list[int]:
        """The tokens that the processor writes instead of an image's placeholder."""
        if self.backbone.geometry.crosses:
            return [self.backbone.image_token_id]
        placeholder = self.backbone.processor.image_token
        around = self.backbone.tokenizer(placeholder)["input_ids"]
        before = around.index(self.backbone.tokenizer.convert_tokens_to_ids(placeholder))
        after = len(around) - before - 1
        tokens = self._process([image])["input_ids"][0].tolist()
        return tokens[before : len(tokens) - after]

    def _complete(self, ids: Tensor, mask: Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the model for all the tokens, none of them taken to be in a cache."""
        given = {name: value for name, value in inputs.items() if name not in _STALE}
        if "pixel_values" not in given:
            self._check_placeholders(ids)
            # The same images for each row of tokens.
            given |= {
                name: value.repeat(len(ids), *[1] * (value.ndim - 1))
                for name, value in self._shown.items()
            }
        arguments = {
            name: self._convert(value) if isinstance(value, Tensor) else value
            for name, value in given.items()
        }
        ids = arguments["input_ids"] = ids.to(self.device)
        mask = torch.ones_like(ids[:, :0]) if mask is None else mask.to(ids)
        mask = _extend(mask.expand(len(ids), -1), ids.shape[1], 1)
        arguments["attention_mask"] = mask
        types = (ids == self.backbone.image_token_id).to(ids.dtype)
        if self._takes_types:
            arguments["mm_token_type_ids"] = types
        if isinstance(self.backbone.geometry, CrossTiles):
            shown = arguments["aspect_ratio_mask"]
            arguments[CROSS_MASK] = self.backbone.geometry.visible(ids, shown)
        if "token_type_ids" in arguments:
            arguments["token_type_ids"] = _extend(arguments["token_type_ids"], ids.shape[1], 0)
        arguments["position_ids"] = self._positions(
            ids, mask, types, arguments.get("image_grid_thw")
        )
        return arguments

    def _positions(
        self, ids: Tensor, mask: Tensor, types: Tensor, grid: Tensor | None
    ) -> Tensor | None:
        """Positions of all tokens; None where the model counts them itself."""
        base: Any = self.model.base_model
        by_grid = hasattr(base, "get_rope_index")
        if by_grid and grid is not None:
            positions, _ = base.get_rope_index(
                input_ids=ids, mm_token_type_ids=types, image_grid_thw=grid, attention_mask=mask
            )
            return positions
        if by_grid or not mask.all():
            # Counted here, since such models go on from the image of an earlier pass.
            return (mask.cumsum(-1) - 1).clamp(min=0)
        return None

    def _check_placeholders(self, ids: Tensor) -> None:
        counts = (ids == self.backbone.image_token_id).sum(1).tolist()
        if any(count != self._n_tokens for count in counts):
            raise ValueError(
                f"the text has {counts} image token(s), expected {self._n_tokens} for "
                f"{len(self._written)} image(s): give the images to as_language_model, write "
                "the text with its expand(), and keep image tokens from being perturbed with the "
                "skip_tokens of TextTokenInput"
            )

    def _convert(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)


def _extend(tensor: Tensor, length: int, fill: int) -> Tensor:
    """With a value for each token that was appended, (B, length)."""
    return F.pad(tensor, (0, length - tensor.shape[1]), value=fill)
