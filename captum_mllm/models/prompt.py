"""The text that the model reads, from the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captum_mllm.models.image_text_input import ImageTextInput


def render_prompt(processor: Any, inp: ImageTextInput) -> str:
    r"""The input's messages in the model's chat template, ready for an answer.

    Raises:
        ValueError: if the template does not have one placeholder for each picture.
    """
    prompt = processor.apply_chat_template(inp.messages, add_generation_prompt=True, tokenize=False)
    placeholder = processor.image_token
    count = prompt.count(placeholder)
    if count != len(inp.images):
        raise ValueError(
            f"the prompt has {count} placeholder(s) {placeholder!r} for {len(inp.images)} "
            f"picture(s); does the chat template render parts of type 'image', and is the "
            f"placeholder absent from the text? The prompt is {prompt!r}"
        )
    return prompt


def text_spans(prompt: str, texts: Sequence[str]) -> tuple[tuple[int, int], ...]:
    r"""Where the user's texts lie in the prompt; all of it if the template rewrote them."""
    spans, start = [], 0
    for text in texts:
        text = text.strip()
        found = prompt.find(text, start)
        if found < 0:
            return ((0, len(prompt)),)
        start = found + len(text)
        spans.append((found, start))
    return tuple(spans)
