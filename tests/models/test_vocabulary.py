from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_mllm.models import vocabulary
from captum_mllm.models.vocabulary import Vocabulary


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
def test_rankings_and_predictions_equal_those_of_all_logits(head: nn.Linear) -> None:
    states, ids = torch.randn(13, 8), torch.randint(0, 101, (13,))
    probabilities = head(states).softmax(-1)
    best = probabilities.topk(10)
    assert torch.equal(Vocabulary(head).rankings(states, 10), best.indices)
    found = Vocabulary(head).predictions(states, ids, 10)
    torch.testing.assert_close(found.probability, probabilities[torch.arange(13), ids])
    assert torch.equal(found.top_ids, best.indices)
    torch.testing.assert_close(found.top_probability, best.values)


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
