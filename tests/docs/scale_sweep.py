"""Measure maps at single scales and averaged over several: ``python -m tests.docs.scale_sweep``
writes the data of the figure."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

import torch

from captum_mllm import MLLM
from captum_mllm.evaluation.examples import sample_examples
from captum_mllm.evaluation.method import Case, Method, attribution
from captum_mllm.evaluation.published import ATTENDED_LENS, LENS
from captum_mllm.evaluation.scores import localization_scores
from captum_mllm.evaluation.summary import LOCALIZATION, estimate

DATA = Path(__file__).parents[2] / "docs" / "results" / "scale_sweep.csv"
HEAD = ("model", "scenes", "base", "scales", "score", "value", "low", "high")

MODELS = ("demo/qwen2-vl", "demo/llava-1.5", "demo/internvl")
BASES = {"LogitLens": LENS, "AttendedLens": ATTENDED_LENS}
SCALES: tuple[tuple[float, ...], ...] = (
    (0.5,),
    (1.0,),
    (1.5,),
    (2.0,),
    (0.5, 1.0),
    (1.0, 2.0),
    (1.0, 1.5, 2.0),
    (0.5, 1.0, 1.5, 2.0),
)
SHOWN = ("F1-IoU", "pointing")


def measure(model: str, scenes: int, split: str) -> list[list[str]]:
    r"""Rows of the data of one model.

    Args:
        model (str): its name.
        scenes (int): how many captions are explained.
        split (str): of which scenes.
    """
    mllm = MLLM.from_pretrained(model)
    methods = {
        (name, scales): Method(name, attribution(base, scales=scales))
        for name, base in BASES.items()
        for scales in SCALES
    }
    images = []
    for example in sample_examples(range(scenes), split):  # type: ignore[arg-type]
        with Case(mllm, example).sharing() as case, torch.no_grad():
            images.append(
                {
                    key: localization_scores(case, method, method.explain(case).float().relu())
                    for key, method in methods.items()
                }
            )
    rows = []
    for column in LOCALIZATION:
        if column.title in SHOWN:
            for (name, scales), found in estimate(images, column).items():  # type: ignore[arg-type]
                written = " ".join(f"{scale:g}" for scale in scales)
                numbers = [f"{100 * each:.1f}" for each in found[:3]]
                rows.append([model, str(scenes), name, written, column.title, *numbers])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--split", default="test", choices=["development", "test"])
    parser.add_argument("--models", nargs="+", default=MODELS)
    options = parser.parse_args(arguments)
    rows = [
        row for model in options.models for row in measure(model, options.scenes, options.split)
    ]
    with DATA.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([HEAD, *rows])


if __name__ == "__main__":
    main()
