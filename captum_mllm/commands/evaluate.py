"""``captum-mllm evaluate``: methods measured on a data set, by one process or many."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

from captum_mllm import MLLM
from captum_mllm.commands.console import say, show
from captum_mllm.commands.measuring import add_measuring_arguments, output_folder, report
from captum_mllm.commands.options import add_data_arguments, add_model_arguments
from captum_mllm.commands.setup import choose_device, load_model
from captum_mllm.datasets import Samples, open_samples
from captum_mllm.datasets.chats import Messages, read_template
from captum_mllm.evaluation.data_run import run_data
from captum_mllm.evaluation.ledger import Worker
from captum_mllm.evaluation.settings import DATA_METRICS, DataSettings
from captum_mllm.evaluation.tam_protocol import Tagger, nltk_tagger, read_tags

#: Methods that are measured, unless others are asked for.
METHOD_NAMES = (
    "arc-attended-lens-msea",
    "attended-lens-msea",
    "lens",
    "msea",
    "tam",
    "arc",
    "attention",
    "random",
    "blob",
)
BASELINES = ("mean", "blur", "black", "road")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""
    Add the command's description and options to its parser.

    Args:
        parser (argparse.ArgumentParser): The command's own parser.
    """
    parser.description = (
        "Explain the answers of a data set with methods and controls, score the maps, and leave\n"
        "a table with intervals, figures and all scores in a folder. With torchrun or accelerate,\n"
        "processes share the data: accelerate launch -m captum_mllm evaluate DATA ..."
    )
    add = parser.add_argument
    add("data", metavar="DATA", help="a file or a folder")
    add_measuring_arguments(
        parser,
        METHOD_NAMES,
        ("localization", "answers"),
        DATA_METRICS,
        "mean",
        BASELINES,
        "evaluation",
    )
    add_data_arguments(parser)
    add_model_arguments(parser)
    add("--prompt", metavar="TEXT", help="the question where rows have none")
    add("--system", metavar="TEXT", help="the system's message before the question")
    add(
        "--messages",
        metavar="FILE",
        help="a chat that each question is asked in, as of explain, with one part of type image "
        "that names no file and {question} where those of a row go",
    )
    add(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="how long own answers may be (default: 64, with the metric tam 256)",
    )
    add(
        "--tags",
        metavar="FILE",
        help="for the metric tam, a JSON object from words to tags of the Penn Treebank, or to "
        "[tag, lemma] (default: nltk's tagger)",
    )
    add(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="of each process on the CPU; sums depend on it (default: %(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    r"""
    Evaluate, and write ``records.jsonl``, ``results.json``, ``report.md`` and figures.

    Args:
        options (argparse.Namespace): What the command's parser gave.

    Raises:
        ValueError: If an option is out of its range, the data cannot be read, or the folder holds
            another run.
    """
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    worker = Worker.of_environment()
    samples = open_data(options)
    tagger, tags = _tagger(options)
    settings = DataSettings(
        data=str(samples.path.resolve()),
        fingerprint=samples.fingerprint(),
        format=samples.format,
        model=options.model,
        processor=options.processor,
        dtype=options.dtype,
        methods=tuple(options.methods),
        metrics=tuple(options.metrics),
        answers=options.answers,
        max_new_tokens=_max_new_tokens(options),
        prompt=options.prompt,
        system=options.system,
        messages=row_messages(options),
        limit=options.limit,
        baseline=options.baseline,
        curves_every=options.curves_every,
        threads=options.threads,
        batch_size=options.batch_size,
        tags=tags,
    )
    output = output_folder(options.output, options.resume and worker.rank == 0)
    samples.check_output(output)
    mllm = load_for(options, worker)
    quiet = options.quiet
    records = run_data(
        settings, samples, mllm, output, tagger, options.resume, worker, show_progress=not quiet
    )
    if samples.n_bad:
        say(f"captum-mllm: {samples.n_bad} bad rows were skipped")
    if records is None:
        show(f"process {worker.rank} is done; the last one writes the report to {output}")
        return
    report(records, settings, options.reference, output)


def _max_new_tokens(options: argparse.Namespace) -> int:
    if options.max_new_tokens is not None:
        return int(options.max_new_tokens)
    return 256 if "tam" in options.metrics else 64


def open_data(options: argparse.Namespace) -> Samples:
    r"""The data of the command's options; bad rows that are skipped are named on the console."""
    logging.basicConfig(format="captum-mllm: %(message)s")
    return open_samples(
        options.data,
        options.format,
        images=options.image_folder,
        on_error=options.on_error,
        prompt=options.prompt,
        limit=options.limit,
    )


def row_messages(options: argparse.Namespace) -> Messages:
    r"""The chat of ``--messages``, in which rows are asked about; empty without it."""
    return [] if options.messages is None else read_template(Path(options.messages))


def load_for(options: argparse.Namespace, worker: Worker) -> MLLM:
    r"""
    The model of the command's options, on the device of this process.

    Args:
        options (argparse.Namespace): What the command's parser gave.
        worker (Worker): Which process this is.
    """
    device = choose_device(options.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", worker.local_rank % max(torch.cuda.device_count(), 1))
    if not options.quiet and worker.rank == 0:
        say(f"Loading {options.model} on {options.device_map or device} ...")
    return load_model(options, device, options.device_map)


def _tagger(options: argparse.Namespace) -> tuple[Tagger | None, str]:
    if "tam" not in options.metrics:
        return None, ""
    if options.tags is not None:
        return read_tags(Path(options.tags))
    return nltk_tagger(), "nltk"
