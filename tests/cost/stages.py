"""Where the time of an explanation goes."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any
from unittest import mock

import torch
from torch.nn import functional

from captum_mllm import ARC, MLLM, MSEA, TAM, LogitLens, MLLMAttribution
from captum_mllm.models.backbone import Backbone
from tests.cost.methods import Work
from tests.cost.timing import Clock

FORWARD = "forward"
REST = "rest"


class Stages:
    r"""Seconds that each stage takes itself, without the stages that it calls.

    Args:
        clock (Clock): read at the beginning and the end of each stage, which on a GPU waits for
            it: the stages are right, their sum is more than the work takes undisturbed.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def _switch(self) -> None:
        now = self.clock.now()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return inner


def split(mllm: MLLM, work: Work, clock: Clock) -> dict[str, float]:
    r"""Seconds of each stage in one run of the work.

    Args:
        mllm (MLLM): the model that the work uses.
        work (Work): the work, warmed up.
        clock (Clock): the clock.

    Returns:
        dict[str, float]: stages in the order in which they are first reached.
    """
    stages = Stages(clock)
    parts = (
        (mllm.model.base_model, "forward", FORWARD),
        (Backbone, "encode", "processor"),
        (MLLM, "states", "states"),
        (LogitLens, "explain_tokens", "lens"),
        (MSEA, "explain_tokens", "mean of scales"),
        (TAM, "explain_tokens", "suppression"),
        (ARC, "explain_tokens", "suppression"),
        (ARC, "attribute_text", "suppression"),
        (ARC, "correlation", "rankings"),
        (MLLMAttribution, "attribute", "result"),
        (functional, "interpolate", "resize"),
        (torch.Tensor, "cpu", "transfer"),
    )
    with ExitStack() as patches:
        for owner, attribute, name in parts:
            timed = stages.timed(name, getattr(owner, attribute))
            patches.enter_context(mock.patch.object(owner, attribute, timed))
        with stages.stage(REST):
            work()
    return dict(stages.seconds)


def count_synchronizations(work: Work) -> int:
    r"""How often the host waits for the GPU while the work is done."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
