"""``ResultValues``: the maps and weights of a result, and how tokens and words are selected."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import InterpretableInput, LLMAttributionResult
from PIL import Image
from torch import Tensor

from captum_mllm._options import check_choice, is_integer
from captum_mllm.attr.image_shares import image_shares as shares_of
from captum_mllm.explain.alternatives import Alternatives
from captum_mllm.explain.reasons import Reasons
from captum_mllm.explain.result_parts import (
    ScaleResult,
    WordWeight,
    as_tuple,
    check_finished,
    check_fit,
    check_images,
    check_numbers,
    check_prompt_parts,
    check_texts,
    check_times,
    named,
    only,
)
from captum_mllm.explain.selection import Selection, select_tokens
from captum_mllm.explain.signals import check_signals
from captum_mllm.explain.word_changes import WhatIf
from captum_mllm.models.prompt_parts import PromptPart
from captum_mllm.models.query import name_images
from captum_mllm.models.words import Word, group_runs


class ResultValues(LLMAttributionResult):
    r"""What a result holds; :class:`~captum_mllm.MLLMAttributionResult` has the arguments and shows
    it."""

    token_attr: Tensor
    output_probs: Tensor

    def __init__(
        self,
        *,
        input_tokens: list[str],
        output_tokens: list[str],
        image_attr: Tensor | Sequence[Tensor],
        token_attr: Tensor,
        output_probs: Tensor,
        n_prompt: int,
        words: Sequence[Word],
        top_predictions: Sequence[Sequence[tuple[str, float]]],
        images: Sequence[Image.Image],
        explained: Sequence[int] | None = None,
        image_shares: Tensor | None = None,
        prompt_parts: Sequence[PromptPart] = (),
        segments: Tensor | Sequence[Tensor] | None = None,
        scales: Sequence[ScaleResult] = (),
        reasons: Reasons | None = None,
        signals: Tensor | None = None,
        alternatives: Alternatives | None = None,
        what_ifs: Sequence[WhatIf] = (),
        unit: str = "",
        finished: bool | None = None,
        prompt: str = "",
        method: str = "",
        model: str = "",
        times: Sequence[float] = (),
        inp: InterpretableInput | None = None,
    ) -> None:
        image_attrs = tuple(map(_plain, as_tuple(image_attr)))
        token_attr, output_probs = _plain(token_attr), _plain(output_probs)
        words = [tuple(word) for word in words]
        check_fit(
            input_tokens,
            output_tokens,
            image_attrs,
            token_attr,
            output_probs,
            n_prompt,
            words,
            top_predictions,
            scales,
        )
        super().__init__(
            input_tokens=list(input_tokens),
            output_tokens=list(output_tokens),
            seq_attr=token_attr.sum(0),
            token_attr=token_attr,
            output_probs=output_probs,
            inp=inp,
        )
        self.image_attrs = image_attrs
        self.n_prompt = n_prompt
        self.words = words
        self.top_predictions = [[(str(a), float(b)) for a, b in row] for row in top_predictions]
        self.images = list(images)
        self.explained = tuple(range(len(image_attrs)) if explained is None else explained)
        if image_shares is None:
            cells = [maps[0].numel() for maps in image_attrs]
            image_shares = shares_of([maps[:, None] for maps in image_attrs], cells)
        self.image_shares = _plain(image_shares)
        self.prompt_parts = list(prompt_parts) or [
            *(PromptPart("", image=index) for index in range(len(self.images))),
            PromptPart("", n_tokens=n_prompt),
        ]
        labels = None
        if segments is not None:
            labels = tuple(each.detach().cpu().to(torch.int32) for each in as_tuple(segments))
        self._labels = labels
        self.scales = list(scales)
        self.reasons = reasons
        self.signals = None if signals is None else signals.detach().float().cpu()
        self.alternatives = alternatives
        self.what_ifs: tuple[WhatIf, ...] = ()
        self.unit = unit
        self.finished = finished
        self.prompt = prompt
        self.method = method
        self.model = model
        self.times = check_times(times, len(self.images))
        check_texts(
            {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens},
            (unit, prompt, method, model),
            self.prompt_parts,
        )
        check_finished(finished)
        check_images(self.images, self.explained, len(image_attrs), labels)
        check_prompt_parts(self.prompt_parts, n_prompt)
        if self.image_shares.shape != (len(output_tokens), len(image_attrs)):
            raise ValueError(
                f"image_shares have shape {tuple(self.image_shares.shape)}, expected "
                f"{(len(output_tokens), len(image_attrs))}"
            )
        numbers = {name: getattr(self, name) for name in ("token_attr", "output_probs")}
        numbers["image_shares"] = self.image_shares
        numbers |= named("image_attr", image_attrs)
        check_numbers(numbers, self.scales)
        if reasons is not None and len(reasons.values) != len(self.output_tokens):
            raise ValueError(
                f"reasons are of {len(reasons.values)} tokens, expected "
                f"{len(self.output_tokens)}, the explained ones"
            )
        if self.signals is not None:
            check_signals(self.signals, len(self.output_tokens))
        if alternatives is not None:
            n_input = len(self.input_tokens)
            ranked = self.top_predictions[n_prompt - n_input :]
            alternatives.check(len(image_attrs), n_input, ranked)
        for what_if in what_ifs:
            self.keep_what_if(what_if)

    def keep_what_if(self, what_if: WhatIf) -> None:
        r"""
        Keep what the model says without the region of a word, for the page and the file.

        Args:
            what_if (WhatIf): from :meth:`MLLMAttribution.what_if` with this result.

        Raises:
            TypeError: if it is something else.
            ValueError: if it is of another answer or image.
        """
        if not isinstance(what_if, WhatIf):
            raise TypeError(f"got {type(what_if).__name__}, expected what what_if() returns")
        skipped = self.n_prompt - self._first
        words = [text for word, text in zip(self.words, self.output_words) if word[0] >= skipped]
        what_if.check(words, [image.size for image in self.images], self.explained)
        self.what_ifs += (what_if,)

    def __repr__(self) -> str:
        sizes = " and ".join("{} x {}".format(*maps.shape[1:]) for maps in self.image_attrs)
        return (
            f"{type(self).__name__}({''.join(self.output_tokens)!r}, method={self.method!r}, "
            f"{len(self.output_tokens)} tokens, maps of {sizes})"
        )

    @property
    def image_attr(self) -> Tensor:
        """The maps of the explained image, (T, h, w), where it is the only one."""
        return only(self.image_attrs)

    @property
    def image(self) -> Image.Image:
        """The explained image, where it is the only one."""
        return self.images[self.explained[self._place(None)]]

    @property
    def segments(self) -> Tensor | tuple[Tensor, ...] | None:
        """A label for each pixel, (H, W), or a tuple of these for several images; None where
        pixels were explained."""
        labels = self._labels
        return labels[0] if labels is not None and len(labels) == 1 else labels

    @property
    def output_words(self) -> list[str]:
        """The explained words, without the spaces around them."""
        return ["".join(self.output_tokens[i] for i in word).strip() for word in self.words]

    @cached_property
    def input_words(self) -> list[Word]:
        """The words of the prompt and of the answer, as indices of ``input_tokens``. No word goes
        over from one text of the prompt into the next."""
        first = self._first
        answer = [tuple(first + token for token in word) for word in self.words]
        if first == 0:
            return answer
        return group_runs(self.input_tokens[: self.n_prompt], self._prompt_runs) + answer

    def map(
        self,
        selection: Selection | None = None,
        *,
        image: int | None = None,
        reduce: Literal["mean", "sum"] = "mean",
    ) -> np.ndarray:
        r"""
        The map of a token, a word or a phrase at an image's own size, ready for Captum's
        ``visualize_image_attr``.

        Args:
            selection (int, str, tuple, slice, list, re.Pattern, optional): the tokens whose maps
                are taken together: a position (negative ones count from the end); a range
                ``(start, end)`` (noninclusive), a ``slice`` or a ``range``; a word or a phrase such
                as ``"red star"``, or the second of them by ``("red star", 2)``; a compiled regular
                expression; or a list of these. A phrase is looked for in the answer first, then in
                the prompt if that was explained too; first with the same case, then with any.
                Default: None, all tokens.
            image (int, optional): which image of the prompt, from 0. Default: None, the explained
                one; needed where there are several.
            reduce (str): ``"mean"`` keeps words of one and of many tokens comparable; ``"sum"`` is
                what Captum's plots of a range show. Default: ``"mean"``

        Returns:
            numpy.ndarray: float32, of shape (H, W).

        Raises:
            TypeError: for a bool, a float, or another type of selection.
            ValueError: if there is no such token or phrase, the selection is empty, or the image
                is not explained or not named.
        """
        place = self._place(image)
        width, height = self.images[self.explained[place]].size
        return self._map(place, self.tokens_of(selection), reduce, (height, width))

    def text_weights(
        self, selection: Selection | None = None, *, reduce: Literal["mean", "sum"] = "mean"
    ) -> list[WordWeight]:
        r"""
        The weights of the earlier words for a token, a word or a phrase.

        Args:
            selection (optional): as in :meth:`map`. Default: None, all tokens, on which the words
                of the prompt alone weigh.
            reduce (str): how the weights for several tokens are taken together, ``"mean"`` or
                ``"sum"``. Default: ``"mean"``

        Returns:
            list[WordWeight]: the words before the last selected token, except the selected ones,
            in their order. The weight of a word is the sum over its tokens.

        Raises:
            TypeError: as in :meth:`map`.
            ValueError: as in :meth:`map`.
        """
        tokens = self.tokens_of(selection)
        weights = _reduced(self.token_attr[tokens].double(), reduce)
        selected = {self._first + token for token in tokens}
        roles = [role for run, role in self._runs for role in [role] * run]
        roles += ["assistant"] * (len(self.input_tokens) - self.n_prompt)
        words = self.input_words
        word_of_token = torch.tensor([i for i, word in enumerate(words) for _ in word])
        sums = weights.new_zeros(len(words)).index_add_(0, word_of_token, weights).tolist()
        return [
            WordWeight(
                word="".join(self.input_tokens[token] for token in word).strip(),
                weight=weight,
                source="prompt" if word[0] < self.n_prompt else "answer",
                role=roles[word[0]],
                tokens=word,
            )
            for word, weight in zip(words, sums)
            if word[-1] < max(selected) and not selected & set(word)
        ]

    @property
    def image_names(self) -> tuple[str, ...]:
        """What the images of the prompt are called: by their number, or those of a video by their
        time."""
        return name_images(len(self.images), self.times)

    @property
    def _first(self) -> int:
        """Where the explained tokens begin among the input tokens."""
        return len(self.input_tokens) - len(self.output_tokens)

    @property
    def _runs(self) -> list[tuple[int, str]]:
        """Number of tokens and role of each text of the prompt."""
        return [(part.n_tokens, part.role) for part in self.prompt_parts if part.image is None]

    @property
    def _prompt_runs(self) -> list[int]:
        return [n_tokens for n_tokens, _ in self._runs]

    def tokens_of(self, selection: Selection | None) -> list[int]:
        r"""The positions of the selected tokens among the explained ones; arguments as of
        :meth:`map`."""
        runs = [len(self.input_tokens) - self.n_prompt]
        if self._first == 0:
            runs = self._prompt_runs + runs
        return select_tokens(selection, self.output_tokens, self.words, runs)

    def _place(self, image: int | None) -> int:
        """Where an image of the prompt is among the explained ones."""
        if image is None and len(self.explained) == 1:
            return 0
        if not is_integer(image) or image not in self.explained:
            names = ", ".join(map(str, self.explained))
            given = "no image" if image is None else f"image={image!r}"
            raise ValueError(f"got {given}, expected one of the explained images: image={names}")
        return self.explained.index(image)

    def _map(
        self, place: int, tokens: list[int], reduce: Literal["mean", "sum"], size: tuple[int, int]
    ) -> np.ndarray:
        map_ = _reduced(self.image_attrs[place][tokens], reduce)[None, None]
        return F.interpolate(map_, size=size, mode="bilinear")[0, 0].numpy()


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu()


def _reduced(values: Tensor, reduce: str) -> Tensor:
    check_choice("reduce", reduce, ("mean", "sum"))
    return values.mean(0) if reduce == "mean" else values.sum(0)
