"""``score_case``, the scores of one sample, and ``run_benchmark``, those of scenes in a file."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from captum_mllm import MLLM
from captum_mllm.evaluation.catalogue import METHODS
from captum_mllm.evaluation.ledger import Ledger, run_blocks
from captum_mllm.evaluation.method import Case, Method
from captum_mllm.evaluation.progress import Progress
from captum_mllm.evaluation.records import Record, Scores
from captum_mllm.evaluation.scores import (
    Faithfulness,
    agreement_scores,
    localization_scores,
    target_scores,
)
from captum_mllm.evaluation.settings import Scoring, Settings
from captum_mllm.evaluation.text_truth import TextTruth

# Scores of a method's maps (T, h, w).
Further = Callable[[Case, Method, Tensor], Scores]

#: The scales are compared on one image in so many.
CONSISTENCY_EVERY = 5


def score_case(case: Case, name: str, settings: Scoring, further: Further | None = None) -> Record:
    r"""
    Explain an answer with each method, and score what they say.

    Args:
        case (Case): The model and the captioned image.
        name (str): The model's name.
        settings (Scoring): The methods and metrics.
        further (Callable, optional): Scores of a method's maps (T, h, w) beside the common ones.
            Default: None

    Returns:
        Record: The scores.

    Raises:
        RuntimeError: If a method fails on this image.
    """
    example = case.example
    faithfulness = Faithfulness(case, settings.baseline, settings.steps)
    truth = TextTruth(case)
    methods: dict[str, Scores] = {}
    with case.sharing():
        for method in (METHODS[name] for name in settings.methods):
            if example.number % method.every:
                continue
            with _naming(method.name, name, case):
                methods[method.name] = _score(method, case, faithfulness, truth, settings, further)
        targets: dict[str, Scores] = {}
        agreement: dict[str, Scores] = {}
        if "consistency" in settings.metrics and example.number % CONSISTENCY_EVERY == 0:
            with _naming("consistency", name, case):
                targets, agreement = target_scores(case), agreement_scores(case)
        return Record(
            model=name,
            style=example.style,
            number=example.number,
            methods=methods,
            targets=targets,
            agreement=agreement,
            id=example.id,
        )


@contextmanager
def _naming(what: str, name: str, case: Case) -> Iterator[None]:
    """Within it an error says what failed, and on which sample."""
    try:
        yield
    except Exception as error:
        example = case.example
        raise RuntimeError(
            f"{what} fails on {name}, {example.style} {example.id}: {error}"
        ) from error


def prefetch(cases: Sequence[Case], settings: Scoring) -> None:
    r"""
    Make the passes that methods share with each other as batches of several samples.

    Args:
        cases (Sequence[Case]): Cases of one model, within its ``remember``.
        settings (Scoring): The methods and metrics.

    Raises:
        ValueError: If the images do not go into one batch.
    """
    for method in (METHODS[name] for name in settings.methods):
        method.prefetch([case for case in cases if not case.example.number % method.every])


#: Metrics that look at the maps of a method; the others look at the sample alone.
OF_MAPS = {"localization", "causal", "curves", "tam"}


def _score(
    method: Method,
    case: Case,
    faithfulness: Faithfulness,
    truth: TextTruth,
    settings: Scoring,
    further: Further | None,
) -> Scores:
    wanted = set(settings.metrics) & OF_MAPS
    scores: Scores = {}
    if method.role == "sweep" or case.example.number % settings.curves_every:
        wanted.discard("curves")
    elif "text" in settings.metrics and (weights := method.weigh_text(case)) is not None:
        scores |= truth.scores(weights)
    if not wanted and further is None:
        return scores
    maps = method.explain(case).detach().float().cpu().clamp_min(0)
    if "localization" in wanted:
        scores |= localization_scores(case, method, maps)
    if "causal" in wanted:
        scores |= faithfulness.causal(maps)
    if "curves" in wanted:
        scores |= faithfulness.curves(maps)
    if further is not None:
        scores |= further(case, method, maps)
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
    Score every method on every image, and keep the scores in ``output/records.jsonl``.

    Each image is scored by itself on one thread, so that the records depend neither on the
    number of workers nor on interruptions.

    Args:
        settings (Settings): What is measured.
        scenes (int): Images for each model and style.
        output (Path): The folder of the run.
        workers (int): Processes that score images side by side. Default: 1
        device (str): Where the model runs. Default: "cpu"
        resume (bool): Whether to go on with what the folder holds. Default: False
        show_progress (bool): Whether to show a bar over the images. Default: False

    Returns:
        list[Record]: By model, style and number.

    Raises:
        ValueError: If a number is below 1, or the folder holds another run.
        RuntimeError: If a method fails; the images before are kept.
    """
    if scenes < 1 or workers < 1:
        raise ValueError(f"scenes={scenes} and workers={workers}, expected at least 1")
    settings.claim(output, resume)
    ledger = Ledger(output, Record.from_json)
    tasks: list[Task] = [
        (model, style, number)
        for model in settings.models
        for style in settings.styles
        for number in range(scenes)
    ]
    done = ledger.done()
    missing = len(tasks) - sum(task in done for task in tasks)
    watch = Progress("scenes", missing) if show_progress else None
    with _side_by_side(min(workers, missing)) as apply:
        blocks = [[task] for task in tasks]
        run_blocks(ledger, blocks, tuple, partial(_score_block, settings, device), watch, apply)
    records = ledger.merge(tasks)
    assert records is not None
    return records


@contextmanager
def _side_by_side(workers: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """What maps a function over blocks, in one process or several."""
    if workers <= 1:
        with threads(1):
            yield map
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        workers, context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        try:
            yield pool.map
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _score_block(settings: Settings, device: str, block: Sequence[Task]) -> list[Record]:
    return [_score_task(settings, device, task) for task in block]


def _score_task(settings: Settings, device: str, task: Task) -> Record:
    model, style, number = task
    (example,) = settings.examples(style, [number])
    return score_case(Case(_load(model, device), example), model, settings)


@lru_cache(maxsize=1)
def _load(name: str, device: str) -> MLLM:
    logging.disable_progress_bar()
    return MLLM.from_pretrained(name).to(device)


@contextmanager
def threads(count: int) -> Iterator[None]:
    r"""Within it, sums on the CPU are shared by so many threads, on which they depend."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
