"""Where bfloat16 is fast, Muon trains hidden matrices, scaled for AdamW's rates; all else AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from captum_mllm.demo.training.optimization import build_optimizers, fast_products


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor that multiplies in bfloat16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


def _orthogonal(matrix: Tensor) -> Tensor:
    """Five of Jordan's quintic iterations on each singular value, in float64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / values.square().sum().sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return left @ torch.diag(values) @ right


@pytest.mark.usefixtures("fast")
@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12), (64, 32)])
def test_hidden_matrices_take_the_steps_of_muon(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(shape[1], shape[0], bias=False)
    (optimizer,) = build_optimizers(layer, 0.01)
    start = layer.weight.detach().double()
    expected, momentum = start.clone(), torch.zeros(shape, dtype=torch.float64)
    for _ in range(10):
        gradient = torch.randn(shape, generator=generator)
        layer.weight.grad = gradient
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        direction = 0.05 * gradient + 0.95 * momentum
        step = 0.01 * 0.2 * max(shape) ** 0.5
        expected = expected * (1 - 0.01 * 0.05) - step * _orthogonal(direction)
    # The iterations run in bfloat16.
    error = (layer.weight.detach() - expected).norm() / (expected - start).norm()
    assert error < 0.03


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.hidden = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.usefixtures("fast")
def test_matrices_of_hidden_layers_alone_go_to_muon() -> None:
    muon, other = build_optimizers(_Model(), 0.1)
    assert isinstance(muon, torch.optim.Muon)
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert {p.shape for p in other.param_groups[0]["params"]} == {(7, 4), (4,)}


def test_elsewhere_all_weights_go_to_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    (optimizer,) = build_optimizers(_Model(), 0.1)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {p.shape for p in optimizer.param_groups[0]["params"]} == {(7, 4), (4, 4), (4,)}


@pytest.mark.parametrize(
    ("found", "dtype"), [({"avx512_bf16": True}, torch.bfloat16), ({"avx2": True}, torch.float32)]
)
def test_products_run_in_bfloat16_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch, found: dict[str, bool], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    with fast_products():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
