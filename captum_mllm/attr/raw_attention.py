"""What some rows attend to, added up over the layers of a pass while they run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from captum_mllm.attr.attention_rows import AttentionRows, leave_states, predicting_rows
from captum_mllm.models.attentions import Attention, Fusion, record_attention
from captum_mllm.models.batches import join
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.picture_tokens import decoder_tokens
from captum_mllm.models.query import Query
from captum_mllm.models.states import States, gather_states

Prompt = tuple[tuple[Tensor, ...], Query]


class RawAttention:
    r"""
    The sum over layers of the attention of some rows, for which no layer's states are kept.

    Args:
        rows (Tensor): R weights for each state of b sequences, shape (R, b, n).
        fuse (Callable): from the attention of all heads, (b, H, m, n), to (b, m, n).
    """

    def __init__(self, rows: Tensor, fuse: Fusion) -> None:
        self.rows = rows
        self.fuse = fuse
        self.total = torch.zeros_like(rows)

    def add(self, call: Attention) -> None:
        r"""Add that of a layer, whose one call has all states."""
        self.total += call.pass_down(self.rows, self.fuse)


@torch.no_grad()
def raw_attention(
    mllm: MLLM,
    prompts: Sequence[Prompt],
    target: Any,
    layers: Sequence[nn.Module],
    fuse: Fusion,
    name: Hashable,
    by_value: bool = False,
) -> list[AttentionRows]:
    r"""The mean attention of the rows that predict, from one pass for all prompts.

    Within ``MLLM.remember`` the rows of every token are kept beside the states of their pass.

    Args:
        mllm (MLLM): the model.
        prompts (Sequence[tuple[tuple[Tensor, ...], Query]]): the open pictures, and the question
            with its answer.
        target (Any): as of :meth:`AttentionRollout.attribute`, for all prompts.
        layers (Sequence[nn.Module]): the layers of the language model that count.
        fuse (Callable): from the attention of all heads, (b, H, m, n), to (b, m, n).
        name (Hashable): tells the layers and the fusion apart from others.
        by_value (bool): keep them for equal pictures in other tensors too. Default: False

    Returns:
        list[AttentionRows]: one for each prompt.
    """
    found = [_recall(mllm, prompt, name) if target is None else None for prompt in prompts]
    missing = [prompt for prompt, known in zip(prompts, found) if known is None]
    if missing:
        made = iter(_pass(mllm, missing, target, layers, fuse))
        for index, ((pictures, query), known) in enumerate(zip(prompts, found)):
            if known is None:
                rows, states = next(made)
                leave_states(mllm, states, pictures, query, by_value)
                if target is None and mllm.knows(*pictures, query):
                    mllm.states(*pictures, query).derived[name, query.with_prompt] = rows
                found[index] = rows
    return [rows for rows in found if rows is not None]


def _recall(mllm: MLLM, prompt: Prompt, name: Hashable) -> AttentionRows | None:
    """The rows of every token, if they were kept, alone or after those of the prompt."""
    pictures, query = prompt
    if not mllm.knows(*pictures, query):
        return None
    kept = mllm.states(*pictures, query).derived
    if query.with_prompt or (name, False) in kept or (name, True) not in kept:
        return kept.get((name, query.with_prompt))
    rows = kept[name, True]
    return replace(rows, weights=rows.weights[-len(query.answer_ids) :])


def _pass(
    mllm: MLLM, prompts: Sequence[Prompt], target: Any, layers: Sequence[nn.Module], fuse: Fusion
) -> list[tuple[AttentionRows, States]]:
    """The rows of each prompt, and its states."""
    encodings = [mllm.encode(*prompt) for prompt in prompts]
    starts = []
    for encoding, (_, query) in zip(encodings, prompts):
        count = len(encoding.inputs["input_ids"])
        starts.append(predicting_rows(encoding, query, target).unflatten(1, (count, -1)))
    inputs = join(encodings, mllm.tokenizer, "right")
    raw = RawAttention(_join_rows(starts).to(torch.promote_types(mllm.dtype, torch.float32)), fuse)
    with mllm.evaluating(), record_attention(mllm.model, layers, keep=raw.add):
        hidden = mllm.model.base_model(**inputs, use_cache=False).last_hidden_state
    counts = [start.shape[1] for start in starts]
    weights = (raw.total / len(layers)).split(counts, dim=1)
    found = []
    for encoding, (_, query), start, passed, states in zip(
        encodings, prompts, starts, weights, hidden.split(counts)
    ):
        length = start.shape[2]
        tokens = decoder_tokens(encoding, query)
        own = passed[: len(start), :, :length].flatten(1)
        by_picture = states[:, :length].unflatten(0, (-1, encoding.windows))
        rows = AttentionRows(encoding, own, tokens).without_pixels()
        found.append((rows, gather_states(by_picture, encoding, query)))
    return found


def _join_rows(rows: Sequence[Tensor]) -> Tensor:
    """From (R_i, b_i, n_i) of each prompt to (R, b, n), padded: sequences of a batch do not see
    each other, so that one row holds one of each prompt."""
    most, longest = (max(own.shape[place] for own in rows) for place in (0, 2))
    joined = rows[0].new_zeros(most, sum(own.shape[1] for own in rows), longest)
    start = 0
    for own in rows:
        joined[: len(own), start : start + own.shape[1], : own.shape[2]] = own
        start += own.shape[1]
    return joined
