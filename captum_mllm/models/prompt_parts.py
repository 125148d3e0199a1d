"""``PromptPart`` and ``prompt_parts``: the turns, texts and images of a prompt, in their order."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

# A larger difference of lengths means that the tokens are not those of the texts alone.
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
    texts come in runs. It may also trim and rewrite a little of each text, and a tokenizer may not
    know a word; so a run is assigned by where it lies among all characters, and where characters
    are missing it is searched for in the texts.

    Args:
        messages (Sequence[dict]): the chat, as :class:`~captum_mllm.ImageTextInput` has it.
        tokens (Sequence[str]): the texts of the P tokens of the prompt.
        runs (Sequence[int]): how many tokens each run has, together P.

    Returns:
        list[PromptPart]: in the order of the prompt. The roles of text are empty where the tokens
        hold more than the texts of the messages, since the template rewrote them.

    Examples::
        >>> from captum_mllm.models.prompt_parts import prompt_parts
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
    bounds = [0, *accumulate(runs)]
    texts = [_even("".join(tokens[start:end])) for start, end in pairwise(bounds)]
    places = _places(texts, "".join(_even(part.get("text") or "") for _, _, part in entries))
    # Images have no text, so that no place lies in them.
    ends = list(accumulate(len(_even(part.get("text") or "")) for _, _, part in entries))
    last = max(
        (i for i, (_, _, part) in enumerate(entries) if part.get("type") == "text"), default=0
    )
    found: dict[int, list[int]] = {}
    for run in range(len(runs)):
        entry = last if places is None else min(bisect_right(ends, places[run]), last)
        found.setdefault(entry, []).append(run)
    parts: list[PromptPart] = []
    n_images = 0
    for index, (turn, role, part) in enumerate(entries):
        if part.get("type") == "image":
            parts.append(PromptPart(role, image=n_images, turn=turn))
            n_images += 1
        known = "" if places is None else role
        parts += [PromptPart(known, runs[run], turn=turn) for run in found.get(index, [])]
    return parts


def _places(runs: Sequence[str], text: str) -> list[float] | None:
    """A place in the text for each of its runs, in order; None where they are not of this text."""
    total = sum(map(len, runs))
    if abs(total - len(text)) <= max(_TOLERANCE * len(text), 2 * len(runs)):
        # The middle of a run stays where it is though a template changes a little at the edges.
        starts = [0, *accumulate(map(len, runs))]
        return [
            min(start + len(run) / 2, max(len(text) - 0.5, 0)) for start, run in zip(starts, runs)
        ]
    # Words that the model does not know, and the template's, have no tokens in any run.
    places, place, n_found = [], 0, 0
    for run in runs:
        start = text.find(run, place)
        if start >= 0:
            n_found += len(run)
            place = start + len(run)
        places.append(max(place - len(run) / 2, 0.0))
    return places if 2 * n_found >= total else None


def _content(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _even(text: str) -> str:
    return "".join(text.split()).casefold()
