"""``AlternativesView``, why the page says other predictions were not said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from captum_mllm.visualization.page_data import checked_array, quantized


@dataclass(frozen=True, eq=False)
class AlternativesView:
    r"""
    The evidence for each answer token in contrast to K other predictions.

    Args:
        ranks (np.ndarray): Which of the token's top predictions they are, from 0, of shape (T, K).
        maps (Sequence[np.ndarray]): For each explained image a map for each of them, of shape
            (T, K, h, w), on the grid of the token's own map.
        weights (np.ndarray or None): The weights of the prompt tokens, then of the answer tokens,
            of shape (T, K, P + T). Default: None, those of the token itself
    """

    ranks: np.ndarray
    maps: Sequence[np.ndarray]
    weights: np.ndarray | None = None


def alternatives_data(view: AlternativesView | None, data: dict[str, Any]) -> dict[str, Any]:
    r"""
    Check alternatives and pack them for the page's script.

    Args:
        view (AlternativesView or None): The alternatives.
        data (dict[str, Any]): What :func:`page_data` packed.

    Returns:
        dict[str, Any]: What is added to that.

    Raises:
        ValueError: If they do not fit the answer and its predictions, or a value is not finite.
    """
    if view is None:
        return {"alternatives": None}
    n_tokens, n_context = len(data["answer"]), len(data["prompt"]) + len(data["answer"])
    ranks = np.asarray(view.ranks)
    shape = (n_tokens, ranks.shape[-1])
    expected = [(*shape, *packed["grid"]) for packed in data["maps"]]
    maps = [checked_array(f"alternatives.maps[{i}]", each) for i, each in enumerate(view.maps)]
    weights = None
    if view.weights is not None:
        weights = checked_array("alternatives.weights", view.weights)
    if (
        ranks.shape != shape
        or [each.shape for each in maps] != expected
        or (weights is not None and weights.shape != (*shape, n_context))
    ):
        raise ValueError(
            f"alternatives have ranks {ranks.shape} and maps {[each.shape for each in maps]}, "
            f"expected {shape} and {expected}, and {n_context} weights for each."
        )
    predictions = data["predictions"] or [[]] * n_tokens
    for index, (row, best) in enumerate(zip(ranks.tolist(), predictions)):
        if not all(0 <= rank < len(best) for rank in row):
            raise ValueError(
                f"alternatives.ranks[{index}] is {row}; expected some of the {len(best)} "
                "top predictions of the token."
            )
    packed = {
        "ranks": ranks.tolist(),
        "maps": [quantized(each.reshape(-1, *each.shape[2:])) for each in maps],
        "weights": None if weights is None else quantized(weights.reshape(-1, n_context)),
    }
    signed = data["signed"] or any(bool((each < 0).any()) for each in maps)
    return {"alternatives": packed if ranks.size else None, "signed": signed}
