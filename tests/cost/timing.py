"""Times of interleaved repetitions, so that what else the machine does falls on all alike."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tests.cost.methods import Work


@dataclass(frozen=True)
class Clock:
    r"""Reads the time when the device has nothing left to do.

    Args:
        device (torch.device): the device.
        of_process (bool): count the processor's time for this process alone, which other
            processes disturb less. Only where the work is done on the CPU. Default: False

    Raises:
        ValueError: for the processor's time of work on a GPU.
    """

    device: torch.device
    of_process: bool = False

    def __post_init__(self) -> None:
        if self.of_process and self.device.type != "cpu":
            raise ValueError(f"the processor's time says nothing of work on {self.device}")

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.process_time() if self.of_process else time.perf_counter()


def time_rounds(
    works: Mapping[str, Work],
    once: frozenset[str],
    repetitions: int,
    clock: Clock,
    network: nn.Module,
) -> tuple[dict[str, list[float]], dict[str, int]]:
    r"""Time each work in each round; in a round each has its turn.

    Args:
        works (Mapping[str, Work]): what to time, by name.
        once (frozenset[str]): names of those that run in the first round alone.
        repetitions (int): number of rounds, after one to warm up.
        clock (Clock): the clock.
        network (nn.Module): the network whose passes are counted.

    Returns:
        tuple[dict[str, list[float]], dict[str, int]]: seconds of each work, round by round, and
        how often the network runs in each.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    passes: dict[str, int] = {}

    def add(module: nn.Module, args: object, output: object) -> None:
        passes[name] += 1

    handle = network.register_forward_hook(add)
    try:
        for turn in range(-1, repetitions):
            for name, work in works.items():
                if name in once and turn != 0:
                    continue
                passes[name] = 0
                start = clock.now()
                work()
                if turn >= 0:
                    seconds[name].append(clock.now() - start)
    finally:
        handle.remove()
    return seconds, passes
