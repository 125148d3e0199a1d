"""`ImageTextInput`, the input that a user explains: images or a video, and a text."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from torch import Tensor

from captum_mllm._options import is_integer
from captum_mllm.models.images import ImageLike, read_image
from captum_mllm.models.video import Video

Messages = Sequence[dict[str, Any]]


class ImageTextInput:
    r"""An image and a question to explain.

    Args:
        image (PIL.Image.Image, numpy.ndarray, Tensor or Video): the image, or a list of images
            where the text has several; or a :class:`Video`, all of whose frames are explained. A
            PIL image may be of any mode. It is turned upright by its EXIF
            orientation, and laid on white where it is transparent. An array is (H, W) or (H, W, C),
            a tensor (H, W), (C, H, W) or (1, C, H, W), with 1 channel for grey, 3 for RGB or 4 for
            RGBA. Their numbers are integer levels or floating point in [0, 1]. Levels of 8 bits go
            up to 255. White among other levels is the largest of the smallest usual depth (8, 10,
            12, 14, 16, 24 or 31 bits) that holds them all, with a warning where they fill less than
            half of it.
        text (str, optional): the question. The images come before it.
        messages (Sequence[dict], optional): a chat instead of ``text``, as
            :meth:`transformers.ProcessorMixin.apply_chat_template` takes it, with a part
            ``{"type": "image"}`` for each image, or one ``{"type": "video"}``. The last message is
            the user's, or begins the answer of the assistant, which the model then continues.
        explained (int, optional): the one of several images that is explained, from 0.
            Default: None, all of them.

    Raises:
        TypeError: for an image, a text or messages of another type.
        ValueError: for an empty prompt; a message without a role or content, or with parts that
            are neither text nor image nor video, or that hold what would not be seen; an image that
            cannot be read, is too small or too narrow, or has values that are not finite or whose
            range is not known; where the number of images and of image parts differ; and for
            images together with a video.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import ImageTextInput
        >>> inp = ImageTextInput(Image.new("RGB", (40, 30), "red"), "What colour is it?")
        >>> inp.to_tensor().shape
        torch.Size([1, 3, 30, 40])
    """

    def __init__(
        self,
        image: ImageLike | Sequence[ImageLike] | Video,
        text: str | None = None,
        *,
        messages: Messages | None = None,
        explained: int | None = None,
    ) -> None:
        if (text is None) == (messages is None):
            raise ValueError("give the prompt either as `text` or as `messages`, and not both")
        if text is not None and not isinstance(text, str):
            raise TypeError(f"got a text of type {type(text).__name__}, expected str")
        #: The video whose frames the images are; None for images.
        self.video = image if isinstance(image, Video) else None
        if isinstance(image, Video):
            image = image.frames
        images: list[Any] = list(image) if isinstance(image, (list, tuple)) else [image]
        if not images:
            raise ValueError("got no image, expected one or a list of them")
        if any(isinstance(each, Video) for each in images):
            raise ValueError(
                "got a video in a list; give one video alone, or the frames of all as images"
            )
        if self.video is not None and explained is not None:
            raise ValueError("all frames of a video are explained; leave out `explained`")
        if explained is not None and not is_integer(explained):
            raise TypeError(f"got explained={explained!r}, expected the index of an image")
        if explained is not None and not 0 <= explained < len(images):
            raise ValueError(
                f"got explained={explained}, expected the index of one of {len(images)} image(s)"
            )
        if messages is None:
            parts = [{"type": "video"}] if self.video else [{"type": "image"} for _ in images]
            messages = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        _check_messages(messages)
        self.messages = [_own(message) for message in messages]
        self.texts = tuple(part["text"] for part in _parts(self.messages) if part["type"] == "text")
        _check_texts(self.messages, self.texts)
        _check_slots(self.messages, len(images), self.video is not None)
        # Those of a video have been read.
        self.images = self.video.frames if self.video else tuple(map(read_image, images))
        #: Indices of the images that are explained.
        self.explained = tuple(range(len(images))) if explained is None else (int(explained),)

    @property
    def continues(self) -> bool:
        """Whether the last message begins the answer, so that the model continues it."""
        return self.messages[-1]["role"] == "assistant"

    def as_images(self, together: int = 1) -> ImageTextInput:
        r"""The same with the first frame of each group of frames as an image in place of the video.

        Args:
            together (int): how many frames are a group. Default: 1

        Returns:
            ImageTextInput: itself where it has no video.
        """
        if self.video is None:
            return self
        shown = copy(self)
        shown.video = None
        shown.images = self.images[::together]
        shown.explained = tuple(range(len(shown.images)))
        shown.messages = [
            message
            if isinstance(message["content"], str)
            else {**message, "content": _expanded(message["content"], len(shown.images))}
            for message in self.messages
        ]
        return shown

    def to_tensor(self) -> Tensor | tuple[Tensor, ...]:
        """The explained image, (1, 3, H, W) in [0, 1], or a tuple of them if there are several."""
        opened = tuple(self.images[index].unsqueeze(0) for index in self.explained)
        return opened if len(opened) > 1 else opened[0]


def check_is_input(inp: Any) -> None:
    r"""Refuse what is not an :class:`ImageTextInput`.

    Raises:
        TypeError: if it is something else.
    """
    if not isinstance(inp, ImageTextInput):
        raise TypeError(
            f"got an input of type {type(inp).__name__}, expected ImageTextInput(image, text)"
        )


def replace_texts(messages: Messages, texts: Sequence[str]) -> list[dict[str, Any]]:
    r"""The same messages with other texts, one for each text that they have."""
    remaining = iter(texts)

    def replace(part: dict[str, Any]) -> dict[str, Any]:
        return {**part, "text": next(remaining)} if part["type"] == "text" else part

    return [
        {**message, "content": next(remaining)}
        if isinstance(message["content"], str)
        else {**message, "content": [replace(part) for part in message["content"]]}
        for message in messages
    ]


def text_parts(messages: Messages) -> list[dict[str, Any]]:
    r"""The same messages with each text as a part, as some chat templates want it."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message["content"], str)
        else message
        for message in messages
    ]


