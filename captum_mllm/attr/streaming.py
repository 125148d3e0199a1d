"""Explain an answer word by word while the model says it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.answer_stream import AnswerStream, AnswerWord
from captum_mllm.attr.context_suppression import ContextSuppression
from captum_mllm.attr.lockstep import Lockstep
from captum_mllm.attr.logit_lens import LogitLens
from captum_mllm.attr.msea import MSEA
from captum_mllm.attr.wrapper_chain import wrapper_chain
from captum_mllm.explain.result import MLLMAttributionResult
from captum_mllm.models.answers import generate_answers, without_special
from captum_mllm.models.decoding import Decoding
from captum_mllm.models.image_text_input import ImageTextInput
from captum_mllm.models.layout import size_of
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.preparation import open_query
from captum_mllm.models.query import Query
from captum_mllm.models.states import States
from captum_mllm.models.words import Word, group_words, token_texts

if TYPE_CHECKING:
    from captum_mllm.attr.mllm_attribution import MLLMAttribution


class Said:
    r"""An answer as far as it has been said.

    Args:
        mllm (MLLM): the model.
        image (Tensor): the picture, (1, 3, H, W).
        question (Query): the question.
    """

    def __init__(self, mllm: MLLM, image: Tensor, question: Query) -> None:
        self.mllm = mllm
        self.image = image
        self.question = question
        self.encoding = mllm.encode((image,), question)
        self._decoding: Decoding | None = None
        self._prompt: States | None = None

    def generate(self, options: dict[str, Any], pause: Callable[[], bool]) -> tuple[int, ...]:
        """All tokens of the answer; pauses after each."""
        mllm = self.mllm
        self._decoding = decoding = Decoding(mllm.model, pause)
        with mllm.evaluating(), decoding.watching():
            inputs = self.encoding.inputs
            return generate_answers(mllm.model, inputs, mllm.tokenizer, options, decoding)[0]

    @property
    def answer_ids(self) -> tuple[int, ...]:
        """The tokens said up to now, without special ones at the end.

        Raises:
            ValueError: if they are not said one after the other.
        """
        decoding = self._decoding
        if decoding is None or not decoding.is_whole:
            raise ValueError(
                "only an answer that is made token by token, by a model that is not compiled, can "
                "be streamed; leave out what asks for beam search, assisted decoding, or decoding "
                "without a cache, or explain the answer with attribute()"
            )
        tokens = torch.stack([step[0] for step in decoding.tokens]).tolist()
        return without_special(tokens, self.mllm.tokenizer)

    def so_far(self, count: int | None = None) -> tuple[States, Query]:
        """The states of the first tokens, and the query for them; of all by default."""
        answer = self.answer_ids[:count]
        assert self._decoding is not None
        if self._prompt is None:
            self._prompt = self._decoding.prompt_states(self.encoding, self.question, 0, 0)
        states = self._decoding.states(self._prompt, 0, answer)
        return states, replace(self.question, answer_ids=answer)


def stream_answer(
    explainer: MLLMAttribution,
    inp: ImageTextInput,
    options: dict[str, Any],
    kwargs: dict[str, Any],
) -> AnswerStream:
    r"""The stream of an answer that is not begun; arguments as of :meth:`MLLMAttribution.stream`.

    Raises:
        ValueError: for a method or a scale that cannot be streamed.
    """
    check_streams(explainer.attribution_method, kwargs)
    mllm = explainer.forward_func
    (image,), question = open_query(mllm.processor, inp, mllm.device, every_picture=False)
    said = Said(mllm, image, question)

    def finish() -> MLLMAttributionResult:
        states, query = said.so_far()
        with mllm.remember():
            mllm.keep(states, image, query)
            return explainer.explain(inp, image, query, **kwargs)

    return AnswerStream(stream_words(explainer, said, options, kwargs), finish)


def stream_words(
    explainer: MLLMAttribution, said: Said, options: dict[str, Any], kwargs: dict[str, Any]
) -> Iterator[AnswerWord]:
    r"""Each word as soon as what follows it shows that it has ended.

    Args:
        explainer (MLLMAttribution): what explains it.
        said (Said): the answer, not begun.
        options (dict): arguments of ``generate``.
        kwargs (dict): arguments of the attribution method.
    """
    tokenizer = said.mllm.tokenizer
    autocast = _autocast(said.mllm.device.type)

    def generate(pause: Callable[[], bool]) -> tuple[int, ...]:
        with autocast:
            return said.generate(options, pause)

    running = Lockstep(generate)
    done = 0
    try:
        while running.advance():
            texts = token_texts(tokenizer, said.answer_ids)
            for word in ended_words(texts)[done:]:
                done += 1
                yield _explain(explainer, said, word, texts, kwargs)
        # What generate itself gives counts at the end.
        texts = token_texts(tokenizer, running.result())
        for word in group_words(texts)[done:]:
            yield _explain(explainer, said, word, texts, kwargs)
    finally:
        running.close()


def ended_words(texts: Sequence[str]) -> list[Word]:
    r"""The words that stay as they are whatever tokens follow.

    Args:
        texts (Sequence[str]): the texts of the tokens up to now.

    Examples::
        >>> from captum_mllm.attr.streaming import ended_words
        >>> ended_words(["a", " T", "-"])
        [(0,)]
        >>> ended_words(["a", " T", "-", " or"])
        [(0,), (1,), (2,)]
    """
    words = group_words(texts)
    ended = []
    for word in words:
        # Bytes that make no character yet may still become any.
        rest = "".join(texts[word[-1] + 1 :]).rstrip("\ufffd")
        # A sign at the end, such as a hyphen or a point, may yet join what stands around it.
        if not (len(rest) > 1 or rest[:1].isalnum() or rest[:1] == " "):
            break
        ended.append(word)
    return ended


def check_streams(method: Attribution, kwargs: dict[str, Any]) -> None:
    r"""Refuse a method that needs more than what a model computes while it answers.

    Raises:
        ValueError: for one that does.
    """
    # A base that cannot be streamed is told before its scales.
    for found in reversed(list(wrapper_chain(method))):
        if isinstance(found, MSEA):
            scales = kwargs.get("scales")
            if scales is None or tuple(scales) != (1.0,):
                several = ", which means several" if scales is None else ""
                raise ValueError(
                    f"got scales={scales}{several}, but while a model answers it sees the picture "
                    "at scale 1 alone; stream with scales=(1.0,), or explain the answer with "
                    "attribute()"
                )
        elif isinstance(found, LogitLens):
            if found.layer is not None:
                raise ValueError(
                    f"got LogitLens(layer={found.layer}), but while a model answers only the "
                    "states of its last layer are read; leave out the layer, or explain the "
                    "answer with attribute()"
                )
        elif not isinstance(found, ContextSuppression):
            raise ValueError(
                f"{found.get_name()} needs passes of its own, so that words cannot be explained "
                "while they are said; stream with LogitLens, TAM or ARC around it, or explain the "
                "answer with attribute()"
            )


def _explain(
    explainer: MLLMAttribution,
    said: Said,
    word: Word,
    texts: Sequence[str],
    kwargs: dict[str, Any],
) -> AnswerWord:
    mllm, image = said.mllm, said.image
    states, query = said.so_far(word[-1] + 1)
    method = explainer.attribution_method
    if any(isinstance(found, MSEA) for found in wrapper_chain(method)):
        kwargs = {"output_size": "largest", **kwargs}
    with mllm.remember():
        mllm.keep(states, image, query)
        maps = [
            method.attribute(
                image,
                target=(token, query.answer_ids[token]),
                additional_forward_args=(query,),
                **kwargs,
            )
            for token in word
        ]
        weights = explainer.text_weights(image, query, states)
    predicted = states.predictions(mllm.vocabulary, 1, with_words=False)
    earlier = weights[list(word), : states.n_words + word[0]]
    return AnswerWord(
        word="".join(texts[token] for token in word).strip(),
        tokens=tuple(texts[token] for token in word),
        position=word[0],
        probability=float(predicted.probability[list(word)].prod()),
        image_attr=torch.cat(maps).float().mean(0)[0].cpu(),
        token_attr=earlier.float().sum(0).cpu(),
        size=size_of(image),
    )


def _autocast(device: str) -> torch.autocast:
    """The mode of this thread, which another one does not inherit."""
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return torch.autocast(device, dtype=dtype, enabled=enabled)
