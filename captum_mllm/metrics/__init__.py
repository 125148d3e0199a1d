"""Scores of maps: localisation, faithfulness, consistency, and intervals over pictures."""

from captum_mllm.metrics.bootstrap import (
    Interval,
    bootstrap_difference,
    bootstrap_f1_iou,
    bootstrap_mean,
    bootstrap_ratio,
    paired_bootstrap,
)
from captum_mllm.metrics.consistency import (
    TargetConsistency,
    scale_agreement,
    target_consistency,
)
from captum_mllm.metrics.explained_caption import ExplainedCaption, Word
from captum_mllm.metrics.faithfulness import (
    area_over_perturbation_curve,
    causal_correlation,
    deletion_auc,
    insertion_auc,
)
from captum_mllm.metrics.localization import (
    interference_leakage,
    intersection_over_union,
    pointing_game,
    relevance_mass,
    relevance_rank,
)
from captum_mllm.metrics.map_similarity import map_similarity
from captum_mllm.metrics.otsu import grey_levels, otsu_threshold
from captum_mllm.metrics.perturbation_curve import PerturbationCurve, perturbation_curve
from captum_mllm.metrics.randomization import randomization_sanity
from captum_mllm.metrics.spearman import spearman_correlation
from captum_mllm.metrics.token_iou import f1_iou, function_iou, object_iou, token_iou
from captum_mllm.metrics.word_scores import TokenIoU, WordScores

__all__ = [
    "ExplainedCaption",
    "Interval",
    "PerturbationCurve",
    "TargetConsistency",
    "TokenIoU",
    "Word",
    "WordScores",
    "area_over_perturbation_curve",
    "bootstrap_difference",
    "bootstrap_f1_iou",
    "bootstrap_mean",
    "bootstrap_ratio",
    "causal_correlation",
    "deletion_auc",
    "f1_iou",
    "function_iou",
    "grey_levels",
    "insertion_auc",
    "interference_leakage",
    "intersection_over_union",
    "map_similarity",
    "object_iou",
    "otsu_threshold",
    "paired_bootstrap",
    "perturbation_curve",
    "pointing_game",
    "randomization_sanity",
    "relevance_mass",
    "relevance_rank",
    "scale_agreement",
    "spearman_correlation",
    "target_consistency",
    "token_iou",
]
