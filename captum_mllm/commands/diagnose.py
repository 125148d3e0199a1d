"""``captum-mllm diagnose``: which words of an answer name what the image does not show."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from captum_mllm.commands.console import say, show
from captum_mllm.commands.options import add_model_arguments

EXAMPLES = """examples:
  captum-mllm diagnose
  captum-mllm diagnose street.jpg --model Qwen/Qwen2-VL-2B-Instruct --answer "A red bus."
  captum-mllm diagnose street.jpg --model ./my-llava --calibration my-llava.json --output page.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""
    Add the command's description and options to its parser.

    Args:
        parser (argparse.ArgumentParser): The command's own parser.
    """
    parser.description = (
        "Rank the content words of an answer by the risk that the image does not show what they\n"
        "name, and say why. With a calibration for the model risks are probabilities. The weights\n"
        "that come with the package know shapes and colours; sizes, sides and backgrounds often\n"
        "have a high risk where they are right."
    )
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="image files (default: the bundled scene)")
    add("--prompt", metavar="TEXT", help="the question (default: 'Describe the image.')")
    add("--answer", metavar="TEXT", help="the answer to judge (default: what the model answers)")
    add_model_arguments(parser)
    add("--calibration", metavar="FILE", help="made by captum-mllm calibrate")
    add("--output", metavar="FILE", help="write the page with maps, reasons and marks there")
    add("--json", action="store_true", help="print JSON instead of a table")
    parser.set_defaults(messages=None, system=None, explained=None, video=None)


def run(options: argparse.Namespace) -> int:
    r"""
    Run the command.

    Args:
        options (argparse.Namespace): What :func:`add_arguments` made of the command line.

    Returns:
        int: 0.
    """
    from captum_mllm import MLLMAttribution
    from captum_mllm.commands.methods import DEFAULT_METHOD
    from captum_mllm.commands.setup import build_method, choose_device, load_model, read_input
    from captum_mllm.explain import Calibration
    from captum_mllm.explain.diagnosis import risk_table

    calibration = Calibration.load(options.calibration) if options.calibration else None
    inp = read_input(options)
    mllm = load_model(options, choose_device(options.device))
    method, arguments = build_method(mllm, DEFAULT_METHOD, None if options.output else (1.0,))
    result = MLLMAttribution(method).attribute(
        inp,
        target=options.answer,
        reasons="exact" if options.output else None,
        diagnosis=True,
        **arguments,
    )
    risks = result.diagnosis(calibration)
    if options.json:
        show(json.dumps([each._asdict() for each in risks], indent=2))
    else:
        show("".join(result.output_tokens).strip())
        show(risk_table(risks))
    if not all(each.calibrated for each in risks):
        if calibration is None:
            why = "there is no calibration for this model"
        else:
            why = f"the calibration is of {calibration.model!r}, and this model is {result.model!r}"
        say(f"risks are a ranking: {why} (captum-mllm calibrate)")
    if options.output:
        result.save_html(Path(options.output), calibration)
    return 0
