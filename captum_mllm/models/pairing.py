"""`checked_pair` checks that a model and a processor are of the kind that `MLLM` explains."""

from __future__ import annotations

import copy
import inspect
import warnings
from pathlib import Path
from typing import Any

from PIL import Image
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from transformers import Pipeline, PreTrainedModel

from captum_mllm.models.families import find_family

# The class token that CLIP puts before its patches, which older processors do not count.
_CLASS_TOKENS = {"clip_vision_model": 1}
_SIDE = 224


def checked_pair(model: Any, processor: Any) -> tuple[Any, Any]:
    r"""The model within its wrappers and its processor, which make tokens that the model knows.

    Args:
        model (PreTrainedModel): a model of transformers, compiled or not; also within PEFT's
            ``PeftModel``, merged or not, or within ``DataParallel``.
        processor (ProcessorMixin): its processor.

    Returns:
        tuple[PreTrainedModel, ProcessorMixin]: the model, and the processor or, where it lacks what
        older checkpoints leave out, a completed copy.

    Raises:
        TypeError: for what is not a model, or not a processor of images and text.
        ValueError: for a model without an output embedding or without weights, and for a processor
            of another model.
    """
    model = _unwrapped(model)
    if getattr(model.config, "vision_config", None) is None:
        return model, processor
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"got a {type(model).__name__}, which has no output embedding and says nothing; load "
            "the model by AutoModelForImageTextToText, or by MLLM.from_pretrained"
        )
    embedding = model.get_input_embeddings().weight
    if embedding.is_meta and not hasattr(model.get_input_embeddings(), "_hf_hook"):
        raise ValueError("the model's weights are on the device 'meta', which holds no numbers")
    _check_processor(processor)
    processor = complete_processor(processor, model.config)
    _check_sizes(model, processor)
    _check_output(model, processor)
    largest = max(processor.tokenizer.get_vocab().values(), default=0)
    if largest >= len(embedding):
        warnings.warn(
            f"the tokenizer has tokens up to {largest}, but the model has embeddings of "
            f"{len(embedding)} tokens alone; is the processor the model's own?",
            stacklevel=3,
        )
    return model, processor


