"""Attribution methods that wrap others: the way from the outermost to the innermost."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from captum.attr import Attribution
from torch import Tensor, nn


def wrapper_chain(method: Attribution) -> Iterator[Attribution]:
    r"""A method, the one that it wraps, and so on, as Captum's wrappers name it."""
    found: Attribution | None = method
    while found is not None:
        yield found
        found = getattr(found, "attribution_method", None)


def describe(method: Attribution, arguments: Mapping[str, Any] | None = None) -> str:
    r"""A method as it is written, with the options that are not the default ones.

    Args:
        method (Attribution): any method.
        arguments (Mapping[str, Any], optional): what its ``attribute`` is called with; each stands
            with the wrapper that takes it. Default: None

    Returns:
        str: such as ``ARC(MSEA(LogitLens, scales=(1.0, 2.0)), top_k=20)``.
    """
    remaining = dict(arguments or {})
    called = inspect.signature(type(method).attribute).parameters
    taken = {name: remaining.pop(name) for name in list(remaining) if name in called}
    made = inspect.signature(type(method).__init__).parameters
    kept = {
        name: getattr(method, name)
        for name in made
        if name not in ("self", "forward_func", "attribution_method") and hasattr(method, name)
    }
    inner = getattr(method, "attribution_method", None)
    parts = [] if inner is None else [describe(inner, remaining)]
    for signature, values in ((made, kept), (called, taken)):
        for name, value in values.items():
            text = _text(value, method)
            is_callback = callable(value) and not isinstance(value, nn.Module)
            if not is_callback and text != _text(signature[name].default, method):
                parts.append(f"{name}={text}")
    return type(method).__name__ + (f"({', '.join(parts)})" if parts else "")


def _text(value: Any, method: Attribution) -> str:
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}"
    if isinstance(value, nn.Module) and isinstance(method.forward_func, nn.Module):
        modules = method.forward_func.named_modules()
        name = next((name for name, module in modules if module is value), "")
        return name or type(value).__name__
    if isinstance(value, (tuple, list)):
        texts = [_text(each, method) for each in value]
        return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"
    # The address of an object tells nothing, and is another one in each run.
    plain = type(value).__repr__ is object.__repr__
    return type(value).__name__ if plain else repr(value)
