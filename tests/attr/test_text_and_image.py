"""Captum's own methods on the image and the embeddings of the words together."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from captum.attr import (
    FeatureAblation,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    Lime,
    NoiseTunnel,
    Occlusion,
    Saliency,
    ShapleyValues,
    ShapleyValueSampling,
)
from torch import Tensor

from captum_mllm import MLLM, MSEA
from tests.attr.attributor_columns import LARGER, MULTIMODAL, Column, column, quadrants
from tests.attr.attributor_rows import LeastSquares, kernel_shap
from tests.attr.test_attributor_perturbations import closeness, every_coalition, shapley_values

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients")
everywhere = pytest.mark.parametrize("name", [*MULTIMODAL, *LARGER])


class Both:
    """An image and words as the inputs of a method, with four features: two of each."""

    def __init__(self, name: str) -> None:
        self.where: Column = column(name)
        self.mllm: MLLM = self.where.network  # type: ignore[assignment]
        (self.query,) = self.where.extra
        self.image = self.where.images.clone()
        self.words = self.mllm.word_embeddings(self.query)
        self.halves = quadrants(self.where.size) // 2
        # The first words of the question, and the rest.
        mask = self.mllm.word_mask(self.query)
        self.parts = 2 + (mask > int(mask.max()) // 2).long()
        self.absent = (torch.zeros_like(self.image), torch.full_like(self.words, 0.1))
        self.calls: dict[str, Any] = self.where.forward_arguments

    @property
    def inputs(self) -> tuple[Tensor, Tensor]:
        return self.image, self.words

    @torch.no_grad()
    def score(self, kept: tuple[bool, ...]) -> float:
        """The logit with some of the features, the others at their baseline."""
        present = torch.tensor(kept)
        image = torch.where(present[self.halves], self.image, self.absent[0])
        words = torch.where(present[self.parts], self.words, self.absent[1])
        step, token = self.where.target
        return self.mllm(image, words, self.query)[0, step, token].item()

    def values(self, found: tuple[Tensor, ...]) -> Tensor:
        """The value of each feature, (4,), which all its elements have."""
        maps, words = found
        assert (maps.shape, words.shape) == (self.image.shape, self.words.shape)
        per_feature = [maps[(self.halves == index).expand_as(maps)] for index in (0, 1)]
        per_feature += [words[(self.parts == index).expand_as(words)] for index in (2, 3)]
        for values in per_feature:
            assert (values == values[0]).all()
        return torch.stack([values[0] for values in per_feature]).double()

    def explain(self, method: Any, **arguments: Any) -> Tensor:
        found = method.attribute(
            self.inputs,
            baselines=self.absent,
            feature_mask=(self.halves, self.parts),
            **self.calls,
            **arguments,
        )
        return self.values(found)

    def game(self) -> dict[tuple[bool, ...], float]:
        return {kept: self.score(kept) for kept in itertools.product((False, True), repeat=4)}


@pytest.mark.parametrize("at_once", [1, 3, 8])
@everywhere
def test_ablation_of_image_and_words_equals_ablation_by_hand(name: str, at_once: int) -> None:
    both = Both(name)
    whole = both.score((True,) * 4)
    expected = torch.tensor(
        [whole - both.score(tuple(other != index for other in range(4))) for index in range(4)],
        dtype=torch.float64,
    )
    assert expected.abs().min() > 0
    found = both.explain(FeatureAblation(both.mllm), perturbations_per_eval=at_once)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@everywhere
def test_shapley_values_of_image_and_words_sum_to_the_difference(name: str) -> None:
    both = Both(name)
    game = both.game()
    found = both.explain(ShapleyValues(both.mllm), perturbations_per_eval=4)
    torch.testing.assert_close(found, shapley_values(game), rtol=1e-5, atol=1e-5)
    difference = game[(True,) * 4] - game[(False,) * 4]
    assert found.sum().item() == pytest.approx(difference, abs=1e-5)


@pytest.mark.parametrize("name", MULTIMODAL)
def test_sampling_and_linear_fits_take_both(name: str) -> None:
    both = Both(name)
    game = both.game()
    exact = shapley_values(game)
    difference = game[(True,) * 4] - game[(False,) * 4]
    for method, samples in [
        (ShapleyValueSampling(both.mllm), 40),
        (kernel_shap(both.mllm), 100),
    ]:
        torch.manual_seed(0)
        found = both.explain(method, n_samples=samples, perturbations_per_eval=8)
        assert found.sum().item() == pytest.approx(difference, rel=1e-3)
        torch.testing.assert_close(found, exact, rtol=0, atol=0.2 * float(exact.abs().max()))
    lime = Lime(
        both.mllm,
        interpretable_model=LeastSquares(),
        similarity_func=closeness,
        perturb_func=every_coalition,
    )
    found = both.explain(lime, n_samples=16, perturbations_per_eval=8)
    design = torch.tensor([[1.0, *kept] for kept in game], dtype=torch.float64)
    weights = torch.diag(design.sum(1))
    scores = torch.tensor(list(game.values()), dtype=torch.float64)
    expected = torch.linalg.solve(design.T @ weights @ design, design.T @ weights @ scores)
    torch.testing.assert_close(found, expected[1:], rtol=1e-3, atol=1e-6)


@everywhere
def test_occlusion_has_windows_and_strides_of_each(name: str) -> None:
    both = Both(name)
    height, width = both.where.size
    n_words, size = both.words.shape[1:]
    window = ((3, height // 2, width), (1, size))
    maps, words = Occlusion(both.mllm).attribute(
        both.inputs,
        sliding_window_shapes=window,
        strides=window,
        baselines=both.absent,
        perturbations_per_eval=2,
        **both.calls,
    )
    whole = both.score((True,) * 4)
    for index in (0, 1):
        expected = whole - both.score(tuple(other != index for other in range(4)))
        assert maps[(both.halves == index).expand_as(maps)].unique().item() == pytest.approx(
            expected, rel=1e-4, abs=1e-6
        )
    step, token = both.where.target
    for place in range(n_words):
        changed = both.words.clone()
        changed[:, place] = both.absent[1][:, place]
        with torch.no_grad():
            score = both.mllm(both.image, changed, both.query)[0, step, token].item()
        assert words[0, place].unique().item() == pytest.approx(whole - score, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "n_steps", "method"),
    [*((name, 32, "gausslegendre") for name in MULTIMODAL)]
    # A trained model is steep near a black image.
    + [pytest.param("bundled", 200, "riemann_trapezoid", marks=pytest.mark.slow)],
)
def test_integrated_gradients_of_both_are_complete(name: str, n_steps: int, method: str) -> None:
    both = Both(name)
    (maps, words), delta = IntegratedGradients(both.mllm).attribute(
        both.inputs,
        baselines=both.absent,
        n_steps=n_steps,
        method=method,
        internal_batch_size=20,
        return_convergence_delta=True,
        **both.calls,
    )
    ends = []
    for image, embeddings in (both.inputs, both.absent):
        pixels = image.clone().requires_grad_()
        ends.append(both.mllm(pixels, embeddings, both.query)[(0, *both.where.target)].item())
    difference = ends[0] - ends[1]
    assert abs(delta.item()) < 0.01 * abs(difference)
    assert maps.sum().item() + words.sum().item() == pytest.approx(difference, rel=0.01)
    assert words.abs().sum((0, 2)).min() > 0


@pytest.mark.parametrize("name", MULTIMODAL)
def test_other_gradient_methods_take_both(name: str) -> None:
    both = Both(name)
    slopes = Saliency(both.mllm).attribute(both.inputs, abs=False, **both.calls)
    products = InputXGradient(both.mllm).attribute(both.inputs, **both.calls)
    for given, slope, product in zip(both.inputs, slopes, products):
        assert slope.abs().sum() > 0
        torch.testing.assert_close(product, given * slope)
    torch.manual_seed(0)
    noisy = NoiseTunnel(Saliency(both.mllm)).attribute(
        both.inputs, nt_samples=2, stdevs=(0.01, 0.001), **both.calls
    )
    shap = GradientShap(both.mllm).attribute(
        both.inputs, baselines=both.absent, n_samples=2, **both.calls
    )
    for found in (noisy, shap):
        for given, values in zip(both.inputs, found):
            assert values.shape == given.shape
            assert values.isfinite().all()
            assert values.any()


@pytest.mark.parametrize("weights", ["uniform", "confidence", (1.0, 3.0)], ids=str)
@pytest.mark.parametrize("name", MULTIMODAL)
def test_under_msea_words_are_the_same_at_every_scale(name: str, weights: Any) -> None:
    both = Both(name)
    seen: list[Any] = []
    scales = (1.0, 1.5)
    for method, arguments in [
        (InputXGradient(both.mllm), {}),
        (
            FeatureAblation(both.mllm),
            {"feature_mask": (both.halves, both.parts), "baselines": both.absent},
        ),
    ]:
        seen.clear()
        maps, words = MSEA(method).attribute(
            both.inputs,
            scales=scales,
            weights=weights,
            normalize="none",
            on_scale=seen.append,
            **both.calls,
            **arguments,
        )
        assert [found.scale for found in seen] == list(scales)
        assert all(found.inputs[1] is both.words for found in seen)
        shares = torch.tensor([1.0, 1.0] if weights == "uniform" else [1.0, 3.0])
        if weights == "confidence":
            shares = torch.stack([found.probability for found in seen])[:, 0]
        expected = sum(
            share * found.attributions[1] for share, found in zip(shares / shares.sum(), seen)
        )
        torch.testing.assert_close(words, expected.to(words), rtol=1e-5, atol=1e-9)
        assert maps.shape == both.image.shape
        assert not torch.equal(*(found.attributions[1] for found in seen))
