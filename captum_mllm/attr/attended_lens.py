"""The logit lens where the word attends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from captum_mllm._captum import format_output, format_tensor_into_tuples
from captum_mllm.attr.attention_rollout import AttentionRollout
from captum_mllm.attr.logit_lens import LogitLens
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Prompt


class AttendedLens(Attribution):
    r"""
    The logit lens, weighed by the attention of the word.

    The lens says where in the picture a word could be read. It knows the word alone, so of two
    stars it marks both. Attention says where the model looked when it said the word, and marks
    what else stands out there. With :math:`A_t` the lens's map of word t, and :math:`a_t` the
    attention of the row that predicts the word, the mean of all heads and layers, times the
    number of image tokens (see ``relative`` of :class:`AttentionRollout`),

    .. math::
        M_t = \mathrm{relu}(A_t)\, a_t^{\,\gamma}

    Both are read from one forward pass. Captum's ``GuidedGradCam`` is a product of two methods in
    the same way.

    Args:
        forward_func (MLLM): the multimodal model.
        power (float): :math:`\gamma`, at least 0; 0 is the positive part of the lens.
            Default: 0.75, which of 0.5, 0.75 and 1 has the best mean F1-IoU over the bundled
            models, on scenes of ``captum_mllm.datasets`` that are set aside for such choices
        layers (Sequence[int], optional): the layers whose attention counts; negative ones count
            from the last. Default: None, all

    Raises:
        TypeError: if ``forward_func`` is not an :class:`~captum_mllm.MLLM`, or the power no number.
        ValueError: for a power that is negative or not finite, or a layer that the model does not
            have.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import AttendedLens, MLLM, ImageTextInput
        >>> from captum_mllm.demo import demo_picture
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_picture()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> AttendedLens(mllm).attribute(image, additional_forward_args=(query,)).shape
        torch.Size([3, 1, 14, 14])
    """

    explains_every_token = True

    def __init__(
        self, forward_func: MLLM, power: float = 0.75, layers: Sequence[int] | None = None
    ) -> None:
        self.lens = LogitLens(forward_func)
        self.attention = AttentionRollout(forward_func, mode="raw", layers=layers, relative=True)
        super().__init__(forward_func)
        if isinstance(power, bool) or not isinstance(power, (int, float)):
            raise TypeError(f"got power={power!r}, expected a number")
        if not 0 <= power < math.inf:
            raise ValueError(f"power={power}, expected a finite number of at least 0")
        self.power = power
        self.layers = layers

    @property
    def multiplies_by_inputs(self) -> bool:
        return False

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): the picture, (B, 3, H, W) in [0, 1], or a tuple
                of pictures where the query leaves several open.
            target (tuple or list[tuple], optional): ``(t, token_id)``, for all B pictures or for
                each of them: the lens of that token, and the attention at step t of the answer.
                Default: None, every explained token of the query, for one picture.
            additional_forward_args (tuple[Query]): the query from ``MLLM.prepare``.

        Returns:
            Tensor or tuple[Tensor, ...]: at least 0, of shape (T, 1, h, w) for every token or
            (B, 1, h, w) for a target, on the grid of the image tokens. Float32 at least.

        Raises:
            ValueError: for a picture far outside of [0, 1], several pictures without a target, or a
                target that is none.
            RuntimeError: if a layer has no attention weights.
        """
        arguments = (inputs, target, additional_forward_args)
        with self.forward_func.remember():
            # Attention first, whose pass the lens then finds.
            attended = format_tensor_into_tuples(self.attention.attribute(*arguments))
            read = format_tensor_into_tuples(self.lens.attribute(*arguments))
        maps = tuple(
            says.relu() * looks.to(says.device) ** self.power for says, looks in zip(read, attended)
        )
        return format_output(isinstance(inputs, tuple), maps)

    def make_passes(self, prompts: Sequence[Prompt]) -> None:
        r"""Within ``MLLM.remember``, make the passes of some prompts as one batch, where
        :meth:`attribute` finds them."""
        self.attention.make_passes(prompts)
        self.lens.make_passes(prompts)

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for AttendedLens")
