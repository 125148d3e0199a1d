"""Threads that share a model: each gets what it gets alone, and the model is as before."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from threading import Barrier, Event, Thread
from typing import Any

import pytest
import torch
from captum.attr import FeatureAblation, Saliency
from torch import Tensor

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    AttendedLens,
    AttentionMaps,
    ImageTextInput,
    LogitLens,
    MLLMAttribution,
    TokenCam,
)
from tests.models.test_model_unchanged import snapshot
from tests.models.tiny_models import build

IMAGE = torch.rand(3, 56, 84, generator=torch.Generator().manual_seed(0))
ANSWER = "a cat"
Job = Callable[[], list[Tensor]]


def asked(text: str = "what is in the image ?") -> ImageTextInput:
    return ImageTextInput(IMAGE, text)


def explained(method: Any, inp: ImageTextInput, **arguments: Any) -> Job:
    def job() -> list[Tensor]:
        result = MLLMAttribution(method).attribute(inp, **arguments)
        return [result.image_attr, result.token_attr, result.output_probs]

    return job


def streamed(mllm: MLLM, inp: ImageTextInput) -> Job:
    def job() -> list[Tensor]:
        with MLLMAttribution(TAM(LogitLens(mllm))).stream(inp, {"max_new_tokens": 3}) as stream:
            maps = [word.image_attr for word in stream]
        return [*maps, stream.result.image_attr]

    return job


def batch(mllm: MLLM) -> Job:
    def job() -> list[Tensor]:
        results = MLLMAttribution(AttendedLens(mllm)).attribute_batch(
            [asked("what ?"), asked("describe this image .")], gen_args={"max_new_tokens": 2}
        )
        return [found for result in results for found in (result.image_attr, result.token_attr)]

    return job


def own_passes(mllm: MLLM) -> dict[str, Job]:
    """What the user does with the model without this package."""
    # As many tokens as the ablated prompts have, which is where embeddings would be mistaken.
    inputs = mllm.encode(*opened(mllm, asked("the red mat in the image ?"))).inputs
    inputs.pop("position_ids", None)
    model: Any = mllm.model

    @torch.no_grad()
    def forward() -> list[Tensor]:
        return [model(**inputs).logits]

    def backward() -> list[Tensor]:
        pixels = inputs["pixel_values"].clone().requires_grad_()
        logits = model(**{**inputs, "pixel_values": pixels}).logits
        return [torch.autograd.grad(logits[:, -1].sum(), pixels)[0]]

    @torch.no_grad()
    def generate() -> list[Tensor]:
        return [model.generate(**inputs, max_new_tokens=4, do_sample=False)]

    return {"own forward": forward, "own gradient": backward, "own generate": generate}


def opened(mllm: MLLM, inp: ImageTextInput) -> tuple[tuple[Tensor, ...], Any]:
    image, query = mllm.prepare(inp, target=ANSWER)
    return (image,), query


def jobs_of(mllm: MLLM) -> dict[str, Job]:
    inp, other = asked(), asked("the dog sits on the mat .")
    target = {"target": ANSWER}
    return {
        "default": explained(ARC(MSEA(AttendedLens(mllm))), inp, **target),
        "own answer": explained(MSEA(LogitLens(mllm)), other, gen_args={"max_new_tokens": 3}),
        "layer": explained(LogitLens(mllm, layer=0), inp, **target),
        "grad cam": explained(TokenCam(mllm), inp, **target),
        "grad cam of the decoder": explained(TokenCam(mllm, 0, tower="decoder"), inp, **target),
        "rollout": explained(AttentionMaps(mllm), inp, **target),
        "gradient rollout": explained(AttentionMaps(mllm, mode="gradient"), inp, **target),
        "words": explained(FeatureAblation(mllm), inp, segments=(2, 2), **target),
        "gradient": explained(Saliency(mllm), inp, words="earlier", **target),
        "stream": streamed(mllm, inp),
        "batch": batch(mllm),
        **own_passes(mllm),
    }


def together(jobs: dict[str, Job], count: int) -> dict[str, list[list[Tensor]]]:
    """What each job gives, every time, when ``count`` threads run them in different orders."""
    names = list(jobs)
    barrier = Barrier(count)

    def work(thread: int) -> list[tuple[str, list[Tensor]]]:
        barrier.wait()
        turns = range(len(names))
        # Steps without a common divisor with the number of jobs take each of them as often.
        order = [names[(thread * 5 + turn * (1 + 2 * (thread % 2))) % len(names)] for turn in turns]
        return [(name, jobs[name]()) for name in order]

    found: dict[str, list[list[Tensor]]] = {name: [] for name in names}
    with ThreadPoolExecutor(count) as pool:
        for results in pool.map(work, range(count)):
            for name, result in results:
                found[name].append(result)
    return found


def used(family: str, attention: str = "sdpa", train: bool = False) -> MLLM:
    mllm = MLLM(*build(family))
    mllm.model.set_attn_implementation(attention)
    # Transformers sets a model up when it is used for the first time.
    for job in own_passes(mllm).values():
        job()
    if train:
        mllm.model.train()
        mllm.model.get_decoder().layers[0].eval()
    next(mllm.model.parameters()).requires_grad_(False)
    return mllm


@pytest.mark.parametrize(
    ("family", "count", "attention", "train"),
    [
        ("qwen2_vl", 2, "sdpa", False),
        ("qwen2_vl", 8, "eager", True),
        ("llava", 3, "sdpa", True),
        ("internvl", 8, "eager", False),
        ("qwen2_5_vl", 3, "eager", False),
    ],
)
def test_threads_give_what_each_gives_alone_and_leave_the_model_as_it_was(
    family: str, count: int, attention: str, train: bool
) -> None:
    mllm = used(family, attention, train)
    jobs = jobs_of(mllm)
    expected = {name: job() for name, job in jobs.items()}
    before = snapshot(mllm.model)
    found = together(jobs, count)
    for name, results in found.items():
        for result in results:
            assert len(result) == len(expected[name]), name
            assert all(map(torch.equal, result, expected[name])), name
    after = snapshot(mllm.model)
    # A generation of the user's own leaves the shift of its positions.
    shifts = {key for key in before if key.endswith("rope_deltas")}
    assert {key: after[key] for key in after if key not in shifts} == {
        key: before[key] for key in before if key not in shifts
    }
    assert not mllm.remembers


def test_own_passes_beside_explanations_are_untouched() -> None:
    """The passes of one thread, as many as fit into those of another."""
    mllm = used("qwen2_vl", "eager")
    own = own_passes(mllm)["own forward"]
    (right,) = own()
    jobs = jobs_of(mllm)
    stop = Event()

    def explain() -> None:
        while not stop.is_set():
            for name in ("words", "default", "grad cam", "gradient rollout", "layer"):
                jobs[name]()

    thread = Thread(target=explain)
    thread.start()
    try:
        wrong = sum(not torch.equal(own()[0], right) for _ in range(150))
    finally:
        stop.set()
        thread.join()
    assert wrong == 0


def test_own_decoding_goes_on_beside_explanations() -> None:
    """Qwen-VL keeps the shift of its positions in the model, between one step and the next."""
    mllm = used("qwen2_vl")
    inputs = mllm.encode(*opened(mllm, asked())).inputs
    inputs.pop("position_ids", None)
    tall = ImageTextInput(torch.rand(3, 280, 56), "?")
    model: Any = mllm.model

    @torch.no_grad()
    def decode(between: Callable[[], object]) -> Tensor:
        start = model(**inputs, use_cache=True)
        between()
        ids = torch.tensor([[70]])
        return model(input_ids=ids, past_key_values=start.past_key_values, use_cache=True).logits

    def explain() -> None:
        MLLMAttribution(ARC(MSEA(AttendedLens(mllm)))).attribute(tall, gen_args=dict(max_length=64))

    def explain_elsewhere() -> None:
        thread = Thread(target=explain)
        thread.start()
        thread.join()

    expected = decode(lambda: None)
    assert torch.equal(decode(explain_elsewhere), expected)
    began, go_on = Event(), Event()
    # What the model holds when the explanation begins is another shift than that of the decoding.
    with torch.no_grad():
        model(**{**mllm.encode(*opened(mllm, tall)).inputs, "position_ids": None})

    def explain_around() -> None:
        """Begins before the first step and ends after the second."""
        with mllm.evaluating():
            began.set()
            go_on.wait()

    thread = Thread(target=explain_around)
    thread.start()
    began.wait()
    start = decode(lambda: (go_on.set(), thread.join()))
    assert torch.equal(start, expected)


def test_what_one_thread_remembers_another_neither_sees_nor_ends() -> None:
    mllm = used("llava")
    image, query = mllm.prepare(asked(), target=ANSWER)
    inside, done = Barrier(2, timeout=60), Barrier(2, timeout=60)

    def other() -> tuple[bool, bool, bool]:
        before = mllm.remembers
        with mllm.remember():
            mllm.states(image, query)
            inside.wait()
            done.wait()
            known = mllm.knows(image, query)
        return before, known, mllm.remembers

    with ThreadPoolExecutor(1) as pool, mllm.remember():
        later = pool.submit(other)
        inside.wait()
        assert not mllm.knows(image, query)
        with mllm.remember():
            pass
        assert mllm.remembers
        done.wait()
        assert later.result() == (False, True, False)
    assert not mllm.remembers


def test_a_thread_with_a_copy_of_the_context_forgets_with_it() -> None:
    mllm = used("llava")
    image, query = mllm.prepare(asked(), target=ANSWER)
    with mllm.remember():
        mllm.states(image, query)
        context = copy_context()
        assert context.run(mllm.knows, image, query)
    assert not context.run(mllm.knows, image, query)
    assert not context.run(lambda: mllm.remembers)


def test_two_models_remember_apart() -> None:
    first, second = used("llava"), used("llava")
    with first.remember():
        assert not second.remembers
        with second.remember():
            assert first.remembers
        assert not second.remembers


def test_models_that_share_a_network_share_its_settings() -> None:
    """Two wrappers around one model that is being trained, one within the other."""
    first = used("llava", train=True)
    second = MLLM(first.model, first.processor)
    before = snapshot(first.model)
    outer, inner = first.evaluating(), second.evaluating()
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    assert not any(module.training for module in first.model.modules())
    inner.__exit__(None, None, None)
    assert snapshot(first.model) == before


def count_tensors() -> tuple[int, int]:
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) is Tensor]
    return len(tensors), sum(each.numel() for each in tensors)


@pytest.mark.parametrize("train", [False, True], ids=["evaluated", "trained"])
def test_memory_is_flat_over_200_explanations(train: bool) -> None:
    mllm = used("llava", train=train)
    jobs = [
        explained(ARC(MSEA(AttendedLens(mllm))), asked(), target=ANSWER, scales=(1.0,)),
        explained(TokenCam(mllm), asked(), target=ANSWER),
    ]

    def run(count: int) -> None:
        with ThreadPoolExecutor(2) as pool:
            for job in jobs:
                turns = [pool.submit(job) for _ in range(count // len(jobs))]
                assert all(turn.result() for turn in turns)

    run(8)
    before = count_tensors()
    hooks = snapshot(mllm.model)
    run(200)
    assert count_tensors() == before
    assert snapshot(mllm.model) == hooks
