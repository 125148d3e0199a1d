r"""Measure a model: ``python -m captum_mllm.demo.training.smolvlm.evaluate FOLDER``.

All captions and questions of a scene follow its image in one sequence, which gives each what it
gets by itself (see :mod:`~captum_mllm.demo.training.smolvlm.texts`). A greedy
answer is right to the last word if and only if each of its tokens is the most likely one after the
right tokens before it, so that nothing has to be generated.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from captum_mllm.datasets import (
    CAPTION_STYLES,
    COLORS,
    SHAPES,
    RenderedScene,
    Scene,
    caption,
    render,
)
from captum_mllm.datasets.phrasing import Exchange, Phrasing, natural
from captum_mllm.datasets.scene_questions import ask
from captum_mllm.demo import DEMO_PROMPTS
from captum_mllm.demo.language_model import load_adapted
from captum_mllm.demo.training.architecture import grid_centers
from captum_mllm.demo.training.evaluate import evaluation_scenes
from captum_mllm.demo.training.smolvlm.architecture import GRID, image_features, text_logits
from captum_mllm.demo.training.smolvlm.texts import Texts, pack, sequence

_BATCH_SIZE = 5
_GROUPS = {"shape": tuple(SHAPES), "color": tuple(COLORS)}

Counts = dict[tuple[str, str], list[bool]]


def yes_and_no(scene: Scene, seed: int) -> dict[str, Exchange]:
    r"""A question about what is there, and one about what is not.

    Args:
        scene (Scene): The scene.
        seed (int): Seeds the questions.

    Returns:
        dict[str, Exchange]: One whose answer is "Yes", one whose answer is "No".
    """
    generator = np.random.default_rng([5, seed])
    found: dict[str, Exchange] = {}
    while len(found) < 2:
        exchange = ask(scene, generator, "presence")
        assert exchange is not None
        found.setdefault(exchange.answer.words[0], exchange)
    return found


def exchanges_of(scene: Scene, seed: int) -> list[tuple[str, str, Phrasing]]:
    r"""What is asked of a scene: a name, the question, the right answer."""
    asked = [
        (style, DEMO_PROMPTS[style], natural(caption(scene, style))) for style in CAPTION_STYLES
    ]
    asked += [
        (name, exchange.question, exchange.answer)
        for name, exchange in yes_and_no(scene, seed).items()
    ]
    generator = np.random.default_rng([6, seed])
    for topic in ("color", "shape"):
        exchange = ask(scene, generator, topic)
        if exchange is not None:
            asked.append((f"{topic} question", exchange.question, exchange.answer))
    return asked


def content(texts: Texts, said: list[int], answer: Phrasing, group: str) -> list[bool]:
    r"""Which tokens of an answer are those of the shape or colour words of a group."""
    spans = [
        span for word, span in zip(answer.words, answer.spans) if word.lower() in _GROUPS[group]
    ]
    chosen, stop = [], 0
    for token in said[:-1]:
        text = texts.tokenizer.decode([token])
        start, stop = stop, stop + len(text)
        chosen.append(any(start < last and first < stop for first, last in spans))
    return [*chosen, False]


@torch.no_grad()
def evaluate(model: Any, processor: Any, scenes: Sequence[Scene], report: Any = None) -> Counts:
    r"""Measure a model on scenes.

    Args:
        model (transformers.LlavaForConditionalGeneration): The model.
        processor (transformers.LlavaProcessor): Its processor.
        scenes (Sequence[Scene]): The scenes.

    Returns:
        dict[tuple[str, str], list[bool]]: For each kind of text and measure, what was right.
    """
    texts = Texts(processor.tokenizer)
    counts: Counts = defaultdict(list)
    for start in range(0, len(scenes), _BATCH_SIZE):
        chunk = scenes[start : start + _BATCH_SIZE]
        images = [render(scene) for scene in chunk]
        asked = [exchanges_of(scene, start + number) for number, scene in enumerate(chunk)]
        rows = [
            [texts.exchange(question, str(answer)) for _, question, answer in row] for row in asked
        ]
        batch = pack(rows, texts.end)
        pixel_values = processor.image_processor(
            [image.image for image in images], return_tensors="pt"
        )["pixel_values"]
        features = image_features(model, pixel_values.to(model.dtype))
        cells = torch.arange(GRID**2).expand(len(chunk), -1)
        states = sequence(model, texts, features, cells, batch)
        guesses = text_logits(model, states[:, GRID**2 :]).argmax(-1).tolist()
        for number, row in enumerate(asked):
            at = 0
            for (name, _, answer), (prompt, said) in zip(row, rows[number]):
                at += len(prompt)
                right = [a == b for a, b in zip(guesses[number][at - 1 :], said)]
                at += len(said)
                counts[name, "words"] += right
                counts[name, "answers"].append(all(right))
                counts[name, "first"].append(right[0])
                for group in _GROUPS:
                    chosen = content(texts, said, answer, group)
                    counts[name, group] += [r for r, c in zip(right, chosen) if c]
        for scene, image, grid in zip(chunk, images, states[:, : GRID**2]):
            for key, hits in _pointing(model, texts, scene, image, grid).items():
                counts[key] += hits
        if report is not None:
            report(start + len(chunk), counts)
    return counts


def _pointing(
    model: Any, texts: Texts, scene: Scene, image: RenderedScene, states: Tensor
) -> Counts:
    """Whether each object's words have their highest logit in an object of that word: as it is,
    and less the mean logit of the vocabulary."""
    centers = grid_centers(GRID)
    hits: Counts = defaultdict(list)
    mean = states @ model.lm_head.weight.mean(0)
    for group in _GROUPS:
        words = [getattr(thing, group) for thing in scene.objects]
        columns = torch.tensor([texts.encode(f" {word}")[0] for word in words])
        logits = text_logits(model, states, columns)
        for lens, read in (("lens", logits), ("centred lens", logits - mean[:, None])):
            for word, peak in zip(words, centers[read.argmax(0).tolist()]):
                owners = tuple(index for index, other in enumerate(words) if other == word)
                region = image.region(owners)
                y, x = (peak * region.shape).astype(int)
                hits[lens, group].append(bool(region[y, x]))
    return hits


def table(counts: Counts) -> str:
    r"""The measures as a table in Markdown."""
    lines = [
        "| text | tokens | shape words | colour words | whole answers | n |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(name for name, _ in counts if "lens" not in name):
        cells = [
            f"{np.mean(counts[name, measure]):.3f}" if counts[name, measure] else ""
            for measure in ("words", "shape", "color", "answers")
        ]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(counts[name, 'answers'])} |")
    yes, no = (np.mean(counts[name, "first"]) for name in ("Yes", "No"))
    lines.append(f"\nYes {yes:.3f}, no {no:.3f}, balanced {(yes + no) / 2:.3f}.")
    for lens in ("lens", "centred lens"):
        shapes, colors = (np.mean(counts[lens, group]) for group in _GROUPS)
        lines.append(
            f"The {lens} points right for {shapes:.3f} of shapes, {colors:.3f} of colours."
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    r"""Measure from the command line."""
    parser = argparse.ArgumentParser(description="Measure a model on fresh scenes.")
    parser.add_argument("folder", type=Path, help="what the export wrote")
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--prior", type=float, default=0.0, help="strength of the language prior")
    parser.add_argument("--contact", type=float, default=0.0, help="share of scenes with contact")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model, processor = load_adapted(options.folder)
    scenes = evaluation_scenes(
        options.scenes, options.seed, prior=options.prior, contact=options.contact
    )

    def report(done: int, counts: Counts) -> None:
        if done % 100 == 0:
            print(f"{done} scenes\n{table(counts)}\n", flush=True)

    print(table(evaluate(model, processor, scenes, report)))


if __name__ == "__main__":
    main()
