"""Grad-CAM on the tokens of an image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from captum.attr import LayerAttribution
from torch import Tensor, nn

from captum_mllm._options import check_choice, is_integer
from captum_mllm.attr.arguments import Target, check_image_tokens, multimodal_model, target_logits
from captum_mllm.attr.base import TokenAttribution, TokenMaps, check_inference_mode
from captum_mllm.models.encoding import Encoding
from captum_mllm.models.hooks import hook
from captum_mllm.models.image_tokens import ImageTokens, decoder_tokens, vision_tokens
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query
from captum_mllm.models.towers import (
    Tower,
    decoder_layers,
    is_decoder_module,
    pick_layers,
    vision_layers,
)

Variant = Literal["hires_cam", "grad_cam", "grad_cam++"]
# Products that cancel leave less than this share of themselves, by rounding and the epsilon of a
# norm; products that do not cancel leave at least some thousandths.
LEAST_REST = 1e-4


class TokenCam(TokenAttribution, LayerAttribution):
    r"""
    HiResCAM, Grad-CAM and Grad-CAM++ on the tokens of an image, in the vision tower or in the
    decoder.

    With :math:`A_i` the state of token i behind the layer and :math:`G_i` the gradient of the
    target's logit with respect to it, HiResCAM (Draelos & Carin, 2020, arXiv 2011.08891, Eq. 5)
    is what each token itself adds to the logit, to first order,

    .. math::
        L_i = \mathrm{relu}\Big(\sum_k G_{ik} A_{ik}\Big).

    Grad-CAM (Selvaraju et al., ICCV 2017, arXiv 1610.02391, Eq. 1 and 2) lets each channel k weigh
    as much as its mean gradient,

    .. math::
        L_i = \mathrm{relu}\Big(\sum_k w_k A_{ik}\Big), \qquad w_k = \frac{1}{N} \sum_i G_{ik},

    as if a channel meant the same everywhere. Behind a convolution it nearly does, behind attention
    it does not. Grad-CAM++ (Chattopadhay et al., WACV 2018, arXiv 1710.11063, Eq. 10 and 19) takes

    .. math::
        w_k = \sum_i \alpha_{ik}\, \mathrm{relu}(G_{ik}), \qquad
        \alpha_{ik} = \frac{G_{ik}^2}{2 G_{ik}^2 + G_{ik}^3 \sum_j \mathrm{relu}(A_{jk})}

    which presumes maps behind a relu. The states of a transformer are signed, so the sum runs
    over their positive parts, as it would there; it keeps every :math:`\alpha` in (0, 1/2].

    Captum's :class:`~captum.attr.LayerGradCam` takes dimension 1 for channels and all others for
    space, so on tokens (B, N, d) it returns one value for each channel. Here tokens are put where
    they lie in the image: merge blocks and attention windows are undone, class tokens left out,
    and tiles and windows laid over each other.

    Args:
        forward_func (MLLM): the multimodal model.
        layer (int or nn.Module, optional): the index of a layer of the tower, negative ones from
            the last, of the vision tower the last that the language model sees; or a module of
            either tower. Default: None, the middle layer
        variant (str): "hires_cam", "grad_cam" or "grad_cam++". Default: "hires_cam", which the
            documentation compares with the others, under "Which layer for Grad-CAM?".
        tower (str): where the index of a layer counts: "vision" or "decoder". In the decoder, the
            gradient at image tokens is what the layers above still read from them, little near
            the top. Default: "vision"

    Raises:
        TypeError: if ``forward_func`` is not an :class:`~captum_mllm.MLLM`, or ``layer`` is of
            another type.
        ValueError: for a layer that the model does not have or an unknown ``variant``; and for the
            last layer of the language model, behind which no token reads the image tokens any
            more, so that their gradient is exactly zero.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import MLLM, ImageTextInput
        >>> from captum_mllm.attr.token_cam import TokenCam
        >>> from captum_mllm.demo import demo_image
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> TokenCam(mllm).attribute(image, additional_forward_args=(query,)).shape
        torch.Size([3, 1, 14, 14])
        >>> TokenCam(mllm, layer=0, variant="grad_cam", tower="decoder").attribute(
        ...     image, target=(2, query.answer_ids[2]), additional_forward_args=(query,)
        ... ).shape
        torch.Size([1, 1, 14, 14])
    """

    takes_gradients = True

    def __init__(
        self,
        forward_func: MLLM,
        layer: int | nn.Module | None = None,
        variant: Variant = "hires_cam",
        tower: Tower = "vision",
    ) -> None:
        mllm = multimodal_model(forward_func)
        check_image_tokens(mllm, self.get_name())
        check_choice("variant", variant, get_args(Variant))
        LayerAttribution.__init__(self, mllm, _find_layer(mllm, layer, tower))
        self.variant = variant

    def explain_tokens(
        self, images: tuple[Tensor, ...], query: Query, target: Target | None = None
    ) -> TokenMaps:
        r"""Maps at least 0, on the grid of the layer's tokens, from one forward pass. See
        :meth:`TokenAttribution.explain_tokens`.

        Raises:
            RuntimeError: under ``torch.inference_mode``.
            ValueError: for a layer whose states are not those of the image's tokens, or one from
                which nothing leads to the answer; for HiResCAM, a layer whose states are
                normalised before anything reads them, such as the last of many vision towers.
        """
        check_inference_mode(self)
        mllm: MLLM = self.forward_func
        with torch.no_grad(), mllm.evaluating(), _differentiable_from(self.layer) as seen:
            encoding = mllm.encode(images, query)
            logits = mllm.explained_logits(encoding, query)
            states = _states(seen, self.layer)
            tokens = self._tokens(encoding, query, states)
            activations = [_wide(part.gather(states.detach())) for part in tokens]
            maps: list[list[Tensor]] = [[] for _ in tokens]
            # The largest value of a token, and of its channels together if none cancelled.
            values, sizes = [], []
            for logit in target_logits(logits, target, encoding, query):
                gradients = self._gradients(logit, states, tokens)
                if not any(gradient.any() for gradient in gradients):
                    # Words before the image owe it nothing, but the last of the answer does.
                    self._check_influence(logits[:, -1].sum(), states, tokens)
                for found, activation, gradient in zip(maps, activations, gradients):
                    products = activation * self._weights(activation, gradient)
                    found.append(products.sum(-1).relu())
                    values.append(products.sum(-1).abs().amax())
                    sizes.append(products.abs().sum(-1).amax())
            if self.variant == "hires_cam":
                self._check_scale(torch.stack(values).amax(), torch.stack(sizes).amax())
        painted = (part.layout.paint(torch.cat(found)) for part, found in zip(tokens, maps))
        return TokenMaps(tuple(each.detach().unsqueeze(1) for each in painted))

    def _tokens(self, encoding: Encoding, query: Query, states: Tensor) -> tuple[ImageTokens, ...]:
        model, n_states = self.forward_func.model, states[..., 0].numel()
        if is_decoder_module(model, self.layer):
            return decoder_tokens(encoding, query, n_states)
        return vision_tokens(encoding, query, model.config, n_states)

    def _weights(self, activation: Tensor, gradient: Tensor) -> Tensor:
        """The weight of each channel, (B, N, d) or (B, 1, d), from states and their gradient."""
        if self.variant == "hires_cam":
            return gradient
        if self.variant == "grad_cam":
            return gradient.mean(1, keepdim=True)
        total = activation.relu().sum(1, keepdim=True)
        positive = gradient.relu()
        # The square cancels, and where the gradient is not positive its weight does not count.
        return (positive / (2 + positive * total)).sum(1, keepdim=True)

    @staticmethod
    def _gradients(logit: Tensor, states: Tensor, tokens: tuple[ImageTokens, ...]) -> list[Tensor]:
        """The gradient of a logit at the tokens of each image, (B, N, d)."""
        if not logit.requires_grad:
            return [_wide(torch.zeros_like(part.gather(states))) for part in tokens]
        (gradient,) = torch.autograd.grad(logit, states, retain_graph=True, materialize_grads=True)
        return [_wide(part.gather(gradient)) for part in tokens]

    def _check_influence(
        self, logit: Tensor, states: Tensor, tokens: tuple[ImageTokens, ...]
    ) -> None:
        if not any(gradient.any() for gradient in self._gradients(logit, states, tokens)):
            raise ValueError(
                "the gradient of the answer is exactly zero at the image tokens that come out of "
                f"this {type(self.layer).__name__}: nothing behind it reads them; give an earlier "
                "layer"
            )

    def _check_scale(self, value: Tensor, size: Tensor) -> None:
        """Where states are read through a norm alone, their size does not matter, so that their
        gradient is at right angles to them, and the products of all channels cancel."""
        rounding = max(LEAST_REST, torch.finfo(self.forward_func.dtype).eps / 4)
        if value <= rounding * size and size > 0:
            raise ValueError(
                f"the states that come out of this {type(self.layer).__name__} are normalised "
                "before anything reads them, so that the products of gradient and state cancel and "
                "HiResCAM is only rounding; give an earlier layer, or another variant"
            )


def _find_layer(mllm: MLLM, layer: int | nn.Module | None, tower: Tower) -> nn.Module:
    if isinstance(layer, nn.Module):
        return layer
    check_choice("tower", tower, get_args(Tower))
    name = {"decoder": "language model", "vision": "vision tower"}[tower]
    layers = (decoder_layers if tower == "decoder" else vision_layers)(mllm.model)
    layer = (len(layers) - 1) // 2 if layer is None else layer
    if not is_integer(layer):
        raise TypeError(
            f"got a layer of type {type(layer).__name__}, expected the index of a layer of the "
            f"{name}, or a module; tower='decoder' or 'vision' says where the index counts"
        )
    (found,) = pick_layers(layers, [layer], name)
    if tower == "decoder" and found is layers[-1]:
        raise ValueError(
            f"layer={layer} is the last of the language model: behind it each token goes to its "
            "own prediction alone, so the gradient at the image tokens is exactly zero; give an "
            f"earlier one, up to {len(layers) - 2}, or one of the vision tower by tower='vision'"
        )
    return found


@contextmanager
def _differentiable_from(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The outputs of a layer, as leaves of a graph that begins behind them."""
    seen: list[Tensor] = []

    def cut(module: nn.Module, given: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if not isinstance(states, Tensor) or states.ndim < 2:
            raise ValueError(
                f"the layer, a {type(module).__name__}, returns a {type(states).__name__}, "
                "expected the states of tokens; give a layer of a tower, not the tower"
            )
        # The graph starts here: layers below are not differentiated and cost no memory.
        torch.set_grad_enabled(True)
        states = states.detach().requires_grad_()
        seen.append(states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    # First of all hooks, so that those that collect hidden states collect these.
    with hook(layer, cut, first=True), torch.set_grad_enabled(torch.is_grad_enabled()):
        yield seen


def _states(seen: list[Tensor], layer: nn.Module) -> Tensor:
    if len(seen) != 1:
        raise ValueError(
            f"the layer, a {type(layer).__name__}, runs {len(seen)} times in a pass, expected "
            "once; is it part of this model?"
        )
    return seen[0]


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
