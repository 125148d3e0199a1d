"""Load a model with its processor, from the hub, a folder or this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoModelForImageTextToText, PreTrainedModel

from captum_mllm.models.processors import HUB_ARGUMENTS, load_processor


def load_model(name_or_folder: str | Path, **kwargs: Any) -> tuple[PreTrainedModel, Any]:
    r"""A model in evaluation mode and its processor; see :meth:`MLLM.from_pretrained`."""
    if str(name_or_folder).startswith("demo/"):
        from captum_mllm.demo import demo_folder

        name_or_folder = demo_folder(str(name_or_folder).removeprefix("demo/"))
        if (name_or_folder / "adapter.safetensors").is_file():
            from captum_mllm.demo.language_model import load_adapted

            return load_adapted(name_or_folder, **kwargs)
    _check_folder(str(name_or_folder))
    model = AutoModelForImageTextToText.from_pretrained(name_or_folder, **kwargs)
    access = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS}
    return model.eval(), load_processor(name_or_folder, **access)


def _check_folder(name: str) -> None:
    # A name on the hub has one slash at most, and none in front.
    is_path = name.startswith((".", "/", "~", "\\")) or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise FileNotFoundError(
            f"there is no folder {name!r}; give one made by save_pretrained, or a name on the "
            "Hugging Face hub"
        )


def model_name(config: Any) -> str:
    r"""The name on the hub, or of the folder: where it lies is nobody's business."""
    name = str(getattr(config, "_name_or_path", "") or config.model_type)
    return Path(name).name if Path(name).is_dir() else name
