r"""How often a demo model names what is not there.

Run it as ``python -m captum_mllm.demo.training.hallucination``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForImageTextToText

from captum_mllm.datasets.captions import BACKGROUND, caption
from captum_mllm.datasets.rendering import render
from captum_mllm.datasets.scenes import Scene, counterfactual
from captum_mllm.demo.training.evaluate import append, ask, evaluation_scenes
from captum_mllm.models.loading import load_processor

_STYLE = "caption"
# At most "striped", a colour and a shape.
_NEW_TOKENS = 3
_HEADINGS = (
    "objects",
    "there",
    "gone, own caption",
    "gone, after the article",
    "gone, at the noun",
)


@dataclass(frozen=True)
class Hallucination:
    r"""
    How often the last object of a caption is named. All shares lie in 0 to 1.

    An object is named if its shape is said, though no other object of the scene has it.

    Args:
        objects (int): How many were looked at: one in each scene of two or three objects, unless
            its shape is there twice.
        present (float): Share that is named where they are, after the true caption up to their
            article.
        free (float): Share that is named where they have been taken out of the image, in the
            model's own caption of it.
        led (float): The same after the caption of the scene with the object, up to its article.
        finished (float): The same up to its noun, after its colour.
    """

    objects: int
    present: float
    free: float
    led: float
    finished: float


@torch.no_grad()
def hallucination(model: Any, processor: Any, scenes: Sequence[Scene]) -> Hallucination:
    r"""
    Take the last object that a caption names out of its scene, and look whether it is still named.

    Args:
        model (transformers.PreTrainedModel): A trained demo model.
        processor (transformers.ProcessorMixin): Its processor.
        scenes (Sequence[Scene]): The scenes.

    Returns:
        Hallucination: The rates.

    Raises:
        ValueError: If no scene has an object that can be taken away and known again.
    """
    counts = []
    for scene in scenes:
        spoken = caption(scene, _STYLE)
        things = [set(things) - {BACKGROUND} for things in spoken.objects]
        (index,) = next(named for named in reversed(things) if len(named) == 1)
        article = things.index({index}) + 1
        twin = counterfactual(scene, index)
        shape = scene.objects[index].shape
        if not twin.objects or shape in {thing.shape for thing in twin.objects}:
            continue
        noun = spoken.words.index(shape)
        led, finished = (list(spoken.words[:end]) for end in (article, noun))
        image, without = render(scene).image, render(twin).image
        said = (
            _continue(model, processor, image, led, _NEW_TOKENS),
            _continue(model, processor, without, [], None),
            _continue(model, processor, without, led, _NEW_TOKENS),
            _continue(model, processor, without, finished, 1),
        )
        counts.append([shape in words for words in said])
    if not counts:
        raise ValueError("no scene has two or more objects, the last of them of its own shape")
    return Hallucination(len(counts), *np.mean(counts, axis=0).tolist())


def _continue(
    model: Any,
    processor: Any,
    image: npt.NDArray[np.uint8],
    words: list[str],
    new_tokens: int | None,
) -> list[str]:
    """The words that the model adds to the beginning of a caption; all of them if None."""
    inputs = ask(processor, [image], _STYLE)
    ids = processor.tokenizer.convert_tokens_to_ids(words)
    append(inputs, torch.tensor([ids], dtype=torch.long))
    limit = {} if new_tokens is None else {"max_new_tokens": new_tokens}
    answer = model.generate(**inputs, **limit)[0, inputs.input_ids.shape[1] :]
    return list(processor.tokenizer.convert_ids_to_tokens(answer.tolist()))


def main(arguments: Sequence[str] | None = None) -> None:
    r"""The command line.

    Args:
        arguments (Sequence[str], optional): The arguments. If None, those of the process.
            Default: None
    """
    parser = argparse.ArgumentParser(
        description="How often a demo model names an object that was taken out of the image."
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument(
        "--priors", type=float, nargs="+", default=(0.0, 0.5, 1.0), help="of the scenes"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model = AutoModelForImageTextToText.from_pretrained(options.folder, dtype=torch.float32).eval()
    processor = load_processor(options.folder)
    print("| prior | " + " | ".join(_HEADINGS) + " |")
    print("| --- " * (1 + len(_HEADINGS)) + "|")
    for prior in options.priors:
        scenes = evaluation_scenes(options.scenes, options.seed, prior=prior)
        count, *shares = astuple(hallucination(model, processor, scenes))
        figures = " | ".join(f"{value:.3f}" for value in shares)
        print(f"| {prior:g} | {count} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
