"""What explainers of whole answers expect of their input."""

from __future__ import annotations

from typing import Any

from captum_mllm.models.image_text_input import ImageTextInput


def check_input(inp: Any, gen_args: dict[str, Any] | None) -> None:
    r"""Refuse what is no input, and arguments of ``generate`` that it does not take.

    Raises:
        TypeError: if ``inp`` is not an :class:`ImageTextInput`.
        ValueError: for an argument that ``generate`` does not know and ``MLLM.prepare`` does.
    """
    if not isinstance(inp, ImageTextInput):
        raise TypeError(
            f"got an input of type {type(inp).__name__}, expected ImageTextInput(picture, text)"
        )
    clash = {"every_picture", "target"} & set(gen_args or {})
    if clash:
        raise ValueError(f"gen_args holds {sorted(clash)}, which generate does not take")
