from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from captum_mllm.metrics import (
    area_over_perturbation_curve,
    deletion_auc,
    insertion_auc,
    perturbation_curve,
)

SIZE = (6, 8)


def pictures(count: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, *SIZE, generator=generator, dtype=torch.float64).to(dtype)


def maps(count: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 1, *SIZE, generator=generator, dtype=torch.float64)


def classifier(n_classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE[0] * SIZE[1], n_classes)).double()


def curve_by_hand(
    score: Callable[[Tensor], float], image: Tensor, baseline: Tensor, map_: Tensor, steps: int
) -> tuple[list[float], list[float]]:
    """Insertion and deletion curves of one example, one pixel after the other; without ties."""
    height, width = SIZE
    cells = sorted(
        (-float(map_[row, column]), row, column) for row in range(height) for column in range(width)
    )
    inserted, deleted = baseline.clone(), image.clone()
    curves: tuple[list[float], list[float]] = ([score(inserted)], [score(deleted)])
    done = 0
    for step in range(1, steps + 1):
        while done < round(step * len(cells) / steps):
            _, row, column = cells[done]
            inserted[:, row, column] = image[:, row, column]
            deleted[:, row, column] = baseline[:, row, column]
            done += 1
        curves[0].append(score(inserted))
        curves[1].append(score(deleted))
    return curves


def trapezoids(curve: list[float]) -> float:
    return sum((a + b) / 2 for a, b in pairwise(curve)) / (len(curve) - 1)


@pytest.mark.parametrize("steps", [1, 4, 16, 48])
@pytest.mark.parametrize("per_eval", [1, 3, 100])
def test_equals_a_loop_over_pixels(steps: int, per_eval: int) -> None:
    model, target = classifier(), [0, 3, 1]
    images, attributions = pictures(), maps()
    baseline = torch.full_like(images, 0.5)
    arguments: dict[str, Any] = dict(
        baselines=0.5, target=target, steps=steps, perturbations_per_eval=per_eval
    )
    insertion = insertion_auc(model, images, attributions, **arguments)
    deletion = deletion_auc(model, images, attributions, **arguments)
    aopc = area_over_perturbation_curve(model, images, attributions, **arguments)
    for index, wanted in enumerate(target):

        def score(image: Tensor, wanted: int = wanted) -> float:
            return float(model(image[None]).detach().softmax(-1)[0, wanted])

        inserted, deleted = curve_by_hand(
            score, images[index], baseline[index], attributions[index, 0], steps
        )
        assert float(insertion[index]) == pytest.approx(trapezoids(inserted))
        assert float(deletion[index]) == pytest.approx(trapezoids(deleted))
        drop = sum(deleted[0] - value for value in deleted) / len(deleted)
        assert float(aopc[index]) == pytest.approx(drop)


