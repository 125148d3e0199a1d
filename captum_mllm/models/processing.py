"""process: run a model's processor, with each image of a prompt prepared by its own options, or on
a video; and process_again: prepare other images of the same prompt."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from itertools import cycle
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature

from captum_mllm.models.prompt import special_tokens_option
from captum_mllm.models.query import Clip

# What a processor returns for training, which a pass must not have.
_UNWANTED = ("labels",)


@dataclass(frozen=True)
class Processed:
    r"""What a processor makes of some rows, each the same prompt with other images.

    Args:
        inputs (dict[str, Tensor]): keyword arguments of the model.
        offsets (Tensor): where the text of each token starts and ends in the prompt; both are the
            same for a token that has no text there; shape (S, 2).
        image (Tensor): which image or group of frames a token stands for, -1 for text, shape (S,).
        images (dict[str, Any]): what the image processor returned but the pixels, also what the
            model does not take.
        call (ImageCall, optional): how the image processor was called; None where the processor
            changes what it returns.
    """

    inputs: dict[str, Tensor]
    offsets: Tensor
    image: Tensor
    images: dict[str, Any]
    call: ImageCall | None = None


@dataclass(frozen=True)
class ImageCall:
    r"""A call of an image processor.

    Args:
        nested (bool): whether the images of each row are a list of their own.
        arguments (dict[str, Any]): beside the images.
    """

    nested: bool
    arguments: dict[str, Any]


class _Recorder:
    """An image processor that takes options for each image of a prompt, and keeps its output."""

    def __init__(self, image_processor: Any, options: Sequence[dict[str, Any]]) -> None:
        self.image_processor = image_processor
        self.options = options
        self.output: dict[str, Any] = {}
        self.pixels: Any = None
        self.call: ImageCall | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.image_processor, name)

    def __call__(self, images: Sequence[Any], **kwargs: Any) -> BatchFeature:
        first = self.options[0]
        nested = isinstance(images[0], (list, tuple))
        self.call = ImageCall(nested, kwargs)
        if all(options == first for options in self.options):
            made = self.image_processor(images, **{**kwargs, **first})
        else:
            flat = [image for row in images for image in row] if nested else images
            parts = [
                self.image_processor([[image]] if nested else [image], **{**kwargs, **options})
                for image, options in zip(flat, cycle(self.options))
            ]
            made = BatchFeature(
                {
                    name: _join([part[name] for part in parts], image_axis(name, parts[0]))
                    for name in parts[0]
                }
            )
        self.output = {name: made[name] for name in made if name != "pixel_values"}
        self.pixels = made.get("pixel_values")
        return made


class _VideoRecorder:
    """A video processor that leaves out no frame, and keeps its output."""

    def __init__(self, video_processor: Any, options: dict[str, Any], clip: Clip) -> None:
        self.video_processor = video_processor
        self.options = options
        self.clip = clip
        self.output: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.video_processor, name)

    def __call__(self, videos: Sequence[Any], **kwargs: Any) -> BatchFeature:
        count, fps = len(self.clip.frames), self.clip.fps
        known = {
            "total_num_frames": count,
            "fps": fps,
            "duration": self.clip.n_frames / fps,
            "frames_indices": self.clip.frames,
        }
        settings = {
            **self.options,
            "do_sample_frames": False,
            "return_metadata": True,
            "video_metadata": [dict(known) for _ in videos],
        }
        made = self.video_processor(videos, **{**kwargs, **settings})
        self.output = {name: made[name] for name in made if not name.startswith("pixel_values")}
        return made


def process(
    processor: Any,
    prompt: str,
    rows: Sequence[Sequence[Image.Image]],
    options: Sequence[dict[str, Any]],
    token_ids: Sequence[int],
    clip: Clip | None = None,
) -> Processed:
    r"""Run the processor on a prompt, once with each row of images.

    Args:
        processor (Any): the model's processor.
        prompt (str): with one placeholder for each image.
        rows (Sequence[Sequence[PIL.Image.Image]]): the images of the prompt, for each row.
        options (Sequence[dict]): options of the image processor for each image of the prompt.
        token_ids (Sequence[int]): the indices that tokens of images have in the vocabulary.
        clip (Clip, optional): the video whose frames the images of a row are; the prompt has one
            placeholder for it. Default: None

    Returns:
        Processed: on the CPU.

    Raises:
        ValueError: if images at several scales do not fit into one input of the model.
        RuntimeError: if the processor does not tell what it put instead of a placeholder.
    """
    recorder: Any
    seen_as: dict[str, Any]
    if clip is None:
        recorder = _Recorder(processor.image_processor, options)
        processor = _with(processor, image_processor=recorder)
        nested = not _takes_pages(processor)
        seen_as = {
            "images": list(map(list, rows)) if nested else [each for row in rows for each in row]
        }
    else:
        recorder = _VideoRecorder(processor.video_processor, options[0], clip)
        processor = _with(processor, video_processor=recorder)
        # Channels first, which is unambiguous also where a side has three pixels.
        videos = [np.stack([np.asarray(frame) for frame in row]) for row in rows]
        seen_as = {"videos": [video.transpose(0, 3, 1, 2) for video in videos]}
    n_slots = len(options) if clip is None else 1
    output = dict(
        processor(
            **seen_as,
            text=[prompt] * len(rows),
            return_tensors="pt",
            return_offsets_mapping=True,
            return_text_replacement_offsets=True,
            **special_tokens_option(processor.tokenizer, prompt),
        )
    )
    offsets = torch.as_tensor(output.pop("offset_mapping"))[0]
    if not bool(torch.as_tensor(output.get("attention_mask", 1)).all()):
        raise ValueError(
            "the tokenizer pads the prompt, so that it ends with tokens that say nothing; leave "
            "`padding` and `max_length` out of the arguments that it is loaded with"
        )
    replacements = output.pop("text_replacement_offsets", None)
    own = torch.isin(output["input_ids"][0], torch.tensor(token_ids))
    if replacements is None and int(own.sum()) == len(options):
        # Where images are seen by cross-attention nothing is put there.
        replacements = [[]]
    elif not replacements or len(replacements[0]) != n_slots:
        raise RuntimeError(
            f"{type(processor).__name__} does not tell what it puts instead of each "
            "placeholder (`return_text_replacement_offsets`), which is needed to find the tokens "
            "of each image"
        )
    inputs = {
        name: value
        for name, value in output.items()
        if isinstance(value, Tensor) and name not in _UNWANTED
    }
    ids = inputs["input_ids"][0]
    image = torch.full_like(ids, -1)
    if not replacements[0]:
        image[own] = torch.arange(len(options))
    start, end = offsets[offsets[:, 0] < offsets[:, 1]].unbind(1)
    seen = int(start.amin()), int(end.amax())
    shift, length = torch.zeros_like(offsets), 0
    for index, replacement in enumerate(replacements[0]):
        start, end = replacement["new_span"]
        inside = (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 0] < end)
        found = (inside & own).nonzero()[:, 0]
        image[found] = index
        if clip is not None:
            image[found] = _group_of(len(found), clip.n_groups)
        grown = end - start - (replacement["span"][1] - replacement["span"][0])
        shift[offsets[:, 0] >= end] += grown
        length += grown
        offsets[inside] = start
    offsets = offsets - shift
    written = prompt
    if clip is None and not _takes_pages(processor):
        written = _written(processor, prompt, list(rows[0]))
    _warn_of_cut_text(written, seen, len(written) + length)
    if written != prompt:
        offsets = _in_prompt(prompt, written)[offsets]
    untouched = clip is None and recorder.pixels is not None
    untouched = untouched and inputs.get("pixel_values") is recorder.pixels
    call = recorder.call if untouched else None
    return Processed(inputs, offsets, image, recorder.output, call)


def _group_of(n_tokens: int, n_groups: int) -> Tensor:
    """Which group each token of a video is of, in order; -1 for a last token after all groups,
    which LLaVA-OneVision has."""
    each = n_tokens // n_groups
    behind = n_tokens - each * n_groups
    if each == 0 or behind > 1:
        raise RuntimeError(
            f"the processor writes {n_tokens} tokens for a video of {n_groups} groups of frames, "
            "expected as many for each group; please report it with the model's name and the "
            "number and size of the frames"
        )
    groups = torch.arange(n_groups).repeat_interleave(each)
    return torch.cat([groups, groups.new_full((behind,), -1)])


def process_again(
    processor: Any,
    processed: Processed,
    rows: Sequence[Sequence[Image.Image]],
    options: Sequence[dict[str, Any]],
) -> Processed | None:
    r"""What the processor makes of the same prompt with other images of the same sizes.

    The text is not read again. All that the image processor returns beside the pixels has to be as
    before, or else nothing of the prompt can be told from it.

    Args:
        processor (Any): the model's processor.
        processed (Processed): what it made of the prompt with images of these sizes.
        rows (Sequence[Sequence[PIL.Image.Image]]): as of :func:`process`.
        options (Sequence[dict]): as of :func:`process`.

    Returns:
        Processed or None: None where the processor has to run as a whole.
    """
    if processed.call is None:
        return None
    images: Any = [list(row) for row in rows]
    if not processed.call.nested:
        images = [image for row in rows for image in row]
    recorder = _Recorder(processor.image_processor, options)
    recorder(images, **processed.call.arguments)
    pixels, before = recorder.pixels, processed.inputs["pixel_values"]
    if not isinstance(pixels, Tensor) or pixels.shape != before.shape:
        return None
    if not _are_equal(recorder.output, processed.images):
        return None
    return replace(processed, inputs={**processed.inputs, "pixel_values": pixels})


def _are_equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two outputs of an image processor are known to be equal."""
    return one.keys() == other.keys() and all(_equals(one[name], other[name]) for name in one)


