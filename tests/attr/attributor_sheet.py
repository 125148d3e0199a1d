"""The sheet of maps in the docs: ``python -m tests.attr.attributor_sheet`` draws it anew.

Every method on the bundled model, for a word of each of three images, alone and under MSEA. It
takes some minutes on one core.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import (
    Attribution,
    FeatureAblation,
    GradientShap,
    InputXGradient,
    IntegratedGradients,
    NoiseTunnel,
    Occlusion,
    Saliency,
    ShapleyValueSampling,
)
from PIL import Image
from torch import Tensor

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    AttendedLens,
    AttentionMaps,
    ImageTextInput,
    LogitLens,
    TokenCam,
)
from captum_mllm.attr import grid_segments
from captum_mllm.datasets import SHAPES, caption, render
from captum_mllm.demo import DEMO_PROMPT
from captum_mllm.demo.training.evaluate import evaluation_scenes
from captum_mllm.models import Query
from tests.attr.attributor_rows import kernel_shap

SHEET = Path(__file__).parents[2] / "docs" / "images" / "attributors.jpg"
SCALES = (0.75, 1.0, 1.5)
GRID = (7, 7)
WORDS = 3
Make = Callable[[MLLM], Attribution]


@dataclass(frozen=True)
class Subject:
    """An image, its caption as the answer, and the word that is explained."""

    image: Tensor
    query: Query
    step: int
    word: str

    @property
    def target(self) -> tuple[int, int]:
        return self.step, self.query.answer_ids[self.step]


def _with_grid(**arguments: Any) -> Callable[[Subject], dict[str, Any]]:
    def make(subject: Subject) -> dict[str, Any]:
        height, width = subject.image.shape[-2:]
        mask = grid_segments((height, width), GRID)[None, None]
        return {"feature_mask": mask, "perturbations_per_eval": 16, **arguments}

    return make


def _with(**arguments: Any) -> Callable[[Subject], dict[str, Any]]:
    return lambda subject: arguments


def _windows(subject: Subject) -> dict[str, Any]:
    height, width = subject.image.shape[-2:]
    return {
        "sliding_window_shapes": (3, height // 4, width // 4),
        "strides": (3, height // 8, width // 8),
        "perturbations_per_eval": 16,
    }


def _black(subject: Subject) -> dict[str, Any]:
    return {"baselines": torch.zeros_like(subject.image), "n_samples": 8, "stdevs": 0.05}


# With rather few samples and steps: it is shown what maps look like.
METHODS: dict[str, tuple[Make, Callable[[Subject], dict[str, Any]]]] = {
    "Saliency": (Saliency, _with()),
    "InputXGradient": (InputXGradient, _with()),
    "IntegratedGradients": (IntegratedGradients, _with(n_steps=20, internal_batch_size=10)),
    "GradientShap": (GradientShap, _black),
    "NoiseTunnel(Saliency)": (
        lambda mllm: NoiseTunnel(Saliency(mllm)),
        _with(nt_samples=8, stdevs=0.1),
    ),
    "FeatureAblation": (FeatureAblation, _with_grid()),
    "Occlusion": (Occlusion, _windows),
    "ShapleyValueSampling": (ShapleyValueSampling, _with_grid(n_samples=2)),
    "KernelShap": (kernel_shap, _with_grid(n_samples=150)),
    "LogitLens": (LogitLens, _with()),
    "AttendedLens": (AttendedLens, _with()),
    "TAM(LogitLens)": (lambda mllm: TAM(LogitLens(mllm)), _with()),
    "ARC(LogitLens)": (lambda mllm: ARC(LogitLens(mllm)), _with()),
    "TokenCam": (TokenCam, _with()),
    'TokenCam, "grad_cam"': (
        lambda mllm: TokenCam(mllm, variant="grad_cam"),
        _with(),
    ),
    'AttentionMaps, "raw"': (lambda mllm: AttentionMaps(mllm, mode="raw"), _with()),
    "AttentionMaps": (AttentionMaps, _with()),
    'AttentionMaps, "gradient"': (
        lambda mllm: AttentionMaps(mllm, mode="gradient"),
        _with(),
    ),
}


def under_msea(method: Attribution) -> Attribution:
    """MSEA around a method, within what suppresses the context, as one would write it."""
    if isinstance(method, (ARC, TAM)):
        return type(method)(MSEA(method.attribution_method))
    return MSEA(method)


def subjects(mllm: MLLM) -> list[Subject]:
    """Scenes that no training has seen, each with the first shape that is named once."""
    found: list[Subject] = []
    for scene in evaluation_scenes(50, seed=7):
        words = caption(scene).words
        taken = [subject.word for subject in found]
        shapes = [word for word in words if word in SHAPES]
        word = next((each for each in shapes if shapes.count(each) == 1), None)
        if word is None or word in taken:
            continue
        step = words.index(word)
        ids = mllm.tokenizer.convert_tokens_to_ids(list(words))
        inp = ImageTextInput(render(scene).image, DEMO_PROMPT)
        image, query = mllm.prepare(inp, target=ids)
        found.append(Subject(image, query, step, word))
        if len(found) == WORDS:
            break
    return found


def explain(method: Attribution, subject: Subject, **arguments: Any) -> np.ndarray:
    """A map at the image's size, in [-1, 1]."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (GradientShap draws from it)
    found = method.attribute(
        subject.image.clone(),
        target=subject.target,
        additional_forward_args=(subject.query,),
        **arguments,
    )
    summed = found.detach().sum(1, keepdim=True).float()
    enlarged = F.interpolate(summed, subject.image.shape[-2:], mode="bilinear")[0, 0]
    # A single pixel must not make all others pale.
    largest = enlarged.abs().quantile(0.995)
    return (enlarged / torch.where(largest > 0, largest, 1.0)).clamp(-1, 1).numpy()


