"""A function of the maps of other methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.token_maps import token_maps
from captum_mllm.models import Query


class MapFunction(Attribution):
    r"""
    A method whose maps are a function of the maps that other methods find for the same picture.

    Args:
        function (Callable): From the maps of each method, (T, 1, h, w), to maps of that shape.
        *methods (Attribution): One or more methods on one :class:`~captum_mllm.MLLM`, whose maps
            have one size.
    """

    explains_every_token = True

    def __init__(self, function: Callable[..., Tensor], *methods: Attribution) -> None:
        super().__init__(methods[0].forward_func)
        self.function = function
        self.methods = methods

    @property
    def multiplies_by_inputs(self) -> bool:
        return False

    def attribute(
        self, inputs: Tensor, additional_forward_args: tuple[Query], **kwargs: Any
    ) -> Tensor:
        r"""
        Args:
            inputs (Tensor): The picture, (1, 3, H, W) in [0, 1].
            additional_forward_args (tuple[Query]): The query from ``MLLM.prepare``.
            **kwargs (Any): Passed on to each of the methods.

        Returns:
            Tensor: A map for each explained token, (T, 1, h, w).
        """
        (query,) = additional_forward_args
        return self.function(
            *(token_maps(method, inputs, query, **kwargs) for method in self.methods)
        )

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for MapFunction")


def product(first: Tensor, *others: Tensor) -> Tensor:
    r"""The product of the positive parts of maps."""
    found = first.relu()
    for other in others:
        found = found * other.relu()
    return found


def geometric_mean(*maps: Tensor) -> Tensor:
    r"""The geometric mean of the positive parts of maps."""
    return product(*maps) ** (1 / len(maps))
