"""``page_data``: what the page shows, checked and packed for its script; and ``ScaleView``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from operator import index as as_index
from typing import Any

import numpy as np

from captum_mllm.models.prompt_parts import PromptPart

__all__ = ["ScaleView", "checked_array", "page_data", "quantized"]

_ROUNDING = 1e-6


@dataclass(frozen=True, eq=False)
class ScaleView:
    r"""
    The maps of one scale of the images, to be shown beside the combined ones.

    Args:
        scale (float): Factor by which the images were resized; positive.
        maps (np.ndarray or Sequence[np.ndarray]): A map of the image for each answer token, of
            shape (T, h, w); those of each of several images. The grid may differ from that of the
            combined maps.
        probs (np.ndarray or None): Probability of each answer token at this scale, of shape (T,),
            in [0, 1]. Default: None
    """

    scale: float
    maps: np.ndarray | Sequence[np.ndarray]
    probs: np.ndarray | None = None


def page_data(
    *,
    n_images: int,
    prompt_tokens: Sequence[str],
    prompt_parts: Sequence[PromptPart],
    answer_tokens: Sequence[str],
    words: Sequence[Sequence[int]],
    image_attr: np.ndarray | Sequence[np.ndarray],
    image_shares: np.ndarray | None,
    token_attr: np.ndarray | None,
    output_probs: np.ndarray | None,
    top_predictions: Sequence[Sequence[tuple[str, float]]] | None,
    scales: Sequence[ScaleView],
) -> dict[str, Any]:
    r"""
    Check the arguments of :func:`~captum_mllm.visualization.page.render_page`, named as there, and
    pack them into values that JSON can hold. ``n_images`` is the number of images.

    Returns:
        dict[str, Any]: What the page's script reads. ``"signed"`` says whether a map holds negative
            values.
    """
    prompt = _checked_tokens("prompt_tokens", prompt_tokens)
    answer = _checked_tokens("answer_tokens", answer_tokens)
    if not answer:
        raise ValueError("answer_tokens is empty; give at least one token to explain.")
    count = len(answer)
    maps = _checked_maps("image_attr", image_attr, count)
    views = [
        _checked_scale(f"scales[{index}]", view, count, len(maps))
        for index, view in enumerate(scales)
    ]
    data: dict[str, Any] = {
        "prompt": prompt,
        "turns": _turns(prompt_parts, len(prompt), n_images),
        "answer": answer,
        "words": _checked_words(words, count),
        "maps": list(map(quantized, maps)),
        "shares": None,
        "weights": None,
        "probs": None,
        "predictions": None,
        "scales": [
            {
                "scale": float(f"{view.scale:.4g}"),
                "maps": list(map(quantized, view.maps)),
                "probs": None if view.probs is None else view.probs.tolist(),
            }
            for view in views
        ],
        "signed": any(
            bool((grid < 0).any())
            for grids in [maps, *(view.maps for view in views)]
            for grid in grids
        ),
    }
    if image_shares is not None and len(maps) > 1:
        shares = checked_array("image_shares", image_shares)
        if shares.shape != (count, len(maps)) or shares.min() < 0 or shares.max() > 1 + _ROUNDING:
            raise ValueError(
                f"image_shares has shape {shares.shape} and values from {shares.min()} to "
                f"{shares.max()}; expected ({count}, {len(maps)}), a share in [0, 1] of each image "
                "for each answer token."
            )
        data["shares"] = shares.round(4).tolist()
    if token_attr is not None:
        data["weights"] = quantized(_checked_weights(token_attr, len(prompt), count))
    if output_probs is not None:
        data["probs"] = _checked_probs("output_probs", output_probs, count).tolist()
    if top_predictions is not None:
        data["predictions"] = _checked_predictions(top_predictions, count)
    return data


def _checked_tokens(name: str, tokens: Sequence[str]) -> list[str]:
    if isinstance(tokens, str):
        raise TypeError(f"{name} is one string; give a sequence of strings, one for each token.")
    for index, token in enumerate(tokens):
        if not isinstance(token, str):
            raise TypeError(
                f"{name}[{index}] is a {type(token).__name__}; give the text of each token, not "
                "its id."
            )
    return list(tokens)


def _turns(parts: Sequence[PromptPart], n_tokens: int, n_images: int) -> list[dict[str, Any]]:
    """Turns of a chat, each with the parts that it is made of: images, and spans of tokens."""
    parts = parts or ([PromptPart("", n_tokens)] if n_tokens else [])
    counted = sum(part.n_tokens for part in parts)
    if counted != n_tokens:
        raise ValueError(
            f"prompt_parts have {counted} tokens together; expected {n_tokens}, those of "
            "prompt_tokens"
        )
    turns: list[dict[str, Any]] = []
    last, start = None, 0
    for index, part in enumerate(parts):
        if part.image is not None and not 0 <= part.image < n_images:
            raise ValueError(
                f"prompt_parts[{index}] is image {part.image}; expected one of {n_images} images"
            )
        if (part.turn, part.role) != last:
            last = (part.turn, part.role)
            turns.append({"role": part.role, "parts": []})
        end = start + part.n_tokens
        turns[-1]["parts"].append(
            {"span": [start, end]} if part.image is None else {"image": part.image}
        )
        start = end
    return turns


def _checked_words(words: Sequence[Sequence[int]], count: int) -> list[list[int]]:
    groups = [[as_index(token) for token in word] for word in words]
    if [] in groups:
        raise ValueError(f"words[{groups.index([])}] is empty; leave out words without tokens.")
    flat = [token for group in groups for token in group]
    for found, expected in zip_longest(flat, range(count)):
        if found != expected:
            raise ValueError(
                f"words, taken together, name token {found} where {expected} is expected. Name the "
                f"answer tokens 0 to {count - 1} once each, in order; use [[0], [1], ...] where "
                "words are not known."
            )
    return groups


def checked_array(name: str, values: np.ndarray) -> np.ndarray:
    r"""Real and finite numbers as float64.

    Raises:
        TypeError: If they are not real numbers.
        ValueError: If one is not finite.
    """
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"{name} holds values of type {array.dtype}; give real numbers.")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds NaN or infinite values; give finite values only.")
    return array.astype(np.float64)


def _checked_maps(
    name: str, maps: np.ndarray | Sequence[np.ndarray], count: int
) -> list[np.ndarray]:
    """The maps of each image."""
    if isinstance(maps, np.ndarray):
        return [_checked_map(name, maps, count)]
    if not maps:
        raise ValueError(f"{name} is empty; give the maps of at least one image.")
    return [_checked_map(f"{name}[{index}]", each, count) for index, each in enumerate(maps)]


def _checked_map(name: str, maps: np.ndarray, count: int) -> np.ndarray:
    array = checked_array(name, maps)
    if array.ndim != 3 or array.shape[0] != count or array.size == 0:
        raise ValueError(
            f"{name} has shape {array.shape}; expected ({count}, h, w), one map of the image for "
            "each answer token, with at least one cell."
        )
    return array


def _checked_weights(weights: np.ndarray, prompt_count: int, count: int) -> np.ndarray:
    array = checked_array("token_attr", weights)
    if array.shape != (count, prompt_count + count):
        raise ValueError(
            f"token_attr has shape {array.shape}; expected ({count}, {prompt_count + count}): for "
            f"each answer token, the weight of each of the {prompt_count} prompt tokens, then of "
            f"each of the {count} answer tokens."
        )
    later = np.argwhere(np.triu(array[:, prompt_count:]))
    if later.size:
        row, column = later[0]
        raise ValueError(
            f"token_attr[{row}, {prompt_count + column}] is {array[row, prompt_count + column]}, "
            f"the weight of answer token {column} for answer token {row}; expected 0, as an answer "
            "token rests on earlier ones only. Set the weights of the others to 0."
        )
    return array


def _checked_probs(name: str, probs: np.ndarray, count: int) -> np.ndarray:
    array = checked_array(name, probs)
    if array.shape != (count,):
        raise ValueError(
            f"{name} has shape {array.shape}; expected ({count},), one probability for each token."
        )
    if array.min() < -_ROUNDING or array.max() > 1 + _ROUNDING:
        raise ValueError(
            f"{name} runs from {array.min()} to {array.max()}; expected probabilities in [0, 1]. "
            "Exponentiate log-probabilities first."
        )
    return array.clip(0.0, 1.0)


def _checked_predictions(
    predictions: Sequence[Sequence[tuple[str, float]]], count: int
) -> list[list[tuple[str, float]]]:
    if len(predictions) != count:
        raise ValueError(
            f"top_predictions has {len(predictions)} entries; expected {count}, one list for each "
            "answer token."
        )
    checked = []
    for index, best in enumerate(predictions):
        name = f"top_predictions[{index}]"
        labels = _checked_tokens(name, [label for label, _ in best])
        probs = (
            _checked_probs(name, np.array([prob for _, prob in best]), len(best))
            if best
            else np.zeros(0)
        )
        checked.append(list(zip(labels, probs.tolist(), strict=True)))
    return checked


def _checked_scale(name: str, view: ScaleView, count: int, n_images: int) -> ScaleView:
    scale = float(view.scale)
    if not 0 < scale < float("inf"):
        raise ValueError(
            f"{name}.scale is {view.scale}; expected a positive factor of the image's size."
        )
    probs = None if view.probs is None else _checked_probs(f"{name}.probs", view.probs, count)
    maps = _checked_maps(f"{name}.maps", view.maps, count)
    if len(maps) != n_images:
        raise ValueError(f"{name}.maps has maps of {len(maps)} image(s); expected {n_images}.")
    return ScaleView(scale, maps, probs)


def quantized(rows: np.ndarray) -> dict[str, Any]:
    r"""Pack each row into bytes: value = step * (byte - zero).

    The zero point keeps 0 exact (Jacob et al., 2018, equation 1).
    """
    flat = rows.reshape(len(rows), -1)
    low = np.minimum(flat.min(axis=1), 0.0)
    high = np.maximum(flat.max(axis=1), 0.0)
    # A row with both signs needs one byte to spare, as its zero point is rounded too.
    counts = np.where((low < 0) & (high > 0), 254, 255)
    steps = high / counts - low / counts
    divisors = np.where(steps > 0, steps, 1.0)
    zeros = np.rint(-low / divisors)
    cells = np.rint(flat / divisors[:, None]) + zeros[:, None]
    return {
        "grid": rows.shape[1:],
        "steps": steps.tolist(),
        "zeros": zeros.astype(int).tolist(),
        "cells": base64.b64encode(cells.astype(np.uint8).tobytes()).decode("ascii"),
    }
