r"""Measure a demo model on fresh scenes.

Run it as ``python -m captum_mllm.demo.training.evaluate FOLDER``.
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
from torch import Tensor
from transformers import AutoModelForImageTextToText

from captum_mllm.datasets.captions import CAPTION_STYLES, Caption, caption
from captum_mllm.datasets.rendering import RenderedScene, render
from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.datasets.scenes import COLORS, Scene
from captum_mllm.datasets.shapes import SHAPES
from captum_mllm.demo import DEMO_PROMPTS
from captum_mllm.demo.training.architecture import Architecture
from captum_mllm.demo.training.architectures import ARCHITECTURES
from captum_mllm.models.loading import load_processor

_BATCH_SIZE = 25
_HEADINGS = ("words", "shape and colour words", "captions", "shapes point", "colours point")


@dataclass(frozen=True)
class Accuracy:
    r"""How well a model captions scenes at one scale. All shares lie in 0 to 1.

    Args:
        words (float): Share of the captions' tokens, the end included, that are the most likely
            after those before them.
        content (float): The same for shape and colour words alone.
        captions (float): Share of scenes whose greedy caption is right to the last word.
        shape_pointing (float): Share of shape words for which the image token with the highest
            logit of the word (logit lens) has its centre in the object.
        color_pointing (float): The same for colour words.
    """

    words: float
    content: float
    captions: float
    shape_pointing: float
    color_pointing: float


def evaluation_scenes(count: int, seed: int = 0, **options: Any) -> list[Scene]:
    r"""Scenes that no training run has seen: their seeds are apart from those of training.

    Args:
        count (int): How many.
        seed (int): Which. Default: 0
        **options (Any): Passed on to :func:`~captum_mllm.datasets.sampling.sample_scene`.

    Returns:
        list[Scene]: The scenes; the first ones do not depend on the count.
    """
    return [
        sample_scene(np.random.default_rng([3, seed, number]), **options) for number in range(count)
    ]


def architecture_of(model: Any) -> Architecture:
    r"""The facts about a demo model's architecture.

    Args:
        model (transformers.PreTrainedModel): A demo model.

    Returns:
        Architecture: The row of :data:`~captum_mllm.demo.training.architectures.ARCHITECTURES`.

    Raises:
        ValueError: If no demo model is of this type.
    """
    for architecture in ARCHITECTURES.values():
        if architecture.model_type == model.config.model_type:
            return architecture
    raise ValueError(
        f"No demo model is a {model.config.model_type!r}; there are {', '.join(ARCHITECTURES)}."
    )


@torch.no_grad()
def evaluate(
    model: Any, processor: Any, scenes: Sequence[Scene], style: str = "caption", scale: float = 1.0
) -> Accuracy:
    r"""Measure a model through its processor and ``generate``, as a user would run it.

    Args:
        model (transformers.PreTrainedModel): A trained demo model.
        processor (transformers.ProcessorMixin): Its processor.
        scenes (Sequence[Scene]): The scenes to caption, at least one.
        style (str): The style of the captions. Default: ``"caption"``
        scale (float): Scales the size of the image that the model sees; one of the scales of its
            architecture. Default: 1.0

    Returns:
        Accuracy: The measures.

    Raises:
        ValueError: If there are no scenes, or the architecture has no such scale.
    """
    if not scenes:
        raise ValueError("There are no scenes to evaluate on.")
    architecture = architecture_of(model)
    if scale not in architecture.scales:
        raise ValueError(
            f"{architecture.name} has the scales {', '.join(f'{s:g}' for s in architecture.scales)}"
            f", not {scale:g}."
        )
    view = architecture.scales[scale]
    counts = np.zeros((5, 2))
    for start in range(0, len(scenes), _BATCH_SIZE):
        chunk = scenes[start : start + _BATCH_SIZE]
        counts += _evaluate_batch(model, processor, architecture, chunk, style, view)
    return Accuracy(*(counts[:, 0] / np.maximum(counts[:, 1], 1)).tolist())


def _evaluate_batch(
    model: Any,
    processor: Any,
    architecture: Architecture,
    scenes: Sequence[Scene],
    style: str,
    view: int,
) -> npt.NDArray[np.float64]:
    """Right and total counts of the measures of :class:`Accuracy`, one row for each."""
    captions = [caption(scene, style) for scene in scenes]
    images = [render(scene) for scene in scenes]
    inputs = ask(
        processor,
        [image.image for image in images],
        style,
        images_kwargs=architecture.processor_options(view),
    )
    answers = model.generate(**inputs)[:, inputs.input_ids.shape[1] :]
    said = processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
    exact = sum(answer == str(truth) for answer, truth in zip(said, captions))

    answer_ids = _append_answers(processor.tokenizer, inputs, captions)
    output = model(**inputs, output_hidden_states=True, use_cache=False)
    guesses = output.logits[:, -answer_ids.shape[1] - 1 : -1].argmax(dim=-1)
    right = guesses == answer_ids
    is_word = answer_ids != processor.tokenizer.pad_token_id
    content = processor.tokenizer.convert_tokens_to_ids([*SHAPES, *COLORS])
    is_content = torch.isin(answer_ids, torch.tensor(content))

    is_image = inputs.input_ids[0] == model.config.image_token_id
    states = output.hidden_states[-1][:, is_image]
    lens = states @ model.get_output_embeddings().weight.T
    peaks = architecture.token_centers(view)[lens.argmax(dim=1).numpy()]
    return np.array(
        [
            (int(right[is_word].sum()), int(is_word.sum())),
            (int(right[is_content].sum()), int(is_content.sum())),
            (exact, len(scenes)),
            _pointing(captions, images, peaks, answer_ids, SHAPES),
            _pointing(captions, images, peaks, answer_ids, tuple(COLORS)),
        ],
        dtype=float,
    )


def ask(processor: Any, images: Sequence[npt.NDArray[np.uint8]], style: str, **options: Any) -> Any:
    r"""What a processor makes of the question for a style of caption, for each image.

    Args:
        processor (transformers.ProcessorMixin): A demo model's processor.
        images (Sequence[numpy.ndarray]): (H, W, 3), uint8, each.
        style (str): The style of the captions.
        **options (Any): Passed on to the processor.

    Returns:
        transformers.BatchFeature: The model's inputs.
    """
    parts = [{"type": "image"}, {"type": "text", "text": DEMO_PROMPTS[style]}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    text = [prompt] * len(images)
    return processor(images=list(images), text=text, return_tensors="pt", **options)


def append(inputs: Any, ids: Tensor) -> None:
    r"""Add tokens (B, T), the beginning of an answer or all of it, to a processor's output."""
    inputs["input_ids"] = torch.cat([inputs.input_ids, ids], dim=1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.full_like(ids, value)], dim=1)


