"""``compare_reasons``: how near reasons of words that are read from one pass come to exact ones."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm.attr.logit_decomposition import LogitDecomposition
from captum_mllm.evaluation.examples import sample_examples, trial_parser
from captum_mllm.explain.ablation import exact_reasons
from captum_mllm.explain.estimate import attention_masses, estimate_reasons
from captum_mllm.explain.reasons import PRIOR, Reasons
from captum_mllm.explain.signals import lens_evidence
from captum_mllm.models import MLLM, ImageTextInput, Query

GROUPS = ("image", "question", "answer")


class Agreement(NamedTuple):
    r"""
    How near an estimate of the shares of one group comes to the exact ones.

    Args:
        group (str): the group, such as ``"image"``.
        n_tokens (int): how many tokens were compared.
        mean_share (float): the mean of the exact shares, in [0, 1].
        correlation (float): Pearson's correlation of the shares; 0 where one is constant.
        mean_error (float): mean absolute difference of the shares, in [0, 1].
    """

    group: str
    n_tokens: int
    mean_share: float
    correlation: float
    mean_error: float


def compare_reasons(exact: Sequence[Reasons], estimates: Sequence[Reasons]) -> list[Agreement]:
    r"""
    Compare estimated shares of tokens with exact ones.

    Args:
        exact (Sequence[Reasons]): of some answers, with the same groups.
        estimates (Sequence[Reasons]): of the same answers.

    Returns:
        list[Agreement]: of each group and of the prior.

    Raises:
        ValueError: for no answers, other groups, or another number of tokens.

    Examples::

        >>> import torch
        >>> exact = Reasons(("image", "answer"), torch.tensor([[3.0, 1, 0], [0, 1, 1]]), "shapley")
        >>> estimate = Reasons(("image", "answer"), torch.tensor([[1.0, 1, 0], [0, 1, 0]]), "?")
        >>> compare_reasons([exact], [estimate])[0].mean_error
        0.125
    """
    pairs = list(zip(exact, estimates, strict=True))
    if not pairs:
        raise ValueError("there are no answers to compare")
    for found, estimate in pairs:
        if found.groups != exact[0].groups or estimate.groups != found.groups:
            raise ValueError(f"got groups {estimate.groups}, expected {exact[0].groups}")
        if found.values.shape != estimate.values.shape:
            raise ValueError("the reasons of an answer differ in their number of tokens")
    truth = torch.cat([_shares(found.values) for found, _ in pairs])
    guess = torch.cat([_shares(estimate.values) for _, estimate in pairs])
    return [
        Agreement(
            group=name,
            n_tokens=len(truth),
            mean_share=float(truth[:, column].mean()),
            correlation=_correlation(truth[:, column], guess[:, column]),
            mean_error=float((truth[:, column] - guess[:, column]).abs().mean()),
        )
        for column, name in enumerate((*exact[0].groups, PRIOR))
    ]


def _shares(values: Tensor) -> Tensor:
    """As :meth:`Reasons.shares` of each token."""
    positive = values.double().clamp(min=0)
    total = positive.sum(1, keepdim=True)
    return positive / torch.where(total > 0, total, 1.0)


def _correlation(first: Tensor, second: Tensor) -> float:
    if first.std() == 0 or second.std() == 0:
        return 0.0
    return float(np.corrcoef(first.numpy(), second.numpy())[0, 1])


def contribution_reasons(mllm: MLLM, images: tuple[Tensor, ...], query: Query) -> Reasons:
    r"""
    The direct contributions to each token's logit from the tokens of each group that speak for it.

    Args:
        mllm (MLLM): the model.
        images (tuple[Tensor]): one image, (1, 3, H, W).
        query (Query): the question and the answer.

    Returns:
        Reasons: in logits; the prior is 0.
    """
    method = LogitDecomposition(mllm)
    parts = method.decompose(images, additional_forward_args=(query,))
    n_prompt = parts.text.shape[1] - len(parts.text)
    earlier = parts.text.tril(n_prompt - 1).clamp(min=0)
    image = parts.image[0].clamp(min=0).sum(1)
    values = torch.stack(
        [image, earlier[:, :n_prompt].sum(1), earlier[:, n_prompt:].sum(1), torch.zeros_like(image)]
    )
    return Reasons(GROUPS, values.T.detach().cpu(), "contributions")


def lens_reasons(mllm: MLLM, images: tuple[Tensor, ...], query: Query) -> Reasons:
    r"""
    The largest probability of a token at an image token is the image's share; attention divides
    what is left between the texts.

    Args:
        mllm (MLLM): the model.
        images (tuple[Tensor]): one image, (1, 3, H, W).
        query (Query): the question and the answer.

    Returns:
        Reasons: with a sum of 1; the prior is 0.
    """
    states = mllm.states(*images, query)
    ids = states.ids[0 if query.with_prompt else states.n_prompt :]
    confidence, _ = lens_evidence(mllm.vocabulary, states, ids)
    image = confidence.exp()[:, None]
    texts = F.normalize(attention_masses(mllm, images, query)[:, 1:3], p=1, dim=1)
    values = torch.cat([image, (1 - image) * texts, torch.zeros_like(image)], dim=1)
    return Reasons(GROUPS, values.float(), "lens")


#: Ways to read shares from one pass; the first is what ``reasons="estimate"`` shows.
ESTIMATES: dict[str, Callable[[MLLM, tuple[Tensor, ...], Query], Reasons]] = {
    "attention": estimate_reasons,
    "contributions": contribution_reasons,
    "lens": lens_reasons,
}


def main() -> None:
    r"""``python -m captum_mllm.evaluation.reasons_trial demo/qwen2-vl --scenes 300``."""
    given = trial_parser(__doc__, scenes=300).parse_args()
    mllm = MLLM.from_pretrained(given.model, dtype="float32")
    exact: list[Reasons] = []
    estimates: dict[str, list[Reasons]] = defaultdict(list)
    # With a prior, so that words tell something of each other.
    for example in sample_examples(
        range(given.scenes), given.split, spelling=given.spelling, prior=0.5
    ):
        inp = ImageTextInput(example.image, example.prompt)
        image, query = mllm.prepare(inp, target=example.answer)
        exact.append(exact_reasons(mllm, (image,), query))
        with mllm.remember():
            for name, estimate in ESTIMATES.items():
                estimates[name].append(estimate(mllm, (image,), query))
    for name, found in estimates.items():
        for agreement in compare_reasons(exact, found):
            print(json.dumps({"estimate": name, **agreement._asdict()}))


if __name__ == "__main__":
    main()
