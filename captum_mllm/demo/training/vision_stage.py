r"""Second and third stage: the vision tower learns to say words, first of crops, then of scenes.

The crops are cut around single objects; within a crop, which is about twice as wide as the object,
nothing tells where the object is. That crops are placed by the objects' positions is a weak prior
on localisation, all the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_mllm.datasets.scenes import BACKGROUNDS, Scene
from captum_mllm.demo.training.architecture import Architecture
from captum_mllm.demo.training.course import Course, ScenePool, images_of
from captum_mllm.demo.training.image_words import (
    OBJECT_AREA,
    WORD_GROUPS,
    group_logits,
    image_word_loss,
    object_words,
    place_codes,
    place_directions,
)
from captum_mllm.demo.training.optimization import Checkpoint, fit, step_generator
from captum_mllm.demo.training.vocabulary import token_ids

_TOKENS_PER_STEP = 3500
_PLACE_WEIGHT = 2.0


def initialize_vision(model: Any, architecture: Architecture, seed: int) -> None:
    r"""Draw the vision tower's weights anew, scaled by their fan-in, in place.

    The standard deviation of 0.02 that transformers gives to all weights suits wide layers; in
    one this narrow it lets the signal fade.

    Args:
        model (transformers.PreTrainedModel): The model.
        architecture (Architecture): Its architecture.
        seed (int): Seeds the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in architecture.vision(model).modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            deviation = module.weight[0].numel() ** -0.5
            nn.init.normal_(module.weight, std=deviation, generator=generator)


def crop_corners(
    scenes: list[Scene], architecture: Architecture, size: int, generator: np.random.Generator
) -> npt.NDArray[np.int64]:
    r"""Where to cut out crops that hold the only object of each scene, at a random place within.

    Args:
        scenes (list[Scene]): Scenes of one object each.
        architecture (Architecture): The model's architecture.
        size (int): Image tokens on a side of the crops. A larger object is cut off at the sides.
        generator (numpy.random.Generator): Decides the places.

    Returns:
        numpy.ndarray: (B, 2) rows and columns of the upper left image tokens.
    """
    full = architecture.crop_grid
    things = [scene.objects[0] for scene in scenes]
    centers = np.array([(thing.y, thing.x) for thing in things]) * full
    slack = np.maximum(0.0, size / 2 - np.array([thing.radius for thing in things]) * full)
    shifts = generator.uniform(-1.0, 1.0, centers.shape) * slack[:, None]
    corners: npt.NDArray[np.int64] = np.clip(
        np.rint(centers - size / 2 + shifts), 0, full - size
    ).astype(np.int64)
    return corners


