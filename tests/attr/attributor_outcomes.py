"""What each cell of the table of attributors gives, and the reasons of those that give nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

from tests.attr.attributor_columns import Column
from tests.attr.attributor_rows import LAYER_ROWS, TOKEN_ROWS, Row


@dataclass(frozen=True)
class Reason:
    """Why a cell is refused: the error, what its message has to say, and the words of the docs."""

    error: type[Exception]
    message: str
    text: str

    def fits(self, error: Exception) -> bool:
        return isinstance(error, self.error) and bool(re.search(self.message, str(error)))


NOT_MULTIMODAL = Reason(
    TypeError,
    r"got a forward function of type \w+, expected an MLLM",
    "reads the states of the tokens of a multimodal LLM, and refuses other networks",
)
NO_MAP = Reason(
    ValueError,
    r"attributions have shape .* only maps of 4 dimensions are resized",
    "states of tokens are no map that could be resized, and another scale has other tokens, tiles "
    "or windows; `TokenCam` gives maps, and `combine=False` the states of each scale",
)
ROWS_ARE_NOT_IMAGES = Reason(
    RuntimeError,
    r"shape '.*' is invalid for input of size",
    "Captum presumes that the layer has one row for each image, and this one has a row for each "
    "patch, tile or window",
)
NO_RULES = Reason(
    NotImplementedError,
    r"DeepLift has no rules for the attention",
    "has no rules for the attention, the norms and the activations of a multimodal LLM, and would "
    "give `(input - baseline) * gradient`; `InputXGradient` gives that under its own name",
)
REASONS = (NOT_MULTIMODAL, NO_MAP, ROWS_ARE_NOT_IMAGES, NO_RULES)

_PATH_METHODS = ("LayerConductance", "InternalInfluence")
_HAS_ONE_ROW = "LLaVA-1.5"


def refusal(row: Row, column: Column, wrapped: bool) -> Reason | None:
    """The reason why a cell has to be refused, None where it has to work."""
    if not column.is_multimodal:
        return NOT_MULTIMODAL if row in TOKEN_ROWS else None
    if row.name == "DeepLift":
        return NO_RULES
    if row not in LAYER_ROWS:
        return None
    one_row = column.title == _HAS_ONE_ROW
    if row.name.startswith(_PATH_METHODS) and row.layer == "vision" and not one_row:
        return ROWS_ARE_NOT_IMAGES
    return NO_MAP if wrapped else None


def kind(attributions: Tensor, inputs: Tensor) -> str:
    """What the attributions of a cell that works are values of."""
    if attributions.shape == inputs.shape:
        return "pixels"
    if attributions.ndim == 4 and attributions.shape[:2] == (len(inputs), 1):
        return "map" if attributions.shape[2:] == inputs.shape[2:] else "grid"
    return "states"


def remark(row: Row, column: Column) -> str | None:
    """What there is to know of a cell that works."""
    rules = column.title == "CNN"
    if row.name == "DeepLift" and not rules and not column.is_multimodal:
        return (
            "has no rule for the activations, the norms and the attention of this network, and "
            "passes through them as the gradient does: it gives `(input - baseline) * gradient`"
        )
    if row.name in ("GuidedBackprop", "Deconvolution") and not rules:
        return "there is no `nn.ReLU` in this network: it gives the gradient"
    if row.name == "FeaturePermutation":
        return "exchanges pixels between images, so it needs two; it gives zeros for one"
    if row.name in ("Lime", "KernelShap"):
        return "the linear model that it fits by default needs scikit-learn"
    if row.name.startswith("LayerGradCam") and column.is_multimodal:
        return (
            "no map: it pools over the wrong axis of tokens, and gives a value for each channel "
            "or patch; use `TokenCam`"
        )
    return None
