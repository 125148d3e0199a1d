"""The logit lens: how strongly each image token already says a word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from captum_mllm._captum import format_output, format_tensor_into_tuples
from captum_mllm.attr.forward_function import multimodal_model, only_query
from captum_mllm.attr.target_logits import check_one_picture
from captum_mllm.models.batches import make_passes
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Prompt
from captum_mllm.models.targets import split_target
from captum_mllm.models.towers import decoder_layers, pick_layers


class LogitLens(Attribution):
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

    Args:
        forward_func (MLLM): the multimodal model.
        layer (int, optional): read the states after this layer of the language model, through
            the final norm; negative ones count from the end. Default: None, the last.

    Raises:
        TypeError: if ``forward_func`` is not an :class:`~captum_mllm.MLLM`, or ``layer`` no index.
        ValueError: for a layer that the model does not have.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import MLLM, ImageTextInput, LogitLens
        >>> from captum_mllm.demo import demo_picture
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_picture()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> LogitLens(mllm).attribute(image, additional_forward_args=(query,)).shape
        torch.Size([3, 1, 14, 14])
    """

    explains_every_token = True
    in_logit_units = True

    def __init__(self, forward_func: MLLM, layer: int | None = None) -> None:
        super().__init__(multimodal_model(forward_func))
        if layer is not None:
            if isinstance(layer, bool) or not isinstance(layer, int):
                raise TypeError(f"got layer={layer!r}, expected the index of a layer")
            pick_layers(decoder_layers(forward_func.model), [layer], "language model")
        self.layer = layer

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
                each of them. The lens reads the word alone, so t does not matter.
                Default: None, every explained token of the query, for one picture.
            additional_forward_args (tuple[Query]): the query from ``MLLM.prepare``.

        Returns:
            Tensor or tuple[Tensor, ...]: logits, of shape (T, 1, h, w) for every token or
            (B, 1, h, w) for a target, on the grid of the image tokens. Float32.

        Raises:
            ValueError: for a picture far outside of [0, 1], several pictures without a target, or a
                target that is none.
        """
        is_tuple = isinstance(inputs, tuple)
        pictures = format_tensor_into_tuples(inputs)
        query = only_query(additional_forward_args)
        mllm = self.forward_func
        states = mllm.states(*pictures, query, layer=self.layer)
        ids = states.ids if query.with_prompt else states.ids[states.n_words :]
        maps = []
        for image, layout in zip(states.image, states.layouts):
            if target is None:
                check_one_picture(len(image))
                scores = mllm.vocabulary.scores(image[0], ids).mT
            else:
                _, tokens = split_target(
                    target, len(image), len(ids), image.device, mllm.vocabulary.size
                )
                each = mllm.vocabulary.scores(image, tokens)
                scores = each.diagonal(dim1=0, dim2=2).mT
            maps.append(layout.paint(scores).unsqueeze(1))
        return format_output(is_tuple, tuple(maps))

    def make_passes(self, prompts: Sequence[Prompt]) -> None:
        r"""Within ``MLLM.remember``, make the passes of some prompts as one batch, where
        :meth:`attribute` finds them."""
        make_passes(self.forward_func.backbone, prompts, self.layer)

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for LogitLens")
