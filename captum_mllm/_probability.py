"""``target_probability`` and ``known_probability``: how likely a model finds a target."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_mllm._captum import TargetType, run_forward, select_targets


class UndefinedProbability(ValueError):
    """The output of a forward function tells no probability of the target."""


@torch.no_grad()
def target_probability(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    target: TargetType,
    additional_forward_args: tuple[Any, ...],
) -> Tensor:
    r"""
    Probability that a model gives the target.

    Args:
        forward_func (Callable): A model or function. Its method
            ``target_probability(*inputs, *additional_forward_args, target=...)`` is asked, if it
            has one; else the softmax of its output over the last dimension. An output with one
            value per example and no target is taken for the probability.
        inputs (tuple[Tensor, ...]): Of shape (N, ...) each.
        target (int, tuple, Tensor or list): The output to look at, as in Captum.
        additional_forward_args (tuple): The other arguments of ``forward_func``.

    Returns:
        Tensor: Of shape (N,), at least float32.

    Raises:
        UndefinedProbability: If the output has no probability of the target.
        ValueError: If the method returns something else than a tensor (N,).
    """
    method = getattr(forward_func, "target_probability", None)
    if method is None:
        output = run_forward(forward_func, inputs, None, additional_forward_args)
        values = _of_output(output, target)
    else:
        values = method(*inputs, *additional_forward_args, target=target)
        if not isinstance(values, Tensor) or values.dim() != 1:
            raise ValueError(
                "target_probability must return a Tensor of shape (N,), got "
                f"{getattr(values, 'shape', type(values).__name__)}"
            )
    return values.detach().to(torch.promote_types(values.dtype, torch.float32))


def known_probability(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    target: TargetType,
    additional_forward_args: tuple[Any, ...],
) -> Tensor | None:
    r"""The same, or None where it is not defined, which takes no pass without a target."""
    if target is None and not hasattr(forward_func, "target_probability"):
        return None
    try:
        return target_probability(forward_func, inputs, target, additional_forward_args)
    except UndefinedProbability:
        return None


def _of_output(output: Any, target: TargetType) -> Tensor:
    if not isinstance(output, Tensor):
        raise UndefinedProbability(
            f"the forward function must return a tensor of logits, got {type(output).__name__}; "
            "wrap it, as in lambda x: model(x).logits"
        )
    if target is None and output.dim() == 1:
        return output
    if target is None:
        raise UndefinedProbability(
            f"a target is needed for an output of shape {tuple(output.shape)}; see `target`"
        )
    # The softmax over a single logit is 1 whatever the model says.
    if output.dim() < 2 or output.shape[-1] == 1:
        raise UndefinedProbability(
            f"an output of shape {tuple(output.shape)} has no softmax to speak of; return one "
            "value per example, (N,), and leave out the target"
        )
    classes = output.softmax(-1, dtype=torch.promote_types(output.dtype, torch.float32))
    values = select_targets(classes, target)
    if values.dim() != 1:
        raise UndefinedProbability(
            f"expected one probability for each of {len(output)} examples, got "
            f"{tuple(values.shape)}; give a target that chooses one output per example, "
            "(t, token_id) for the answer of a multimodal LLM"
        )
    return values
