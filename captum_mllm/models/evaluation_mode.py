"""Run a model for evaluation, and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from torch import nn
from transformers import PreTrainedModel


@dataclass
class _Users:
    """How many passes of a model are under way, and which modules were being trained before."""

    count: int = 0
    training: list[nn.Module] = field(default_factory=list)


_users: WeakKeyDictionary[nn.Module, _Users] = WeakKeyDictionary()


@contextmanager
def evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    r"""Within it, there is no dropout; afterwards the model is as before, on errors too.

    Where several overlap, as streams of answers may, the last to end restores the model.

    Args:
        model (PreTrainedModel): the model. Its training flags are restored module by module, and
            so is what a pass leaves behind in it.
    """
    modules = list(model.modules())
    # Where the user's own decoding goes on with a cache, Qwen-VL counts on from this.
    shifts = [(part, part.rope_deltas) for part in modules if hasattr(part, "rope_deltas")]
    users = _users.setdefault(model, _Users())
    if users.count == 0:
        users.training = [module for module in modules if module.training]
        if users.training:
            model.eval()
    users.count += 1
    try:
        yield
    finally:
        users.count -= 1
        if users.count == 0:
            for module in users.training:
                module.training = True
            users.training = []
        for module, shift in shifts:
            module.rope_deltas = shift
