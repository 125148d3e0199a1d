"""Explanations of whole answers: from an input to a result."""

from captum_mllm.attr.mllm_attribution_result import MLLMAttributionResult
from captum_mllm.attr.scale_result import ScaleResult
from captum_mllm.explain.answer_stream import AnswerStream, AnswerWord
from captum_mllm.explain.mllm_attribution import MLLMAttribution

__all__ = [
    "AnswerStream",
    "AnswerWord",
    "MLLMAttribution",
    "MLLMAttributionResult",
    "ScaleResult",
]
