"""Attribution methods, and the pure functions that they are made of."""

from captum_mllm.attr.arc import ARC
from captum_mllm.attr.context_suppression import ContextSuppression, suppress_context
from captum_mllm.attr.logit_lens import LogitLens
from captum_mllm.attr.mllm_attribution import MLLMAttribution
from captum_mllm.attr.mllm_attribution_result import MLLMAttributionResult, ScaleResult
from captum_mllm.attr.msea import MSEA, ScaleAttribution
from captum_mllm.attr.rank_biased_overlap import rank_biased_overlap
from captum_mllm.attr.rank_gaussian_filter import rank_gaussian_filter
from captum_mllm.attr.tam import TAM

__all__ = [
    "ARC",
    "MSEA",
    "TAM",
    "ContextSuppression",
    "LogitLens",
    "MLLMAttribution",
    "MLLMAttributionResult",
    "ScaleAttribution",
    "ScaleResult",
    "rank_biased_overlap",
    "rank_gaussian_filter",
    "suppress_context",
]
