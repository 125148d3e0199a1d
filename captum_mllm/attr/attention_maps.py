"""Attention weights, attention rollout and gradient-weighted rollout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from captum_mllm._captum import format_tensor_into_tuples
from captum_mllm._options import check_choice, check_flag, check_number
from captum_mllm.attr.arguments import Target, check_one_example, only_query, target_logits
from captum_mllm.attr.attention_rows import (
    AttentionRows,
    RawAttention,
    leave_states,
    predicting_rows,
    share_with_patches,
)
from captum_mllm.attr.base import TokenAttribution, TokenMaps, check_inference_mode
from captum_mllm.attr.features import to_earlier
from captum_mllm.models.attention_record import has_softmax_attention, record_attention
from captum_mllm.models.attentions import Attention
from captum_mllm.models.backbone import last_states
from captum_mllm.models.image_tokens import decoder_tokens, vision_tokens
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Prompt, Query, split_arguments
from captum_mllm.models.states import gather_states
from captum_mllm.models.towers import (
    Tower,
    attention_layers,
    cross_layers,
    decoder_layers,
    pick_layers,
    vision_layers,
)

#: What the token directly before gets beside its attention where attention weighs text.
TEXT_RESIDUAL = 0.3
Mode = Literal["raw", "rollout", "gradient"]
HeadFusion = Literal["mean", "max", "min"]
# The calls of a layer, and for each the gradient with respect to what its heads return.
Layer = tuple[Sequence[Attention], Sequence[Tensor | None]]


class AttentionMaps(TokenAttribution):
    r"""
    Attention of each word of an answer to the tokens of the image: raw, rolled out through the
    layers, or weighted by gradients.

    With :math:`A_l` the attention of layer l, its heads fused, and :math:`e_t` the row that
    predicts word t,

    - ``"raw"`` is the mean over the layers of :math:`e_t^\top A_l`;
    - ``"rollout"`` follows what a token passes on from layer to layer, with :math:`\rho` for the
      share of the residual connection,

      .. math::
          e_t^\top \prod_{l=L}^{1} \big(\rho I + (1 - \rho) A_l\big)

      (Abnar & Zuidema, ACL 2020, arXiv 2005.00928, Eq. 1);
    - ``"gradient"`` is the same with the attention of each head times its positive gradient,
      :math:`A_l = \mathrm{mean}_h\, \mathrm{relu}(\nabla A_{lh}) A_{lh}`, for the word's logit. At
      :math:`\rho = 1/2` it is the relevance of Chefer et al., up to a factor of :math:`2^{-L}`
      (ICCV 2021, arXiv 2103.15679, Eq. 5 and 6).

    With ``tower="vision"`` the row does not end at the image tokens: what the decoder gives each of
    them is shared by its patches, and goes the same way through the attention of the vision tower.

    A row is multiplied through the layers from the last to the first, with attention computed in
    chunks from queries and keys, so that memory grows linearly with the length of the sequence. The
    raw attention of the decoder is added up while the layers run, so that it takes hardly any.
    The model may be loaded with any attention implementation, which is put back.

    Where the decoder looks at images by cross-attention (Llama 3.2 Vision), maps are the raw
    attention of the layers that do, and text weights that of the others.

    Args:
        forward_func (MLLM): the multimodal model.
        mode (str): "raw", "rollout" or "gradient". Default: "rollout"
        layers (Sequence[int], optional): the layers of the tower that count; negative ones count
            from the last. Default: None, all, in mode "raw" those that have attention; of a vision
            tower all that the language model sees.
        head_fusion (str): "mean", "max" or "min" over the heads. Rows fused by the largest or
            smallest weight are scaled to a sum of 1, but not in mode "gradient". Default: "mean"
        residual (float): share of the residual connection, from 0 to 1; not used by mode "raw".
            Default: 0.5
        tower (str): where the row ends: at the image tokens of the "decoder", or at the patches of
            the "vision" tower. Default: "decoder"
        relative (bool): give weights times the number of image tokens in a row, or of patches
            where it ends there: 1 is what each would get from a row that looks at images alone,
            and evenly. So maps at different scales compare, as MSEA wants it. Default: False
        text_residual (float): in mode "raw", what the text weights of a token get at the place from
            which it was predicted, that is the token directly before, beside its attention: the
            residual connection passes that token on without any attention. Default: 0.0

    Raises:
        TypeError: if ``forward_func`` is not an :class:`~captum_mllm.MLLM`.
        ValueError: for an option that is not named above, or a layer that the tower does not have.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import MLLM, ImageTextInput
        >>> from captum_mllm.attr.attention_maps import AttentionMaps
        >>> from captum_mllm.demo import demo_image
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> AttentionMaps(mllm).attribute(image, additional_forward_args=(query,)).shape
        torch.Size([3, 1, 14, 14])
    """

    weighs_text = True

    def __init__(
        self,
        forward_func: MLLM,
        mode: Mode = "rollout",
        layers: Sequence[int] | None = None,
        head_fusion: HeadFusion = "mean",
        residual: float = 0.5,
        tower: Tower = "decoder",
        relative: bool = False,
        text_residual: float = 0.0,
    ) -> None:
        super().__init__(forward_func)
        check_choice("mode", mode, ("raw", "rollout", "gradient"))
        check_choice("head_fusion", head_fusion, ("mean", "max", "min"))
        check_choice("tower", tower, ("decoder", "vision"))
        check_number("residual", residual, "[0, 1]")
        check_number("text_residual", text_residual, "[0, inf)")
        check_flag("relative", relative)
        self.mode = mode
        self.layers = layers
        self.head_fusion = head_fusion
        self.residual = residual
        self.tower = tower
        self.relative = relative
        self.text_residual = text_residual
        self.decoder_layers = decoder_layers(forward_func.model)
        attentive = attention_layers(forward_func.model)
        self.cross_layers = cross_layers(forward_func.model)
        if self.cross_layers:
            self._check_crossing(layers)
            layers = None
        if layers is None and mode == "raw":
            self.decoder_layers = attentive
        elif layers is None and len(attentive) < len(self.decoder_layers):
            raise ValueError(
                f"mode={mode!r} goes through the attention of every layer, but "
                f"{len(self.decoder_layers) - len(attentive)} of {len(self.decoder_layers)} layers "
                "of this model have none (linear attention or convolutions); use mode='raw', which "
                "takes the layers that have it, or name layers"
            )
        self.vision_layers: list[nn.Module] = []
        if tower == "vision":
            self.vision_layers = vision_layers(forward_func.model)
        if layers is not None and tower == "vision":
            self.vision_layers = pick_layers(self.vision_layers, layers, "vision tower")
        elif layers is not None:
            self.decoder_layers = pick_layers(self.decoder_layers, layers, "language model")

    @property
    def takes_gradients(self) -> bool:
        return self.mode == "gradient"

    def leaves_states(self, **kwargs: Any) -> bool:
        return not self.takes_gradients and has_softmax_attention(self.forward_func.model)

    def explain_tokens(
        self, images: tuple[Tensor, ...], query: Query, target: Target | None = None
    ) -> TokenMaps:
        r"""Weights at least 0, on the grid of the tower's tokens. Only mode "gradient" depends on
        the token of a target ``(t, token_id)``. See :meth:`TokenAttribution.explain_tokens`.

        Raises:
            RuntimeError: if a layer has no attention weights, or in mode "gradient" under
                ``torch.inference_mode``.
            ValueError: for a contrast of words, except in mode "gradient".
        """
        if query.instead_of and not self.takes_gradients:
            raise ValueError(
                f"mode={self.mode!r} does not depend on the word, so it cannot say why one word "
                "and not another; take mode='gradient', AttendedLens or LogitDecomposition"
            )
        with torch.no_grad():
            rows = self._rows(images, query, target, self.vision_layers, self._raw)
            encoding = rows.encoding
            maps = []
            for part, index in zip(rows.tokens, query.explained, strict=True):
                shares = part.gather(rows.weights.T).mT.flatten(0, 1)
                if self.relative:
                    finer = shares.shape[-1] / encoding.layouts[index].n_tokens
                    shares = shares * finer * sum(map(len, encoding.image_positions))
                maps.append(part.layout.paint(shares).unsqueeze(1))
        return TokenMaps(tuple(maps), unit="attention")

    @torch.no_grad()
    def attribute_text(
        self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: Any = None
    ) -> Tensor:
        r"""
        Weight of each earlier word for each explained token, in the decoder.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): the image, (1, 3, H, W) in [0, 1], or a tuple
                of images where the query leaves several open.
            additional_forward_args (tuple[Query]): the query from ``MLLM.prepare``.

        Returns:
            Tensor: of shape (T, P + T) for P text tokens of the prompt and T tokens of the answer,
            at least 0, and 0 for a token itself and those after it.
        """
        query = only_query(additional_forward_args)
        images = format_tensor_into_tuples(inputs)
        rows = self._rows(images, query, None, [], self._raw_of_text)
        weights = rows.weights
        if self.mode == "raw" and self.text_residual:
            weights = weights + self.text_residual * predicting_rows(rows.encoding, query, None)
        text = weights.unflatten(1, (rows.encoding.windows, -1)).mean(1)
        earlier = text[:, rows.encoding.earlier_positions.to(text.device)]
        return to_earlier(earlier, earlier.shape[1] + 1)

    def rows(self, images: tuple[Tensor, ...], query: Query) -> AttentionRows:
        r"""What the rows that predict each explained token attend to in the decoder, with the
        positions of all inputs."""
        return self._rows(images, query, None, [], self._raw_of_text)

    def prefetch(self, prompts: Sequence[Prompt], **kwargs: Any) -> None:
        r"""Share the passes of raw attention in the decoder, in a model whose attention is known.
        Other modes keep the layers of each pass, and take the prompts in turn."""
        known = has_softmax_attention(self.forward_func.model)
        if known and self.mode == "raw" and self.tower == "decoder":
            self._raw.make_passes(prompts)

    @property
    def _raw(self) -> RawAttention:
        """The attention to images."""
        if not self.cross_layers:
            return self._raw_of_text
        return RawAttention(
            self.forward_func, self.cross_layers, self._fuse, self.head_fusion, crosses=True
        )

    @property
    def _raw_of_text(self) -> RawAttention:
        return RawAttention(self.forward_func, self.decoder_layers, self._fuse, self.head_fusion)

    def _check_crossing(self, layers: Sequence[int] | None) -> None:
        """Refuse what is not defined by cross-attention alone, and pick the layers."""
        every = self.decoder_layers
        kind = self.forward_func.model.config.model_type
        if self.mode != "raw" or self.tower == "vision":
            raise ValueError(
                f"mode={self.mode!r} with tower={self.tower!r} follows weights through layers that "
                f"attend to image tokens, but the decoder of a {kind!r} looks at images by "
                "cross-attention alone; use mode='raw' and tower='decoder'"
            )
        if layers is None:
            return
        picked = pick_layers(every, layers, "language model")
        if not all(layer in self.cross_layers for layer in picked):
            known = [every.index(layer) for layer in self.cross_layers]
            raise ValueError(
                f"layers={list(layers)}, expected some of {known}, the layers of a {kind!r} that "
                "look at the image by cross-attention"
            )
        self.cross_layers = picked

    def _rows(
        self,
        images: tuple[Tensor, ...],
        query: Query,
        target: Any,
        vision: Sequence[nn.Module],
        raw: RawAttention,
    ) -> AttentionRows:
        """What the rows that predict attend to."""
        check_inference_mode(self)
        images, _ = split_arguments((*images, query))
        if target is None:
            check_one_example(len(images[0]))
        if self.mode == "raw" and not vision:
            return raw.of_prompt((images, query), target)
        return self._roll_out(images, query, target, vision)

    def _roll_out(
        self,
        images: tuple[Tensor, ...],
        query: Query,
        target: Any,
        vision: Sequence[nn.Module],
    ) -> AttentionRows:
        """Rows followed through the layers, which are kept for the time of the pass."""
        mllm: MLLM = self.forward_func
        by_gradient = self.mode == "gradient"
        layers = [*self.decoder_layers, *vision]
        logits: Sequence[Tensor | None] = [None]
        with mllm.evaluating():
            encoding = mllm.encode(images, query)
            dtype = torch.promote_types(mllm.dtype, torch.float32)
            start = predicting_rows(encoding, query, target).to(dtype)
            with record_attention(mllm.model, layers, by_gradient) as record:
                if by_gradient:
                    explained = mllm.explained_logits(encoding, query)
                    logits = list(target_logits(explained, target, encoding, query))
                else:
                    found = last_states(mllm.model, encoding.inputs)
        if mllm.remembers and not by_gradient:
            hidden = found.unflatten(0, (-1, encoding.windows))
            leave_states(mllm, gather_states(hidden, encoding, query), (images, query))
        tokens = ends = decoder_tokens(encoding, query)
        n_patches = sum(call.n_states for call in record.calls[-1])
        if vision:
            ends = vision_tokens(encoding, query, mllm.model.config, n_patches)
        rolled = []
        # Rows that no gradient tells apart go together.
        for rows, logit in zip(start.split(1) if by_gradient else [start], logits):
            passed = list(zip(record.calls, record.gradients(logit)))
            weights = self._roll(rows, passed[: len(self.decoder_layers)])
            if vision:
                weights = share_with_patches(weights, tokens, ends, n_patches)
                weights = self._roll(weights, passed[len(self.decoder_layers) :])
            rolled.append(weights)
        return AttentionRows(encoding, torch.cat(rolled), ends)

    def _roll(self, weights: Tensor, layers: Sequence[Layer]) -> Tensor:
        """From weights (R, states) above the layers to those below."""
        if self.mode == "raw":
            return torch.stack([self._pass_down(weights, *layer) for layer in layers]).mean(0)
        for layer in reversed(layers):
            attended = self._pass_down(weights, *layer)
            weights = self.residual * weights + (1 - self.residual) * attended
        return weights

    def _pass_down(
        self, weights: Tensor, calls: Sequence[Attention], gradients: Sequence[Tensor | None]
    ) -> Tensor:
        """Through one layer, whose calls take the states in turn."""
        parts = weights.split([call.n_states for call in calls], dim=1)
        passed = [
            call.pass_down(part.unflatten(1, (len(call.query), -1)), self._fuse, gradient)
            for part, call, gradient in zip(parts, calls, gradients)
        ]
        return torch.cat([part.flatten(1) for part in passed], dim=1)

    def _fuse(self, attention: Tensor) -> Tensor:
        """From (b, H, m, n) to (b, m, n)."""
        if self.head_fusion == "mean":
            return attention.mean(1)
        fused = attention.amax(1) if self.head_fusion == "max" else attention.amin(1)
        if self.mode == "gradient":
            return fused
        total = fused.sum(-1, keepdim=True)
        return fused / torch.where(total > 0, total, 1.0)
