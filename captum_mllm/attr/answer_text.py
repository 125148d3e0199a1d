"""The texts of a pass as a result shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from captum_mllm.models.states import States
from captum_mllm.models.vocabulary import Predictions
from captum_mllm.models.words import Word, group_runs, group_words, token_texts


def texts(tokenizer: Any, states: States) -> list[str]:
    r"""Texts of the words of the prompt, then of the answer."""
    ids = states.ids.tolist()
    prompt, answer = ids[: states.n_words], ids[states.n_words :]
    return token_texts(tokenizer, prompt) + token_texts(tokenizer, answer)


def words(texts: Sequence[str], states: States, with_prompt: bool) -> list[Word]:
    r"""Words of the explained tokens; none goes over from the prompt into the answer, nor over a
    picture."""
    n_words = states.n_words
    if not with_prompt:
        return group_words(texts[n_words:])
    runs = (n_words,) if states.runs is None else states.runs
    return group_runs(texts, (*runs, len(texts) - n_words))


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
