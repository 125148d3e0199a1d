"""TAM, the token activation map."""

from __future__ import annotations

from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.context_suppression import ContextSuppression
from captum_mllm.attr.text_attribution import context_scores, explained_rows
from captum_mllm.models.query import Query
from captum_mllm.models.states import States


class TAM(ContextSuppression):
    r"""
    Token activation map (Li et al., ICCV 2025, arXiv 2506.23270).

    The interference of an earlier word j on word t weighs as much as its state says the word,

    .. math::
        w_{tj} = \mathrm{relu}(h_j^\top w_t)

    where words of the prompt enter with their own state and words of the answer with the state
    that predicts them. The cleaned map and the text scores are mapped to [0, 1] together, and a
    rank Gaussian filter takes out speckles.

    Args:
        attribution_method (Attribution): the base, :class:`~captum_mllm.LogitLens` in the paper.
        normalize (bool): map image and text scores to [0, 1] together. Default: True
        filter_size (int, optional): side of the filter's window, None for no filter. Default: 3

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import MLLM, ImageTextInput, LogitLens, TAM
        >>> from captum_mllm.demo import demo_image
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> TAM(LogitLens(mllm)).attribute(image, additional_forward_args=(query,)).shape
        torch.Size([3, 1, 14, 14])
    """

    weighs_text = True

    def __init__(
        self,
        attribution_method: Attribution,
        normalize: bool = True,
        filter_size: int | None = 3,
    ) -> None:
        super().__init__(attribution_method, normalize, filter_size, strength=1.0)

    def weights(self, states: States) -> Tensor:
        return context_scores(self.forward_func, states)

    def weigh_text(self, weights: Tensor, states: States, query: Query) -> Tensor:
        return explained_rows(context_scores(self.forward_func, states), query)
