"""``Scoring``, what is measured of a sample; ``Settings`` for scenes, ``DataSettings`` for data."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from captum_mllm.datasets import CAPTION_STYLES, FORMATS
from captum_mllm.evaluation.catalogue import select_methods
from captum_mllm.evaluation.examples import SceneExample, Spelling, Split, sample_examples
from captum_mllm.evaluation.scores import Baseline
from captum_mllm.explain.result_file import write_file

#: Groups of metrics that can be asked for, of scenes.
METRICS = ("localization", "causal", "curves", "consistency")
#: And of a data set.
DATA_METRICS = ("localization", "curves", "text", "consistency", "tam", "answers", "diagnosis")

Answers = Literal["auto", "model", "reference"]


@dataclass(frozen=True, kw_only=True)
class Scoring:
    r"""
    What is measured of each sample.

    Args:
        methods (tuple[str, ...]): Names, patterns or roles of methods.
        metrics (tuple[str, ...]): Groups of metrics.
        baseline (str): What the curves of insertion and deletion start from or end with.
        steps (int): Steps of these curves.
        curves_every (int): They, and what earlier words are worth, are computed for one image of
            so many.

    Raises:
        ValueError: If a value is unknown.
    """

    known_metrics: ClassVar[tuple[str, ...]] = METRICS

    methods: tuple[str, ...] = ("*",)
    metrics: tuple[str, ...] = METRICS
    baseline: Baseline = "counterfactual"
    steps: int = 10
    curves_every: int = 15

    def __post_init__(self) -> None:
        names = tuple(method.name for method in select_methods(self.methods))
        object.__setattr__(self, "methods", names)
        self._check("metric", self.metrics, self.known_metrics)
        self._check("baseline", (self.baseline,), get_args(Baseline))
        if not self.metrics:
            raise ValueError("expected at least one metric")
        if self.steps < 1 or self.curves_every < 1:
            raise ValueError(
                f"steps={self.steps} and curves_every={self.curves_every}, expected at least 1"
            )

    @staticmethod
    def _check(what: str, given: Iterable[str], known: Iterable[str]) -> None:
        for each in given:
            if each not in known:
                raise ValueError(f"{what} {each!r}, expected one of {', '.join(known)}")

    def describe(self) -> str:
        r"""The settings in a sentence, for the report."""
        return (
            f"the curves of insertion and deletion have {self.steps} steps of growing area, start "
            f"from or end with the baseline {self.baseline!r}, follow one noun of an image, drawn "
            f"at random, on one image in {self.curves_every}."
        )

    def claim(self, folder: Path, resume: bool, rank: int = 0) -> None:
        r"""
        Take a folder for a run of these settings.

        Args:
            folder (Path): The folder; made if need be.
            resume (bool): Whether to go on with what it holds.
            rank (int): Which of several processes this is. Default: 0

        Raises:
            ValueError: If it holds a run that is not to go on, or one of other settings.
        """
        claim(folder, asdict(self), resume, rank)


@dataclass(frozen=True, kw_only=True)
class Settings(Scoring):
    r"""
    What a run on scenes measures. Its numbers follow from it and the number of scenes alone.

    Args:
        models (tuple[str, ...]): Names as for :meth:`captum_mllm.MLLM.from_pretrained`.
        styles (tuple[str, ...]): Of :data:`~captum_mllm.datasets.CAPTION_STYLES`.
        methods (tuple[str, ...]): Names of methods.
        metrics (tuple[str, ...]): Of ``"localization"``, ``"causal"``, ``"curves"`` and
            ``"consistency"``.
        split (str): ``"development"`` or ``"test"``.
        seed (int): Which scenes.
        prior (float): Strength of the language prior of the scenes, in 0 to 1.
        contact (float): Share of the scenes in which objects touch, in 0 to 1.
        spelling (str): Of the captions, ``"words"`` or ``"natural"``; see
            ``sample_examples``.
        baseline (str): What the curves of insertion and deletion start from or end with.
        steps (int): Steps of these curves.
        curves_every (int): They are computed for one image of so many.

    Raises:
        ValueError: If a value is unknown.
    """

    models: tuple[str, ...] = ("demo/qwen2-vl",)
    styles: tuple[str, ...] = ("caption",)
    split: Split = "test"
    seed: int = 0
    prior: float = 0.5
    contact: float = 0.0
    spelling: Spelling = "words"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("style", self.styles, CAPTION_STYLES)
        self._check("split", (self.split,), get_args(Split))
        self._check("spelling", (self.spelling,), get_args(Spelling))
        if not self.models or not self.styles:
            raise ValueError("expected at least one model and one style")

    def examples(self, style: str, numbers: Iterable[int]) -> list[SceneExample]:
        r"""Examples of the split that is measured, in a style."""
        return sample_examples(
            numbers,
            self.split,
            style,
            self.seed,
            self.spelling,
            prior=self.prior,
            contact=self.contact,
        )

    def describe(self) -> str:
        return (
            f"Split {self.split}, seed {self.seed}, language prior {self.prior:g}, "
            f"contact {self.contact:g}; {super().describe()}"
        )


@dataclass(frozen=True, kw_only=True)
class DataSettings(Scoring):
    r"""
    What a run on a data set measures.

    Args:
        data (str): The file or folder.
        fingerprint (str): What tells its contents from others.
        format (str): A key of :data:`~captum_mllm.datasets.FORMATS`.
        model (str): A name as for :meth:`captum_mllm.MLLM.from_pretrained`.
        processor (str, optional): Where its processor is, if not with the model.
        dtype (str): The model's precision.
        answers (str): What is explained: the ``"model"``'s own answer, the ``"reference"``, or
            ``"auto"``, the reference where there is one, except for yes/no questions and TAM's
            protocol.
        max_new_tokens (int): How long an own answer may be.
        prompt (str, optional): The question where rows have none.
        system (str, optional): The system's message before the question.
        messages (Sequence[dict]): The chat that the question is asked in; see
            ``captum_mllm.datasets.chats.read_template``.
        limit (int, optional): How many rows are read.
        threads (int): Threads of a process on the CPU.
        batch_size (int): How many samples in a row share the model's passes.
        tags (str): What tells the tags of words for TAM's protocol: ``"nltk"``, or a digest of the
            file.

    Raises:
        ValueError: If a value is unknown.
    """

    known_metrics: ClassVar[tuple[str, ...]] = DATA_METRICS

    data: str
    format: str
    model: str
    fingerprint: str = ""
    metrics: tuple[str, ...] = ("localization", "answers")
    baseline: Baseline = "mean"
    processor: str | None = None
    dtype: str = "auto"
    answers: Answers = "auto"
    max_new_tokens: int = 64
    prompt: str | None = None
    system: str | None = None
    messages: Sequence[dict[str, Any]] = ()
    limit: int | None = None
    threads: int = 1
    batch_size: int = 1
    tags: str = "nltk"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check("format", (self.format,), FORMATS)
        self._check("answers", (self.answers,), get_args(Answers))
        if self.baseline == "counterfactual":
            raise ValueError(
                "baseline 'counterfactual' is of scenes; take mean, blur, black or road"
            )
        for name in ("max_new_tokens", "threads", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, expected at least 1")

    def describe(self) -> str:
        return f"{self.format}, answers: {self.answers}; {super().describe()}"


# The first process may be long in coming to it.
_WAIT_SECONDS = 600


def claim(folder: Path, settings: dict[str, Any], resume: bool, rank: int = 0) -> None:
    r"""
    Take a folder for a run of some settings, which ``settings.json`` keeps.

    Args:
        folder (Path): The folder; made if need be.
        settings (dict[str, Any]): Values that JSON can hold.
        resume (bool): Whether to go on with what it holds.
        rank (int): Which of several processes this is. The first one claims the folder, and the
            others wait for it. Default: 0

    Raises:
        ValueError: If it holds a run that is not to go on, or one of other settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    own = json.loads(json.dumps(settings))
    if rank:
        end = time.monotonic() + _WAIT_SECONDS
        while not path.exists() or json.loads(path.read_text(encoding="utf-8")) != own:
            if time.monotonic() > end:
                raise ValueError(f"no process has claimed {folder} with these settings")
            time.sleep(0.2)
        return
    if path.exists():
        other: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        changed = [name for name, value in own.items() if other.get(name) != value]
        if not resume:
            raise ValueError(f"{folder} holds a run; add --resume or name another folder")
        if changed:
            raise ValueError(
                f"{folder} holds a run with other {', '.join(changed)}; name another folder"
            )
        return
    write_file(path, (json.dumps(own, indent=2) + "\n").encode("utf-8"))
