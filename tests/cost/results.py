"""What was measured of one subject, and the ratios that follow from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median, quantiles

from tests.cost.methods import METHODS


@dataclass
class Result:
    r"""Measurements of one model and input.

    Args:
        shape (str): the model's shape.
        layers (int): layers of its language model.
        image_tokens (int): image tokens at scale 1.
        answer_tokens (int): tokens of the answer.
        seconds (dict[str, list[float]]): of each method in each round.
        passes (dict[str, int]): runs of the network of each method.
        peaks (dict[str, int]): bytes above the weights, of those methods that were measured.
        stages (dict[str, dict[str, float]]): seconds of each stage of a method.
        synchronizations (dict[str, int]): how often the host waits for the GPU.
    """

    shape: str
    layers: int
    image_tokens: int
    answer_tokens: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    passes: dict[str, int] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    synchronizations: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"`{self.shape}`, {self.layers} layers, {self.image_tokens} image tokens, "
            f"{self.answer_tokens} answer tokens"
        )

    def time(self, name: str) -> float:
        """Median of the rounds."""
        return median(self.seconds[name])

    def spread(self, name: str) -> tuple[float, float]:
        """First and third quartile of the rounds."""
        seconds = self.seconds[name]
        if len(seconds) < 2:
            return seconds[0], seconds[0]
        low, _, high = quantiles(seconds, n=4, method="inclusive")
        return low, high

    def time_ratio(self, name: str, other: str) -> float | None:
        """Median over the rounds of the ratio within a round; None where one is not measured."""
        if not self.seconds.get(name) or not self.seconds.get(other):
            return None
        pairs = zip(self.seconds[name], self.seconds[other])
        return median(own / theirs for own, theirs in pairs)

    def peak_ratio(self, name: str, other: str) -> float | None:
        """Ratio of the peaks above the weights; None where one is not measured."""
        if name not in self.peaks or self.peaks.get(other, 0) <= 0:
            return None
        return self.peaks[name] / self.peaks[other]

    def above_bare(self, name: str) -> float | None:
        """Seconds above the bare passes, median over the rounds; None where not measured."""
        bare = METHODS[name].bare
        if not self.seconds.get(name) or not self.seconds.get(bare):
            return None
        return median(own - theirs for own, theirs in zip(self.seconds[name], self.seconds[bare]))
