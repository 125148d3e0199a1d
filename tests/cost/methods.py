"""The methods whose cost is measured, and the bare passes that each is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from captum.attr import Attribution, IntegratedGradients

from captum_mllm import ARC, MSEA, TAM, AttendedLens, LogitLens, MLLMAttribution
from captum_mllm.attr import AttentionMaps
from captum_mllm.attr.resizing import resize_inputs
from tests.cost.plain_tam import plain_maps, plain_pass
from tests.cost.subjects import Subject, several_inputs

SCALES = (0.5, 1.0, 1.5, 2.0)
STEPS = 32

Work = Callable[[], object]

ONE = "bare pass"
FOUR = "bare passes, four scales"
GENERATE = "generate"


@dataclass(frozen=True)
class Method:
    r"""Something that takes time and memory.

    Args:
        name (str): how it is called in the tables.
        prepare (Callable): from a subject to the work that is measured; what it does itself is
            not.
        bare (str): the name of the bare passes that it needs.
        has_peak (bool): whether its memory is measured. Default: True
        has_stages (bool): whether its time can be split into stages. Default: False
        once (bool): measured in the first round alone, as it takes very long. Default: False
        shapes (tuple[str, ...], optional): shapes at which it is measured unless it is asked for
            by name. Default: None, all
    """

    name: str
    prepare: Callable[[Subject], Work]
    bare: str
    has_peak: bool = True
    has_stages: bool = False
    once: bool = False
    shapes: tuple[str, ...] | None = None


def _bare(scales: Sequence[float]) -> Callable[[Subject], Work]:
    """The passes themselves: their inputs are ready, and one row of logits is asked for."""

    def prepare(subject: Subject) -> Work:
        mllm = subject.mllm
        inputs = [
            mllm.encode(resize_inputs((subject.image,), scale, "bilinear"), subject.query).inputs
            for scale in scales
        ]

        @torch.no_grad()
        def work() -> None:
            for each in inputs:
                mllm.model(**each, logits_to_keep=1, use_cache=False)

        return work

    return prepare


def _inputs(scales: Sequence[float]) -> Callable[[Subject], Work]:
    """The processor's part: from the image as a tensor to the model's inputs."""

    def prepare(subject: Subject) -> Work:
        def work() -> None:
            for scale in scales:
                images = resize_inputs((subject.image,), scale, "bilinear")
                subject.mllm.encode(images, subject.query)

        return work

    return prepare


def _every_token(make: Callable[[Any], Attribution], **options: Any) -> Callable[[Subject], Work]:
    """Maps of all tokens of the answer, in one call."""

    def prepare(subject: Subject) -> Work:
        method = make(subject.mllm)
        return lambda: method.attribute(
            subject.image, additional_forward_args=(subject.query,), **options
        )

    return prepare


def _after_the_pass(make: Callable[[Any], Attribution]) -> Callable[[Subject], Work]:
    """The same, from states that are there already."""

    def prepare(subject: Subject) -> Work:
        states = subject.mllm.states(subject.image, subject.query)
        attribute = _every_token(make)(subject)

        def work() -> object:
            # Nothing that an earlier round derived from them.
            fresh = replace(states, derived={}, of_prompt={})
            with mock.patch.object(subject.mllm, "states", return_value=fresh):
                return attribute()

        return work

    return prepare


def _result(make: Callable[[Any], Attribution], **options: Any) -> Callable[[Subject], Work]:
    """A whole result: maps, text, probabilities, on the CPU."""

    def prepare(subject: Subject) -> Work:
        explainer = MLLMAttribution(make(subject.mllm))
        answer = subject.query.answer_ids
        return lambda: explainer.attribute(subject.inp, target=answer, **options)

    return prepare


def _plain_tam(subject: Subject) -> Work:
    return lambda: plain_maps(*plain_pass(subject))


def _plain_tam_after_the_pass(subject: Subject) -> Work:
    seen = plain_pass(subject)
    return lambda: plain_maps(*seen)


def _integrated_gradients(subject: Subject) -> Work:
    """One token of the answer: it takes all of its steps for each."""
    method = IntegratedGradients(subject.mllm)
    target = (0, subject.query.answer_ids[0])
    return lambda: method.attribute(
        subject.image,
        target=target,
        additional_forward_args=(subject.query,),
        n_steps=STEPS,
        internal_batch_size=1,
    )


def _length(subject: Subject) -> dict[str, int]:
    tokens = len(subject.query.answer_ids)
    return {"max_new_tokens": tokens, "min_new_tokens": tokens}


def _generate(subject: Subject) -> Work:
    mllm = subject.mllm
    _, question = mllm.prepare(subject.inp, target=subject.query.answer_ids[:1])
    inputs = mllm.encode((subject.image,), question).inputs
    model: Any = mllm.model

    @torch.no_grad()
    def work() -> None:
        model.generate(**inputs, do_sample=False, **_length(subject))

    return work


def _generate_explained(make: Callable[[Any], Attribution]) -> Callable[[Subject], Work]:
    """An answer of the model's own, and the whole result for it."""

    def prepare(subject: Subject) -> Work:
        explainer = MLLMAttribution(make(subject.mllm))
        return lambda: explainer.attribute(subject.inp, gen_args=_length(subject))

    return prepare


def _stream(subject: Subject) -> Work:
    """Every word with its map as it is said, and the whole result after the last."""
    explainer = MLLMAttribution(ARC(LogitLens(subject.mllm)))

    def work() -> object:
        with explainer.stream(subject.inp, gen_args=_length(subject)) as stream:
            for _ in stream:
                pass
            return stream.result

    return work


