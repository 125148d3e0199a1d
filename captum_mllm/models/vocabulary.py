"""``Vocabulary`` computes logits and predictions from hidden states in chunks, so that not all
logits are held at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from captum_mllm.models.precision import full_precision

# Logits held at a time, 8 MiB in float32.
CHUNK = 2**21
# States that share one reading of the weights, which takes as long as 10 to 20 states' arithmetic.
BLOCK = 256


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

    Rows are read off the weights where these are all there is to it. A quantised output embedding,
    or one with an adapter or with weights that are elsewhere, is run as the model runs it.

    Args:
        head (nn.Module): the output embedding, from (..., d) to (..., V).
        cap (float, optional): logits are led to its hyperbolic tangent, so that none is larger.
            Default: None

    Raises:
        TypeError: for one that does not tell how many tokens it knows.
    """

    def __init__(self, head: nn.Module, cap: float | None = None) -> None:
        self.head: Any = head
        self.cap = cap
        self._has_rows = _has_rows(head)
        size = getattr(head, "out_features", None)
        if not isinstance(size, int):
            raise TypeError(
                f"the output embedding is a {type(head).__name__}, expected a linear layer, or a "
                "module that tells its `out_features`"
            )
        self.size = size

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
        if not self._has_rows:
            flat = states.flatten(0, -2)
            found = torch.empty(len(flat), len(ids), dtype=dtype, device=states.device)
            for block, place in zip(self._blocks(flat), self._blocks(found)):
                for _, logits in self._logits(block):
                    place.copy_(logits[:, ids.to(logits.device)])
            return found.unflatten(0, states.shape[:-1])
        distinct, inverse = ids.to(self.head.weight.device).unique(return_inverse=True)
        rows = self.head.weight[distinct].to(states.device, dtype)
        with full_precision():
            scores = states.to(dtype) @ rows.mT
        if self.head.bias is not None:
            scores = scores + self.head.bias[distinct].to(scores)
        scores = cap_logits(scores, self.cap)
        return scores[..., inverse.to(states.device)]

    @torch.no_grad()
    def mean_logit(self, states: Tensor) -> Tensor:
        r"""The mean logit of all tokens, on which no probability depends.

        Args:
            states (Tensor): hidden states after the final norm, shape (..., d).

        Returns:
            Tensor: float32, or float64 if the states are, shape (...).
        """
        dtype = torch.promote_types(states.dtype, torch.float32)
        if self._has_rows and self.cap is None:
            weight, bias = self.head.weight, self.head.bias
            with full_precision():
                mean = states.to(dtype) @ weight.mean(0, dtype=dtype).to(states.device)
            return mean if bias is None else mean + bias.mean(dtype=dtype).to(mean)
        flat = states.flatten(0, -2)
        found = torch.empty(len(flat), dtype=dtype, device=states.device)
        for block, place in zip(self._blocks(flat), self._blocks(found)):
            place.zero_()
            for _, logits in self._logits(block):
                place += logits.sum(1) / self.size
        return found.unflatten(0, states.shape[:-1])

    def directions(self, ids: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        r"""The directions of some tokens among the states, (n, d), and their biases, (n,): the
        logit of a token, before a cap, is its direction times the state, plus the bias.

        Args:
            ids (Tensor): vocabulary indices, shape (n,).
            like (Tensor): states (..., d), whose device the result is on; float32 at least.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        if self._has_rows:
            ids = ids.to(self.head.weight.device)
            rows = self.head.weight.detach()[ids].to(like.device, dtype)
            bias = self.head.bias
            offsets = rows.new_zeros(len(rows)) if bias is None else bias.detach()[ids].to(rows)
            return rows, offsets
        parts = []
        for block in ids.split(max(CHUNK // self.size, 1)):
            with torch.enable_grad():
                origin = like.new_zeros(len(block), like.shape[-1]).requires_grad_()
                logits = self.head(origin).gather(1, block.to(like.device)[:, None])[:, 0]
                (gradient,) = torch.autograd.grad(logits.sum(), origin)
            parts.append((gradient.to(dtype), logits.detach().to(dtype)))
        rows, offsets = map(torch.cat, zip(*parts))
        return rows, offsets

    @torch.no_grad()
    def rankings(self, states: Tensor, k: int) -> Tensor:
        r"""The k most probable tokens of each state, best first, shape (R, k) for (R, d)."""
        # Made before the logits: what is kept of each chunk must not fragment their memory.
        found = torch.empty(len(states), k, dtype=torch.long, device=states.device)
        for block, place in zip(self._blocks(states), self._blocks(found)):
            best = Best(k)
            for start, logits in self._logits(block):
                best.add(logits, start)
            place.copy_(best.ids)
        return found

    @torch.no_grad()
    def predictions(self, states: Tensor, ids: Tensor, k: int) -> Predictions:
        r"""The probability of a token for each of (R, d) states, and the k most probable."""
        k = min(k, self.size)
        # As for rankings.
        dtype = torch.promote_types(states.dtype, torch.float32)
        found = Predictions(
            torch.empty(len(states), dtype=dtype, device=states.device),
            torch.empty(len(states), k, dtype=torch.long, device=states.device),
            torch.empty(len(states), k, dtype=dtype, device=states.device),
        )
        for block, wanted, *places in zip(*map(self._blocks, (states, ids, *found))):
            for place, value in zip(places, predict(self._logits(block), wanted, k)):
                place.copy_(value)
        return found

    @torch.no_grad()
    def log_probability(self, states: Tensor, ids: Tensor) -> Tensor:
        r"""
        The logarithm of the probability of tokens, which does not underflow.

        Args:
            states (Tensor): hidden states after the final norm, shape (..., T, d).
            ids (Tensor): the token of each place, shape (T,).

        Returns:
            Tensor: float32, or float64 if the states are, shape (..., T).
        """
        rows = states.flatten(0, -2)
        wanted = ids.to(rows.device).expand(states.shape[:-1]).flatten()
        dtype = torch.promote_types(states.dtype, torch.float32)
        found = torch.empty(len(rows), dtype=dtype, device=rows.device)
        for block, own, place in zip(*map(self._blocks, (rows, wanted, found))):
            place.copy_(log_predict(self._logits(block), own, 0)[0])
        return found.unflatten(0, states.shape[:-1])

    def _blocks(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split(BLOCK if self._has_rows else max(CHUNK // self.size, 1))

    def _logits(self, states: Tensor) -> Iterator[tuple[int, Tensor]]:
        """All logits of some states, in float32 at least, in chunks of consecutive tokens."""
        dtype = torch.promote_types(states.dtype, torch.float32)
        if not self._has_rows:
            logits = self.head(states).to(states.device, dtype, copy=True)
            yield 0, cap_logits(logits, self.cap)
            return
        weight, bias = self.head.weight, self.head.bias
        given = states.to(weight)
        width = max(CHUNK // max(len(states), 1), 1)
        for start in range(0, self.size, width):
            chunk = slice(start, start + width)
            with full_precision():
                logits = nn.functional.linear(
                    given, weight[chunk], None if bias is None else bias[chunk]
                )
            yield start, cap_logits(logits.to(states.device, dtype), self.cap)


def cap_logits(logits: Tensor, cap: float | None) -> Tensor:
    r"""Logits of a model that caps them, from those of its output embedding."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


class Best:
    r"""The k largest logits of each row, of chunks of the vocabulary as they come.

    Args:
        k (int): how many.
    """

    def __init__(self, k: int) -> None:
        self.k = k
        self.values: Tensor = torch.empty(0)
        self.ids: Tensor = torch.empty(0)
        self._first = True

    def add(self, logits: Tensor, start: int) -> None:
        """The logits (R, n) of the tokens from ``start`` on."""
        values, ids = logits.topk(min(self.k, logits.shape[1]))
        ids = ids + start
        if not self._first:
            values = torch.cat([self.values, values], 1)
            ids = torch.cat([self.ids, ids], 1)
            values, order = values.topk(min(self.k, values.shape[1]))
            ids = ids.gather(1, order)
        self.values, self.ids, self._first = values, ids, False


def predict(chunks: Iterator[tuple[int, Tensor]], ids: Tensor, k: int) -> Predictions:
    r"""Predictions from all logits of R states; arguments as of :func:`log_predict`."""
    log_chosen, top_ids, log_top = log_predict(chunks, ids, k)
    return Predictions(log_chosen.exp(), top_ids, log_top.exp())


def log_predict(
    chunks: Iterator[tuple[int, Tensor]], ids: Tensor, k: int
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Predictions with the logarithms of the probabilities, from all logits of R states.

    Args:
        chunks (Iterator[tuple[int, Tensor]]): the first token of each chunk of the vocabulary, and
            the logits (R, n) of its tokens, which are overwritten.
        ids (Tensor): the asked token of each state, shape (R,).
        k (int): how many tokens to rank.
    """
    best = Best(k)
    total = chosen = torch.full(ids.shape, -torch.inf, device=ids.device)
    for start, logits in chunks:
        best.add(logits, start)
        place = ids - start
        inside = (place >= 0) & (place < logits.shape[1])
        own = logits.gather(1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        chosen = torch.where(inside, own, chosen)
        # In place, as no chunk is looked at twice.
        largest = logits.amax(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).min)
        chunk_total = logits.sub_(largest).exp_().sum(1).log() + largest[:, 0]
        total = torch.logaddexp(total, chunk_total)
    return chosen - total, best.ids, best.values - total[:, None]


def _has_rows(head: Any) -> bool:
    """Whether the logits of a token are the states times its row of the weights, as they lie."""
    if not isinstance(head, nn.Linear) or type(head).forward is not nn.Linear.forward:
        return False
    # What accelerate puts before a module moves weights and inputs, and computes nothing.
    if "forward" in vars(head) and not hasattr(head, "_hf_hook"):
        return False
    weight = head.weight
    plain = type(weight) in (Tensor, nn.Parameter) and not weight.is_meta
    return plain and weight.is_floating_point()
