"""All images of a prompt are explained at once: where evidence lies, and what the images share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr import (
    Attribution,
    FeatureAblation,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
    ShapleyValueSampling,
)
from torch import Tensor

from captum_mllm import ARC, MLLM, MSEA, TAM, ImageTextInput, LogitLens, MLLMAttribution
from captum_mllm.attr import AttendedLens, AttentionMaps, LogitDecomposition, TokenCam
from captum_mllm.attr.context_suppression import suppress_together
from captum_mllm.attr.features import for_each_image
from captum_mllm.attr.image_shares import image_shares, image_units
from captum_mllm.models import Query
from tests.attr.attributor_rows import kernel_shap, lime
from tests.models import tiny_families
from tests.models.tiny_models import shared

SIZES = [(84, 112), (112, 84), (140, 140)]
ANSWER = list(range(5, 13))
Opened = tuple[MLLM, tuple[Tensor, ...], Query]


def noise(size: tuple[int, int], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, *size), generator=generator).float() / 255


def pictures(count: int) -> list[Tensor]:
    return [noise(size, seed) for seed, size in enumerate(SIZES[:count])]


def opened(mllm: MLLM, images: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], Query]:
    return mllm.prepare(ImageTextInput(list(images), "which ?"), target=ANSWER)


def spots(size: tuple[int, int]) -> tuple[slice, slice]:
    """A part of an image, off its middle."""
    return slice(size[0] // 2, size[0] // 2 + size[0] // 4), slice(size[1] // 4, size[1] // 2)


def moved(
    mllm: MLLM, method: Attribution, count: int, changed: int, **kwargs: Any
) -> tuple[list[float], bool]:
    """How much the maps of each image move if a part of one image is inverted, and whether that
    is where this image's own map moves most."""
    images, _ = opened(mllm, pictures(count))
    other = [image.clone() for image in images]
    rows, columns = spots(SIZES[changed])
    other[changed][..., rows, columns] = 1 - other[changed][..., rows, columns].round()
    found = []
    for given in (images, tuple(other)):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 (GradientShap draws from it)
        maps = MLLMAttribution(method).attribute(
            ImageTextInput([image[0] for image in given], "which ?"), target=ANSWER, **kwargs
        )
        found.append(maps.image_attrs)
    moves = [(after - before).abs().sum(0) for before, after in zip(*found)]
    place = moves[changed].flatten().argmax()
    height, width = moves[changed].shape
    row, column = (int(place) // width + 0.5) / height, (int(place) % width + 0.5) / width
    inside = 0.4 < row < 0.85 and 0.15 < column < 0.6
    return [float(move.max()) for move in moves], inside


TOKEN_ROWS: dict[str, Callable[[MLLM], Attribution]] = {
    "LogitLens": LogitLens,
    "AttendedLens": AttendedLens,
    "TokenCam": TokenCam,
    "AttentionMaps": AttentionMaps,
    "LogitDecomposition": LogitDecomposition,
    "AttentionMaps, gradient": lambda mllm: AttentionMaps(mllm, mode="gradient"),
    "TAM": lambda mllm: TAM(LogitLens(mllm), filter_size=None),
    "ARC(MSEA(AttendedLens))": lambda mllm: ARC(MSEA(AttendedLens(mllm), scales=(1.0, 1.5))),
    "Saliency": Saliency,
}
# The gradient at a pixel depends on all of its image, and so does what interferes with a map.
NOT_LOCAL = ("Saliency", "ARC(MSEA(AttendedLens))")


@pytest.mark.parametrize("changed", [0, 1, 2])
@pytest.mark.parametrize("name", TOKEN_ROWS)
def test_evidence_moves_with_the_image_that_is_changed(name: str, changed: int) -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    moves, inside = moved(mllm, TOKEN_ROWS[name](mllm), 3, changed)
    assert moves.index(max(moves)) == changed
    assert inside or name in NOT_LOCAL


# One family of each geometry.
GEOMETRIES = {
    "NativeGrid": "qwen3_vl",
    "RowGrid": "lighton_ocr",
    "NewlineGrid": "llava_next",
    "PooledGrid": "gemma4",
    "FixedSquare": "llava",
    "PaddedSquare": "deepseek_vl",
    "Tiles": "internvl",
    "SplitTiles": "idefics3",
    "PaddedTiles": "llama4",
}


@pytest.mark.parametrize("changed", [0, 1])
@pytest.mark.parametrize("kind", GEOMETRIES)
def test_evidence_moves_in_every_geometry_at_every_scale(kind: str, changed: int) -> None:
    mllm = MLLM(*tiny_families.shared(GEOMETRIES[kind]))
    assert type(mllm.geometry).__name__ == kind
    moves, inside = moved(mllm, MSEA(LogitLens(mllm), scales=(1.0, 2.0)), 2, changed)
    assert moves.index(max(moves)) == changed and inside


ABLATIONS: dict[str, tuple[Callable[[MLLM], Attribution], dict[str, Any]]] = {
    "InputXGradient": (InputXGradient, {}),
    "IntegratedGradients": (IntegratedGradients, {"n_steps": 2}),
    "FeatureAblation": (FeatureAblation, {"segments": (2, 2)}),
    "Occlusion": (Occlusion, {"segments": (2, 2), "sliding_window_shapes": (1, 2, 1)}),
    "Occlusion of pixels": (
        Occlusion,
        {"sliding_window_shapes": (3, 56, 56), "strides": (3, 56, 56)},
    ),
    "ShapleyValueSampling": (ShapleyValueSampling, {"segments": [(2, 2), 3, (1, 2)]}),
    "MSEA(FeatureAblation)": (
        lambda mllm: MSEA(FeatureAblation(mllm)),
        {"segments": (1, 2), "scales": (1.0, 1.5)},
    ),
    "ARC(IntegratedGradients)": (
        lambda mllm: ARC(IntegratedGradients(mllm), top_k=5),
        {"n_steps": 2},
    ),
}


@pytest.mark.parametrize("black", [0, 2])
@pytest.mark.parametrize("name", ABLATIONS)
def test_an_image_equal_to_its_baseline_has_no_share(name: str, black: int) -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    make, arguments = ABLATIONS[name]
    if 3 in arguments.get("segments", ()):
        pytest.importorskip("skimage")
    images = pictures(3)
    images[black] = torch.zeros_like(images[black])
    result = MLLMAttribution(make(mllm)).attribute(
        ImageTextInput(images, "which ?"), target="a cat", **arguments
    )
    assert not result.image_attrs[black].any()
    assert all(maps.any() for index, maps in enumerate(result.image_attrs) if index != black)
    evidence = torch.stack([maps.relu().flatten(1).sum(1) for maps in result.image_attrs], dim=1)
    # Where no image speaks for a token, they share alike.
    spoken = evidence.sum(1) > 0
    assert torch.allclose(result.image_shares[~spoken], torch.tensor(1 / 3))
    assert torch.equal(result.image_shares[spoken] > 0, evidence[spoken] > 0)
    assert not result.image_shares[spoken, black].any()


@pytest.mark.parametrize("make", [lime, kernel_shap])
def test_a_fit_over_coalitions_leaves_an_absent_image_nearly_without_a_share(make: Any) -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    images = pictures(2)
    images[1] = torch.zeros_like(images[1])
    result = MLLMAttribution(make(mllm)).attribute(
        ImageTextInput(images, "which ?"), target="a cat", segments=(1, 2), n_samples=60
    )
    assert (result.image_shares[:, 1] < 0.25).all()


def test_methods_that_draw_at_random_take_several_images() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    inp = ImageTextInput(pictures(2), "which ?")
    black = tuple(torch.zeros_like(image) for image in mllm.prepare(inp, target="a")[0])
    shap = MLLMAttribution(GradientShap(mllm))
    assert len(shap.attribute(inp, target="a", baselines=black, n_samples=2).image_attrs) == 2
    tunnel = MLLMAttribution(NoiseTunnel(Saliency(mllm)))
    found = tunnel.attribute(inp, target="a", nt_samples=2, stdevs=0.01)
    assert [maps.shape[1:] for maps in found.image_attrs] == SIZES[:2]


def test_a_method_on_a_layer_that_mixes_the_images_is_refused() -> None:
    mllm = MLLM(*shared("llava"))
    layer = mllm.model.get_encoder(modality="image").embeddings.patch_embedding
    inp = ImageTextInput(pictures(2), "which ?")
    with pytest.raises(ValueError, match=r"1 attribution\(s\) for 2 inputs, .* explain one image"):
        MLLMAttribution(LayerGradCam(mllm, layer)).attribute(inp, target="a")


def slow_suppression(
    maps: Sequence[Tensor],
    weights: Tensor,
    rows: Sequence[int],
    units: Sequence[float],
    strength: float | None = 1.0,
) -> list[Tensor]:
    """Row by row, image by image and cell by cell in float64."""
    cleaned = [torch.zeros(len(rows), *each.shape[1:], dtype=torch.float64) for each in maps]
    for place, row in enumerate(rows):
        interference = [
            sum(float(weights[place, j]) * each[j].double() for j in range(len(each)))
            for each in maps
        ]
        shared_value = energy = own_energy = 0.0
        for each, other, unit in zip(maps, interference, units):
            for value, against in zip(each[row].flatten().tolist(), other.flatten().tolist()):
                shared_value += unit / other.numel() * value * against
                energy += unit / other.numel() * against * against
                own_energy += unit / other.numel() * value * value
        share = max(shared_value / energy, 0.0) if energy else 0.0
        if strength is not None:
            share *= strength
        elif energy and own_energy:
            share *= shared_value / (energy * own_energy) ** 0.5
        for image, (each, other) in enumerate(zip(maps, interference)):
            cleaned[image][place] = (each[row].double() - share * other).clamp(min=0)
    return cleaned


def test_images_are_cleaned_by_one_share_of_interference() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = [torch.rand(5, 1, *size, generator=generator) for size in ((3, 4), (6, 2), (1, 1))]
    weights = torch.rand(2, 5, generator=generator)
    units = [12.0, 3.0, 1.0]
    found = suppress_together([each[3:] for each in maps], maps, weights, units)
    for one, other in zip(found, slow_suppression(maps, weights, [3, 4], units)):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-6)


