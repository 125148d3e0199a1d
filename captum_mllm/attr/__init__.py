"""Attribution methods, and the pure functions that they are made of."""

from captum_mllm.attr.answer_stream import AnswerStream, AnswerWord
from captum_mllm.attr.arc import ARC
from captum_mllm.attr.attended_lens import AttendedLens
from captum_mllm.attr.attention_rollout import AttentionRollout
from captum_mllm.attr.context_suppression import ContextSuppression
from captum_mllm.attr.interference import suppress_context
from captum_mllm.attr.logit_lens import LogitLens
from captum_mllm.attr.mllm_attribution import MLLMAttribution
from captum_mllm.attr.msea import MSEA
from captum_mllm.attr.rank_biased_overlap import rank_biased_overlap
from captum_mllm.attr.rank_gaussian_filter import rank_gaussian_filter
from captum_mllm.attr.scale_attribution import ScaleAttribution
from captum_mllm.attr.segments import grid_segments, superpixels
from captum_mllm.attr.tam import TAM
from captum_mllm.attr.token_grad_cam import TokenGradCam
from captum_mllm.explain.result import MLLMAttributionResult, ScaleResult

__all__ = [
    "ARC",
    "MSEA",
    "TAM",
    "AnswerStream",
    "AnswerWord",
    "AttendedLens",
    "AttentionRollout",
    "ContextSuppression",
    "LogitLens",
    "MLLMAttribution",
    "MLLMAttributionResult",
    "ScaleAttribution",
    "ScaleResult",
    "TokenGradCam",
    "grid_segments",
    "rank_biased_overlap",
    "rank_gaussian_filter",
    "superpixels",
    "suppress_context",
]
