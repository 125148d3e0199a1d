r"""Fourth stage: single image tokens learn to say words, as the cells of the word grids do.

Every image token is scored against the frozen embeddings of the caption's words, and the softmax
of the scores is averaged over the picture. The loss asks of this average only that it gives every
word of the caption some share: which token says a word is left to the model.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration

from captum_mllm.datasets.scenes import BACKGROUNDS, COLORS, Scene
from captum_mllm.datasets.shapes import SHAPES
from captum_mllm.demo.architecture import IMAGE_SIZE, PATCH_SIZE, token_ids
from captum_mllm.demo.batches import image_features, patches
from captum_mllm.demo.image_word_loss import OBJECT_AREA
from captum_mllm.demo.optimization import Checkpoint, fit, step_generator
from captum_mllm.demo.pool import ScenePool
from captum_mllm.demo.vision_stage import crop_objects

_STAGE = "grounding"
_TOKENS_PER_STEP = 6400
_WINDOW = 4096
_FULL_GRID = IMAGE_SIZE // PATCH_SIZE
_SHARPNESS = 10.0

#: The words that tell something about the picture.
_WORDS: tuple[str, ...] = (*SHAPES, *COLORS, "striped", *BACKGROUNDS, "background")


def word_targets(scenes: list[Scene], window: float) -> Tensor:
    r"""The share of the image tokens that should say each word, from the caption's words alone.

    Args:
        scenes (list[Scene]): The scenes.
        window (float): Side of the visible part of each scene, as a fraction of the whole, in
            (0, 1].

    Returns:
        Tensor: (B, number of words), rows summing to 1.
    """
    targets = torch.zeros(len(scenes), len(_WORDS))
    area = OBJECT_AREA / window**2
    for row, scene in zip(targets, scenes):
        for thing in scene.objects:
            words = (thing.shape, thing.color) + ("striped",) * thing.striped
            for word in words:
                row[_WORDS.index(word)] += area / len(words)
        for word in (scene.background, "background"):
            row[_WORDS.index(word)] = (1 - area * len(scene.objects)) / 2
    return targets


class WordShares(nn.Module):
    r"""The share of each word in what a picture's image tokens say.

    Args:
        embeddings (Tensor): (V, D) embeddings of all tokens; they are copied and stay as they are.
    """

    words: Tensor

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        words = embeddings.detach()[token_ids(list(_WORDS))].clone()
        self.register_buffer("words", words)
        self.log_sharpness = nn.Parameter(torch.tensor(_SHARPNESS).log())

    def forward(self, features: Tensor) -> Tensor:
        scores = features @ self.words.T * self.log_sharpness.exp()
        return scores.softmax(dim=-1).mean(dim=1)


def ground_vision(
    model: Qwen2VLForConditionalGeneration, seed: int, steps: int, checkpoint: Checkpoint
) -> None:
    r"""Train the vision tower's single tokens to say the words of the caption, in place.

    The pictures grow from crops around one object to whole scenes of up to three.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model; only its vision tower
            changes.
        seed (int): The seed of the training run.
        steps (int): The number of steps.
        checkpoint (Checkpoint): Where to resume from and to save to.
    """
    shares = WordShares(model.lm_head.weight)
    trained = nn.ModuleList([model.model.visual, shares])
    single = ScenePool(seed + 2, IMAGE_SIZE, 16, _WINDOW, objects=1)
    several = ScenePool(seed + 2, IMAGE_SIZE, 16, _WINDOW)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(seed, _STAGE, step)
        fraction = step / steps
        grid = int(generator.choice((6, 7) if fraction < 0.2 else (7, 10, _FULL_GRID)))
        size = min(96, _TOKENS_PER_STEP // grid**2)
        scenes, pictures = (single if fraction < 0.4 else several).draw(generator, step, size)
        if fraction < 0.4:
            pictures = crop_objects(scenes, pictures, grid * PATCH_SIZE, generator)
            window = grid / _FULL_GRID
        else:
            window = 1.0
        spoken = shares(image_features(model, patches(pictures, grid), grid))
        targets = word_targets(scenes, window)
        loss = -(targets * (spoken + 1e-6).log()).sum(dim=1).mean()
        return loss, {
            "shapes": _best(spoken, targets, SHAPES),
            "colors": _best(spoken, targets, COLORS),
        }

    fit(trained, trained.parameters(), step_loss, steps, 1e-3, checkpoint, _STAGE)


def _best(spoken: Tensor, targets: Tensor, group: Iterable[str]) -> float:
    """How often the most spoken word of a group is due to the scene."""
    columns = [_WORDS.index(word) for word in group]
    best = spoken[:, columns].argmax(dim=1, keepdim=True)
    return (targets[:, columns].gather(1, best) > 0).float().mean().item()
