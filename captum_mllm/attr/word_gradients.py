"""The embeddings of words as an input of gradient methods, beside the picture."""

from __future__ import annotations

import inspect
from typing import Any

from captum.attr import Attribution, GradientAttribution, LayerAttribution
from torch import Tensor

from captum_mllm.attr.features import split_baselines
from captum_mllm.attr.wrapper_chain import wrapper_chain
from captum_mllm.metrics.picture_baselines import picture_baseline
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query
from captum_mllm.models.word_embeddings import word_baseline


def with_word_embeddings(
    method: Attribution, image: Tensor, query: Query, words: str, kwargs: dict[str, Any]
) -> tuple[tuple[Tensor, Tensor], dict[str, Any]]:
    r"""The inputs of a gradient method that asks for words too, and its arguments.

    Args:
        method (Attribution): such as IntegratedGradients, or MSEA around it.
        image (Tensor): the picture, (1, 3, H, W) in [0, 1].
        query (Query): the question and the answer.
        words (str): ``"prompt"`` or ``"earlier"``.
        kwargs (dict): arguments of the method; the baselines, where it has some, as
            :class:`~captum_mllm.MLLMAttribution` takes them.

    Raises:
        TypeError: for a method that does not take the gradient of its inputs.
        ValueError: for baselines that do not fit.
    """
    *_, inner = wrapper_chain(method)
    if not isinstance(inner, GradientAttribution) or isinstance(inner, LayerAttribution):
        raise TypeError(
            f"{method.get_name()} does not ask for the words of the question; leave `words` out, "
            "take a method of gradients such as IntegratedGradients, or one that perturbs, such "
            "as FeatureAblation, and give it `segments`, (1, 1) for the picture as a whole"
        )
    mllm: MLLM = method.forward_func
    embeddings = mllm.word_embeddings(query, words == "earlier")
    if "baselines" in inspect.signature(type(inner).attribute).parameters:
        picture, text = split_baselines(kwargs.get("baselines"))
        if not isinstance(picture, Tensor):
            picture = picture_baseline(image, picture)
        absent = word_baseline(mllm.model, mllm.tokenizer, embeddings, text)
        kwargs = {**kwargs, "baselines": (picture, absent)}
    return (image, embeddings), kwargs
