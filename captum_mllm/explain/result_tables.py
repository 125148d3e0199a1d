"""``result_dict`` and ``result_table``: a result as plain values, and as a table of pandas."""

from __future__ import annotations

from typing import Any

from captum_mllm.explain.result_values import ResultValues
from captum_mllm.explain.word_changes import WhatIf


def result_dict(result: ResultValues, maps: bool) -> dict[str, Any]:
    """A result as plain values, see ``MLLMAttributionResult.to_dict``."""
    several = len(result.explained) > 1
    skipped = len(result.output_tokens) - (len(result.input_tokens) - result.n_prompt)
    words = []
    for word, text in zip(result.words, result.output_words):
        tokens = list(word)
        entry: dict[str, Any] = {
            "word": text,
            "tokens": tokens,
            "probability": float(result.output_probs[tokens].double().prod()),
            "top_predictions": [list(pair) for pair in result.top_predictions[word[0]]],
            "text_weights": [
                {"word": row.word, "weight": row.weight, "source": row.source, "role": row.role}
                for row in result.text_weights(tokens)
            ],
        }
        if several:
            entry["image_shares"] = result.image_shares[tokens].mean(0).tolist()
        if result.reasons is not None:
            entry["reasons"] = result.reasons.parts(tokens)
        if result.alternatives is not None and word[0] >= skipped:
            entry["alternatives"] = _alternatives(result, word[0], word[0] - skipped, maps)
        if maps:
            drawn = [each[tokens].mean(0).tolist() for each in result.image_attrs]
            entry |= {"maps": drawn} if several else {"map": drawn[0]}
        words.append(entry)
    shown: list[dict[str, float]] = [
        {"width": result.images[index].width, "height": result.images[index].height}
        for index in result.explained
    ]
    if result.times:
        shown = [{**each, "time": time} for each, time in zip(shown, result.times)]
    return {
        "method": result.method,
        "model": result.model,
        "prompt": result.prompt,
        "unit": result.unit,
        "answer": "".join(result.input_tokens[result.n_prompt :]),
        "finished": result.finished,
        **({"images": shown} if several else {"image": shown[0]}),
        "words": words,
        **({"what_ifs": list(map(_what_if, result.what_ifs))} if result.what_ifs else {}),
    }


def _alternatives(result: ResultValues, token: int, row: int, maps: bool) -> list[dict[str, Any]]:
    """What might have been said instead of a token, the one at ``row`` of the answer."""
    found = result.alternatives
    assert found is not None
    entries = []
    for turn, rank in enumerate(found.ranks[row].tolist()):
        text, probability = result.top_predictions[token][rank]
        entry: dict[str, Any] = {"token": text, "probability": probability}
        if maps:
            entry["maps"] = [each[row, turn].tolist() for each in found.image_attrs]
        entries.append(entry)
    return entries


def _what_if(found: WhatIf) -> dict[str, Any]:
    return {**found.to_facts(), "area": found.area, "changed": found.changed}


def result_table(result: ResultValues) -> Any:
    """The weights as a ``pandas.DataFrame``, see ``MLLMAttributionResult.to_dataframe``."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "to_dataframe() needs pandas: pip install pandas; text_weights() and to_dict() "
            "give the same numbers without it"
        ) from error
    rows = [
        {
            "word": text,
            "position": word[0],
            "probability": float(result.output_probs[list(word)].double().prod()),
            "earlier_word": earlier.word,
            "earlier_position": earlier.tokens[0],
            "source": earlier.source,
            "role": earlier.role,
            "weight": earlier.weight,
        }
        for word, text in zip(result.words, result.output_words)
        for earlier in result.text_weights(list(word))
    ]
    return pandas.DataFrame(rows)
