"""What a run of the benchmark measures."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from captum_mllm.datasets import CAPTION_STYLES
from captum_mllm.evaluation.catalogue import select_methods
from captum_mllm.evaluation.examples import Example, Split, sample_examples
from captum_mllm.evaluation.faithfulness import Baseline

#: Groups of metrics that can be asked for.
METRICS = ("localization", "causal", "curves", "consistency")


@dataclass(frozen=True)
class Settings:
    r"""
    What a run measures. Its numbers follow from it and the number of scenes alone.

    Args:
        models (tuple[str, ...]): Names as for :meth:`captum_mllm.MLLM.from_pretrained`.
        styles (tuple[str, ...]): Of :data:`~captum_mllm.datasets.CAPTION_STYLES`.
        methods (tuple[str, ...]): Names of methods.
        metrics (tuple[str, ...]): Of :data:`METRICS`.
        split (str): ``"development"`` or ``"test"``.
        seed (int): Which scenes.
        prior (float): Strength of the language prior of the scenes, in 0 to 1.
        contact (float): Share of the scenes in which objects touch, in 0 to 1.
        baseline (str): What the curves of insertion and deletion start from or end with.
        steps (int): Steps of these curves.
        curves_every (int): They are computed for one picture of so many.

    Raises:
        ValueError: If a value is none of those that there are.
    """

    models: tuple[str, ...] = ("demo/qwen2-vl",)
    styles: tuple[str, ...] = ("caption",)
    methods: tuple[str, ...] = ("*",)
    metrics: tuple[str, ...] = METRICS
    split: Split = "test"
    seed: int = 0
    prior: float = 0.5
    contact: float = 0.0
    baseline: Baseline = "counterfactual"
    steps: int = 10
    curves_every: int = 15

    def __post_init__(self) -> None:
        names = tuple(method.name for method in select_methods(self.methods))
        object.__setattr__(self, "methods", names)
        for what, given, known in (
            ("style", self.styles, CAPTION_STYLES),
            ("metric", self.metrics, METRICS),
            ("split", (self.split,), get_args(Split)),
            ("baseline", (self.baseline,), get_args(Baseline)),
        ):
            for each in given:
                if each not in known:
                    raise ValueError(f"{what} {each!r}, expected one of {', '.join(known)}")
        if not self.models or not self.styles or not self.metrics:
            raise ValueError("expected at least one model, one style and one metric")
        if self.steps < 1 or self.curves_every < 1:
            raise ValueError(
                f"steps={self.steps} and curves_every={self.curves_every}, expected at least 1"
            )

    def examples(self, style: str, numbers: Iterable[int]) -> list[Example]:
        r"""Examples of the split that is measured, in a style."""
        return sample_examples(
            numbers, self.split, style, self.seed, prior=self.prior, contact=self.contact
        )

    def claim(self, folder: Path, resume: bool) -> None:
        r"""
        Take a folder for a run of these settings.

        Args:
            folder (Path): The folder; made if need be.
            resume (bool): Whether to go on with what it holds.

        Raises:
            ValueError: If it holds a run that is not to go on, or one of other settings.
        """
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "settings.json"
        own = json.loads(json.dumps(asdict(self)))
        if path.exists():
            if not resume:
                raise ValueError(f"{folder} holds a run; add --resume or name another folder")
            other: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            changed = [name for name, value in own.items() if other.get(name) != value]
            if changed:
                raise ValueError(
                    f"{folder} holds a run with other {', '.join(changed)}; name another folder"
                )
        path.write_text(json.dumps(own, indent=2) + "\n", encoding="utf-8")
