"""ARC: which rankings are compared, and what the weights do, on states that are set by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from captum_mllm.attr import ARC, LogitLens, rank_biased_overlap
from tests.attr.toy_mllm import ToyMLLM

IMAGE = torch.zeros(1, 3, 8, 8)
CAT, DOG, RED, THE = range(4)
LEFT, RIGHT = torch.tensor([2.0, 0, 0, 0]), torch.tensor([0, 3.0, 3.0, 0])
SEEN = torch.stack([LEFT, torch.zeros(4), RIGHT]).expand(2, 3, 4)


def toy(predicting: Tensor, ids: list[int], words: Tensor) -> ToyMLLM:
    head = torch.eye(predicting.shape[1])
    return ToyMLLM(head, lambda image: SEEN, words, predicting, ids)


def slow_overlap(first: list[int], second: list[int], p: float) -> float:
    """Equation 23 of Webber, Moffat and Zobel, depth by depth."""
    k = len(first)
    agreement = [len(set(first[:d]) & set(second[:d])) / d for d in range(1, k + 1)]
    total = sum(a * p**d for d, a in enumerate(agreement, 1))
    return agreement[-1] * p**k + (1 - p) / p * total


def slow_rank(state: Tensor, k: int) -> list[int]:
    logits = [float(value) for value in state]
    return sorted(range(len(logits)), key=lambda token: -logits[token])[:k]


@pytest.mark.parametrize("runs", [None, (3,), (1, 2), (2, 0, 1)])
@pytest.mark.parametrize("k", [1, 3, 4])
def test_a_token_is_compared_by_what_follows_it_with_what_another_was_drawn_from(
    runs: tuple[int, ...] | None, k: int
) -> None:
    generator = torch.Generator().manual_seed(k)
    n_prompt, n_answer = 3, 4
    ids = [0, 1, 2, 3, 0, 1, 2]
    # The state that predicts the next token of a run is the token's own.
    words = torch.randn(n_prompt, 4, generator=generator)
    predicting = torch.randn(n_prompt + n_answer, 4, generator=generator)
    lengths = (n_prompt,) if runs is None else runs
    start = 0
    for length in lengths:
        for place in range(start, start + length - 1):
            predicting[place + 1] = words[place]
        start += length
    mllm = toy(predicting, ids, words)
    states = mllm.states(IMAGE, mllm.query())
    object.__setattr__(states, "runs", runs)
    arc = ARC(LogitLens(mllm), top_k=k, persistence=0.7)
    found = arc.correlation(states)
    own = [*words, *predicting[n_prompt + 1 :]]
    for t in range(n_prompt + n_answer):
        for j in range(min(t, n_prompt + n_answer - 1)):
            drawn, follows = slow_rank(predicting[t], k), slow_rank(own[j], k)
            assert float(found[t, j]) == pytest.approx(slow_overlap(drawn, follows, 0.7), abs=1e-6)
    previous = ARC(LogitLens(mllm), top_k=k, persistence=0.7, reading="previous")
    rankings = torch.tensor([slow_rank(row, k) for row in predicting])
    expected = rank_biased_overlap(rankings, rankings, 0.7).float()
    torch.testing.assert_close(previous.correlation(states), expected)


# "the cat dog red". After CAT the model expects DOG, which is said; after DOG it expects RED.
WORDS = torch.tensor([[1.0, 0, 0, 0.5]])
PREDICTING = torch.tensor([[0, 0, 0, 1.0], [2.0, 0.5, 0, 0.1], [0.1, 2, 1, 0], [0, 1.0, 2, 0.1]])


@pytest.fixture
def mllm() -> ToyMLLM:
    return toy(PREDICTING, [THE, CAT, DOG, RED], WORDS)


def maps(mllm: ToyMLLM, **options: Any) -> Tensor:
    arc = ARC(LogitLens(mllm), top_k=1, **options)
    return arc.attribute(IMAGE, additional_forward_args=(mllm.query(),))[:, 0]


def test_the_token_just_before_never_interferes(mllm: ToyMLLM) -> None:
    # RED was drawn from the ranking that follows DOG: their correlation is 1, so DOG's map, which
    # is RED's own, stays.
    arc = ARC(LogitLens(mllm), top_k=1)
    states = mllm.states(IMAGE, mllm.query())
    assert arc.correlation(states).diagonal(-1).tolist() == [1, 1, 1]
    assert torch.equal(maps(mllm)[2], LogitLens(mllm).attribute(IMAGE, None, (mllm.query(),))[2, 0])


def test_relevant_tokens_interfere_instead(mllm: ToyMLLM) -> None:
    plain = LogitLens(mllm).attribute(IMAGE, None, (mllm.query(),))[2, 0]
    assert not maps(mllm, suppress="relevant", strength=1.0)[2].any()
    assert not maps(mllm, suppress="relevant", strength=None)[2].any()
    torch.testing.assert_close(maps(mllm, suppress="relevant")[2], plain / 2)


def test_of_another_reading_dog_interferes(mllm: ToyMLLM) -> None:
    # DOG was drawn from a ranking with DOG on top, and RED from one with RED on top.
    # What they share with CAT and DOG is taken out of RED's map, 3 at its peak.
    assert 0 < maps(mllm, reading="previous", strength=1.0)[2].max() < 1


def test_strength_and_power(mllm: ToyMLLM) -> None:
    whole = maps(mllm, reading="previous", strength=1.0)
    half = maps(mllm, reading="previous", strength=0.5)
    none = maps(mllm, reading="previous", strength=0.0)
    plain = LogitLens(mllm).attribute(IMAGE, None, (mllm.query(),))[:, 0].relu()
    assert torch.equal(none, plain)
    torch.testing.assert_close(half[2], (plain[2] + whole[2]) / 2)
    states = mllm.states(IMAGE, mllm.query())
    arc = ARC(LogitLens(mllm), top_k=3)
    squared = ARC(LogitLens(mllm), top_k=3, power=2.0)
    torch.testing.assert_close(squared.weights(states), arc.weights(states) ** 2)


def test_by_activation_a_token_that_does_not_say_the_other_does_not_interfere(
    mllm: ToyMLLM,
) -> None:
    states = mllm.states(IMAGE, mllm.query())
    weights = ARC(LogitLens(mllm), top_k=1, by_activation=True).weights(states)
    plain = ARC(LogitLens(mllm), top_k=1).weights(states)
    # THE's state (1, 0, 0, .5) does not say RED.
    assert plain[3, 0] == 1 and weights[3, 0] == 0


def test_text_is_that_of_the_wrapped_method_or_weighed_by_the_correlation(mllm: ToyMLLM) -> None:
    lens, query = LogitLens(mllm), (mllm.query(),)
    own = lens.attribute_text(IMAGE, query)
    assert torch.equal(ARC(lens, top_k=3).attribute_text(IMAGE, query), own)
    arc = ARC(lens, top_k=3, text_floor=0.2)
    rho = arc.correlation(mllm.states(IMAGE, *query))
    found = arc.attribute_text(IMAGE, query)
    for t in range(3):
        for j in range(4):
            # The answer begins after one token of the prompt.
            expected = float(own[t, j]) * (0.2 + float(rho[t + 1, j])) if j <= t else 0.0
            assert float(found[t, j]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reading": "own"}, "reading='own', expected one of 'next', 'previous'"),
        ({"power": 0.0}, r"power=0\.0, expected a number in \(0, inf\)"),
        ({"power": float("nan")}, "power=nan"),
        ({"text_floor": -1.0}, r"text_floor=-1\.0, expected a number in \[0, inf\)"),
        ({"strength": 1.5}, "strength=1.5, expected a number in"),
        ({"suppress": "all"}, "suppress='all', expected one of 'irrelevant', 'relevant', None"),
    ],
)
def test_options_outside_of_their_range_are_refused(
    mllm: ToyMLLM, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ARC(LogitLens(mllm), **options)
