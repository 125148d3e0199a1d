"""``main``, the command line ``captum-mllm``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from captum_mllm import __version__
from captum_mllm.commands.console import escaping, say

#: The module of each command, and what it does. A module is imported when its command is called,
#: so that ``--help`` and ``--version`` do not wait for PyTorch.
COMMANDS: dict[str, tuple[str, str]] = {
    "explain": ("captum_mllm.commands.explain", "explain an answer about one or more images"),
    "check": ("captum_mllm.commands.check", "prove that a model of yours is explained rightly"),
    "diagnose": (
        "captum_mllm.commands.diagnose",
        "find words of an answer that the image does not show",
    ),
    "calibrate": ("captum_mllm.commands.calibrate", "fit the risks of diagnose to a model"),
    "evaluate": (
        "captum_mllm.commands.evaluate",
        "measure methods on a data set, by one process or many",
    ),
    "benchmark": (
        "captum_mllm.commands.benchmark",
        "measure methods on scenes whose truth is known",
    ),
}

EXAMPLES = """examples:
  captum-mllm explain
  captum-mllm explain street.jpg --model Qwen/Qwen2-VL-2B-Instruct
  captum-mllm explain street.jpg --model ./my-finetuned-llava --answer "A red bus."
  captum-mllm check ./my-finetuned-llava
  captum-mllm evaluate refcoco_val.json --images train2014 --model Qwen/Qwen2-VL-2B-Instruct
  captum-mllm benchmark --scenes 20 --methods method control
"""


def main(arguments: Sequence[str] | None = None) -> int:
    r"""Run the command line.

    Args:
        arguments (Sequence[str], optional): the arguments. Default: those of the process.

    Returns:
        int: 0, 1 if a check finds something wrong, or 2 after an error of the input, which is
        printed.
    """
    with escaping():
        options = _parser().parse_args(arguments)
        try:
            return options.run(options) or 0
        except (
            ValueError,
            TypeError,
            OSError,
            RuntimeError,
            ImportError,
            FloatingPointError,
        ) as error:
            say(f"captum-mllm: error: {' '.join(str(error).split())}")
            return 2


class _CommandParser(argparse.ArgumentParser):
    """A parser that learns its arguments from a command's module when it is first used."""

    module: str | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self.module is not None:
            module, self.module = import_module(self.module), None
            module.add_arguments(self)
            self.set_defaults(run=module.run)
        return super().parse_known_args(args, namespace)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="captum-mllm",
        description="What each word of a multimodal LLM's answer rests on: the image and the "
        "earlier words.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"captum-mllm {__version__}")
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", dest="command", parser_class=_CommandParser
    )
    for name, (module, purpose) in COMMANDS.items():
        commands.add_parser(name, help=purpose).module = module
    return parser


if __name__ == "__main__":
    sys.exit(main())
