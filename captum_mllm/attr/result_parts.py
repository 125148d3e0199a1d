"""The parts of a result: whether they fit each other, and the form in which they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from captum_mllm.attr.scale_result import ScaleResult
from captum_mllm.models.pixels import to_pil, to_tensor
from captum_mllm.models.words import Word

if TYPE_CHECKING:
    from captum_mllm.attr.mllm_attribution_result import MLLMAttributionResult

_TENSORS = ("image_attr", "token_attr", "output_probs")
_FACTS = (
    "input_tokens",
    "n_prompt",
    "output_tokens",
    "words",
    "top_predictions",
    "prompt",
    "method",
    "model",
)


def take_apart(result: MLLMAttributionResult) -> tuple[dict[str, Tensor], dict[str, Any]]:
    r"""A result's tensors, and what else is in it as values that JSON can hold.

    Args:
        result (MLLMAttributionResult): the result.

    Returns:
        tuple[dict[str, Tensor], dict[str, Any]]: the tensors and the facts.
    """
    tensors: dict[str, Tensor] = {name: getattr(result, name) for name in _TENSORS}
    tensors["picture"] = to_tensor(result.picture).mul(255).round().to(torch.uint8)
    for index, scale in enumerate(result.scales):
        tensors[f"scale.{index}.image_attr"] = scale.image_attr
        if scale.output_probs is not None:
            tensors[f"scale.{index}.output_probs"] = scale.output_probs
    facts = {name: getattr(result, name) for name in _FACTS}
    return tensors, {**facts, "scales": [scale.scale for scale in result.scales]}


def put_together(tensors: dict[str, Tensor], facts: dict[str, Any]) -> dict[str, Any]:
    r"""The arguments that make a result from what :func:`take_apart` gave.

    Args:
        tensors (dict[str, Tensor]): the tensors.
        facts (dict[str, Any]): the facts, as JSON gives them back.

    Returns:
        dict[str, Any]: arguments of ``MLLMAttributionResult``.

    Raises:
        KeyError: if a part is missing.
        TypeError: if a part is of another kind.
    """
    return {
        **{name: facts[name] for name in _FACTS},
        **{name: tensors[name] for name in _TENSORS},
        "words": [tuple(word) for word in facts["words"]],
        "top_predictions": [
            [(token, probability) for token, probability in row] for row in facts["top_predictions"]
        ],
        "picture": to_pil(tensors["picture"].float() / 255),
        "scales": [
            ScaleResult(
                scale,
                tensors[f"scale.{index}.image_attr"],
                tensors.get(f"scale.{index}.output_probs"),
            )
            for index, scale in enumerate(facts["scales"])
        ],
    }


def check_parts(
    input_tokens: list[str],
    output_tokens: list[str],
    image_attr: Tensor,
    token_attr: Tensor,
    output_probs: Tensor,
    n_prompt: int,
    words: Sequence[Word],
    top_predictions: Sequence[Sequence[tuple[str, float]]],
    scales: Sequence[ScaleResult],
) -> None:
    r"""Raise ``ValueError`` where the parts do not fit each other, or a number is not finite."""
    n_tokens = len(output_tokens)
    fits = (
        image_attr.ndim == 3
        and 0 <= n_prompt < len(input_tokens)
        and n_tokens in (len(input_tokens), len(input_tokens) - n_prompt)
        and token_attr.shape == (n_tokens, len(input_tokens))
        and output_probs.shape == (n_tokens,)
        and len(image_attr) == len(top_predictions) == n_tokens
        and [token for word in words for token in word] == list(range(n_tokens))
        and all(
            scale.image_attr.ndim == 3 and len(scale.image_attr) == n_tokens for scale in scales
        )
    )
    if not fits:
        raise ValueError(
            f"the parts of the result do not fit each other: {n_tokens} output tokens, "
            f"{len(input_tokens)} input tokens, maps {tuple(image_attr.shape)}, weights "
            f"{tuple(token_attr.shape)}, {len(top_predictions)} lists of predictions"
        )
    parts = {"image_attr": image_attr, "token_attr": token_attr, "output_probs": output_probs}
    for name, part in parts.items():
        if not part.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite, expected none")
