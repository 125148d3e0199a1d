"""Scores of maps and of the weights of earlier words, and intervals over images."""

from captum_mllm.metrics.bootstrap import (
    Interval,
    bootstrap_difference,
    bootstrap_f1_iou,
    bootstrap_mean,
    bootstrap_ratio,
    paired_bootstrap,
)
from captum_mllm.metrics.captions import ExplainedCaption, Word
from captum_mllm.metrics.consistency import (
    TargetConsistency,
    map_similarity,
    scale_agreement,
    spearman_correlation,
    target_consistency,
)
from captum_mllm.metrics.faithfulness import (
    area_over_perturbation_curve,
    causal_correlation,
    deletion_auc,
    insertion_auc,
)
from captum_mllm.metrics.imputation import impute_linearly
from captum_mllm.metrics.localization import (
    grey_levels,
    interference_leakage,
    intersection_over_union,
    otsu_threshold,
    pointing_game,
    relevance_mass,
    relevance_rank,
)
from captum_mllm.metrics.perturbation_curve import PerturbationCurve, perturbation_curve
from captum_mllm.metrics.randomization import randomization_sanity
from captum_mllm.metrics.text_scores import (
    TextScores,
    raise_last,
    random_weights,
    recency_weights,
    text_scores,
    uniform_weights,
    without_last,
    word_pointing,
)
from captum_mllm.metrics.text_truth import (
    attention_knockout,
    earlier_tokens,
    leave_one_out,
    text_perturbation_curve,
)
from captum_mllm.metrics.token_iou import (
    TokenIoU,
    WordScores,
    f1_iou,
    function_iou,
    object_iou,
    token_iou,
)

__all__ = [
    "ExplainedCaption",
    "Interval",
    "PerturbationCurve",
    "TargetConsistency",
    "TextScores",
    "TokenIoU",
    "Word",
    "WordScores",
    "area_over_perturbation_curve",
    "attention_knockout",
    "bootstrap_difference",
    "bootstrap_f1_iou",
    "bootstrap_mean",
    "bootstrap_ratio",
    "causal_correlation",
    "deletion_auc",
    "earlier_tokens",
    "f1_iou",
    "function_iou",
    "grey_levels",
    "impute_linearly",
    "insertion_auc",
    "interference_leakage",
    "intersection_over_union",
    "leave_one_out",
    "map_similarity",
    "object_iou",
    "otsu_threshold",
    "paired_bootstrap",
    "perturbation_curve",
    "pointing_game",
    "raise_last",
    "random_weights",
    "randomization_sanity",
    "recency_weights",
    "relevance_mass",
    "relevance_rank",
    "scale_agreement",
    "spearman_correlation",
    "target_consistency",
    "text_perturbation_curve",
    "text_scores",
    "token_iou",
    "uniform_weights",
    "without_last",
    "word_pointing",
]
