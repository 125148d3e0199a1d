"""What hidden states say of the vocabulary, without ever holding all of it for all of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Logits held at a time, 8 MiB in float32.
CHUNK = 2**21


class Predictions(NamedTuple):
    r"""Next-token probabilities of R hidden states.

    Args:
        probability (Tensor): of the asked token, float32, shape (R,).
        top_ids (Tensor): the most probable tokens, best first, shape (R, k).
        top_probability (Tensor): their probabilities, float32, shape (R, k).
    """

    probability: Tensor
    top_ids: Tensor
    top_probability: Tensor


class Vocabulary:
    r"""The output embedding of a language model, asked for a few of its rows or in chunks.

    Args:
        head (nn.Module): the output embedding, with a ``weight`` of shape (V, d).
    """

    def __init__(self, head: nn.Module) -> None:
        self.head: Any = head

    @property
    def size(self) -> int:
        return int(self.head.weight.shape[0])

    @torch.no_grad()
    def scores(self, states: Tensor, ids: Tensor) -> Tensor:
        r"""Logits of a few tokens.

        Args:
            states (Tensor): hidden states after the final norm, shape (..., d).
            ids (Tensor): vocabulary indices, repeated ones are computed once, shape (n,).

        Returns:
            Tensor: float32, or float64 if the states are, shape (..., n).
        """
        dtype = torch.promote_types(states.dtype, torch.float32)
        distinct, inverse = ids.to(self.head.weight.device).unique(return_inverse=True)
        rows = self.head.weight[distinct].to(states.device, dtype)
        scores = states.to(dtype) @ rows.mT
        if getattr(self.head, "bias", None) is not None:
            scores = scores + self.head.bias[distinct].to(scores)
        return scores[..., inverse.to(states.device)]

    @torch.no_grad()
    def rankings(self, states: Tensor, k: int) -> Tensor:
        r"""The k most probable tokens of each state, best first, shape (R, k) for (R, d)."""
        # Made before the logits: what is kept of each chunk must not stand between their places.
        found = torch.empty(len(states), k, dtype=torch.long, device=states.device)
        for chunk, place in zip(self._chunks(states), self._chunks(found)):
            place.copy_(self._logits(chunk).topk(k).indices)
        return found

    @torch.no_grad()
    def predictions(self, states: Tensor, ids: Tensor, k: int) -> Predictions:
        r"""The probability of a token for each of (R, d) states, and the k most probable."""
        k = min(k, self.size)
        # As for rankings.
        dtype = torch.promote_types(self.head.weight.dtype, torch.float32)
        found = Predictions(
            torch.empty(len(states), dtype=dtype, device=states.device),
            torch.empty(len(states), k, dtype=torch.long, device=states.device),
            torch.empty(len(states), k, dtype=dtype, device=states.device),
        )
        for chunk, wanted, *places in zip(*map(self._chunks, (states, ids, *found))):
            for place, value in zip(places, self._predict(self._logits(chunk), wanted, k)):
                place.copy_(value)
        return found

    @staticmethod
    def _predict(logits: Tensor, ids: Tensor, k: int) -> Predictions:
        total = logits.logsumexp(-1, keepdim=True)
        best = logits.topk(k)
        probability = (logits.gather(-1, ids[:, None]) - total).exp()[:, 0]
        return Predictions(probability, best.indices, (best.values - total).exp())

    def _chunks(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split(max(CHUNK // self.size, 1))

    def _logits(self, states: Tensor) -> Tensor:
        """All logits of a few states, in float32 at least."""
        logits = self.head(states.to(self.head.weight))
        return logits.to(states.device, torch.promote_types(logits.dtype, torch.float32))
