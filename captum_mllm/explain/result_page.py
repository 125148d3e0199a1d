"""``result_page``: the page of a result, see :mod:`captum_mllm.visualization.page`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from captum_mllm.explain.calibration import Calibration
from captum_mllm.explain.diagnosis import diagnose
from captum_mllm.explain.reasons import PRIOR
from captum_mllm.explain.result_values import ResultValues
from captum_mllm.models.prompt_parts import PromptPart
from captum_mllm.models.words import group_runs
from captum_mllm.visualization.page import (
    AlternativesView,
    HiddenWord,
    ReasonsView,
    RiskView,
    ScaleView,
    WhatIfView,
    render_page,
)


def result_page(result: ResultValues, calibration: Calibration | None = None) -> str:
    r"""The page of a result, one self-contained HTML document; risks are those of a calibration,
    or of the one that comes with the package."""
    # The page walks through the answer; the words of the prompt are context there.
    skipped = len(result.output_tokens) - (len(result.input_tokens) - result.n_prompt)
    words = [[token - skipped for token in word] for word in result.words if word[0] >= skipped]
    prompt, parts, weights = _by_words(result, result.token_attr[skipped:])
    image_attrs = [maps[skipped:] for maps in result.image_attrs]
    # Beside maps of evidence alone, evidence against a word would change the colours' meaning.
    lowest = 0.0 if all(maps.min() >= 0 for maps in image_attrs) else None
    scales = [
        ScaleView(
            scale.scale,
            [maps[skipped:].clamp(min=lowest, max=torch.inf).numpy() for maps in scale.image_attrs],
            None if scale.output_probs is None else scale.output_probs[skipped:].numpy(),
        )
        for scale in result.scales
    ]
    return render_page(
        images=result.images,
        explained=result.explained,
        names=result.image_names,
        prompt_tokens=prompt,
        prompt_parts=parts,
        answer_tokens=result.output_tokens[skipped:],
        words=words,
        image_attr=[maps.numpy() for maps in image_attrs],
        image_shares=result.image_shares[skipped:].numpy(),
        token_attr=weights.numpy(),
        output_probs=result.output_probs[skipped:].numpy(),
        top_predictions=result.top_predictions[skipped:],
        scales=scales,
        reasons=_reasons(result, skipped),
        risks=_risks(result, skipped, calibration),
        alternatives=_alternatives(result, skipped, lowest),
        what_ifs=_what_ifs(result, words),
        unit=result.unit,
        finished=result.finished,
        method=result.method,
        model=result.model,
    )


def _reasons(result: ResultValues, skipped: int) -> ReasonsView | None:
    """The reasons of the tokens of the answer."""
    found = result.reasons
    if found is None:
        return None
    return ReasonsView((*found.groups, PRIOR), found.values[skipped:].numpy(), found.exact)


def _risks(
    result: ResultValues, skipped: int, calibration: Calibration | None
) -> list[RiskView] | None:
    """The risks of the words of the answer."""
    if result.signals is None:
        return None
    return [
        RiskView(
            tokens=[token - skipped for token in each.tokens],
            risk=each.risk,
            level=each.level,
            calibrated=each.calibrated,
            why=each.why,
        )
        for each in diagnose(result, calibration)
    ]


def _alternatives(
    result: ResultValues, skipped: int, lowest: float | None
) -> AlternativesView | None:
    """Why the next most probable tokens were not said."""
    found = result.alternatives
    if found is None:
        return None
    weights = None
    # Attention gives the same weights whatever the alternative.
    if not torch.allclose(found.token_attr, result.token_attr[skipped:, None]):
        _, _, flat = _by_words(result, found.token_attr.flatten(0, 1))
        weights = flat.unflatten(0, found.ranks.shape).numpy()
    maps = [each.clamp(min=lowest, max=torch.inf).numpy() for each in found.image_attrs]
    return AlternativesView(found.ranks.numpy(), maps, weights)


def _what_ifs(result: ResultValues, words: Sequence[Sequence[int]]) -> list[WhatIfView]:
    """What the model says without the regions of words of the answer."""
    return [
        WhatIfView(
            removed=found.removed,
            place=result.explained.index(found.shown),
            region=found.region,
            control=found.control,
            words=[
                HiddenWord(
                    words[index],
                    word.before,
                    word.after,
                    word.elsewhere,
                    word.top_after[0][0] if word.changed else None,
                    word.top_elsewhere[0][0] if word.changed_elsewhere else None,
                )
                for index, word in ((index, found.words[index]) for index in found.selected)
            ],
            answer=found.answer,
            in_image=found.by != "knockout",
        )
        for found in result.what_ifs
    ]


def _by_words(result: ResultValues, weights: Tensor) -> tuple[list[str], list[PromptPart], Tensor]:
    """The words of the prompt, its parts with the number of their words, and the weights by
    words of the prompt and tokens of the answer."""
    tokens = result.input_tokens[: result.n_prompt]
    runs = [part.n_tokens for part in result.prompt_parts if part.image is None]
    words = group_runs(tokens, runs)
    texts = ["".join(tokens[token] for token in word) for word in words]
    word_of_token = torch.tensor(
        [index for index, word in enumerate(words) for _ in word], dtype=torch.int64
    )
    sums = weights.new_zeros(len(weights), len(words))
    sums.index_add_(1, word_of_token, weights[:, : result.n_prompt])
    parts, start = [], 0
    for part in result.prompt_parts:
        end = start + part.n_tokens
        parts.append(replace(part, n_tokens=sum(start <= word[0] < end for word in words)))
        start = end
    return texts, parts, torch.cat([sums, weights[:, result.n_prompt :]], dim=1)
