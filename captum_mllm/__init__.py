"""Captum for multimodal LLMs: what each word of an answer rests on."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captum_mllm.attr import (
        ARC,
        MSEA,
        TAM,
        AttendedLens,
        AttentionMaps,
        LogitDecomposition,
        LogitLens,
        TokenAttribution,
        TokenCam,
        TokenMaps,
    )
    from captum_mllm.explain import (
        AnswerStream,
        AnswerWord,
        MLLMAttribution,
        MLLMAttributionResult,
    )
    from captum_mllm.models import MLLM, ImageTextInput, Video

__version__ = "0.1.0"

__all__ = [
    "ARC",
    "MLLM",
    "MSEA",
    "TAM",
    "AnswerStream",
    "AnswerWord",
    "AttendedLens",
    "AttentionMaps",
    "ImageTextInput",
    "LogitDecomposition",
    "LogitLens",
    "MLLMAttribution",
    "MLLMAttributionResult",
    "TokenAttribution",
    "TokenCam",
    "TokenMaps",
    "Video",
]

_PACKAGES = ("models", "attr", "explain", "visualization", "metrics", "datasets")


def __getattr__(name: str) -> Any:
    # PyTorch and transformers take seconds to import, which `captum-mllm --help` need not wait for.
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name in __all__:
        for package in _PACKAGES:
            module = import_module(f"{__name__}.{package}")
            if name in module.__all__:
                globals()[name] = value = getattr(module, name)
                return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})
