"""``select_tokens``: the tokens of an answer that a position, a range, a phrase or a pattern names.

One grammar for all that a result shows: maps, plots and weights of earlier words.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import index as as_index
from typing import Any

import numpy as np
from torch import Tensor

from captum_mllm.models.words import Word

#: What names tokens; see :func:`select_tokens`.
Selection = (
    int
    | str
    | re.Pattern[str]
    | tuple[int, int]
    | tuple[str | re.Pattern[str], int | None]
    | slice
    | range
    | Sequence[Any]
    | np.ndarray
    | Tensor
)

_EXPECTED = (
    "expected a position, a range (start, end), a slice, a word or phrase, (phrase, occurrence), a "
    "compiled regular expression, or a list of them"
)
_SHOWN_WORDS = 30


def select_tokens(
    selection: Selection | None,
    tokens: Sequence[str],
    words: Sequence[Word],
    runs: Sequence[int] | None = None,
) -> list[int]:
    r"""
    The positions of the tokens that a selection names.

    - An integer is a position; negative ones count from the end.
    - ``(start, end)``, a ``slice`` and a ``range`` are positions from start to end (noninclusive).
      Both ends have to lie within the tokens: nothing is cut off silently.
    - A string is a word or a phrase of consecutive words, such as ``"red star"``. It begins and
      ends where words do, and white space of any length matches a space. It is looked for
      with the same case first, then with any.
    - A compiled regular expression selects every word that its match touches. It is searched in the
      words' text, with one space between words that white space separates.
    - ``(phrase, occurrence)`` counts matches from 1, or from the end for negative numbers, and
      selects all of them for None; a phrase or a pattern alone means the first.
    - A list, or an array of integers, selects all that its items select, each token once.

    Phrases and patterns are looked for in the last run, the answer. The earlier runs, those of the
    prompt, are searched where the answer has no match.

    Args:
        selection (Selection, optional): what to select; None is all.
        tokens (Sequence[str]): the texts of the T tokens.
        words (Sequence[tuple[int, ...]]): the tokens of each word.
        runs (Sequence[int], optional): how many tokens each run has; no match goes over from one
            into the next. Default: None, one run of all.

    Returns:
        list[int]: positions in [0, T), at least one.

    Raises:
        TypeError: for a bool, a float, or another type of selection.
        ValueError: for an empty selection, a position or range outside of the tokens, and a phrase
            that does not occur.

    Examples::
        >>> from captum_mllm.explain.selection import select_tokens
        >>> tokens, words = [" A", " Red", " st", "ar", "."], [(0,), (1,), (2, 3), (4,)]
        >>> select_tokens("red star", tokens, words)
        [1, 2, 3]
        >>> select_tokens(slice(-2, None), tokens, words)
        [3, 4]
    """
    count = len(tokens)
    if selection is None:
        return list(range(count))
    if isinstance(selection, (str, re.Pattern)):
        selection = (selection, 1)
    if isinstance(selection, tuple):
        if len(selection) != 2:
            raise TypeError(
                f"got the selection {selection!r} of {len(selection)} parts, {_EXPECTED}"
            )
        first, second = selection
        if isinstance(first, (str, re.Pattern)):
            if second is not None:
                second = _integer(second, "an occurrence")
            return _Texts(tokens, words, runs).find(first, second)
        start, end = (_integer(part, "a position") for part in (first, second))
        return _within(slice(start, end), selection, count)
    if isinstance(selection, slice):
        parts = (selection.start, selection.stop, selection.step)
        checked = (None if part is None else _integer(part, "a position") for part in parts)
        return _within(slice(*checked), selection, count)
    if isinstance(selection, range):
        ends = (selection[0], selection[-1]) if selection else ()
        for end in ends:
            _position(end, selection, count)
        return _every(selection, selection, tokens, words, runs)
    if isinstance(selection, (np.ndarray, Tensor)) and selection.ndim > 0:
        kind = np.asarray(selection).dtype.kind if isinstance(selection, np.ndarray) else None
        is_integers = kind in ("i", "u") or (
            isinstance(selection, Tensor)
            and not (selection.is_floating_point() or selection.is_complex())
            and str(selection.dtype) != "torch.bool"
        )
        if selection.ndim > 1 or not (is_integers or kind in ("U", "O")):
            raise TypeError(
                f"got an array of {selection.dtype} and shape {tuple(selection.shape)}, expected "
                "integers of one dimension; numpy.flatnonzero(mask) gives the positions of a mask"
            )
        selection = selection.tolist()
    if isinstance(selection, list):
        return _every(selection, selection, tokens, words, runs)
    return [_position(_integer(selection, "a position"), selection, count)]


def _every(items: Iterable[Any], given: Any, tokens: Any, words: Any, runs: Any) -> list[int]:
    found: dict[int, None] = {}
    for item in items:
        if item is None or isinstance(item, (list, range)):
            raise TypeError(f"got {item!r} within a list of selections, {_EXPECTED}")
        found.update(dict.fromkeys(select_tokens(item, tokens, words, runs)))
    if not found:
        raise ValueError(f"the selection {given!r} is empty; None selects all tokens")
    return list(found)


def _integer(value: Any, name: str) -> int:
    if isinstance(value, (bool, np.bool_)) or str(getattr(value, "dtype", "")) == "torch.bool":
        raise TypeError(f"got {value!r} for {name}, expected an integer; truth values are refused")
    try:
        return as_index(value)
    except TypeError:
        raise TypeError(f"got {value!r} of type {type(value).__name__}, {_EXPECTED}") from None


def _position(position: int, given: Any, count: int) -> int:
    if not -count <= position < count:
        raise ValueError(
            f"got {given!r}, which names token {position}, expected positions within the {count} "
            f"explained tokens, {-count} to {count - 1}"
        )
    return position % count


def _within(places: slice, given: Any, count: int) -> list[int]:
    for end in (places.start, places.stop):
        if end is not None and not -count <= end <= count:
            raise ValueError(
                f"got the range {given!r}, which reaches {end}, expected ends within the {count} "
                f"explained tokens, {-count} to {count}"
            )
    if places.step == 0:
        raise ValueError(f"got the range {given!r} with a step of 0, expected another one")
    found = list(range(count)[places])
    if not found:
        raise ValueError(f"the range {given!r} has no token, expected a start before its end")
    return found


class _Texts:
    """The words' text, run by run, and the places of the words in it."""

    def __init__(
        self, tokens: Sequence[str], words: Sequence[Word], runs: Sequence[int] | None
    ) -> None:
        self.tokens = tokens
        self.words = words
        ends = list(accumulate(runs or (len(tokens),)))
        starts = [0, *ends[:-1]]
        self.runs = [
            [word for word in words if word and start <= word[0] < end]
            for start, end in zip(starts, ends)
        ]

    def find(self, wanted: str | re.Pattern[str], occurrence: int | None) -> list[int]:
        if occurrence == 0:
            raise ValueError("got occurrence 0, expected 1 for the first, or -1 for the last")
        if isinstance(wanted, str):
            wanted = _even(wanted)
            if not wanted:
                raise ValueError("got an empty phrase, expected at least one word")
        elif not isinstance(wanted.pattern, str):
            raise TypeError(f"got {wanted!r}, expected a pattern of text, not of bytes")
        *prompt, answer = self.runs
        matches: list[list[int]] = []
        for ignoring_case in (False, True) if isinstance(wanted, str) else (False,):
            for runs in ([answer], prompt):
                matches = matches or [
                    match for run in runs for match in self._matches(run, wanted, ignoring_case)
                ]
        name = repr(wanted if isinstance(wanted, str) else wanted.pattern)
        if not matches:
            texts = [_even(self._text(word)) for word in answer]
            shown = [text for text in texts if text][:_SHOWN_WORDS]
            more = " and more" if len(shown) < len(texts) else ""
            raise ValueError(
                f"there is no word or phrase {name} in the answer, whose words are {shown}{more}"
            )
        if occurrence is None:
            return sorted({token for match in matches for token in match})
        if not -len(matches) <= occurrence <= len(matches):
            raise ValueError(
                f"got occurrence {occurrence} of {name}, expected at most {len(matches)}, as often "
                "as it occurs"
            )
        return matches[occurrence - 1 if occurrence > 0 else occurrence]

    def _text(self, word: Word) -> str:
        return "".join(self.tokens[token] for token in word)

    def _matches(
        self, run: Sequence[Word], wanted: str | re.Pattern[str], ignoring_case: bool
    ) -> list[list[int]]:
        text, places = "", []
        is_apart = False
        for word in run:
            raw = self._text(word)
            even = _even(raw)
            even = even.casefold() if ignoring_case else even
            is_apart |= raw[:1].isspace()
            if not even:
                is_apart |= bool(raw)
                continue
            text += " " if text and is_apart else ""
            places.append((len(text), len(text) + len(even), word))
            text += even
            is_apart = raw[-1:].isspace()
        if isinstance(wanted, str):
            wanted = wanted.casefold() if ignoring_case else wanted
            starts = {start for start, _, _ in places}
            ends = {end for _, end, _ in places}
            spans = [
                (start, start + len(wanted))
                for start in sorted(starts)
                if text.startswith(wanted, start) and start + len(wanted) in ends
            ]
        else:
            spans = [match.span() for match in wanted.finditer(text) if match.group()]
        found = [
            [token for start, end, word in places if start < right and end > left for token in word]
            for left, right in spans
        ]
        return [tokens for tokens in found if tokens]


def _even(text: str) -> str:
    """Composed characters, and single spaces between words."""
    return " ".join(unicodedata.normalize("NFC", text).split())
