"""Run a model's processor, with each picture of a prompt prepared by options of its own."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from captum_mllm.models.prompt import special_tokens_option


@dataclass(frozen=True)
class Processed:
    r"""What a processor makes of some rows, each the same prompt with other pictures.

    Args:
        inputs (dict[str, Tensor]): keyword arguments of the model.
        offsets (Tensor): where the text of each token starts and ends in the prompt; both are the
            same for a token that has no text there; shape (S, 2).
        picture (Tensor): which picture a token stands for, -1 for text, shape (S,).
    """

    inputs: dict[str, Tensor]
    offsets: Tensor
    picture: Tensor


class _PicturesApart:
    """An image processor that prepares the pictures of a prompt with options of their own."""

    def __init__(self, image_processor: Any, options: Sequence[dict[str, Any]]) -> None:
        self.image_processor = image_processor
        self.options = options

    def __getattr__(self, name: str) -> Any:
        return getattr(self.image_processor, name)

    def __call__(self, images: Sequence[Sequence[Any]], **kwargs: Any) -> BatchFeature:
        parts = [
            self.image_processor([picture], **{**kwargs, **options})
            for row in images
            for picture, options in zip(row, self.options)
        ]
        return BatchFeature({name: _join([part[name] for part in parts]) for name in parts[0]})


def process(
    processor: Any,
    prompt: str,
    rows: Sequence[Sequence[Image.Image]],
    options: Sequence[dict[str, Any]],
    image_token_id: int,
) -> Processed:
    r"""Run the processor on a prompt, once with each row of pictures.

    Args:
        processor (Any): the model's processor.
        prompt (str): with one placeholder for each picture.
        rows (Sequence[Sequence[PIL.Image.Image]]): the pictures of the prompt, for each row.
        options (Sequence[dict]): options of the image processor for each picture of the prompt.
        image_token_id (int): the placeholder's index.

    Returns:
        Processed: on the CPU.

    Raises:
        ValueError: if pictures at several scales do not fit into one input of the model.
        RuntimeError: if the processor does not tell what it put in the place of a placeholder.
    """
    shared: dict[str, Any] = {}
    if any(options):
        if len(options) == 1:
            shared = options[0]
        else:
            processor = copy.copy(processor)
            processor.image_processor = _PicturesApart(processor.image_processor, options)
    output = dict(
        processor(
            images=[list(row) for row in rows],
            text=[prompt] * len(rows),
            return_tensors="pt",
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
            **special_tokens_option(processor.tokenizer, prompt),
            **shared,
        )
    )
    offsets = output.pop("offset_mapping")[0]
    replacements = output.pop("text_replacement_offsets", None)
    if not replacements or len(replacements[0]) != len(options):
        raise RuntimeError(
            f"{type(processor).__name__} does not tell what it puts in the place of each "
            "placeholder (`return_text_replacement_offsets`), which is needed to find the tokens "
            "of each picture"
        )
    inputs = {name: value for name, value in output.items() if isinstance(value, Tensor)}
    ids = inputs["input_ids"][0]
    picture = torch.full_like(ids, -1)
    shift = torch.zeros_like(offsets)
    for index, replacement in enumerate(replacements[0]):
        start, end = replacement["new_span"]
        inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 0] < end)
        picture[inside & (ids == image_token_id)] = index
        grown = end - start - (replacement["span"][1] - replacement["span"][0])
        shift[offsets[:, 0] >= end] += grown
        offsets[inside] = start
    return Processed(inputs, offsets - shift, picture)


def _join(parts: list[Any]) -> Any:
    if not isinstance(parts[0], Tensor):
        return [item for part in parts for item in part]
    if len({part.shape[1:] for part in parts}) > 1:
        raise ValueError(
            f"the image processor makes inputs of shapes {[tuple(part.shape) for part in parts]} "
            "of the pictures at their scales, which do not fit together; explain this prompt at "
            "scale 1 alone"
        )
    return torch.cat(parts)
