"""Attribution methods, and the pure functions that they are made of."""

from captum_mllm.attr.arc import ARC
from captum_mllm.attr.attended_lens import AttendedLens
from captum_mllm.attr.attention_maps import AttentionMaps
from captum_mllm.attr.base import TokenAttribution, TokenMaps
from captum_mllm.attr.context_suppression import ContextSuppression
from captum_mllm.attr.functional import rank_biased_overlap, rank_gaussian_filter, suppress_context
from captum_mllm.attr.logit_decomposition import Decomposition, LogitDecomposition
from captum_mllm.attr.logit_lens import LogitLens
from captum_mllm.attr.msea import MSEA
from captum_mllm.attr.scale_mean import ScaleAttribution
from captum_mllm.attr.segments import grid_segments, superpixels
from captum_mllm.attr.tam import TAM
from captum_mllm.attr.token_cam import TokenCam

__all__ = [
    "ARC",
    "MSEA",
    "TAM",
    "AttendedLens",
    "AttentionMaps",
    "ContextSuppression",
    "Decomposition",
    "LogitDecomposition",
    "LogitLens",
    "ScaleAttribution",
    "TokenAttribution",
    "TokenCam",
    "TokenMaps",
    "grid_segments",
    "rank_biased_overlap",
    "rank_gaussian_filter",
    "superpixels",
    "suppress_context",
]
