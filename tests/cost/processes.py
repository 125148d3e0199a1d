"""Measure ``evaluate`` by one process and by several: ``python -m tests.cost.processes --help``."""

from __future__ import annotations

import argparse
import multiprocessing
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from captum_mllm import MLLM
from captum_mllm.datasets import open_samples
from captum_mllm.evaluation import DataSettings
from captum_mllm.evaluation.data_run import run_data
from captum_mllm.evaluation.ledger import Worker
from tests.evaluation.exported import export_lines


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cost.processes",
        description="Time of `evaluate` on exported scenes by processes that share them, of one "
        "thread each, without loading the model. The processor's time of the slowest process says "
        "what free cores would give; the clock, what there was.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--model", default="demo/qwen2-vl")
    parser.add_argument("--method", default="attended-lens")
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=4)
    options = parser.parse_args(given)
    print("| processes | processor, s | clock, s | x faster, processor | x faster, clock |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    with TemporaryDirectory() as folder:
        path = export_lines(Path(folder) / "data", options.images)
        for _ in range(options.repetitions):
            alone, alone_clock = run(path, 1, options)
            slowest, clock = run(path, options.processes, options)
            cells = (
                f"{slowest:.1f} | {clock:.1f} | {alone / slowest:.2f} | {alone_clock / clock:.2f}"
            )
            print(f"| 1 | {alone:.1f} | {alone_clock:.1f} | | |")
            print(f"| {options.processes} | {cells} |", flush=True)


def run(path: Path, world: int, options: argparse.Namespace) -> tuple[float, float]:
    r"""The largest processor's time of the processes, and the longest time by the clock, in
    seconds."""
    spawn = multiprocessing.get_context("spawn")
    output = path.parent.parent / "out"
    shutil.rmtree(output, ignore_errors=True)
    results: Any = spawn.Queue()
    # All begin together, once each has its model.
    start = spawn.Barrier(world)
    processes = [
        spawn.Process(
            target=work, args=(path, output, Worker(rank, world), options, start, results)
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return max(seconds for seconds, _ in found), max(clock for _, clock in found)


def work(
    path: Path, output: Path, worker: Worker, options: argparse.Namespace, start: Any, results: Any
) -> None:
    torch.set_num_threads(1)
    mllm = MLLM.from_pretrained(options.model, dtype=torch.float32)
    settings = DataSettings(
        data=str(path),
        format="jsonl",
        model=options.model,
        methods=(options.method,),
        metrics=("localization",),
        batch_size=options.batch_size,
    )
    start.wait()
    seconds, clock = time.process_time(), time.perf_counter()
    run_data(settings, open_samples(path), mllm, output, worker=worker)
    results.put((time.process_time() - seconds, time.perf_counter() - clock))


if __name__ == "__main__":
    main()
