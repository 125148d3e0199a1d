r"""The Muon optimiser for the matrices of hidden layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# A quintic whose iteration drives all singular values near 1 in five steps.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5

# The root mean square of an update of AdamW, so that its learning rates fit here.
_UPDATE_SIZE = 0.2


def orthogonalize(matrices: Tensor) -> Tensor:
    r"""The nearest matrices with orthonormal rows or columns, roughly.

    Args:
        matrices (Tensor): (..., rows, columns).

    Returns:
        Tensor: Of the same shape and dtype; singular values lie in about 0.7 to 1.2.

    Examples::

        >>> torch.linalg.svdvals(orthogonalize(torch.diag(torch.tensor([3.0, 1.0])))).min() > 0.6
        tensor(True)
    """
    a, b, c = _COEFFICIENTS
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(-2).norm(dim=-1)[..., None, None].clamp(min=1e-7)
    x = x.bfloat16()
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    r"""Momentum whose updates are made orthogonal (Jordan et al., 2024).

    Scaled as by Liu et al. (2025, `arXiv:2502.16982 <https://arxiv.org/abs/2502.16982>`_), so that
    learning rates and weight decay of AdamW carry over.

    Args:
        parameters (Iterable[nn.Parameter]): Matrices of hidden layers.
        lr (float): The learning rate.
        momentum (float): Share of the former direction that stays at a step. Default: 0.95
        weight_decay (float): Decoupled weight decay. Default: 0.05
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.05,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Change the parameters by their gradients; parameters without one stay."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                directions = torch.stack(
                    [self._direction(p, group["momentum"]) for p in parameters]
                )
                scale = _UPDATE_SIZE * max(shape) ** 0.5 * group["lr"]
                for parameter, update in zip(parameters, orthogonalize(directions)):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(update, alpha=scale)

    def _direction(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Nesterov's momentum."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - momentum)
        return gradient.lerp(state["momentum"], momentum)
