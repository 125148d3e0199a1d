"""``hook`` watches the passes of a model, ``shared_setting`` and ``evaluation_mode`` set it up.

Other threads may use the same model at the same time, for explanations or for passes of their own.
So a hook fires in the thread that set it alone, and a setting of the model as a whole is made by
the first that needs it and put back by the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock, get_ident
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

# Held while hooks and settings of models change, never during a pass.
_LOCK = RLock()


@contextmanager
def hook(
    module: nn.Module, function: Callable[..., Any], before: bool = False, first: bool = False
) -> Iterator[None]:
    r"""Within it a function is called with each call of a module in this thread.

    Args:
        module (nn.Module): the module.
        function (Callable): takes the module, its positional arguments and its output; what it
            returns, if not None, replaces the output.
        before (bool): call it before the module, with the module, its positional and its keyword
            arguments. Default: False
        first (bool): call it before all other hooks. Default: False
    """
    thread = get_ident()

    # In other threads torch may call it while it is being registered, without keyword arguments.
    def in_this_thread(module: nn.Module, *arguments: Any) -> Any:
        if get_ident() == thread or torch.compiler.is_compiling():
            return function(module, *arguments)
        return None

    options: dict[str, bool] = {"with_kwargs": True} if before else {}
    register = module.register_forward_pre_hook if before else module.register_forward_hook
    # Torch numbers hooks without a lock of its own.
    with _LOCK:
        handle = register(in_this_thread, prepend=first, **options)
    try:
        yield
    finally:
        with _LOCK:
            handle.remove()


@dataclass
class _Setting:
    """A setting of a model: how many need it, and how it is put back."""

    users: int
    put_back: Callable[[], None]


Settings = WeakKeyDictionary[nn.Module, _Setting]
_evaluations: Settings = WeakKeyDictionary()


@contextmanager
def shared_setting(
    settings: Settings, model: nn.Module, make: Callable[[], Callable[[], None]]
) -> Iterator[None]:
    r"""Within it a model has a setting, which may be needed several times at once.

    Args:
        settings (WeakKeyDictionary): the settings of this kind that are made now.
        model (nn.Module): the model.
        make (Callable): makes the setting, and returns what puts it back.
    """
    with _LOCK:
        if model not in settings:
            settings[model] = _Setting(0, make())
        settings[model].users += 1
    try:
        yield
    finally:
        with _LOCK:
            settings[model].users -= 1
            if not settings[model].users:
                settings.pop(model).put_back()


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    r"""Within it there is no dropout; afterwards each module is trained as before, on errors too.

    A model that is being trained has no dropout in other threads meanwhile.

    Args:
        model (nn.Module): the model.
    """

    def evaluate() -> Callable[[], None]:
        trained = [module for module in model.modules() if module.training]
        if trained:
            model.eval()

        def put_back() -> None:
            for module in trained:
                module.training = True

        return put_back

    with shared_setting(_evaluations, model, evaluate):
        yield
