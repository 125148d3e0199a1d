"""``PromptPart`` and ``prompt_parts``: the turns, texts and images of a prompt, in their order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

# More of a difference means that the tokens are not those of the texts alone.
_TOLERANCE = 0.1


@dataclass(frozen=True)
class PromptPart:
    r"""
    A run of tokens of the prompt, or one of its images.

    Args:
        role (str): who says it, such as ``"user"``; empty where that is not known.
        n_tokens (int): how many tokens the run has. Default: 0
        image (int, optional): which image it is, counted from 0; such a part has no tokens.
            Default: None
        turn (int): which message it belongs to, counted from 0. Default: 0
    """

    role: str
    n_tokens: int = 0
    image: int | None = None
    turn: int = 0


def prompt_parts(
    messages: Sequence[dict[str, Any]], tokens: Sequence[str], runs: Sequence[int]
) -> list[PromptPart]:
    r"""
    Give every run of prompt tokens the message that it comes from.

    A chat template puts marks and images between the user's texts, so that the tokens of those
    texts come in runs. A template may trim and rewrite a little of each text; the run is assigned
    by the place of its middle character in all texts.

    Args:
        messages (Sequence[dict]): the chat, as :class:`~captum_mllm.ImageTextInput` has it.
        tokens (Sequence[str]): the texts of the P tokens of the prompt.
        runs (Sequence[int]): how many tokens each run has, together P.

    Returns:
        list[PromptPart]: in the order of the prompt. The roles of text are empty where the tokens
        hold more than the texts of the messages, since the template rewrote them.

    Examples::
        >>> from captum_mllm.explain.prompt_parts import prompt_parts
        >>> content = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
        >>> prompt_parts([{"role": "user", "content": content}], ["What", " is", " it", "?"], (4,))
        [PromptPart(role='user', n_tokens=0, image=0, turn=0),
         PromptPart(role='user', n_tokens=4, image=None, turn=0)]
    """
    entries = [
        (turn, str(message["role"]), part)
        for turn, message in enumerate(messages)
        for part in _content(message)
    ]
    ends = list(accumulate(_length(part.get("text") or "") for _, _, part in entries))
    bounds = [0, *accumulate(runs)]
    lengths = [
        sum(_length(token) for token in tokens[start:end]) for start, end in pairwise(bounds)
    ]
    total = ends[-1] if ends else 0
    is_known = abs(sum(lengths) - total) <= max(_TOLERANCE * total, 4 * len(runs))
    found: dict[int, list[int]] = {}
    texts = [index for index, (_, _, part) in enumerate(entries) if part.get("type") == "text"]
    place = 0
    for run, length in enumerate(lengths):
        middle = min(place + length / 2, total - 0.5)
        entry = min(bisect_right(ends, middle), len(entries) - 1) if is_known else texts[-1]
        found.setdefault(entry, []).append(run)
        place += length
    parts: list[PromptPart] = []
    n_images = 0
    for index, (turn, role, part) in enumerate(entries):
        if part.get("type") == "image":
            parts.append(PromptPart(role, image=n_images, turn=turn))
            n_images += 1
        known = role if is_known else ""
        parts += [PromptPart(known, runs[run], turn=turn) for run in found.get(index, [])]
    return parts


def _content(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _length(text: str) -> int:
    return len("".join(text.split()))
