"""``DataExample``, a sample of a data set with the answer that is explained, word by word; and
``ask``, what the model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from captum_mllm import ImageTextInput
from captum_mllm.datasets import Sample
from captum_mllm.datasets.chats import Chat, with_system
from captum_mllm.datasets.entries import find_phrase
from captum_mllm.evaluation.examples import Example
from captum_mllm.metrics import Word
from captum_mllm.models.words import FUNCTION_WORDS, group_words, token_texts


def ask(
    sample: Sample, system: str | None = None, messages: Sequence[dict[str, Any]] = ()
) -> ImageTextInput:
    r"""
    What the model is asked about a sample.

    Args:
        sample (Sample): The sample.
        system (str, optional): The system's message before all others. Default: None
        messages (Sequence[dict]): The chat that the question is asked in, as
            ``captum_mllm.datasets.chats.read_template`` gives it. Default: the question alone

    Raises:
        SampleError: If the image or the question cannot be asked about, or the sample is a chat
            and another one is given.
    """
    if messages and sample.chat is not None:
        raise sample.error("the row is a chat, or has several images; leave out --messages")
    chat = sample.chat or Chat.of_question(sample.question)
    if messages:
        chat = Chat.of(messages).asking(sample.question)
    asked = with_system(chat.messages, system)
    images = [sample.image if file is None else sample.open(file) for file in chat.files]
    try:
        return ImageTextInput(images, messages=asked, explained=chat.explained)
    except (TypeError, ValueError, FloatingPointError) as error:
        raise sample.error(str(error)) from error


class DataExample(Example):
    r"""
    A sample and an answer to its question.

    Words of labelled phrases are nouns with the phrase's region; a phrase that the answer does not
    say is left out. Other words are function words where English has them in a closed class.

    Args:
        sample (Sample): The sample.
        data (str): The name of its data set.
        tokenizer (PreTrainedTokenizerBase): The model's.
        ids (Sequence[int]): The tokens of the answer.
    """

    def __init__(self, sample: Sample, data: str, tokenizer: Any, ids: Sequence[int]) -> None:
        self.sample = sample
        self.number = sample.number
        self.style = data
        token_strings = token_texts(tokenizer, ids)
        self._answer = "".join(token_strings)
        ends = list(accumulate(map(len, token_strings)))
        self._spans = list(zip([0, *ends[:-1]], ends))
        self.token_words = group_words(token_strings)
        self._words, self._things = self._tag()

    @property
    def id(self) -> str:
        return self.sample.id

    @property
    def prompt(self) -> str:
        return self.sample.question

    @property
    def answer(self) -> str:
        return self._answer

    @property
    def image(self) -> Image.Image:
        return self.sample.image

    @cached_property
    def masks(self) -> Tensor:
        return torch.from_numpy(self.sample.masks)

    @property
    def labels(self) -> Tensor | None:
        return None

    @property
    def things(self) -> Sequence[tuple[int, ...]]:
        return self._things

    @property
    def texts(self) -> Sequence[str]:
        return [self.text_of(word.tokens) for word in self._words]

    @property
    def content_places(self) -> Sequence[int]:
        return [
            place
            for place, (word, text) in enumerate(zip(self._words, self.texts))
            if word.kind != "function" and any(map(str.isalnum, text))
        ]

    def tagged_words(self, tokenizer: Any) -> tuple[Word, ...]:
        return self._words

    def text_of(self, tokens: Sequence[int]) -> str:
        r"""What some tokens say, without the spaces around it."""
        return self._answer[self._spans[tokens[0]][0] : self._spans[tokens[-1]][1]].strip()

    def _tag(self) -> tuple[tuple[Word, ...], tuple[tuple[int, ...], ...]]:
        """Phrases and the words between them, in their order, with the region of each."""
        taken: set[int] = set()
        words: list[tuple[Word, tuple[int, ...]]] = []
        for index in range(len(self.sample.regions)):
            tokens = tuple(token for token in self._tokens(index) if token not in taken)
            if tokens:
                taken.update(tokens)
                words.append((Word("noun", tokens, index), (index,)))
        for word in self.token_words:
            if taken.isdisjoint(word):
                text = self.text_of(word).casefold()
                words.append((Word("function" if text in FUNCTION_WORDS else "other", word), ()))
        words.sort(key=lambda pair: pair[0].tokens)
        return tuple(word for word, _ in words), tuple(things for _, things in words)

    def _tokens(self, index: int) -> list[int]:
        """The tokens of a region's phrase; none where the answer does not say it."""
        region, reference = self.sample.regions[index], self.sample.answer
        start = None
        # The answer that is explained may be another than the one in which the place counts.
        if region.start is not None and reference is not None:
            place = find_phrase(self._answer, reference)
            start = None if place is None else place + region.start
        if start is None:
            start = find_phrase(self._answer, region.text)
        if start is None:
            return []
        end = start + len(region.text.rstrip())
        while start < end and self._answer[start].isspace():
            start += 1
        spans = enumerate(self._spans)
        return [token for token, (first, last) in spans if first < end and last > start]
