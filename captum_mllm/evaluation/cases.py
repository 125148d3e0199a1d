"""One captioned picture before one model, and what its methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.resizing import resize_inputs
from captum_mllm.attr.token_maps import token_maps
from captum_mllm.demo import DEMO_PROMPTS
from captum_mllm.evaluation.examples import Example
from captum_mllm.evaluation.shared_maps import SharedMaps
from captum_mllm.models import MLLM, ImageTextInput, Query, States
from captum_mllm.models.layout import size_of

Base = Callable[[MLLM], Attribution]


class Case:
    r"""
    A model, a picture, and a caption that the model is made to say.

    Args:
        mllm (MLLM): The model.
        example (Example): The picture and its caption.
    """

    def __init__(self, mllm: MLLM, example: Example) -> None:
        self.mllm = mllm
        self.example = example
        self.image: Tensor
        self.query: Query
        inp = ImageTextInput(example.picture, DEMO_PROMPTS[example.style])
        self.image, self.query = mllm.prepare(inp, target=str(example.caption))
        self.words = example.tagged_words(mllm.tokenizer)
        self._pictures = {size_of(self.image): self.image}
        self._bases: dict[Base, SharedMaps] = {}

    @property
    def nouns(self) -> list[int]:
        """Places of the nouns that speak of an object that can be seen."""
        return [place for place, word in enumerate(self.words) if word.category is not None]

    @property
    def scored_tokens(self) -> list[int]:
        """Tokens of the nouns and function words, which are those that metrics look at."""
        return [token for word in self.words if word.kind != "other" for token in word.tokens]

    def base(self, make: Base) -> SharedMaps:
        r"""A method whose maps are computed once for all methods around it.

        Args:
            make (Callable): Makes the method for a model.

        Returns:
            SharedMaps: The method.
        """
        if make not in self._bases:
            self._bases[make] = SharedMaps(make(self.mllm), self._pictures)
        return self._bases[make]

    def maps(self, method: Attribution, **kwargs: Any) -> Tensor:
        r"""A map for each token of the caption, (T, h, w).

        Args:
            method (Attribution): A method on the model.
            **kwargs (Any): Passed on to the method.
        """
        return token_maps(method, self.image, self.query, **kwargs)[:, 0]

    def of_words(self, maps: Tensor, places: list[int]) -> Tensor:
        r"""Mean over the tokens of some words, (n, ...) from one row for each token."""
        rows = [maps[list(self.words[place].tokens)].mean(0) for place in places]
        return torch.stack(rows) if rows else maps[:0]

    def states(self, scale: float) -> States:
        r"""The states of a pass at a scale."""
        (picture,) = resize_inputs((self.image,), scale, "bilinear")
        return self.mllm.states(self._pictures.setdefault(size_of(picture), picture), self.query)

    def logits(self, scale: float = 1.0) -> Tensor:
        r"""Logits of the tokens of the caption at a scale, (T, V)."""
        states = self.states(scale)
        everything = torch.arange(self.mllm.vocabulary.size)
        return self.mllm.vocabulary.scores(states.predicting[0, states.n_words :], everything)

    @contextmanager
    def sharing(self) -> Iterator[Case]:
        r"""Within it, the model makes a pass with the same picture once."""
        with self.mllm.remember():
            yield self
