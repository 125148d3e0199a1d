"""``captum-mllm explain``: a page, a sheet of maps and a result for one answer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import captum_mllm
from captum_mllm.commands.console import say, show
from captum_mllm.commands.methods import DEFAULT_METHOD, DEFAULT_STREAMED, METHODS, ONE_SCALE
from captum_mllm.commands.options import add_data_arguments, add_model_arguments, is_data

LARGEST_SCALE = 8

EXAMPLES = """examples:
  captum-mllm explain
  captum-mllm explain street.jpg --model Qwen/Qwen2-VL-2B-Instruct
  captum-mllm explain street.jpg --model ./my-finetuned-llava --answer "A red bus."
  captum-mllm explain before.jpg after.jpg --prompt "What has changed?"
  captum-mllm explain page1.png page2.png --prompt "What is the total?" --explained 1
  captum-mllm explain --video street.mp4 --frames 8 --prompt "What happens?"
  captum-mllm explain --contrast heart=star --reasons exact
  captum-mllm explain --alternatives 2 --what-if heart
  captum-mllm explain photos/ --batch-size 8 --on-error skip
  captum-mllm explain --messages chat.json --system "Answer in one word." --device cuda:1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""
    Add the command's description and options to its parser.

    Args:
        parser (argparse.ArgumentParser): The command's own parser.
    """
    parser.description = (
        "Explain every word of an answer. Without arguments, on the model and the image that\n"
        "come with the package."
    )
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="image files, or one data set: a folder, or a file that ends in .json, .jsonl or .csv "
        "(default: the bundled scene)",
    )
    add(
        "--video",
        metavar="PATH",
        help="a video instead of images: a file, for which PyAV is needed, or a folder of frames "
        "in the order of the numbers in their names",
    )
    add(
        "--frames",
        type=int,
        default=8,
        metavar="N",
        help="frames of the video that the model sees, spread evenly (default: %(default)s)",
    )
    add(
        "--fps",
        type=float,
        default=1.0,
        metavar="F",
        help="frames per second of a folder of frames (default: %(default)s)",
    )
    add("--prompt", metavar="TEXT", help="the question (default: 'Describe the image.')")
    add("--system", metavar="TEXT", help="the system's message before the question")
    add(
        "--messages",
        metavar="FILE",
        help="a chat instead of --prompt: a JSON list of messages as chat templates take them; "
        "parts of type image may name their file as 'path', relative to FILE. For a data set one "
        "of them names none, and {question} is where the question of a row goes",
    )
    add(
        "--explained",
        type=int,
        metavar="N",
        help="the one of several images that is explained, from 0 (default: all of them)",
    )
    add_model_arguments(parser)
    add("--answer", metavar="TEXT", help="the answer to explain (default: what the model answers)")
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
        help="sizes at which the image is seen, relative to its own (default: 0.5,1,1.5,2 for "
        "attended-lens, msea and arc, else 1)",
    )
    add(
        "--max-image-tokens",
        type=int,
        metavar="N",
        help="tokens of the image at one scale, at most; larger scales are lowered to fit "
        "(default: as many as the model has room for; with --scales, an error instead)",
    )
    add(
        "--contrast",
        action="append",
        default=[],
        metavar="WORD=OTHER",
        type=_contrast,
        help="also say why a word of the answer was said and not another, such as dog=cat; may be "
        "given several times",
    )
    add(
        "--reasons",
        choices=("estimate", "exact"),
        help="also say how much each word rests on the image, the question and the words before "
        "it: by leaving them out (exact, a batch of 8 rows more), or from one pass",
    )
    add(
        "--alternatives",
        type=int,
        default=0,
        metavar="K",
        help="also say of the K next most likely tokens at each place why they were not said; "
        "click on them on the page",
    )
    add(
        "--what-if",
        action="append",
        default=[],
        metavar="WORD",
        help="also say what the model says once the region that explains a word of the answer is "
        "hidden, beside another region of the same area; may be given several times",
    )
    add(
        "--stream",
        action="store_true",
        help="print each word of the model's own answer with its probability as soon as it is "
        "said and explained; the image is seen at scale 1",
    )
    add("--max-new-tokens", type=int, default=64, metavar="N", help="default: %(default)s")
    add(
        "--output",
        default="explanation",
        metavar="FOLDER",
        help="where the page, the maps and the result go (default: %(default)s)",
    )
    data = parser.add_argument_group("options for data sets")
    add_data_arguments(data)
    data.add_argument(
        "--maps",
        default="safetensors",
        choices=("safetensors", "png", "none"),
        help="how maps are kept beside the pages: whole results, or a 16-bit PNG for each word "
        "(default: %(default)s)",
    )
    add(
        "--quiet",
        action="store_true",
        help="no progress, only the answer, the method and the paths",
    )


def run(options: argparse.Namespace) -> None:
    r"""
    Explain one answer and leave a page, a sheet of maps and the result in a folder.

    Args:
        options (argparse.Namespace): What the command's parser gave.

    Raises:
        ValueError: If an option is out of its range, or the model or an image cannot be read.
    """
    from transformers.utils import logging

    from captum_mllm.commands.setup import (
        build_method,
        choose_device,
        image_tokens,
        load_model,
        read_input,
    )

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    _check(options)
    if is_data(options.images):
        from captum_mllm.commands.explain_data import explain_data

        explain_data(options, options.method or DEFAULT_METHOD)
        return
    device = choose_device(options.device)
    inp = read_input(options)
    # A folder that cannot be written is better found out before a large model is loaded.
    Path(options.output).mkdir(parents=True, exist_ok=True)
    given = options.images or options.messages or options.video
    if options.model.startswith("demo/") and given:
        _progress(options, f"{options.model} was trained on scenes as in the bundled image alone.")
    _progress(options, f"Loading {options.model} on {options.device_map or device} ...")
    mllm = load_model(options, device, options.device_map)
    scales = options.scales or (ONE_SCALE if options.stream else None)
    method, arguments = build_method(mllm, _method_name(options), scales)
    explainer = captum_mllm.MLLMAttribution(method)
    extras = {"reasons": options.reasons, "alternatives": options.alternatives}
    generation = {"max_new_tokens": options.max_new_tokens} if options.answer is None else None
    _progress(options, "Explaining ...")
    if options.stream:
        with explainer.stream(inp, gen_args=generation, **extras, **arguments) as words:
            for step in words:
                show(f"{step.word}  {step.probability:.3f}")
            result = words.result
    else:
        result = explainer.attribute(
            inp,
            target=options.answer,
            gen_args=generation,
            show_progress=not options.quiet,
            max_image_tokens=image_tokens(options),
            contrast=dict(options.contrast) or None,
            **extras,
            **arguments,
        )
    refused = _hide_regions(explainer, result, options.what_if)
    _write(result, Path(options.output))
    _report(result, Path(options.output))
    if refused:
        raise ValueError(f"--what-if: {'; '.join(refused)}. The rest of the result is written")


def _hide_regions(
    explainer: captum_mllm.MLLMAttribution,
    result: captum_mllm.MLLMAttributionResult,
    words: Sequence[str],
) -> list[str]:
    """Keep what the model says without the region of each word; why not, where it cannot be."""
    refused = []
    for word in words:
        try:
            result.keep_what_if(explainer.what_if(result, word))
        except ValueError as error:
            # The model has spoken: what it said is not lost for a word that it did not say.
            refused.append(str(error))
    return refused


def _method_name(options: argparse.Namespace) -> str:
    return options.method or (DEFAULT_STREAMED if options.stream else DEFAULT_METHOD)


def _check(options: argparse.Namespace) -> None:
    """Refuse what cannot be done before the model is loaded."""
    if options.answer is not None and not options.answer.strip():
        raise ValueError("the answer to explain is empty; leave out --answer for the model's own")
    if options.max_new_tokens < 1:
        raise ValueError(f"got --max-new-tokens {options.max_new_tokens}, expected at least 1")
    if options.video is not None and options.images:
        raise ValueError("got --video and images; leave out one of them")
    if options.max_image_tokens is not None and options.max_image_tokens < 1:
        raise ValueError(f"got --max-image-tokens {options.max_image_tokens}, expected at least 1")
    if options.alternatives < 0:
        raise ValueError(f"got --alternatives {options.alternatives}, expected at least 0")
    if not options.stream:
        return
    if options.answer is not None:
        raise ValueError("--stream explains what the model says; leave out --answer or --stream")
    if not METHODS[_method_name(options)].streams:
        raise ValueError(
            f"--stream cannot go with --method {options.method}, which needs more than a model "
            "keeps while it answers; leave out one of them, or pass --method msea"
        )
    if options.contrast:
        raise ValueError("--contrast needs the whole answer; leave it out, or leave out --stream")
    if options.scales not in (None, ONE_SCALE):
        raise ValueError(
            "while a model answers it sees the image at scale 1 alone; leave out "
            "--scales or --stream"
        )


def _write(result: captum_mllm.MLLMAttributionResult, folder: Path) -> None:
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    result.save(folder / "result.safetensors")
    result.save_html(folder / "page.html")
    plot = result.plot_words()
    assert plot is not None
    plot[0].savefig(folder / "words.png", dpi=120)
    plt.close(plot[0])


def _report(result: captum_mllm.MLLMAttributionResult, folder: Path) -> None:
    show(f"Answer: {' '.join(result.output_words)}")
    if result.finished is False:
        show("  cut off at the limit of tokens; --max-new-tokens lets the model say more")
    show(f"Method: {result.method}")
    if len(result.explained) > 1:
        shares = zip(result.explained, result.image_shares.mean(0).tolist())
        parts = (f"{result.image_names[index]} {share:.0%}" for index, share in shares)
        show(f"Evidence: {', '.join(parts)}")
    for scale in result.scales:
        if scale.output_probs is not None:
            sure = float(scale.output_probs.log().mean().exp())
            show(f"  scale {scale.scale:g}: the answer's tokens have probability {sure:.3f}")
    for what_if in result.what_ifs:
        show(str(what_if))
    show("Look at it:")
    for name, what in (
        ("page.html", "the page, for any browser"),
        ("words.png", "a map for each word"),
        ("result.safetensors", "the result, for MLLMAttributionResult.load"),
    ):
        show(f"  {folder / name}  {what}")


def _progress(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        say(text)


def _contrast(text: str) -> tuple[str, str]:
    word, _, other = text.partition("=")
    if not word.strip() or not other.strip():
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected a word of the answer, an equals sign and another word, such as "
            "dog=cat"
        )
    return word, other


def _scales(text: str) -> tuple[float, ...]:
    try:
        scales = tuple(float(part) for part in text.split(","))
    except ValueError:
        scales = ()
    # An image at 8 times its size has 64 times its image tokens.
    if not scales or not all(0 < scale <= LARGEST_SCALE for scale in scales):
        raise argparse.ArgumentTypeError(
            f"{text!r}, expected numbers above 0 and at most {LARGEST_SCALE} with commas between "
            "them, such as 0.5,1,2"
        )
    return scales
