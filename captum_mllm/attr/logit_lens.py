"""The logit lens: how strongly each image token already says a word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_mllm._captum import format_tensor_into_tuples
from captum_mllm._options import check_flag, is_integer
from captum_mllm.attr.arguments import Target, check_image_tokens, only_query
from captum_mllm.attr.base import TokenAttribution, TokenMaps
from captum_mllm.attr.text_attribution import context_scores, explained_rows
from captum_mllm.models.batches import make_passes
from captum_mllm.models.contrasts import alternatives
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Prompt, Query, split_target
from captum_mllm.models.towers import decoder_layers, pick_layers


class LogitLens(TokenAttribution):
    r"""
    The logit lens on image tokens, for all words of an answer from one forward pass.

    The score of image token i for a word with vocabulary index c is its hidden state after the
    final norm, times the word's row of the output embedding,

    .. math::
        A_i(c) = h_i^\top w_c

    that is, the logit of the word if the model had to go on after that image token. In a causal
    model the states of image tokens do not depend on the text that follows, so one pass serves
    every word. It is the base attribution of TAM (arXiv 2506.23270) and of MSEA and ARC
    (arXiv 2509.22415).

    In contrast to another word c' (see :meth:`captum_mllm.MLLM.contrast`) two levels are
    subtracted, half of each where it is positive: the score of the other word there, and the mean
    :math:`\overline{A}(c)` of the word's own over all image tokens,

    .. math::
        A_i(c) - \tfrac{1}{2} \max(0, A_i(c')) - \tfrac{1}{2} \max(0, \overline{A}(c))

    The whole difference of two scores is large wherever the other word is unlikely, also where
    neither is said.

    Args:
        forward_func (MLLM): the multimodal model.
        layer (int, optional): read the states after this layer of the language model, through
            the final norm; negative ones count from the end. Default: None, the last.
        centered (bool): take the mean logit of the vocabulary off each image token's logits. No
            probability depends on it, so it is free to differ from token to token; behind a
            pretrained language model that hides what tells words apart. Default: False

    Raises:
        TypeError: if ``forward_func`` is not an :class:`~captum_mllm.MLLM`, ``layer`` no index, or
            ``centered`` no truth value.
        ValueError: for a layer that the model does not have.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import MLLM, ImageTextInput, LogitLens
        >>> from captum_mllm.demo import demo_image
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> LogitLens(mllm).attribute(image, additional_forward_args=(query,)).shape
        torch.Size([3, 1, 14, 14])
    """

    weighs_text = True

    def __init__(
        self, forward_func: MLLM, layer: int | None = None, centered: bool = False
    ) -> None:
        super().__init__(forward_func)
        check_image_tokens(forward_func, self.get_name())
        if layer is not None:
            if not is_integer(layer):
                raise TypeError(f"got layer={layer!r}, expected the index of a layer")
            pick_layers(decoder_layers(forward_func.model), [layer], "language model")
        check_flag("centered", centered)
        self.layer, self.centered = layer, centered

    def explain_tokens(
        self, images: tuple[Tensor, ...], query: Query, target: Target | None = None
    ) -> TokenMaps:
        r"""Logits, on the grid of the image tokens. The lens reads the token alone, so the step
        of a target does not matter. See :meth:`TokenAttribution.explain_tokens`."""
        mllm = self.forward_func
        states = mllm.states(*images, query, layer=self.layer)
        ids = states.ids if query.with_prompt else states.ids[states.n_prompt :]
        count = len(ids)
        steps = torch.arange(count, device=ids.device)
        if target is not None:
            steps, ids = split_target(target, 1, count, ids.device, mllm.vocabulary.size)
            steps = steps % count
        scores = [mllm.vocabulary.scores(image[0], ids).mT for image in states.image]
        if self.centered:
            scores = [
                own - mllm.vocabulary.mean_logit(image[0])
                for own, image in zip(scores, states.image)
            ]
        if query.instead_of:
            rows, others = alternatives(query, steps, count)
            own = torch.cat(scores, 1)
            said = torch.cat([mllm.vocabulary.scores(image[0], others) for image in states.image])
            # What the image as a whole says of the word is no evidence of a place.
            overall = own[rows].mean(1, keepdim=True)
            evidence = own[rows] - (said.mT.relu() + overall.relu()) / 2
            own = own.index_copy(0, rows, evidence)
            scores = list(own.split([part.shape[1] for part in scores], dim=1))
        maps = (layout.paint(part).unsqueeze(1) for part, layout in zip(scores, states.layouts))
        return TokenMaps(tuple(maps), in_logits=True, unit="logits")

    def attribute_text(
        self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: Any = None
    ) -> Tensor:
        r"""How strongly the state of each earlier token says the explained one, in logits, at least
        0; in contrast to another word, less what it says of that. It is read off the states of any
        pass, and tells little about which tokens the model uses; attention tells more. See
        :meth:`TokenAttribution.attribute_text`."""
        query = only_query(additional_forward_args)
        mllm = self.forward_func
        states = mllm.states(*format_tensor_into_tuples(inputs), query)
        weights = explained_rows(context_scores(mllm, states), query)
        rows, others = alternatives(
            query, torch.arange(len(weights), device=weights.device), len(weights)
        )
        said = mllm.vocabulary.scores(states.context[0], others).mT
        return weights.index_copy(
            0, rows, torch.minimum(weights[rows], weights[rows] - said).relu()
        )

    def prefetch(self, prompts: Sequence[Prompt], **kwargs: Any) -> None:
        make_passes(self.forward_func.backbone, prompts, self.layer)

    def why_not_streamed(self, **kwargs: Any) -> str | None:
        if self.layer is None:
            return None
        return (
            f"got LogitLens(layer={self.layer}), but while a model answers only the states of its "
            "last layer are read; leave out the layer, or explain the answer with attribute()"
        )
