"""``Passes``, the states of passes that need not be made again, and ``PassMemory``, which keeps
them for one model and one thread."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from operator import attrgetter
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from captum_mllm.models.encoding import TokenCache
from captum_mllm.models.query import Query, split_arguments
from captum_mllm.models.states import States

# How often each tensor was changed in place.
Versions = tuple[int, ...]


class Passes:
    r"""The states of passes with the same images, weights and query.

    An image or a weight that was changed in place makes another pass; one that was changed
    through ``.data`` or in inference mode, where torch counts no changes, does not.

    Args:
        weights (Iterable[Tensor]): the parameters of the model.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self.is_open = True
        self._weights = tuple(weight for weight in weights if not weight.is_inference())
        #: What the processor made of prompts, so that it reads a text once.
        self.tokens = TokenCache()
        # The images are kept so that no other tensor takes their identity.
        self._kept: dict[Hashable, tuple[States, Sequence[Tensor], Query]] = {}
        self._by_value: dict[Hashable, list[tuple[States, Sequence[Tensor], Versions]]] = (
            defaultdict(list)
        )

    def recall(self, images: Sequence[Tensor], query: Query, layer: int | None) -> States | None:
        """The states of an earlier pass, if there was one."""
        kept = self._kept.get(self._key(images, query, layer))
        if kept is not None:
            return kept[0]
        for states, others, versions in self._by_value.get(
            self._value_key(images, query, layer), ()
        ):
            if _versions(others) == versions and all(map(torch.equal, images, others)):
                return states
        return None

    def keep(
        self,
        states: States,
        images: Sequence[Tensor],
        query: Query,
        layer: int | None,
        by_value: bool = False,
    ) -> None:
        """Keep the states of a pass, if wanted for all images of the same values, which are
        looked at then."""
        self._kept[self._key(images, query, layer)] = (states, images, query)
        if by_value:
            key = self._value_key(images, query, layer)
            self._by_value[key].append((states, images, _versions(images)))

    def close(self) -> None:
        """Forget everything, also in threads that were started with a copy of this context."""
        self.is_open = False
        self._kept.clear()
        self.tokens.clear()
        self._by_value.clear()

    def _key(self, images: Sequence[Tensor], query: Query, layer: int | None) -> Hashable:
        identities = tuple(map(id, images)), _versions(images)
        return identities, self._fixed_key(query, layer)

    def _value_key(self, images: Sequence[Tensor], query: Query, layer: int | None) -> Hashable:
        kinds = tuple((image.shape, image.dtype, image.device) for image in images)
        return kinds, self._fixed_key(query, layer)

    def _fixed_key(self, query: Query, layer: int | None) -> Hashable:
        fixed = [image for image in query.images if image is not None]
        weights = sum(map(attrgetter("_version"), self._weights))
        return query.inputs_key, layer, _versions(fixed), weights


# The passes that are remembered in this context, by the identity of their memory.
_remembered: ContextVar[Mapping[int, Passes]] = ContextVar(
    "remembered_passes", default=MappingProxyType({})
)


class PassMemory:
    r"""Remembers the passes of one model within :meth:`remember`.

    Each thread remembers its own: what one remembers is neither seen nor ended by another.

    Args:
        weights (Callable): gives the parameters of the model.
    """

    def __init__(self, weights: Callable[[], Iterable[Tensor]]) -> None:
        self._find_weights = weights

    @property
    def passes(self) -> Passes | None:
        """What is remembered here and now; None outside of :meth:`remember`."""
        passes = _remembered.get().get(id(self))
        return passes if passes is not None and passes.is_open else None

    @property
    def remembers(self) -> bool:
        """Whether passes are remembered here and now."""
        return self.passes is not None

    @contextmanager
    def remember(self) -> Iterator[None]:
        r"""Within it, a pass with the same images and query is made once.

        What randomises weights or changes images in place must not run within it, see
        :class:`Passes` for what goes unnoticed.
        """
        if self.remembers:
            yield
            return
        passes = Passes(self._find_weights())
        token = _remembered.set({**_remembered.get(), id(self): passes})
        try:
            yield
        finally:
            _remembered.reset(token)
            passes.close()

    def recall(self, *args: Any, layer: int | None = None) -> States | None:
        r"""The states of the pass with these arguments, if it was made within :meth:`remember`."""
        images, query = split_arguments(args, look=False)
        passes = self.passes
        return None if passes is None else passes.recall(images, query, layer)

    def knows(self, *args: Any, layer: int | None = None) -> bool:
        r"""Whether the pass with these arguments was made within :meth:`remember`."""
        return self.recall(*args, layer=layer) is not None

    def keep(
        self, states: States, *args: Any, layer: int | None = None, by_value: bool = False
    ) -> None:
        r"""Within :meth:`remember`, take states for those of the pass with these arguments; if
        ``by_value``, also with other tensors that are equal images."""
        images, query = split_arguments(args, look=False)
        passes = self.passes
        if passes is not None:
            passes.keep(states, images, query, layer, by_value)


def _versions(tensors: Sequence[Tensor]) -> Versions:
    return tuple(map(_version, tensors))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version
