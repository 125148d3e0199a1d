"""text_attribution and context_scores: what the earlier text tokens give to each explained one."""

from __future__ import annotations

from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.attention_maps import TEXT_RESIDUAL, AttentionMaps
from captum_mllm.attr.token_maps import token_attribution
from captum_mllm.models.attention_record import has_softmax_attention
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query
from captum_mllm.models.states import States

# Their name among the values derived from states.
SCORES = "context scores"


def text_attribution(method: Attribution, images: tuple[Tensor, ...], query: Query) -> Tensor:
    r"""
    The weights that a method gives to the earlier text tokens, at the image as given.

    Args:
        method (Attribution): any method on an MLLM.
        images (tuple[Tensor, ...]): the open images, (1, 3, H, W) in [0, 1] each.
        query (Query): the question and the answer.

    Returns:
        Tensor: of shape (T, P + T), 0 for a token itself and those after it: the method's own;
        where it has none, the attention of the row that predicts the token, or, for a method that
        reads states only and in a model whose attention cannot be read, how strongly the state of
        each token says it.
    """
    mllm: MLLM = method.forward_func
    explained = token_attribution(method)
    weights = explained.attribute_text(images, (query,))
    if weights is not None:
        return weights
    if not explained.reads_states_only and has_softmax_attention(mllm.model):
        attention = AttentionMaps(mllm, mode="raw", text_residual=TEXT_RESIDUAL)
        return attention.attribute_text(images, (query,))
    return explained_rows(context_scores(mllm, mllm.states(*images, query)), query)


def context_scores(mllm: MLLM, states: States) -> Tensor:
    r"""How strongly each token's state says each token: :math:`\mathrm{relu}(h_j^\top w_t)`.

    Args:
        mllm (MLLM): the model.
        states (States): of one image, with N text tokens.

    Returns:
        Tensor: of shape (N, N), row t and column j; float32.
    """
    if SCORES not in states.derived:
        scores = mllm.vocabulary.scores(states.context[0], states.ids)
        states.derived[SCORES] = scores.mT.relu()
    return states.derived[SCORES]


def explained_rows(weights: Tensor, query: Query) -> Tensor:
    r"""Weights (N, N) of all tokens for each as those of the earlier ones for the explained ones,
    (T, N)."""
    earlier = weights.tril(-1)
    return earlier if query.with_prompt else earlier[len(weights) - len(query.answer_ids) :]