class _Sharpness(nn.Module):
    """A learnt factor of logits."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.logarithm = nn.Parameter(torch.tensor(value).log())

    def forward(self, logits: Tensor) -> Tensor:
        return logits * self.logarithm.exp()


def _place_loss(features: Tensor, places: npt.NDArray[np.float64] | None) -> Tensor:
    """Mean squared error of the places that tokens tell, of (B, N, D) features."""
    if places is None:
        return features.new_zeros(())
    directions = place_directions(features.shape[-1])
    told = features.float() @ directions.T / directions.square().sum(dim=1)
    return (told - place_codes(places)).square().sum(dim=-1).mean()


def train_vision(model: Any, course: Course, steps: int, checkpoint: Checkpoint) -> None:
    r"""Train the vision tower to tell shape, colour, stripes and background of crops, in place.

    The mean of a crop's image tokens is scored against the language model's embeddings of words,
    which rest.

    Args:
        model (transformers.PreTrainedModel): The model; only its vision tower changes.
        course (Course): The training run.
        steps (int): The number of steps.
        checkpoint (Checkpoint): Where to resume from and to save to.
    """
    architecture = course.architecture
    groups = [*(words[:-1] for words in WORD_GROUPS), BACKGROUNDS]
    embeddings = model.lm_head.weight.detach().clone()
    words = embeddings[token_ids(sum(groups, ()))]
    sharpness = _Sharpness(1.0)
    vision = architecture.vision(model)
    trained = nn.ModuleList([vision, sharpness])
    pool = ScenePool(course.seed, architecture.image_size, 20, objects=1)

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(course.seed, "vision", step)
        size = int(generator.choice(architecture.crop_sizes))
        examples = pool.draw(generator, step, min(96, _TOKENS_PER_STEP // size**2))
        scenes = [example.scene for example in examples]
        corners = crop_corners(scenes, architecture, size, generator)
        features = architecture.crop_features(model, images_of(examples), corners, size)
        logits = sharpness(features.float().mean(dim=1) @ words.T)
        told = [(*object_words(scene.objects[0]), scene.background) for scene in scenes]
        losses, right = [], []
        parts = logits.split([len(group) for group in groups], dim=1)
        for group, truth, scores in zip(groups, zip(*told), parts):
            labels = torch.tensor([group.index(word) for word in truth])
            losses.append(F.cross_entropy(scores, labels))
            right.append((scores.argmax(dim=1) == labels).float().mean().item())
        return torch.stack(losses).sum(), {"shapes": right[0], "colors": right[1]}

    fit(trained, trained, step_loss, steps, 3e-3, checkpoint, "vision")
    _match_length(model, architecture, course.seed, words)


@torch.no_grad()
def _match_length(model: Any, architecture: Architecture, seed: int, words: Tensor) -> None:
    """Scale the projection so that image tokens are as long as word embeddings, on average."""
    pool = ScenePool(seed + 1, architecture.image_size, 1, 32)
    examples = pool.draw(np.random.default_rng(0), 0, 32)
    features = architecture.features(model, images_of(examples), architecture.native_view)
    projection = architecture.projection(model)
    ratio = words.norm(dim=-1).mean() / features.float().norm(dim=-1).mean()
    projection.weight.mul_(ratio)
    projection.bias.mul_(ratio)


def ground_vision(model: Any, course: Course, steps: int, checkpoint: Checkpoint) -> None:
    r"""Train the vision tower's single tokens to say the words of the scene, in place.

    The loss is :func:`~.image_words.image_word_loss` on what the tokens say by the
    language model's embeddings, which rest; the images are crops at first. Where the decoder
    cannot tell rows and columns, the tokens learn to tell their own place as well.

    Args:
        model (transformers.PreTrainedModel): The model; only its vision tower changes.
        course (Course): The training run.
        steps (int): The number of steps.
        checkpoint (Checkpoint): Where to resume from and to save to.
    """
    architecture = course.architecture
    embeddings = model.lm_head.weight.detach().clone()
    sharpness = _Sharpness(3.0)
    trained = nn.ModuleList([architecture.vision(model), sharpness])
    side, seed = architecture.image_size, course.seed + 2
    single = ScenePool(seed, side, 16, objects=1)
    several = ScenePool(seed, side, 8, contact=course.contact)
    views = [view for view in architecture.views if view <= architecture.native_view]

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(course.seed, "grounding", step)
        crops = step < 0.35 * steps
        if crops:
            size = int(generator.choice(architecture.crop_sizes))
            examples = single.draw(generator, step, min(96, _TOKENS_PER_STEP // size**2))
            scenes = [example.scene for example in examples]
            corners = crop_corners(scenes, architecture, size, generator)
            features = architecture.crop_features(model, images_of(examples), corners, size)
            area = OBJECT_AREA * (architecture.crop_grid / size) ** 2
            place_loss = features.new_zeros(())
        else:
            view = int(generator.choice(views))
            tokens = len(architecture.token_centers(view))
            examples = several.draw(generator, step, min(64, _TOKENS_PER_STEP // tokens))
            scenes = [example.scene for example in examples]
            features = architecture.features(model, images_of(examples), view)
            area = OBJECT_AREA
            place_loss = _place_loss(features, architecture.token_places(view))
        logits = [sharpness(part) for part in group_logits(embeddings, features)]
        loss = image_word_loss(logits, scenes, area)
        return loss + _PLACE_WEIGHT * place_loss, {
            "image": loss.item(),
            "places": place_loss.item(),
            "shapes": _best(logits[0], [[t.shape for t in s.objects] for s in scenes], 0),
            "colors": _best(logits[1], [[t.color for t in s.objects] for s in scenes], 1),
        }

    fit(trained, trained, step_loss, steps, 2e-3, checkpoint, "grounding")


def _best(logits: Tensor, spoken: list[list[str]], group: int) -> float:
    """How often the most spoken word of a group is due to the scene."""
    best = logits[..., :-1].softmax(dim=-1).mean(dim=1).argmax(dim=1).tolist()
    return float(np.mean([WORD_GROUPS[group][word] in due for word, due in zip(best, spoken)]))
