"""Rows of attention: where they start, and where they end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from captum_mllm.models.attentions import has_softmax_attention
from captum_mllm.models.encoding import Encoding
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.picture_tokens import PictureTokens
from captum_mllm.models.query import Prompt, Query
from captum_mllm.models.states import States
from captum_mllm.models.targets import split_target


@dataclass(frozen=True)
class AttentionRows:
    r"""What R rows attend to.

    Args:
        encoding (Encoding): the prompt.
        weights (Tensor): of the states of the tower where the rows end, (R, states).
        tokens (tuple[PictureTokens, ...]): the explained pictures among those states.
    """

    encoding: Encoding
    weights: Tensor
    tokens: tuple[PictureTokens, ...]

    def without_pixels(self) -> AttentionRows:
        """The same, without the inputs that take more memory than all else."""
        inputs = {"input_ids": self.encoding.inputs["input_ids"]}
        return replace(self, encoding=replace(self.encoding, inputs=inputs))


def predicting_rows(encoding: Encoding, query: Query, target: Any) -> Tensor:
    """One at the rows that predict: (T, states), or (1, states) for a target of each picture."""
    rows = encoding.explained_rows(query)
    count, length = encoding.inputs["input_ids"].shape
    if target is None:
        return F.one_hot(rows, length).repeat(1, count)
    steps, _ = split_target(target, count // encoding.windows, len(rows), rows.device)
    chosen = rows[steps].repeat_interleave(encoding.windows)
    return F.one_hot(chosen, length).flatten()[None]


def leave_states(mllm: MLLM, states: States, prompt: Prompt, by_value: bool = False) -> None:
    """Leave the states of a pass that recorded attention, once it has ended, to LogitLens, which
    then makes none."""
    pictures, query = prompt
    if has_softmax_attention(mllm.model) and not mllm.knows(*pictures, query):
        mllm.keep(states, *pictures, query, by_value=by_value)
