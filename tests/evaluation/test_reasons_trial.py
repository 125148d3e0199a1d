"""Shares that are read from one pass, and how near they come to exact ones."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from PIL import Image

from captum_mllm import MLLM, ImageTextInput, LogitDecomposition
from captum_mllm.demo import demo_image
from captum_mllm.evaluation import reasons_trial
from captum_mllm.evaluation.reasons_trial import ESTIMATES, GROUPS, compare_reasons
from captum_mllm.explain import Reasons
from captum_mllm.explain.estimate import attention_masses


def test_shares_are_compared_token_by_token() -> None:
    names = ("image", "question", "answer")
    exact = Reasons(names, torch.tensor([[1.0, 0, 1, 0], [0, 0, 2, 0], [3, 0, 1, 0]]), "shapley")
    same = compare_reasons([exact, exact], [exact, exact])
    assert [each.group for each in same] == [*names, "prior"]
    assert same[0].correlation == pytest.approx(1) and same[0].mean_error == 0
    assert same[0].n_tokens == 6 and same[0].mean_share == pytest.approx(1.25 / 3)
    assert same[1].correlation == 0
    other = Reasons(names, torch.tensor([[0.0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 1, 0]]), "?")
    found = compare_reasons([exact], [other])
    assert found[0].mean_error == pytest.approx((0.5 + 1 + 0.75) / 3)
    assert found[0].correlation < 0
    with pytest.raises(ValueError, match="no answers"):
        compare_reasons([], [])
    with pytest.raises(ValueError, match="groups"):
        compare_reasons([exact], [Reasons(("image",), torch.zeros(3, 2), "?")])


def test_contributions_count_what_speaks_for_a_token_in_each_group() -> None:
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
    image, query = mllm.prepare(inp, target="a red star .")
    found = ESTIMATES["contributions"](mllm, (image,), query)
    parts = LogitDecomposition(mllm).decompose(image, additional_forward_args=(query,))
    n_prompt = parts.text.shape[1] - 4
    for t in range(4):
        question = sum(max(float(each), 0) for each in parts.text[t, :n_prompt])
        answer = sum(max(float(parts.text[t, n_prompt + k]), 0) for k in range(t))
        whole = sum(max(float(each), 0) for each in parts.image[0][t])
        assert found.values[t].tolist() == pytest.approx([whole, question, answer, 0], abs=1e-4)
    assert found.values[0, 2] == 0


def test_the_lens_gives_the_image_its_largest_probability() -> None:
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
    image, query = mllm.prepare(inp, target="a red star .")
    found = ESTIMATES["lens"](mllm, (image,), query)
    assert torch.allclose(found.values.sum(1), torch.ones(4), atol=1e-5)
    states = mllm.states(image, query)
    head = mllm.model.get_output_embeddings()
    with torch.no_grad():
        probabilities = head(states.image[0][0]).double().softmax(1)
    masses = attention_masses(mllm, (image,), query).double()
    for t, token in enumerate(query.answer_ids):
        seen = float(probabilities[:, int(token)].max())
        of_question = float(masses[t, 1] / (masses[t, 1] + masses[t, 2]))
        expected = [seen, (1 - seen) * of_question, (1 - seen) * (1 - of_question), 0]
        assert found.values[t].tolist() == pytest.approx(expected, abs=1e-4)


def test_the_trial_prints_each_estimate_and_group(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["reasons_trial", "demo/qwen2-vl", "--scenes", "2"])
    reasons_trial.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["estimate"], line["group"]) for line in lines] == [
        (name, group) for name in ESTIMATES for group in (*GROUPS, "prior")
    ]
    exact = {(line["group"], line["n_tokens"], line["mean_share"]) for line in lines}
    assert len(exact) == 4 and sum(share for _, _, share in exact) == pytest.approx(1)
