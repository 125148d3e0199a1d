"""Whether the contrast with the other object's word points at the right one of two objects."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from captum.attr import Attribution, FeatureAblation, GradientAttribution, InputXGradient, Saliency
from torch import Tensor

from captum_mllm import ARC, MSEA, AttendedLens, LogitDecomposition, LogitLens
from captum_mllm.attr.features import Features
from captum_mllm.attr.segments import image_segments
from captum_mllm.attr.token_maps import token_maps
from captum_mllm.datasets import BACKGROUND, COLORS, SHAPES
from captum_mllm.evaluation.examples import SceneExample, sample_examples, trial_parser
from captum_mllm.evaluation.method import Case
from captum_mllm.metrics import pointing_game, relevance_mass
from captum_mllm.metrics.bootstrap import bootstrap_difference
from captum_mllm.models import MLLM

#: Methods whose maps of a word and of a contrast are compared.
METHODS: dict[str, Callable[[MLLM], Attribution]] = {
    "LogitLens": LogitLens,
    "AttendedLens": AttendedLens,
    "ARC(MSEA(AttendedLens))": lambda mllm: ARC(MSEA(AttendedLens(mllm))),
    "LogitDecomposition": LogitDecomposition,
    "Saliency": Saliency,
    "InputXGradient": InputXGradient,
    "FeatureAblation": FeatureAblation,
}
# Segments along a side for methods that perturb.
GRID = 7


class Pair(NamedTuple):
    r"""A word of a caption, and the word of the other object that might have been said instead.

    Args:
        kind (str): "color" or "shape".
        step (int): The token of the answer.
        instead_of (int): Vocabulary index of the other word.
        place (int): The word among those of the caption.
    """

    kind: str
    step: int
    instead_of: int
    place: int


def contrast_pairs(case: Case, example: SceneExample) -> Iterator[Pair]:
    r"""The words of two objects for what they do not have in common, of one token each."""
    ids = case.query.answer_ids
    by_look: dict[tuple[str, int], Pair] = {}
    for place, (text, things) in enumerate(zip(example.texts, example.things)):
        kind = "color" if text in COLORS else "shape" if text in SHAPES else None
        tokens = case.words[place].tokens
        if kind is not None and len(things) == 1 and things[0] != BACKGROUND and len(tokens) == 1:
            by_look.setdefault((kind, things[0]), Pair(kind, tokens[0], -1, place))
    for (kind, thing), pair in by_look.items():
        other = by_look.get((kind, 1 - thing))
        if other is not None and ids[other.step] != ids[pair.step]:
            yield pair._replace(instead_of=ids[other.step])


def compare(
    mllm: MLLM, scenes: Sequence[SceneExample], methods: Sequence[str]
) -> dict[tuple[str, str], Tensor]:
    r"""
    Pointing and mass of the words' own maps and of their contrasts.

    Args:
        mllm (MLLM): The model.
        scenes (Sequence[SceneExample]): Scenes of two objects.
        methods (Sequence[str]): Names in :data:`METHODS`.

    Returns:
        dict[tuple[str, str], Tensor]: For each method and kind of word a row for each scene:
        pointing and mass of the word's own map, then of the contrast, (S, 4).
    """
    found: dict[tuple[str, str], list[Tensor]] = {}
    for example in scenes:
        case = Case(mllm, example)
        rows: dict[tuple[str, str], list[Tensor]] = {}
        with mllm.remember():
            pairs = list(contrast_pairs(case, example))
            query = case.query
            for pair in pairs:
                query = mllm.contrast(query, pair.step, pair.instead_of)
            for name in methods if pairs else ():
                method = METHODS[name](mllm)
                own, contrast = (_maps(method, case, each, pairs) for each in (case.query, query))
                for index, pair in enumerate(pairs):
                    mask = example.region(pair.place)[None]
                    scores = [
                        score(maps[index : index + 1], mask)
                        for maps in (own, contrast)
                        for score in (pointing_game, relevance_mass)
                    ]
                    rows.setdefault((name, pair.kind), []).append(torch.cat(scores))
        for key, values in rows.items():
            found.setdefault(key, []).append(torch.stack(values).mean(0))
    return {key: torch.stack(values) for key, values in found.items()}


def _maps(method: Attribution, case: Case, query: Any, pairs: Sequence[Pair]) -> Tensor:
    """A map for each word, (P, h, w), at least 0."""
    features = None
    options: dict[str, Any] = {}
    if isinstance(method, FeatureAblation):
        features = Features(segments=(image_segments((GRID, GRID), case.image),))
        options = {"baselines": "mean", "perturbations_per_eval": 16}
    steps = [pair.step for pair in pairs]
    if not isinstance(method, GradientAttribution):
        found = token_maps(method, (case.image,), query, None, features, **options)
        return found.maps[0][steps, 0].relu()
    # A backward pass for each of them, and for no other token.
    targets = [(step, query.answer_ids[step]) for step in steps]
    return torch.cat(
        [token_maps(method, (case.image,), query, target).maps[0][:, 0] for target in targets]
    ).relu()


def table(found: dict[tuple[str, str], Tensor]) -> list[dict[str, Any]]:
    r"""Means over scenes, and the differences with their 95 % intervals, paired by scene."""
    lines = []
    for (name, kind), rows in found.items():
        line: dict[str, Any] = {"method": name, "word": kind, "scenes": len(rows)}
        for column, score in enumerate(("pointing", "mass")):
            own, contrast = rows[:, column], rows[:, column + 2]
            gain = bootstrap_difference(contrast, own)
            line[score] = [round(float(each.mean()), 3) for each in (own, contrast)]
            line[f"{score} gain"] = [round(float(each), 3) for each in gain]
        lines.append(line)
    return lines


def main() -> None:
    r"""``python -m captum_mllm.evaluation.contrast_scores demo/qwen2-vl --scenes 40``."""
    parser = trial_parser(__doc__, scenes=40)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    given = parser.parse_args()
    mllm = MLLM.from_pretrained(given.model, dtype="float32")
    # Two objects that have their shape or their colour in common, and not both.
    scenes = sample_examples(
        range(given.scenes), given.split, spelling=given.spelling, objects=2, similarity=1.0
    )
    for line in table(compare(mllm, scenes, given.methods)):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
