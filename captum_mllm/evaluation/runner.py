"""Run the benchmark over models, styles and pictures, in a file that can be resumed."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

import torch
from transformers.utils import logging

from captum_mllm import MLLM
from captum_mllm._captum import progress
from captum_mllm.evaluation.picture_scores import score_picture
from captum_mllm.evaluation.record import Record, read_records, write_records
from captum_mllm.evaluation.settings import Settings

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
