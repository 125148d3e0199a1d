"""``fit_to_context``: the options with which a method keeps within the context of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from captum.attr import Attribution

from captum_mllm._options import check_whole
from captum_mllm.attr.token_maps import token_attribution
from captum_mllm.models.answers import MAX_NEW_TOKENS
from captum_mllm.models.budget import check_context, fitting_scales
from captum_mllm.models.query import Answer, Query

#: The most tokens of an image at one scale; "context" for as many as the model has room for.
ImageTokens = int | Literal["context"]


def fit_to_context(
    method: Attribution,
    queries: Sequence[Query],
    answers: Sequence[Answer | None],
    generation: dict[str, Any],
    limit: ImageTokens | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    r"""
    The options of a method, with scales at which no pass is too long.

    Args:
        method (Attribution): the method.
        queries (Sequence[Query]): the questions.
        answers (Sequence[Answer or None]): their answers, None for those of the model's own.
        generation (dict): arguments of ``generate``.
        limit (int or "context", optional): tokens of the explained image at one scale, at most.
            None to leave the scales as they are.
        options (dict): the options of the method.

    Returns:
        dict[str, Any]: the same options; with a limit the scales that fit all queries, with a
        warning where one was lowered.

    Raises:
        ValueError: without a limit, for scales that are beyond the context of the model; with a
            limit, for a method without scales if the image is beyond it.
    """
    if not (isinstance(limit, str) and limit == "context"):
        check_whole("max_image_tokens", limit, 1, optional=True)
    scales = token_attribution(method).scales_seen(**options)
    if scales == (1.0,) and limit in (None, "context"):
        return options
    mllm = method.forward_func
    longest = generation.get("max_new_tokens", MAX_NEW_TOKENS)
    counts = [longest if answer is None else len(answer) for answer in answers]
    if limit is None:
        for query, count in zip(queries, counts):
            check_context(mllm, query, scales, count)
        return options
    number = None if limit == "context" else limit
    found = [
        fitting_scales(mllm, query, scales, number, count) for query, count in zip(queries, counts)
    ]
    fitting = min(found, key=max)
    if fitting == scales:
        return options
    if scales == (1.0,):
        raise ValueError(
            f"{method.get_name()} sees the image at scale 1 alone, where it has more tokens than "
            f"max_image_tokens={limit}; make the image smaller"
        )
    return {**options, "scales": fitting}
