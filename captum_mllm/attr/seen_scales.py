"""What each scale of MSEA saw, kept for the result of an explanation."""

from __future__ import annotations

from typing import Any

from captum.attr import Attribution

from captum_mllm._captum import format_tensor_into_tuples
from captum_mllm.attr.context_suppression import ContextSuppression
from captum_mllm.attr.msea import MSEA
from captum_mllm.attr.scale_attribution import ScaleAttribution
from captum_mllm.attr.wrapper_chain import wrapper_chain
from captum_mllm.explain.result import ScaleResult
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query


class SeenScales:
    r"""
    Collects what the scales of MSEA see while a method runs.

    Args:
        mllm (MLLM): the model.
        query (Query): the question and the answer.
    """

    def __init__(self, mllm: MLLM, query: Query) -> None:
        self.mllm = mllm
        self.query = query
        self._seen: list[ScaleResult] = []

    @property
    def results(self) -> list[ScaleResult]:
        """What each scale saw, smallest first; nothing where a scale came twice."""
        distinct = len({found.scale for found in self._seen}) == len(self._seen)
        return sorted(self._seen, key=lambda found: found.scale) if distinct else []

    def watch(self, method: Attribution, kwargs: dict[str, Any]) -> dict[str, Any]:
        r"""The arguments with which a method is to be called.

        Args:
            method (Attribution): MSEA or what lies around it is watched; others stay as they are.
            kwargs (dict): the arguments that the user gives.
        """
        if not any(isinstance(found, MSEA) for found in wrapper_chain(method)):
            return kwargs
        # Maps stay as fine as the finest scale made them: they are enlarged when looked at.
        kwargs = {"output_size": "largest", **kwargs}
        while isinstance(method, ContextSuppression):
            method = method.attribution_method
        if not isinstance(method, MSEA):
            # Another wrapper may call MSEA as often as it likes, on whatever picture.
            return kwargs
        callback = kwargs.get("on_scale")

        def on_scale(found: ScaleAttribution) -> None:
            self._add(found)
            if callback is not None:
                callback(found)

        return {**kwargs, "on_scale": on_scale}

    def _add(self, found: ScaleAttribution) -> None:
        probability = self.mllm.target_probability(*found.inputs, self.query)
        # A context wrapper asks for the words of the prompt as well, before the explained ones.
        maps = format_tensor_into_tuples(found.attributions)[0].sum(1)[-len(probability) :]
        self._seen.append(ScaleResult(found.scale, maps.float().cpu(), probability.cpu()))
