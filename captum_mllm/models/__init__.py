"""Everything that knows a Hugging Face model."""

from captum_mllm.models.check import Report, Verdict
from captum_mllm.models.families import Family, register_family
from captum_mllm.models.inputs import ImageTextInput
from captum_mllm.models.layout import Layout, Piece
from captum_mllm.models.loading import image_only, load_processor
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.probe import probe
from captum_mllm.models.query import Query
from captum_mllm.models.states import States
from captum_mllm.models.video import Video

__all__ = [
    "MLLM",
    "Family",
    "ImageTextInput",
    "Layout",
    "Piece",
    "Query",
    "Report",
    "States",
    "Verdict",
    "Video",
    "image_only",
    "load_processor",
    "probe",
    "register_family",
]