def check_tokenizer(tokenizer: Any) -> None:
    r"""Refuse a tokenizer that does not tell where in the prompt its tokens are.

    Raises:
        ValueError: for a tokenizer that is written in Python.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"got a {type(tokenizer).__name__}, which does not tell where in the text its tokens "
            "are (`return_offsets_mapping`), so the words of the prompt cannot be found; give the "
            "processor a tokenizer of the tokenizers library, a subclass of PreTrainedTokenizerFast"
        )


def complete_processor(processor: Any, config: Any) -> Any:
    r"""A processor with what older checkpoints of LLaVA leave out, from the model's configuration.

    Args:
        processor (ProcessorMixin): not changed.
        config (PretrainedConfig): the model's configuration.

    Returns:
        ProcessorMixin: the processor, or a copy where something was added.
    """
    if not hasattr(processor, "num_additional_image_tokens"):
        return processor
    vision = config.vision_config
    known = {
        "patch_size": getattr(vision, "patch_size", None),
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
        "num_additional_image_tokens": _CLASS_TOKENS.get(vision.model_type, 0),
    }
    missing = {
        name: value for name, value in known.items() if value and not getattr(processor, name, None)
    }
    if not missing:
        return processor
    completed = copy.copy(processor)
    for name, value in missing.items():
        setattr(completed, name, value)
    return completed


def _unwrapped(model: Any) -> Any:
    """The model of transformers within what wraps it."""
    while True:
        if isinstance(model, (nn.DataParallel, DistributedDataParallel)):
            model = model.module
        elif type(model).__module__.split(".")[0] == "peft" and hasattr(model, "get_base_model"):
            if any(each.is_prompt_learning for each in model.peft_config.values()):
                raise ValueError(
                    "got a PeftModel that learns a prompt, which is not part of the model that is "
                    "explained; adapters in its layers, such as LoRA, can be explained"
                )
            model = model.get_base_model()
        else:
            break
    if isinstance(model, (str, Path)):
        raise TypeError(
            f"got the name {str(model)!r}, expected a model; MLLM.from_pretrained({str(model)!r}) "
            "loads one with its processor"
        )
    if isinstance(model, Pipeline):
        raise TypeError("got a pipeline, expected its parts: MLLM(pipe.model, pipe.processor)")
    if not isinstance(getattr(model, "_orig_mod", model), PreTrainedModel):
        kind = type(model).__name__
        hint = "; it can be used as it is" if kind == "MLLM" else ""
        raise TypeError(f"got a model of type {kind}, expected a model of transformers{hint}")
    return model


def _check_processor(processor: Any) -> None:
    parts = ("image_processor", "tokenizer", "image_token")
    lacking = [name for name in parts if getattr(processor, name, None) is None]
    if lacking:
        raise TypeError(
            f"got a processor of type {type(processor).__name__}, which has no "
            f"{' and no '.join(lacking)}, expected the model's processor of images and text; "
            "captum_mllm.models.load_processor(name) loads it"
        )
    check_tokenizer(processor.tokenizer)


def _check_sizes(model: Any, processor: Any) -> None:
    """Compare what both say of patches and tokens."""
    vision, images = model.config.vision_config, processor.image_processor
    patch = _own(images, "patch_size") or _own(processor, "patch_size")
    family, own = find_family(model.config), _own(vision, "patch_size")
    if family is not None and own is not None and patch == own * family.merge_size(model.config):
        # Some processors tell the pixels of a token.
        patch = own
    pairs = {
        "patch_size": (patch, "patch_size"),
        "merge_size": (_own(images, "merge_size"), "spatial_merge_size"),
        "temporal_patch_size": (_own(images, "temporal_patch_size"), "temporal_patch_size"),
    }
    for name, (given, counterpart) in pairs.items():
        wanted = _own(vision, counterpart)
        if given and wanted and given != wanted:
            _refuse(model, processor, f"it has {name}={given}, the model {counterpart}={wanted}")
    given, wanted = (_own(each, "image_seq_length") for each in (processor, model.config))
    if given and wanted and given != wanted:
        _refuse(model, processor, f"it writes {given} tokens for a tile, the model has {wanted}")


def _own(part: Any, name: str) -> int | None:
    """A size, also where it is given as the sides of a square."""
    value = getattr(part, name, None)
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        value = value[0]
    return value if isinstance(value, int) else None


def _check_output(model: Any, processor: Any) -> None:
    """Let the processor prepare an image, and look at what comes back."""
    placeholder, expected = processor.image_token, model.config.image_token_id
    blank = Image.new("RGB", (_SIDE, _SIDE), "grey")
    try:
        output = processor(images=[blank], text=[placeholder], return_tensors="pt")
        ids = output["input_ids"][0]
    except Exception as error:
        # A processor whose parts do not fit together may raise anything.
        raise ValueError(
            f"the {type(processor).__name__} cannot prepare an image for the "
            f"{type(model).__name__}: {type(error).__name__}: {error}"
        ) from error
    if not (ids == expected).any():
        given = processor.tokenizer.convert_tokens_to_ids(placeholder)
        _refuse(
            model,
            processor,
            f"it writes token {given} ({placeholder!r}) for an image, the model looks "
            f"for token {expected}",
        )
    forward = inspect.signature(getattr(model, "_orig_mod", model).forward).parameters
    if ("image_grid_thw" in output) != ("image_grid_thw" in forward):
        lacks = "the model" if "image_grid_thw" in output else "the processor"
        _refuse(model, processor, f"{lacks} knows no `image_grid_thw`")
    vision = model.config.vision_config
    pixels = output.get("pixel_values")
    if vision.model_type in _CLASS_TOKENS and pixels is not None:
        height, width = pixels.shape[-2:]
        if (height, width) != (vision.image_size, vision.image_size):
            _refuse(
                model,
                processor,
                f"it makes images of {height} x {width} pixels, the model sees "
                f"{vision.image_size} x {vision.image_size}",
            )


def _refuse(model: Any, processor: Any, reason: str) -> None:
    raise ValueError(
        f"the {type(processor).__name__} is not that of this {type(model).__name__}: {reason}; "
        "give the processor of the same checkpoint"
    )
