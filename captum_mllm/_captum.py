"""The private helpers of Captum that this package builds on, in one place."""

from __future__ import annotations

from captum._utils.common import (
    _format_additional_forward_args as format_additional_forward_args,
)
from captum._utils.common import _format_output as format_output
from captum._utils.common import _format_tensor_into_tuples as format_tensor_into_tuples
from captum._utils.common import _run_forward as run_forward
from captum._utils.common import _select_targets as select_targets
from captum._utils.progress import progress
from captum._utils.typing import BaselineType, TargetType
from captum.attr import DeepLift
from torch import nn


def runs_deep_lift(module: nn.Module) -> bool:
    r"""Whether DeepLift or DeepLiftShap is running the module as its forward function."""
    hooks = module._forward_pre_hooks.values()
    return any(getattr(hook, "__module__", None) == DeepLift.__module__ for hook in hooks)


__all__ = [
    "BaselineType",
    "TargetType",
    "format_additional_forward_args",
    "format_output",
    "format_tensor_into_tuples",
    "progress",
    "run_forward",
    "runs_deep_lift",
    "select_targets",
]