def _several(at_once: bool, own_answers: bool) -> Callable[[Subject], Work]:
    """Some images with a question and an answer each, one at a time or in a batch."""

    def prepare(subject: Subject) -> Work:
        explainer = MLLMAttribution(ARC(LogitLens(subject.mllm)))
        inputs = several_inputs(subject, BATCH)
        answer = None if own_answers else list(subject.query.answer_ids)
        options = _length(subject) if own_answers else None
        if at_once:
            targets = [answer] * BATCH
            return lambda: explainer.attribute_batch(inputs, targets, gen_args=options)
        return lambda: [explainer.attribute(inp, answer, gen_args=options) for inp in inputs]

    return prepare


LENS = "LogitLens"
LENS_SCALES = "MSEA(LogitLens)"
TAM_LENS = "TAM(LogitLens)"
ARC_LENS = "ARC(LogitLens)"
ARC_SCALES = "ARC(MSEA(LogitLens))"
ATTENDED = "AttendedLens"
ATTENDED_SCALES = "ARC(MSEA(AttendedLens))"
TAM_AFTER = "TAM(LogitLens), after the pass"
PLAIN = "plain TAM"
PLAIN_AFTER = "plain TAM, after the pass"
ARC_AFTER = "ARC(LogitLens), after the pass"
EXPLAINED = "MLLMAttribution(LogitLens), generating"
EXPLAINED_ARC = "MLLMAttribution(ARC(LogitLens)), generating"
STREAMED = "MLLMAttribution(ARC(LogitLens)), streaming"
BATCH = 8
SINGLY = f"{BATCH} inputs and answers, singly"
AT_ONCE = f"{BATCH} inputs and answers, in a batch"
SINGLY_OWN = f"{BATCH} inputs, generating, singly"
AT_ONCE_OWN = f"{BATCH} inputs, generating, in a batch"

# Maps at the grid of the largest scale, as MLLMAttribution asks for them.
_GRID: dict[str, Any] = {"scales": SCALES, "output_size": "largest"}

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(ONE, _bare((1.0,)), ONE),
        Method(FOUR, _bare(SCALES), FOUR),
        Method("processor", _inputs((1.0,)), ONE, has_peak=False),
        Method("processor, four scales", _inputs(SCALES), FOUR, has_peak=False),
        Method(LENS, _every_token(LogitLens), ONE, has_stages=True),
        Method(TAM_LENS, _every_token(lambda mllm: TAM(LogitLens(mllm))), ONE, has_stages=True),
        Method(ARC_LENS, _every_token(lambda mllm: ARC(LogitLens(mllm))), ONE, has_stages=True),
        Method(
            LENS_SCALES,
            _every_token(lambda mllm: MSEA(LogitLens(mllm)), **_GRID),
            FOUR,
            has_stages=True,
        ),
        Method(
            ARC_SCALES,
            _every_token(lambda mllm: ARC(MSEA(LogitLens(mllm))), **_GRID),
            FOUR,
            has_stages=True,
        ),
        Method(
            f"MLLMAttribution({ARC_SCALES})",
            _result(lambda mllm: ARC(MSEA(LogitLens(mllm))), scales=SCALES),
            FOUR,
            has_stages=True,
        ),
        Method(ATTENDED, _every_token(AttendedLens), ONE),
        Method(
            ATTENDED_SCALES,
            _every_token(lambda mllm: ARC(MSEA(AttendedLens(mllm))), **_GRID),
            FOUR,
        ),
        Method(
            f"MLLMAttribution({ATTENDED_SCALES})",
            _result(lambda mllm: ARC(MSEA(AttendedLens(mllm))), scales=SCALES),
            FOUR,
        ),
        Method("AttentionMaps", _every_token(AttentionMaps), ONE),
        Method(
            f"IntegratedGradients, {STEPS} steps, one token", _integrated_gradients, ONE, once=True
        ),
        Method(PLAIN, _plain_tam, ONE),
        Method(TAM_AFTER, _after_the_pass(lambda mllm: TAM(LogitLens(mllm))), ONE, has_peak=False),
        Method(
            ARC_AFTER,
            _after_the_pass(lambda mllm: ARC(LogitLens(mllm))),
            ONE,
            has_peak=False,
        ),
        Method(PLAIN_AFTER, _plain_tam_after_the_pass, ONE, has_peak=False),
        Method(GENERATE, _generate, GENERATE),
        Method(EXPLAINED, _generate_explained(LogitLens), GENERATE),
        Method(EXPLAINED_ARC, _generate_explained(lambda mllm: ARC(LogitLens(mllm))), GENERATE),
        Method(STREAMED, _stream, GENERATE),
        Method(SINGLY, _several(False, False), SINGLY, shapes=("tiny",)),
        Method(AT_ONCE, _several(True, False), SINGLY, shapes=("tiny",)),
        Method(SINGLY_OWN, _several(False, True), SINGLY_OWN, shapes=("tiny",)),
        Method(AT_ONCE_OWN, _several(True, True), SINGLY_OWN, shapes=("tiny",)),
    )
}


def choose(names: Sequence[str] | None, shape: str) -> list[Method]:
    r"""The methods of these names and the bare passes that they are held against.

    Args:
        names (Sequence[str], optional): their names. None for all that are measured at a shape.
        shape (str): the shape's name.

    Raises:
        ValueError: for an unknown name.
    """
    if names is None:
        return [
            method for method in METHODS.values() if method.shapes is None or shape in method.shapes
        ]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"unknown methods {unknown}, expected some of {list(METHODS)}")
    wanted = {*names, *(METHODS[name].bare for name in names)}
    return [method for name, method in METHODS.items() if name in wanted]
