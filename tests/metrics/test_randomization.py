from collections.abc import Callable

import pytest
import torch
from captum.attr import Saliency
from torch import Tensor, nn

from captum_mllm.metrics import map_similarity, randomization_sanity


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8 * 64, 5),
    )


def saliency(model: nn.Module) -> Callable[[], Tensor]:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def explain() -> Tensor:
        return Saliency(model).attribute(images.clone().requires_grad_(), target=2).sum(1)

    return explain


def weights(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_maps_of_a_model_do_not_survive_its_weights() -> None:
    model = network()
    similarity = randomization_sanity(model, saliency(model), ["5", "2", "0"])
    assert similarity.shape == (3, 2)
    assert (similarity[-1].abs() < 0.5).all()


def test_what_does_not_depend_on_the_model_stays() -> None:
    model = network()
    blob = torch.rand(2, 8, 8)
    similarity = randomization_sanity(model, lambda: blob, ["5", "0"], measure="cosine")
    torch.testing.assert_close(similarity, torch.ones(2, 2).double())


def test_layers_are_randomised_one_after_the_other_and_stay_so() -> None:
    model = network()
    before = weights(model)
    changed: list[list[bool]] = []
    explain = saliency(model)

    def look() -> Tensor:
        pairs = zip(weights(model), before, strict=True)
        changed.append([not torch.equal(now, then) for now, then in pairs])
        return explain()

    randomization_sanity(model, look, ["5", "2"])
    assert changed == [
        [False] * 6,
        [False] * 4 + [True] * 2,
        [False] * 2 + [True] * 4,
    ]


def test_random_weights_have_the_moments_of_the_old_ones() -> None:
    model = nn.Linear(300, 300)
    with torch.no_grad():
        model.weight.normal_(3.0, 0.1)
    seen: list[Tensor] = []

    def look() -> Tensor:
        seen.append(model.weight.detach().clone())
        return torch.rand(2, 2)

    randomization_sanity(model, look, [""])
    assert float(seen[1].mean()) == pytest.approx(3.0, abs=0.01)
    assert float(seen[1].std()) == pytest.approx(0.1, rel=0.02)
    correlation = torch.corrcoef(torch.stack([seen[0].flatten(), seen[1].flatten()]))[0, 1]
    assert abs(float(correlation)) < 0.02


def test_the_weights_are_put_back() -> None:
    model = network().requires_grad_(False)
    before = weights(model)
    randomization_sanity(model, saliency(model), ["5", "2", "5", "0"])
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_the_weights_are_put_back_where_the_explanation_fails() -> None:
    model = network()
    before = weights(model)
    calls = []

    def explain() -> Tensor:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return torch.rand(2, 8, 8)

    with pytest.raises(RuntimeError, match="out of memory"):
        randomization_sanity(model, explain, ["5", "2", "0"])
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))


def test_shared_parameters_are_put_back() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    before = weights(model)
    randomization_sanity(model, lambda: first.weight.detach().clone(), ["1", "0"])
    assert all(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))


def test_the_same_seed_gives_the_same_result() -> None:
    model = network()
    first, again, other = (
        randomization_sanity(model, saliency(model), ["5", "0"], seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_similarity_is_to_the_original() -> None:
    model = nn.Linear(5, 5)
    original, random = weights(model)[0], []

    def look() -> Tensor:
        random.append(model.weight.detach().clone())
        return random[-1]

    found = randomization_sanity(model, look, [""])
    assert found.tolist() == [float(map_similarity(random[1], original))]


def test_bad_layers_are_refused() -> None:
    model = network()
    explain = saliency(model)
    with pytest.raises(ValueError, match="no module '7'"):
        randomization_sanity(model, explain, ["7"])
    with pytest.raises(ValueError, match="'1' has no parameters"):
        randomization_sanity(model, explain, ["1"])
    with pytest.raises(ValueError, match="one or more names of modules"):
        randomization_sanity(model, explain, [])
    with pytest.raises(ValueError, match="one or more names of modules"):
        randomization_sanity(model, explain, "5")
    quantised = nn.Linear(2, 2)
    quantised.weight = nn.Parameter(torch.ones(2, 2, dtype=torch.int8), requires_grad=False)
    with pytest.raises(TypeError, match="expected floating point"):
        randomization_sanity(quantised, explain, [""])
