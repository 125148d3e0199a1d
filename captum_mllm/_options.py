"""Checks of the options that a user gives: numbers, truth values, choices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from numbers import Integral, Real
from reprlib import repr as shown
from typing import Any, TypeGuard


def is_integer(value: Any) -> TypeGuard[int]:
    r"""Whether a value is an integer, and not a truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: Any) -> TypeGuard[float]:
    r"""Whether a value is a real number, also one of NumPy's, and not a truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_number(name: str, value: Any, interval: str, optional: bool = False) -> None:
    r"""Refuse what is not a finite number in an interval.

    Args:
        name (str): the option.
        value (Any): what was given.
        interval (str): as people write it, such as ``"[0, 1]"``, ``"(0, 1)"`` or ``"[0, inf)"``.
        optional (bool): whether None is taken too. Default: False

    Raises:
        TypeError: for what is not a number.
        ValueError: for a number outside of the interval.

    Examples::
        >>> from captum_mllm._options import check_number
        >>> check_number("strength", 0.5, "[0, 1]")
        >>> check_number("strength", float("nan"), "[0, 1]")
        Traceback (most recent call last):
        ValueError: got strength=nan, expected a number in [0, 1]
    """
    if value is None and optional:
        return
    expected = f"expected a number in {interval}{' or None' if optional else ''}"
    if not is_number(value):
        raise TypeError(f"got {name}={shown(value)}, {expected}")
    low, high = map(float, interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    if not (above and below and _is_finite(value)):
        raise ValueError(f"got {name}={shown(value)}, {expected}")


def check_whole(name: str, value: Any, low: int, optional: bool = False) -> None:
    r"""Refuse what is not an integer of at least ``low``; arguments as of :func:`check_number`.

    Raises:
        TypeError: for what is not an integer.
        ValueError: for a smaller one.
    """
    if value is None and optional:
        return
    if not is_integer(value) or value < low:
        kind = ValueError if is_integer(value) else TypeError
        end = " or None" if optional else ""
        raise kind(f"got {name}={shown(value)}, expected an integer of at least {low}{end}")


def check_flag(name: str, value: Any) -> None:
    r"""Refuse what is not a truth value: a text such as ``"no"`` would count as True.

    Raises:
        TypeError: for anything else.
    """
    if type(value).__name__ not in ("bool", "bool_"):
        raise TypeError(f"got {name}={shown(value)}, expected True or False")


def check_choice(name: str, value: Any, known: Sequence[Any]) -> None:
    r"""Refuse what is none of the known values, which are texts or None.

    Raises:
        ValueError: which names them.
    """
    if not (value is None or isinstance(value, str)) or value not in known:
        raise ValueError(
            f"got {name}={shown(value)}, expected one of {', '.join(map(repr, known))}"
        )


def number_tuple(name: str, values: Any) -> tuple[float, ...]:
    r"""The numbers of a list, a tuple, an array or a tensor of one dimension.

    Raises:
        ValueError: for anything else, for texts and truth values, and for collections without an
            order.
    """
    listed = values.tolist() if hasattr(values, "tolist") else values
    if not isinstance(listed, (str, bytes, bytearray, Mapping, Set)):
        try:
            listed = [each.tolist() if hasattr(each, "tolist") else each for each in listed]
            if all(map(is_number, listed)):
                return tuple(map(float, listed))
        except (OverflowError, TypeError):
            # Not a collection, or an integer beyond all floating-point numbers.
            pass
    raise ValueError(f"got {name}={shown(values)}, expected a sequence of numbers")


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        # An integer beyond all floating-point numbers.
        return False