def test_an_image_cut_in_two_is_cleaned_as_a_whole() -> None:
    maps, weights = torch.rand(4, 1, 6, 8), torch.rand(4, 4)
    (whole,) = suppress_together([maps], [maps], weights, [48.0])
    halves = list(maps.split(4, dim=-1))
    parts = suppress_together(halves, halves, weights, [24.0, 24.0])
    torch.testing.assert_close(torch.cat(parts, dim=-1), whole)


def explained_weights(method: ARC | TAM, mllm: MLLM, images: Any, query: Query) -> Tensor:
    states = mllm.states(*images, query)
    another = states.ids[:, None] != states.ids
    return (method.weights(states).tril(-1) * another)[states.n_prompt :]


@pytest.mark.parametrize("family", ["qwen2_vl", "deepseek_vl"])
@pytest.mark.parametrize(
    ("wrap", "strength"), [(ARC, 0.5), (partial(ARC, strength=None), None), (TAM, 1.0)]
)
def test_context_suppression_of_several_images_equals_its_slow_twin(
    wrap: Any, strength: float | None, family: str
) -> None:
    mllm = MLLM(*tiny_families.shared(family))
    images, query = opened(mllm, pictures(3))
    lens = LogitLens(mllm)
    method = wrap(lens, normalize=False, filter_size=None)
    found = method.attribute(images, additional_forward_args=(query,))
    assert isinstance(found, tuple)
    every = lens.attribute(images, additional_forward_args=(query.including_prompt(),))
    weights = explained_weights(method, mllm, images, query)
    units = image_units(lens, images, mllm.layouts(*images, query))
    rows = range(len(every[0]) - len(ANSWER), len(every[0]))
    twin = slow_suppression([each.relu() for each in every], weights, rows, units, strength)
    for one, other in zip(found, twin):
        torch.testing.assert_close(one.double(), other, rtol=1e-3, atol=1e-4)


