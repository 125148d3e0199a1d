"""The texts of a pass as a result shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captum_mllm.models.states import States
from captum_mllm.models.vocabulary import Predictions
from captum_mllm.models.words import Word, group_words, token_texts


def texts(tokenizer: Any, states: States) -> list[str]:
    r"""Texts of the words of the prompt, then of the answer."""
    ids = states.ids.tolist()
    prompt, answer = ids[: states.n_words], ids[states.n_words :]
    return token_texts(tokenizer, prompt) + token_texts(tokenizer, answer)


def words(tokens: Sequence[str], n_prompt: int, start: int) -> list[Word]:
    r"""Words of the tokens from ``start`` on; none goes from the prompt over into the answer."""
    prompt, answer = group_words(tokens[start:n_prompt]), group_words(tokens[n_prompt:])
    shift = n_prompt - start
    return [*prompt, *(tuple(token + shift for token in word) for word in answer)]


def rankings(tokenizer: Any, predicted: Predictions, k: int) -> list[list[tuple[str, float]]]:
    r"""The k most probable tokens in each place with their probabilities, best first."""
    return [
        [
            (tokenizer.decode([token]), probability)
            for token, probability in zip(ids[:k], probabilities)
        ]
        for ids, probabilities in zip(
            predicted.top_ids.tolist(), predicted.top_probability.tolist()
        )
    ]
