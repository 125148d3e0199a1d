"""Images a little outside of [0, 1] are taken for noisy, those far outside are refused."""

from __future__ import annotations

import warnings

import pytest
import torch
from captum.attr import GradientShap, NoiseTunnel, Saliency
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models.images import check_images
from captum_mllm.models.pixels import saturate
from tests.models.tiny_models import FAMILIES, shared

IMAGE = torch.rand(1, 3, 84, 112, generator=torch.Generator().manual_seed(0))
IMAGENET = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]

BAD = {
    "8-bit levels": (IMAGE * 255, "8-bit levels: divide them by 255"),
    "one level of 8 bits": (IMAGE.clone().index_fill(2, torch.tensor(3), 255), "8-bit levels"),
    "normalised by ImageNet": ((IMAGE - IMAGENET[0]) / IMAGENET[1], "look normalised: undo it"),
    "normalised to [-1, 1]": (IMAGE * 2 - 1, "look normalised: undo it"),
    "dark, normalised": ((IMAGE * 0.1 - IMAGENET[0]) / IMAGENET[1], "look normalised"),
    "noise of deviation 1": (IMAGE + torch.randn(IMAGE.shape), "`stdevs` of NoiseTunnel"),
    "NaN": (torch.where(IMAGE > 0.9, torch.nan, IMAGE), "NaN or infinite"),
    "infinite": (torch.where(IMAGE > 0.9, torch.inf, IMAGE), "NaN or infinite"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_is_refused_with_a_guess_at_the_cause(name: str) -> None:
    images, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        check_images(images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_images_in_range_and_rounding_pass_in_silence(dtype: torch.dtype) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_images(IMAGE.to(dtype))
        check_images((IMAGE * 1.002 - 0.001).to(dtype))


@pytest.mark.parametrize("level", [0.0, 0.7, 1.0, None])
@pytest.mark.parametrize("deviation", [0.1, 0.2])
def test_usual_noise_passes_with_a_warning(deviation: float, level: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    picture = IMAGE if level is None else torch.full((1, 3, 224, 224), level)
    noise = torch.randn(10, *picture.shape[1:], generator=generator)
    with pytest.warns(UserWarning, match=r"values outside of \[0, 1\]"):
        check_images(picture + deviation * noise)


@pytest.mark.parametrize("deviation", [0.1, 0.2])
def test_methods_that_add_noise_run_on_a_black_and_white_image(deviation: float) -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    picture = (torch.rand(3, 84, 84, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    image, query = mllm.prepare(ImageTextInput(picture, "what ?"), target="a cat")
    arguments = {"target": (0, 5), "additional_forward_args": (query,)}
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        noisy = NoiseTunnel(Saliency(mllm)).attribute(
            image, nt_samples=3, stdevs=deviation, **arguments
        )
        GradientShap(mllm).attribute(
            image, baselines=torch.zeros_like(image), stdevs=deviation, n_samples=3, **arguments
        )
    assert noisy.isfinite().all()
    assert sum("outside of [0, 1]" in str(warning.message) for warning in caught) == 1


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:images have values outside")
def test_both_paths_cut_noise_in_the_same_way(family: str, scale: float) -> None:
    mllm = MLLM(*shared(family))
    image, query = mllm.prepare(ImageTextInput(IMAGE, "what ?"), target="a cat")
    noisy = image + 0.15 * torch.randn(image.shape, generator=torch.Generator().manual_seed(2))
    if scale != 1:
        noisy = torch.nn.functional.interpolate(noisy, scale_factor=scale, mode="nearest")
    own = mllm.encode((noisy.requires_grad_(),), query).inputs["pixel_values"]
    with torch.no_grad():
        processors = mllm.encode((noisy,), query).inputs["pixel_values"]
        cut = mllm.encode((noisy.clamp(0, 1),), query).inputs["pixel_values"]
    difference = (own - processors).abs() * max(mllm.processor.image_processor.image_std)
    assert difference.mean() <= 1 / 255
    assert difference.max() <= 2.5 / 255
    assert torch.equal(processors, cut)


def test_pixels_that_are_cut_keep_their_gradient() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    image, query = mllm.prepare(ImageTextInput(torch.zeros(3, 84, 84), "what ?"), target="a cat")

    def gradient(picture: Tensor) -> Tensor:
        picture = picture.clone().requires_grad_()
        mllm(picture, query)[0, 0, 5].backward()
        assert picture.grad is not None
        return picture.grad

    expected = gradient(image)
    assert (expected != 0).float().mean() > 0.99
    # The model sees the same image, so it answers to it in the same way.
    torch.testing.assert_close(gradient(image - 0.005), expected)


def test_saturation_is_exact_within_the_range() -> None:
    values = torch.tensor([-3.0, -1e-9, 0.0, 1e-9, 0.1, 1 / 3, 1 - 6e-8, 1.0, 1.0001, 7.0])
    assert torch.equal(saturate(values), values.clamp(0, 1))
    assert torch.equal(saturate(values[2:8]), values[2:8])
