"""``Attention`` computes rows of attention weights on demand, from the queries and keys of a
layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from captum_mllm.models.precision import full_precision

# Attention weights held at a time, 64 MiB in float32.
CHUNK = 2**24

Fusion = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attention:
    r"""One call of an attention function, for b sequences of n tokens with H heads.

    What is kept grows linearly with n. The weights do not, so they are computed from it, for the
    rows that are asked for.

    Args:
        query (Tensor): shape (b, H, n, e).
        key (Tensor): shape (b, G, n, e); each of G heads serves H / G heads of ``query``.
        value (Tensor): shape (b, G, n, v).
        mask (Tensor, optional): True where a row may look, or what is added to its scores, of
            shape (b or 1, H or 1, n, n).
        causal (bool): whether a row looks at no later token.
        scaling (float): factor on the scores.
        softcap (float, optional): bound of the scores, ``softcap * tanh(scores / softcap)``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    causal: bool
    scaling: float
    softcap: float | None

    @property
    def n_states(self) -> int:
        """How many states the call has, over all sequences."""
        return self.query.shape[0] * self.query.shape[2]

    def detach(self) -> Attention:
        """The same without a graph."""
        states = {name: getattr(self, name).detach() for name in ("query", "key", "value")}
        return replace(self, **states)

    def part(self, sequences: slice, length: int, crosses: bool = False) -> Attention:
        """That of some of the sequences, up to a length, in a pass where no token looks ahead;
        ``crosses`` where the keys are others than the tokens."""
        ends = dict.fromkeys(("query", "key", "value"), length)
        if crosses:
            ends |= dict.fromkeys(("key", "value"), self.key.shape[2])
        states = {name: getattr(self, name)[sequences, :, :end] for name, end in ends.items()}
        mask = self.mask
        if mask is not None and len(mask) > 1:
            mask = mask[sequences]
        return replace(self, mask=mask, **states)

    @full_precision()
    def weights(self, rows: Tensor) -> Tensor:
        r"""Attention weights of R rows, at least float32, each sums to 1; shape (b, H, R, n)."""
        dtype = torch.promote_types(self.query.dtype, torch.float32)
        key = self._shared(self.key).to(dtype)
        scores = self.query[:, :, rows].to(dtype) @ key.mT * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        allowed = None
        if self.mask is not None:
            allowed = self.mask[:, :, rows, : scores.shape[-1]]
        elif self.causal:
            allowed = rows[:, None] >= torch.arange(scores.shape[-1], device=rows.device)
        if allowed is not None and allowed.dtype == torch.bool:
            # Finite, for the sake of padding rows that may look nowhere.
            scores = scores.masked_fill(~allowed, torch.finfo(dtype).min)
        elif allowed is not None:
            scores = scores + allowed
        return scores.softmax(-1)

    @full_precision()
    def gradients(self, rows: Tensor, of_output: Tensor) -> Tensor:
        r"""Gradient with respect to the weights of R rows, :math:`g_i^\top v_j`.

        Args:
            rows (Tensor): indices of the rows.
            of_output (Tensor): gradient with respect to the heads' outputs, (b, n, H, v).

        Returns:
            Tensor: at least float32, shape (b, H, R, n).
        """
        dtype = torch.promote_types(of_output.dtype, torch.float32)
        value = self._shared(self.value).to(dtype)
        return of_output[:, rows].transpose(1, 2).to(dtype) @ value.mT

    @full_precision()
    def contributions(self, rows: Tensor, direction: Tensor) -> Tensor:
        r"""What R rows take from each state along a direction, :math:`\sum_h A_{rj} v_j^\top g_r`.

        Args:
            rows (Tensor): indices of the rows.
            direction (Tensor): :math:`g_r`, one in the heads' outputs for each row, (b, R, H, v).

        Returns:
            Tensor: at least float32, shape (b, R, n).
        """
        batch, heads, length = self.query.shape[:3]
        dtype = torch.promote_types(direction.dtype, torch.float32)
        value = self._shared(self.value).to(dtype).mT
        rows = rows.to(value.device)
        size = max(CHUNK // (batch * heads * length), 1)
        parts = [
            (self.weights(chunk).to(dtype) * (given.transpose(1, 2).to(dtype) @ value)).sum(1)
            for chunk, given in zip(rows.split(size), direction.split(size, dim=1))
        ]
        return torch.cat(parts, dim=1)

    @full_precision()
    def pass_down(self, weights: Tensor, fuse: Fusion, of_output: Tensor | None = None) -> Tensor:
        r"""Hand the weights of states down to the states that they attend to.

        Args:
            weights (Tensor): R weights for each state, shape (R, b, n).
            fuse (Callable): from the attention of all heads, (b, H, m, n), to (b, m, n).
            of_output (Tensor, optional): gradient with respect to the heads' outputs; the
                attention is multiplied with its positive gradient before it is fused.

        Returns:
            Tensor: :math:`w A`, shape (R, b, n), on the device of ``weights``.
        """
        batch, heads, length = self.key.shape[0], self.query.shape[1], self.key.shape[2]
        device = weights.device
        weights = weights.to(self.query.device)
        passed = weights.new_zeros((*weights.shape[:2], length))
        rows = weights.flatten(0, 1).any(0).nonzero()[:, 0]
        for chunk in rows.split(max(CHUNK // (batch * heads * length), 1)):
            attention = self.weights(chunk)
            if of_output is not None:
                attention = attention * self.gradients(chunk, of_output).relu()
            fused = fuse(attention).to(weights.dtype)
            passed = passed + torch.einsum("rbm,bmn->rbn", weights[..., chunk], fused)
        return passed.to(device)

    def output(self) -> Tensor:
        """What the heads return, (b, n, H, v)."""
        batch, heads, length = self.query.shape[:3]
        rows = torch.arange(length, device=self.query.device)
        value = self._shared(self.value)
        parts = [
            self.weights(chunk).to(value.dtype) @ value
            for chunk in rows.split(max(CHUNK // (batch * heads * length), 1))
        ]
        return torch.cat(parts, dim=2).transpose(1, 2).contiguous()

    def _shared(self, states: Tensor) -> Tensor:
        """The head of keys or values that each head of queries uses."""
        return states.repeat_interleave(self.query.shape[1] // states.shape[1], dim=1)
