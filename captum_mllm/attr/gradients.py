"""What methods that take gradients need of their inputs, and leave behind on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from captum.attr import Attribution, GradientAttribution, LayerAttribution
from torch import Tensor

from captum_mllm.attr.wrapper_chain import wrapper_chain


@contextmanager
def gradients_for(method: Attribution, inputs: Sequence[Tensor]) -> Iterator[None]:
    r"""Within it a gradient method can take the gradient of the inputs; afterwards they require
    one as before, also after an exception, which Captum's methods do not see to.

    Args:
        method (Attribution): the method that is about to run.
        inputs (Sequence[Tensor]): its inputs.

    Raises:
        RuntimeError: for a gradient method under ``torch.inference_mode``.
    """
    check_inference_mode(method)
    before = [tensor.requires_grad for tensor in inputs]
    try:
        # Captum would do it too, with a warning for each call. Those on layers do without.
        if isinstance(method, GradientAttribution) and not isinstance(method, LayerAttribution):
            for tensor in inputs:
                if tensor.is_floating_point():
                    tensor.requires_grad_()
        yield
    finally:
        for tensor, required in zip(inputs, before, strict=True):
            if not required:
                tensor.requires_grad_(False)


def check_inference_mode(method: Attribution) -> None:
    r"""Refuse, under ``torch.inference_mode``, a method that takes gradients or wraps one."""
    if not torch.is_inference_mode_enabled():
        return
    for found in wrapper_chain(method):
        if isinstance(found, GradientAttribution) or getattr(found, "takes_gradients", False):
            raise RuntimeError(
                f"{found.get_name()} takes gradients, and torch.inference_mode records none; run "
                "it outside of that"
            )
