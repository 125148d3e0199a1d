r"""Captioned scenes with the exact mask of each object, rendered on the fly."""

from captum_mllm.datasets.captions import CAPTION_STYLES, CAPTION_WORDS, Caption, caption
from captum_mllm.datasets.references import REFERENCE_KINDS, Reference, sample_references
from captum_mllm.datasets.relations import comparison, relation, size_word
from captum_mllm.datasets.rendering import RenderedScene, render
from captum_mllm.datasets.sampling import sample_scene
from captum_mllm.datasets.scenes import (
    BACKGROUND,
    BACKGROUNDS,
    COLORS,
    Scene,
    SceneObject,
    counterfactual,
)
from captum_mllm.datasets.shapes import SHAPES

__all__ = [
    "BACKGROUND",
    "BACKGROUNDS",
    "CAPTION_STYLES",
    "CAPTION_WORDS",
    "COLORS",
    "REFERENCE_KINDS",
    "SHAPES",
    "Caption",
    "Reference",
    "RenderedScene",
    "Scene",
    "SceneObject",
    "caption",
    "comparison",
    "counterfactual",
    "relation",
    "render",
    "sample_references",
    "sample_scene",
    "size_word",
]
