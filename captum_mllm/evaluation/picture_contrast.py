"""What a method finds in a picture beyond what it finds without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.token_maps import token_maps
from captum_mllm.metrics.picture_baselines import PictureBaseline, picture_baseline
from captum_mllm.models import Query


class PictureContrast(Attribution):
    r"""
    A method's map of a picture less its map of the picture's baseline, where that is positive.

    What the model says of a word even of an empty picture, because of the words before it or of
    the place in the grid, is taken out.

    Args:
        method (Attribution): A method on an :class:`~captum_mllm.MLLM`.
        baselines (Tensor, float or str): As for :func:`~captum_mllm.metrics.insertion_auc`.
            Default: "mean"
    """

    explains_every_token = True

    def __init__(self, method: Attribution, baselines: PictureBaseline = "mean") -> None:
        super().__init__(method.forward_func)
        self.method = method
        self.baselines = baselines

    @property
    def multiplies_by_inputs(self) -> bool:
        return False

    def attribute(self, inputs: Tensor, additional_forward_args: tuple[Query]) -> Tensor:
        r"""
        Args:
            inputs (Tensor): The picture, (1, 3, H, W) in [0, 1].
            additional_forward_args (tuple[Query]): The query from ``MLLM.prepare``.

        Returns:
            Tensor: A map for each explained token, (T, 1, h, w), at least 0.
        """
        (query,) = additional_forward_args
        empty = picture_baseline(inputs, self.baselines)
        found = token_maps(self.method, inputs, query)
        return (found - token_maps(self.method, empty, query)).relu()

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for PictureContrast")
