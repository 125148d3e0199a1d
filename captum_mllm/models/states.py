"""The hidden states of a pass that explanations need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from captum_mllm.models.encoding import Encoding
from captum_mllm.models.layout import Layout
from captum_mllm.models.query import Query


@dataclass(frozen=True)
class States:
    r"""Hidden states of one pass, after the final norm, for B pictures.

    Args:
        image (tuple[Tensor, ...]): the tokens of each explained picture, shape (B, N, d).
        layouts (tuple[Layout, ...]): where they lie.
        words (Tensor): the words of the prompt at their own positions, shape (B, P, d).
        predicting (Tensor): the rows that predict the words of the prompt, then those that
            predict the answer, shape (B, P + T, d).
        ids (Tensor): vocabulary indices of those P + T tokens.
    """

    image: tuple[Tensor, ...]
    layouts: tuple[Layout, ...]
    words: Tensor
    predicting: Tensor
    ids: Tensor

    @property
    def n_words(self) -> int:
        return self.words.shape[1]

    @property
    def context(self) -> Tensor:
        """What stands for each token as context: words of the prompt by their own state, words of
        the answer by the state that predicts them, shape (B, P + T, d)."""
        return torch.cat([self.words, self.predicting[:, self.n_words :]], dim=1)


def gather_states(hidden: Tensor, encoding: Encoding, query: Query) -> States:
    r"""From hidden states (B, windows, S, d) to those that explanations need."""
    # Text is the same in all windows, and the head is linear: the mean state gives mean logits.
    text = hidden.mean(1) if encoding.windows > 1 else hidden[:, 0]
    rows = encoding.explained_rows(query.including_prompt())
    answer = torch.tensor(query.answer_ids, device=hidden.device)
    return States(
        image=tuple(
            hidden[:, :, encoding.image_positions[index]].flatten(1, 2) for index in query.explained
        ),
        layouts=tuple(encoding.layouts[index] for index in query.explained),
        words=text[:, encoding.word_positions],
        predicting=text[:, rows],
        ids=torch.cat([encoding.word_ids, answer]),
    )
