"""``Case``, a model before one sample, and ``Method``, a named way to explain it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm import MSEA
from captum_mllm.attr.resizing import resize_inputs
from captum_mllm.attr.text_attribution import text_attribution
from captum_mllm.attr.token_maps import token_attribution, token_maps
from captum_mllm.evaluation.attributions import MapFunction, SharedMaps, product
from captum_mllm.evaluation.examples import Example
from captum_mllm.models import MLLM, ImageTextInput, Query, States
from captum_mllm.models.layout import size_of

Base = Callable[[MLLM], Attribution]


class Case:
    r"""
    A model, an image, and a caption that the model is made to say.

    Args:
        mllm (MLLM): The model.
        example (Example): The image and its caption.
        prepared (tuple[Tensor, Query], optional): What :meth:`~captum_mllm.MLLM.prepare` made of
            them. Default: None, it is made.
    """

    def __init__(
        self, mllm: MLLM, example: Example, prepared: tuple[Tensor, Query] | None = None
    ) -> None:
        self.mllm = mllm
        self.example = example
        if prepared is None:
            inp = ImageTextInput(example.image, example.prompt)
            prepared = mllm.prepare(inp, target=example.answer)
        self.image: Tensor = prepared[0]
        self.query: Query = prepared[1]
        self.words = example.tagged_words(mllm.tokenizer)
        self._images = {size_of(self.image): self.image}
        self._bases: dict[Base, SharedMaps] = {}

    @property
    def nouns(self) -> list[int]:
        """Places of the nouns that speak of an object that can be seen."""
        return [place for place, word in enumerate(self.words) if word.category is not None]

    @property
    def content(self) -> Sequence[int]:
        """Places of the words that say something of the image."""
        return self.example.content_places

    @cached_property
    def regions(self) -> Tensor:
        """What each noun speaks of, and all other objects named before it, (n, 2, H, W), bool."""
        example = self.example
        own = [example.region(place) for place in self.nouns]
        earlier = [example.earlier_objects(place) for place in self.nouns]
        pairs = [torch.stack([mask, others & ~mask]) for mask, others in zip(own, earlier)]
        return torch.stack(pairs) if pairs else example.masks[:0, None].expand(-1, 2, -1, -1)

    @cached_property
    def has_earlier(self) -> Tensor:
        """Which nouns have other objects named before them, which can leak into their maps, (n,)"""
        return self.regions[:, 1].flatten(1).any(1)

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
            self._bases[make] = SharedMaps(make(self.mllm), self._images)
        return self._bases[make]

    def maps(self, method: Attribution, **kwargs: Any) -> Tensor:
        r"""A map for each token of the caption, (T, h, w).

        Args:
            method (Attribution): A method on the model.
            **kwargs (Any): Passed on to the method.
        """
        return token_maps(method, (self.image,), self.query, **kwargs).maps[0][:, 0]

    def of_words(self, maps: Tensor, places: list[int]) -> Tensor:
        r"""Mean over the tokens of some words, (n, ...) from one row for each token."""
        rows = [maps[list(self.words[place].tokens)].mean(0) for place in places]
        return torch.stack(rows) if rows else maps[:0]

    def states(self, scale: float) -> States:
        r"""The states of a pass at a scale."""
        (image,) = resize_inputs((self.image,), scale, "bilinear")
        return self.mllm.states(self._images.setdefault(size_of(image), image), self.query)

    def logits(self, scale: float = 1.0) -> Tensor:
        r"""Logits of the tokens of the caption at a scale, (T, V)."""
        states = self.states(scale)
        everything = torch.arange(self.mllm.vocabulary.size)
        return self.mllm.vocabulary.scores(states.predicting[0, states.n_prompt :], everything)

    @contextmanager
    def sharing(self) -> Iterator[Case]:
        r"""Within it, the model makes a pass with the same image once."""
        with self.mllm.remember():
            yield self


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
        explain (Callable): From a :class:`~captum_mllm.evaluation.method.Case` to a map for each
            token of the caption, (T, h, w).
        role (str): ``"method"``, ``"sweep"`` for another setting of one, ``"combination"`` for
            what is not a published method, or ``"control"``.
        levels (str, optional): How its maps become grey levels for Obj- and Func-IoU: None for
            maps that lie in [0, 1] by themselves; ``"caption"`` where the strength of maps of
            different words compares; ``"map"`` where it does not, or where comparing it does
            worse. Negative values count as 0. Default: "caption"
        every (int): It explains one image of so many, for the sake of its cost. Default: 1
        note (str): What it is, in a few words. Default: nothing
    """

    name: str
    explain: Explain
    role: Role = "method"
    levels: Literal["map", "caption"] | None = "caption"
    every: int = 1
    note: str = ""

    def weigh_text(self, case: Case) -> Tensor | None:
        r"""
        The weights of the earlier text tokens, (T, P + T), as explanations have them.

        Args:
            case (Case): The model and the captioned image.

        Returns:
            Tensor or None: None for what is no attribution, such as a control.
        """
        if isinstance(self.explain, Composition):
            return self.explain.weigh_text(case)
        return None

    def prefetch(self, cases: Sequence[Case]) -> None:
        r"""
        Make the passes of several cases as one batch, where the method knows what it needs.

        Args:
            cases (Sequence[Case]): Cases of one model, within its ``remember``.
        """
        if cases and isinstance(self.explain, Composition):
            self.explain.prefetch(cases)


def attribution(
    base: Base | tuple[Base, ...],
    wrapper: Wrapper | None = None,
    scales: Sequence[float] | None = None,
    combine: Callable[..., Tensor] = product,
    **options: Any,
) -> Composition:
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
        Composition: From a case to a map for each token, (T, h, w).
    """
    bases = base if isinstance(base, tuple) else (base,)
    return Composition(bases, wrapper, scales, combine, options)


@dataclass(frozen=True, eq=False)
class Composition:
    """How a method is put together for a case; see :func:`attribution`."""

    bases: tuple[Base, ...]
    wrapper: Wrapper | None
    scales: Sequence[float] | None
    combine: Callable[..., Tensor]
    options: dict[str, Any]

    def __call__(self, case: Case) -> Tensor:
        method, arguments = self._method([case.base(base) for base in self.bases])
        return case.maps(method, **arguments)

    def prefetch(self, cases: Sequence[Case]) -> None:
        """Make the passes of several cases as one batch."""
        method, arguments = self._method([cases[0].base(base) for base in self.bases])
        prompts = [((case.image,), case.query) for case in cases]
        token_attribution(method).prefetch(prompts, **arguments)

    def weigh_text(self, case: Case) -> Tensor:
        """The weights of the earlier text tokens, (T, P + T)."""
        method, _ = self._method([base(case.mllm) for base in self.bases])
        return text_attribution(method, (case.image,), case.query)

    def _method(self, bases: Sequence[Attribution]) -> tuple[Attribution, dict[str, Any]]:
        """The method around its bases, and the arguments of its ``attribute``."""
        method = bases[0] if len(bases) == 1 else MapFunction(self.combine, *bases)
        arguments: dict[str, Any] = {}
        if self.scales is not None:
            method = MSEA(method)
            # As fine as the largest scale, as MLLMAttribution does it.
            arguments = {"scales": self.scales, "output_size": "largest", **self.options}
        if self.wrapper is not None:
            method = self.wrapper(method)
        return method, arguments
