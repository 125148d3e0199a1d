"""One map for each explained token, from a method that takes one target at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from captum_mllm._captum import format_output, format_tensor_into_tuples, progress
from captum_mllm.attr.forward_function import only_query
from captum_mllm.attr.gradients import gradients_for
from captum_mllm.attr.picture_layout import check_on_input, picture_layouts
from captum_mllm.models.mllm import MLLM


class TokenByToken(Attribution):
    r"""
    Asks a method for each explained token of a query in turn.

    Within MSEA, rather than around it, each scale is made once for all tokens.

    Args:
        attribution_method (Attribution): any method on an :class:`~captum_mllm.MLLM`.
    """

    explains_every_token = True

    def __init__(self, attribution_method: Attribution) -> None:
        super().__init__(attribution_method.forward_func)
        self.attribution_method = attribution_method

    @property
    def multiplies_by_inputs(self) -> bool:
        return bool(self.attribution_method.multiplies_by_inputs)

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        additional_forward_args: Any = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, Tensor]): the picture, (1, 3, H, W) in [0, 1], or the
                picture and embeddings of words, (1, n, D).
            additional_forward_args (tuple[Query]): the query from ``MLLM.prepare``.
            show_progress (bool): show a bar over the tokens. Default: False
            **kwargs (Any): passed on to the method.

        Returns:
            Tensor or tuple[Tensor, Tensor]: of shape (T, C, h, w), and (T, n, D) where embeddings
            are given; detached.

        Raises:
            RuntimeError: for a gradient method under ``torch.inference_mode``.
            ValueError: if the method's maps are not maps of the whole picture.
        """
        query = only_query(additional_forward_args)
        mllm: MLLM = self.forward_func
        method = self.attribution_method
        name = method.get_name()
        tensors = format_tensor_into_tuples(inputs)
        ids = mllm.explained_ids(*tensors, query).tolist()
        targets = enumerate(ids)
        if show_progress:
            targets = progress(targets, desc=f"{name} attribution", total=len(ids))
        rows = []
        with gradients_for(method, tensors):
            for target in targets:
                found = method.attribute(
                    inputs, target=target, additional_forward_args=(query,), **kwargs
                )
                rows.append([part.detach() for part in format_tensor_into_tuples(found)])
        check_on_input(rows[0], tensors, picture_layouts(mllm, tensors, (query,)))
        return format_output(isinstance(inputs, tuple), tuple(map(torch.cat, zip(*rows))))

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for TokenByToken")
