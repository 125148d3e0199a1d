r"""Captioned scenes with the exact mask of each object, rendered on the fly."""

from captum_mllm.datasets.captions import (
    BACKGROUND,
    CAPTION_STYLES,
    CAPTION_WORDS,
    NO_OBJECT,
    Caption,
    caption,
)
from captum_mllm.datasets.rendering import RenderedScene, render
from captum_mllm.datasets.scenes import (
    BACKGROUNDS,
    COLORS,
    Scene,
    SceneObject,
    counterfactual,
    sample_scene,
)
from captum_mllm.datasets.shapes import SHAPES

__all__ = [
    "BACKGROUND",
    "BACKGROUNDS",
    "CAPTION_STYLES",
    "CAPTION_WORDS",
    "COLORS",
    "NO_OBJECT",
    "SHAPES",
    "Caption",
    "RenderedScene",
    "Scene",
    "SceneObject",
    "caption",
    "counterfactual",
    "render",
    "sample_scene",
]
