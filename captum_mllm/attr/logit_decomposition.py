"""The logit decomposition: what every token, and all else, adds to the logit of a word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm._captum import format_tensor_into_tuples
from captum_mllm.attr.arguments import Target, check_one_example, only_query
from captum_mllm.attr.attention_rows import leave_states
from captum_mllm.attr.base import TokenAttribution, TokenMaps, check_inference_mode
from captum_mllm.models.attention_record import has_softmax_attention
from captum_mllm.models.backbone import last_states
from captum_mllm.models.contrasts import alternatives
from captum_mllm.models.direct_path import DirectParts, DirectPath
from captum_mllm.models.encoding import Encoding
from captum_mllm.models.image_tokens import decoder_tokens
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.precision import full_precision
from captum_mllm.models.query import Query, split_arguments, split_target
from captum_mllm.models.states import gather_states
from captum_mllm.models.vocabulary import cap_logits

# The name of what a pass is kept under.
_KEPT = "logit decomposition"


class Decomposition(NamedTuple):
    r"""Logits of N tokens, and what adds up to them, all in logits.

    Args:
        logit (Tensor): the logit of each token, (N,).
        image (tuple[Tensor, ...]): what attention takes from each token of each explained image,
            (N, n) in the order of its :class:`~captum_mllm.models.Layout`.
        text (Tensor): what attention takes from each earlier text token, (N, P + T), for P tokens
            of the prompt and T of the answer.
        template (Tensor): what attention takes from all other tokens, (N,): the chat template,
            separators, and images that are not explained.
        embedding (Tensor): what the token before adds by its embedding, (N,).
        mlp (Tensor): what the layers compute from the state of the token before itself, (N,).
        rest (Tensor): biases, and layers of linear attention or convolutions, whose contributions
            are not split by token, (N,).
    """

    logit: Tensor
    image: tuple[Tensor, ...]
    text: Tensor
    template: Tensor
    embedding: Tensor
    mlp: Tensor
    rest: Tensor

    def total(self) -> Tensor:
        r"""The sum of all parts, (N,), which is the logit except for rounding."""
        tokens = sum(part.sum(1) for part in (*self.image, self.text))
        return tokens + self.template + self.embedding + self.mlp + self.rest


@dataclass(frozen=True)
class _Pass:
    """The direct path of the rows of one pass: their logits and parts."""

    encoding: Encoding
    logits: Tensor
    parts: DirectParts

    def last(self, count: int) -> _Pass:
        """That of the last rows."""
        parts = DirectParts(*(part[-count:] for part in self.parts))
        return replace(self, logits=self.logits[-count:], parts=parts)


class LogitDecomposition(TokenAttribution):
    r"""
    Direct contributions to a word's logit: of every image token, every earlier word, and the rest.

    The state that predicts word t is a sum. Attention adds the values :math:`v_j` of the tokens
    that the row attends to, by its weights :math:`A_{tj}` and the output projection :math:`W_O` of
    each head; MLPs and the row's own embedding add the rest. A word's logit is that state, divided
    by the scale :math:`s_t` of the final norm, times the word's direction :math:`u_t`: its row of
    the output embedding times the norm's gain. So the logit is a sum too, and token j adds to it

    .. math::
        c_{tj} = \frac{1}{s_t} \sum_{l, h} A^{lh}_{tj}\; u_t^\top W_O^{lh} v^{lh}_j

    :meth:`decompose` gives all parts, which sum to the logit. Norms behind attention (Gemma) and
    caps of logits are treated as the final norm is: their scale stays that of the pass. Multipliers
    and gates are parts of the direction.

    A contribution is direct: what an image token tells an earlier word, which the row then reads,
    counts for that word, and what MLPs make of it for ``mlp``. All tokens are explained from one
    pass. It is what "direct logit attribution" is in the study of circuits (Elhage et al.,
    "A Mathematical Framework for Transformer Circuits", 2021).

    Args:
        forward_func (MLLM): the multimodal model.

    Raises:
        TypeError: if ``forward_func`` is not an :class:`~captum_mllm.MLLM`.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import MLLM, ImageTextInput, LogitDecomposition
        >>> from captum_mllm.demo import demo_image
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> method = LogitDecomposition(mllm)
        >>> method.attribute(image, additional_forward_args=(query,)).shape
        torch.Size([3, 1, 14, 14])
        >>> parts = method.decompose(image, additional_forward_args=(query,))
        >>> bool((parts.total() - parts.logit).abs().max() < 1e-4)
        True
    """

    takes_gradients = True
    weighs_text = True

    def leaves_states(self, **kwargs: Any) -> bool:
        return has_softmax_attention(self.forward_func.model)

    def explain_tokens(
        self, images: tuple[Tensor, ...], query: Query, target: Target | None = None
    ) -> TokenMaps:
        r"""Contributions in logits, below 0 where a token speaks against the word, on the grid of
        the image tokens. See :meth:`TokenAttribution.explain_tokens`.

        Raises:
            RuntimeError: under ``torch.inference_mode``, and for a model whose parts do not sum to
                its logits.
        """
        found = self._pass(images, query, target)
        tokens = decoder_tokens(found.encoding, query)
        weights = found.parts.tokens.flatten(1)
        return TokenMaps(
            tuple(
                part.layout.paint(part.gather(weights.T).mT.flatten(0, 1)).unsqueeze(1)
                for part in tokens
            ),
            unit="logits",
        )

    def attribute_text(
        self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: Any = None
    ) -> Tensor:
        r"""Contributions of the earlier tokens, in logits, below 0 where a token speaks against the
        word. See :meth:`TokenAttribution.attribute_text`."""
        text = self.decompose(inputs, additional_forward_args=additional_forward_args).text
        return text.tril(text.shape[1] - len(text) - 1)

    def decompose(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
    ) -> Decomposition:
        r"""
        All that adds up to the logits.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): the image, (1, 3, H, W) in [0, 1], or a tuple of
                images where the query leaves several open.
            target (tuple, optional): ``(t, token_id)``, the one token to explain, or
                ``(t, token_id, instead_of)`` for the difference of two logits. Default: None, every
                explained token of the query
            additional_forward_args (tuple[Query]): the query from ``MLLM.prepare``.

        Returns:
            Decomposition: float32 or wider, of N explained tokens, 1 for a target.

        Raises:
            RuntimeError: under ``torch.inference_mode``, and for a model whose parts do not sum to
                its logits.
            ValueError: for several images in a batch, and an invalid target.
        """
        query = only_query(additional_forward_args)
        images = format_tensor_into_tuples(inputs)
        query, target = self._contrast(images, query, target)
        found = self._pass(images, query, target)
        encoding, parts = found.encoding, found.parts
        weights = parts.tokens.flatten(1)
        image = tuple(
            part.gather(weights.T).mT.flatten(0, 1) for part in decoder_tokens(encoding, query)
        )
        earlier = parts.tokens.sum(1)[:, encoding.earlier_positions.to(weights.device)]
        named = sum(part.sum(1) for part in image) + earlier.sum(1)
        return Decomposition(
            logit=found.logits,
            image=image,
            # The last token of the answer comes before no other.
            text=F.pad(earlier, (0, 1)),
            template=weights.sum(1) - named,
            embedding=parts.embedding,
            mlp=parts.mlp,
            rest=parts.rest,
        )

    def _pass(self, images: tuple[Tensor, ...], query: Query, target: Target | None) -> _Pass:
        """The direct path of the explained tokens; that of all of them is kept where passes are."""
        check_inference_mode(self)
        images, _ = split_arguments((*images, query))
        check_one_example(len(images[0]))
        known = self._recall(images, query) if target is None else None
        return self._new_pass(images, query, target) if known is None else known

    def _recall(self, images: tuple[Tensor, ...], query: Query) -> _Pass | None:
        states = self.forward_func.recall(*images, query)
        if states is None:
            return None
        known: _Pass | None = states.derived.get((_KEPT, query.with_prompt, query.instead_of))
        if known is None and not query.with_prompt:
            # The rows of the answer are the last of those of prompt and answer.
            whole: _Pass | None = states.derived.get((_KEPT, True, query.instead_of))
            known = whole and whole.last(len(query.answer_ids))
        return known

    @torch.no_grad()
    def _new_pass(self, images: tuple[Tensor, ...], query: Query, target: Target | None) -> _Pass:
        mllm: MLLM = self.forward_func
        encoding = mllm.encode(images, query)
        rows = encoding.explained_rows(query)
        ids = mllm.explained_ids(*images, query)
        count = len(rows)
        steps = torch.arange(count, device=rows.device)
        if target is not None:
            steps, ids = split_target(target, 1, count, rows.device, mllm.vocabulary.size)
            steps = steps % count
            rows = rows[steps]
        path = DirectPath(mllm.model, rows)
        with mllm.evaluating(), path.watch():
            hidden = last_states(mllm.model, encoding.inputs)
        with full_precision(), torch.enable_grad():
            states = hidden[:, rows.to(hidden.device)].mean(0)
            scaled, bias = self._directions(ids, states)
            if query.instead_of:
                contrasted, others = alternatives(query, steps, count)
                taken = self._directions(others, states[contrasted])
                scaled = scaled.index_add(0, contrasted, taken[0], alpha=-1)
                bias = bias.index_add(0, contrasted, taken[1], alpha=-1)
            products = (states.to(scaled) * scaled).sum(-1)
            parts = path.parts(products)
        logits = products.detach() + bias
        parts = parts._replace(rest=parts.rest + bias)
        self._check(parts, logits, path.precision)
        found = _Pass(encoding.without_pixels(), logits, parts)
        if mllm.remembers:
            split = hidden.detach().unflatten(0, (-1, encoding.windows))
            leave_states(mllm, gather_states(split, encoding, query), (images, query))
            kept = mllm.recall(*images, query)
            if target is None and kept is not None:
                kept.derived[_KEPT, query.with_prompt, query.instead_of] = found
        return found

    def _directions(self, ids: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
        """The direction and the bias of the logit of each state's token. Of a capped logit each
        part has the share that it has without the cap."""
        vocabulary = self.forward_func.vocabulary
        directions, biases = vocabulary.directions(ids, states)
        raw = (states.detach().to(directions) * directions).sum(-1) + biases
        factor = torch.where(raw == 0, 1.0, cap_logits(raw, vocabulary.cap) / raw)
        return factor[:, None] * directions, factor * biases

    def _check(self, parts: DirectParts, logits: Tensor, precision: float) -> None:
        """Refuse a model whose parts do not sum to its logits, as far as its precision tells."""
        tokens = parts.tokens.flatten(1)
        total = tokens.sum(1) + parts.embedding + parts.mlp + parts.rest
        size = tokens.abs().sum(1) + sum(part.abs() for part in parts[1:])
        if bool(((total - logits).abs() > precision**0.5 * (size + logits.abs())).any()):
            name = type(self.forward_func.model).__name__
            raise RuntimeError(
                f"the parts of a logit of {name} sum to {total.tolist()}, not to the logits "
                f"{logits.tolist()}: something in its layers is neither a norm, attention, nor "
                "added to the residual stream; take AttendedLens, which needs no such sum"
            )
