r"""Second and third stage: the vision tower learns shapes and colours, then the words for them.

Both stages look at crops around single objects and at the mean of all image tokens, so no token is
told where in the crop the object is. That the crops are placed by the objects' positions is a weak
prior on localisation, all the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2VLForConditionalGeneration

from captum_mllm.datasets.scenes import BACKGROUNDS, COLORS, Scene
from captum_mllm.datasets.shapes import SHAPES
from captum_mllm.demo.architecture import IMAGE_SIZE, PATCH_SIZE, token_ids
from captum_mllm.demo.batches import image_features, patches
from captum_mllm.demo.optimization import Checkpoint, StepLoss, fit, step_generator
from captum_mllm.demo.pool import ScenePool

_BATCH_SIZE = 128
_GRIDS = (5, 6, 7)

#: What the mean image token of a crop is to tell: one of each group.
_WORD_GROUPS = (SHAPES, tuple(COLORS), BACKGROUNDS)


def initialize_vision(model: Qwen2VLForConditionalGeneration, seed: int) -> None:
    r"""Draw the vision tower's weights anew, scaled by their fan-in, in place.

    The standard deviation of 0.02 that transformers gives to all weights suits wide layers; in
    one this narrow it lets the signal fade.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model.
        seed (int): Seeds the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.model.visual.named_parameters():
        if parameter.dim() < 2:
            continue
        deviation = parameter[0].numel() ** -0.5
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            deviation *= 0.5
        nn.init.normal_(parameter, std=deviation, generator=generator)


def crop_objects(
    scenes: list[Scene],
    pictures: npt.NDArray[np.uint8],
    size: int,
    generator: np.random.Generator,
) -> npt.NDArray[np.uint8]:
    r"""Cut a square out of each picture that holds its only object, at a random place within.

    Args:
        scenes (list[Scene]): Scenes of one object each.
        pictures (numpy.ndarray): Their pictures, (B, S, S, 3), uint8.
        size (int): Side of the crops, in pixels. A larger object is cut off at the sides.
        generator (numpy.random.Generator): Decides the places.

    Returns:
        numpy.ndarray: (B, size, size, 3), uint8.
    """
    full = pictures.shape[1]
    things = [scene.objects[0] for scene in scenes]
    centers = np.array([(thing.y, thing.x) for thing in things]) * full
    slack = np.maximum(0.0, size / 2 - 1 - np.array([thing.radius for thing in things]) * full)
    shifts = generator.uniform(-1.0, 1.0, centers.shape) * slack[:, None]
    corners = np.clip(centers - size / 2 + shifts, 0, full - size).astype(int)
    return np.stack(
        [
            picture[top : top + size, left : left + size]
            for picture, (top, left) in zip(pictures, corners)
        ]
    )


def _step_loss(
    model: Qwen2VLForConditionalGeneration,
    classify: nn.Module,
    seed: int,
    stage: str,
    pool: ScenePool,
) -> StepLoss:
    """Cross-entropy of the shape, colour and background that the mean image token tells."""

    def step_loss(step: int) -> tuple[Tensor, dict[str, float]]:
        generator = step_generator(seed, stage, step)
        scenes, pictures = pool.draw(generator, step, _BATCH_SIZE)
        grid = int(generator.choice(_GRIDS))
        crops = crop_objects(scenes, pictures, grid * PATCH_SIZE, generator)
        features = image_features(model, patches(crops, grid), grid)
        logits = classify(features.mean(dim=1))
        told = (
            (scene.objects[0].shape, scene.objects[0].color, scene.background) for scene in scenes
        )
        groups = zip(_WORD_GROUPS, zip(*told), logits.split([len(g) for g in _WORD_GROUPS], dim=1))
        losses, right = [], []
        for words, truth, scores in groups:
            labels = torch.tensor([words.index(word) for word in truth])
            losses.append(F.cross_entropy(scores, labels))
            right.append((scores.argmax(dim=1) == labels).float().mean().item())
        return torch.stack(losses).sum(), {"shapes": right[0], "colors": right[1]}

    return step_loss


def train_vision(
    model: Qwen2VLForConditionalGeneration, seed: int, steps: int, checkpoint: Checkpoint
) -> None:
    r"""Train the vision tower to tell shape and colour through a linear classifier, in place.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model.
        seed (int): The seed of the training run.
        steps (int): The number of steps.
        checkpoint (Checkpoint): Where to resume from and to save to.
    """
    width = model.config.get_text_config().hidden_size
    classifier = nn.Linear(width, sum(map(len, _WORD_GROUPS)))
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    trained = nn.ModuleList([model.model.visual, classifier])
    pool = ScenePool(seed, IMAGE_SIZE, rate=24, window=4096, objects=1)
    step_loss = _step_loss(model, classifier, seed, "vision", pool)
    fit(trained, trained.parameters(), step_loss, steps, 3e-3, checkpoint, "vision")


class _WordClassifier(nn.Module):
    """Scores features by the frozen embeddings of words, with a learnt temperature."""

    embeddings: Tensor

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.register_buffer("embeddings", embeddings.detach().clone())
        self.log_scale = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        return features @ self.embeddings.T * self.log_scale.exp()


def align_vision(
    model: Qwen2VLForConditionalGeneration, seed: int, steps: int, checkpoint: Checkpoint
) -> None:
    r"""Train the vision tower to answer in the language model's own word embeddings, in place.

    At the end its output is scaled to the length of a word embedding.

    Args:
        model (transformers.Qwen2VLForConditionalGeneration): The model; only its vision tower
            changes.
        seed (int): The seed of the training run.
        steps (int): The number of steps.
        checkpoint (Checkpoint): Where to resume from and to save to.
    """
    words = token_ids([word for group in _WORD_GROUPS for word in group])
    embeddings = model.lm_head.weight[words]
    classifier = _WordClassifier(embeddings)
    trained = nn.ModuleList([model.model.visual, classifier])
    pool = ScenePool(seed + 1, IMAGE_SIZE, rate=24, window=4096, objects=1)
    step_loss = _step_loss(model, classifier, seed, "alignment", pool)
    fit(trained, trained.parameters(), step_loss, steps, 1e-3, checkpoint, "alignment")
    _match_length(model, pool, embeddings)


@torch.no_grad()
def _match_length(
    model: Qwen2VLForConditionalGeneration, pool: ScenePool, embeddings: Tensor
) -> None:
    """Scale the projection so that image tokens are as long as word embeddings, on average."""
    _, pictures = pool.draw(np.random.default_rng(0), 0, _BATCH_SIZE)
    grid = IMAGE_SIZE // PATCH_SIZE
    features = image_features(model, patches(pictures, grid), grid)
    projection = model.model.visual.merger.mlp[2]
    ratio = embeddings.norm(dim=-1).mean() / features.norm(dim=-1).mean()
    projection.weight.mul_(ratio)
    projection.bias.mul_(ratio)
