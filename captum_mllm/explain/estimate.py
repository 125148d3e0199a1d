"""``estimate_reasons`` reads from one pass what each token may rest on."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm.attr.attention_maps import TEXT_RESIDUAL, AttentionMaps
from captum_mllm.explain.ablation import exact_reasons, group_names
from captum_mllm.explain.reasons import Reasons
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query

Mode = Literal["exact", "estimate"]


def check_reasons(mode: Any) -> None:
    r"""Refuse another way to find reasons than those of :meth:`MLLMAttribution.attribute`.

    Raises:
        ValueError: for one that is not known.
    """
    if mode is not None and mode not in get_args(Mode):
        raise ValueError(
            f"reasons={mode!r}, expected 'exact', by leaving out inputs, 'estimate', from one "
            "pass, or None"
        )


def find_reasons(
    mllm: MLLM, images: tuple[Tensor, ...], query: Query, mode: Mode | None
) -> Reasons | None:
    r"""The reasons that a user asks for, see :meth:`MLLMAttribution.attribute`."""
    if mode is None:
        return None
    find = exact_reasons if mode == "exact" else estimate_reasons
    return find(mllm, images, query)


@torch.no_grad()
def attention_masses(mllm: MLLM, images: tuple[Tensor, ...], query: Query) -> Tensor:
    r"""
    The share of the attention that goes to each group of inputs, mean over layers and heads.

    Args:
        mllm (MLLM): the model.
        images (tuple[Tensor, ...]): the images that the query leaves open, (1, 3, H, W) each.
        query (Query): the question and the answer.

    Returns:
        Tensor: for each image of the prompt, the question, the answer so far and the rest (the
        template and special tokens), of shape (T, images + 3), rows with a sum of 1. The residual
        connection of the last token counts as in ``AttentionMaps``.

    Raises:
        ValueError: for a model whose decoder looks at images by cross-attention.
    """
    if mllm.geometry.crosses:
        raise ValueError(
            f"an estimate and a diagnosis divide the attention to all tokens, but the decoder of a "
            f"{mllm.model.config.model_type!r} looks at images by cross-attention; ask for "
            "reasons='exact' alone"
        )
    rows = AttentionMaps(mllm, mode="raw").rows(images, query)
    encoding = rows.encoding
    weights = rows.weights.unflatten(1, (encoding.windows, -1)).mean(1)
    start = encoding.explained_rows(query).to(weights.device)
    residual = F.one_hot(start, weights.shape[1])
    weights = (weights + TEXT_RESIDUAL * residual) / (1 + TEXT_RESIDUAL)
    positions = [*encoding.image_positions, encoding.text_positions, encoding.answer_rows[1:]]
    parts = [weights[:, each.to(weights.device)].sum(1) for each in positions]
    return torch.stack([*parts, 1 - sum(parts)], dim=1).clamp(min=0).cpu()


def estimate_reasons(mllm: MLLM, images: tuple[Tensor, ...], query: Query) -> Reasons:
    r"""
    What each token may rest on, from the attention of one pass.

    The whole, :math:`\log p + \log V`, is divided by the attention to each group; the template gets
    nothing, since attention rests there whether it is used or not, and so the prior is 0. That is a
    weak estimate: where a word looks is not what it needs. On the bundled models its shares of
    the image correlate with exact ones by 0.3 to 0.5. :func:`exact_reasons` takes 8 rows of a
    batch.

    Args:
        mllm (MLLM): the model.
        images (tuple[Tensor, ...]): the images that the query leaves open, (1, 3, H, W) each.
        query (Query): the question and the answer.

    Returns:
        Reasons: of the kind ``"attention"``.
    """
    masses = attention_masses(mllm, images, query)
    states = mllm.states(*images, query)
    start = 0 if query.with_prompt else states.n_prompt
    predicting, ids = states.predicting[:, start:], states.ids[start:]
    whole = mllm.vocabulary.log_probability(predicting, ids)[0].cpu().float()
    groups = group_names(query.names)
    if groups[0] == "images":
        count = len(query.images)
        masses = torch.cat([masses[:, :count].sum(1, keepdim=True), masses[:, count:]], dim=1)
    shares = masses[:, :-1] / masses[:, :-1].sum(1, keepdim=True).clamp(min=1e-9)
    values = shares * (whole + math.log(mllm.vocabulary.size))[:, None]
    values = torch.cat([values, torch.zeros(len(values), 1)], dim=1)
    return Reasons(groups, values.float(), "attention", method="attention of one pass")
