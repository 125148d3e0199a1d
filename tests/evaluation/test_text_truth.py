"""Weights of earlier words against what removing each word costs."""

from __future__ import annotations

import pytest
import torch

from captum_mllm import ARC, MLLM, ImageTextInput, LogitLens, MLLMAttribution
from captum_mllm.evaluation import METHODS
from captum_mllm.evaluation.method import Case
from captum_mllm.evaluation.text_truth import TextTruth, leave_words_out


def test_the_truth_itself_has_the_best_scores(case: Case) -> None:
    mllm, query = case.mllm, case.query
    truth = TextTruth(case)
    with mllm.remember():
        length = mllm.states(case.image, query).ids.shape[0]
    mask = mllm.word_mask(query, answer=True).flatten()
    # Each word removed by itself, one pass at a time.
    own = mllm.word_embeddings(query, answer=True)
    mean = mllm.model.get_input_embeddings().weight.mean(0)
    ids = torch.tensor(query.answer_ids)[:, None]
    with torch.no_grad():
        before = mllm(case.image, own, query)[0].log_softmax(-1).gather(1, ids)[:, 0]
        drops = []
        for word in range(int(mask.max()) + 1):
            removed = torch.where((mask == word)[:, None], mean, own)
            after = mllm(case.image, removed, query)[0].log_softmax(-1).gather(1, ids)[:, 0]
            drops.append(before - after)
    found = leave_words_out(mllm, case.image, query)
    expected = torch.stack(drops, 1)
    torch.testing.assert_close(found.drops, expected, rtol=1e-3, atol=1e-4)
    # A word's weight may lie on any of its tokens.
    weights = torch.zeros(len(ids), length)
    for word in range(expected.shape[1]):
        weights[:, int((mask == word).nonzero()[-1, 0])] = found.drops[:, word].abs()
    torch.testing.assert_close(found.of_words(weights), found.drops.abs())
    scores = truth.scores(weights)
    # Tokens that no word matters to are not scored.
    count = int((expected.abs().amax(1) >= 0.05).sum())
    assert 0 < count < len(expected) and found.earlier.shape == expected.shape
    assert scores["text_correlation"] == pytest.approx((count, count))
    assert scores["text_hit"] == (count, count)
    assert truth.scores(torch.ones_like(weights))["text_hit"].total < 0.6 * count


@pytest.mark.parametrize("name", ["lens", "arc"])
def test_weights_are_those_of_explanations(case: Case, mllm: MLLM, name: str) -> None:
    method = LogitLens(mllm) if name == "lens" else ARC(LogitLens(mllm))
    inp = ImageTextInput(case.example.image, case.example.prompt)
    result = MLLMAttribution(method).attribute(inp, target=case.example.answer)
    weights = METHODS[name].weigh_text(case)
    assert weights is not None
    torch.testing.assert_close(weights.float(), result.token_attr, rtol=1e-4, atol=1e-5)
    assert METHODS["random"].weigh_text(case) is None
