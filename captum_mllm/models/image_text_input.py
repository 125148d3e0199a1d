"""The input that a user explains: a picture and a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captum.attr import InterpretableInput
from torch import Tensor

from captum_mllm.models.pictures import Picture, read_picture

Messages = Sequence[dict[str, Any]]


class ImageTextInput(InterpretableInput):
    r"""A picture and a question, as an interpretable input of Captum.

    Args:
        image (PIL.Image.Image, numpy.ndarray or Tensor): the picture. A PIL picture may be of any
            mode (it is turned upright by its EXIF orientation, laid on white where it is
            transparent, and 16 bits become 8); an array is (H, W, 3) of dtype uint8; a tensor is
            (3, H, W) or (1, 3, H, W), floating point in [0, 1]. A list of them where the text has
            several pictures.
        text (str, optional): the question. The pictures come before it.
        messages (Sequence[dict], optional): a chat instead of ``text``, as
            :meth:`transformers.ProcessorMixin.apply_chat_template` takes it, with a part
            ``{"type": "image"}`` for each picture. The last message is the user's.
        explained (int): which of several pictures is explained. Default: 0.

    Raises:
        TypeError: for a picture of a type not named above, and a text that is none.
        ValueError: for an empty prompt; a message without a role or content, or with parts that
            are neither text nor picture; a picture that is too small, too narrow, or has values
            that are not finite or lie outside of [0, 1]; or where the number of pictures and of
            image parts differ.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import ImageTextInput
        >>> inp = ImageTextInput(Image.new("RGB", (40, 30), "red"), "What colour is it?")
        >>> inp.to_tensor().shape
        torch.Size([1, 3, 30, 40])
    """

    def __init__(
        self,
        image: Picture | Sequence[Picture],
        text: str | None = None,
        *,
        messages: Messages | None = None,
        explained: int = 0,
    ) -> None:
        if (text is None) == (messages is None):
            raise ValueError("give the prompt either as `text` or as `messages`, and not both")
        pictures: list[Any] = list(image) if isinstance(image, (list, tuple)) else [image]
        if not 0 <= explained < len(pictures):
            raise ValueError(f"explained={explained}, expected the index of one of {len(pictures)}")
        self.images = tuple(read_picture(picture) for picture in pictures)
        self.explained = explained
        if text is not None and not isinstance(text, str):
            raise TypeError(f"got a text of type {type(text).__name__}, expected str")
        if messages is None:
            parts = [{"type": "image"} for _ in pictures]
            messages = [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]
        _check_messages(messages)
        self.messages = list(messages)
        self.texts = tuple(part["text"] for part in _parts(self.messages) if part["type"] == "text")
        self._validate()
        self.values = ["image", *self.texts]
        self.n_itp_features = self.to_tensor()[0].numel()

    def to_tensor(self) -> Tensor:
        """The picture under explanation, (1, 3, H, W) in [0, 1]."""
        return self.images[self.explained].unsqueeze(0)

    def to_model_input(self, perturbed_tensor: Tensor | None = None) -> tuple[Tensor, ...]:
        """The pictures, (1, 3, H, W) each, the explained one replaced by ``perturbed_tensor``."""
        pictures = [picture.unsqueeze(0) for picture in self.images]
        if perturbed_tensor is not None:
            pictures[self.explained] = perturbed_tensor
        return tuple(pictures)

    def format_attr(self, itp_attr: Tensor) -> Tensor:
        """Attributions are already in the picture's own shape."""
        return itp_attr

    def _validate(self) -> None:
        if not any(text.strip() for text in self.texts):
            raise ValueError("the prompt is empty, expected a question or a request to the model")
        slots = sum(part["type"] == "image" for part in _parts(self.messages))
        if slots != len(self.images):
            raise ValueError(
                f"got {len(self.images)} picture(s) for {slots} image part(s) in the messages; "
                "give one picture for each part {'type': 'image'}"
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


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, (list, tuple)):
        raise TypeError(
            f"got messages of type {type(messages).__name__}, expected a list of "
            "{'role': ..., 'content': ...}"
        )
    for message in messages:
        if not isinstance(message, dict) or not {"role", "content"} <= set(message):
            raise ValueError(f"got the message {message!r}, expected a dict of role and content")
        content = message["content"]
        if not isinstance(content, (str, list, tuple)):
            raise ValueError(
                f"got a message with content of type {type(content).__name__}, expected a text or "
                "a list of parts"
            )
        for part in [] if isinstance(content, str) else content:
            if not isinstance(part, dict) or not (
                part.get("type") == "image"
                or (part.get("type") == "text" and isinstance(part.get("text"), str))
            ):
                raise ValueError(
                    f"got the part {part!r} of a message, expected {{'type': 'image'}} or "
                    "{'type': 'text', 'text': ...}"
                )


def _parts(messages: Messages) -> list[dict[str, Any]]:
    parts = []
    for message in messages:
        content = message["content"]
        parts += [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    return parts
