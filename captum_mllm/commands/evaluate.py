"""``captum-mllm evaluate``: methods measured on a data set, by one process or many."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from textwrap import fill

import torch
from transformers.utils import logging as transformers_logging

from captum_mllm import MLLM
from captum_mllm.commands.console import say, show
from captum_mllm.commands.data_options import add_data_arguments
from captum_mllm.commands.setup import choose_device, load_model
from captum_mllm.datasets import Samples, open_samples
from captum_mllm.evaluation.catalogue import METHODS, select_methods
from captum_mllm.evaluation.data_run import run_data
from captum_mllm.evaluation.ledger import Worker
from captum_mllm.evaluation.report import write_report
from captum_mllm.evaluation.settings import DATA_METRICS, DataSettings
from captum_mllm.evaluation.summary import summarize
from captum_mllm.evaluation.tam_protocol import Tagger, nltk_tagger, read_tags

#: Methods that are measured, unless others are asked for.
METHOD_NAMES = ("attended-lens-msea", "lens", "msea", "tam", "arc", "attention", "random", "blob")
REFERENCE = "attended-lens-msea"
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
    parser.epilog = fill("methods: " + ", ".join(METHODS), 80, break_on_hyphens=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("data", metavar="DATA", help="a file or a folder")
    add_data_arguments(parser)
    add(
        "--model",
        default="demo/qwen2-vl",
        help="a name on the Hugging Face hub, a folder, or demo/NAME (default: %(default)s)",
    )
    add("--processor", metavar="NAME", help="where its processor is, if not with the model")
    add("--trust-remote-code", action="store_true", help="run the code that comes with the model")
    add(
        "--methods",
        nargs="+",
        default=METHOD_NAMES,
        metavar="METHOD",
        help="names, patterns such as 'arc*', or roles: method, combination, sweep, control "
        f"(default: {' '.join(METHOD_NAMES)})",
    )
    add(
        "--metrics",
        nargs="+",
        default=("localization", "answers"),
        choices=DATA_METRICS,
        help="default: localization answers",
    )
    add("--prompt", metavar="TEXT", help="the question where rows have none")
    add("--system", metavar="TEXT", help="the system's message before the question")
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
        "--baseline",
        default="mean",
        choices=BASELINES,
        help="of insertion and deletion (default: %(default)s)",
    )
    add(
        "--curves-every",
        type=int,
        default=15,
        metavar="N",
        help="draw insertion and deletion curves for one image in N (default: %(default)s)",
    )
    add(
        "--reference",
        default=REFERENCE,
        choices=tuple(METHODS),
        metavar="METHOD",
        help="the method that the others are compared with (default: %(default)s)",
    )
    add("--output", default="evaluation", metavar="FOLDER", help="default: %(default)s")
    add("--device", default="auto", metavar="NAME", help="default: a GPU for each process, or cpu")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"))
    add(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="of each process on the CPU; sums depend on it (default: %(default)s)",
    )
    add("--quiet", action="store_true", help="no progress, only the paths")


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
        dtype=options.dtype,
        methods=tuple(options.methods),
        metrics=tuple(options.metrics),
        answers=options.answers,
        max_new_tokens=options.max_new_tokens or (256 if "tam" in options.metrics else 64),
        prompt=options.prompt,
        system=options.system,
        limit=options.limit,
        baseline=options.baseline,
        curves_every=options.curves_every,
        threads=options.threads,
        batch_size=options.batch_size,
        tags=tags,
    )
    output = Path(options.output)
    if options.resume and worker.rank == 0 and not (output / "settings.json").is_file():
        raise ValueError(f"there is no run in {output} to resume; leave out --resume to begin one")
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
    reference = options.reference
    if reference not in {method.name for method in select_methods(settings.methods)}:
        show(f"{reference} is not among the methods, so that none is compared with it")
    write_report(summarize(records, reference), settings, output)
    for path in ("report.md", "results.json", "records.jsonl", "figures"):
        show(str(output / path))


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


def load_for(options: argparse.Namespace, worker: Worker) -> MLLM:
    r"""
    The model of the command's options, on the device of this process.

    Args:
        options (argparse.Namespace): What the command's parser gave.
        worker (Worker): Which process this is.
    """
    if options.device_map is not None:
        trust = {"trust_remote_code": True} if options.trust_remote_code else {}
        return MLLM.from_pretrained(
            options.model, dtype=options.dtype, device_map=options.device_map, **trust
        )
    device = choose_device(options.device)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", worker.local_rank % torch.cuda.device_count())
    if not options.quiet and worker.rank == 0:
        say(f"Loading {options.model} on {device} ...")
    return load_model(options, device)


def _tagger(options: argparse.Namespace) -> tuple[Tagger | None, str]:
    if "tam" not in options.metrics:
        return None, ""
    if options.tags is not None:
        return read_tags(Path(options.tags))
    return nltk_tagger(), "nltk"
