"""All methods of the benchmark, by name."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from captum_mllm.evaluation.combinations import COMBINATIONS, FURTHER
from captum_mllm.evaluation.controls import CONTROLS
from captum_mllm.evaluation.method import Method
from captum_mllm.evaluation.methods import PUBLISHED, SWEEPS

#: The methods in the order of the table.
METHODS: dict[str, Method] = {
    method.name: method for method in (*PUBLISHED, *COMBINATIONS, *SWEEPS, *FURTHER, *CONTROLS)
}


def select_methods(patterns: Sequence[str]) -> list[Method]:
    r"""
    The methods that are meant by names, patterns or roles.

    Args:
        patterns (Sequence[str]): Names such as ``"lens"``, patterns such as ``"arc*"``, or roles:
            ``"method"``, ``"sweep"``, ``"combination"`` or ``"control"``.

    Returns:
        list[Method]: In the order of the table, each once.

    Raises:
        ValueError: If one of them means no method.

    Examples::

        >>> [method.name for method in select_methods(["lens", "grad-cam*"])]
        ['lens', 'grad-cam', 'grad-cam++', 'grad-cam-msea']
    """
    chosen = set()
    for pattern in patterns:
        found = {
            name
            for name, method in METHODS.items()
            if fnmatchcase(name, pattern) or method.role == pattern
        }
        if not found:
            raise ValueError(f"no method is called {pattern!r}; there are {', '.join(METHODS)}")
        chosen |= found
    return [method for name, method in METHODS.items() if name in chosen]
