"""Muon's updates are orthogonal, and it minimises what it is given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from captum_mllm.demo.training.muon import Muon, orthogonalize
from captum_mllm.demo.training.optimization import build_optimizers


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (3, 6, 9)])
def test_orthogonalized_matrices_keep_their_singular_vectors(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    found = left.mT @ orthogonalize(matrices) @ right.mT
    values = found.diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.5 and values.max() < 1.4
    assert (found - torch.diag_embed(values)).abs().max() < 0.05


def test_zero_gradients_change_nothing_but_the_decay() -> None:
    weight = nn.Parameter(torch.ones(3, 4))
    weight.grad = torch.zeros(3, 4)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((3, 4), 0.95))


def test_update_has_the_size_of_adamw() -> None:
    weight = nn.Parameter(torch.zeros(64, 32))
    weight.grad = torch.randn(64, 32, generator=torch.Generator().manual_seed(1))
    Muon([weight], lr=1.0, weight_decay=0.0).step()
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2, abs=0.04)


def test_least_squares() -> None:
    generator = torch.Generator().manual_seed(2)
    weight = nn.Parameter(torch.zeros(4, 6))
    truth, inputs = torch.randn(4, 6, generator=generator), torch.randn(50, 6, generator=generator)
    losses = []
    for step in range(200):
        optimizer = Muon([weight], lr=0.1 * (1 - step / 200), weight_decay=0.0)
        weight.grad = None
        loss = (inputs @ (weight - truth).T).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-3 * losses[0]


def test_matrices_of_hidden_layers_alone_go_to_muon() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.hidden = nn.Linear(4, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

    model = Model()
    muon, other = build_optimizers(model, 0.1)
    assert isinstance(muon, Muon)
    assert [p.shape for p in muon.param_groups[0]["params"]] == [(4, 4)]
    assert {p.shape for p in other.param_groups[0]["params"]} == {(7, 4), (4,)}
