"""Run a model for evaluation, and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    r"""Within it, there is no dropout; afterwards the model is as before, on errors too.

    Args:
        model (PreTrainedModel): the model. Its training flags are restored module by module, and
            so is what a pass leaves behind in it.
    """
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    # Where the user's own decoding goes on with a cache, Qwen-VL counts on from this.
    shifts = [(part, part.rope_deltas) for part in modules if hasattr(part, "rope_deltas")]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module, shift in shifts:
            module.rope_deltas = shift