def draw(mllm: MLLM) -> Image.Image:
    """The sheet: a row for each method below the images, two columns for each of these."""
    import matplotlib.pyplot as plt

    chosen = subjects(mllm)
    figure, axes = plt.subplots(
        1 + len(METHODS),
        2 * len(chosen),
        figsize=(2 * len(chosen) * 1.15 + 1.8, (1 + len(METHODS)) * 1.15 + 0.3),
    )
    for index, subject in enumerate(chosen):
        shown, told = axes[0, 2 * index : 2 * index + 2]
        shown.imshow(subject.image[0].permute(1, 2, 0).numpy())
        told.text(0.5, 0.5, f"“{subject.word}”", ha="center", va="center", fontsize=11)
        for place, title in ((shown, "alone"), (told, "under MSEA")):
            place.axis("off")
            place.text(
                0.5, -0.12, title, transform=place.transAxes, ha="center", va="center", fontsize=8
            )
    for (name, (make, arguments)), row in zip(METHODS.items(), axes[1:]):
        for index, subject in enumerate(chosen):
            method = make(mllm)
            options = arguments(subject)
            maps = [
                explain(method, subject, **options),
                explain(under_msea(method), subject, scales=SCALES, **options),
            ]
            for place, map_ in zip(row[2 * index :], maps):
                _overlay(place, subject, map_)
        row[0].text(
            -0.08, 0.5, name, transform=row[0].transAxes, ha="right", va="center", fontsize=8
        )
    figure.subplots_adjust(left=0.2, right=0.995, top=0.995, bottom=0.005, wspace=0.04, hspace=0.04)
    # Room for what stands below the images.
    for place in axes[0]:
        box = place.get_position()
        place.set_position((box.x0, box.y0 + 0.012, box.width, box.height - 0.012))
    file = BytesIO()
    figure.savefig(file, format="png", dpi=85)
    plt.close(figure)
    return Image.open(file).convert("RGB")


def _overlay(axes: Any, subject: Subject, map_: np.ndarray) -> None:
    grey = subject.image[0].mean(0).numpy() * 0.5 + 0.5
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1)
    axes.imshow(map_, cmap="RdBu_r", vmin=-1, vmax=1, alpha=0.85 * np.abs(map_) ** 0.5)
    axes.axis("off")


def main() -> None:
    matplotlib.use("Agg")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sheet = draw(MLLM.from_pretrained("demo/qwen2-vl"))
    sheet.save(SHEET, quality=88, optimize=True)


if __name__ == "__main__":
    main()
