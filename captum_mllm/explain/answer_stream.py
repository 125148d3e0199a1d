"""AnswerStream: each word of an answer with its explanation, as soon as the model has said it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from captum_mllm.explain.result import MLLMAttributionResult
from captum_mllm.explain.result_parts import only
from captum_mllm.models.layout import Size


@dataclass(frozen=True)
class AnswerWord:
    r"""A word that a model has just said, and what it rests on.

    Args:
        word (str): the word, without the spaces around it.
        tokens (tuple[str, ...]): its tokens.
        position (int): of its first token in the answer.
        probability (float): the model's probability of all its tokens, in [0, 1].
        image_attrs (tuple[Tensor, ...]): its map of each explained image, the mean of its
            tokens', as fine as the method made it, shape (h, w).
        image_shares (Tensor): the share of each explained image in the evidence for it, the mean
            of its tokens', shape (n_images,).
        token_attr (Tensor): weights of the words of the prompt and of the earlier tokens of the
            answer, the sum of its tokens', shape (P + position,).
        sizes (tuple[tuple[int, int], ...]): height and width of each explained image.
    """

    word: str
    tokens: tuple[str, ...]
    position: int
    probability: float
    image_attrs: tuple[Tensor, ...]
    image_shares: Tensor
    token_attr: Tensor
    sizes: tuple[Size, ...]

    @property
    def image_attr(self) -> Tensor:
        """The map of the explained image, (h, w), where it is the only one."""
        return only(self.image_attrs)

    @property
    def maps(self) -> tuple[np.ndarray, ...]:
        """The map of each image at its own size, (H, W), ready for ``visualize_image_attr``."""
        return tuple(
            F.interpolate(map_[None, None], size=size, mode="bilinear")[0, 0].numpy()
            for map_, size in zip(self.image_attrs, self.sizes)
        )

    @property
    def map(self) -> np.ndarray:
        """The map of the explained image at its own size, (H, W), where it is the only one."""
        only(self.image_attrs)
        return self.maps[0]


class AnswerStream(Iterator[AnswerWord]):
    r"""
    The words of an answer while the model says it. Made by :meth:`MLLMAttribution.stream`.

    The model goes on when the next word is asked for. Until the answer has ended, or :meth:`close`
    was called, it is in evaluation mode and watched; do not train it or change it meanwhile. As a
    context manager the stream closes itself.
    """

    def __init__(self, words: Iterator[AnswerWord], finish: Callable[[], Any]) -> None:
        self._words = words
        self._finish = finish
        self._has_ended = self._is_broken_off = False
        self._result: MLLMAttributionResult | None = None

    def __next__(self) -> AnswerWord:
        try:
            return next(self._words)
        except StopIteration:
            self._has_ended = True
            raise
        except BaseException:
            self._is_broken_off = True
            raise

    @property
    def result(self) -> MLLMAttributionResult:
        r"""The explanation of the whole answer, as :meth:`MLLMAttribution.attribute` gives it.

        Raises:
            RuntimeError: before the answer has ended, and if it was broken off.
        """
        if self._result is None:
            if self._is_broken_off or not self._has_ended:
                state = "was broken off" if self._is_broken_off else "has not ended"
                raise RuntimeError(
                    f"the answer {state}; take all of the stream's words before its result"
                )
            self._result = self._finish()
        return self._result

    def close(self) -> None:
        r"""End the answer here, and leave the model as it was."""
        self._is_broken_off |= not self._has_ended
        self._words.close()  # type: ignore[attr-defined]

    def __enter__(self) -> AnswerStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
