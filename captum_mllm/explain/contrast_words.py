"""contrast_words: why a word of the answer was said, and not another one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from captum_mllm.explain.selection import Selection, select_tokens
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query
from captum_mllm.models.words import group_words, token_texts

#: What might have been said instead, of the only word of an answer or of words of it.
Contrast = str | Mapping[Selection, str]


def contrast_words(mllm: MLLM, query: Query, contrast: Contrast) -> tuple[Query, str]:
    r"""
    The query in which words of the answer are explained in contrast to others.

    Words may have several tokens. The first in which the answer and the answer with the other word
    differ is the one in contrast: there the model decided.

    Args:
        mllm (MLLM): the model.
        query (Query): the question and the answer.
        contrast (str or Mapping[Selection, str]): the other word, for an answer of a single word,
            or one for each word, which is selected as in
            :meth:`~captum_mllm.MLLMAttributionResult.map`.

    Returns:
        tuple[Query, str]: the query, and what is contrasted, for people.

    Raises:
        TypeError: for something that is not text.
        ValueError: for words that the answer does not have, the same word twice, words whose
            tokens do not differ, and words that the tokenizer does not know.
    """
    tokenizer = mllm.tokenizer
    answer = list(query.answer_ids)
    texts = token_texts(tokenizer, answer)
    words = group_words(texts)
    if isinstance(contrast, str):
        spoken = [word for word in words if any(map(str.isalnum, _join(texts, word)))]
        if len(spoken) != 1:
            raise ValueError(
                f"got contrast={contrast!r} for an answer of {len(spoken)} words, expected the "
                "word in contrast too, such as contrast={'dog': 'cat'}"
            )
        contrast = {spoken[0][0]: contrast}
    if not isinstance(contrast, Mapping) or not contrast:
        raise TypeError(f"got contrast={contrast!r}, expected {{'dog': 'cat'}}, or a single word")
    notes = []
    for selection, other in contrast.items():
        if not isinstance(other, str) or not other.strip():
            raise TypeError(f"got {other!r} in contrast to {selection!r}, expected a word")
        places = _whole(select_tokens(selection, texts, words), words)
        own = _join(texts, places)
        if own.strip() == other.strip():
            raise ValueError(f"got the contrast of {own.strip()!r} with itself")
        place, token = _first_difference(tokenizer, answer, texts, places, other.strip())
        query = mllm.contrast(query, place, token)
        note = f"{own.strip()!r} and not {other.strip()!r}"
        said = tokenizer.decode([token])
        if len(places) > 1 or said.strip() != other.strip():
            note += f" (by {texts[place]!r} and not {said!r})"
        notes.append(note)
    return query, f", why {' and '.join(notes)}"


def _join(texts: Any, places: Any) -> str:
    return "".join(texts[place] for place in places)


def _whole(places: list[int], words: Any) -> list[int]:
    """The tokens of the words to which some tokens belong."""
    touched = [word for word in words if set(word) & set(places)]
    return sorted({token for word in touched for token in word})


def _first_difference(
    tokenizer: Any, answer: list[int], texts: list[str], places: list[int], other: str
) -> tuple[int, int]:
    """Where an answer differs first from the same with another word at some places, and by
    which token of that one."""
    start, end = places[0], places[-1] + 1
    own = _join(texts, places)
    space = own[: len(own) - len(own.lstrip())]
    before, after = "".join(texts[:start]), "".join(texts[end:])
    # As a whole, since tokens depend on what is around them; the word alone where the model's own
    # tokens are other ones than those of their text.
    whole = tokenizer(before + space + other + after, add_special_tokens=False)["input_ids"]
    alone = tokenizer(space + other, add_special_tokens=False)["input_ids"]
    for tokens in (whole, answer[:start] + alone):
        pairs = enumerate(zip(answer, tokens))
        place = next((index for index, (said, might) in pairs if said != might), None)
        if place is not None and start <= place < end:
            if tokens[place] == tokenizer.unk_token_id:
                raise ValueError(
                    f"got {other!r} in contrast to {own.strip()!r}, which this model does not "
                    f"know: its tokenizer writes {tokenizer.unk_token!r} for it; take a word that "
                    "the model might say"
                )
            return place, tokens[place]
    raise ValueError(
        f"got {other!r} in contrast to {own.strip()!r}, but one begins with the tokens of the "
        "other, so no token tells them apart; give tokens, with MLLM.contrast"
    )
