"""A named way to explain the words of a caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from captum.attr import Attribution
from torch import Tensor

from captum_mllm import MSEA
from captum_mllm.evaluation.cases import Base, Case
from captum_mllm.evaluation.map_function import MapFunction, product

Explain = Callable[[Case], Tensor]
Role = Literal["method", "sweep", "combination", "control"]
Wrapper = Callable[[Attribution], Attribution]

DEFAULT_SCALES = (0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class Method:
    r"""
    A row of the benchmark.

    Args:
        name (str): What it is called on the command line and in the table.
        explain (Callable): From a :class:`~captum_mllm.evaluation.cases.Case` to a map for each
            token of the caption, (T, h, w).
        role (str): ``"method"``, ``"sweep"`` for another setting of one, ``"combination"`` for
            what is no published method, or ``"control"``.
        levels (str, optional): How its maps become grey levels for Obj- and Func-IoU: None for
            maps that lie in [0, 1] by themselves; ``"caption"`` where the strength of maps of
            different words compares; ``"map"`` where it does not, or where comparing it does
            worse. Negative values count as 0. Default: "caption"
        every (int): It explains one picture of so many, for the sake of its cost. Default: 1
        note (str): What it is, in a few words. Default: nothing
    """

    name: str
    explain: Explain
    role: Role = "method"
    levels: Literal["map", "caption"] | None = "caption"
    every: int = 1
    note: str = ""


def attribution(
    base: Base | tuple[Base, ...],
    wrapper: Wrapper | None = None,
    scales: Sequence[float] | None = None,
    combine: Callable[..., Tensor] = product,
    **options: Any,
) -> Explain:
    r"""
    How a method of this package explains a case, sharing the maps of its base with others.

    Args:
        base (Callable or tuple[Callable, ...]): Makes the base for a model; several make one,
            by ``combine``.
        wrapper (Callable, optional): Makes the method of the base, or of MSEA around it.
            Default: None, no wrapper.
        scales (Sequence[float], optional): Scales of MSEA. Default: None, no MSEA.
        combine (Callable): From the maps of several bases, at one scale, to one map.
            Default: the product of their positive parts
        **options (Any): Passed on to MSEA's ``attribute``.

    Returns:
        Callable: From a case to a map for each token, (T, h, w).
    """
    bases = base if isinstance(base, tuple) else (base,)
    return partial(_explain, bases, wrapper, scales, combine, options)


def _explain(
    bases: tuple[Base, ...],
    wrapper: Wrapper | None,
    scales: Sequence[float] | None,
    combine: Callable[..., Tensor],
    options: dict[str, Any],
    case: Case,
) -> Tensor:
    shared = [case.base(base) for base in bases]
    method: Attribution = shared[0] if len(shared) == 1 else MapFunction(combine, *shared)
    arguments: dict[str, Any] = {}
    if scales is not None:
        method = MSEA(method)
        # As fine as the largest scale, as MLLMAttribution does it.
        arguments = {"scales": scales, "output_size": "largest", **options}
    if wrapper is not None:
        method = wrapper(method)
    return case.maps(method, **arguments)
