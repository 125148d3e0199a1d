"""The logit lens where the word attends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from captum_mllm._options import check_number
from captum_mllm.attr.arguments import Target, check_image_tokens
from captum_mllm.attr.attention_maps import TEXT_RESIDUAL, AttentionMaps
from captum_mllm.attr.base import TokenAttribution, TokenMaps
from captum_mllm.attr.logit_lens import LogitLens
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Prompt, Query


class AttendedLens(TokenAttribution):
    r"""
    The logit lens, weighed by the attention of the word.

    The lens says where in the image a word could be read. It knows the word alone, so of two
    stars it marks both. Attention says where the model looked when it said the word, and marks
    what else stands out there. With :math:`A_t` the lens's map of word t, and :math:`a_t` the
    attention of the row that predicts the word, the mean of all heads and layers, times the
    number of image tokens (see ``relative`` of :class:`AttentionMaps`),

    .. math::
        M_t = \mathrm{relu}(A_t)\, a_t^{\,\gamma}

    Both are read from one forward pass. Captum's ``GuidedGradCam`` is a product of two methods in
    the same way.

    Args:
        forward_func (MLLM): the multimodal model.
        power (float): :math:`\gamma`, at least 0; 0 is the positive part of the lens.
            Default: 0.75, which of 0.5, 0.75 and 1 has the best mean F1-IoU over the bundled
            models, on scenes of ``captum_mllm.datasets`` that are set aside for such choices
        text_residual (float): as in :class:`AttentionMaps`, for the weights of the earlier
            tokens. Default: 0.3, with which they come nearest to leave-one-out of earlier tokens on
            the same scenes, also behind a pretrained language model
        layers (Sequence[int], optional): the layers whose attention counts; negative ones count
            from the last. Default: None, all
        centered (bool): as in :class:`LogitLens`. Default: False

    Raises:
        TypeError: if ``forward_func`` is not an :class:`~captum_mllm.MLLM`, or the power no number.
        ValueError: for a power that is negative or not finite, or a layer that the model does not
            have.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import AttendedLens, MLLM, ImageTextInput
        >>> from captum_mllm.demo import demo_image
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> AttendedLens(mllm).attribute(image, additional_forward_args=(query,)).shape
        torch.Size([3, 1, 14, 14])
    """

    weighs_text = True

    def __init__(
        self,
        forward_func: MLLM,
        power: float = 0.75,
        layers: Sequence[int] | None = None,
        text_residual: float = TEXT_RESIDUAL,
        centered: bool = False,
    ) -> None:
        super().__init__(forward_func)
        check_image_tokens(forward_func, self.get_name())
        self.lens: TokenAttribution = LogitLens(forward_func, centered=centered)
        self.attention = AttentionMaps(
            forward_func, mode="raw", layers=layers, relative=True, text_residual=text_residual
        )
        check_number("power", power, "[0, inf)")
        self.power = power
        self.layers = layers
        self.text_residual = text_residual

    def leaves_states(self, **kwargs: Any) -> bool:
        return self.attention.leaves_states()

    def explain_tokens(
        self, images: tuple[Tensor, ...], query: Query, target: Target | None = None
    ) -> TokenMaps:
        r"""Maps at least 0, on the grid of the image tokens. A target ``(t, token_id)`` takes the
        lens of that token, and the attention at step t. See
        :meth:`TokenAttribution.explain_tokens`."""
        with self.forward_func.remember():
            # Attention first: its pass leaves the states that the lens reads.
            looked = replace(query, instead_of=())
            attended = self.attention.explain_tokens(images, looked, target).maps
            read = self.lens.explain_tokens(images, query, target).maps
        return TokenMaps(
            tuple(
                says.relu() * looks.to(says.device) ** self.power
                for says, looks in zip(read, attended)
            )
        )

    def attribute_text(
        self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: Any = None
    ) -> Tensor:
        return self.attention.attribute_text(inputs, additional_forward_args)

    def prefetch(self, prompts: Sequence[Prompt], **kwargs: Any) -> None:
        self.attention.prefetch(prompts)
        self.lens.prefetch(prompts)
