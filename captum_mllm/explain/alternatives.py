"""``Alternatives``: what might have been said instead of each token, and why it was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.features import Features, to_earlier
from captum_mllm.attr.text_attribution import text_attribution
from captum_mllm.attr.token_maps import token_maps
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query


@dataclass(frozen=True, eq=False)
class Alternatives:
    r"""
    The K next most probable tokens at each of the T places of an answer, and the evidence for the
    token that was said in contrast to each of them.

    Args:
        ranks (Tensor): which of the result's ``top_predictions`` they are, from 0, (T, K).
        image_attrs (tuple[Tensor, ...]): a map of each explained image for each of them,
            (T, K, h, w): where the image says the token rather than the alternative.
        token_attr (Tensor): the weights of the earlier tokens in contrast to each of them,
            (T, K, P + T). Attention does not depend on the word: where it gives the weights,
            they are those of the token itself.
    """

    ranks: Tensor
    image_attrs: tuple[Tensor, ...]
    token_attr: Tensor

    def to_parts(self) -> dict[str, Tensor]:
        """Tensors for the file of a result."""
        parts = {"alternatives.ranks": self.ranks, "alternatives.token_attr": self.token_attr}
        for place, maps in enumerate(self.image_attrs):
            parts[f"alternatives.image_attr.{place}"] = maps
        return parts

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], n_images: int) -> Alternatives | None:
        """What :meth:`to_parts` gave; None where there were no alternatives."""
        if "alternatives.ranks" not in tensors:
            return None
        maps = tuple(tensors[f"alternatives.image_attr.{place}"] for place in range(n_images))
        return cls(tensors["alternatives.ranks"], maps, tensors["alternatives.token_attr"])

    def check(self, n_images: int, n_tokens: int, ranked: Sequence[Sequence[Any]]) -> None:
        r"""Refuse what is not of a result.

        Args:
            n_images (int): how many images are explained.
            n_tokens (int): P + T, how many tokens prompt and answer have.
            ranked (Sequence): the top predictions at each place of the answer.

        Raises:
            ValueError: for parts that do not fit it or each other, ranks that are not among the
                predictions, or numbers that are not finite.
        """
        shape = (len(ranked), self.ranks.shape[-1])
        fits = self.ranks.shape == shape and self.token_attr.shape == (*shape, n_tokens)
        fits = fits and len(self.image_attrs) == n_images
        if not fits or any(maps.shape[:-2] != shape for maps in self.image_attrs):
            raise ValueError(
                f"the alternatives have ranks {tuple(self.ranks.shape)}, maps "
                f"{', '.join(str(tuple(maps.shape)) for maps in self.image_attrs)} and weights "
                f"{tuple(self.token_attr.shape)}, expected {len(ranked)} tokens, {n_images} "
                f"image(s) and {n_tokens} earlier tokens"
            )
        if any(
            not all(0 <= rank < len(best) for rank in ranks)
            for ranks, best in zip(self.ranks.tolist(), ranked)
        ):
            raise ValueError("the alternatives are not all among the top predictions")
        if not all(part.isfinite().all() for part in (*self.image_attrs, self.token_attr)):
            raise ValueError("the alternatives have numbers that are not finite")


def find_alternatives(
    method: Attribution,
    images: tuple[Tensor, ...],
    query: Query,
    features: Features,
    count: int,
    **kwargs: Any,
) -> Alternatives | None:
    r"""
    The most probable alternatives to each token of an answer, explained in contrast to them.

    All tokens are contrasted with their first alternative at once, then with their second. Within
    ``MLLM.remember`` that takes no further pass with methods whose passes were made before by
    ``prefetch``.

    Args:
        method (Attribution): a method on an MLLM.
        images (tuple[Tensor, ...]): the open images, (1, 3, H, W) in [0, 1] each.
        query (Query): the question and the answer.
        features (Features): what the method perturbs or differentiates beside pixels.
        count (int): K, how many alternatives; 0 for none.
        **kwargs (Any): options of the method.

    Raises:
        ValueError: for as many alternatives as the vocabulary has tokens, or more, and for a
            method that does not depend on the word.
    """
    if count == 0:
        return None
    mllm: MLLM = method.forward_func
    if count >= mllm.vocabulary.size:
        raise ValueError(
            f"got alternatives={count}, expected fewer than the {mllm.vocabulary.size} tokens of "
            "the vocabulary"
        )
    query = replace(query, with_prompt=False, instead_of=())
    states = mllm.states(*images, query)
    ids = states.predictions(mllm.vocabulary, count + 1, with_text=False).top_ids
    others = ids != states.ids[states.n_prompt :, None].to(ids.device)
    # Without the token itself among them, the last is one too many.
    others[:, -1] &= ~others.all(1)
    ranks = others.nonzero()[:, 1].reshape(len(ids), count)
    places = range(-len(ids), 0)
    kwargs = {name: kwargs[name] for name in kwargs if name != "on_scale"}
    maps, weights = [], []
    for tokens in ids.gather(1, ranks).T.tolist():
        contrast = replace(query, instead_of=tuple(zip(places, tokens)))
        found = token_maps(method, images, contrast, None, features, **kwargs)
        maps.append([each[:, 0].float().cpu() for each in found.maps])
        if found.text is not None:
            weights.append(to_earlier(found.text, len(states.ids)))
        else:
            weights.append(text_attribution(method, images, contrast))
    return Alternatives(
        ranks.cpu(),
        tuple(torch.stack(each, 1) for each in zip(*maps)),
        torch.stack(weights, 1).float().cpu(),
    )
