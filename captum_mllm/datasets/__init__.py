r"""Captioned scenes with the exact mask of each object, and readers of public data sets."""

from captum_mllm.datasets.captions import CAPTION_STYLES, CAPTION_WORDS, Caption, caption
from captum_mllm.datasets.formats import FORMATS, Samples, open_samples
from captum_mllm.datasets.references import REFERENCE_KINDS, Reference, sample_references
from captum_mllm.datasets.relations import comparison, relation, size_word
from captum_mllm.datasets.rendering import RenderedScene, render
from captum_mllm.datasets.samples import LabelImage, Region, Sample, SampleError
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
    "FORMATS",
    "REFERENCE_KINDS",
    "SHAPES",
    "Caption",
    "LabelImage",
    "Reference",
    "Region",
    "RenderedScene",
    "Sample",
    "SampleError",
    "Samples",
    "Scene",
    "SceneObject",
    "caption",
    "comparison",
    "counterfactual",
    "open_samples",
    "relation",
    "render",
    "sample_references",
    "sample_scene",
    "size_word",
]
