"""attribute_batch: explains several inputs at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import replace
from reprlib import repr as shown
from typing import Any

from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.token_maps import token_attribution
from captum_mllm.explain.contrast_words import Contrast
from captum_mllm.explain.explanation import explain
from captum_mllm.explain.fitting import ImageTokens, fit_to_context
from captum_mllm.explain.result import MLLMAttributionResult
from captum_mllm.models.batches import make_passes
from captum_mllm.models.decoding import answer_prompts, given_answer
from captum_mllm.models.inputs import ImageTextInput
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.prompt import open_query
from captum_mllm.models.query import Answer, Prompt

Target = str | Sequence[int] | Tensor | None


def attribute_batch(
    method: Attribution,
    inputs: Sequence[ImageTextInput],
    targets: Sequence[Target] | None,
    include_prompt: bool,
    top_predictions: int,
    options: dict[str, Any],
    max_image_tokens: ImageTokens | None,
    contrasts: Sequence[Contrast | None] | None,
    kwargs: dict[str, Any],
    **explaining: Any,
) -> list[MLLMAttributionResult]:
    r"""One result for each input; arguments as of :meth:`MLLMAttribution.attribute_batch`, and
    ``explaining`` as of :func:`explain`.

    Raises:
        TypeError: for targets or contrasts that are not a list.
        ValueError: for no inputs, or another number of targets or contrasts.
    """
    no_list = (str, bytes, Mapping, Set)
    for name, each in (("targets", targets), ("contrasts", contrasts)):
        if each is not None and (isinstance(each, no_list) or not isinstance(each, Iterable)):
            raise TypeError(
                f"got {name}={shown(each)}, expected a list with one for each input, None for none"
            )
    targets = [None] * len(inputs) if targets is None else list(targets)
    contrasts = [None] * len(inputs) if contrasts is None else list(contrasts)
    if not inputs or len(targets) != len(inputs):
        raise ValueError(
            f"got {len(inputs)} input(s) and {len(targets)} target(s), expected at least one input "
            "and a target for each of them, None for the model's own answer"
        )
    if len(contrasts) != len(inputs):
        raise ValueError(
            f"got {len(inputs)} input(s) and {len(contrasts)} contrast(s), expected one for each "
            "input, None for no contrast"
        )
    mllm: MLLM = method.forward_func
    with mllm.remember():
        opened, answers = open_prompts(mllm, inputs, targets, options)
        queries = [query for _, query in opened]
        kwargs = fit_to_context(method, queries, answers, options, max_image_tokens, kwargs)
        prompts = answered(mllm, opened, answers, options)
        if include_prompt:
            prompts = [(images, query.including_prompt()) for images, query in prompts]
        explained = token_attribution(method)
        explained.prefetch(prompts, **kwargs)
        # The tokens' own probabilities take the states at scale 1.
        if not explained.leaves_states(**kwargs):
            make_passes(mllm.backbone, prompts)
        return [
            explain(
                method,
                inp,
                images,
                query,
                top_predictions,
                contrast=contrast,
                **explaining,
                **kwargs,
            )
            for inp, (images, query), contrast in zip(inputs, prompts, contrasts)
        ]


def open_prompts(
    mllm: MLLM,
    inputs: Sequence[ImageTextInput],
    targets: Sequence[Target],
    options: dict[str, Any],
) -> tuple[list[Prompt], list[Answer | None]]:
    r"""
    The prompt of each input, and the tokens of its answer if that is given.

    Args:
        mllm (MLLM): the model.
        inputs (Sequence[ImageTextInput]): the images and the questions.
        targets (Sequence): the answer of each, None for the model's own.
        options (dict): arguments of ``generate``.

    Raises:
        ValueError: for an empty answer, and for options where all answers are given.
    """
    opened = [open_query(mllm.backbone, inp) for inp in inputs]
    # Where the model makes some of the answers, the options are for these.
    refused = {} if any(target is None for target in targets) else options
    return opened, [given_answer(mllm.backbone, target, refused) for target in targets]


def answered(
    mllm: MLLM,
    opened: Sequence[Prompt],
    answers: Sequence[Answer | None],
    options: dict[str, Any],
) -> list[Prompt]:
    r"""
    The prompts with their answers; those of the model's own are made in one batch.

    Args:
        mllm (MLLM): the model.
        opened (Sequence[tuple[tuple[Tensor, ...], Query]]): the prompts.
        answers (Sequence): the tokens of each answer, None for the model's own.
        options (dict): arguments of ``generate``.

    Raises:
        ValueError: for images that the model does not take in one batch.
    """
    own = [prompt for prompt, answer in zip(opened, answers) if answer is None]
    said = iter(answer_prompts(mllm.backbone, own, options) if own else [])
    return [
        (images, replace(query, answer_ids=next(said) if answer is None else answer))
        for (images, query), answer in zip(opened, answers)
    ]
