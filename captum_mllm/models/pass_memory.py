"""A model that does not make the same pass again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from captum_mllm.models.passes import Passes
from captum_mllm.models.query import split_arguments

if TYPE_CHECKING:
    from captum_mllm.models.states import States


class PassMemory:
    r"""What an :class:`~captum_mllm.MLLM` remembers of its passes.

    A part of that class: it is told when to remember, and looks here before it makes a pass.
    """

    parameters: Any
    _passes: Passes | None = None

    @contextmanager
    def remember(self) -> Iterator[None]:
        r"""Within it, a pass with the same pictures and query is made once.

        What randomises weights or changes pictures in place must not run within it, see
        :class:`~captum_mllm.models.passes.Passes` for what goes unnoticed.
        """
        outer, self._passes = self._passes, self._passes or Passes(self.parameters())
        try:
            yield
        finally:
            self._passes = outer

    @property
    def remembers(self) -> bool:
        r"""Whether passes are remembered."""
        return self._passes is not None

    def recall(self, *args: Any, layer: int | None = None) -> States | None:
        r"""The states of the pass with these arguments, if it was made within :meth:`remember`."""
        pictures, query = split_arguments(args)
        return None if self._passes is None else self._passes.recall(pictures, query, layer)

    def knows(self, *args: Any, layer: int | None = None) -> bool:
        r"""Whether the pass with these arguments was made within :meth:`remember`."""
        return self.recall(*args, layer=layer) is not None

    def keep(
        self, states: States, *args: Any, layer: int | None = None, by_value: bool = False
    ) -> None:
        r"""Within :meth:`remember`, take states for those of the pass with these arguments; if
        ``by_value``, also with other tensors that are equal pictures."""
        pictures, query = split_arguments(args)
        if self._passes is not None:
            self._passes.keep(states, pictures, query, layer, by_value)
