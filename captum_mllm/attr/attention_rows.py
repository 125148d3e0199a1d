"""RawAttention: what the rows that predict an answer attend to, summed while the layers run."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from captum_mllm.models.attention_record import has_softmax_attention, record_attention
from captum_mllm.models.attentions import Attention, Fusion
from captum_mllm.models.backbone import last_states
from captum_mllm.models.batches import join, split_states
from captum_mllm.models.encoding import Encoding
from captum_mllm.models.image_tokens import ImageTokens, cross_tokens, decoder_tokens
from captum_mllm.models.layout import Layout
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Prompt, Query, split_target
from captum_mllm.models.states import States


@dataclass(frozen=True)
class AttentionRows:
    r"""What R rows attend to.

    Args:
        encoding (Encoding): the prompt.
        weights (Tensor): of the states of the tower where the rows end, (R, states).
        tokens (tuple[ImageTokens, ...]): the explained images among those states.
    """

    encoding: Encoding
    weights: Tensor
    tokens: tuple[ImageTokens, ...]

    def without_pixels(self) -> AttentionRows:
        """The same, without the inputs that take more memory than all else."""
        return replace(self, encoding=self.encoding.without_pixels())


def predicting_rows(encoding: Encoding, query: Query, target: Any) -> Tensor:
    """One at the rows that predict: (T, states), or (1, states) for a target of each image."""
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
    images, query = prompt
    if has_softmax_attention(mllm.model) and not mllm.knows(*images, query):
        mllm.keep(states, *images, query, by_value=by_value)


class RawAttention:
    r"""
    The mean over layers of the attention of the rows that predict the tokens of an answer.

    It is added up while the layers run, so that no layer's states are kept. Within
    ``MLLM.remember`` the rows of every token are kept beside the states of their pass.

    Args:
        mllm (MLLM): the model.
        layers (Sequence[nn.Module]): the layers of the language model that count.
        fuse (Callable): from the attention of all heads, (b, H, m, n), to (b, m, n).
        name (Hashable): tells the fusion apart from others.
        crosses (bool): whether the layers look at images by cross-attention. Default: False
    """

    def __init__(
        self,
        mllm: MLLM,
        layers: Sequence[nn.Module],
        fuse: Fusion,
        name: Hashable,
        crosses: bool = False,
    ) -> None:
        self.mllm = mllm
        self.layers = layers
        self.fuse = fuse
        self.crosses = crosses
        self._name = (RawAttention, name, tuple(map(id, layers)))

    def of_prompt(self, prompt: Prompt, target: Any = None) -> AttentionRows:
        r"""The rows of one prompt; target as of :meth:`AttentionMaps.attribute`."""
        known = self._recall(prompt) if target is None else None
        return self._pass([prompt], target)[0] if known is None else known

    def make_passes(self, prompts: Sequence[Prompt]) -> None:
        r"""Within ``MLLM.remember``, make one pass for all prompts that are not remembered
        yet."""
        missing = [prompt for prompt in prompts if self._recall(prompt) is None]
        if missing:
            self._pass(missing, by_value=True)

    def _recall(self, prompt: Prompt) -> AttentionRows | None:
        images, query = prompt
        states = self.mllm.recall(*images, query)
        if states is None:
            return None
        known = states.derived.get((self._name, query.with_prompt))
        if known is None and not query.with_prompt:
            # The rows of the answer are the last of those of prompt and answer.
            whole = states.derived.get((self._name, True))
            if whole is not None:
                known = replace(whole, weights=whole.weights[-len(query.answer_ids) :])
        return known

    def _keep(self, rows: AttentionRows, prompt: Prompt) -> None:
        images, query = prompt
        states = self.mllm.recall(*images, query)
        if states is not None:
            states.derived[self._name, query.with_prompt] = rows.without_pixels()

    @torch.no_grad()
    def _pass(
        self, prompts: Sequence[Prompt], target: Any = None, by_value: bool = False
    ) -> list[AttentionRows]:
        """The rows of each prompt, from one pass for all, which is kept where passes are."""
        mllm = self.mllm
        dtype = torch.promote_types(mllm.dtype, torch.float32)
        encodings = [mllm.encode(*prompt) for prompt in prompts]
        starts = []
        for encoding, (_, query) in zip(encodings, prompts):
            start = predicting_rows(encoding, query, target).to(dtype)
            starts.append(start.unflatten(1, encoding.inputs["input_ids"].shape))
        totals: list[Tensor | float] = [0.0 for _ in starts]

        def add(call: Attention) -> None:
            first = 0
            for index, start in enumerate(starts):
                # Each by itself, for its rows lie elsewhere than those of the others.
                _, count, length = start.shape
                own = call.part(slice(first, first + count), length, self.crosses)
                totals[index] = totals[index] + own.pass_down(start, self.fuse)
                first += count

        inputs = join(encodings, mllm.tokenizer, "right")
        with mllm.evaluating(), record_attention(mllm.model, self.layers, keep=add):
            hidden = last_states(mllm.model, inputs)
        found = []
        for total, encoding, (_, query) in zip(totals, encodings, prompts):
            weights = torch.as_tensor(total) / len(self.layers)
            tokens = (
                cross_tokens(encoding, query, weights.shape[-1])
                if self.crosses
                else ()
                if encoding.crosses
                else decoder_tokens(encoding, query)
            )
            found.append(AttentionRows(encoding, weights.flatten(1), tokens))
        if mllm.remembers:
            all_states = split_states(hidden, encodings, prompts)
            for prompt, rows, states in zip(prompts, found, all_states):
                leave_states(mllm, states, prompt, by_value)
                if target is None:
                    self._keep(rows, prompt)
        return found


def share_with_patches(
    weights: Tensor,
    tokens: Sequence[ImageTokens],
    patches: Sequence[ImageTokens],
    n_patches: int,
) -> Tensor:
    r"""Give each patch an equal share of the weight of the token that was made of it.

    Args:
        weights (Tensor): of the states of the language model, (R, states).
        tokens (Sequence[ImageTokens]): the images among them.
        patches (Sequence[ImageTokens]): the same images among the states of the vision tower.
        n_patches (int): how many states the vision tower has.

    Returns:
        Tensor: weights of the states of the vision tower, (R, n_patches).
    """
    shared = weights.new_zeros(n_patches, len(weights))
    for above, below in zip(tokens, patches):
        finer = below.layout.pieces[0].rows // above.layout.pieces[0].rows
        source = torch.cat(_token_of_patch(above.layout, finer)).to(weights.device)
        shared[below.positions] = above.gather(weights.T)[:, source] / finer**2
    return shared.T


def _token_of_patch(layout: Layout, finer: int) -> list[Tensor]:
    """Index of the token of each patch of each piece, patches in raster order."""
    found, start = [], 0
    for piece in layout.pieces:
        grid = start + torch.arange(piece.n_tokens).unflatten(0, (piece.rows, piece.columns))
        found.append(grid.repeat_interleave(finer, 0).repeat_interleave(finer, 1).flatten())
        start += piece.n_tokens
    return found
