"""stream_answer: explains an answer word by word while the model says it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import copy_context
from dataclasses import replace
from threading import Semaphore, Thread
from typing import Any, Generic, TypeVar

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.base import check_option_names
from captum_mllm.attr.image_shares import image_shares, image_units
from captum_mllm.attr.text_attribution import text_attribution
from captum_mllm.attr.token_maps import token_attribution, token_maps
from captum_mllm.explain.answer_stream import AnswerStream, AnswerWord
from captum_mllm.explain.explanation import explain
from captum_mllm.explain.result import MLLMAttributionResult
from captum_mllm.models.answers import generate_answers, without_special
from captum_mllm.models.decoding import Decoding
from captum_mllm.models.inputs import ImageTextInput
from captum_mllm.models.layout import size_of
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.prompt import open_query
from captum_mllm.models.query import Answer, Query
from captum_mllm.models.states import States
from captum_mllm.models.words import Word, group_words, token_texts

T = TypeVar("T")

# What ``attribute`` takes and a stream cannot, and why.
_NEEDS_ANSWER = {
    "target": "since it explains what the model says",
    "contrast": "which is of a word that is not said yet",
    "include_prompt": "since it explains words as they are said",
    "segments": "since only methods that perturb take them, and these are not streamed",
    "words": "since only methods that perturb or take gradients do, and these are not streamed",
    "max_image_tokens": "since it sees the image at scale 1 alone",
    "show_progress": "since its words show how far it is",
}


class Lockstep(Generic[T]):
    r"""
    Runs a function in a thread of its own that waits whenever it calls back.

    Of the two threads one works at a time.

    Args:
        work (Callable): the function. It is given a callback without arguments, which returns
            True once the function shall end.
    """

    def __init__(self, work: Callable[[Callable[[], bool]], T]) -> None:
        self._work = work
        self._go, self._stopped = Semaphore(0), Semaphore(0)
        self._closed = False
        self._ended = False
        self._error: BaseException | None = None
        self._result: list[T] = []
        self._thread = Thread(target=copy_context().run, args=(self._run,), daemon=True)

    def advance(self) -> bool:
        r"""Let it run up to its next call; False if it has ended instead.

        Raises:
            BaseException: what the function raises.
        """
        if self._ended:
            return False
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._stopped.acquire()
        if self._ended:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return not self._ended

    def result(self) -> T:
        r"""What the function returned.

        Raises:
            RuntimeError: before it has.
        """
        if not self._result:
            raise RuntimeError("the function has not returned")
        return self._result[0]

    def close(self) -> None:
        r"""Have it end, and wait until it has."""
        self._closed = True
        if self._thread.ident is not None and not self._ended:
            self._go.release()
            self._thread.join()
        self._ended = True

    def _run(self) -> None:
        try:
            self._result.append(self._work(self._pause))
        except BaseException as error:
            self._error = error
        self._ended = True
        self._stopped.release()

    def _pause(self) -> bool:
        if not self._closed:
            self._stopped.release()
            self._go.acquire()
        return self._closed


class Said:
    r"""An answer as far as it has been said.

    Args:
        mllm (MLLM): the model.
        images (tuple[Tensor, ...]): the explained images, (1, 3, H, W).
        question (Query): the question.
    """

    def __init__(self, mllm: MLLM, images: tuple[Tensor, ...], question: Query) -> None:
        self.mllm = mllm
        self.images = images
        self.question = question
        self.encoding = mllm.encode(images, question)
        self._decoding: Decoding | None = None
        self._prompt: States | None = None
        self._finished: bool | None = None

    def generate(self, options: dict[str, Any], pause: Callable[[], bool]) -> tuple[int, ...]:
        """All tokens of the answer; pauses after each."""
        mllm = self.mllm
        self._decoding = decoding = Decoding(mllm.model, pause)
        with mllm.evaluating(), decoding.watching():
            inputs = self.encoding.inputs
            (answer,) = generate_answers(mllm.model, inputs, mllm.tokenizer, options, decoding)
        self._finished = answer.finished
        return answer

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
        answer = Answer(self.answer_ids[:count], self._finished if count is None else None)
        assert self._decoding is not None
        if self._prompt is None:
            self._prompt = self._decoding.prompt_states(self.encoding, self.question, 0, 0)
        states = self._decoding.states(self._prompt, 0, answer)
        return states, replace(self.question, answer_ids=answer)


def stream_answer(
    method: Attribution,
    inp: ImageTextInput,
    options: dict[str, Any],
    kwargs: dict[str, Any],
    of_result: dict[str, Any],
) -> AnswerStream:
    r"""The stream of an answer that is not begun.

    Args:
        method (Attribution): the method that explains it.
        inp (ImageTextInput): the images and the question.
        options (dict): arguments of ``generate``.
        kwargs (dict): arguments of the attribution method.
        of_result (dict): further arguments of :func:`explain`, for the result.

    Raises:
        TypeError: for arguments that need the whole answer, or that the method does not take.
        ValueError: for a method or a scale that cannot be streamed.
    """
    for name in kwargs:
        if name in _NEEDS_ANSWER:
            raise TypeError(
                f"stream() does not take {name}, {_NEEDS_ANSWER[name]}; leave it out, or "
                "give it to attribute() with the answer"
            )
    if reason := token_attribution(method).why_not_streamed(**kwargs):
        raise ValueError(reason)
    check_option_names(token_attribution(method), kwargs)
    mllm = method.forward_func
    images, question = open_query(mllm.backbone, inp)
    said = Said(mllm, images, question)

    def finish() -> MLLMAttributionResult:
        states, query = said.so_far()
        with mllm.remember():
            mllm.keep(states, *images, query)
            return explain(method, inp, images, query, **of_result, **kwargs)

    return AnswerStream(stream_words(method, said, options, kwargs), finish)


def stream_words(
    method: Attribution, said: Said, options: dict[str, Any], kwargs: dict[str, Any]
) -> Iterator[AnswerWord]:
    r"""Each word as soon as what follows it shows that it has ended.

    Args:
        method (Attribution): the method that explains it.
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
                yield _explain(method, said, word, texts, kwargs)
        # What generate itself gives counts at the end.
        texts = token_texts(tokenizer, running.result())
        for word in group_words(texts)[done:]:
            yield _explain(method, said, word, texts, kwargs)
    finally:
        running.close()


