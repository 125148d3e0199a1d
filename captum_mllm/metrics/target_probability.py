"""Probability of the target, of any forward function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from captum_mllm._captum import TargetType, run_forward, select_targets


@torch.no_grad()
def target_probability(
    forward_func: Callable[..., Any],
    inputs: Tensor,
    target: TargetType,
    additional_forward_args: tuple[Any, ...],
) -> Tensor:
    r"""
    Probability that a model gives the target.

    Args:
        forward_func (Callable): A model or function. Its method
            ``target_probability(inputs, *additional_forward_args, target=...)`` is asked, if it
            has one; else the softmax of its output over the last dimension. An output with one
            value per example and nothing to choose from is taken as it is.
        inputs (Tensor): Of shape (N, ...).
        target (int, tuple, Tensor or list): The output to look at, as in Captum.
        additional_forward_args (tuple): The other arguments of ``forward_func``.

    Returns:
        Tensor: Of shape (N,), at least float32.

    Raises:
        ValueError: If the target's probability is not defined, or not finite.
    """
    hook = getattr(forward_func, "target_probability", None)
    if hook is not None:
        values = hook(inputs, *additional_forward_args, target=target)
    else:
        output = run_forward(forward_func, inputs, None, additional_forward_args)
        values = _probability(output, target)
    if not isinstance(values, Tensor) or values.shape != inputs.shape[:1]:
        raise ValueError(
            f"expected one probability for each of {len(inputs)} examples, got "
            f"{getattr(values, 'shape', type(values).__name__)}; give a target that chooses one "
            "output per example, (t, token_id) for the answer of a multimodal LLM"
        )
    if not values.isfinite().all():
        raise ValueError("the forward function gave NaN or infinity for a perturbed input")
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _probability(output: Any, target: TargetType) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(
            f"the forward function must return a tensor of logits, got {type(output).__name__}; "
            "wrap it, as in lambda x: model(x).logits"
        )
    if output.dim() == 1 and target is None:
        return output
    if target is None:
        raise ValueError(
            f"a target is needed for an output of shape {tuple(output.shape)}; see `target`"
        )
    if output.dim() < 2 or output.shape[-1] == 1:
        raise ValueError(
            f"an output of shape {tuple(output.shape)} has no softmax to speak of; return one "
            "value per example, (N,), and leave out the target"
        )
    classes = output.softmax(-1, dtype=torch.promote_types(output.dtype, torch.float32))
    return select_targets(classes, target)
