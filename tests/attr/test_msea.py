import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import (
    Attribution,
    FeatureAblation,
    InputXGradient,
    IntegratedGradients,
    LayerActivation,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from captum.log import log_usage
from PIL import Image
from torch import Tensor, nn

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.attr import (
    MSEA,
    AttentionMaps,
    LogitLens,
    ScaleAttribution,
    TokenCam,
)
from captum_mllm.demo import demo_image
from tests.attr.toy_networks import (
    ConvolutionalClassifier,
    ImageAndVectorClassifier,
    VisionTransformerClassifier,
    WeightedMean,
)

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor .* did not already require gradients")

SCALES = (0.5, 1.0, 2.0)


def plain(method: Attribution, **options: Any) -> MSEA:
    """MSEA that averages maps as they are."""
    return MSEA(method, normalize="none", **options)


def draw_images(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def resizing_matrix(before: int, after: int) -> Tensor:
    """Rows of the triangle filter of anti-aliased bilinear resizing, by its definition."""
    ratio = before / after
    reach = max(ratio, 1.0)
    matrix = torch.zeros(after, before, dtype=torch.float64)
    for row in range(after):
        centre = (row + 0.5) * ratio
        for column in range(before):
            matrix[row, column] = max(0.0, 1 - abs(column + 0.5 - centre) / reach)
        matrix[row] /= matrix[row].sum()
    return matrix


def resize_by_matrices(planes: Tensor, height: int, width: int) -> Tensor:
    rows = resizing_matrix(planes.shape[-2], height)
    columns = resizing_matrix(planes.shape[-1], width)
    return rows @ planes.double() @ columns.T


class Recorder(Attribution):
    """Keeps what it is called with; its attributions are made from the inputs."""

    def __init__(
        self, forward_func: Callable[..., Any], maps: Callable[..., Any] = lambda inputs: inputs
    ) -> None:
        super().__init__(forward_func)
        self.maps = maps
        self.calls: list[tuple[Any, dict[str, Any]]] = []

    @log_usage()
    def attribute(self, inputs: Any, **kwargs: Any) -> Any:
        self.calls.append((inputs, kwargs))
        return self.maps(inputs)


def quadrants(height: int, width: int) -> Tensor:
    rows = (torch.arange(height) >= height // 2).long()
    columns = (torch.arange(width) >= width // 2).long()
    return (2 * rows[:, None] + columns)[None, None]


METHODS: list[tuple[str, Callable[[nn.Module], Attribution], dict[str, Any]]] = [
    ("saliency", Saliency, {}),
    ("integrated_gradients", IntegratedGradients, {"n_steps": 4}),
    ("integrated_gradients_from_grey", IntegratedGradients, {"n_steps": 4, "baselines": 0.5}),
    ("occlusion", Occlusion, {"sliding_window_shapes": (3, 4, 6), "strides": (3, 4, 3)}),
    ("feature_ablation", FeatureAblation, {"feature_mask": quadrants(16, 12)}),
    ("noise_tunnel", lambda network: NoiseTunnel(Saliency(network)), {"nt_samples": 2}),
]
method_cases = pytest.mark.parametrize(
    ("method", "arguments"), [case[1:] for case in METHODS], ids=[case[0] for case in METHODS]
)
network_cases = pytest.mark.parametrize(
    "network_class", [ConvolutionalClassifier, VisionTransformerClassifier]
)


# What the result is


@network_cases
@method_cases
def test_equals_a_loop_over_the_scales(
    network_class: type[nn.Module],
    method: Callable[[nn.Module], Attribution],
    arguments: dict[str, Any],
) -> None:
    wrapped = method(network_class())
    images = draw_images(2, 3, 16, 12)
    torch.manual_seed(0)
    result = plain(wrapped).attribute(images, scales=SCALES, target=1, **arguments)

    torch.manual_seed(0)
    expected = torch.zeros(2, 3, 16, 12, dtype=torch.float64)
    for scale in SCALES:
        height, width = int(16 * scale), int(12 * scale)
        by_scale = dict(arguments)
        if "feature_mask" in by_scale:
            by_scale["feature_mask"] = quadrants(height, width)
        if "strides" in by_scale:
            window = int(4 * scale), int(6 * scale)
            by_scale["sliding_window_shapes"] = (3, *window)
            # Half of 3 pixels is rounded to the even 2.
            by_scale["strides"] = (3, window[0], {0.5: 2, 1.0: 3, 2.0: 6}[scale])
        resized = resize_by_matrices(images, height, width).float()
        maps = wrapped.attribute(resized, target=1, **by_scale)
        expected += resize_by_matrices(maps.detach(), 16, 12) / len(SCALES)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-6)
    assert expected.std() > 1e-5


@network_cases
@method_cases
def test_one_scale_of_one_is_the_wrapped_method_itself(
    network_class: type[nn.Module],
    method: Callable[[nn.Module], Attribution],
    arguments: dict[str, Any],
) -> None:
    wrapped = method(network_class())
    images = draw_images(2, 3, 16, 12)
    torch.manual_seed(0)
    expected = wrapped.attribute(images, target=[0, 3], **arguments)
    torch.manual_seed(0)
    result = MSEA(wrapped).attribute(images, scales=(1.0,), target=[0, 3], **arguments)
    assert torch.equal(result, expected)


@pytest.mark.parametrize("weights", ["uniform", "confidence", [3.0]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_scale_of_one_is_exact_for_all_weights_and_dtypes(
    weights: Any, dtype: torch.dtype
) -> None:
    wrapped = Saliency(ConvolutionalClassifier().to(dtype))
    images = draw_images(2, 3, 9, 7).to(dtype)
    result = MSEA(wrapped).attribute(images, scales=(1.0,), weights=weights, target=2)
    assert result.dtype == dtype
    assert torch.equal(result, wrapped.attribute(images, target=2))


def test_one_scale_passes_on_infinite_attributions() -> None:
    wrapped = Recorder(ConvolutionalClassifier(), lambda inputs: inputs / 0)
    result = MSEA(wrapped).attribute(draw_images(1, 3, 4, 4), scales=(1.0,))
    assert torch.equal(result, torch.full((1, 3, 4, 4), math.inf))


@network_cases
def test_layer_maps_are_enlarged_to_the_input(network_class: type[nn.Module]) -> None:
    network = network_class()
    layer = network.last if isinstance(network, ConvolutionalClassifier) else network.patches
    wrapped = LayerGradCam(network, layer)
    images = draw_images(2, 3, 16, 24)
    at_one = wrapped.attribute(images, target=1).detach()
    assert at_one.shape == (2, 1, 4, 6)
    torch.testing.assert_close(
        plain(wrapped).attribute(images, scales=(1.0,), target=1),
        F.interpolate(at_one, (16, 24), mode="bilinear", align_corners=False),
    )
    result = plain(wrapped).attribute(images, scales=SCALES, target=1)
    maps = [
        wrapped.attribute(resize_by_matrices(images, height, width).float(), target=1).detach()
        for height, width in ((8, 12), (16, 24), (32, 48))
    ]
    expected = torch.stack([resize_by_matrices(each, 16, 24) for each in maps]).mean(dim=0)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", [0, 1, 2])
def test_closed_form_of_a_gradient(target: int) -> None:
    network = WeightedMean()
    images = draw_images(1, 3, 12, 10, dtype=torch.float64)
    result = plain(Saliency(network)).attribute(
        images, scales=(0.5, 1.0, 1.5), target=target, abs=False
    )
    # The gradient at a pixel is the weight at its place over the number of pixels.
    expected = torch.zeros(12, 10, dtype=torch.float64)
    for height, width in ((6, 5), (12, 10), (18, 15)):
        gradient = network.weight(target, height, width) / (height * width)
        expected += resize_by_matrices(gradient, 12, 10) / 3
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, expected.expand(1, 3, 12, 10), rtol=1e-12, atol=1e-14)


def test_closed_form_of_input_times_gradient() -> None:
    network = WeightedMean()
    images = draw_images(2, 3, 12, 10, dtype=torch.float64)
    result = plain(InputXGradient(network)).attribute(images, scales=(0.5, 2.0), target=0)
    expected = torch.zeros(2, 3, 12, 10, dtype=torch.float64)
    for height, width in ((6, 5), (24, 20)):
        resized = resize_by_matrices(images, height, width)
        products = resized * network.weight(0, height, width) / (height * width)
        expected += resize_by_matrices(products, 12, 10) / 2
    torch.testing.assert_close(result, expected, rtol=1e-11, atol=1e-14)


def test_closed_form_of_normalization() -> None:
    # Target 1 is the plain mean: a gradient of 1 / pixels everywhere, at every scale.
    images = draw_images(1, 3, 8, 6, dtype=torch.float64)
    msea = MSEA(Saliency(WeightedMean()))

    def constant(**arguments: Any) -> float:
        result = msea.attribute(images, scales=(0.5, 1.0), target=1, **arguments)
        assert result.std() < 1e-15
        return result.mean().item()

    pixels = 8 * 6
    assert constant() == pytest.approx((4 / pixels + 1 / pixels) / 2, rel=1e-12)
    assert constant(weights=[1, 3]) == pytest.approx((4 / pixels + 3 / pixels) / 4, rel=1e-12)
    assert constant(normalize="max") == pytest.approx(1, rel=1e-12)
    assert constant(normalize="sum") == pytest.approx(1 / (3 * pixels), rel=1e-12)


@pytest.mark.parametrize("weights", ["uniform", (1.0, 0.5, 2.0)])
@pytest.mark.parametrize("method", [Saliency, IntegratedGradients])
def test_balanced_scales_have_the_say_of_their_weights(method: Any, weights: Any) -> None:
    """Against a loop in float64, value by value."""
    network = ConvolutionalClassifier()
    images = draw_images(2, 3, 12, 10)
    scales = (0.5, 1.0, 2.0)
    seen: list[ScaleAttribution] = []
    found = MSEA(method(network), scales=scales, weights=weights).attribute(
        images, target=1, on_scale=seen.append
    )
    factors = [1.0] * 3 if isinstance(weights, str) else list(weights)
    expected = torch.zeros(2, 3, 12, 10, dtype=torch.float64)
    for example in range(2):
        total = strength = 0.0
        mean = torch.zeros(3, 12, 10, dtype=torch.float64)
        for factor, each in zip(factors, seen):
            resized = resize_by_matrices(each.attributions[example], 12, 10)
            size = float(resized.abs().sum()) / resized.numel()
            mean += factor * resized / size
            strength += factor * size
            total += factor
        expected[example] = mean / total * (strength / total)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_shares_are_told_and_are_the_weights_where_scales_are_balanced() -> None:
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
    image, query = mllm.prepare(inp, target="a red circle")
    for method in (LogitLens(mllm), AttentionMaps(mllm), TokenCam(mllm)):
        msea = MSEA(method, scales=(0.5, 1.0, 1.5, 2.0))
        for options in ({}, {"weights": (1.0, 2.0, 1.0, 0.0)}):
            scales = msea.explain_tokens((image,), query, **options).scales
            weights = torch.tensor(options.get("weights", (1.0, 1.0, 1.0, 1.0)))
            for scale, weight in zip(scales, weights / weights.sum()):
                torch.testing.assert_close(scale.share, weight.expand(3), rtol=1e-4, atol=1e-5)
    scales = MSEA(AttentionMaps(mllm)).explain_tokens((image,), query, normalize="none").scales
    # A token of a larger image gets less of the attention.
    assert scales[0].share.min() > 0.5
    torch.testing.assert_close(sum(scale.share for scale in scales), torch.ones(3))


def test_a_network_of_one_size_is_named_with_the_scale_and_the_cure() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2))
    with pytest.raises(RuntimeError, match=r"of 4 x 4 pixels.*of 8 x 8.*interpolate_pos_encoding"):
        MSEA(Saliency(network)).attribute(draw_images(1, 3, 8, 8), target=0)
    # An error that is not the model's stays as it is.
    with pytest.raises(TypeError, match="n_stepz"):
        MSEA(IntegratedGradients(ConvolutionalClassifier())).attribute(
            draw_images(1, 3, 8, 8), target=0, n_stepz=3
        )


def test_maps_of_zeros_stay_zero_and_a_single_scale_stays_as_it_is() -> None:
    zero = Recorder(lambda images: images[:, :2].mean((2, 3)), torch.zeros_like)
    seen: list[ScaleAttribution] = []
    found = MSEA(zero).attribute(draw_images(1, 3, 8, 8), on_scale=seen.append, target=0)
    assert not found.any()
    network = ConvolutionalClassifier()
    images = draw_images(2, 3, 12, 10)
    once = MSEA(Saliency(network), scales=(1.0,)).attribute(images, target=1)
    assert torch.equal(once, Saliency(network).attribute(images, target=1))


@pytest.mark.parametrize("normalize", ["max", "sum"])
def test_normalization_is_per_example_and_scale(normalize: str) -> None:
    wrapped = IntegratedGradients(ConvolutionalClassifier(), multiply_by_inputs=True)
    images = draw_images(3, 3, 16, 16)
    images[1] *= 100
    images[2] = 0
    result = MSEA(wrapped).attribute(
        images, scales=SCALES, normalize=normalize, target=0, n_steps=3
    )
    by_scale = MSEA(wrapped).attribute(images, scales=SCALES, combine=False, target=0, n_steps=3)
    for example in range(2):
        expected = torch.zeros(3, 16, 16, dtype=torch.float64)
        for maps in by_scale:
            each = resize_by_matrices(maps[example], 16, 16)
            extent = each.abs().max() if normalize == "max" else each.abs().sum()
            expected += each / extent / len(SCALES)
        torch.testing.assert_close(result[example].double(), expected, rtol=1e-3, atol=1e-6)
    assert torch.equal(result[2], torch.zeros(3, 16, 16))


def test_scales_weigh_as_told() -> None:
    wrapped = Saliency(ConvolutionalClassifier())
    images = draw_images(2, 3, 12, 12)
    by_scale = [
        plain(wrapped).attribute(images, scales=(scale,), target=0).double() for scale in SCALES
    ]
    for weights in ([1, 2, 5], [0, 0, 3.0], [0, 1e-12, 0], (1e308, 1e308, 0.25e308)):
        result = plain(wrapped).attribute(images, scales=SCALES, weights=weights, target=0)
        shares = torch.tensor(weights, dtype=torch.float64)
        shares = shares / shares.max()
        expected = sum(share * each for share, each in zip(shares, by_scale, strict=True))
        torch.testing.assert_close(result.double(), expected / shares.sum(), rtol=1e-5, atol=1e-9)


def test_weights_of_any_size_mean_their_ratio() -> None:
    msea = MSEA(Saliency(ConvolutionalClassifier()))
    images = draw_images(1, 3, 12, 12)
    results = [
        msea.attribute(images, scales=SCALES, weights=weights, target=0)
        for weights in ("uniform", [1, 1, 1], torch.full((3,), 7.0))
    ]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


# Confidence


@network_cases
def test_confidence_equals_a_loop_by_hand(network_class: type[nn.Module]) -> None:
    network = network_class()
    wrapped = Saliency(network)
    images, targets = draw_images(3, 3, 16, 16), [0, 4, 2]
    result = plain(wrapped).attribute(images, scales=SCALES, weights="confidence", target=targets)
    total = torch.zeros(3, 1, 1, 1, dtype=torch.float64)
    expected = torch.zeros(3, 3, 16, 16, dtype=torch.float64)
    for side in (8, 16, 32):
        resized = resize_by_matrices(images, side, side).float()
        probability = network(resized).detach().double().softmax(dim=1)[range(3), targets]
        maps = resize_by_matrices(wrapped.attribute(resized, target=targets).detach(), 16, 16)
        total += probability.reshape(3, 1, 1, 1)
        expected += probability.reshape(3, 1, 1, 1) * maps
    torch.testing.assert_close(result.double(), expected / total, rtol=1e-4, atol=1e-7)
    uniform = plain(wrapped).attribute(images, scales=SCALES, target=targets)
    assert not torch.allclose(result, uniform, rtol=1e-3, atol=0)


class DecidesBySize(nn.Module):
    """Class 0 on images of 16 x 16, class 1 on all others, as surely as told."""

    def __init__(self, margin: float, sides: tuple[int, ...] = (16,)) -> None:
        super().__init__()
        self.margin, self.sides = margin, sides

    def forward(self, images: Tensor) -> Tensor:
        sign = 1.0 if images.shape[-1] in self.sides else -1.0
        evidence = images.square().mean(dim=(1, 2, 3))
        return torch.stack([evidence + sign * self.margin, -evidence], dim=1)


def test_a_scale_at_which_the_decision_changed_does_not_count() -> None:
    wrapped = Saliency(DecidesBySize(margin=1e4))
    images = draw_images(2, 3, 16, 16)
    result = plain(wrapped).attribute(images, scales=SCALES, weights="confidence", target=0)
    assert torch.equal(result, wrapped.attribute(images, target=0))


def test_without_confidence_at_any_scale_all_count_the_same() -> None:
    wrapped = Saliency(DecidesBySize(margin=1e4, sides=()))
    images = draw_images(2, 3, 16, 16)
    arguments = {"scales": SCALES, "target": 0}
    assert torch.equal(
        MSEA(wrapped).attribute(images, weights="confidence", **arguments),
        MSEA(wrapped).attribute(images, weights="uniform", **arguments),
    )


class TokenClassifier(nn.Module):
    """Logits of three tokens: (N, 3, H, W) -> (N, 3, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.networks = nn.ModuleList(ConvolutionalClassifier(seed) for seed in range(3))

    def forward(self, images: Tensor, bias: Tensor | None = None) -> Tensor:
        logits = torch.stack([network(images) for network in self.networks], dim=1)
        return logits if bias is None else logits + bias[:, None]


@pytest.mark.parametrize("target", [(2, 4), [(0, 1), (2, 4)]])
def test_confidence_in_a_token(target: Any) -> None:
    network = TokenClassifier()
    images, bias = draw_images(2, 3, 8, 8), draw_images(2, 5)
    found: list[ScaleAttribution] = []
    MSEA(Saliency(network)).attribute(
        images,
        scales=(1.0,),
        weights="confidence",
        on_scale=found.append,
        target=target,
        additional_forward_args=(bias,),
    )
    places = target if isinstance(target, list) else [target, target]
    probabilities = network(images, bias).softmax(dim=-1)
    expected = torch.stack([probabilities[example][place] for example, place in enumerate(places)])
    torch.testing.assert_close(found[0].probability, expected.detach())


class OffersProbability(TokenClassifier):
    """Explains all three tokens at once where no target is given."""

    def __init__(self, probability: Callable[[Tensor, Any], Any]) -> None:
        super().__init__()
        self.probability = probability
        self.asked: list[tuple[tuple[int, ...], Any, Any]] = []

    def target_probability(self, images: Tensor, *additional: Any, target: Any = None) -> Any:
        self.asked.append((tuple(images.shape), additional, target))
        return self.probability(images, target)


@pytest.mark.parametrize("arguments", [{}, {"target": None}, {"target": 1}])
def test_confidence_without_a_defined_probability_is_refused(arguments: dict[str, Any]) -> None:
    scalar_output = Recorder(lambda images: images.mean(dim=(1, 2, 3)))
    one_logit = Recorder(lambda images: images.mean(dim=(2, 3))[:, :1])
    for wrapped in (scalar_output, one_logit):
        with pytest.raises(ValueError, match="needs the probability of the target"):
            MSEA(wrapped).attribute(draw_images(1, 3, 8, 8), weights="confidence", **arguments)
        assert not wrapped.calls


@pytest.mark.parametrize("value", [math.nan, -0.1])
def test_a_probability_that_is_none_is_refused(value: float) -> None:
    network = OffersProbability(lambda images, target: torch.tensor([value]))
    with pytest.raises(ValueError, match="below 0 or not a number"):
        MSEA(Saliency(network)).attribute(
            draw_images(1, 3, 8, 8), weights="confidence", target=(0, 0)
        )


@pytest.mark.parametrize("returned", [torch.ones(1, 2), 0.5])
def test_a_probability_of_another_shape_is_refused(returned: Any) -> None:
    network = OffersProbability(lambda images, target: returned)
    with pytest.raises(
        ValueError, match=r"target_probability must return a Tensor of shape \(N,\)"
    ):
        MSEA(Saliency(network)).attribute(
            draw_images(1, 3, 8, 8), weights="confidence", target=(0, 0)
        )


def test_more_probabilities_than_maps_are_refused() -> None:
    network = OffersProbability(lambda images, target: draw_images(4))
    with pytest.raises(ValueError, match="4 probabilities"):
        MSEA(Saliency(network)).attribute(
            draw_images(2, 3, 8, 8), weights="confidence", target=(0, 0)
        )


# What the wrapped method is given


def test_inputs_are_resized_and_the_tensor_itself_is_passed_at_scale_one() -> None:
    wrapped = Recorder(ConvolutionalClassifier())
    images = draw_images(2, 3, 11, 6)
    MSEA(wrapped).attribute(images, scales=(0.5, 1.0, 1.5, 1.01))
    inputs = [call[0] for call in wrapped.calls]
    assert [tuple(each.shape[-2:]) for each in inputs] == [(6, 3), (11, 6), (16, 9), (11, 6)]
    assert inputs[1] is images
    assert inputs[3] is images
    torch.testing.assert_close(
        inputs[0].double(), resize_by_matrices(images, 6, 3), rtol=1e-5, atol=1e-6
    )


def test_bicubic_inputs_stay_within_the_range_of_their_plane() -> None:
    wrapped = Recorder(ConvolutionalClassifier())
    images = torch.zeros(2, 3, 8, 8)
    images[:, :, :, 4:] = 1
    images[1, 2] -= 3
    MSEA(wrapped).attribute(images, scales=(2.0,), interpolate_mode="bicubic")
    resized = wrapped.calls[0][0]
    unclamped = F.interpolate(images, (16, 16), mode="bicubic", antialias=True)
    assert unclamped.min() < -3
    assert unclamped[0].max() > 1
    assert resized[0].min() == 0
    assert resized[0].max() == 1
    assert resized[1, 2].min() == -3
    assert resized[1, 2].max() == -2
    inside = (unclamped[0] >= 0) & (unclamped[0] <= 1)
    torch.testing.assert_close(resized[0][inside], unclamped[0][inside])


def test_whole_numbers_are_rounded() -> None:
    wrapped = Recorder(ConvolutionalClassifier())
    images = (draw_images(1, 3, 8, 8) * 255).to(torch.uint8)
    result = MSEA(wrapped).attribute(images, scales=(0.5, 1.0))
    resized = wrapped.calls[0][0]
    assert resized.dtype == torch.uint8
    torch.testing.assert_close(
        resized.double(), resize_by_matrices(images, 4, 4), rtol=0, atol=0.5001
    )
    # Their mean is no whole number.
    assert result.dtype == torch.float32
    assert bool((result != result.round()).any())


def test_baselines_go_along() -> None:
    wrapped = Recorder(ConvolutionalClassifier())
    images, baselines = draw_images(2, 3, 8, 8), draw_images(1, 3, 8, 8, seed=1)
    MSEA(wrapped).attribute(images, scales=(0.5, 1.0), baselines=baselines)
    torch.testing.assert_close(
        wrapped.calls[0][1]["baselines"].double(), resize_by_matrices(baselines, 4, 4)
    )
    assert wrapped.calls[1][1]["baselines"] is baselines


@pytest.mark.parametrize("baselines", [None, 0, 0.5, torch.ones(1, 3, 1, 1)])
def test_baselines_without_pixels_stay_as_they_are(baselines: Any) -> None:
    wrapped = Recorder(ConvolutionalClassifier())
    MSEA(wrapped).attribute(draw_images(1, 3, 8, 8), scales=(0.5, 2.0), baselines=baselines)
    for _, arguments in wrapped.calls:
        assert arguments["baselines"] is baselines


@pytest.mark.parametrize("shape", [(1, 1, 8, 6), (8, 6), (1, 3, 8, 6), (1, 1, 8, 1), (6,)])
def test_feature_masks_go_along(shape: tuple[int, ...]) -> None:
    wrapped = Recorder(ConvolutionalClassifier())
    mask = torch.arange(torch.Size(shape).numel()).reshape(shape) // 2 * 2
    # Blocks of 2 x 2, so that reducing to half keeps every segment.
    if len(shape) > 1:
        mask = mask.reshape(-1, *shape[-2:])[:, ::2].repeat_interleave(2, dim=1).reshape(shape)
    MSEA(wrapped).attribute(draw_images(1, 3, 8, 6), scales=(0.5, 2.0), feature_mask=mask)
    halved, doubled = (arguments["feature_mask"] for _, arguments in wrapped.calls)
    assert halved.dtype == doubled.dtype == torch.int64
    expected = mask
    for axis in range(-min(2, mask.dim()), 0):
        if mask.shape[axis] > 1:
            expected = expected.repeat_interleave(2, dim=axis)
    assert torch.equal(doubled, expected)
    assert torch.equal(halved.unique(), mask.unique())
    assert all(b in (a // 2, 1) for a, b in zip(mask.shape[-2:], halved.shape[-2:], strict=True))


def test_a_segment_without_a_pixel_is_refused() -> None:
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.long)
    mask[..., 0, 0] = 7
    with pytest.raises(ValueError, match=r"scale 0.25 \(2 x 2 pixels\).* segments \[7\]"):
        MSEA(FeatureAblation(ConvolutionalClassifier())).attribute(
            draw_images(1, 3, 8, 8), scales=(0.25,), feature_mask=mask, target=0
        )


@pytest.mark.parametrize("name", ["baselines", "feature_mask"])
def test_what_lies_on_other_pixels_is_refused(name: str) -> None:
    value = torch.zeros(1, 3, 4, 4, dtype=torch.float32 if name == "baselines" else torch.long)
    with pytest.raises(ValueError, match=f"{name} must be as high and wide as its input"):
        MSEA(Recorder(ConvolutionalClassifier())).attribute(
            draw_images(1, 3, 8, 8), scales=(0.5,), **{name: value}
        )


@pytest.mark.parametrize(
    ("window", "strides", "scale", "expected"),
    [
        ((3, 4, 6), (3, 2, 6), 0.5, ((3, 2, 3), (3, 1, 3))),
        ((3, 4, 6), 2, 1.5, ((3, 6, 9), (2, 3, 3))),
        (((3, 4, 6),), ((1, 2, 2),), 2.0, (((3, 8, 12),), ((1, 4, 4),))),
        (((3, 4, 6),), (2,), 2.0, (((3, 8, 12),), ((2, 4, 4),))),
        ((1, 1, 1), (1, 1, 1), 0.25, ((1, 1, 1), (1, 1, 1))),
        ((1, 9, 2), None, 0.5, ((1, 4, 1), None)),
        ((3, 4, 6), 2, 1.0, ((3, 4, 6), 2)),
    ],
)
def test_windows_and_strides_go_along(
    window: Any, strides: Any, scale: float, expected: tuple[Any, Any]
) -> None:
    wrapped = Recorder(ConvolutionalClassifier())
    MSEA(wrapped).attribute(
        draw_images(1, 3, 9, 8),
        scales=(scale,),
        sliding_window_shapes=window,
        strides=strides,
    )
    arguments = wrapped.calls[0][1]
    assert (arguments["sliding_window_shapes"], arguments["strides"]) == expected


def test_windows_of_several_inputs() -> None:
    network = ImageAndVectorClassifier()
    inputs = draw_images(1, 3, 8, 8), draw_images(1, 4)
    result = MSEA(Occlusion(network)).attribute(
        inputs,
        scales=(0.5, 1.0),
        sliding_window_shapes=((3, 4, 4), (2,)),
        strides=((3, 4, 4), 2),
        target=0,
    )
    assert [tuple(each.shape) for each in result] == [(1, 3, 8, 8), (1, 4)]


def test_other_arguments_are_passed_on_as_they_are() -> None:
    wrapped = Recorder(ConvolutionalClassifier())
    extra, target = draw_images(2, 8, 8), torch.tensor([1, 2])
    MSEA(wrapped).attribute(
        draw_images(2, 3, 8, 8),
        scales=(0.5,),
        target=target,
        additional_forward_args=(extra, "word"),
        n_steps=7,
    )
    arguments = wrapped.calls[0][1]
    assert arguments["target"] is target
    assert arguments["n_steps"] == 7
    assert arguments["additional_forward_args"][0] is extra
    assert set(arguments) == {"target", "additional_forward_args", "n_steps"}


def test_resized_inputs_require_gradients_as_the_given_ones_do() -> None:
    wrapped = Recorder(ConvolutionalClassifier())
    for required in (True, False):
        images = draw_images(1, 3, 8, 8).requires_grad_(required)
        MSEA(wrapped).attribute(images, scales=(0.5,))
        resized = wrapped.calls[-1][0]
        assert resized.requires_grad == required
        assert resized.is_leaf


# What comes back


def test_tuples_stay_tuples_and_vectors_are_averaged() -> None:
    network = ImageAndVectorClassifier()
    wrapped = IntegratedGradients(network)
    images, vectors = draw_images(2, 3, 8, 8), draw_images(2, 4)
    result = MSEA(wrapped).attribute((images, vectors), scales=(0.5, 1.0), target=1, n_steps=3)
    assert isinstance(result, tuple)
    assert result[0].shape == images.shape
    halved = resize_by_matrices(images, 4, 4).float()
    expected = sum(
        wrapped.attribute((each, vectors), target=1, n_steps=3)[1].double() / 2
        for each in (halved, images)
    )
    torch.testing.assert_close(result[1].double(), expected, rtol=1e-4, atol=1e-7)
    alone = MSEA(Saliency(ConvolutionalClassifier())).attribute((images,), target=1)
    assert isinstance(alone, tuple)
    assert len(alone) == 1


def test_a_layer_without_a_plane_is_averaged() -> None:
    network = ConvolutionalClassifier()
    images = draw_images(2, 3, 8, 8)
    result = plain(LayerActivation(network, network.head)).attribute(images, scales=(0.5, 1.0))
    expected = (network(resize_by_matrices(images, 4, 4).float()) + network(images)) / 2
    torch.testing.assert_close(result, expected.detach())


def test_layers_that_return_tuples_keep_them() -> None:
    maps = Recorder(
        ConvolutionalClassifier(),
        lambda inputs: (inputs.mean(1, keepdim=True)[..., ::2, ::2], inputs.mean((2, 3))),
    )
    result = MSEA(maps).attribute(draw_images(2, 3, 8, 6), scales=SCALES)
    assert [tuple(each.shape) for each in result] == [(2, 1, 8, 6), (2, 3)]


def test_each_image_has_its_own_size() -> None:
    wrapped = Recorder(lambda first, second: first.mean() + second.mean())
    images = draw_images(1, 3, 8, 6), draw_images(1, 3, 10, 4)
    result = MSEA(wrapped).attribute(images, scales=SCALES)
    assert [tuple(each.shape) for each in result] == [(1, 3, 8, 6), (1, 3, 10, 4)]


def test_output_size() -> None:
    network = ConvolutionalClassifier()
    wrapped = LayerGradCam(network, network.last)
    images = draw_images(1, 3, 16, 24)

    def size_of(output_size: Any) -> tuple[int, ...]:
        result = MSEA(wrapped).attribute(
            images, scales=(0.5, 2.0, 1.0), output_size=output_size, target=0
        )
        return tuple(result.shape[-2:])

    assert size_of(None) == (16, 24)
    assert size_of((5, 7)) == (5, 7)
    assert size_of("largest") == (8, 12)


def test_the_largest_map_is_not_resized() -> None:
    wrapped = Saliency(ConvolutionalClassifier())
    images = draw_images(1, 3, 8, 8)
    result = plain(wrapped).attribute(
        images, scales=(1.0, 2.0), weights=[0, 1], output_size="largest", target=0
    )
    (at_two,) = plain(wrapped).attribute(images, scales=(2.0,), combine=False, target=0)
    assert torch.equal(result, at_two)


@pytest.mark.parametrize("output_size", [None, "largest"])
def test_separate_scales_are_in_the_order_given(output_size: Any) -> None:
    wrapped = Saliency(ConvolutionalClassifier())
    images = draw_images(2, 3, 8, 8)
    by_scale = MSEA(wrapped).attribute(
        images, scales=(1.0, 2.0, 0.5), combine=False, output_size=output_size, target=0
    )
    assert [each.shape[-1] for each in by_scale] == [8, 16, 4]
    assert torch.equal(by_scale[0], wrapped.attribute(images, target=0))


def test_on_scale_sees_every_scale() -> None:
    network = ConvolutionalClassifier()
    wrapped = LayerGradCam(network, network.last)
    images = draw_images(2, 3, 16, 16)
    found: list[Any] = []
    by_scale = MSEA(wrapped).attribute(
        images, scales=SCALES, combine=False, on_scale=found.append, target=3
    )
    assert [each.scale for each in found] == list(SCALES)
    for each, maps, side in zip(found, by_scale, (8, 16, 32), strict=True):
        assert each.attributions is maps
        assert maps.shape == (2, 1, side // 4, side // 4)
        assert not maps.requires_grad
        resized = resize_by_matrices(images, side, side).float()
        torch.testing.assert_close(each.probability, network(resized).softmax(dim=1)[:, 3].detach())


def test_on_scale_has_no_probability_where_none_is_defined() -> None:
    found: list[ScaleAttribution] = []
    wrapped = Recorder(lambda images: images.mean(dim=(1, 2, 3)))
    MSEA(wrapped).attribute(draw_images(1, 3, 8, 8), on_scale=found.append)
    assert [each.probability for each in found] == [None] * 4


def test_half_precision_is_averaged_in_single() -> None:
    network = ConvolutionalClassifier()
    images = draw_images(1, 3, 16, 16).bfloat16()
    wrapped = Saliency(network.bfloat16())
    result = plain(wrapped).attribute(images, scales=SCALES, target=0)
    by_scale = plain(wrapped).attribute(images, scales=SCALES, combine=False, target=0)
    expected = torch.stack([resize_by_matrices(each, 16, 16) for each in by_scale]).mean(dim=0)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.double(), expected, rtol=2**-8, atol=1e-7)


@method_cases
def test_the_same_bits_every_time(
    method: Callable[[nn.Module], Attribution], arguments: dict[str, Any]
) -> None:
    msea = MSEA(method(VisionTransformerClassifier()))
    images = draw_images(1, 3, 16, 12)
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        results.append(
            msea.attribute(images, scales=SCALES, weights="confidence", target=1, **arguments)
        )
    assert torch.equal(*results)


# What is left as it was


class Marker:
    pass


class Mark(torch.autograd.Function):
    """The identity; lets a marker live as long as the graph that it is part of."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, marker: Marker) -> Tensor:
        ctx.marker = marker
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def test_no_graph_survives_its_scale() -> None:
    network = ConvolutionalClassifier()
    graphs: list[weakref.ref[Marker]] = []

    class KeepsGraph(LayerGradCam):
        @log_usage()
        def attribute(self, *args: Any, **kwargs: Any) -> Any:
            gc.collect()
            assert [graph() for graph in graphs] == [None] * len(graphs)
            maps = super().attribute(*args, **kwargs)
            assert maps.requires_grad
            marker = Marker()
            graphs.append(weakref.ref(marker))
            return Mark.apply(maps, marker)

    found: list[Any] = []
    result = MSEA(KeepsGraph(network, network.last)).attribute(
        draw_images(1, 3, 16, 16), scales=SCALES, on_scale=found.append, target=0
    )
    gc.collect()
    assert len(graphs) == 3
    assert all(graph() is None for graph in graphs)
    assert not result.requires_grad
    assert not any(each.attributions.requires_grad for each in found)


def snapshot(network: nn.Module) -> dict[str, Any]:
    hooks = [
        len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks)
        for module in network.modules()
    ]
    return {
        "training": [module.training for module in network.modules()],
        "hooks": hooks,
        "requires_grad": [parameter.requires_grad for parameter in network.parameters()],
        "gradients": [parameter.grad is None for parameter in network.parameters()],
        "sums": [parameter.double().sum().item() for parameter in network.parameters()],
    }


class FailsAbove(ConvolutionalClassifier):
    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, images: Tensor) -> Tensor:
        logits = super().forward(images)
        if images.shape[-1] > self.side:
            raise RuntimeError("out of memory")
        return logits


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("side", [100, 12, 4])
@pytest.mark.parametrize("method", ["saliency", "integrated_gradients", "grad_cam", "occlusion"])
def test_model_and_inputs_are_unchanged(method: str, side: int, required: bool) -> None:
    network = FailsAbove(side)
    wrapped = {
        "saliency": Saliency(network),
        "integrated_gradients": IntegratedGradients(network),
        "grad_cam": LayerGradCam(network, network.last),
        "occlusion": Occlusion(network),
    }[method]
    arguments = {"sliding_window_shapes": (3, 4, 4), "strides": 4} if method == "occlusion" else {}
    images = draw_images(1, 3, 8, 8)
    before, values = snapshot(network), images.clone()
    images.requires_grad_(required)
    attributes = set(vars(wrapped))

    def run() -> None:
        MSEA(wrapped).attribute(images, scales=(1.0, 2.0), target=0, **arguments)

    if side > 16:
        run()
    else:
        with pytest.raises(RuntimeError, match="out of memory"):
            run()
    assert snapshot(network) == before
    assert images.requires_grad == required
    assert images.grad is None
    assert torch.equal(images.detach(), values)
    assert set(vars(wrapped)) == attributes
    assert wrapped.forward_func is network


