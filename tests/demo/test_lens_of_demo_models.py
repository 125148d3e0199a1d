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
from tests.demo.test_adapted_model import needs_language_model


def _noun_maps(
    lens: LogitLens, scenes: int, spelling: str, masks: list[Tensor] | None = None
) -> Tensor:
    """Maps of all nouns of some scenes, (n, 28, 28); their masks are added to a list."""
    found = []
    for example in sample_examples(range(scenes), "development", prior=0.5, spelling=spelling):
        case = Case(lens.forward_func, example)
        maps = case.maps(lens).relu()
        found.append(case.of_words(maps, case.nouns))
        if masks is not None:
            masks += [example.region(place) for place in case.nouns]
    return torch.nn.functional.interpolate(torch.cat(found)[:, None], (28, 28))[:, 0]


def _check_random_weights(lens: LogitLens, scenes: int, spelling: str, least: float) -> None:
    model = lens.forward_func.model
    random: list[Tensor] = []

    def explain() -> Tensor:
        random.append(_noun_maps(lens, scenes, spelling))
        return random[-1]

    # Part after part, until nothing learnt is left.
    layers = [
        part
        for part, module in model.named_modules()
        if module is model.get_output_embeddings()
        or part.endswith(("language_model", "visual", "vision_tower", "multi_modal_projector"))
    ]
    similarity = randomization_sanity(model, explain, layers)
    masks: list[Tensor] = []
    # The first maps are those of the model as it is, and so are those afterwards.
    assert torch.equal(_noun_maps(lens, scenes, spelling, masks), random[0])
    pointing = [float(pointing_game(maps, torch.stack(masks)).mean()) for maps in random]
    assert pointing[0] >= least
    # Random features still tell objects from the background, but not one word from another.
    assert pointing[-1] <= 0.5 * pointing[0]
    assert similarity[-1].abs().mean() <= 0.3


@pytest.mark.parametrize(
    "name",
    [DEMO_MODELS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in DEMO_MODELS[1:])],
)
def test_random_weights_destroy_the_lens(name: str) -> None:
    lens = LogitLens(MLLM.from_pretrained(f"demo/{name}"))
    _check_random_weights(lens, scenes=16, spelling="words", least=0.6)


@needs_language_model
@pytest.mark.slow
def test_random_weights_destroy_the_centred_lens_of_a_pretrained_model() -> None:
    lens = LogitLens(MLLM.from_pretrained("demo/smolvlm"), centered=True)
    _check_random_weights(lens, scenes=8, spelling="natural", least=0.5)
