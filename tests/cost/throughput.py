"""Measure ``evaluate`` beside bare passes: ``python -m tests.cost.throughput --help``."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch

from captum_mllm import MLLM
from captum_mllm.datasets import open_samples
from captum_mllm.evaluation import DataSettings, data_run, run
from captum_mllm.evaluation.ledger import Ledger
from captum_mllm.models.backbone import Backbone
from tests.cost.stages import Stages
from tests.cost.timing import Clock
from tests.evaluation.exported import export_lines

#: Shares of the time of `evaluate`. Passes have the attention that is read while they run; what is
#: left are the methods after the pass, and the joining of batches.
STAGES = ("passes", "encoding", "reading", "scores", "writing", "rest")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cost.throughput",
        description="Time of `evaluate` on exported scenes, beside the bare forward passes of the "
        "same batches, as medians over rounds that take turns.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=["demo/qwen2-vl"],
        metavar="NAME",
        help="names and folders of models",
    )
    parser.add_argument("--methods", nargs="+", default=["attended-lens", "msea"])
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=5, help="rounds, after one to warm up")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1, help="threads on the CPU")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    torch.set_num_threads(options.threads)
    columns = ("model", "method", "images", "pass, ms", "x bare", *STAGES)
    print(f"| {' | '.join(columns)} |")
    print("| --- | --- |" + " ---: |" * (len(columns) - 2))
    with TemporaryDirectory() as folder:
        path = export_lines(Path(folder) / "data", options.images)
        for name in options.models:
            dtype = getattr(torch, options.dtype)
            mllm = MLLM.from_pretrained(name, dtype=dtype).to(options.device)
            for method in options.methods:
                cells = measure(mllm, name, method, path, options)
                print("| " + " | ".join(cells) + " |", flush=True)


def measure(
    mllm: MLLM, name: str, method: str, path: Path, options: argparse.Namespace
) -> list[str]:
    r"""
    A row of the table.

    Args:
        mllm (MLLM): the model.
        name (str): its name.
        method (str): the method that is evaluated.
        path (Path): the data.
        options (argparse.Namespace): what the command was asked.

    Returns:
        list[str]: the cells.
    """
    settings = DataSettings(
        data=str(path),
        format="jsonl",
        model=name,
        methods=(method,),
        metrics=("localization",),
        batch_size=options.batch_size,
        threads=options.threads,
    )
    output = path.parent.parent / "out"

    def work() -> None:
        shutil.rmtree(output, ignore_errors=True)
        data_run.run_data(settings, open_samples(path), mllm, output)

    passes = record_passes(mllm, work)
    clock = Clock(mllm.device, mllm.device.type == "cpu")

    @torch.no_grad()
    def bare() -> None:
        for inputs in passes:
            mllm.model(**inputs, logits_to_keep=1)

    times: dict[str, list[float]] = {"bare": [], "whole": [], "ratio": []}
    shares: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for turn in range(-1, options.repetitions):
        before = clock.now()
        bare()
        between = clock.now()
        work()
        after = clock.now()
        with stages_of(mllm, clock) as stages:
            work()
        if turn < 0:
            continue
        whole = sum(stages.seconds.values())
        for stage in STAGES:
            shares[stage].append(stages.seconds.get(stage, 0.0) / whole)
        times["bare"].append((between - before) / options.images)
        times["ratio"].append((after - between) / (between - before))
    return [
        name,
        method,
        str(options.images),
        f"{median(times['bare']) * 1e3:,.1f}",
        f"{median(times['ratio']):.2f}",
        *(f"{median(shares[stage]):.1%}" for stage in STAGES),
    ]


def record_passes(mllm: MLLM, work: Any) -> list[dict[str, Any]]:
    r"""The inputs of every pass that a work makes, as the network gets them."""
    found: list[dict[str, Any]] = []

    def keep(module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert not args
        found.append(kwargs)

    handle = mllm.model.base_model.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        work()
    finally:
        handle.remove()
    return found


@contextmanager
def stages_of(mllm: MLLM, clock: Clock) -> Iterator[Stages]:
    r"""Within it the time of each stage of a run is counted."""
    stages = Stages(clock)
    parts: tuple[tuple[Any, str, str], ...] = (
        (mllm.model.base_model, "forward", STAGES[0]),
        (Backbone, "encode", STAGES[1]),
        (data_run._Scorer, "_open", STAGES[2]),
        (run, "localization_scores", STAGES[3]),
        (Ledger, "write", STAGES[4]),
    )
    with ExitStack() as patches:
        for owner, attribute, name in parts:
            timed = stages.timed(name, getattr(owner, attribute))
            patches.enter_context(mock.patch.object(owner, attribute, timed))
        with stages.stage(STAGES[5]):
            yield stages


if __name__ == "__main__":
    main()
