r"""Measure a demo model on fresh scenes: ``python -m captum_mllm.demo.evaluate FOLDER``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForImageTextToText

from captum_mllm.datasets.captions import caption
from captum_mllm.datasets.rendering import RenderedScene, render
from captum_mllm.datasets.scenes import COLORS, Scene, sample_scene
from captum_mllm.datasets.shapes import SHAPES
from captum_mllm.demo import DEMO_PROMPT
from captum_mllm.models.processors import load_processor

#: The scales at which the model is measured; 1 is what the processor does by default.
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)

_BATCH_SIZE = 25


@dataclass(frozen=True)
class Accuracy:
    r"""How well a model captions scenes at one scale. All shares lie in 0 to 1.

    Args:
        words (float): Share of the captions' tokens, the end included, that are the most likely
            after those before them.
        content (float): The same for shape and colour words alone.
        captions (float): Share of scenes whose greedy caption is right to the last word.
        pointing (float): Share of shape words for which the image token with the highest logit of
            the word (logit lens) has its centre in the object.
    """

    words: float
    content: float
    captions: float
    pointing: float


def evaluation_scenes(count: int, seed: int = 0, **options: Any) -> list[Scene]:
    r"""Scenes that no training run has seen: their seeds are apart from those of training.

    Args:
        count (int): How many.
        seed (int): Which. Default: 0
        **options (Any): Passed on to :func:`~captum_mllm.datasets.scenes.sample_scene`.

    Returns:
        list[Scene]: The scenes; the first ones do not depend on the count.
    """
    return [
        sample_scene(np.random.default_rng([3, seed, number]), **options) for number in range(count)
    ]


@torch.no_grad()
def evaluate(model: Any, processor: Any, scenes: Sequence[Scene], scale: float = 1.0) -> Accuracy:
    r"""Measure a model through its processor and ``generate``, as a user would run it.

    Args:
        model (transformers.PreTrainedModel): A trained demo model.
        processor (transformers.ProcessorMixin): Its processor.
        scenes (Sequence[Scene]): The scenes to caption, at least one.
        scale (float): Scales the size of the picture that the model sees. Default: 1.0

    Returns:
        Accuracy: The measures.

    Raises:
        ValueError: If there are no scenes.
    """
    if not scenes:
        raise ValueError("There are no scenes to evaluate on.")
    totals = np.zeros((4, 2))
    for start in range(0, len(scenes), _BATCH_SIZE):
        totals += _evaluate_batch(model, processor, scenes[start : start + _BATCH_SIZE], scale)
    words, content, captions, pointing = (totals[:, 0] / np.maximum(totals[:, 1], 1)).tolist()
    return Accuracy(words, content, captions, pointing)


def _encode(processor: Any, pictures: Sequence[RenderedScene], scale: float) -> Any:
    size = processor.image_processor.size
    limits = {
        "shortest_edge": int(size["shortest_edge"] * scale**2),
        "longest_edge": int(size["longest_edge"] * scale**2),
    }
    parts = [{"type": "image"}, {"type": "text", "text": DEMO_PROMPT}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": parts}], add_generation_prompt=True
    )
    return processor(
        images=[picture.image for picture in pictures],
        text=[prompt] * len(pictures),
        images_kwargs={"size": limits},
        return_tensors="pt",
    )


def _evaluate_batch(
    model: Any, processor: Any, scenes: Sequence[Scene], scale: float
) -> npt.NDArray[np.float64]:
    """Right and total counts of the four measures of :class:`Accuracy`."""
    tokenizer = processor.tokenizer
    captions = [caption(scene) for scene in scenes]
    pictures = [render(scene) for scene in scenes]
    inputs = _encode(processor, pictures, scale)
    prompt_length = inputs.input_ids.shape[1]

    answers = model.generate(**inputs)[:, prompt_length:]
    said = tokenizer.batch_decode(answers, skip_special_tokens=True)
    exact = sum(answer == str(truth) for answer, truth in zip(said, captions))

    rows = [tokenizer.convert_tokens_to_ids([*c.words, tokenizer.eos_token]) for c in captions]
    longest = max(map(len, rows))
    answer_ids = torch.tensor(
        [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
    )
    inputs["input_ids"] = torch.cat([inputs.input_ids, answer_ids], dim=1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
        inputs[name] = torch.cat([inputs[name], torch.full_like(answer_ids, value)], dim=1)
    output = model(**inputs, output_hidden_states=True, use_cache=False)
    guesses = output.logits[:, prompt_length - 1 : -1].argmax(dim=-1)
    is_word = torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]
    content_ids = torch.tensor(tokenizer.convert_tokens_to_ids([*SHAPES, *COLORS]))
    is_content = torch.isin(answer_ids, content_ids) & is_word
    right = guesses == answer_ids

    is_image = inputs.input_ids[0] == model.config.image_token_id
    _, height, width = inputs.image_grid_thw[0].tolist()
    states = output.hidden_states[-1][:, is_image]
    lens = states @ model.get_output_embeddings().weight.T
    peaks = lens.argmax(dim=1)
    hits = shapes = 0
    for truth, picture, peak, row in zip(captions, pictures, peaks, rows):
        for word, thing, token in zip(truth.words, truth.objects, row):
            if word in SHAPES:
                down, right_ = divmod(int(peak[token]), width)
                mask = picture.masks[thing]
                y = int((down + 0.5) / height * mask.shape[0])
                x = int((right_ + 0.5) / width * mask.shape[1])
                hits += int(mask[y, x])
                shapes += 1
    return np.array(
        [
            (int(right[is_word].sum()), int(is_word.sum())),
            (int(right[is_content].sum()), int(is_content.sum())),
            (exact, len(scenes)),
            (hits, shapes),
        ],
        dtype=float,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    r"""The command line.

    Args:
        arguments (Sequence[str], optional): The arguments. If None, those of the process.
            Default: None
    """
    parser = argparse.ArgumentParser(description="Measure a demo model on fresh scenes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES)
    parser.add_argument("--prior", type=float, default=0.0, help="strength of the language prior")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    model = AutoModelForImageTextToText.from_pretrained(options.folder, dtype=torch.float32).eval()
    processor = load_processor(options.folder)
    scenes = evaluation_scenes(options.scenes, options.seed, prior=options.prior)
    print("| scale | words | shape and colour words | captions | pointing |")
    print("| --- | --- | --- | --- | --- |")
    for scale in options.scales:
        result = evaluate(model, processor, scenes, scale)
        print(
            f"| {scale:g} | {result.words:.3f} | {result.content:.3f} | {result.captions:.3f} "
            f"| {result.pointing:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
