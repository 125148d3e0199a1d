"""Measure how much of the interference ARC should take, on development scenes: ``python -m
tests.docs.strength_trial`` writes the data of the method's table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import torch

from captum_mllm import ARC, MLLM
from captum_mllm.datasets import CAPTION_STYLES
from captum_mllm.evaluation.examples import sample_examples
from captum_mllm.evaluation.method import DEFAULT_SCALES, Base, Case, Method, attribution
from captum_mllm.evaluation.published import ATTENDED_LENS, LENS
from captum_mllm.evaluation.records import NOTHING, Scores
from captum_mllm.evaluation.scores import localization_scores
from captum_mllm.evaluation.summary import LOCALIZATION, estimate
from tests.docs.results import FOLDER
from tests.docs.text_truth import replace_rows

DATA = FOLDER / "benchmark" / "strength.csv"
HEAD = ("model", "scenes", "base", "strength", "score", "value", "low", "high")

BASES: dict[str, Base] = {"MSEA(AttendedLens)": ATTENDED_LENS, "MSEA(LogitLens)": LENS}
SETTINGS: dict[str, dict[str, Any]] = {
    "0, no suppression": {"suppress": None},
    "0.25": {"strength": 0.25},
    "0.5": {"strength": 0.5},
    "0.75": {"strength": 0.75},
    "1": {"strength": 1.0},
    "the cosine": {"strength": None},
}
SHOWN = ("F1-IoU", "pointing", "mass", "leakage")


def measure(model: str, scenes: int, spelling: str) -> list[list[str]]:
    r"""Rows of the data of one model.

    Args:
        model (str): its name.
        scenes (int): how many development scenes, each with a caption of every style.
        spelling (str): of the captions.
    """
    mllm = MLLM.from_pretrained(model)
    methods = {
        (base, setting): Method(
            f"{base}, {setting}",
            attribution(BASES[base], partial(ARC, **SETTINGS[setting]), DEFAULT_SCALES),
        )
        for base, setting in product(BASES, SETTINGS)
    }
    images: dict[int, dict[tuple[str, str], Scores]] = {}
    for style in CAPTION_STYLES:
        drawn = sample_examples(range(scenes), "development", style=style, spelling=spelling)  # type: ignore[arg-type]
        for number, example in enumerate(drawn):
            with Case(mllm, example).sharing() as case, torch.no_grad():
                for key, method in methods.items():
                    found = localization_scores(case, method, method.explain(case).float().relu())
                    # The captions of a scene count as one image.
                    together = images.setdefault(number, {}).setdefault(key, {})
                    for score, value in found.items():
                        together[score] = together.get(score, NOTHING).plus(value)
    rows = []
    for column in LOCALIZATION:
        if column.title in SHOWN:
            for (base, setting), found in estimate(list(images.values()), column).items():  # type: ignore[arg-type]
                numbers = [f"{100 * each:.2f}" for each in found[:3]]
                rows.append([model, str(scenes), base, setting, column.title, *numbers])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--spelling", default="words", choices=["words", "natural"])
    options = parser.parse_args(arguments)
    for model in options.models:
        rows = measure(model, options.scenes, options.spelling)
        replace_rows(DATA, HEAD, model, rows)


if __name__ == "__main__":
    main()
