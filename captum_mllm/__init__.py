"""Captum for multimodal LLMs: what each word of an answer rests on."""

from captum_mllm.attr import (
    ARC,
    MSEA,
    TAM,
    AttendedLens,
    AttentionRollout,
    LogitLens,
    TokenAttribution,
    TokenGradCam,
    TokenMaps,
)
from captum_mllm.explain import AnswerStream, AnswerWord, MLLMAttribution, MLLMAttributionResult
from captum_mllm.models import MLLM, ImageTextInput

__version__ = "0.1.0"

__all__ = [
    "ARC",
    "MLLM",
    "MSEA",
    "TAM",
    "AnswerStream",
    "AnswerWord",
    "AttendedLens",
    "AttentionRollout",
    "ImageTextInput",
    "LogitLens",
    "MLLMAttribution",
    "MLLMAttributionResult",
    "TokenAttribution",
    "TokenGradCam",
    "TokenMaps",
]
