"""``captum-mllm calibrate``: fit the risk of hallucinated words to a model, on labelled words."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from captum_mllm.commands.console import say, show
from captum_mllm.commands.options import add_model_arguments

EXAMPLES = """examples:
  captum-mllm calibrate labels.jsonl --model Qwen/Qwen2-VL-2B-Instruct --output qwen.json
  captum-mllm calibrate --model demo/internvl --scenes 100 --output internvl.json

Each line of labels.jsonl is {"image": FILE, "prompt": TEXT, "answer": TEXT, "present": [WORDS],
"absent": [WORDS]}. Of a question of yes or no, "yes" is absent where the right answer is no.
Half of the images, drawn at random, are for the fit. Lines with the same "group" stay together,
such as those of an image and its copy without an object.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    r"""
    Add the command's description and options to its parser.

    Args:
        parser (argparse.ArgumentParser): The command's own parser.
    """
    parser.description = (
        "Fit how signals of words combine to the risk that the image does not show them, and\n"
        "measure it on images that were not used: against the word's probability, the internal\n"
        "confidence, the attention to the image and the contextual lens, also among confident\n"
        "words alone."
    )
    parser.epilog = EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add(
        "labels",
        nargs="?",
        metavar="FILE",
        help="labelled answers (default: scenes whose objects are removed or exchanged, for models "
        "that know them)",
    )
    add_model_arguments(parser)
    add("--scenes", type=int, default=100, metavar="N", help="without FILE (default: %(default)s)")
    add(
        "--spelling",
        default="words",
        choices=("words", "natural"),
        help="of the scenes' captions; natural also asks leading questions, for demo/smolvlm "
        "(default: %(default)s)",
    )
    add("--output", default="calibration.json", metavar="FILE", help="default: %(default)s")


def run(options: argparse.Namespace) -> int:
    r"""
    Run the command.

    Args:
        options (argparse.Namespace): What :func:`add_arguments` made of the command line.

    Returns:
        int: 0.

    Raises:
        ValueError: If there are too few answers, or all words have one label.
    """
    from captum_mllm.commands.setup import choose_device, load_model
    from captum_mllm.evaluation.diagnosis_trial import diagnosis_report
    from captum_mllm.evaluation.labelled_words import of_file, of_scenes, read_words
    from captum_mllm.evaluation.progress import Progress
    from captum_mllm.evaluation.temptation import leading_questions, tempted_captions
    from captum_mllm.explain import Calibration
    from captum_mllm.models.loading import model_name

    mllm = load_model(options, choose_device(options.device))
    if options.labels:
        answers = list(of_file(options.labels))
        names = sorted({answer.group for answer in answers})
        if len(names) < 2:
            raise ValueError(
                f"{options.labels} has answers about {len(names)} images or groups of them, "
                "expected two or more"
            )
        random.Random(0).shuffle(names)
        held_out = set(names[1::2])
        parts = [
            [answer for answer in answers if (answer.group in held_out) == kept]
            for kept in (False, True)
        ]
        data = Path(options.labels).name
    else:
        count, spelling = options.scenes, options.spelling
        parts = []
        for split in ("development", "test"):
            tempting = tempted_captions(range(count), split, spelling=spelling)
            if spelling == "natural":
                tempting += leading_questions(tempting)
            parts.append(list(of_scenes(tempting)))
        data = f"{count} scenes"
    watch = Progress("answers", sum(map(len, parts)))
    fitted_on, tested_on = (read_words(mllm, part, watch) for part in parts)
    name = model_name(mllm.model.config)
    calibration = Calibration.fit(fitted_on.signals, fitted_on.absent, name, data)
    calibration.save(options.output)
    show(str(diagnosis_report(tested_on, calibration)))
    say(f"wrote {options.output}")
    return 0
