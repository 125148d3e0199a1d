"""`full_precision` keeps own sums out of autocast, `check_finite` names where states overflow."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, PreTrainedModel

# The kinds of devices with an autocast of their own.
_KINDS = ("cpu", "cuda", "xpu", "mps")


@contextmanager
def full_precision() -> Iterator[None]:
    r"""Within it, products of matrices have the dtype of their inputs, also under autocast.

    ``torch.autocast`` computes products in 16 bits whatever their inputs are, so ``.to(float32)``
    before one has no effect there. The model runs as the user asked; sums of our own do not.
    It is a decorator of functions as well.

    Examples::
        >>> import torch
        >>> ones = torch.ones(2, 2)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     with full_precision():
        ...         inside = ones @ ones
        ...     outside = ones @ ones
        >>> inside.dtype, outside.dtype
        (torch.float32, torch.bfloat16)
    """
    with ExitStack() as stack:
        for kind in _KINDS:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


def check_finite(states: Tensor, model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
    r"""Refuse states that are NaN or infinite, and name the module that made them so.

    Args:
        states (Tensor): hidden states or logits of a pass.
        model (PreTrainedModel): the model. Only if states are not finite, it makes another pass.
        inputs (dict[str, Tensor]): the inputs of the pass.

    Raises:
        FloatingPointError: with the first module whose output is not finite, and the dtype.
    """
    if not bool(states.isfinite().all()):
        raise_not_finite(model, inputs, states.dtype)


def raise_not_finite(model: PreTrainedModel, inputs: dict[str, Tensor], dtype: torch.dtype) -> None:
    r"""Say where a pass stops being finite; arguments as of :func:`check_finite`.

    Raises:
        FloatingPointError: always.
    """
    broken = [name for name, weight in model.named_parameters() if not _is_finite(weight)]
    found = None if broken else _first_not_finite(model, inputs)
    if broken:
        where = f"the weights {broken[0]!r} are not finite"
    elif found is not None:
        where = f"{found!r} is the first module whose output is not finite"
    else:
        where = "the inputs of the pass have finite states alone, so a later token has not"
    largest = torch.finfo(dtype).max
    remedy = "" if broken else f". {dtype} holds numbers up to {largest:.4g}"
    if dtype == torch.float16 and not broken:
        remedy += '; load the model with dtype="bfloat16" or dtype="float32"'
    raise FloatingPointError(
        f"the model's states are NaN or infinite, so nothing can be explained: {where}{remedy}"
    )


class RefuseNotFinite(LogitsProcessor):
    r"""Ends ``generate`` with an error where logits are NaN, of which no token follows.

    Args:
        model (PreTrainedModel): the model.
        inputs (dict[str, Tensor]): the prompt.
    """

    def __init__(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> None:
        self.model = model
        self.inputs = inputs

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        # Tokens that must not be said have logits of minus infinity.
        if bool(scores.isnan().any()):
            raise_not_finite(self.model, self.inputs, self.model.dtype)
        return scores


@torch.no_grad()
def _first_not_finite(model: Any, inputs: dict[str, Tensor]) -> str | None:
    thread = get_ident()
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if get_ident() == thread and not found and isinstance(first, Tensor):
                found.extend([] if _is_finite(first) else [name])

        return look

    # Modules without parts, which run before those that they are part of.
    parts = [(name, part) for name, part in model.named_modules() if not any(part.children())]
    handles = [part.register_forward_hook(watch(name)) for name, part in parts]
    try:
        model.base_model(**inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _is_finite(values: Tensor) -> bool:
    if values.is_meta or not values.is_floating_point():
        return True
    return bool(values.isfinite().all())
