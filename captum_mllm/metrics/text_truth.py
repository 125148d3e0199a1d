"""What earlier words are worth to an answer, found by removing them.

Exports :func:`leave_one_out`, :func:`attention_knockout`, :func:`text_perturbation_curve` and
:func:`earlier_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from captum_mllm._captum import format_additional_forward_args, run_forward
from captum_mllm._options import is_integer
from captum_mllm.metrics.perturbation_curve import PerturbationCurve

Hide = Callable[[Tensor], AbstractContextManager[Any]]


def earlier_tokens(n_targets: int, n_tokens: int, feature_mask: Tensor | None = None) -> Tensor:
    r"""
    Which tokens, or words, each token of an answer follows.

    Args:
        n_targets (int): Number T of tokens of the answer, at least 1.
        n_tokens (int): Number n of tokens of the prompt and of the answer except its last, in
            their order, as ``MLLM.word_embeddings(query, answer=True)`` gives them.
        feature_mask (Tensor, optional): The word of each token, n integers from 0 to F - 1. A
            word counts as earlier from its first token on.
            Default: None, each token by itself

    Returns:
        Tensor: bool, of shape (T, n), or (T, F) with a feature mask.

    Raises:
        ValueError: If there are fewer than T - 1 tokens, or the feature mask does not fit.

    Examples::

        >>> earlier_tokens(2, 3)
        tensor([[ True,  True, False],
                [ True,  True,  True]])
    """
    n_prompt = n_tokens - n_targets + 1
    if n_targets < 1 or n_prompt < 0:
        raise ValueError(
            f"an answer of {n_targets} tokens needs at least {max(n_targets - 1, 0)} tokens before "
            f"its last and one target, got {n_tokens} tokens; embed the prompt and the answer "
            "except its last token, as in MLLM.word_embeddings(query, answer=True)"
        )
    members = _members(feature_mask, n_tokens)
    first = (members.cumsum(1) == 0).sum(1)
    return first < n_prompt + torch.arange(n_targets, device=first.device)[:, None]


def leave_one_out(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    baselines: Tensor | float = 0.0,
    additional_forward_args: Any = None,
    target: Sequence[int] | Tensor | None = None,
    feature_mask: Tensor | None = None,
    perturbations_per_eval: int = 16,
) -> Tensor:
    r"""
    Drop of the log-probability of every token of an answer when one earlier token, or word, has
    the baseline instead of its own embedding.

    With :math:`x_{\setminus i}` the input whose token i is replaced, entry (t, i) is
    :math:`\log p(y_t \mid x) - \log p(y_t \mid x_{\setminus i})`. It is positive where the token
    made the answer likelier. One pass removes a token for all of the answer at once, as no token
    looks ahead.

    Source: "Visualizing and Understanding Neural Models in NLP" (Li et al., NAACL 2016) and
    "Understanding Neural Networks through Representation Erasure" (Li et al., arXiv 1612.08220).

    Args:
        forward_func (Callable): Takes the inputs and gives the logits of the answer, (B, T, V), as
            an :class:`~captum_mllm.MLLM` does; or a score of each of its tokens, (B, T), which is
            taken unchanged.
        inputs (tuple[Tensor, ...]): Of one example; the last one holds the embeddings, of shape
            (1, n, D), of the tokens of the prompt and of the answer except its last. Others, such
            as the image (1, 3, H, W), stay fixed.
        baselines (Tensor or float, optional): What a removed token has instead; broadcasts with
            the embeddings. The mean of all embeddings of the model and that of a neutral token,
            such as a space, are usual; no token has the embedding 0.
            Default: 0.0
        additional_forward_args (Any, optional): Further arguments of ``forward_func``, passed on
            as they are, a tuple if several.
            Default: None
        target (Sequence[int] or Tensor, optional): The T tokens of the answer; None where
            ``forward_func`` gives scores.
            Default: None
        feature_mask (Tensor, optional): The word of each token, n integers from 0 to F - 1, of
            shape (n,) or (1, n, 1), as ``MLLM.word_mask(query, answer=True)`` gives it. The tokens
            of a word are removed together.
            Default: None, each token by itself
        perturbations_per_eval (int, optional): How many inputs are evaluated in one call of
            ``forward_func``; bounds the memory.
            Default: 16

    Returns:
        Tensor: In nats, of shape (T, n), or (T, F) with a feature mask; at least float32. 0 for
        what does not come before the token: see :func:`earlier_tokens`.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes do not fit together, or the forward function gives something else.

    Examples::

        >>> import torch
        >>> def next_token(embeddings):
        ...     return torch.stack([embeddings.sum((1, 2)), 0 * embeddings[:, 0, 0]], -1)[:, None]
        >>> embeddings = torch.tensor([[[1.0], [3.0]]])
        >>> leave_one_out(next_token, (embeddings,), target=[0]).argmax()
        tensor(1)
    """
    batch = _TextBatch(forward_func, inputs, additional_forward_args, target, feature_mask)
    baseline = batch.baseline(baselines)
    return _drops(
        batch, lambda features: batch.replaced(features, baseline), perturbations_per_eval
    )


def attention_knockout(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    hide: Hide,
    additional_forward_args: Any = None,
    target: Sequence[int] | Tensor | None = None,
    feature_mask: Tensor | None = None,
    perturbations_per_eval: int = 16,
) -> Tensor:
    r"""
    Drop of the log-probability of every token of an answer when no later token may look at one
    earlier token, or word.

    No embedding is changed, so that the model never sees an input that no text has. A
    hidden token still looks at itself.

    Source: "Dissecting Recall of Factual Associations in Auto-Regressive Language Models" (Geva
    et al., EMNLP 2023), for all layers and all later tokens.

    Args:
        forward_func (Callable): See :func:`leave_one_out`.
        inputs (tuple[Tensor, ...]): See :func:`leave_one_out`.
        hide (Callable): Takes a mask, bool, of shape (B, n): the tokens to hide in each of B
            inputs; returns a context manager, within which ``forward_func`` hides them.
            ``captum_mllm.models.knockout.hidden_words(mllm, query)`` gives one for an MLLM.
        additional_forward_args (Any, optional): Further arguments of ``forward_func``.
            Default: None
        target (Sequence[int] or Tensor, optional): The T tokens of the answer; None where
            ``forward_func`` gives scores.
            Default: None
        feature_mask (Tensor, optional): The word of each token; those of a word are hidden
            together. Default: None, each token by itself
        perturbations_per_eval (int, optional): How many inputs are evaluated in one call.
            Default: 16

    Returns:
        Tensor: As :func:`leave_one_out`.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes do not fit together, or the forward function gives something else.
    """
    batch = _TextBatch(forward_func, inputs, additional_forward_args, target, feature_mask)

    def hidden(features: Tensor) -> Tensor:
        with hide(batch.tokens_of(features)):
            return batch.scores(batch.embeddings.expand(len(features), -1, -1))

    return _drops(batch, hidden, perturbations_per_eval)


def text_perturbation_curve(
    forward_func: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    attributions: Tensor,
    kind: Literal["insertion", "deletion"],
    baselines: Tensor | float = 0.0,
    additional_forward_args: Any = None,
    target: Sequence[int] | Tensor | None = None,
    feature_mask: Tensor | None = None,
    steps: int = 10,
    perturbations_per_eval: int = 16,
) -> PerturbationCurve:
    r"""
    Probability of each token of an answer while its earlier words appear or vanish, those with
    the largest attributions first.

    The other inputs, such as the image, stay. Words with equal attributions follow each other in
    a fixed random order, so that constant weights get the curve of random ones.

    Args:
        forward_func (Callable): See :func:`leave_one_out`.
        inputs (tuple[Tensor, ...]): See :func:`leave_one_out`.
        attributions (Tensor): Weight of each earlier token or word for each token of the answer,
            of shape (T, n), or (T, F) with a feature mask. What is not earlier does not count.
        kind (str): ``"insertion"`` or ``"deletion"``.
        baselines (Tensor or float, optional): What a removed token has instead.
            Default: 0.0
        additional_forward_args (Any, optional): Further arguments of ``forward_func``.
            Default: None
        target (Sequence[int] or Tensor, optional): The T tokens of the answer; None where
            ``forward_func`` gives log-probabilities, (B, T).
            Default: None
        feature_mask (Tensor, optional): The word of each token.
            Default: None, each token by itself
        steps (int, optional): Number S of steps with equally many words.
            Default: 10
        perturbations_per_eval (int, optional): How many inputs are evaluated in one call.
            Default: 16

    Returns:
        PerturbationCurve: With one row for each of the T tokens and S + 1 points; ``area`` is the
        share of the earlier words. ``area_under()`` gives the scores, (T,): for insertion the
        larger the better, for deletion the smaller.

    Raises:
        TypeError: If an input is not a tensor.
        ValueError: If shapes do not fit together, or an option is out of its range.
    """
    if kind not in ("insertion", "deletion"):
        raise ValueError(f'kind must be "insertion" or "deletion", got {kind!r}')
    if not is_integer(steps) or steps < 1:
        raise ValueError(f"steps must be an int of at least 1, got {steps!r}")
    steps = int(steps)
    batch = _TextBatch(forward_func, inputs, additional_forward_args, target, feature_mask)
    baseline = batch.baseline(baselines)
    n_targets = len(batch.scores(batch.embeddings)[0])
    valid = batch.earlier(n_targets)
    if attributions.shape != valid.shape:
        raise ValueError(
            f"attributions must have shape {tuple(valid.shape)}, one weight for each earlier token "
            f"or word of each token of the answer, got {tuple(attributions.shape)}"
        )
    ranks = _ranks(attributions.detach().to(valid.device), valid)
    counts, done = valid.sum(1, keepdim=True), torch.arange(steps + 1, device=valid.device)
    reached = ranks[:, None] < ((2 * counts * done + steps) // (2 * steps))[..., None]
    removed = (reached if kind == "deletion" else ~reached) & valid[:, None]
    owner = torch.arange(n_targets, device=valid.device).repeat_interleave(steps + 1)
    found = [
        batch.replaced(features, baseline).gather(1, row[:, None])[:, 0]
        for features, row in _chunks(perturbations_per_eval, removed.flatten(0, 1), owner)
    ]
    probability = torch.cat(found).exp().reshape(n_targets, steps + 1)
    return PerturbationCurve(done.to(probability) / steps, probability, kind)


class _TextBatch:
    """One example, of which many variants are evaluated in batches."""

    def __init__(
        self,
        forward_func: Callable[..., Any],
        inputs: tuple[Tensor, ...],
        additional_forward_args: Any,
        target: Sequence[int] | Tensor | None,
        feature_mask: Tensor | None,
    ) -> None:
        tensors = inputs if isinstance(inputs, tuple) else (inputs,)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    "inputs must be Tensors, the embeddings of the text last, got "
                    f"{type(tensor).__name__}"
                )
        *self.others, embeddings = (tensor.detach() for tensor in tensors)
        if embeddings.dim() != 3 or any(len(each) != 1 for each in (*self.others, embeddings)):
            raise ValueError(
                "inputs must be of one example, the last of shape (1, n, D) for the embeddings of "
                f"n tokens, got {[tuple(each.shape) for each in tensors]}"
            )
        self.forward_func = forward_func
        self.embeddings = embeddings
        self.extra = format_additional_forward_args(additional_forward_args) or ()
        self.target = None if target is None else torch.as_tensor(target, device=embeddings.device)
        self.feature_mask = feature_mask
        self.members = _members(feature_mask, embeddings.shape[1]).to(embeddings.device)

    def earlier(self, n_targets: int) -> Tensor:
        found = earlier_tokens(n_targets, self.embeddings.shape[1], self.feature_mask)
        return found.to(self.embeddings.device)

    def baseline(self, given: Tensor | float) -> Tensor:
        baseline = torch.as_tensor(given).to(self.embeddings)
        try:
            baseline = baseline.expand_as(self.embeddings)
        except RuntimeError as error:
            raise ValueError(
                f"baselines of shape {tuple(baseline.shape)} do not fit embeddings of shape "
                f"{tuple(self.embeddings.shape)}"
            ) from error
        if not baseline.isfinite().all():
            raise ValueError("baselines must be finite, got NaN or infinity")
        return baseline

    def tokens_of(self, features: Tensor) -> Tensor:
        """The tokens of chosen words, (B, F) to (B, n)."""
        return (features[:, :, None] & self.members).any(1)

    def replaced(self, features: Tensor, baseline: Tensor) -> Tensor:
        """Scores (B, T) without the chosen words, (B, F)."""
        hidden = self.tokens_of(features)
        return self.scores(torch.where(hidden[..., None], baseline, self.embeddings))

    @torch.no_grad()
    def scores(self, embeddings: Tensor) -> Tensor:
        """Log-probabilities of the answer, (B, T), at least float32."""
        rows = [each.expand(len(embeddings), *each.shape[1:]) for each in self.others]
        output = run_forward(self.forward_func, (*rows, embeddings), None, self.extra)
        expected = 2 if self.target is None else 3
        if not isinstance(output, Tensor) or output.dim() != expected:
            shape = getattr(output, "shape", type(output).__name__)
            raise ValueError(
                "forward_func must give logits of the answer, (B, T, V), with a target, or scores "
                f"(B, T) without one, got {shape}"
            )
        output = output.to(torch.promote_types(output.dtype, torch.float32))
        if self.target is not None:
            if self.target.shape != output.shape[1:2]:
                raise ValueError(
                    f"target must hold the {output.shape[1]} tokens of the answer, got shape "
                    f"{tuple(self.target.shape)}"
                )
            index = self.target.expand(len(output), -1)[..., None]
            output = output.gather(2, index)[..., 0] - output.logsumexp(2)
        if not output.isfinite().all():
            raise ValueError("the forward function gave NaN or infinity for a perturbed input")
        return output


def _drops(
    batch: _TextBatch, without: Callable[[Tensor], Tensor], perturbations_per_eval: int
) -> Tensor:
    """Drop of each score without each word, (T, F)."""
    whole = batch.scores(batch.embeddings)
    valid = batch.earlier(whole.shape[1])
    each = torch.eye(len(batch.members), dtype=torch.bool, device=valid.device)
    parts = [without(features) for (features,) in _chunks(perturbations_per_eval, each)]
    left = torch.cat(parts) if parts else whole[:0]
    return (whole - left).mT.masked_fill(~valid, 0).contiguous()


def _chunks(size: int, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    if not is_integer(size) or size < 1:
        raise ValueError(f"perturbations_per_eval must be an int of at least 1, got {size!r}")
    return zip(*(tensor.split(int(size)) for tensor in tensors), strict=True)


def _members(feature_mask: Tensor | None, n_tokens: int) -> Tensor:
    """Which tokens each word has, (F, n)."""
    if feature_mask is None:
        return torch.eye(n_tokens, dtype=torch.bool)
    words = feature_mask.flatten()
    if len(words) != n_tokens or words.is_floating_point():
        raise ValueError(
            f"feature_mask must hold an integer for each of {n_tokens} tokens, got "
            f"{tuple(feature_mask.shape)} of {feature_mask.dtype}"
        )
    numbers = torch.arange(int(words.max()) + 1 if len(words) else 0, device=words.device)
    members = numbers[:, None] == words
    if not members.any(1).all() or (len(words) and words.min() < 0):
        raise ValueError(
            "feature_mask must number the words from 0 without a gap, got "
            f"{words.unique().tolist()[:10]}"
        )
    return members


def _ranks(weights: Tensor, valid: Tensor) -> Tensor:
    """Place of each word in the order of its weight, largest first, what does not count last."""
    if not weights[valid].isfinite().all():
        raise ValueError("attributions must be finite, got NaN or infinity")
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.randperm(weights.shape[1], generator=generator).to(weights.device)
    values = weights.masked_fill(~valid, -torch.inf)[:, shuffled]
    # Equal weights keep the shuffled order.
    order = shuffled[values.argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(weights.shape[1], device=weights.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
