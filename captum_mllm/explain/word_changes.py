"""``WhatIf`` and ``WordChange``: what a model says with a region hidden, kept beside a result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Hiding = Literal["fill", "mean", "blur", "knockout"]


class WordChange(NamedTuple):
    r"""
    A word before and after something was hidden.

    Args:
        word (str): the word, without the spaces around it.
        before (float): its probability, the product over its tokens.
        after (float): its probability with the region hidden.
        elsewhere (float): its probability with a region of the same shape hidden elsewhere.
        changed (bool): whether another token is the most probable one with the region hidden.
        changed_elsewhere (bool): the same with the other region hidden.
        top_after (list[tuple[str, float]]): the most probable tokens with the region hidden, best
            first, at the first token of the word that is no longer the most probable one, or else
            at its first token.
        top_elsewhere (list[tuple[str, float]]): the same with the other region hidden.
    """

    word: str
    before: float
    after: float
    elsewhere: float
    changed: bool
    changed_elsewhere: bool
    top_after: list[tuple[str, float]]
    top_elsewhere: list[tuple[str, float]]


@dataclass(frozen=True, eq=False)
class WhatIf:
    r"""
    What a model says once a region is hidden.

    Args:
        removed (str): the words whose region was hidden.
        region (numpy.ndarray): the hidden pixels, bool, (H, W).
        control (numpy.ndarray): the pixels of the region elsewhere, bool, (H, W).
        image (PIL.Image.Image): the image without the region; the image itself where attention to
            the region was knocked out.
        words (list[WordChange]): the words of the answer, in their order.
        selected (list[int]): which of them were asked for.
        answer (str): what the model answers of its own with the region hidden; empty where it was
            not asked.
        by (str): how the region was hidden, as in :func:`~captum_mllm.explain.what_if`.
            Default: "fill"
        shown (int): which image of the prompt has the region. Default: 0
    """

    removed: str
    region: np.ndarray
    control: np.ndarray
    image: Image.Image
    words: list[WordChange]
    selected: list[int]
    answer: str = ""
    by: Hiding = "fill"
    shown: int = 0

    @property
    def area(self) -> float:
        """The share of the image that was hidden, in [0, 1]."""
        return float(self.region.mean())

    @property
    def changed(self) -> bool:
        """Whether the model says another word instead of one that was asked for."""
        return any(self.words[index].changed for index in self.selected)

    @property
    def changed_elsewhere(self) -> bool:
        """The same with a region of the same shape hidden elsewhere."""
        return any(self.words[index].changed_elsewhere for index in self.selected)

    def __str__(self) -> str:
        lines = [f"without {self.removed!r} ({self.area:.0%} of the image hidden)"]
        for index, word in enumerate(self.words):
            mark = "*" if index in self.selected else " "
            says = word.top_after[0][0].strip() if word.changed and word.top_after else ""
            lines.append(
                f"{mark} {word.word:<14} {word.before:.2f} -> {word.after:.2f} {says:<14} "
                f"(elsewhere {word.elsewhere:.2f})"
            )
        if self.answer:
            lines.append(f"the model now answers: {self.answer}")
        return "\n".join(lines)

    def to_parts(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, whose names begin with ``name``, and what JSON can hold, for the file of a
        result."""
        tensors = {
            f"{name}.region": torch.from_numpy(self.region),
            f"{name}.control": torch.from_numpy(self.control),
            # Not "image", which numbers the images of the prompt.
            f"{name}.hidden": torch.from_numpy(np.array(self.image.convert("RGB"))),
        }
        return tensors, self.to_facts()

    def to_facts(self) -> dict[str, Any]:
        """What JSON can hold, without the regions and the image."""
        facts = {
            key: getattr(self, key) for key in ("removed", "selected", "answer", "by", "shown")
        }
        return facts | {"words": [word._asdict() for word in self.words]}

    @classmethod
    def from_parts(
        cls, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]
    ) -> WhatIf:
        """What :meth:`to_parts` gave."""
        words = [WordChange(**word) for word in facts["words"]]
        return cls(
            removed=str(facts["removed"]),
            region=tensors[f"{name}.region"].numpy(),
            control=tensors[f"{name}.control"].numpy(),
            image=Image.fromarray(tensors[f"{name}.hidden"].numpy()),
            words=[
                word._replace(
                    top_after=_pairs(word.top_after), top_elsewhere=_pairs(word.top_elsewhere)
                )
                for word in words
            ],
            selected=list(map(int, facts["selected"])),
            answer=str(facts["answer"]),
            by=facts["by"],
            shown=int(facts["shown"]),
        )

    def check(
        self, words: list[str], sizes: list[tuple[int, int]], explained: tuple[int, ...]
    ) -> None:
        r"""Refuse what is not of a result.

        Args:
            words (list[str]): the words of its answer.
            sizes (list[tuple[int, int]]): width and height of each image of its prompt.
            explained (tuple[int, ...]): which of them are explained.

        Raises:
            TypeError: for texts that are not strings.
            ValueError: for other words, a region of another size, or numbers out of range.
        """
        texts = [self.removed, self.answer, *(word.word for word in self.words)]
        ranked = [pair for word in self.words for pair in (*word.top_after, *word.top_elsewhere)]
        if not all(isinstance(text, str) for text in (*texts, *(text for text, _ in ranked))):
            raise TypeError("a what-if has texts that are not strings")
        if [word.word for word in self.words] != words:
            raise ValueError(
                f"the what-if without {self.removed!r} is of the words "
                f"{[word.word for word in self.words]}, expected {words}, those of the answer"
            )
        if not self.selected or not set(self.selected) <= set(range(len(words))):
            raise ValueError(
                f"the what-if without {self.removed!r} selects the words {self.selected}, expected "
                f"some of the {len(words)} words of the answer"
            )
        regions = (self.region, self.control)
        kinds = {(each.shape, each.dtype) for each in regions}
        if self.shown not in explained or kinds != {(sizes[self.shown][::-1], np.dtype(bool))}:
            raise ValueError(
                f"the what-if without {self.removed!r} has regions of {self.region.shape} and "
                f"{self.region.dtype} in image {self.shown}, expected the height and width of an "
                "explained image, bool"
            )
        if not all(word.top_after and word.top_elsewhere for word in self.words):
            raise ValueError(f"the what-if without {self.removed!r} has words without predictions")
        numbers = [value for _, value in ranked]
        numbers += [value for word in self.words for value in word[1:4]]
        if not all(0 <= value <= 1 + 1e-6 for value in numbers):
            raise ValueError(
                f"the what-if without {self.removed!r} has probabilities outside of [0, 1]"
            )


def _pairs(ranked: Any) -> list[tuple[str, float]]:
    return [(text, float(probability)) for text, probability in ranked]