def _own(message: dict[str, Any]) -> dict[str, Any]:
    """A copy that the caller does not change, of parts without empty entries."""
    content = message["content"]
    if not isinstance(content, str):
        content = [
            {name: value for name, value in part.items() if value is not None} for part in content
        ]
    return {**message, "content": content}


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, (list, tuple)):
        raise TypeError(
            f"got messages of type {type(messages).__name__}, expected a list of "
            "{'role': ..., 'content': ...}"
        )
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f"got the message {message!r}, expected a dict of role and content")
        role, content = message["role"], message["content"]
        if not isinstance(role, str):
            raise ValueError(f"got the role {role!r} of a message, expected a text such as 'user'")
        if not isinstance(content, (str, list, tuple)):
            raise ValueError(
                f"got a message with content of type {type(content).__name__}, expected a text or "
                "a list of parts"
            )
        for part in [] if isinstance(content, str) else content:
            _check_part(part)


def _expanded(parts: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The parts with a number of images in place of a video."""
    images = [{"type": "image"} for _ in range(count)]
    return [each for part in parts for each in (images if part["type"] == "video" else [part])]


def _check_part(part: Any) -> None:
    """Refuse a part of another type, and what a part would silently not show."""
    kind = part.get("type") if isinstance(part, dict) else None
    is_text = kind == "text" and isinstance(part.get("text"), str)
    if not is_text and kind not in ("image", "video"):
        raise ValueError(
            f"got the part {part!r} of a message, expected {{'type': 'image'}}, "
            "{'type': 'video'} or {'type': 'text', 'text': ...}"
        )
    known = {"type", "text"} if is_text else {"type"}
    # Tables of messages fill what a part does not have with None.
    unseen = [str(name) for name in part if name not in known and part[name] is not None]
    if unseen:
        raise ValueError(
            f"got a part of type {kind!r} with {', '.join(unseen)}, which would not be seen; give "
            "images as `image`, in the order of the parts {'type': 'image'}, a video as "
            "`image=Video(frames)`, and each text as a part of its own"
        )


def _check_slots(messages: Messages, n_images: int, has_video: bool) -> None:
    kinds = [part["type"] for part in _parts(messages) if part["type"] != "text"]
    n_videos, slots = kinds.count("video"), kinds.count("image")
    if has_video and (n_videos, slots) != (1, 0):
        raise ValueError(
            f"got a video for {n_videos} video part(s) and {slots} image part(s) in the messages, "
            "expected one part {'type': 'video'} and no image together with it"
        )
    if n_videos and not has_video:
        raise ValueError(
            "got a part of type 'video' without a video; give it as `image=Video(frames, fps)`, "
            "or its frames as images, with one part {'type': 'image'} for each of them"
        )
    if not has_video and slots != n_images:
        raise ValueError(
            f"got {n_images} image(s) for {slots} image part(s) in the messages; give one image "
            "for each part {'type': 'image'}"
        )


def _check_texts(messages: Messages, texts: Sequence[str]) -> None:
    if not any(text.strip() for text in texts):
        raise ValueError("the prompt is empty, expected a question or a request to the model")
    for text in texts:
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"got the text {text!r}, whose lone surrogates are not characters")
    last = [part for part in _parts(messages[-1:]) if part["type"] == "text"]
    if messages[-1]["role"] == "assistant" and not any(part["text"].strip() for part in last):
        raise ValueError(
            "the last message is the assistant's and has no text to continue; leave it out"
        )


def _parts(messages: Messages) -> list[dict[str, Any]]:
    parts = []
    for message in messages:
        content = message["content"]
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return parts
