"""How a cost grows with the numbers of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def growth_exponents(
    image_tokens: Sequence[int], answer_tokens: Sequence[int], costs: Sequence[float]
) -> tuple[float | None, float | None]:
    r"""Exponents of a cost that goes as :math:`c\, N^a T^b`, by least squares of the logarithms.

    Args:
        image_tokens (Sequence[int]): N of each measurement.
        answer_tokens (Sequence[int]): T of each measurement.
        costs (Sequence[float]): the cost of each, above 0.

    Returns:
        tuple[float or None, float or None]: a and b; None for a number that was not varied, or
        not apart from the other.

    Examples::
        >>> growth = growth_exponents([1, 2, 4, 4], [1, 1, 1, 3], [5, 10, 20, 180])
        >>> [round(exponent, 3) for exponent in growth]
        [1.0, 2.0]
    """
    columns = [np.log(np.asarray(tokens, dtype=float)) for tokens in (image_tokens, answer_tokens)]
    varied = [len(set(tokens)) > 1 for tokens in (image_tokens, answer_tokens)]
    used = [column for column, is_varied in zip(columns, varied) if is_varied]
    design = np.column_stack([np.ones(len(costs)), *used])
    if not used or np.linalg.matrix_rank(design) < design.shape[1]:
        return None, None
    fitted = iter(np.linalg.lstsq(design, np.log(np.asarray(costs)), rcond=None)[0][1:].tolist())
    image, answer = (next(fitted) if is_varied else None for is_varied in varied)
    return image, answer
