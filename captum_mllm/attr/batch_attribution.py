"""Explain several inputs at once."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.context_suppression import ContextSuppression
from captum_mllm.attr.mllm_attribution_result import MLLMAttributionResult
from captum_mllm.attr.msea import MSEA
from captum_mllm.attr.resizing import resize_inputs
from captum_mllm.attr.scale_arguments import check_scales
from captum_mllm.attr.wrapper_chain import wrapper_chain
from captum_mllm.models.batches import make_passes
from captum_mllm.models.decoding import answer_prompts
from captum_mllm.models.image_text_input import ImageTextInput
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.preparation import find_answer, open_query
from captum_mllm.models.query import Prompt

if TYPE_CHECKING:
    from captum_mllm.attr.mllm_attribution import MLLMAttribution

Answer = str | Sequence[int] | Tensor | None


def attribute_batch(
    explainer: MLLMAttribution,
    inputs: Sequence[ImageTextInput],
    targets: Sequence[Answer] | None,
    include_prompt: bool,
    top_predictions: int,
    options: dict[str, Any],
    kwargs: dict[str, Any],
) -> list[MLLMAttributionResult]:
    r"""One result for each input; arguments as of :meth:`MLLMAttribution.attribute_batch`.

    Raises:
        TypeError: for a single text as targets.
        ValueError: for no inputs, or another number of targets.
    """
    if isinstance(targets, str):
        raise TypeError(f"got targets={targets!r}, expected a list with an answer for each input")
    targets = [None] * len(inputs) if targets is None else list(targets)
    if not inputs or len(targets) != len(inputs):
        raise ValueError(
            f"got {len(inputs)} input(s) and {len(targets)} target(s), expected at least one input "
            "and a target for each of them, None for the model's own answer"
        )
    mllm: MLLM = explainer.forward_func
    with mllm.remember():
        prompts = _prepare(mllm, inputs, targets, options)
        if include_prompt:
            prompts = [(images, query.including_prompt()) for images, query in prompts]
        _make_passes(mllm, explainer.attribution_method, prompts, kwargs)
        return [
            explainer.explain(inp, images[0], query, top_predictions, **kwargs)
            for inp, (images, query) in zip(inputs, prompts)
        ]


def _prepare(
    mllm: MLLM,
    inputs: Sequence[ImageTextInput],
    targets: Sequence[Answer],
    options: dict[str, Any],
) -> list[Prompt]:
    """Pictures and queries; answers of the model's own are made together."""
    opened = [open_query(mllm.processor, inp, mllm.device, False) for inp in inputs]
    own = [prompt for prompt, target in zip(opened, targets) if target is None]
    said = iter(answer_prompts(mllm.backbone, own, options) if own else [])
    # Where all answers are given, options for others are refused as they are for one input.
    given_options = {} if own else options
    return [
        (
            images,
            replace(
                query,
                answer_ids=next(said)
                if target is None
                else find_answer(mllm.backbone, images, query, target, given_options),
            ),
        )
        for (images, query), target in zip(opened, targets)
    ]


def _make_passes(
    mllm: MLLM, method: Attribution, prompts: Sequence[Prompt], kwargs: dict[str, Any]
) -> None:
    """Make the passes that the method will ask for, all prompts in each."""
    chain = list(wrapper_chain(method))
    scales: tuple[float, ...] = (1.0,)
    mode = kwargs.get("interpolate_mode", "bilinear")
    if any(isinstance(found, MSEA) for found in chain):
        default = inspect.signature(MSEA.attribute).parameters["scales"].default
        scales = tuple(check_scales(kwargs.get("scales", default), prompts[0][0]))
    if any(isinstance(found, ContextSuppression) for found in chain):
        prompts = [(images, query.including_prompt()) for images, query in prompts]
    if hasattr(chain[-1], "make_passes"):
        for scale in dict.fromkeys(scales):
            resized = [(resize_inputs(images, scale, mode), query) for images, query in prompts]
            chain[-1].make_passes(resized)
    # What is known of the words takes the states at scale 1, which some methods leave behind.
    if not (getattr(chain[-1], "leaves_states", False) and 1.0 in scales):
        make_passes(mllm.backbone, prompts)
