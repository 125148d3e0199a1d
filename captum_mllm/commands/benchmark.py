"""``captum-mllm benchmark``: methods measured on scenes whose truth is known."""

from __future__ import annotations

import argparse
from pathlib import Path
from textwrap import fill
from typing import get_args

from captum_mllm import MLLM
from captum_mllm.commands.console import show
from captum_mllm.datasets import CAPTION_STYLES
from captum_mllm.evaluation.catalogue import METHODS, select_methods
from captum_mllm.evaluation.report import plot_maps, save, write_report
from captum_mllm.evaluation.run import run_benchmark
from captum_mllm.evaluation.samples import Split
from captum_mllm.evaluation.scores import Baseline
from captum_mllm.evaluation.settings import METRICS, Settings
from captum_mllm.evaluation.summary import summarize

#: The method that the others are compared with, unless another is asked for.
REFERENCE = "attended-lens-msea"

_SHEETS = 2
_DEFAULTS = Settings()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""
    Add the command's description and options to its parser.

    Args:
        parser (argparse.ArgumentParser): The command's own parser.
    """
    parser.description = (
        "Explain the captions of rendered scenes, whose objects have exact masks and\n"
        "counterfactual twins, with methods and controls, and leave a table with intervals,\n"
        "figures and all scores in a folder. All methods on 300 scenes take a quarter of\n"
        "an hour."
    )
    parser.epilog = fill("methods: " + ", ".join(METHODS), 80, break_on_hyphens=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--models",
        nargs="+",
        default=_DEFAULTS.models,
        metavar="MODEL",
        help=f"names or folders (default: {' '.join(_DEFAULTS.models)})",
    )
    add(
        "--styles",
        nargs="+",
        default=_DEFAULTS.styles,
        choices=CAPTION_STYLES,
        help=f"of the captions (default: {' '.join(_DEFAULTS.styles)})",
    )
    add(
        "--methods",
        nargs="+",
        default=("*",),
        metavar="METHOD",
        help="names, patterns such as 'arc*', or roles: method, combination, sweep, control "
        "(default: all)",
    )
    add("--metrics", nargs="+", default=METRICS, choices=METRICS, help="default: all")
    add("--scenes", type=int, default=300, help="for each model and style (default: %(default)s)")
    add("--split", default=_DEFAULTS.split, choices=get_args(Split), help="default: %(default)s")
    add("--seed", type=int, default=0, help="which scenes (default: %(default)s)")
    add(
        "--prior",
        type=float,
        default=_DEFAULTS.prior,
        help="strength of the scenes' language prior, 0 to 1 (default: %(default)s)",
    )
    add(
        "--contact",
        type=float,
        default=_DEFAULTS.contact,
        help="share of the scenes in which objects touch (default: %(default)s)",
    )
    add(
        "--baseline",
        default=_DEFAULTS.baseline,
        choices=get_args(Baseline),
        help="of insertion and deletion (default: %(default)s)",
    )
    add(
        "--curves-every",
        type=int,
        default=_DEFAULTS.curves_every,
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
    add("--output", default="benchmark", metavar="FOLDER", help="default: %(default)s")
    add("--resume", action="store_true", help="go on with the run in the folder")
    add("--workers", type=int, default=1, help="processes side by side (default: %(default)s)")
    add("--device", default="cpu", help="default: %(default)s")
    add("--quiet", action="store_true", help="no progress, only the paths")


def run(options: argparse.Namespace) -> None:
    r"""
    Run the benchmark and write ``records.jsonl``, ``results.json``, ``report.md`` and figures.

    Args:
        options (argparse.Namespace): What the command's parser gave.

    Raises:
        ValueError: If an option is out of its range, or the folder holds another run.
    """
    settings = Settings(
        models=tuple(options.models),
        styles=tuple(options.styles),
        methods=tuple(options.methods),
        metrics=tuple(options.metrics),
        split=options.split,
        seed=options.seed,
        prior=options.prior,
        contact=options.contact,
        baseline=options.baseline,
        curves_every=options.curves_every,
    )
    output = Path(options.output)
    if options.resume and not (output / "settings.json").is_file():
        raise ValueError(f"there is no run in {output} to resume; leave out --resume to begin one")
    records = run_benchmark(
        settings,
        options.scenes,
        output,
        options.workers,
        options.device,
        options.resume,
        show_progress=not options.quiet,
    )
    if options.reference not in {method.name for method in select_methods(settings.methods)}:
        show(f"{options.reference} is not among the methods, so that none is compared with it")
    summaries = summarize(records, options.reference)
    write_report(summaries, settings, output)
    _save_sheets(settings, output / "figures", options.device)
    for path in ("report.md", "results.json", "records.jsonl", "figures"):
        show(str(output / path))


def _save_sheets(settings: Settings, folder: Path, device: str) -> None:
    """A sheet of the cheap methods' maps for the first images of each model and style."""
    methods = [
        method
        for method in select_methods(settings.methods)
        if method.every == 1 and method.role != "sweep"
    ]
    for model in settings.models:
        mllm = MLLM.from_pretrained(model).to(device)
        for style in settings.styles:
            for example in settings.examples(style, range(_SHEETS)):
                path = folder / f"{Path(model).name}-{style}-maps-{example.number}.png"
                save(plot_maps(mllm, example, methods), path)
