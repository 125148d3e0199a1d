"""``token_signals``: what may tell whether a token names something that the image shows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from captum_mllm.explain.ablation import Ablation
from captum_mllm.explain.estimate import attention_masses
from captum_mllm.explain.reasons import TEXTS, Reasons
from captum_mllm.models.knockout import TakesNoMask
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query
from captum_mllm.models.states import States
from captum_mllm.models.vocabulary import Vocabulary

#: The signals in their order. All grow with the evidence that the image shows what a token names.
SIGNALS = (
    "probability",
    "image gain",
    "without words",
    "lens confidence",
    "lens peak",
    "image attention",
)
#: Bound of what is counted in nats, so that no single word decides a fit.
BOUND = 12.0


def check_signals(signals: Tensor, n_tokens: int) -> None:
    r"""Refuse signals that are not those of a number of tokens.

    Raises:
        ValueError: if they are not.
    """
    if signals.shape != (n_tokens, len(SIGNALS)) or not signals.isfinite().all():
        raise ValueError(
            f"signals have shape {tuple(signals.shape)}, expected {(n_tokens, len(SIGNALS))} and "
            "finite numbers"
        )


@torch.no_grad()
def token_signals(
    mllm: MLLM, images: tuple[Tensor, ...], query: Query, reasons: Reasons | None = None
) -> Tensor:
    r"""
    The signals of :data:`SIGNALS` for each explained token.

    - ``probability``: the logarithm of its probability.
    - ``image gain``: by how much its logarithm falls when no image can be looked at, the part of
      the images in :class:`Reasons`.
    - ``without words``: the logarithm of its probability without the answer so far.
    - ``lens confidence``: the logarithm of the largest probability that the logit lens gives it at
      any image token ("internal confidence", Jiang et al., arXiv 2410.02762, of the last layer).
    - ``lens peak``: by how many standard deviations its largest logit at an image token is above
      the mean of all image tokens.
    - ``image attention``: the logarithm of the share of the attention that goes to the images.

    The second and the third take two rows of a batch, unless exact reasons are given; all else is
    read from the pass of the explanation.

    Args:
        mllm (MLLM): the model.
        images (tuple[Tensor, ...]): the images that the query leaves open, (1, 3, H, W) each.
        query (Query): the question and the answer.
        reasons (Reasons, optional): the exact reasons, if they are known. Default: None

    Returns:
        Tensor: of shape (T, len(SIGNALS)), float32, on the CPU.
    """
    masses = attention_masses(mllm, images, query)
    states = mllm.states(*images, query)
    without_image, without_words = _without(mllm, images, query, reasons)
    start = 0 if query.with_prompt else states.n_prompt
    ids = states.ids[start:]
    whole = mllm.vocabulary.log_probability(states.predicting[:, start:], ids)[0].cpu()
    confidence, peak = lens_evidence(mllm.vocabulary, states, ids)
    n_images = masses.shape[1] - 3
    found = [
        whole.clamp(min=-BOUND),
        (whole - without_image).clamp(-BOUND, BOUND),
        without_words.clamp(min=-BOUND),
        confidence.clamp(min=-BOUND),
        peak,
        masses[:, :n_images].sum(1).clamp(min=1e-6).log(),
    ]
    return torch.stack([signal.float() for signal in found], dim=1)


def lens_evidence(vocabulary: Vocabulary, states: States, ids: Tensor) -> tuple[Tensor, Tensor]:
    r"""The largest log-probability of each token by the lens at any image token, and by how many
    standard deviations its largest logit is above their mean, (T,) each, on the CPU."""
    tokens = torch.cat([image[0] for image in states.image])
    # The logarithm of the sum over the vocabulary is found once for each image token.
    first = ids.new_zeros(len(tokens))
    total = vocabulary.scores(tokens, first[:1])[:, 0] - vocabulary.log_probability(tokens, first)
    scores = vocabulary.scores(tokens, ids)
    confidence = (scores - total[:, None]).amax(0).cpu()
    scores = scores.cpu()
    spread = scores.std(0, correction=0).clamp(min=1e-6)
    return confidence, (scores.amax(0) - scores.mean(0)) / spread


def _without(
    mllm: MLLM, images: tuple[Tensor, ...], query: Query, reasons: Reasons | None
) -> tuple[Tensor, Tensor]:
    """The log-probability of each token without the images, and without the answer so far."""
    if reasons is not None and reasons.coalitions is not None:
        of_texts = sum(1 << index for index, name in enumerate(reasons.groups) if name in TEXTS)
        of_answer = 1 << reasons.groups.index("answer")
        rows = reasons.coalitions[[of_texts, len(reasons.coalitions) - 1 - of_answer]]
        whole = rows - math.log(mllm.vocabulary.size)
        return whole[0], whole[1]
    try:
        return _two_rows(Ablation(mllm, images, query, "knockout", "mean"))
    except TakesNoMask:
        return _two_rows(Ablation(mllm, images, query, "mean", "mean"))


def _two_rows(ablation: Ablation) -> tuple[Tensor, Tensor]:
    texts = [name in TEXTS for name in ablation.groups]
    others = [name != "answer" for name in ablation.groups]
    first, second = ablation.log_probability(torch.tensor([texts, others]))
    return first, second