def _equals(value: Any, other: Any) -> bool:
    if isinstance(value, Tensor):
        return isinstance(other, Tensor) and torch.equal(value, other)
    # Arrays, and lists of them, have no truth value.
    return _is_plain(value) and _is_plain(other) and bool(value == other)


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (int, float, str))


def _warn_of_cut_text(written: str, seen: tuple[int, int], length: int) -> None:
    """Warn of text at either end that no token has; ``length`` is that with the image tokens."""
    cut = [written[: seen[0]], written[len(written) - max(length - seen[1], 0) :]]
    unseen = [text for text in cut if text.strip()]
    if unseen:
        warnings.warn(
            f"the tokenizer cuts the prompt off: the model does not see {unseen[0][:60]!r}; leave "
            "`truncation` and `max_length` out of the arguments that it is loaded with",
            stacklevel=5,
        )


def _with(processor: Any, **parts: Any) -> Any:
    """A shallow copy of the processor with other parts; other threads may be using it."""
    copied = object.__new__(type(processor))
    copied.__dict__.update(processor.__dict__, **parts)
    return copied


def _takes_pages(processor: Any) -> bool:
    """Whether lists of images are the pages of one document (GOT-OCR), and no rows of a batch."""
    return hasattr(processor, "multi_page")


def _written(processor: Any, prompt: str, images: list[Image.Image]) -> str:
    """The prompt with what the processor itself writes into it: PaliGemma adds a line's end."""
    _, text, *_ = processor.prepare_inputs_layout(images=[images], text=[prompt])
    return text[0]


