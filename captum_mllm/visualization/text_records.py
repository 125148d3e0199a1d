"""The weights of earlier tokens as records of Captum's ``visualize_text``."""

from __future__ import annotations

import html
from collections.abc import Sequence

import torch
from captum.attr import visualization
from torch import Tensor


def text_records(
    input_tokens: Sequence[str],
    output_tokens: Sequence[str],
    token_attr: Tensor,
    output_probs: Tensor,
) -> list[visualization.VisualizationDataRecord]:
    r"""A record for each explained token.

    The weights of the earlier tokens are divided by the largest, and the tokens are escaped, which
    Captum does not do.

    Args:
        input_tokens (Sequence[str]): the tokens that weigh.
        output_tokens (Sequence[str]): the T explained tokens.
        token_attr (Tensor): weight of each input token, shape (T, len(input_tokens)).
        output_probs (Tensor): probability of each explained token, shape (T,).

    Returns:
        list[visualization.VisualizationDataRecord]: one for each explained token.
    """
    tokens = [_escaped(token) for token in input_tokens]
    records = []
    for token, weights, probability in zip(output_tokens, token_attr, output_probs.tolist()):
        largest = weights.abs().max() if weights.numel() else torch.tensor(0.0)
        name = _escaped(token)
        records.append(
            visualization.VisualizationDataRecord(
                word_attributions=weights / largest if largest > 0 else weights,
                pred_prob=probability,
                pred_class=name,
                true_class=name,
                attr_class=name,
                attr_score=float(weights.sum()),
                raw_input_ids=tokens,
                convergence_score=0.0,
            )
        )
    return records


def _escaped(token: str) -> str:
    return html.escape(token.replace("\n", "\\n"))