# Together with the rest of Captum


@method_cases
def test_within_and_around_a_noise_tunnel(
    method: Callable[[nn.Module], Attribution], arguments: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    msea = MSEA(method(ConvolutionalClassifier()))
    if "nt_samples" in arguments:
        arguments = {"scales": (0.5, 1.0)}
    result = NoiseTunnel(msea).attribute(
        draw_images(2, 3, 16, 12),
        nt_samples=3,
        stdevs=0.1,
        target=[1, 2],
        weights="confidence",
        **arguments,
    )
    assert result.shape == (2, 3, 16, 12)
    assert result.isfinite().all()
    assert result.any()


def test_within_itself() -> None:
    wrapped = Saliency(ConvolutionalClassifier())
    images = draw_images(1, 3, 16, 16)
    twice = MSEA(MSEA(wrapped)).attribute(images, scales=(1.0,), target=0)
    assert torch.equal(twice, MSEA(wrapped).attribute(images, target=0))


def test_contract_of_an_attribution() -> None:
    integrated_gradients = IntegratedGradients(ConvolutionalClassifier())
    msea = MSEA(integrated_gradients)
    assert isinstance(msea, Attribution)
    assert msea.forward_func is integrated_gradients.forward_func
    assert msea.multiplies_by_inputs
    assert not MSEA(Saliency(ConvolutionalClassifier())).multiplies_by_inputs
    assert not msea.has_convergence_delta()
    assert msea.get_name() == "MSEA"
    assert hasattr(msea.attribute, "__wrapped__")
    with pytest.raises(NotImplementedError, match="MSEA"):
        msea.attribute_future()


def test_the_progress_bar_is_over_the_scales(capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = Recorder(ConvolutionalClassifier())
    MSEA(wrapped).attribute(draw_images(1, 3, 8, 8), show_progress=True)
    shown = capsys.readouterr().err
    assert "MSEA attribution" in shown
    assert "4/4" in shown
    assert all("show_progress" not in arguments for _, arguments in wrapped.calls)
    MSEA(wrapped).attribute(draw_images(1, 3, 8, 8))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_scale_with_a_say_has_finite_attributions(value: float) -> None:
    def broken(inputs: Tensor) -> Tensor:
        return torch.full_like(inputs, value if inputs.shape[-1] == 8 else 1.0)

    msea = MSEA(Recorder(ConvolutionalClassifier(), broken))
    images = draw_images(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"Recorder gives attributions .* infinite, at scale 2"):
        msea.attribute(images, scales=(1.0, 2.0))
    without_say = msea.attribute(images, scales=(1.0, 2.0), weights=(1, 0))
    assert torch.equal(without_say, torch.ones(1, 3, 4, 4))


# What is refused


@pytest.mark.parametrize("method", [Saliency, ConvolutionalClassifier(), None])
def test_only_attribution_methods_are_wrapped(method: Any) -> None:
    with pytest.raises(TypeError, match="must be an instance of"):
        MSEA(method)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": ()}, "at least one scale"),
        ({"scales": (1.0, 0.0)}, r"got scale=0\.0, expected a number in \(0, inf\)"),
        ({"scales": (-1.0,)}, r"got scale=-1"),
        ({"scales": (math.nan,)}, "got scale=nan"),
        ({"scales": (math.inf,)}, "got scale=inf"),
        ({"scales": 1.0}, "sequence of numbers"),
        ({"scales": ("half",)}, "sequence of numbers"),
        ({"scales": (0.05,)}, "8 x 6 pixels 0 x 0"),
        ({"scales": (0.07,)}, "8 x 6 pixels 1 x 0"),
        ({"weights": "even"}, "'uniform', 'confidence'"),
        ({"weights": (1.0, 2.0)}, "each of the 4 scales"),
        ({"weights": (1.0, "2", 3.0, 4.0)}, "sequence of numbers"),
        ({"weights": 1.0}, "sequence of numbers"),
        ({"weights": (1, 1, 1, True)}, "sequence of numbers"),
        ({"weights": (1, 1, -1, 1)}, "not negative"),
        ({"weights": (1, 1, math.nan, 1)}, "finite"),
        ({"weights": (1, 1, math.inf, 1)}, "finite"),
        ({"weights": (0, 0, 0, 0)}, "not all 0"),
        ({"normalize": "mean"}, "normalize='mean', expected one of"),
        ({"interpolate_mode": "nearest"}, "expected one of 'bilinear', 'bicubic'"),
        ({"output_size": "input"}, "output_size must be"),
        ({"output_size": (4, 0)}, "output_size must be"),
        ({"output_size": (4,)}, "output_size must be"),
        ({"output_size": 4}, "output_size must be"),
        ({"return_convergence_delta": True}, "no convergence delta"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    wrapped = Recorder(ConvolutionalClassifier())
    with pytest.raises(ValueError, match=message):
        MSEA(wrapped).attribute(draw_images(1, 3, 8, 6), **arguments)
    assert not wrapped.calls


@pytest.mark.parametrize("inputs", [draw_images(3, 8, 8), (draw_images(1, 4),), ()])
def test_inputs_without_a_plane_are_refused(inputs: Any) -> None:
    with pytest.raises(ValueError, match="no input is spatial"):
        MSEA(Recorder(ConvolutionalClassifier())).attribute(inputs)


@pytest.mark.parametrize("inputs", [[draw_images(1, 3, 8, 8)], "image", (draw_images(4), None)])
def test_inputs_that_are_no_tensors_are_refused(inputs: Any) -> None:
    with pytest.raises(TypeError, match="inputs must be a Tensor or a tuple of Tensors"):
        MSEA(Recorder(ConvolutionalClassifier())).attribute(inputs)


def test_token_maps_that_change_their_length_are_refused() -> None:
    wrapped = Recorder(ConvolutionalClassifier(), lambda inputs: inputs.flatten(2).mT)
    with pytest.raises(ValueError, match=r"\(1, 64, 3\) at scale 1 and \(1, 16, 3\)"):
        MSEA(wrapped).attribute(draw_images(1, 3, 8, 8), scales=(0.5, 1.0))


def test_a_changing_number_of_attributions_is_refused() -> None:
    wrapped = Recorder(
        ConvolutionalClassifier(), lambda inputs: (inputs,) * (1 + inputs.shape[-1] // 8)
    )
    with pytest.raises(ValueError, match="2 attributions at scale 1 and 1 at another"):
        MSEA(wrapped).attribute(draw_images(1, 3, 8, 8), scales=(0.5, 1.0))


def test_attributions_that_are_no_tensors_are_refused() -> None:
    wrapped = Recorder(ConvolutionalClassifier(), lambda inputs: [inputs])
    with pytest.raises(TypeError, match="returned list"):
        MSEA(wrapped).attribute(draw_images(1, 3, 8, 8))
