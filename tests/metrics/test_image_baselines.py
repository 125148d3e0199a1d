import pytest
import torch
from skimage.filters import gaussian

from captum_mllm.metrics.image_baselines import image_baseline


def pictures() -> torch.Tensor:
    return torch.rand(2, 3, 40, 30, generator=torch.Generator().manual_seed(0))


def test_blur_equals_scikit_image_away_from_the_borders() -> None:
    blurred = image_baseline(pictures(), "blur")
    expected = gaussian(pictures().numpy(), sigma=(0, 0, 3, 3), truncate=8, mode="nearest")
    inside = (..., slice(14, -14), slice(12, -12))
    torch.testing.assert_close(
        blurred[inside], torch.from_numpy(expected)[inside], rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (40, 30)])
def test_blur_keeps_a_plain_image_and_the_range(size: tuple[int, int]) -> None:
    plain = torch.full((1, 3, *size), 0.3)
    torch.testing.assert_close(image_baseline(plain, "blur"), plain)
    blurred = image_baseline(torch.rand(1, 3, *size), "blur")
    assert ((blurred >= 0) & (blurred <= 1)).all()


def test_mean_is_the_colour_of_each_image() -> None:
    mean = image_baseline(pictures(), "mean")
    assert mean.shape == pictures().shape
    torch.testing.assert_close(mean[:, :, 7, 11], pictures().mean((2, 3)))


def test_tensors_and_numbers() -> None:
    images = pictures()
    assert torch.equal(image_baseline(images, 0.5), torch.full_like(images, 0.5))
    assert torch.equal(image_baseline(images, None), torch.zeros_like(images))
    color = torch.tensor([0.1, 0.2, 0.3])[:, None, None]
    assert torch.equal(image_baseline(images, color)[1, :, 3, 4], color[:, 0, 0])
    assert image_baseline(images.bfloat16(), color).dtype == torch.bfloat16


def test_other_baselines_are_refused() -> None:
    images = pictures()
    with pytest.raises(ValueError, match="got 'noise'"):
        image_baseline(images, "noise")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got list"):
        image_baseline(images, [0.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit inputs of shape"):
        image_baseline(images, torch.zeros(3, 3, 40, 30))
    with pytest.raises(ValueError, match="must be finite"):
        image_baseline(images, float("nan"))
