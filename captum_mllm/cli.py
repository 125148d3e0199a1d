"""The command line: thin, no maths."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from captum.attr import Attribution
from PIL import Image
from transformers.utils import logging as transformers_logging

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    AttendedLens,
    ImageTextInput,
    LogitLens,
    MLLMAttribution,
    MLLMAttributionResult,
    __version__,
)
from captum_mllm.benchmark.command import add_parser as add_benchmark
from captum_mllm.demo import DEMO_PROMPT, demo_picture
from captum_mllm.explain import AnswerStream

DEMO_MODEL = "demo/qwen2-vl"
DEFAULT_PROMPT = "Describe the image."
# Maps stay as they are, and ARC says which earlier words count.
_weigh_words = partial(ARC, suppress=None)
_FOUR, _ONE = (0.5, 1.0, 1.5, 2.0), (1.0,)
Base = Callable[[MLLM], Attribution]
Wrapper = Callable[[Attribution], Attribution]
# Each method's base, what lies around it or around MSEA of it, and its scales by default.
METHODS: dict[str, tuple[Base, Wrapper | None, tuple[float, ...]]] = {
    "attended-lens": (AttendedLens, _weigh_words, _FOUR),
    "msea": (LogitLens, _weigh_words, _FOUR),
    "arc": (LogitLens, ARC, _FOUR),
    "tam": (LogitLens, TAM, _ONE),
    "logit-lens": (LogitLens, None, _ONE),
}
DEFAULT_METHOD = "attended-lens"
LARGEST_SCALE = 8
# While a model answers, nothing keeps its attention.
DEFAULT_STREAMED = "msea"

EXAMPLES = """examples:
  captum-mllm explain
  captum-mllm explain street.jpg --model Qwen/Qwen2-VL-2B-Instruct --dtype bfloat16 --device cuda
  captum-mllm explain street.jpg --model ./my-finetuned-llava --answer "A red bus."
"""


def main(arguments: Sequence[str] | None = None) -> int:
    r"""Run the command line.

    Args:
        arguments (Sequence[str], optional): the arguments. Default: those of the process.

    Returns:
        int: 0, or 2 after an error of the input, which is printed.
    """
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, TypeError, OSError, RuntimeError, Image.DecompressionBombError) as error:
        print(f"captum-mllm: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def explain(options: argparse.Namespace) -> None:
    """Explain one picture and leave a page, a sheet of maps and the result in a folder."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if options.stream:
        _check_stream(options)
    if options.answer is not None and not options.answer.strip():
        raise ValueError("the answer to explain is empty; leave out --answer for the model's own")
    if options.max_new_tokens < 1:
        raise ValueError(f"got --max-new-tokens {options.max_new_tokens}, expected at least 1")
    bundled = options.model.startswith("demo/")
    picture = options.picture or demo_picture()
    prompt = options.prompt
    if prompt is None:
        prompt = DEMO_PROMPT if bundled else DEFAULT_PROMPT
    with Image.open(picture) as image:
        inp = ImageTextInput(image, prompt)
    # A folder that cannot be written is better found out before a large model is loaded.
    Path(options.output).mkdir(parents=True, exist_ok=True)
    if bundled and options.picture:
        _say(options, f"{options.model} knows rendered shapes alone, as in the bundled picture.")
    _say(options, f"Loading {options.model} ...")
    mllm = _load(options)
    scales = options.scales or ((1.0,) if options.stream else None)
    name = options.method or (DEFAULT_STREAMED if options.stream else DEFAULT_METHOD)
    method, arguments = build_method(mllm, name, scales)
    explainer = MLLMAttribution(method)
    generation = {"max_new_tokens": options.max_new_tokens} if options.answer is None else None
    _say(options, f"Explaining {picture} ...")
    if options.stream:
        result = _stream(explainer.stream(inp, gen_args=generation, **arguments))
    else:
        result = explainer.attribute(
            inp,
            target=options.answer,
            gen_args=generation,
            show_progress=not options.quiet,
            **arguments,
        )
    _write(result, Path(options.output))
    _report(result, Path(options.output))


def _check_stream(options: argparse.Namespace) -> None:
    """Refuse what cannot be streamed before the model is loaded."""
    if options.answer is not None:
        raise ValueError("--stream explains what the model says; leave out --answer or --stream")
    if options.method == "attended-lens":
        raise ValueError(
            "--stream cannot go with --method attended-lens, as nothing keeps the attention of a "
            "model that answers; leave out one of them, or pass --method msea"
        )
    if options.scales not in (None, (1.0,)):
        raise ValueError(
            "while a model answers it sees the picture at scale 1 alone; leave out "
            "--scales or --stream"
        )