def test_tam_maps_all_images_to_one_range_with_the_text() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    images, query = opened(mllm, pictures(2))
    plain = TAM(LogitLens(mllm), normalize=False, filter_size=None)
    cleaned = plain.attribute(images, additional_forward_args=(query,))
    found = TAM(LogitLens(mllm), filter_size=None).attribute(
        images, additional_forward_args=(query,)
    )
    text = plain.attribute_text(images, (query,))
    n_prompt = mllm.states(*images, query).n_prompt
    for row in range(len(ANSWER)):
        values = [*text[row, : n_prompt + row].tolist()]
        for each in cleaned:
            values += each[row].flatten().tolist()
        low, high = min(values), max(values)
        for one, other in zip(found, cleaned):
            torch.testing.assert_close(one[row], (other[row] - low) / (high - low))


@pytest.mark.parametrize("normalize", ["balance", "max", "sum", "none"])
def test_scales_are_brought_into_the_same_units_for_all_images(normalize: Any) -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    images, query = opened(mllm, pictures(3))
    lens, scales = LogitLens(mllm), (0.5, 1.0, 2.0)
    size_of_all: dict[str, Callable[[list[Tensor]], Tensor]] = {
        "balance": lambda maps: sum(each.abs().mean((1, 2, 3)) for each in maps) / len(maps),
        "max": lambda maps: torch.stack([each.abs().amax((1, 2, 3)) for each in maps]).amax(0),
        "sum": lambda maps: sum(each.abs().sum((1, 2, 3)) for each in maps),
        "none": lambda maps: torch.ones(len(maps[0])),
    }
    largest: list[Any] = []
    resized: list[list[Tensor]] = []
    for scale in reversed(scales):
        at_scale = tuple(
            image
            if scale == 1
            else F.interpolate(
                image,
                [round(side * scale) for side in image.shape[-2:]],
                mode="bilinear",
                antialias=True,
            )
            for image in images
        )
        maps = lens.attribute(at_scale, additional_forward_args=(query,))
        largest = largest or [each.shape[-2:] for each in maps]
        resized.append(
            [
                F.interpolate(each, size, mode="bilinear", antialias=True)
                for each, size in zip(maps, largest)
            ]
        )
    sizes = [size_of_all[normalize](maps) for maps in resized]
    back = torch.stack(sizes).mean(0) if normalize == "balance" else torch.ones(len(ANSWER))
    found = MSEA(lens).explain_tokens(images, query, scales=scales, normalize=normalize)
    for index, mean in enumerate(found.maps):
        parts = [maps[index] / size[:, None, None, None] for maps, size in zip(resized, sizes)]
        expected = sum(parts) / len(parts) * back[:, None, None, None]
        torch.testing.assert_close(mean, expected, rtol=1e-4, atol=1e-5)
    total = sum(scale.share for scale in found.scales)
    torch.testing.assert_close(total, torch.ones(len(ANSWER)))


