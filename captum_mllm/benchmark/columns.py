"""The columns of the benchmark's tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from captum_mllm.metrics.aligned_maps import safe_ratio
from captum_mllm.metrics.token_iou import harmonic_mean


def _pooled(total: Tensor, count: Tensor) -> Tensor:
    return safe_ratio(total, count)


def _f1(objects: Tensor, n_objects: Tensor, functions: Tensor, n_functions: Tensor) -> Tensor:
    return harmonic_mean(safe_ratio(objects, n_objects), safe_ratio(functions, n_functions))


@dataclass(frozen=True)
class Column:
    r"""
    A statistic of the scores of all pictures.

    Args:
        title (str): Its heading.
        scores (tuple[str, ...]): The scores that it is made of.
        statistic (Callable): From the means over pictures of the total and the count of each
            score to its value. Default: the mean over words, total by count.
        higher_is_better (bool): Whether large values are good. Default: True
        is_share (bool): Whether it is a share of one, shown in percent. Default: True
    """

    title: str
    scores: tuple[str, ...]
    statistic: Callable[..., Tensor] = _pooled
    higher_is_better: bool = True
    is_share: bool = True


#: Where maps lie.
LOCALIZATION: tuple[Column, ...] = (
    Column("Obj-IoU", ("objects",)),
    Column("Func-IoU", ("functions",)),
    Column("F1-IoU", ("objects", "functions"), _f1),
    Column("F1 per picture", ("f1_per_picture",)),
    Column("pointing", ("pointing",)),
    Column("mass", ("mass",)),
    Column("rank", ("rank",)),
    Column("leakage", ("leakage",), higher_is_better=False),
)

#: Whether the model depends on what they mark.
FAITHFULNESS: tuple[Column, ...] = (
    Column("insertion", ("insertion",)),
    Column("deletion", ("deletion",), higher_is_better=False),
    Column("insertion - deletion", ("difference",)),
    Column("causal correlation", ("causal",)),
)

#: Those on which methods are compared pair by pair.
COMPARED: tuple[Column, ...] = tuple(
    column
    for column in (*LOCALIZATION, *FAITHFULNESS)
    if column.title
    in ("F1-IoU", "pointing", "mass", "leakage", "insertion - deletion", "causal correlation")
)

#: What the model says of the caption at a scale.
TARGETS: tuple[Column, ...] = (
    Column("probability", ("probability",)),
    Column("rank", ("rank",), higher_is_better=False, is_share=False),
    Column("first choice", ("first",)),
    Column("probability, nouns and attributes", ("content_probability",)),
    Column("first choice, nouns and attributes", ("content_first",)),
)

#: How alike the maps of a base are at different scales.
AGREEMENT: tuple[Column, ...] = (Column("agreement", ("agreement",)),)