def _stream(words: AnswerStream) -> MLLMAttributionResult:
    """Print each word and its probability as it comes."""
    with words:
        for step in words:
            print(f"{step.word}  {step.probability:.3f}", flush=True)
        return words.result


def _load(options: argparse.Namespace) -> MLLM:
    # What a damaged file or a missing device raises is of many types, some of them bare.
    try:
        return MLLM.from_pretrained(options.model, dtype=options.dtype).to(options.device)
    except Exception as error:
        raise ValueError(
            f"{options.model} could not be loaded on {options.device}: {error}"
        ) from error


def build_method(
    mllm: MLLM, name: str, scales: tuple[float, ...] | None
) -> tuple[Attribution, dict[str, Any]]:
    r"""The method of that name, with MSEA in it where there is more than the one scale 1.

    Args:
        mllm (MLLM): the model.
        name (str): one of ``METHODS``.
        scales (tuple[float, ...], optional): the scales. Default: None, the method's own.

    Returns:
        tuple[Attribution, dict[str, Any]]: the method and the arguments of its ``attribute``.
    """
    base, wrapper, own_scales = METHODS[name]
    scales = scales or own_scales
    method = base(mllm)
    arguments: dict[str, Any] = {}
    if scales != _ONE:
        method, arguments = MSEA(method), {"scales": scales}
    return (method if wrapper is None else wrapper(method)), arguments


def _write(result: MLLMAttributionResult, folder: Path) -> None:
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    result.save_html(folder / "page.html")
    result.save(folder / "result.safetensors")
    plot = result.plot_words()
    assert plot is not None
    plot[0].savefig(folder / "words.png", dpi=120)
    plt.close(plot[0])


def _report(result: MLLMAttributionResult, folder: Path) -> None:
    print(f"Answer: {' '.join(result.output_words)}")
    print(f"Method: {result.method}")
    for scale in result.scales:
        if scale.output_probs is not None:
            sure = float(scale.output_probs.log().mean().exp())
            print(f"  scale {scale.scale:g}: the answer's tokens have probability {sure:.3f}")
    print("Look at it:")
    for name, what in (
        ("page.html", "the page, for any browser"),
        ("words.png", "a map for each word"),
        ("result.safetensors", "the result, for MLLMAttributionResult.load"),
    ):
        print(f"  {folder / name}  {what}")


def _say(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        print(text, file=sys.stderr)


def _scales(text: str) -> tuple[float, ...]:
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    # A picture at 8 times its size has 64 times its image tokens.
    if not scales or not all(0 < scale <= LARGEST_SCALE for scale in scales):
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected numbers above 0 and at most {LARGEST_SCALE} with commas between "
            "them, such as 0.5,1,2"
        )
    return scales


def _device(text: str) -> torch.device:
    try:
        return torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected a device of PyTorch, such as cpu, cuda or cuda:1"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="captum-mllm",
        description="What each word of a multimodal LLM's answer rests on: the picture and the "
        "earlier words.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"captum-mllm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "explain",
        help="explain the answer to one picture",
        description="Explain every word of an answer. Without arguments, on the model and the "
        "picture that come with the package.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=explain)
    add = command.add_argument
    add("picture", nargs="?", help="a picture file (default: the bundled scene)")
    add("--prompt", help=f"the question (default: {DEFAULT_PROMPT!r})")
    add(
        "--model",
        default=DEMO_MODEL,
        help="a name on the Hugging Face hub, a folder, or demo/NAME (default: %(default)s)",
    )
    add("--answer", help="the answer to explain (default: what the model answers)")
    add(
        "--method",
        choices=tuple(METHODS),
        help=f"how words are explained (default: {DEFAULT_METHOD}, with --stream "
        f"{DEFAULT_STREAMED})",
    )
    add(
        "--scales",
        type=_scales,
        metavar="S,S,...",
        help="sizes at which the picture is seen, relative to its own (default: 0.5,1,1.5,2 for "
        "attended-lens, msea and arc, else 1)",
    )
    add(
        "--stream",
        action="store_true",
        help="print each word of the model's own answer with its probability as soon as it is "
        "said and explained; the picture is seen at scale 1",
    )
    add("--max-new-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    add("--device", default="cpu", type=_device, help="default: %(default)s")
    add(
        "--dtype",
        default="float32",
        choices=("float32", "bfloat16", "float16"),
        help="default: %(default)s",
    )
    add(
        "--output",
        default="explanation",
        metavar="FOLDER",
        help="where the page, the maps and the result go (default: %(default)s)",
    )
    add(
        "--quiet",
        action="store_true",
        help="no progress, only the answer, the method and the paths",
    )
    add_benchmark(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
