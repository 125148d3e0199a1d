"""Measure what explanations cost: ``python -m tests.cost.measure --help``."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import torch
import transformers

from captum_mllm import MLLM
from tests.cost.methods import METHODS, Method, choose
from tests.cost.peak_memory import (
    allocated_peak,
    cuda_peak,
    resident_peak_of_fresh_process,
)
from tests.cost.results import Result
from tests.cost.stages import count_synchronizations, split
from tests.cost.subjects import SHAPES, load_model, make_subject
from tests.cost.tables import markdown
from tests.cost.timing import Clock, time_rounds


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.cost.measure",
        description="Time and memory of explanations, beside the bare forward passes they need: "
        "median and quartiles of interleaved repetitions, and the peak above the weights.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--shapes", nargs="+", default=["tiny"], choices=["tiny", *SHAPES])
    parser.add_argument("--image-tokens", nargs="+", type=int, default=[256, 1024], metavar="N")
    parser.add_argument("--answer-tokens", nargs="+", type=int, default=[16, 64], metavar="T")
    parser.add_argument(
        "--methods",
        nargs="+",
        choices=list(METHODS),
        metavar="NAME",
        help="names from the first column of the table; all if left out",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument(
        "--layers",
        type=int,
        help="layers of the model; all on a GPU, two on the "
        "CPU if left out; the shape tiny always has its own",
    )
    parser.add_argument(
        "--threads", type=int, default=torch.get_num_threads(), help="threads on the CPU"
    )
    parser.add_argument(
        "--clock",
        default="wall",
        choices=["wall", "process"],
        help="process: the processor's time of this process, on a shared CPU",
    )
    parser.add_argument("--repetitions", type=int, default=5, help="rounds, after one to warm up")
    parser.add_argument(
        "--memory",
        default="resident",
        choices=["resident", "allocated", "none"],
        help="on the CPU, peaks of the resident set of a fresh process for each method, or of what "
        "the allocator hands out, which is the same at every run; on a GPU always the latter",
    )
    parser.add_argument("--split", action="store_true", help="also split the time into stages")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="write PATH.md and PATH.json instead of printing the tables",
    )
    options = parser.parse_args(given)
    if options.repetitions < 1:
        parser.error(f"--repetitions {options.repetitions}, expected at least 1")
    if options.clock == "process" and torch.device(options.device).type != "cpu":
        parser.error("--clock process is for the CPU alone")
    return options


def main(given: Sequence[str] | None = None) -> None:
    options = arguments(given)
    torch.set_num_threads(options.threads)
    results: list[Result] = []
    for shape in options.shapes:
        mllm = load_model(shape, options.device, getattr(torch, options.dtype), options.layers)
        for tokens in product(options.image_tokens, options.answer_tokens):
            results.append(measure(mllm, shape, tokens, options))
            print(f"measured {results[-1]}", file=sys.stderr)
            # Written after each, for long runs that are cut short.
            _write(results, options)


def measure(mllm: MLLM, shape: str, tokens: tuple[int, int], options: argparse.Namespace) -> Result:
    r"""Time, passes and memory of each method on one input.

    Args:
        mllm (MLLM): the model.
        shape (str): the name of its shape.
        tokens (tuple[int, int]): image tokens and answer tokens.
        options (argparse.Namespace): what the command was asked.

    Returns:
        Result: the measurements.
    """
    methods = choose(options.methods, shape)
    subject = make_subject(mllm, *tokens)
    works = {method.name: method.prepare(subject) for method in methods}
    once = frozenset(method.name for method in methods if method.once)
    clock = Clock(mllm.device, options.clock == "process")
    result = Result(shape, mllm.model.config.text_config.num_hidden_layers, *tokens)
    network = mllm.model.base_model
    result.seconds, result.passes = time_rounds(works, once, options.repetitions, clock, network)
    for method in methods:
        if options.split and method.has_stages:
            work = works[method.name]
            result.stages[method.name] = split(mllm, work, clock)
            if mllm.device.type == "cuda":
                result.synchronizations[method.name] = count_synchronizations(work)
    del works
    if options.memory != "none":
        for method in methods:
            peak = _peak(method, mllm, shape, tokens, options) if method.has_peak else None
            if peak is not None:
                result.peaks[method.name] = peak
    return result


def _peak(
    method: Method,
    mllm: MLLM,
    shape: str,
    tokens: tuple[int, int],
    options: argparse.Namespace,
) -> int | None:
    if mllm.device.type == "cuda":
        return cuda_peak(method.prepare(make_subject(mllm, *tokens)), mllm.device)
    if mllm.device.type != "cpu":
        return None
    if options.memory == "allocated":
        return allocated_peak(method.prepare(make_subject(mllm, *tokens)))
    return resident_peak_of_fresh_process(
        method.name,
        shape,
        tokens,
        options.threads,
        dtype=getattr(torch, options.dtype),
        layers=options.layers,
    )


def _machine(options: argparse.Namespace) -> dict[str, object]:
    on_gpu = torch.device(options.device).type == "cuda"
    return {
        "device": torch.cuda.get_device_name() if on_gpu else _processor_name(),
        "dtype": options.dtype,
        "threads": options.threads,
        "clock": options.clock,
        "repetitions": options.repetitions,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _processor_name() -> str:
    return platform.processor() or platform.machine()


def _write(results: Sequence[Result], options: argparse.Namespace) -> None:
    machine = _machine(options)
    text = markdown(results, machine)
    if options.output is None:
        if len(results) == len(options.shapes) * len(options.image_tokens) * len(
            options.answer_tokens
        ):
            print(text)
        return
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.with_suffix(".md").write_text(text, encoding="utf-8")
    numbers = {"machine": machine, "results": [asdict(result) for result in results]}
    options.output.with_suffix(".json").write_text(json.dumps(numbers, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
