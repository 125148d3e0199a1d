"""``removal_changes``: whether right words change once the region that explains them is hidden."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm import ARC, MSEA, AttendedLens, MLLMAttribution
from captum_mllm.datasets import BACKGROUND, COLORS, SHAPES
from captum_mllm.evaluation.examples import SceneExample, sample_examples, trial_parser
from captum_mllm.explain.intervention import what_if
from captum_mllm.metrics.bootstrap import Interval, paired_bootstrap
from captum_mllm.models import MLLM, ImageTextInput


class Removal(NamedTuple):
    r"""
    What hiding the region of one right word did.

    Args:
        scene (int): the number of its scene.
        kind (str): ``"shape"`` or ``"color"``.
        changed (bool): whether the model then says another word.
        changed_elsewhere (bool): the same with a region of the same shape hidden elsewhere.
        area (float): the share of the image that was hidden, in [0, 1].
    """

    scene: int
    kind: str
    changed: bool
    changed_elsewhere: bool
    area: float


def removal_changes(method: Attribution, scenes: Iterable[SceneExample]) -> list[Removal]:
    r"""
    Hide the region of each shape and each colour that the model gets right.

    A word counts if it is the most probable one after the words before it. Words of which the map
    is the same everywhere count as unchanged: no region was named.

    Args:
        method (Attribution): the method whose maps name the regions, on an
            :class:`~captum_mllm.MLLM`.
        scenes (Iterable[SceneExample]): the scenes, with their captions.

    Returns:
        list[Removal]: in the order of the words.
    """
    explainer = MLLMAttribution(method)
    mllm: MLLM = explainer.forward_func
    found = []
    for example in scenes:
        inp = ImageTextInput(example.image, example.prompt)
        result = explainer.attribute(inp, target=example.answer)
        right = [
            top[0][0].strip() == text.strip()
            for top, text in zip(result.top_predictions, result.output_tokens)
        ]
        words = example.tagged_words(mllm.tokenizer)
        for place, (text, things) in enumerate(zip(example.texts, example.things)):
            kind = "shape" if text in SHAPES else "color" if text in COLORS else None
            tokens = words[place].tokens
            if kind is None or len(things) != 1 or things[0] == BACKGROUND:
                continue
            if not all(right[token] for token in tokens):
                continue
            if not result.map(list(tokens)).max() > 0:
                found.append(Removal(example.number, kind, False, False, 0.0))
                continue
            changes = what_if(mllm, result, list(tokens), answer=False)
            found.append(
                Removal(
                    example.number,
                    kind,
                    changes.changed,
                    changes.changed_elsewhere,
                    changes.area,
                )
            )
    return found


def changed_rates(removals: Iterable[Removal]) -> tuple[Interval, Interval]:
    r"""The shares of words that change without their region, and without another one, with
    intervals of 95 percent over scenes."""
    counts: dict[int, Tensor] = {}
    for each in removals:
        row = torch.tensor([each.changed, each.changed_elsewhere, 1.0], dtype=torch.float64)
        counts[each.scene] = counts.get(each.scene, torch.zeros_like(row)) + row
    changed, elsewhere, words = torch.stack(list(counts.values())).T
    own, other = (
        paired_bootstrap(lambda part, whole: part / whole, part, words)
        for part in (changed, elsewhere)
    )
    return own, other


def main() -> None:
    r"""``python -m captum_mllm.evaluation.what_if_trial demo/qwen2-vl --scenes 40``."""
    parser = trial_parser(__doc__, scenes=40)
    parser.add_argument("--prior", type=float, default=0.5)
    given = parser.parse_args()
    mllm = MLLM.from_pretrained(given.model, dtype="float32")
    scenes = sample_examples(
        range(given.scenes), given.split, spelling=given.spelling, prior=given.prior
    )
    found = removal_changes(ARC(MSEA(AttendedLens(mllm))), scenes)
    for kind in ("shape", "color", "both"):
        chosen = [each for each in found if kind in (each.kind, "both")]
        rates: dict[str, Any] = {
            name: [round(float(value), 3) for value in rate]
            for name, rate in zip(("changed", "changed elsewhere"), changed_rates(chosen))
        }
        area = sum(each.area for each in chosen) / len(chosen)
        print(json.dumps({"word": kind, "words": len(chosen), **rates, "area": round(area, 3)}))


if __name__ == "__main__":
    main()