def _append_answers(tokenizer: Any, inputs: Any, captions: Sequence[Caption]) -> Tensor:
    """Add the answers, padded on the right, to a processor's output; return their ids, (B, T)."""
    rows = [tokenizer.convert_tokens_to_ids([*c.words, tokenizer.eos_token]) for c in captions]
    longest = max(map(len, rows))
    answers = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    append(inputs, answers)
    return answers


def _pointing(
    captions: Sequence[Caption],
    images: Sequence[RenderedScene],
    peaks: npt.NDArray[np.float64],
    answer_ids: Tensor,
    words: tuple[str, ...],
) -> tuple[int, int]:
    """How many of some words peak in their object, and how many there are of them."""
    hits = []
    for spoken, image, places, row in zip(captions, images, peaks, answer_ids.tolist()):
        for word, objects, token in zip(spoken.words, spoken.objects, row):
            if word in words:
                region = image.region(objects)
                y, x = (places[token] * region.shape).astype(int)
                hits.append(bool(region[y, x]))
    return sum(hits), len(hits)


def main(arguments: Sequence[str] | None = None) -> None:
    r"""The command line.

    Args:
        arguments (Sequence[str], optional): The arguments. If None, those of the process.
            Default: None
    """
    parser = argparse.ArgumentParser(description="Measure a demo model on fresh scenes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--styles", choices=CAPTION_STYLES, nargs="+", default=CAPTION_STYLES)
    parser.add_argument("--scales", type=float, nargs="+", help="default: all it has")
    parser.add_argument("--prior", type=float, default=0.0, help="strength of the language prior")
    parser.add_argument("--contact", type=float, default=0.0, help="share of scenes with contact")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model = AutoModelForImageTextToText.from_pretrained(options.folder, dtype=torch.float32).eval()
    processor = load_processor(options.folder)
    scenes = evaluation_scenes(
        options.scenes, options.seed, prior=options.prior, contact=options.contact
    )
    print("| style | scale | " + " | ".join(_HEADINGS) + " |")
    print("| --- " * (2 + len(_HEADINGS)) + "|")
    for style in options.styles:
        for scale in options.scales or architecture_of(model).scales:
            result = evaluate(model, processor, scenes, style, scale)
            figures = " | ".join(f"{value:.3f}" for value in astuple(result))
            print(f"| {style} | {scale:g} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
