"""Explanations of whole answers: from an input to a result."""

from captum_mllm.explain.ablation import exact_reasons
from captum_mllm.explain.alternatives import Alternatives
from captum_mllm.explain.answer_stream import AnswerStream, AnswerWord
from captum_mllm.explain.calibration import Calibration, calibration_error
from captum_mllm.explain.diagnosis import WordRisk
from captum_mllm.explain.intervention import what_if
from captum_mllm.explain.mllm_attribution import MLLMAttribution
from captum_mllm.explain.reasons import Reasons
from captum_mllm.explain.result import MLLMAttributionResult
from captum_mllm.explain.result_parts import ScaleResult, WordWeight
from captum_mllm.explain.word_changes import WhatIf, WordChange

__all__ = [
    "Alternatives",
    "AnswerStream",
    "AnswerWord",
    "Calibration",
    "MLLMAttribution",
    "MLLMAttributionResult",
    "Reasons",
    "ScaleResult",
    "WhatIf",
    "WordChange",
    "WordRisk",
    "WordWeight",
    "calibration_error",
    "exact_reasons",
    "what_if",
]
