"""The lens of the bundled models points at what words speak of, because of what they learnt."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_mllm import MLLM, LogitLens
from captum_mllm.demo import DEMO_MODELS
from captum_mllm.evaluation.examples import sample_examples
from captum_mllm.evaluation.method import Case
from captum_mllm.metrics import pointing_game, randomization_sanity

_SCENES = 16


def _noun_maps(mllm: MLLM, masks: list[Tensor] | None = None) -> Tensor:
    """Maps of all nouns of some scenes, (n, 28, 28); their masks are added to a list."""
    found = []
    for example in sample_examples(range(_SCENES), "development", prior=0.5):
        case = Case(mllm, example)
        maps = case.maps(LogitLens(mllm)).relu()
        found.append(case.of_words(maps, case.nouns))
        if masks is not None:
            masks += [example.region(place) for place in case.nouns]
    return torch.nn.functional.interpolate(torch.cat(found)[:, None], (28, 28))[:, 0]


@pytest.mark.parametrize("name", DEMO_MODELS)
def test_random_weights_destroy_the_lens(name: str) -> None:
    mllm = MLLM.from_pretrained(f"demo/{name}")
    random: list[Tensor] = []

    def explain() -> Tensor:
        random.append(_noun_maps(mllm))
        return random[-1]

    # Part after part, until nothing learnt is left.
    layers = [
        part
        for part, module in mllm.model.named_modules()
        if module is mllm.model.get_output_embeddings()
        or part.endswith(("language_model", "visual", "vision_tower", "multi_modal_projector"))
    ]
    similarity = randomization_sanity(mllm.model, explain, layers)
    masks: list[Tensor] = []
    # The first maps are those of the model as it is, and so are those afterwards.
    assert torch.equal(_noun_maps(mllm, masks), random[0])
    pointing = [float(pointing_game(maps, torch.stack(masks)).mean()) for maps in random]
    assert pointing[0] >= 0.6
    # Random features still tell objects from the background, but not one word from another.
    assert pointing[-1] <= 0.5 * pointing[0]
    assert similarity[-1].abs().mean() <= 0.3
