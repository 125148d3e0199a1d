"""``TextTruth``: weights of the earlier words, against what removing each word costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from captum_mllm.evaluation.method import Case
from captum_mllm.evaluation.records import Score, Scores
from captum_mllm.metrics import earlier_tokens, leave_one_out, text_scores
from captum_mllm.models.word_embeddings import word_baseline

# A token whose probability no word changes by this many nats says nothing of weights.
_SMALLEST_DROP = 0.05


class _Truth(NamedTuple):
    """Drops (n, F) of the tokens that words matter to, which words are earlier, the rows of these
    tokens among all T, and the word of each text token."""

    drops: Tensor
    earlier: Tensor
    rows: Tensor
    words: Tensor


@dataclass(frozen=True, eq=False)
class TextTruth:
    r"""
    What earlier words are worth to an answer, found once for all methods.

    Args:
        case (Case): The model, the image and the answer.
    """

    case: Case

    def scores(self, weights: Tensor) -> Scores:
        r"""
        Scores of the tokens that some earlier word matters to.

        Args:
            weights (Tensor): Of the text tokens for each token of the answer, (T, P + T), as
                :func:`~captum_mllm.attr.text_attribution.text_attribution` gives them.

        Returns:
            dict[str, Score]: ``"text_correlation"``, ``"text_hit"`` and ``"text_mass"``, see
            :func:`~captum_mllm.metrics.text_scores`.
        """
        drops, earlier, rows, words = self._truth
        of_tokens = weights.detach().float().cpu()[rows, : len(words)]
        of_words = torch.zeros_like(drops).index_add(1, words, of_tokens.to(drops))
        found = text_scores(of_words, drops, earlier)
        names = ("text_correlation", "text_hit", "text_mass")
        return {name: Score.of(values) for name, values in zip(names, found)}

    @cached_property
    def _truth(self) -> _Truth:
        mllm, query = self.case.mllm, self.case.query
        embeddings = mllm.word_embeddings(query, answer=True)
        mask = mllm.word_mask(query, answer=True)
        drops = leave_one_out(
            mllm,
            (self.case.image, embeddings),
            word_baseline(mllm.model, mllm.tokenizer, embeddings, "mean"),
            (query,),
            query.answer_ids,
            mask,
        ).cpu()
        earlier = earlier_tokens(len(query.answer_ids), embeddings.shape[1], mask).cpu()
        rows = (drops.abs().amax(1) >= _SMALLEST_DROP).nonzero()[:, 0]
        return _Truth(drops[rows], earlier[rows], rows, mask.flatten().cpu())
