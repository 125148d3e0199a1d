"""How sure a model is of the target at a scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_mllm._captum import run_forward, select_targets


@torch.no_grad()
def target_probability(
    forward_func: Any, inputs: tuple[Tensor, ...], target: Any, additional: tuple[Any, ...]
) -> Tensor | None:
    r"""Probability of the target for each example, (N,), or None where it is not defined.

    Args:
        forward_func (Callable): asked by its method ``target_probability`` if it has one, else by
            the softmax of its output.
        inputs (tuple[Tensor, ...]): the inputs at the scale.
        target (Any): as Captum takes it, or None.
        additional (tuple): additional arguments of the forward function.

    Raises:
        ValueError: if the method returns something else than a tensor (N,).
    """
    hook = getattr(forward_func, "target_probability", None)
    if hook is not None:
        probability = hook(*inputs, *additional, target=target)
        if not isinstance(probability, Tensor) or probability.dim() != 1:
            raise ValueError(
                "target_probability must return a Tensor of shape (N,), got "
                f"{getattr(probability, 'shape', type(probability).__name__)}"
            )
        return probability.detach()
    if target is None:
        return None
    output = run_forward(forward_func, inputs, None, additional)
    # The softmax over a single logit is 1 whatever the model says.
    if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[-1] == 1:
        return None
    classes = output.softmax(dim=-1, dtype=torch.promote_types(output.dtype, torch.float32))
    probability = select_targets(classes, target)
    return probability if probability.dim() == 1 else None
