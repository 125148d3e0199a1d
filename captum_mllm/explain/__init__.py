"""Explanations of whole answers: from an input to a result."""

from captum_mllm.explain.answer_stream import AnswerStream, AnswerWord
from captum_mllm.explain.mllm_attribution import MLLMAttribution
from captum_mllm.explain.result import MLLMAttributionResult
from captum_mllm.explain.result_parts import ScaleResult, WordWeight

__all__ = [
    "AnswerStream",
    "AnswerWord",
    "MLLMAttribution",
    "MLLMAttributionResult",
    "ScaleResult",
    "WordWeight",
]
