"""`token_texts` and `group_words`: from tokens to the texts and words that people read."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

Word = tuple[int, ...]

# The closed classes of English: conjunctions, determiners, pronouns, modal verbs, "there" and
# words of questions. No part of an image shows what they say.
_CLOSED_CLASSES = (
    "a an the this that these those each every either neither some any no another and or but nor "
    "yet so both i me my mine myself you your yours yourself he him his himself she her hers "
    "herself it its itself we us our ours ourselves they them their theirs themselves can could "
    "may might must shall should will would there who whom whose which what when where why how 's"
)
#: Function words of English, in lower case.
FUNCTION_WORDS = frozenset(_CLOSED_CLASSES.split())


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    r"""The text that each token adds to those before it.

    Spaces are kept. Where several tokens make one character the last of them has it, and the
    others are empty.

    Args:
        tokenizer (PreTrainedTokenizerBase): the tokenizer.
        ids (Sequence[int]): the tokens of one text.

    Returns:
        list[str]: one text for each token.
    """
    if not getattr(tokenizer, "is_fast", False):
        return [tokenizer.decode([token]) for token in ids]
    stream = DecodeStream(skip_special_tokens=False)
    texts = [stream.step(tokenizer.backend_tokenizer, token) or "" for token in ids]
    whole = tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
    if texts and (rest := whole[len("".join(texts)) :]):
        # Bytes at the end that make no character.
        texts[-1] += rest
    return texts


def group_words(texts: Sequence[str]) -> list[Word]:
    r"""The tokens that make each word.

    A word is what a reader takes for one: a run of letters, digits and underscores with what
    belongs to them, accents and vowel signs; also over an apostrophe or a hyphen within it
    (``don't``, ``T-shirt``) and over the point or comma of a number (``3.5``, ``1,000``). A Chinese
    or Japanese character is a word by itself, as is any sign, such as an emoji of several code
    points. Spaces, and parts of a character, belong to what follows them.

    Args:
        texts (Sequence[str]): the texts of consecutive tokens.

    Returns:
        list[tuple[int, ...]]: indices of the tokens of each word; together all tokens, in order.

    Examples::
        >>> from captum_mllm.models.words import group_words
        >>> group_words(["A", " stri", "ped", " T", "-", "shirt", "."])
        [(0,), (1, 2), (3, 4, 5), (6,)]
    """
    kinds = "".join(map(_kind, "".join(texts)))
    inside = {
        place for unit in _UNIT.finditer(kinds) for place in range(unit.start() + 1, unit.end())
    }
    words: list[list[int]] = []
    place = 0
    pending = False
    for index, text in enumerate(texts):
        if words and (pending or place in inside):
            words[-1].append(index)
        else:
            words.append([index])
        pending = not text.strip(" ")
        place += len(text)
    return [tuple(word) for word in words]


def group_runs(texts: Sequence[str], lengths: Sequence[int]) -> list[Word]:
    r"""The tokens that make each word, of which none goes over from one run of tokens into the
    next.

    Args:
        texts (Sequence[str]): the texts of all tokens.
        lengths (Sequence[int]): how many tokens each run has.

    Examples::
        >>> from captum_mllm.models.words import group_runs
        >>> group_runs(["red", "dish"], (1, 1))
        [(0,), (1,)]
    """
    words: list[Word] = []
    start = 0
    for length in lengths:
        found = group_words(texts[start : start + length])
        words += [tuple(start + token for token in word) for word in found]
        start += length
    return words


def run_texts(tokenizer: Any, ids: Sequence[int], lengths: Sequence[int]) -> list[str]:
    r"""The text of each token, of runs that are decoded apart.

    Between two runs lies something that is not the user's text, such as an image or the turn of a
    chat, so no character and no space goes over from one into the next.

    Args:
        tokenizer (PreTrainedTokenizerBase): the tokenizer.
        ids (Sequence[int]): the tokens of all runs.
        lengths (Sequence[int]): how many tokens each run has.

    Returns:
        list[str]: one text for each token.
    """
    texts: list[str] = []
    for length in lengths:
        texts += token_texts(tokenizer, ids[len(texts) : len(texts) + length])
    return texts


# A unit over the kinds of characters: a word, a flag, or a sign with what is joined to it.
_UNIT = re.compile(
    r"(?:[ad_][+z]*(?:(?<=[a+z])'(?=a)|-(?=[ad])|(?<=[d+z]),(?=d))?)+|rr|[^ ](?:\+|z[^ ]?)*"
)


def _kind(character: str) -> str:
    """One letter for what a character does to a word."""
    if character in "'\u2019":
        return "'"
    if character in "-\u2010\u2011":
        return "-"
    if character in ".,":
        return ","
    if character in "_ ":
        return character
    if character in "\u200c\u200d":
        return "z"
    if unicodedata.category(character)[0] == "M" or "\U0001f3fb" <= character <= "\U0001f3ff":
        return "+"
    if "\U0001f1e6" <= character <= "\U0001f1ff":
        return "r"
    # Chinese and Japanese write no spaces between words.
    if "\u3040" <= character <= "\u9fff" or "\U00020000" <= character <= "\U0003ffff":
        return "o"
    if character.isalnum():
        return "a" if character.isalpha() else "d"
    return "o"