def ended_words(texts: Sequence[str]) -> list[Word]:
    r"""The words that stay as they are whatever tokens follow.

    Args:
        texts (Sequence[str]): the texts of the tokens up to now.

    Examples::
        >>> from captum_mllm.explain.stream import ended_words
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
        # A sign at the end, such as a hyphen or a point, may still join the words around it.
        if not (len(rest) > 1 or rest[:1].isalnum() or rest[:1] == " "):
            break
        ended.append(word)
    return ended


def _explain(
    method: Attribution,
    said: Said,
    word: Word,
    texts: Sequence[str],
    kwargs: dict[str, Any],
) -> AnswerWord:
    mllm, images = said.mllm, said.images
    states, query = said.so_far(word[-1] + 1)
    with mllm.remember():
        mllm.keep(states, *images, query)
        found = [
            token_maps(method, images, query, (token, query.answer_ids[token]), **kwargs).maps
            for token in word
        ]
        weights = text_attribution(method, images, query)
    maps = [torch.cat(parts) for parts in zip(*found)]
    shares = image_shares(maps, image_units(method, images, states.layouts))
    predicted = states.predictions(mllm.vocabulary, 1, with_text=False)
    earlier = weights[list(word), : states.n_prompt + word[0]]
    return AnswerWord(
        word="".join(texts[token] for token in word).strip(),
        tokens=tuple(texts[token] for token in word),
        position=word[0],
        probability=float(predicted.probability[list(word)].prod()),
        image_attrs=tuple(each.float().mean(0)[0].cpu() for each in maps),
        image_shares=shares.float().mean(0).cpu(),
        token_attr=earlier.float().sum(0).cpu(),
        sizes=tuple(map(size_of, images)),
    )


def _autocast(device: str) -> torch.autocast:
    """The mode of this thread, which another one does not inherit."""
    dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    return torch.autocast(device, dtype=dtype, enabled=enabled)