def _in_prompt(prompt: str, written: str) -> Tensor:
    """Where each place of a text lies in the prompt that it was made of."""
    # What both begin and end with needs no search, which takes long in long texts.
    head = _n_common(prompt, written)
    tail = _n_common(prompt[head:][::-1], written[head:][::-1])
    places = torch.arange(len(written) + 1)
    places[len(written) - tail :] += len(prompt) - len(written)
    parts = prompt[head : len(prompt) - tail], written[head : len(written) - tail]
    matcher = SequenceMatcher(None, *parts, autojunk=False)
    for tag, start, _, first, last in matcher.get_opcodes():
        counted = torch.arange(last - first) if tag == "equal" else 0
        places[head + first : head + last] = head + start + counted
    return places


def _n_common(one: str, other: str) -> int:
    """How many characters two texts begin with alike."""
    pairs = enumerate(zip(one, other))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def image_axis(name: str, inputs: Any) -> int:
    r"""The dimension in which an input has its images one after the other.

    MiniCPM-V lays the patches of all images of a batch beside each other.
    """
    return -1 if name == "pixel_values" and "target_sizes" in inputs else 0


def _join(parts: list[Any], axis: int) -> Any:
    if not isinstance(parts[0], Tensor):
        return [item for part in parts for item in part]
    if axis == 0 and len({part.shape[1:] for part in parts}) > 1:
        raise ValueError(
            f"the image processor makes inputs of shapes {[tuple(part.shape) for part in parts]} "
            "of the images at their scales, which do not fit together; explain this prompt at "
            "scale 1 alone"
        )
    return torch.cat(parts, dim=axis)
