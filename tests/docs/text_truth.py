"""Measure how well weights of the earlier words agree with leaving each word out:
``python -m tests.docs.text_truth demo/qwen2-vl --scenes 20`` adds rows to the data of the page."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from captum.attr import InputXGradient
from torch import Tensor

from captum_mllm import ARC, MLLM, TAM, AttendedLens, LogitLens
from captum_mllm.attr import AttentionMaps
from captum_mllm.attr.features import Features, to_earlier
from captum_mllm.attr.text_attribution import text_attribution
from captum_mllm.attr.token_maps import token_maps
from captum_mllm.evaluation.examples import sample_examples
from captum_mllm.evaluation.method import Case
from captum_mllm.evaluation.summary import TEXT, estimate
from captum_mllm.evaluation.text_truth import TextTruth
from captum_mllm.metrics import random_weights, recency_weights, uniform_weights
from captum_mllm.models import Query

DATA = Path(__file__).parents[2] / "docs" / "results" / "text_truth.csv"
HEAD = ("model", "scenes", "weights", "role", "score", "value", "low", "high")

# Each makes weights (T, P + T) for a model, an image and a query.
METHODS: dict[str, Callable[[MLLM], object]] = {
    "the default: attention and the token before": AttendedLens,
    "attention alone": lambda mllm: AttentionMaps(mllm, mode="raw", text_residual=0.0),
    "ARC with text_floor=0.2": lambda mllm: ARC(AttendedLens(mllm), text_floor=0.2),
    "TAM: how strongly a state says the word": lambda mllm: TAM(LogitLens(mllm)),
}
GRADIENTS = "gradients times embeddings"
_DRAWN = torch.Generator().manual_seed(0)
CONTROLS: dict[str, Callable[[Tensor], Tensor]] = {
    "1 over the distance": recency_weights,
    "equal": uniform_weights,
    "random": lambda valid: random_weights(valid, _DRAWN),
}


def weigh(mllm: MLLM, image: Tensor, query: Query, last: bool = False) -> dict[str, Tensor]:
    r"""The weights of each method and control, (T, P + T).

    Args:
        mllm (MLLM): a model.
        image (Tensor): an image, (1, 3, H, W) in [0, 1].
        query (Query): a question and its answer.
        last (bool): of the last token alone, (1, P + T). Default: False
    """
    images = (image,)
    found = {name: text_attribution(make(mllm), images, query) for name, make in METHODS.items()}
    rows, columns = next(iter(found.values())).shape
    features = Features(words="earlier")
    target = (len(query.answer_ids) - 1, query.answer_ids[-1]) if last else None
    gradients = token_maps(InputXGradient(mllm), images, query, target, features).text
    assert gradients is not None
    found[GRADIENTS] = to_earlier(gradients.abs().cpu(), columns)
    is_earlier = torch.ones(rows, columns, dtype=torch.bool).tril(columns - rows - 1)
    found |= {name: make(is_earlier) for name, make in CONTROLS.items()}
    return {name: each[-1:] for name, each in found.items()} if last else found


def measure(model: str, scenes: int, split: str, spelling: str) -> list[list[str]]:
    r"""Rows of the data of one model.

    Args:
        model (str): its name.
        scenes (int): how many captions are explained.
        split (str): of which scenes.
        spelling (str): of their captions.
    """
    mllm = MLLM.from_pretrained(model)
    examples = sample_examples(range(scenes), split, spelling=spelling)  # type: ignore[arg-type]
    images = []
    for example in examples:
        case = Case(mllm, example)
        with case.sharing():
            truth = TextTruth(case)
            weights = weigh(mllm, case.image, case.query)
            images.append({name: truth.scores(each) for name, each in weights.items()})
    rows = []
    for column in TEXT:
        for name, found in estimate(images, column).items():
            role = "control" if name in CONTROLS else "method"
            numbers = [f"{each:.3f}" for each in found[:3]]
            rows.append([model, str(scenes), name, role, column.title, *numbers])
    return rows


def replace_rows(
    path: Path, head: Sequence[str], model: str, rows: Sequence[Sequence[str]]
) -> None:
    r"""Write the rows of a model into a file of data, in the place of those that it has.

    Args:
        path (Path): the file, which may be new.
        head (Sequence[str]): its columns, of which the first is the model.
        model (str): its name.
        rows (Sequence[Sequence[str]]): what was measured.
    """
    known: list[list[str]] = []
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            known = [row for row in list(csv.reader(file))[1:] if row[0] != model]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([head, *known, *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--split", default="test", choices=["development", "test"])
    parser.add_argument("--spelling", default="words", choices=["words", "natural"])
    options = parser.parse_args()
    rows = measure(options.model, options.scenes, options.split, options.spelling)
    replace_rows(DATA, HEAD, options.model, rows)


if __name__ == "__main__":
    main()
