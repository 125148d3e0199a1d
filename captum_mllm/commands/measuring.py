"""What the commands that measure methods share: their options, and the report that they leave."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill

from captum_mllm.commands.console import show
from captum_mllm.evaluation.catalogue import METHODS, select_methods
from captum_mllm.evaluation.records import Record
from captum_mllm.evaluation.report import write_report
from captum_mllm.evaluation.settings import Scoring
from captum_mllm.evaluation.summary import summarize

#: The method that the others are compared with, unless another is asked for.
REFERENCE = "arc-attended-lens-msea"


def add_measuring_arguments(
    parser: argparse.ArgumentParser,
    methods: Sequence[str],
    metrics: Sequence[str],
    known_metrics: Sequence[str],
    baseline: str,
    baselines: Sequence[str],
    output: str,
) -> None:
    r"""Add the options that say which methods are measured by what, and where the report goes; the
    arguments are their defaults and choices."""
    parser.epilog = fill("methods: " + ", ".join(METHODS), 80, break_on_hyphens=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "--methods",
        nargs="+",
        default=methods,
        metavar="METHOD",
        help="names, patterns such as 'arc*', or roles: method, combination, sweep, control "
        f"(default: {'all' if tuple(methods) == ('*',) else ' '.join(methods)})",
    )
    add(
        "--metrics",
        nargs="+",
        default=metrics,
        choices=known_metrics,
        help=f"default: {'all' if metrics == known_metrics else ' '.join(metrics)}",
    )
    add(
        "--baseline",
        default=baseline,
        choices=baselines,
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
    add("--output", default=output, metavar="FOLDER", help="default: %(default)s")
    add("--quiet", action="store_true", help="no progress, only the paths")


def output_folder(name: str, resume: bool) -> Path:
    r"""The folder of a run, which has to be there if it goes on."""
    output = Path(name)
    if resume and not (output / "settings.json").is_file():
        raise ValueError(f"there is no run in {output} to resume; leave out --resume to begin one")
    return output


def report(records: Sequence[Record], settings: Scoring, reference: str, output: Path) -> None:
    r"""
    Write ``report.md``, ``results.json`` and figures, and name the files of the run.

    Raises:
        ValueError: If no sample was scored.
    """
    errors = [record.error for record in records if record.error]
    if errors and len(errors) == len(records):
        raise ValueError(
            f"none of {len(records)} rows could be scored, so there is no report; the first: "
            f"{errors[0]}"
        )
    if reference not in {method.name for method in select_methods(settings.methods)}:
        show(f"{reference} is not among the methods, so the others are not compared with it")
    write_report(summarize(records, reference), settings, output)
    for path in ("report.md", "results.json", "records.jsonl", "figures"):
        show(str(output / path))
