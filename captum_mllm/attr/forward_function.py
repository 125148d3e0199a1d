"""What the methods of this package expect of their forward function and its arguments."""

from __future__ import annotations

from typing import Any

from captum.attr import Attribution

from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query


def multimodal_model(forward_func: Any) -> MLLM:
    r"""The forward function, which has to be a multimodal model.

    Raises:
        TypeError: if it is not.
    """
    if not isinstance(forward_func, MLLM):
        raise TypeError(
            f"got a forward function of type {type(forward_func).__name__}, expected an MLLM; wrap "
            "the model as MLLM(model, processor) or MLLM.from_pretrained(name)"
        )
    return forward_func


def check_attribution(method: Any) -> Attribution:
    r"""An attribution method whose forward function is a multimodal model.

    Raises:
        TypeError: if it is something else.
    """
    if not isinstance(method, Attribution):
        raise TypeError(
            f"got {type(method).__name__}, expected an instance of a Captum attribution, such as "
            "LogitLens(mllm) or IntegratedGradients(mllm)"
        )
    multimodal_model(method.forward_func)
    return method


def only_query(additional_forward_args: Any) -> Query:
    r"""The query among the additional forward arguments, which has to be their only one.

    Raises:
        TypeError: if it is not.
    """
    args = additional_forward_args
    args = args if isinstance(args, tuple) else (args,)
    if len(args) != 1 or not isinstance(args[0], Query):
        raise TypeError(
            f"got additional_forward_args={additional_forward_args!r}, expected (query,) with the "
            "query that MLLM.prepare gives"
        )
    return args[0]
