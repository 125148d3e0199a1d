"""``Example``, an image and an answer whose words are tagged; ``SceneExample``, one of a scene."""

from __future__ import annotations

import argparse
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from captum_mllm._options import check_choice
from captum_mllm.datasets import (
    BACKGROUND,
    CAPTION_STYLES,
    Caption,
    RenderedScene,
    Scene,
    caption,
    counterfactual,
    render,
    sample_scene,
)
from captum_mllm.datasets.phrasing import Phrasing, natural
from captum_mllm.demo import DEMO_PROMPTS
from captum_mllm.metrics import Word

Split = Literal["development", "test"]
Spelling = Literal["words", "natural"]

# Streams of random numbers that neither training nor its evaluation draws from.
_STREAMS: dict[Split, int] = {"development": 4, "test": 5}


def trial_parser(description: str | None, scenes: int) -> argparse.ArgumentParser:
    r"""A parser of what every trial on scenes is told: the model, and which examples.

    Args:
        description (str, optional): what the trial measures.
        scenes (int): how many by default.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=scenes)
    parser.add_argument("--split", default="development", choices=get_args(Split))
    parser.add_argument(
        "--spelling",
        default="words",
        choices=get_args(Spelling),
        help="natural for demo/smolvlm (default: %(default)s)",
    )
    return parser


class Example(ABC):
    r"""
    An image, a question, and an answer whose words are tagged with what they speak of.

    Attributes:
        number (int): Which of its data set it is.
        style (str): The style of the answer, or the data set.
    """

    number: int
    style: str

    @property
    def id(self) -> str:
        return str(self.number)

    @property
    @abstractmethod
    def prompt(self) -> str:
        """The question."""

    @property
    @abstractmethod
    def answer(self) -> str:
        """The answer that is explained."""

    @property
    @abstractmethod
    def image(self) -> Image.Image:
        """The image, 8 bits a channel."""

    @property
    @abstractmethod
    def masks(self) -> Tensor:
        """The visible part of each object, (K, H, W), bool."""

    @property
    @abstractmethod
    def labels(self) -> Tensor | None:
        """The index of the object at each pixel, (H, W), and -1 on the background; None where
        objects overlap."""

    @property
    @abstractmethod
    def things(self) -> Sequence[tuple[int, ...]]:
        """The objects that each word speaks of."""

    @property
    @abstractmethod
    def texts(self) -> Sequence[str]:
        """The words of the answer."""

    @property
    @abstractmethod
    def content_places(self) -> Sequence[int]:
        """Places of the words that say something of the image, such as nouns and attributes."""

    @abstractmethod
    def tagged_words(self, tokenizer: Any) -> tuple[Word, ...]:
        """The words as metrics take them."""

    def region(self, place: int) -> Tensor:
        r"""What a word of the answer speaks of, (H, W), bool; empty for a word such as "and"."""
        return self._union(self.things[place])

    def earlier_objects(self, place: int) -> Tensor:
        r"""The objects that the words before this place speak of, together, (H, W), bool."""
        named = {thing for things in self.things[:place] for thing in things}
        return self._union(sorted(named - {BACKGROUND}))

    def without(self, thing: int) -> Image.Image:
        r"""
        The same image without an object.

        Raises:
            ValueError: If there is no such image.
        """
        raise ValueError("there are no counterfactual images of this data; take another baseline")

    def _union(self, things: Sequence[int]) -> Tensor:
        return self.masks[list(things)].any(0)


@dataclass(frozen=True, eq=False)
class SceneExample(Example):
    r"""
    An image of a scene and its caption.

    Args:
        number (int): Which of its split it is.
        style (str): The style of the caption.
        scene (Scene): What the image shows.
        caption (Caption or Phrasing): The words, and what each speaks of.
    """

    number: int
    style: str
    scene: Scene
    caption: Caption | Phrasing

    @cached_property
    def rendered(self) -> RenderedScene:
        """The image and the visible part of each object."""
        return render(self.scene)

    @property
    def prompt(self) -> str:
        return DEMO_PROMPTS[self.style]

    @property
    def answer(self) -> str:
        return str(self.caption)

    @property
    def things(self) -> Sequence[tuple[int, ...]]:
        return self.caption.objects

    @property
    def texts(self) -> Sequence[str]:
        return self.caption.words

    @property
    def content_places(self) -> Sequence[int]:
        kinds = enumerate(self.caption.kinds)
        return [place for place, kind in kinds if kind in ("noun", "attribute")]

    @property
    def image(self) -> Image.Image:
        """The image, 8 bits a channel."""
        return Image.fromarray(self.rendered.image)

    @cached_property
    def masks(self) -> Tensor:
        """The visible part of each object, (K, H, W), bool."""
        return torch.from_numpy(self.rendered.masks)

    @cached_property
    def labels(self) -> Tensor:
        """The index of the object at each pixel, (H, W); -1 on the background."""
        labels = torch.full(self.masks.shape[1:], BACKGROUND)
        for index, mask in enumerate(self.masks):
            labels[mask] = index
        return labels

    def without(self, thing: int) -> Image.Image:
        return Image.fromarray(render(counterfactual(self.scene, thing)).image)

    def _union(self, things: Sequence[int]) -> Tensor:
        # The background is one of them, too.
        return torch.from_numpy(self.rendered.region(things))

    def tagged_words(self, tokenizer: Any) -> tuple[Word, ...]:
        r"""
        The words as metrics take them.

        The category of a noun is the object that it speaks of, so that of two stars the one that
        is meant counts. The word "background" is a noun without a category.

        Args:
            tokenizer (PreTrainedTokenizerBase): The model's, a fast one.

        Returns:
            tuple[Word, ...]: One for each word of the caption.

        Raises:
            ValueError: If the tokenizer does not know a word.
        """
        text = str(self.caption)
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        found = []
        written = zip(self.caption.words, self.caption.kinds, self.caption.spans)
        for place, (word, kind, (start, end)) in enumerate(written):
            tokens = tuple(
                token
                for token, (first, last) in enumerate(spans["offset_mapping"])
                if first < end and last > start
            )
            ids = {spans["input_ids"][token] for token in tokens}
            if not tokens or tokenizer.unk_token_id in ids:
                raise ValueError(
                    f"the model's tokenizer does not know the word {word!r} of {text!r}; take "
                    "captions of a style, and scenes, that it was trained on"
                )
            if kind == "noun":
                found.append(Word("noun", tokens, self._visible_object(place)))
            else:
                # The metrics score no attributes.
                found.append(Word("function" if kind == "function" else "other", tokens))
        return tuple(found)

    def _visible_object(self, place: int) -> int | None:
        """The one object that a word speaks of, unless nothing of it is seen."""
        things = self.caption.objects[place]
        if len(things) != 1 or things[0] == BACKGROUND or not self.masks[things[0]].any():
            return None
        return things[0]


def sample_examples(
    numbers: Iterable[int],
    split: Split = "development",
    style: str = "caption",
    seed: int = 0,
    spelling: Spelling = "words",
    **options: Any,
) -> list[SceneExample]:
    r"""
    Examples of a split, each by its number.

    Scenes of the two splits, of training and of its evaluation are drawn from different streams
    of random numbers.

    Args:
        numbers (Iterable[int]): Which, from 0 upwards.
        split (str): ``"development"`` for choosing between methods, ``"test"`` for reporting.
            Default: "development"
        style (str): One of :data:`~captum_mllm.datasets.CAPTION_STYLES`. Default: "caption"
        seed (int): Which scenes. Default: 0
        spelling (str): ``"words"`` for captions of lower-case words with spaces between them, as
            the models with a vocabulary of words know them; ``"natural"`` for capitals and
            punctuation, see ``captum_mllm.datasets.phrasing``. Default: "words"
        **options (Any): Passed on to :func:`~captum_mllm.datasets.sample_scene`.

    Returns:
        list[SceneExample]: The examples. Each depends on its own number alone.

    Raises:
        ValueError: If there is no such split, style or spelling, or an option is out of its range.

    Examples::

        >>> (example,) = sample_examples([0], objects=1)
        >>> example.masks.shape
        torch.Size([1, 224, 224])
    """
    check_choice("split", split, get_args(Split))
    check_choice("style", style, CAPTION_STYLES)
    check_choice("spelling", spelling, get_args(Spelling))
    found = []
    for number in numbers:
        generator = np.random.default_rng([_STREAMS[split], seed, number])
        scene = sample_scene(generator, **options)
        words = caption(scene, style)
        written = natural(words) if spelling == "natural" else words
        found.append(SceneExample(number, style, scene, written))
    return found
