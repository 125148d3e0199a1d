"""``picklable_state``: a module's attributes without the hooks that transformers adds in a pass."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

_HOOKS = "transformers.utils.output_capturing"
_MARK = "_output_capturing_hooks_installed"


def has_capturing_hooks(module: nn.Module) -> bool:
    r"""Whether transformers has added hooks to a model, which it does in the first pass of some."""
    return any(hasattr(part, _MARK) for part in module.modules())


def picklable_state(module: nn.Module) -> dict[str, Any]:
    r"""A copy of the attributes of a module that shares its weights, and can be pickled.

    The hooks are functions within functions, which pickle does not know. Without them and their
    mark, transformers adds them anew in the next pass.

    Args:
        module (nn.Module): left unchanged.
    """
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    state = copy.deepcopy(module.__dict__, shared)
    for child in state["_modules"].values():
        for part in child.modules():
            part.__dict__.pop(_MARK, None)
            for number, hook in list(part._forward_hooks.items()):
                if getattr(hook, "__module__", None) == _HOOKS:
                    del part._forward_hooks[number]
    return state
