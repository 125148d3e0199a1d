"""Passes through a model that need not be made again."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from torch import Tensor

from captum_mllm.models.query import Query
from captum_mllm.models.states import States


class Passes:
    r"""The states of passes with the same pictures, weights and query.

    A picture or a weight that was changed in place makes another pass; one that was changed
    through ``.data`` or in inference mode, where torch counts no changes, does not.

    Args:
        weights (Iterable[Tensor]): the parameters of the model.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._weights = tuple(weights)
        # The pictures are kept so that no other tensor takes their identity.
        self._kept: dict[Hashable, tuple[States, Sequence[Tensor], Query]] = {}

    def recall(self, pictures: Sequence[Tensor], query: Query, layer: int | None) -> States | None:
        """The states of an earlier pass, if there was one."""
        kept = self._kept.get(self._key(pictures, query, layer))
        return None if kept is None else kept[0]

    def keep(
        self, states: States, pictures: Sequence[Tensor], query: Query, layer: int | None
    ) -> None:
        self._kept[self._key(pictures, query, layer)] = (states, pictures, query)

    def _key(self, pictures: Sequence[Tensor], query: Query, layer: int | None) -> Hashable:
        fixed = [picture for picture in query.pictures if picture is not None]
        versions = tuple(map(_version, (*pictures, *fixed)))
        weights = sum(map(_version, self._weights))
        return tuple(map(id, pictures)), query.inputs_key, layer, versions, weights


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
