r"""The training loop that all stages share: resumable, and reproducible step by step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

_WARMUP_STEPS = 100
_FINAL_RATE = 0.03
_REPORT_EVERY = 50
_SMOOTHING = 0.96

#: Takes the number of a step and returns its loss and what to report about it.
StepLoss = Callable[[int], tuple[Tensor, dict[str, float]]]


def step_generator(seed: int, stage: str, step: int) -> np.random.Generator:
    r"""The randomness of one step, whether or not training was interrupted before it.

    Args:
        seed (int): The seed of the training run.
        stage (str): The name of the stage.
        step (int): The number of the step.

    Returns:
        numpy.random.Generator: A generator of its own.

    Examples::

        >>> step_generator(0, "language", 5).random() == step_generator(0, "language", 5).random()
        True
    """
    return np.random.default_rng([1, seed, *stage.encode(), step])


@dataclass(frozen=True)
class Checkpoint:
    r"""Where a stage keeps its state between interruptions.

    Args:
        path (Path): The file.
        seconds (float): Time between two savings. Default: 120.0
    """

    path: Path
    seconds: float = 120.0

    def save(self, model: nn.Module, optimizers: list[torch.optim.Optimizer], step: int) -> None:
        """Write the state after ``step`` steps; an interruption leaves the former file whole."""
        state = {
            "model": model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "step": step,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def load(self, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> int:
        """Restore the state, if there is one, and return the number of steps done."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
        return int(state["step"])


def learning_rate_factor(step: int, steps: int) -> float:
    r"""Linear warm-up, then half a cosine down to 3 percent.

    Args:
        step (int): The number of the step, from 0.
        steps (int): The number of steps in all.

    Returns:
        float: What to multiply the peak learning rate by, in (0, 1].

    Examples::

        >>> learning_rate_factor(99, 10**6) > 0.99 > learning_rate_factor(49, 10**6)
        True
    """
    warmup = min(_WARMUP_STEPS, max(1, steps // 5))
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
    return min(1.0, (step + 1) / warmup) * (_FINAL_RATE + (1 - _FINAL_RATE) * cosine)


def fast_products() -> torch.autocast:
    r"""Matrix products in bfloat16 where the processor has instructions for them, else as they are.

    Elsewhere they take up to 25 times as long as in float32.

    Returns:
        torch.autocast: A context.
    """
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=_multiplies_bfloat16_fast())


def _multiplies_bfloat16_fast() -> bool:
    return bool(torch.cpu.get_capabilities().get("avx512_bf16", False))


def build_optimizers(trained: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    r"""Muon for the weights of linear layers, AdamW for all else.

    Muon multiplies in bfloat16, whatever the weights are. Where that is slow, it would take longer
    than the rest of a step, and AdamW is taken for all weights.

    Args:
        trained (nn.Module): What is trained.
        learning_rate (float): The learning rate.

    Returns:
        list[torch.optim.Optimizer]: The optimisers, none without parameters.
    """
    layers = trained.modules() if _multiplies_bfloat16_fast() else ()
    linear = {id(m.weight) for m in layers if isinstance(m, nn.Linear)}
    # An output layer that shares its weight with an embedding does not count as hidden.
    linear -= {id(m.weight) for m in trained.modules() if isinstance(m, nn.Embedding)}
    matrices = [p for p in trained.parameters() if id(p) in linear]
    others = [p for p in trained.parameters() if id(p) not in linear]
    optimizers: list[torch.optim.Optimizer] = []
    if matrices:
        # Scaled so that learning rates of AdamW fit (Liu et al., 2025, arXiv:2502.16982).
        optimizers.append(
            torch.optim.Muon(
                matrices,
                lr=learning_rate,
                momentum=0.95,
                weight_decay=0.05,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    if others:
        optimizers.append(torch.optim.AdamW(others, learning_rate, (0.9, 0.98), weight_decay=0.01))
    return optimizers


def fit(
    model: nn.Module,
    trained: nn.Module,
    step_loss: StepLoss,
    steps: int,
    learning_rate: float,
    checkpoint: Checkpoint,
    label: str,
) -> None:
    r"""Minimise a loss, in place, and report progress on standard output.

    Matrix products run as :func:`fast_products` has them, the weights stay in float32.

    Args:
        model (nn.Module): What a checkpoint holds: all that changes.
        trained (nn.Module): What the optimisers may change.
        step_loss (Callable): The loss of a step, given its number.
        steps (int): The number of steps; the schedule counts them, never the time.
        learning_rate (float): The peak learning rate.
        checkpoint (Checkpoint): Where to resume from and to save to.
        label (str): What to call the stage in the report.
    """
    optimizers = build_optimizers(trained, learning_rate)
    parameters = list(trained.parameters())
    first = checkpoint.load(model, optimizers)
    started = saved = time.monotonic()
    smooth: dict[str, float] = {}
    model.train()
    for step in range(first, steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * learning_rate_factor(step, steps)
        with fast_products():
            loss, figures = step_loss(step)
        for parameter in model.parameters():
            parameter.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            optimizer.step()
        for name, value in {"loss": loss.item(), **figures}.items():
            smooth[name] = _SMOOTHING * smooth.get(name, value) + (1 - _SMOOTHING) * value
        if (step + 1) % _REPORT_EVERY == 0 or step + 1 == steps:
            report = "  ".join(f"{name} {value:.3f}" for name, value in smooth.items())
            elapsed = time.monotonic() - started
            print(f"{label} {step + 1}/{steps}  {elapsed:.0f} s  {report}", flush=True)
        if time.monotonic() - saved > checkpoint.seconds:
            checkpoint.save(model, optimizers, step + 1)
            saved = time.monotonic()
    if first < steps:
        checkpoint.save(model, optimizers, steps)
    model.eval()
