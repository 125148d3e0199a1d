r"""Small trained models that ship with the package, so that everything runs offline."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).parent

#: The names of the models that ship whole.
DEMO_MODELS: tuple[str, ...] = ("qwen2-vl", "llava-1.5", "internvl")

#: Those of which an adapter ships. The language model that it adapts is not part of the package;
#: see ``captum_mllm.demo.language_model``.
ADAPTED_MODELS: tuple[str, ...] = ("smolvlm",)

#: What the demo models are trained to be asked, by the style of the caption that answers it; see
#: :func:`captum_mllm.datasets.caption`.
DEMO_PROMPTS: dict[str, str] = {
    "caption": "Describe the image.",
    "dense": "Describe the image in detail.",
    "relations": "How do the objects relate?",
}

#: The prompt for a caption of one sentence.
DEMO_PROMPT = DEMO_PROMPTS["caption"]


def demo_folder(name: str) -> Path:
    r"""The folder of a demo model, for any ``from_pretrained`` or, of an adapter,
    for :meth:`captum_mllm.MLLM.from_pretrained`.

    Args:
        name (str): One of :data:`DEMO_MODELS` or :data:`ADAPTED_MODELS`.

    Returns:
        Path: The folder.

    Raises:
        ValueError: If no model of that name ships.

    Examples::

        >>> demo_folder("qwen2-vl").name
        'qwen2-vl'
    """
    known = (*DEMO_MODELS, *ADAPTED_MODELS)
    if name not in known:
        raise ValueError(f"No demo model is called {name!r}; there are {', '.join(known)}.")
    return _HERE / name


def demo_image() -> Path:
    r"""An image that the demo models can describe: three shapes, 224 x 224 pixels.

    Returns:
        Path: The file, a PNG.

    Examples::

        >>> demo_image().name
        'scene.png'
    """
    return _HERE / "scene.png"


__all__ = [
    "ADAPTED_MODELS",
    "DEMO_MODELS",
    "DEMO_PROMPT",
    "DEMO_PROMPTS",
    "demo_folder",
    "demo_image",
]
