"""``load_model`` loads a model with its processor, from the hub, a folder or this package."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, TypeVar

import transformers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    ImageProcessingMixin,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import is_torchvision_available
from transformers.video_processing_utils import BaseVideoProcessor

# Arguments of `from_pretrained` that say where and how to get files, the same for all of them.
HUB_ARGUMENTS = (
    "cache_dir",
    "code_revision",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
)

ProcessorClass = TypeVar("ProcessorClass", bound=type[ProcessorMixin])


def image_only(processor_class: ProcessorClass) -> ProcessorClass:
    r"""The same processor without its slot for a video processor.

    Video processors need torchvision, so a processor that has a slot for one (Qwen-VL, InternVL,
    LLaVA-OneVision, SmolVLM ...) cannot be built without it, not even for images. What the
    returned class saves names the original class and holds no video processor: it is loaded by
    :func:`load_processor`, with torchvision and without it.

    Args:
        processor_class (type): a subclass of :class:`transformers.ProcessorMixin`.

    Returns:
        type: a subclass of ``processor_class``, or itself where it has no video slot.
    """
    if "video_processor" not in processor_class.get_attributes():
        return processor_class

    def get_attributes(cls: type[ProcessorMixin]) -> list[str]:
        return [name for name in processor_class.get_attributes() if name != "video_processor"]

    def from_args_and_dict(cls: type[ProcessorMixin], args: Any, *rest: Any, **named: Any) -> Any:
        parts = list(args)
        parts.insert(processor_class.get_attributes().index("video_processor"), None)
        original: Any = processor_class.from_args_and_dict
        return original.__func__(cls, parts, *rest, **named)

    class WithoutVideo(ProcessorMixin):
        """What the original class initialises last, with its parts in the original order."""

        def __init__(self, *parts: Any, **named: Any) -> None:
            named |= dict(zip(processor_class.get_attributes(), parts))
            named.pop("video_processor", None)
            super().__init__(**named)

    init: Any = processor_class.__init__
    # The same code, which transformers inspects, but no argument has to be given (SmolVLM).
    optional = FunctionType(
        init.__code__,
        init.__globals__,
        init.__name__,
        (None,) * (init.__code__.co_argcount - 1 - len(init.__defaults__ or ()))
        + (init.__defaults__ or ()),
        init.__closure__,
    )
    members: dict[str, Any] = {
        "get_attributes": classmethod(get_attributes),
        "from_args_and_dict": classmethod(from_args_and_dict),
        "__init__": optional,
        "__module__": processor_class.__module__,
        "__doc__": processor_class.__doc__,
        # The name is that of the original class, so that pickle would not find this one.
        "__reduce__": lambda self: (_restore, (processor_class, self.__dict__)),
    }
    needed = inspect.signature(init).parameters["video_processor"].default
    if needed is inspect.Parameter.empty or "video_processor" in init.__code__.co_names:
        # SmolVLM's chat template and MiniCPM-V ask for these, also without a video.
        members["video_processor"] = SimpleNamespace(
            num_frames=None, fps=None, slice_mode=None, downsample_mode=None
        )
    bases = (processor_class, WithoutVideo)
    return type(processor_class.__name__, bases, members)  # type: ignore[return-value]


def _restore(processor_class: type[ProcessorMixin], state: dict[str, Any]) -> ProcessorMixin:
    reduced: Any = image_only(processor_class)
    processor = reduced.__new__(reduced)
    processor.__dict__.update(state)
    return processor


def load_processor(name_or_folder: str | Path, **kwargs: Any) -> ProcessorMixin:
    r"""``AutoProcessor.from_pretrained``, for images alone where torchvision is missing or the
    folder holds no video processor.

    Args:
        name_or_folder (str or Path): a name on the Hugging Face hub or a folder made by
            ``save_pretrained``.
        **kwargs (Any): passed on to ``from_pretrained``.

    Returns:
        ProcessorMixin: the processor of a multimodal model.

    Raises:
        ValueError: if it is not a processor of images and text.
    """
    processor_class = _processor_class(name_or_folder, kwargs)
    if processor_class is not None and not _takes_videos(name_or_folder, kwargs):
        processor = image_only(processor_class).from_pretrained(name_or_folder, **kwargs)
    else:
        processor = AutoProcessor.from_pretrained(name_or_folder, **kwargs)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise ValueError(
            f"{str(name_or_folder)!r} holds a {type(processor).__name__}, expected a processor of "
            "images and text (an image processor and a tokenizer). Is it a multimodal model?"
        )
    return processor


def _processor_class(
    name_or_folder: str | Path, kwargs: dict[str, Any]
) -> type[ProcessorMixin] | None:
    """The processor class with a video slot that the folder names; None if it names none."""
    readers = (ProcessorMixin.get_processor_dict, ImageProcessingMixin.get_image_processor_dict)
    for read in readers:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                config, _ = read(str(name_or_folder), **kwargs)
        except OSError:
            continue
        found = getattr(transformers, config.get("processor_class") or "", None)
        if found is not None:
            return found if "video_processor" in found.get_attributes() else None
    return None


def _takes_videos(name_or_folder: str | Path, kwargs: dict[str, Any]) -> bool:
    """Whether the folder holds a video processor that can be built here."""
    if not is_torchvision_available():
        return False
    try:
        BaseVideoProcessor.get_video_processor_dict(str(name_or_folder), **kwargs)
    except OSError:
        return False
    return True


def load_model(name_or_folder: str | Path, **kwargs: Any) -> tuple[PreTrainedModel, Any]:
    r"""A model in evaluation mode and its processor; see :meth:`MLLM.from_pretrained`."""
    if str(name_or_folder).startswith("demo/"):
        from captum_mllm.demo import demo_folder

        name_or_folder = demo_folder(str(name_or_folder).removeprefix("demo/"))
    _check_folder(str(name_or_folder))
    if (Path(name_or_folder) / "adapter.safetensors").is_file():
        from captum_mllm.demo.language_model import load_adapted

        return load_adapted(Path(name_or_folder), **kwargs)
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
    r"""The name on the hub, or of the folder without the path to it."""
    name = str(getattr(config, "_name_or_path", "") or config.model_type)
    return Path(name).name if Path(name).is_dir() else name
