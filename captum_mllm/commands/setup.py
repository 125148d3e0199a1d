"""From the options of a command to a device, a model, an input and a method."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Literal

import torch
from captum.attr import Attribution
from PIL import Image
from transformers import AutoModelForImageTextToText

import captum_mllm
from captum_mllm import MLLM, MSEA, ImageTextInput, Video
from captum_mllm.commands.methods import METHODS, ONE_SCALE
from captum_mllm.datasets.chats import Chat, read_messages, with_system
from captum_mllm.demo import DEMO_PROMPT, demo_folder, demo_image
from captum_mllm.models import load_processor

DEFAULT_PROMPT = "Describe the image."


def read_input(options: argparse.Namespace) -> ImageTextInput:
    r"""
    The images or the video, and the question, of the command's options.

    Args:
        options (argparse.Namespace): What the command's parser gave.

    Returns:
        ImageTextInput: The input.

    Raises:
        ValueError: If an image or the file of messages cannot be read, or options contradict each
            other.
    """
    paths = [Path(path) for path in options.images]
    if options.messages is not None:
        if options.prompt is not None:
            raise ValueError("got --prompt and --messages; leave out one of them")
        chat = Chat.of(read_messages(Path(options.messages)))
        messages, named = chat.messages, [file for file in chat.files if file is not None]
        if named and paths:
            raise ValueError(
                f"{options.messages} names images, and the command line as well; leave out one"
            )
        if named and options.video is not None:
            raise ValueError(f"{options.messages} names images; leave them out, or --video")
        paths = paths or named
    else:
        paths = paths or ([] if options.video else [demo_image()])
        prompt = options.prompt
        if prompt is None:
            prompt = DEMO_PROMPT if options.model.startswith("demo/") else DEFAULT_PROMPT
        parts: list[dict[str, Any]] = [{"type": "image"} for _ in paths] or [{"type": "video"}]
        messages = [{"role": "user", "content": [*parts, {"type": "text", "text": prompt}]}]
    messages = with_system(messages, options.system)
    if options.video is not None and options.explained is not None:
        raise ValueError("all frames of a video are explained; leave out --explained")
    if options.video is None and not paths:
        raise ValueError(f"{options.messages} has no image; name image files on the command line")
    if options.explained is not None and not 0 <= options.explained < len(paths):
        raise ValueError(
            f"got --explained {options.explained}, expected the index of one of {len(paths)} "
            f"image(s), 0 to {len(paths) - 1}"
        )
    try:
        if options.video is not None:
            video = Video.read(options.video, options.frames, options.fps)
            return ImageTextInput(video, messages=messages)
        images = [Image.open(path) for path in paths]
        return ImageTextInput(images, messages=messages, explained=options.explained)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error


def choose_device(name: str) -> torch.device:
    r"""
    The device of that name.

    Args:
        name (str): A device of PyTorch, or ``"auto"``: the first of cuda, mps and cpu
            that is there.

    Returns:
        torch.device: The device.

    Raises:
        ValueError: If PyTorch has no device of that name.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"got --device {name}, expected auto or a device of PyTorch, such as cpu, cuda or "
            "cuda:1"
        ) from None


def load_model(
    options: argparse.Namespace,
    device: torch.device,
    device_map: str | None = None,
    geometry: Literal["probe"] | None = None,
) -> MLLM:
    r"""
    The model of the command's options.

    Args:
        options (argparse.Namespace): What the command's parser gave.
        device (torch.device): Where it runs.
        device_map (str, optional): How it is laid on several devices instead, such as ``"auto"``.
            Default: None
        geometry (str, optional): ``"probe"`` to find where its image tokens lie. Default: None,
            as its family's facts say.

    Returns:
        MLLM: The model, in evaluation mode.

    Raises:
        ValueError: If it cannot be loaded.
    """
    # Only where it is asked for: other loaders may not know the argument.
    trust = {"trust_remote_code": True} if options.trust_remote_code else {}
    loading = {"dtype": options.dtype, **trust}
    if device_map is not None:
        loading["device_map"] = device_map
    name, place = options.model, device_map or device
    # What a damaged file or a missing device raises is of many types, some of them bare.
    try:
        if options.processor is None:
            mllm = MLLM.from_pretrained(name, geometry=geometry, **loading)
        else:
            if name.startswith("demo/"):
                name = demo_folder(name.removeprefix("demo/"))
            processor = load_processor(options.processor, **trust)
            model = AutoModelForImageTextToText.from_pretrained(name, **loading)
            mllm = MLLM(model.eval(), processor, geometry=geometry)
        return mllm if device_map is not None else mllm.to(device)
    except Exception as error:
        message = str(error).replace("`trust_remote_code=True`", "--trust-remote-code")
        raise ValueError(f"{name} could not be loaded on {place}: {message}") from error


def build_method(
    mllm: MLLM, name: str, scales: tuple[float, ...] | None
) -> tuple[Attribution, dict[str, Any]]:
    r"""
    The method of that name, with MSEA in it where there is more than the one scale 1.

    Args:
        mllm (MLLM): The model.
        name (str): One of ``METHODS``.
        scales (tuple[float, ...], optional): The scales. Default: None, the method's own.

    Returns:
        tuple[Attribution, dict[str, Any]]: The method and the arguments of its ``attribute``.
    """
    recipe = METHODS[name]
    scales = scales or recipe.scales
    method = getattr(captum_mllm, recipe.base)(mllm)
    arguments: dict[str, Any] = {}
    if scales != ONE_SCALE:
        method, arguments = MSEA(method), {"scales": scales}
    if recipe.wrapper is not None:
        method = getattr(captum_mllm, recipe.wrapper)(method)
    return method, arguments


def image_tokens(options: argparse.Namespace) -> int | Literal["context"] | None:
    r"""
    The limit on the tokens of an image: without one, default scales are lowered to the context.

    Args:
        options (argparse.Namespace): What the command's parser gave.
    """
    if options.max_image_tokens is not None or options.scales is not None:
        return options.max_image_tokens
    return "context"
