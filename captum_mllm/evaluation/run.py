"""``Settings`` and ``run_benchmark``: score methods on samples, in a file that can be resumed."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_args

import torch
from transformers.utils import logging

from captum_mllm import MLLM
from captum_mllm._captum import progress
from captum_mllm.datasets import CAPTION_STYLES
from captum_mllm.evaluation.catalogue import METHODS, select_methods
from captum_mllm.evaluation.method import Case, Method
from captum_mllm.evaluation.records import Record, Scores, read_records, write_records
from captum_mllm.evaluation.samples import Example, Split, sample_examples
from captum_mllm.evaluation.scores import (
    Baseline,
    Faithfulness,
    agreement_scores,
    localization_scores,
    target_scores,
)

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


#: The scales are compared on one picture in so many.
CONSISTENCY_EVERY = 5


def score_picture(mllm: MLLM, name: str, example: Example, settings: Settings) -> Record:
    r"""
    Explain a captioned picture with each method, and score what they say.

    Args:
        mllm (MLLM): The model.
        name (str): The model's name.
        example (Example): The picture and its caption.
        settings (Settings): The methods and metrics.

    Returns:
        Record: The scores.

    Raises:
        RuntimeError: If a method fails on this picture.
    """
    case = Case(mllm, example)
    faithfulness = Faithfulness(case, settings.baseline, settings.steps)
    methods: dict[str, Scores] = {}
    with case.sharing():
        for method in (METHODS[name] for name in settings.methods):
            if example.number % method.every:
                continue
            try:
                methods[method.name] = _score(method, case, faithfulness, settings)
            except Exception as error:
                raise RuntimeError(
                    f"{method.name} fails on {name}, {example.style} {example.number}: {error}"
                ) from error
        consistent = "consistency" in settings.metrics and example.number % CONSISTENCY_EVERY == 0
        return Record(
            model=name,
            style=example.style,
            number=example.number,
            methods=methods,
            targets=target_scores(case) if consistent else {},
            agreement=agreement_scores(case) if consistent else {},
        )


def _score(method: Method, case: Case, faithfulness: Faithfulness, settings: Settings) -> Scores:
    wanted = set(settings.metrics) - {"consistency"}
    if method.role == "sweep" or case.example.number % settings.curves_every:
        wanted.discard("curves")
    if not wanted:
        return {}
    maps = method.explain(case).detach().float().cpu().clamp_min(0)
    scores: Scores = {}
    if "localization" in wanted:
        scores |= localization_scores(case, method, maps)
    if "causal" in wanted:
        scores |= faithfulness.causal(maps)
    if "curves" in wanted:
        scores |= faithfulness.curves(maps)
    return scores


# Model, style and number of the example.
Task = tuple[str, str, int]


def run_benchmark(
    settings: Settings,
    scenes: int,
    output: Path,
    workers: int = 1,
    device: str = "cpu",
    resume: bool = False,
    show_progress: bool = False,
) -> list[Record]:
    r"""
    Score every method on every picture, and keep the scores in ``output/records.jsonl``.

    Each picture is scored by itself on one thread, so that the records depend neither on the
    number of workers nor on interruptions.

    Args:
        settings (Settings): What is measured.
        scenes (int): Pictures for each model and style.
        output (Path): The folder of the run.
        workers (int): Processes that score pictures side by side. Default: 1
        device (str): Where the model runs. Default: "cpu"
        resume (bool): Whether to go on with what the folder holds. Default: False
        show_progress (bool): Whether to show a bar over the pictures. Default: False

    Returns:
        list[Record]: By model, style and number.

    Raises:
        ValueError: If a number is below 1, or the folder holds another run.
        RuntimeError: If a method fails; the pictures before are kept.
    """
    if scenes < 1 or workers < 1:
        raise ValueError(f"scenes={scenes} and workers={workers}, expected at least 1")
    settings.claim(output, resume)
    path = output / "records.jsonl"
    records = {record.key: record for record in read_records(path)}
    # Without what an interruption may have cut off at the end.
    write_records(path, records.values())
    tasks: list[Task] = [
        (model, style, number)
        for model in settings.models
        for style in settings.styles
        for number in range(scenes)
    ]
    missing = [task for task in tasks if task not in records]
    found = _score_all(settings, missing, min(workers, len(missing)), device)
    if show_progress:
        found = progress(found, desc="Benchmark", total=len(missing))
    with path.open("a", encoding="utf-8") as file:
        for record in found:
            file.write(record.to_json() + "\n")
            file.flush()
            records[record.key] = record
    ordered = [records.pop(task) for task in tasks]
    write_records(path, [*ordered, *records.values()])
    return ordered


def _score_all(
    settings: Settings, tasks: Sequence[Task], workers: int, device: str
) -> Iterator[Record]:
    score = partial(_score_task, settings, device)
    if workers <= 1:
        with _one_thread():
            yield from map(score, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        try:
            yield from pool.map(score, tasks)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _score_task(settings: Settings, device: str, task: Task) -> Record:
    model, style, number = task
    (example,) = settings.examples(style, [number])
    return score_picture(_load(model, device), model, example, settings)


@lru_cache(maxsize=1)
def _load(name: str, device: str) -> MLLM:
    logging.disable_progress_bar()
    return MLLM.from_pretrained(name).to(device)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums do not depend on how many threads share them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
