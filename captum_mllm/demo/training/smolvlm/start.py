r"""Where training starts: a tower that knows the words and a projector that says them, or nothing.

The tower is that of ``demo/llava-1.5``, which was trained with losses on what its image tokens say.
The projector is a ridge regression from the tower's states onto the word embeddings of the language
model: of what each image token says, and of the side of the image on which it lies.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration

from captum_mllm.datasets import render, sample_scene
from captum_mllm.demo import demo_folder
from captum_mllm.demo.training.architecture import grid_centers, pixels
from captum_mllm.demo.training.image_words import WORD_GROUPS, group_logits
from captum_mllm.demo.training.smolvlm.architecture import GRID, SIDE, image_features, tower_states
from captum_mllm.demo.training.smolvlm.texts import Texts

#: How many scenes the regression is fitted to.
SCENES = 512
_BATCH_SIZE = 16
_SHARES = (1.0, 1.0, 0.4)
_PLACE = 0.6
_RIDGE = 1e-2


def start_from_words(model: Any, texts: Texts, seed: int = 0) -> dict[str, float]:
    r"""Set the tower and the projector of a model, in place.

    Args:
        model (transformers.LlavaForConditionalGeneration): The model.
        texts (Texts): Its words' tokens.
        seed (int): Seeds the scenes and the projector's hidden units. Default: 0

    Returns:
        dict[str, float]: The share of variance that the regression explains.
    """
    teacher = LlavaForConditionalGeneration.from_pretrained(
        demo_folder("llava-1.5"), dtype=torch.float32
    ).eval()
    state = teacher.model.vision_tower.state_dict()
    state.pop("embeddings.position_ids", None)
    model.model.vision_tower.load_state_dict(state, strict=False)
    old, new = teacher.model.multi_modal_projector, model.model.multi_modal_projector
    rows = model.get_input_embeddings().weight

    def said(words: tuple[str, ...]) -> Tensor:
        return torch.stack([rows[texts.encode(f" {word}")[0]] for word in words])

    random = torch.Generator().manual_seed(seed)
    width = old.linear_1.weight.shape[0]
    with torch.no_grad():
        nn.init.normal_(new.linear_1.weight, std=old.linear_1.in_features**-0.5, generator=random)
        nn.init.zeros_(new.linear_1.bias)
        new.linear_1.weight[:width] = old.linear_1.weight
        new.linear_1.bias[:width] = old.linear_1.bias
        sides = said(("left", "right", "top", "bottom"))
        y, x = (torch.tensor(grid_centers(GRID), dtype=torch.float32) - 0.5).unbind(1)
        place = (
            2 * _PLACE * (x[:, None] * (sides[1] - sides[0]) + y[:, None] * (sides[3] - sides[2]))
        )
        hidden: list[Tensor] = []
        targets: list[Tensor] = []
        for first in range(0, SCENES, _BATCH_SIZE):
            images = [
                render(sample_scene(np.random.default_rng([seed, 1, first + k])), SIDE).image
                for k in range(_BATCH_SIZE)
            ]
            states = tower_states(model.model.vision_tower, pixels(np.stack(images), SIDE))
            logits = group_logits(teacher.lm_head.weight, old(states))
            target = place.expand(_BATCH_SIZE, -1, -1)
            for share, words, group in zip(_SHARES, WORD_GROUPS, logits):
                target = target + share * (3 * group).softmax(-1) @ said(words)
            hidden.append(new.act(new.linear_1(states)).flatten(0, 1))
            targets.append(target.flatten(0, 1))
        inputs, outputs = torch.cat(hidden), torch.cat(targets)
        mean_in, mean_out = inputs.mean(0), outputs.mean(0)
        inputs, outputs = inputs - mean_in, outputs - mean_out
        ridge = _RIDGE * len(inputs) * inputs.var() * torch.eye(inputs.shape[1])
        solved = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ outputs)
        explained = 1 - (outputs - inputs @ solved).square().sum() / outputs.square().sum()
        scale = rows.norm(dim=1).mean() / (outputs + mean_out).norm(dim=1).mean()
        new.linear_2.weight.copy_(scale * solved.T)
        new.linear_2.bias.copy_(scale * (mean_out - mean_in @ solved))
    return {"explained variance": float(explained)}


@torch.no_grad()
def start_from_nothing(model: Any, seed: int = 0) -> None:
    r"""Draw the weights of the tower and the projector of a model, in place.

    They are scaled by their fan-in, and the projector's output to the size of the word embeddings:
    how the start from words differs is what they say, not how loud they are.

    Args:
        model (transformers.LlavaForConditionalGeneration): The model.
        seed (int): Seeds the weights. Default: 0
    """
    random = torch.Generator().manual_seed(seed)
    projector = model.model.multi_modal_projector
    for part in (model.model.vision_tower, projector):
        for module in part.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                deviation = module.weight[0].numel() ** -0.5
                nn.init.normal_(module.weight, std=deviation, generator=random)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    images = [render(sample_scene(np.random.default_rng([seed, 1, k])), SIDE).image for k in (0, 1)]
    loud = image_features(model, pixels(np.stack(images), SIDE)).norm(dim=-1).mean()
    rows = model.get_input_embeddings().weight
    projector.linear_2.weight.mul_(rows.norm(dim=1).mean() / loud)
