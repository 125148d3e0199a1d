"""Which layer for Grad-CAM: ``python -m tests.attr.grad_cam_layers`` prints the table of the docs.

The share of scenes in which the maximum of the map lies in the object that the word speaks of, on
the bundled model. It takes some minutes on one core.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

from captum_mllm import MLLM, AttentionMaps, ImageTextInput, LogitLens, TokenCam
from captum_mllm.datasets import COLORS, SHAPES, caption, render
from captum_mllm.demo import DEMO_PROMPT
from captum_mllm.demo.training.evaluate import evaluation_scenes
from captum_mllm.metrics import pointing_game
from captum_mllm.models.towers import Tower, decoder_layers, vision_layers

VARIANTS = {"hires_cam": "HiResCAM", "grad_cam": "Grad-CAM", "grad_cam++": "Grad-CAM++"}


def methods(mllm: MLLM) -> dict[tuple[str, str], LogitLens | AttentionMaps | TokenCam]:
    """By layer and variant."""
    layers: dict[str, tuple[int, Tower]] = {
        f"vision tower, {index}": (index, "vision")
        for index in range(len(vision_layers(mllm.model)))
    }
    # The last layer of the language model is refused.
    layers |= {
        f"language model, {index}": (index, "decoder")
        for index in range(len(decoder_layers(mllm.model)) - 1)
    }
    found: dict[tuple[str, str], LogitLens | AttentionMaps | TokenCam] = {
        (name, variant): TokenCam(mllm, layer, variant, tower)
        for name, (layer, tower) in layers.items()
        for variant in VARIANTS
    }
    found["logit lens", ""] = LogitLens(mllm)
    found["raw attention", ""] = AttentionMaps(mllm, mode="raw")
    return found


def measure(mllm: MLLM, count: int) -> dict[tuple[str, str], Tensor | None]:
    """Shares for shape and colour words of each scene, (scenes, 2); None for what is refused."""
    scores: dict[tuple[str, str], list[Tensor] | None] = {key: [] for key in methods(mllm)}
    for scene in evaluation_scenes(count, seed=4242):
        said, rendered = caption(scene), render(scene)
        ids = mllm.tokenizer.convert_tokens_to_ids(list(said.words))
        image, query = mllm.prepare(ImageTextInput(rendered.image, DEMO_PROMPT), target=ids)
        rows = [row for row, word in enumerate(said.words) if word in {*SHAPES, *COLORS}]
        masks = np.stack([np.asarray(rendered.masks[said.objects[row]]) for row in rows])
        is_shape = torch.tensor([said.words[row] in SHAPES for row in rows])
        for key, method in methods(mllm).items():
            found = scores[key]
            if found is None:
                continue
            try:
                maps = method.attribute(image, additional_forward_args=(query,))
            except ValueError:
                scores[key] = None
                continue
            hits = pointing_game(maps[rows, 0], torch.from_numpy(masks))
            found.append(torch.stack([hits[is_shape].mean(), hits[~is_shape].mean()]))
    return {key: None if found is None else torch.stack(found) for key, found in scores.items()}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 60
    scores = measure(MLLM.from_pretrained("demo/qwen2-vl"), count)
    titles = [f"{title}, shapes | colours" for title in VARIANTS.values()]
    print(" | ".join(["| layer", *titles]) + " |")
    print("|" + " --- |" * (1 + 2 * len(VARIANTS)))
    for layer in dict.fromkeys(layer for layer, _ in scores):
        cells = []
        for variant in VARIANTS if (layer, "") not in scores else ("",):
            found = scores[layer, variant]
            means = ["refused"] * 2 if found is None else [f"{x:.2f}" for x in found.mean(0)]
            cells += means
        print(" | ".join([f"| {layer}", *cells]) + " |")
    errors = [found.std(0) / len(found) ** 0.5 for found in scores.values() if found is not None]
    print(f"standard errors up to {torch.stack(errors).max():.2f}")


if __name__ == "__main__":
    main()
