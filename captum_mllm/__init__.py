"""Captum for multimodal LLMs: what each word of an answer rests on."""

from captum_mllm.attr import (
    ARC,
    MSEA,
    TAM,
    AttendedLens,
    AttentionRollout,
    LogitLens,
    MLLMAttribution,
    MLLMAttributionResult,
    TokenGradCam,
)
from captum_mllm.models import MLLM, ImageTextInput

__version__ = "0.1.0"

__all__ = [
    "ARC",
    "MLLM",
    "MSEA",
    "TAM",
    "AttendedLens",
    "AttentionRollout",
    "ImageTextInput",
    "LogitLens",
    "MLLMAttribution",
    "MLLMAttributionResult",
    "TokenGradCam",
]
