"""Maps that are computed once for all methods that build on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.token_maps import token_maps
from captum_mllm.models import Query
from captum_mllm.models.layout import Size, size_of


class SharedMaps(Attribution):
    r"""
    A method whose maps of a picture are computed once at each of its sizes.

    It is for one picture, whose size tells its scale.

    Args:
        method (Attribution): A method on an :class:`~captum_mllm.MLLM`.
        pictures (dict): The picture at each size; filled with those that come.
    """

    explains_every_token = True

    def __init__(self, method: Attribution, pictures: dict[Size, Tensor]) -> None:
        super().__init__(method.forward_func)
        self.method = method
        self._pictures = pictures
        self._maps: dict[Size, Tensor] = {}

    @property
    def multiplies_by_inputs(self) -> bool:
        return bool(self.method.multiplies_by_inputs)

    @property
    def in_logit_units(self) -> bool:
        """Whether the maps compare with the logits of text."""
        return bool(getattr(self.method, "in_logit_units", False))

    def attribute(self, inputs: Tensor, additional_forward_args: tuple[Query]) -> Tensor:
        r"""
        Args:
            inputs (Tensor): The picture at any scale, (1, 3, H, W).
            additional_forward_args (tuple[Query]): The query from ``MLLM.prepare``.

        Returns:
            Tensor: A map for each explained token, (T, 1, h, w).
        """
        (query,) = additional_forward_args
        size = size_of(inputs)
        # The same tensor for all methods, by which the model knows a pass again.
        picture = self._pictures.setdefault(size, inputs)
        if size not in self._maps:
            self._maps[size] = token_maps(self.method, picture, query.including_prompt())
        maps = self._maps[size]
        return maps if query.with_prompt else maps[len(maps) - len(query.answer_ids) :]

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for SharedMaps")