def test_one_pass_for_each_scale_serves_all_images() -> None:
    mllm = MLLM(*shared("llava"))
    inp = ImageTextInput(pictures(3), "which ?")
    calls: list[int] = []
    handle = mllm.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    body = mllm.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        MLLMAttribution(MSEA(LogitLens(mllm))).attribute(inp, target="a cat", scales=(1.0, 2.0))
    finally:
        handle.remove()
        body.remove()
    # At scale 2 all images are seen through their windows side by side, as many rows as the most.
    assert len(calls) == 2
    assert sorted(calls)[0] == 1


def test_shares_equal_sums_over_tokens() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    images, query = opened(mllm, pictures(3))
    maps = LogitLens(mllm).attribute(images, additional_forward_args=(query,))
    units = image_units(LogitLens(mllm), images, mllm.layouts(*images, query))
    found = image_shares(maps, units)
    states = mllm.states(*images, query)
    for row, token in enumerate(ANSWER):
        sums = [
            sum(
                max(float(score), 0.0)
                for score in mllm.vocabulary.scores(part[0], states.ids)[:, states.n_prompt + row]
            )
            for part in states.image
        ]
        assert states.ids[states.n_prompt + row] == token
        for index, value in enumerate(sums):
            assert found[row, index] == pytest.approx(value / sum(sums), rel=1e-4)


def test_a_padded_image_counts_by_its_tokens_and_not_by_its_cells() -> None:
    mllm = MLLM(*tiny_families.shared("deepseek_vl"))
    images = (torch.zeros(1, 3, 56, 56), torch.zeros(1, 3, 30, 56))
    _, query = opened(mllm, [image[0] for image in images])
    layouts = mllm.layouts(*images, query)
    first, second = image_units(LogitLens(mllm), images, layouts)
    assert second / first == pytest.approx(30 / 56)
    even = [torch.ones(1, 1, *layout.grid) for layout in layouts]
    share = float(image_shares(even, (first, second))[0, 1])
    assert share == pytest.approx(30 / 86)


def test_without_evidence_shares_are_equal() -> None:
    for value in (0.0, -1.0):
        maps = [torch.full((1, 1, 2, 2), value)] * 4
        assert image_shares(maps, [1, 2, 3, 4]).tolist() == [[0.25] * 4]


def test_segments_are_given_for_all_images_or_for_each() -> None:
    assert for_each_image((2, 3), 3) == [(2, 3)] * 3
    assert for_each_image(5, 2) == [5, 5]
    assert for_each_image([(2, 3), 4], 2) == [(2, 3), 4]
    labels = torch.zeros(2, 2, dtype=torch.long)
    assert for_each_image(labels, 1) == [labels]
    for given in (labels, [labels]):
        with pytest.raises(ValueError, match=r"got segments of 1 image\(s\), expected 2"):
            for_each_image(given, 2)
