"""``captum-mllm check``: whether a model, its processor and its family's facts fit together."""

from __future__ import annotations

import argparse
import json

from PIL import Image

import captum_mllm
from captum_mllm.commands.console import show
from captum_mllm.commands.options import add_loading_arguments
from captum_mllm.models.check import QUESTION, SCALES, Report, Verdict

EXAMPLES = """examples:
  captum-mllm check demo/qwen2-vl
  captum-mllm check ./my-finetuned-llava --image street.jpg
  captum-mllm check ./my-own-family --geometry probe --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""
    Add the command's description and options to its parser.

    Args:
        parser (argparse.ArgumentParser): The command's own parser.
    """
    parser.description = (
        "Prove on a model of yours that image tokens lie where they are looked for, that scales\n"
        "are scales, and that a given answer is scored as a generated one. The exit status is 1\n"
        "if something is wrong."
    )
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("model", help="a name on the Hugging Face hub, a folder, or demo/NAME")
    add("--image", metavar="FILE", help="an image of yours (default: coarse noise)")
    add("--prompt", metavar="TEXT", default=QUESTION, help="the question (default: %(default)r)")
    add(
        "--geometry",
        choices=("probe",),
        help="find where the image tokens of an unknown family lie",
    )
    add_loading_arguments(parser)
    add("--json", action="store_true", help="print JSON instead of a table")


def run(options: argparse.Namespace) -> int:
    r"""
    Run the command.

    Args:
        options (argparse.Namespace): What :func:`add_arguments` made of the command line.

    Returns:
        int: 0 if nothing is wrong, else 1.
    """
    report = _report(options)
    show(json.dumps(report.to_dict(), indent=2) if options.json else str(report))
    return 0 if report.passed else 1


def _report(options: argparse.Namespace) -> Report:
    from captum_mllm.commands.setup import choose_device, load_model

    inp = None
    if options.image:
        with Image.open(options.image) as image:
            inp = captum_mllm.ImageTextInput(image, options.prompt)
    device = choose_device(options.device)
    try:
        mllm = load_model(options, device, geometry=options.geometry)
    except ValueError as error:
        detail = " ".join(str(error).split())
        return Report(options.model, (Verdict("model and processor", False, detail),))
    return mllm.check(inp, SCALES)
