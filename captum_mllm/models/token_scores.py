"""What a pass says of the explained tokens, without logits of all of the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from captum_mllm.models.query import Query
from captum_mllm.models.states import States
from captum_mllm.models.targets import split_target
from captum_mllm.models.vocabulary import Vocabulary


def token_logits(vocabulary: Vocabulary, states: States, query: Query) -> Tensor:
    r"""The logit of each explained token, (B, T), float32 at least."""
    start = 0 if query.with_prompt else states.n_words
    scores = vocabulary.scores(states.predicting[:, start:], states.ids[start:])
    return scores.diagonal(dim1=1, dim2=2)


def target_probability(
    vocabulary: Vocabulary, states: States, query: Query, target: Any = None
) -> Tensor:
    r"""The probability of the target of each picture, (B,), or of all tokens of one picture, (T,).

    Raises:
        ValueError: for several pictures without a target, and a target that is none.
    """
    start = 0 if query.with_prompt else states.n_words
    predicting, ids = states.predicting[:, start:], states.ids[start:]
    if target is None:
        if len(predicting) != 1:
            raise ValueError(
                f"got {len(predicting)} pictures and no target; give a target, or one picture"
            )
        return states.predictions(vocabulary, 1, query.with_prompt).probability
    rows, wanted = split_target(target, len(predicting), len(ids), ids.device, vocabulary.size)
    chosen = predicting[torch.arange(len(predicting), device=rows.device), rows]
    return vocabulary.predictions(chosen, wanted, 1).probability
