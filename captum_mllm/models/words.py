"""From tokens to the texts and words that people read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream

Word = tuple[int, ...]


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

    A token goes on with the word before it if it adds no space between them and both sides are
    letters or digits, or if what stands before it is no text of its own: a part of a character, or
    spaces alone.

    Args:
        texts (Sequence[str]): the texts of consecutive tokens.

    Returns:
        list[tuple[int, ...]]: indices of the tokens of each word; together all tokens, in order.

    Examples::
        >>> from captum_mllm.models.words import group_words
        >>> group_words(["A", " stri", "ped", " cat", "."])
        [(0,), (1, 2), (3,), (4,)]
    """
    words: list[list[int]] = []
    before = ""
    pending = False
    for index, text in enumerate(texts):
        joins = pending or (before[-1:].isalnum() and text[:1].isalnum() and not _alone(text[0]))
        if words and joins:
            words[-1].append(index)
        else:
            words.append([index])
        pending = not text.strip(" ")
        before = text or before
    return [tuple(word) for word in words]


def _alone(character: str) -> bool:
    """Whether a character is a word by itself, as in Chinese and Japanese."""
    return "\u3040" <= character <= "\u9fff"
