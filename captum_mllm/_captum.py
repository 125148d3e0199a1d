"""The private helpers of Captum that this package builds on, in one place."""

from captum._utils.common import (
    _format_additional_forward_args as format_additional_forward_args,
)
from captum._utils.common import _format_output as format_output
from captum._utils.common import _format_tensor_into_tuples as format_tensor_into_tuples
from captum._utils.common import _run_forward as run_forward
from captum._utils.common import _select_targets as select_targets
from captum._utils.progress import progress
from captum._utils.typing import BaselineType, TargetType

__all__ = [
    "BaselineType",
    "TargetType",
    "format_additional_forward_args",
    "format_output",
    "format_tensor_into_tuples",
    "progress",
    "run_forward",
    "select_targets",
]
