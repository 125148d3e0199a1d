"""``TextTruth``: weights of the earlier words, against what removing each word costs, which
``leave_words_out`` finds."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from captum_mllm.evaluation.method import Case
from captum_mllm.evaluation.records import Score, Scores
from captum_mllm.metrics import earlier_tokens, leave_one_out, text_scores
from captum_mllm.models import MLLM, Query
from captum_mllm.models.word_embeddings import word_baseline

# A token whose probability no word changes by this many nats says nothing of weights.
_SMALLEST_DROP = 0.05


class WordDrops(NamedTuple):
    r"""
    What each of F words is worth to each of T tokens of an answer.

    Args:
        drops (Tensor): by how much each token's log-probability falls without each word, (T, F).
        earlier (Tensor): which words come before which tokens, bool, (T, F).
        words (Tensor): the word of each text token but the last, which no token follows, (n,).
    """

    drops: Tensor
    earlier: Tensor
    words: Tensor

    def of_words(self, weights: Tensor) -> Tensor:
        r"""Weights of text tokens (N, P + T), summed over the tokens of each word, (N, F)."""
        of_tokens = weights.detach().cpu()[:, : len(self.words)].to(self.drops)
        found = self.drops.new_zeros(len(weights), self.drops.shape[1])
        return found.index_add(1, self.words, of_tokens)


def leave_words_out(mllm: MLLM, image: Tensor, query: Query) -> WordDrops:
    r"""
    Replace each word of the prompt and the answer by the mean embedding.

    Args:
        mllm (MLLM): the model.
        image (Tensor): the image, (1, 3, H, W) in [0, 1].
        query (Query): the question and the answer.
    """
    embeddings = mllm.word_embeddings(query, answer=True)
    mask = mllm.word_mask(query, answer=True)
    drops = leave_one_out(
        mllm,
        (image, embeddings),
        word_baseline(mllm.model, mllm.tokenizer, embeddings, "mean"),
        (query,),
        query.answer_ids,
        mask,
    ).cpu()
    earlier = earlier_tokens(len(query.answer_ids), embeddings.shape[1], mask).cpu()
    return WordDrops(drops, earlier, mask.flatten().cpu())


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
        drops, earlier, _ = self._truth
        rows = drops.abs().amax(1) >= _SMALLEST_DROP
        found = text_scores(self._truth.of_words(weights)[rows], drops[rows], earlier[rows])
        names = ("text_correlation", "text_hit", "text_mass")
        return {name: Score.of(values) for name, values in zip(names, found)}

    @cached_property
    def _truth(self) -> WordDrops:
        return leave_words_out(self.case.mllm, self.case.image, self.case.query)
