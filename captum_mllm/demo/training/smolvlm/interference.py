r"""Interference: ``python -m captum_mllm.demo.training.smolvlm.interference`` prints a table.

Measured on the logit lens of the true captions' shape words, for each demo model alike: what the
map of a word shares with those of the words before it, and how bright it is on objects named
before, on objects named after and on the background, against its own object.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from captum_mllm.datasets import (
    BACKGROUND,
    SHAPES,
    Caption,
    RenderedScene,
    Scene,
    caption,
    render,
)
from captum_mllm.datasets.phrasing import Phrasing, natural
from captum_mllm.demo import DEMO_MODELS
from captum_mllm.demo.training.evaluate import append, architecture_of, ask, evaluation_scenes
from captum_mllm.models.loading import load_model

#: What is measured of each word: see :func:`word_measures`.
MEASURES = (
    "positive",
    "cosine",
    "shared",
    "earlier / own",
    "later / own",
    "background / own",
)

Array = npt.NDArray[np.float64]


def word_measures(
    lens: Array, words: Sequence[str], objects: Sequence[tuple[int, ...]], masks: Array
) -> list[list[float]]:
    r"""Measure the maps of a caption's shape words, each at its first mention.

    Args:
        lens (numpy.ndarray): (T, N) logits of the words at the image tokens.
        words (Sequence[str]): The T words, in lower case.
        objects (Sequence[tuple[int, ...]]): The objects that each speaks of.
        masks (numpy.ndarray): (O, N) share of each image token that each object covers.

    Returns:
        list[list[float]]: For each shape word that has content words before it, the values of
        :data:`MEASURES`: the share of tokens whose logit is positive; the mean cosine with the maps
        of earlier content words; the share of its variance that the mean map of the earlier other
        words explains; the mean of the positive logits on objects named before, on those named
        after, and on the background, over that on its own object. NaN where there is no such
        object.
    """
    found = []
    lit = np.maximum(lens, 0)
    seen: list[int] = []
    for at, (word, things) in enumerate(zip(words, objects)):
        owner = [index for index in things if index != BACKGROUND]
        if word not in SHAPES or len(owner) != 1 or owner[0] in seen:
            continue
        earlier = [k for k in range(at) if words[k] != word]
        telling = [k for k in earlier if any(index in seen for index in objects[k])]
        own = masks[owner[0]]
        before = masks[seen].sum(0) if seen else np.zeros_like(own)
        after = masks.sum(0) - own - before
        seen.append(owner[0])
        if not telling:
            continue
        norms = np.linalg.norm(lens[telling], axis=1) * np.linalg.norm(lens[at])
        shared = np.corrcoef(lens[at], lens[earlier].mean(0))[0, 1] ** 2
        density = [
            float((lit[at] * area).sum() / area.sum()) if area.sum() > 0 else np.nan
            for area in (own, before, after, np.clip(1 - masks.sum(0), 0, 1))
        ]
        found.append(
            [
                float((lens[at] > 0).mean()),
                float((lens[telling] @ lens[at] / norms).mean()),
                float(shared),
                # NaN too where the own object covers the centre of no token.
                *(other / density[0] if density[0] != 0 else np.inf for other in density[1:]),
            ]
        )
    return found


def _masks(image: RenderedScene, centers: Array) -> Array:
    """Whether each object shows at the centre of each image token, (O, N)."""
    rows, columns = (centers * image.masks.shape[1:]).astype(int).T
    return image.masks[:, rows, columns].astype(float)


@torch.no_grad()
def scene_measures(model: Any, processor: Any, scene: Scene, style: str) -> list[list[float]]:
    r"""The measures of a scene's true caption on a demo model; see :func:`word_measures`."""
    spoken: Caption | Phrasing = caption(scene, style)
    tokenizer = processor.tokenizer
    if model.config.get_text_config().vocab_size > 1000:
        spoken = natural(caption(scene, style))
    image = render(scene)
    architecture = architecture_of(model)
    view = architecture.native_view
    inputs = ask(
        processor, [image.image], style, images_kwargs=architecture.processor_options(view)
    )
    pieces = [
        tokenizer(
            word if not place or word in ".," else f" {word}",
            add_special_tokens=False,
        )["input_ids"]
        if isinstance(spoken, Phrasing)
        else [tokenizer.convert_tokens_to_ids(word)]
        for place, word in enumerate(spoken.words)
    ]
    ids = torch.tensor([[token for piece in pieces for token in piece]])
    append(inputs, ids)
    states = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states[-1][0]
    states = states[inputs.input_ids[0] == model.config.image_token_id]
    # A word is its first token.
    columns = torch.tensor([piece[0] for piece in pieces])
    lens = (states @ model.get_output_embeddings().weight[columns].T).T.double().numpy()
    words = [word.lower() for word in spoken.words]
    return word_measures(
        lens, words, spoken.objects, _masks(image, architecture.token_centers(view))
    )


def _interval(scenes: list[Array], measure: int, draws: int = 1000) -> tuple[float, float, float]:
    """Median over words with its 95 % bootstrap interval over scenes."""
    generator = np.random.default_rng(0)
    columns = [words[:, measure] for words in scenes]

    def median(chosen: Iterable[int]) -> float:
        values = np.concatenate([columns[index] for index in chosen])
        return float(np.nanmedian(values))

    count = len(scenes)
    drawn = [median(generator.integers(count, size=count).tolist()) for _ in range(draws)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return median(range(count)), float(low), float(high)


def main(arguments: list[str] | None = None) -> None:
    r"""Print the table."""
    parser = argparse.ArgumentParser(description="Measure what maps of words have in common.")
    parser.add_argument("--models", nargs="+", default=[f"demo/{name}" for name in DEMO_MODELS])
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--priors", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--style", default="caption")
    options = parser.parse_args(arguments)
    print("Median over words, 95 % interval over scenes.\n")
    print("| model | prior | words | " + " | ".join(MEASURES) + " |")
    print("| --- " * (3 + len(MEASURES)) + "|")
    for name in options.models:
        model, processor = load_model(name, dtype=torch.float32)
        for prior in options.priors:
            scenes = evaluation_scenes(options.scenes, seed=8, prior=prior)
            found = [scene_measures(model, processor, scene, options.style) for scene in scenes]
            kept = [np.array(words) for words in found if words]
            cells = [
                "{:.2f} ({:.2f} to {:.2f})".format(*_interval(kept, measure))
                for measure in range(len(MEASURES))
            ]
            count = sum(map(len, kept))
            print(f"| {name} | {prior:g} | {count} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
