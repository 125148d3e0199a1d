from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_mllm.models import vocabulary
from captum_mllm.models.states import States
from captum_mllm.models.vocabulary import Predictions, Vocabulary


@pytest.fixture(params=[True, False], ids=["bias", "no bias"])
def head(request: pytest.FixtureRequest) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(8, 101, bias=request.param)


@pytest.fixture(params=[2**22, 300, 1], ids=["one chunk", "some chunks", "a row each"])
def _chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK", request.param)


def test_scores_are_columns_of_the_logits(head: nn.Linear) -> None:
    states, ids = torch.randn(2, 7, 8), torch.tensor([5, 100, 5, 0])
    expected = head(states)[..., ids]
    torch.testing.assert_close(Vocabulary(head).scores(states, ids), expected)


@pytest.mark.usefixtures("_chunks")
@pytest.mark.parametrize("cap", [None, 0.5])
def test_the_mean_logit_is_that_of_all_logits(head: nn.Linear, cap: float | None) -> None:
    states = torch.randn(2, 7, 8, dtype=torch.float64)
    logits = head.double()(states)
    expected = (logits if cap is None else cap * torch.tanh(logits / cap)).mean(-1)
    torch.testing.assert_close(Vocabulary(head, cap).mean_logit(states), expected)


@pytest.mark.usefixtures("_chunks")
def test_rankings_and_predictions_equal_those_of_all_logits(head: nn.Linear) -> None:
    states, ids = torch.randn(13, 8), torch.randint(0, 101, (13,))
    probabilities = head(states).softmax(-1)
    best = probabilities.topk(10)
    assert torch.equal(Vocabulary(head).rankings(states, 10), best.indices)
    found = Vocabulary(head).predictions(states, ids, 10)
    torch.testing.assert_close(found.probability, probabilities[torch.arange(13), ids])
    assert torch.equal(found.top_ids, best.indices)
    torch.testing.assert_close(found.top_probability, best.values)


def states_of(predicting: torch.Tensor, ids: torch.Tensor, n_words: int) -> States:
    words = torch.zeros(1, n_words, predicting.shape[1])
    return States((), (), words, predicting[None], ids)


@pytest.mark.parametrize("order", [[(5, False), (5, True)], [(5, True), (5, False)]], ids=str)
def test_states_compute_all_logits_of_a_token_once(
    head: nn.Linear, order: list[tuple[int, bool]]
) -> None:
    hidden, ids = torch.randn(7, 8), torch.randint(0, 101, (7,))
    states = states_of(hidden, ids, n_words=3)
    rows: list[int] = []

    class Counting(Vocabulary):
        def predictions(self, states: torch.Tensor, ids: torch.Tensor, k: int) -> Predictions:
            rows.append(len(states))
            return super().predictions(states, ids, k)

    counting = Counting(head)
    expected = Vocabulary(head).predictions(hidden, ids, 5)
    for k, with_text in order:
        found = states.predictions(counting, k, with_text)
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other if with_text else other[3:])
    assert sum(rows) == 7
    # More of them than were ranked are ranked anew.
    assert states.predictions(counting, 80, with_text=True).top_ids.shape == (7, 80)
    assert sum(rows) == 14


def test_infinite_logits_rank_last_and_make_no_nan(head: nn.Linear) -> None:
    with torch.no_grad():
        head.weight[40:] = 0
    head.bias = nn.Parameter(torch.zeros(101))
    head.bias.data[40:] = -torch.inf
    states, ids = torch.randn(4, 8), torch.tensor([0, 39, 40, 100])
    found = Vocabulary(head).predictions(states, ids, 50)
    expected = head(states).softmax(-1)
    torch.testing.assert_close(found.probability, expected[torch.arange(4), ids])
    torch.testing.assert_close(found.top_probability, expected.topk(50).values)
    assert (found.top_ids[:, :40] < 40).all()


def test_no_states_have_no_rankings(head: nn.Linear) -> None:
    assert Vocabulary(head).rankings(torch.empty(0, 8), 5).shape == (0, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    head = nn.Linear(4096, 50, bias=False).to(dtype)
    states, ids = torch.randn(3, 4096).to(dtype), torch.arange(50)
    scores = Vocabulary(head).scores(states, ids)
    exact = states.double() @ head.weight.double().T
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("_chunks")
def test_log_probabilities_do_not_underflow(head: nn.Linear) -> None:
    states, ids = 100 * torch.randn(2, 13, 8), torch.randint(0, 101, (13,))
    expected = head(states).log_softmax(-1)[:, torch.arange(13), ids]
    assert expected.min() < -110
    torch.testing.assert_close(Vocabulary(head).log_probability(states, ids), expected)
