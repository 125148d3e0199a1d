"""``open_query`` and ``find_answer`` convert user input into tensors and a ``Query``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_mllm.models.answers import answer_tokens
from captum_mllm.models.backbone import Backbone
from captum_mllm.models.decoding import answer_prompts
from captum_mllm.models.image_text_input import ImageTextInput
from captum_mllm.models.layout import size_of
from captum_mllm.models.pairing import check_tokenizer
from captum_mllm.models.prompt import read_prompt
from captum_mllm.models.query import Answer, Query


def open_query(
    processor: Any, inp: ImageTextInput, device: torch.device, every_image: bool
) -> tuple[tuple[Tensor, ...], Query]:
    r"""The images that are explained, and a query without an answer yet.

    Args:
        processor (Any): the model's processor.
        inp (ImageTextInput): the images and the question.
        device (torch.device): where the images are to be.
        every_image (bool): leave every image open, not only the explained one.

    Returns:
        tuple[tuple[Tensor, ...], Query]: images (1, 3, H, W) in [0, 1], and the query.

    Raises:
        ValueError: where the chat template leaves no place for an image or the question, and for a
            tokenizer that does not tell where its tokens are.
    """
    check_tokenizer(processor.tokenizer)
    prompt, spans = read_prompt(processor, inp)
    # Tensors of their own, also for gradients later on where they are made in inference mode.
    with torch.inference_mode(False):
        images = [image.to(device, copy=True) for image in inp.images]
    query = Query(
        prompt=prompt,
        answer_ids=(),
        spans=spans,
        native=tuple(map(size_of, images)),
        images=tuple(
            None if every_image or index == inp.explained else image
            for index, image in enumerate(images)
        ),
    )
    return tuple(images[index].unsqueeze(0) for index in query.explained), query


def find_answer(
    backbone: Backbone,
    images: Sequence[Tensor],
    query: Query,
    target: str | Sequence[int] | Tensor | None,
    generation: dict[str, Any],
) -> Answer:
    r"""The tokens of the answer that is given, or that the model makes.

    Args:
        backbone (Backbone): the model.
        images (Sequence[Tensor]): the images that the query leaves open.
        query (Query): the question.
        target (str, Sequence[int] or Tensor, optional): the answer. None for the model's own.
        generation (dict): arguments of ``generate``.

    Raises:
        ValueError: for an answer and arguments of ``generate`` at once, and an empty answer.
    """
    if target is None:
        return answer_prompts(backbone, [(tuple(images), query)], generation)[0]
    if generation:
        raise ValueError(
            f"got both an answer and {', '.join(generation)}, which ask the model for one; "
            "leave out one of them"
        )
    return answer_tokens(
        target, backbone.tokenizer, backbone.vocabulary.size, backbone.image_token_id
    )
