r"""The training loop that all stages share: resumable, and reproducible step by step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
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

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Write the state after ``step`` steps; an interruption leaves the former file whole."""
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def load(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Restore the state, if there is one, and return the number of steps done."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
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


def fit(
    model: nn.Module,
    parameters: Iterable[nn.Parameter],
    step_loss: StepLoss,
    steps: int,
    learning_rate: float,
    checkpoint: Checkpoint,
    label: str,
) -> None:
    r"""Minimise a loss with AdamW, in place, and report progress on standard output.

    Args:
        model (nn.Module): What a checkpoint holds: all that is being trained.
        parameters (Iterable[nn.Parameter]): What the optimiser may change.
        step_loss (Callable): The loss of a step, given its number.
        steps (int): The number of steps; the schedule counts them, never the time.
        learning_rate (float): The peak learning rate.
        checkpoint (Checkpoint): Where to resume from and to save to.
        label (str): What to call the stage in the report.
    """
    trained = list(parameters)
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    first = checkpoint.load(model, optimizer)
    started = saved = time.monotonic()
    smooth: dict[str, float] = {}
    model.train()
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * learning_rate_factor(step, steps)
        loss, figures = step_loss(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        for name, value in {"loss": loss.item(), **figures}.items():
            smooth[name] = _SMOOTHING * smooth.get(name, value) + (1 - _SMOOTHING) * value
        if (step + 1) % _REPORT_EVERY == 0 or step + 1 == steps:
            report = "  ".join(f"{name} {value:.3f}" for name, value in smooth.items())
            elapsed = time.monotonic() - started
            print(f"{label} {step + 1}/{steps}  {elapsed:.0f} s  {report}", flush=True)
        if time.monotonic() - saved > checkpoint.seconds:
            checkpoint.save(model, optimizer, step + 1)
            saved = time.monotonic()
    if first < steps:
        checkpoint.save(model, optimizer, steps)
    model.eval()
