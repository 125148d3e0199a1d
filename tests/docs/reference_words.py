"""Measure how often weights of the earlier words point at the one word that decides a later one:
``python -m tests.docs.reference_words demo/qwen2-vl`` adds rows to the data of the page."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.datasets import render
from captum_mllm.datasets.references import REFERENCE_KINDS, Reference, sample_references
from captum_mllm.demo import DEMO_PROMPTS
from captum_mllm.evaluation.text_truth import leave_words_out
from captum_mllm.metrics import without_last, word_pointing
from captum_mllm.metrics.bootstrap import bootstrap_mean
from tests.docs.text_truth import replace_rows, weigh

DATA = Path(__file__).parents[2] / "docs" / "results" / "reference_words.csv"
HEAD = ("model", "kind", "pairs", "words", "weights", "value", "low", "high")
TRUTH = "leaving words out"


def written(words: tuple[str, ...], natural: bool) -> list[str]:
    r"""The pieces that make up a text: its words with what stands before them.

    Args:
        words (tuple[str, ...]): lower-case words and full stops.
        natural (bool): with capitals, and full stops attached to words.
    """
    pieces, starts = [], True
    for place, word in enumerate(words):
        text = word.capitalize() if natural and starts else word
        attached = not place or (natural and word == ".")
        pieces.append(text if attached else f" {text}")
        starts = word == "."
    return pieces


class Spoken:
    r"""A reference before a model.

    Args:
        mllm (MLLM): the model.
        reference (Reference): the reference.
        natural (bool): see :func:`written`.
    """

    def __init__(self, mllm: MLLM, reference: Reference, natural: bool) -> None:
        self.mllm = mllm
        style = "dense" if reference.kind in ("color", "repeat") else "relations"
        tokens = [
            mllm.tokenizer.encode(piece, add_special_tokens=False)
            for piece in written(reference.words, natural)
        ]
        ids = [token for piece in tokens for token in piece]
        starts = [sum(map(len, tokens[:place])) for place in range(len(tokens))]
        inp = ImageTextInput(Image.fromarray(render(reference.scene).image), DEMO_PROMPTS[style])
        self.image, self.query = mllm.prepare(inp, target=ids)
        if len(tokens[-1]) > 1:
            raise ValueError(f"{reference.words[-1]!r} has {len(tokens[-1])} tokens, expected one")
        self.is_far = reference.distance > 1
        self.causes = [
            starts[place] + offset
            for place in reference.causes
            for offset in range(len(tokens[place]))
        ]

    def is_right(self) -> bool:
        r"""Whether the decided word is the most probable one."""
        last = self.mllm.states(self.image, self.query).predicting[0, -1:]
        return int(self.mllm.vocabulary.rankings(last, k=1)) == self.query.answer_ids[-1]

    def points(self) -> dict[tuple[str, str], Tensor]:
        r"""For each method and control, and for leaving words out, whether the largest weight is
        that of a deciding word, (1,): among all words, and, where the deciding one is further
        away, without the word directly before."""
        truth = leave_words_out(self.mllm, self.image, self.query)
        weights = weigh(self.mllm, self.image, self.query, last=True)
        prompt = next(iter(weights.values())).shape[1] - len(self.query.answer_ids)
        earlier = truth.earlier[-1:]
        causes = torch.zeros_like(earlier)
        causes[:, truth.words[[prompt + cause for cause in self.causes]]] = True
        found = {name: truth.of_words(each) for name, each in weights.items()}
        found[TRUTH] = truth.drops[-1:].abs()
        among = {"all": earlier}
        if self.is_far:
            among["all but the last"] = without_last(earlier)
        return {
            (words, name): word_pointing(each, causes, valid)
            for words, valid in among.items()
            for name, each in found.items()
        }


def measure(mllm: MLLM, model: str, kind: str, pairs: int, natural: bool) -> list[list[str]]:
    r"""Rows of the data of one model and kind.

    Args:
        mllm (MLLM): the model.
        model (str): its name.
        kind (str): one of :data:`~captum_mllm.datasets.references.REFERENCE_KINDS`.
        pairs (int): how many pairs of texts are tried.
        natural (bool): see :func:`written`.
    """
    drawn = sample_references(2 * pairs, kind)  # type: ignore[arg-type]
    used, found = [], []
    for first, second in zip(drawn[::2], drawn[1::2]):
        both = [Spoken(mllm, reference, natural) for reference in (first, second)]
        # Else the word was not decided by the one that differs.
        used.append(all(each.is_right() for each in both))
        if used[-1]:
            points = [each.points() for each in both]
            found.append(
                {name: torch.stack([p[name] for p in points]).mean() for name in points[0]}
            )
    values = {("", "pairs said right"): torch.tensor(used, dtype=torch.float64)}
    for key in found[0] if found else ():
        values[key] = torch.stack([each[key] for each in found])
    return [
        [model, kind, str(len(each)), *key, *(f"{float(v):.3f}" for v in bootstrap_mean(each))]
        for key, each in values.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--kinds", nargs="+", default=REFERENCE_KINDS[:3], choices=REFERENCE_KINDS)
    parser.add_argument("--spelling", default="words", choices=["words", "natural"])
    options = parser.parse_args()
    mllm = MLLM.from_pretrained(options.model)
    rows: list[list[str]] = []
    for kind in options.kinds:
        rows += measure(mllm, options.model, kind, options.pairs, options.spelling == "natural")
    replace_rows(DATA, HEAD, options.model, rows)


if __name__ == "__main__":
    main()