def weighted_sum(weight: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda image: (image * weight).sum((1, 2, 3))


def test_closed_form_of_a_linear_function() -> None:
    """Pixel of rank r contributes for the share 1 - (r + 1/2) / n of the insertion curve."""
    weight, images = torch.rand(1, 1, *SIZE, dtype=torch.float64), pictures()
    contribution = images * weight
    n = SIZE[0] * SIZE[1]
    model, attributions = weighted_sum(weight), contribution.sum(1, keepdim=True)
    descending = attributions.flatten(1).sort(descending=True).values
    shares = 1 - (torch.arange(n, dtype=torch.float64) + 0.5) / n
    expected = (descending * shares).sum(1)
    found = insertion_auc(model, images, attributions, baselines=0.0, steps=n)
    torch.testing.assert_close(found, expected)
    total = descending.sum(1)
    deletion = deletion_auc(model, images, attributions, baselines=None, steps=n)
    torch.testing.assert_close(deletion, total - expected)
    normal = insertion_auc(model, images, attributions, baselines=0.0, steps=n, normalize=True)
    torch.testing.assert_close(normal, expected / total)


def test_the_true_order_is_best_and_its_reverse_worst() -> None:
    weight, images = torch.rand(1, 1, *SIZE, dtype=torch.float64), pictures()
    truth = (images * weight).sum(1, keepdim=True)
    arguments: dict[str, Any] = dict(baselines=0.0, steps=48)
    model = weighted_sum(weight)
    best = insertion_auc(model, images, truth, **arguments)
    worst = insertion_auc(model, images, -truth, **arguments)
    for seed in range(5):
        other = insertion_auc(model, images, maps(seed=seed), **arguments)
        assert ((worst < other) & (other < best)).all()
    # What is left after the best pixels are gone is what the worst ones had brought.
    torch.testing.assert_close(deletion_auc(model, images, truth, **arguments), worst)


def test_a_constant_map_gets_what_a_random_order_gets() -> None:
    """Not a scan from the top, which would be right by chance where the weight is at the top."""
    weight = torch.zeros(1, 1, *SIZE, dtype=torch.float64)
    weight[:, :, :3] = 1 / (9 * SIZE[1])
    images = torch.ones(1, 3, *SIZE, dtype=torch.float64)
    for value in (0.0, 0.1, 1.0):
        constant = torch.full((1, 1, 3, 3), value)
        area = insertion_auc(weighted_sum(weight), images, constant, baselines=0.0, steps=48)
        assert float(area) == pytest.approx(0.5, abs=0.1)


def test_scores_do_not_depend_on_monotonic_changes_of_the_map() -> None:
    images, attributions = pictures(), maps()
    plain = insertion_auc(classifier(), images, attributions, target=1)
    changed = insertion_auc(classifier(), images, attributions.exp() ** 3 - 7, target=1)
    assert torch.equal(plain, changed)


@pytest.mark.parametrize("kind", ["insertion", "deletion"])
def test_the_curve_runs_between_the_baseline_and_the_image(kind: Any) -> None:
    images, model = pictures(), classifier()
    baseline = torch.rand_like(images)
    curve = perturbation_curve(
        model, images, maps(), kind, baselines=baseline, target=torch.tensor([0, 1, 2]), steps=7
    )
    assert curve.area[0] == 0
    assert curve.area[-1] == 1
    assert curve.probability.shape == (3, 8)
    rows = torch.arange(3)
    ends = [model(each).softmax(-1)[rows, rows] for each in (baseline, images)]
    first, last = ends if kind == "insertion" else ends[::-1]
    torch.testing.assert_close(curve.probability[:, 0], first)
    torch.testing.assert_close(curve.probability[:, -1], last)
    assert not curve.probability.requires_grad


def test_more_steps_than_pixels() -> None:
    curve = perturbation_curve(
        classifier(), pictures(), maps(), "insertion", target=0, steps=1000, baselines="mean"
    )
    assert len(curve.area.unique()) == SIZE[0] * SIZE[1] + 1
    assert (curve.area_under() < 1).all()


def test_quadratic_steps_are_finer_where_the_map_is_largest() -> None:
    arguments = {"baselines": "mean", "target": 0}
    fine = perturbation_curve(classifier(), pictures(), maps(), "insertion", steps=100, **arguments)
    curve = perturbation_curve(
        classifier(), pictures(), maps(), "insertion", steps=10, spacing="quadratic", **arguments
    )
    cells = SIZE[0] * SIZE[1]
    expected = ((torch.arange(11) / 10) ** 2 * cells + 0.5).floor() / cells
    torch.testing.assert_close(curve.area, expected.to(curve.area))
    # Of the even steps those with the same area have the same probability.
    every = [round(100 * float(area)) for area in (torch.arange(11) / 10) ** 2]
    torch.testing.assert_close(curve.probability, fine.probability[:, every])


def test_pixels_of_one_value_come_in_patches() -> None:
    seen = []

    def remember(image: Tensor) -> Tensor:
        seen.append(image[0, 0] > 0)
        return image.mean((1, 2, 3))

    image = torch.ones(1, 3, 56, 56)
    constant = torch.ones(1, 1, 56, 56)
    perturbation_curve(remember, image, constant, "insertion", baselines=0.0, steps=2)
    half = seen[1]
    assert half.float().mean() == 0.5
    # Of scattered pixels half would have a neighbour of the other kind.
    assert (half[1:] != half[:-1]).float().mean() < 0.25
    assert 0.2 < half[:28].float().mean() < 0.8


def test_where_the_image_is_no_likelier_there_is_nothing_to_normalise() -> None:
    images = pictures()
    same = torch.zeros(1, 1, *SIZE, dtype=torch.float64)
    for metric in (insertion_auc, deletion_auc):
        for weight in (same, same - 1):
            area = metric(weighted_sum(weight), images, maps(), baselines=0.0, normalize=True)
            assert area.tolist() == [0.5] * 3


def test_normalised_areas_stay_within_bounds() -> None:
    """A function that overshoots between its ends."""

    def overshooting(image: Tensor) -> Tensor:
        share = image.mean((1, 2, 3))
        return share + 100 * share * (1 - share)

    images = torch.ones(2, 3, *SIZE, dtype=torch.float64)
    for metric in (insertion_auc, deletion_auc):
        area = metric(overshooting, images, maps(2), baselines=0.0, normalize=True)
        assert ((area >= 0) & (area <= 1)).all()


def test_a_method_of_the_forward_function_is_asked_for_the_probability() -> None:
    class Hooked:
        def __call__(self, image: Tensor) -> Tensor:
            raise AssertionError("the output was asked for")

        def target_probability(self, image: Tensor, scale: float, target: int) -> Tensor:
            assert not torch.is_grad_enabled()
            return image.mean((1, 2, 3)) * scale * target

    curve = perturbation_curve(
        Hooked(),
        pictures(),
        maps(),
        "deletion",
        baselines=0.0,
        target=2,
        additional_forward_args=0.25,
    )
    torch.testing.assert_close(curve.probability[:, 0], pictures().mean((1, 2, 3)) / 2)


def test_arguments_of_each_example_go_along() -> None:
    def shifted(image: Tensor, shift: Tensor, factor: Tensor) -> Tensor:
        assert len(shift) == len(image)
        return image.mean((1, 2, 3)) * factor + shift

    shift = torch.tensor([0.0, 10.0, 20.0], dtype=torch.float64)
    curve = perturbation_curve(
        shifted,
        pictures(),
        maps(),
        "insertion",
        additional_forward_args=(shift, torch.tensor(2.0)),
        perturbations_per_eval=5,
    )
    assert torch.equal((curve.probability / 10).floor(), (shift / 10)[:, None].expand(3, 21))


@pytest.mark.parametrize("baselines", ["blur", "mean", 0.0, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_images(dtype: torch.dtype, baselines: Any) -> None:
    model = classifier().to(dtype)
    area = insertion_auc(model, pictures(dtype=dtype), maps().to(dtype), baselines, target=1)
    assert area.dtype == torch.float32
    exact = insertion_auc(model.double(), pictures(), maps().to(dtype), baselines, target=1)
    torch.testing.assert_close(area.double(), exact, rtol=0.05, atol=0.01)


def test_maps_of_several_channels_and_another_size() -> None:
    images, model = pictures(), classifier()
    channels = torch.rand(3, 3, 3, 4)
    summed = insertion_auc(model, images, channels.sum(1, keepdim=True), target=0)
    assert torch.equal(insertion_auc(model, images, channels, target=0), summed)


def test_inputs_are_left_as_they_are() -> None:
    images = pictures().requires_grad_()
    before = images.detach().clone()
    insertion_auc(classifier(), images, maps().requires_grad_(), target=0)
    assert torch.equal(images, before)
    assert images.grad is None


def test_bad_arguments_are_refused() -> None:
    images, attributions, model = pictures(), maps(), classifier()
    with pytest.raises(ValueError, match=r"attributions must have shape \(3, c, h, w\)"):
        insertion_auc(model, images, attributions[:2], target=0)
    with pytest.raises(ValueError, match=r"attributions must have shape \(3, c, h, w\)"):
        insertion_auc(model, images, attributions[:, 0], target=0)
    with pytest.raises(ValueError, match="attributions must be finite"):
        insertion_auc(model, images, attributions / 0, target=0)
    with pytest.raises(ValueError, match="inputs must be finite"):
        insertion_auc(model, images / 0, attributions, target=0)
    with pytest.raises(ValueError, match=r"inputs must have shape \(B, C, H, W\)"):
        insertion_auc(model, images[0], attributions, target=0)
    with pytest.raises(TypeError, match="one floating-point Tensor of images, got tuple"):
        insertion_auc(model, (images,), attributions, target=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="steps must be an int of at least 1, got 0"):
        insertion_auc(model, images, attributions, target=0, steps=0)
    with pytest.raises(ValueError, match='kind must be "insertion" or "deletion"'):
        perturbation_curve(model, images, attributions, "both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="spacing must be"):
        perturbation_curve(model, images, attributions, "insertion", spacing="log")  # type: ignore[arg-type]


def test_probabilities_that_are_not_defined_are_refused() -> None:
    images, attributions = pictures(), maps()
    with pytest.raises(ValueError, match="a target is needed for an output of shape"):
        insertion_auc(classifier(), images, attributions)
    with pytest.raises(ValueError, match="no softmax to speak of"):
        insertion_auc(classifier(1), images, attributions, target=0)
    with pytest.raises(ValueError, match="must return a tensor of logits, got dict"):
        insertion_auc(lambda image: {"logits": image}, images, attributions, target=0)
    with pytest.raises(ValueError, match="one probability for each of 3 examples"):
        insertion_auc(lambda image: image, images, attributions, target=0)
    with pytest.raises(ValueError, match="NaN or infinity for a perturbed input"):
        insertion_auc(lambda image: image.sum((1, 2, 3)) / 0, images, attributions)
