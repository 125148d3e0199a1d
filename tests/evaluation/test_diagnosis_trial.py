"""Labelled words, and how well risks tell those that their images do not show."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.datasets import BACKGROUND, COLORS, SHAPES
from captum_mllm.evaluation.diagnosis_trial import auroc, diagnosis_report, match_probabilities
from captum_mllm.evaluation.examples import Spelling
from captum_mllm.evaluation.labelled_words import (
    LabelledWords,
    contextual_lens,
    of_file,
    of_scenes,
    read_words,
)
from captum_mllm.evaluation.temptation import leading_questions, tempted_captions
from captum_mllm.explain import Calibration
from captum_mllm.explain.signals import SIGNALS
from tests.models.test_mllm import random_image
from tests.models.tiny_models import shared


def test_captions_tempt_with_an_object_that_is_removed_or_exchanged() -> None:
    found = tempted_captions(range(6))
    assert len({each.number for each in found}) * 3 == len(found)
    for whole, removed, exchanged in zip(found[::3], found[1::3], found[2::3]):
        assert [each.change for each in (whole, removed, exchanged)] == [
            "none",
            "removed",
            "exchanged",
        ]
        assert whole.answer == removed.answer == exchanged.answer
        assert all(whole.labels.values())
        gone = whole.scene.reading_order()[1]
        shape = whole.scene.objects[gone].shape
        assert len(removed.scene.objects) == len(whole.scene.objects) - 1
        for each in (removed, exchanged):
            places = [i for i, word in enumerate(each.caption.words) if word == shape]
            # The caption comes back to what the image does not show.
            assert len(places) == 2 and not any(each.labels[place] for place in places)
            shown = {thing.shape for thing in each.scene.objects}
            for place, label in each.labels.items():
                assert each.caption.objects[place] != (BACKGROUND,)
                word = each.caption.words[place]
                colors = {thing.color for thing in each.scene.objects}
                assert label == (word in shown | colors)
    numbers = [each.number for each in tempted_captions(range(6), "test")]
    assert [str(each.scene) for each in tempted_captions(range(6), "test")][:1] != [
        str(found[0].scene)
    ]
    assert numbers
    with pytest.raises(ValueError, match="split='train'"):
        tempted_captions(range(1), "train")


@pytest.mark.parametrize("spelling", ["words", "natural"])
def test_labels_lie_on_their_words(spelling: Spelling) -> None:
    captions = tempted_captions(range(3), spelling=spelling)
    captions += leading_questions(captions)
    for answer, each in zip(of_scenes(captions), captions):
        words = [answer.answer[start:end] for start, end, _ in answer.spans]
        assert words == [each.caption.words[place] for place in each.labels]
        assert set(words) <= {*SHAPES, *COLORS}


def test_leading_questions_ask_for_what_is_there_and_for_what_is_gone() -> None:
    captions = tempted_captions(range(4), spelling="natural")
    for each in captions:
        questions = leading_questions([each])
        shown = {thing.shape for thing in each.scene.objects}
        asked = [question.caption.words[5] for question in questions]
        assert len(set(asked)) == len(asked)
        labels = [label for question in questions for label in question.labels.values()]
        assert labels == [shape in shown for shape in asked]
        assert labels.count(False) == 2 and labels.count(True) == min(len(shown), 2)
        gone = [word for word in each.caption.words if word in SHAPES and word not in shown]
        assert set(gone) <= set(asked[labels.index(False) :])
        for question in questions:
            assert (
                question.prompt.rstrip("?").split()[2:] == question.answer.rstrip(".").split()[3:]
            )
    with pytest.raises(ValueError, match="spelling='loud'"):
        tempted_captions(range(1), spelling="loud")


def test_the_contextual_lens_equals_its_slow_twin() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = mllm.prepare(ImageTextInput(random_image(), "what ?"), target="a cat and a dog")
    encoding = mllm.encode((image,), query)
    with torch.no_grad():
        output = mllm.model(**encoding.inputs, output_hidden_states=True)
    middle = len(output.hidden_states) // 2
    hidden = mllm.model.get_decoder().norm(output.hidden_states[middle])[0].detach().double()
    expected = []
    rows = encoding.answer_rows.tolist()
    for row in [*rows[1:], rows[-1]]:
        cosines = [
            float(hidden[place] @ hidden[row] / hidden[place].norm() / hidden[row].norm())
            for place in encoding.image_positions[0].tolist()
        ]
        expected.append(max(cosines))
    assert len(expected) == len(query.answer_ids)
    found = contextual_lens(mllm, (image,), query)
    assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_words_of_a_file_are_read_with_their_signals(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "a.png")
    line = {"image": "a.png", "prompt": "what ?", "answer": "a cat and a dog", "present": ["Cat"]}
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps({**line, "absent": ["dog"]}) + "\n")
    (answer,) = of_file(path)
    assert answer.spans == [(2, 5, True), (12, 15, False)]
    words = read_words(MLLM(*shared("llava")), [answer])
    assert words.signals.shape == (2, len(SIGNALS)) and words.absent.tolist() == [False, True]
    assert words.contextual is not None and words.contextual.shape == (2,)
    assert list(words.groups) == ["a.png"] * 2
    path.write_text(json.dumps({**line, "absent": ["do"]}))
    with pytest.raises(ValueError, match="has no word 'do'"):
        list(of_file(path))
    path.write_text('{"image": "a.png"}')
    with pytest.raises(ValueError, match="lacks 'answer'"):
        list(of_file(path))
    with pytest.raises(ValueError, match="no answer has"):
        read_words(MLLM(*shared("llava")), [])


def test_auroc_is_the_share_of_pairs() -> None:
    torch.manual_seed(0)
    scores = torch.randint(0, 6, (40,)).double()
    absent, weights = torch.rand(40) < 0.4, torch.rand(40, dtype=torch.float64)
    above = total = 0.0
    for i in range(40):
        for j in range(40):
            if absent[i] and not absent[j]:
                pair = float(weights[i] * weights[j])
                total += pair
                above += pair * (float(scores[i] > scores[j]) + 0.5 * float(scores[i] == scores[j]))
    assert auroc(scores, absent, weights) == pytest.approx(above / total)


def test_matched_words_have_the_same_probabilities() -> None:
    torch.manual_seed(0)
    absent = torch.rand(4000) < 0.3
    probability = torch.where(absent, torch.rand(4000) ** 0.5, torch.rand(4000) ** 0.1)
    chosen, weights = match_probabilities(probability, absent)
    assert probability[chosen].min() >= 0.5 and not weights[~chosen].any()
    ones = torch.ones(4000, dtype=torch.float64)
    assert auroc(-probability, absent, ones) > 0.7
    # What is left of it is within the bins.
    assert auroc(-probability, absent, weights) == pytest.approx(0.5, abs=0.06)
    nothing = torch.zeros(4000, dtype=torch.bool)
    assert not match_probabilities(probability, nothing)[0].any()


def test_a_report_finds_the_signal_that_tells() -> None:
    torch.manual_seed(0)
    absent = torch.rand(600) < 0.4
    signals = torch.randn(600, len(SIGNALS))
    signals[:, 0] = torch.rand(600).log()
    signals[:, SIGNALS.index("image gain")] -= 3 * absent
    words = LabelledWords(signals, absent, [str(index // 4) for index in range(600)])
    fitted = Calibration.fit(signals, absent)
    report = diagnosis_report(words, fitted, resamples=50)
    scores = {score.name: score for score in report.matched}
    assert scores["diagnosis"].auroc > 0.95
    assert scores["diagnosis"].low <= scores["diagnosis"].auroc <= scores["diagnosis"].high
    assert abs(scores["internal confidence"].auroc - 0.5) < 0.15
    assert report.calibration_error < 0.1
    assert report.easy_counts == (int((~absent).sum()), int(absent.sum()))
    assert report.lead.name == "image gain"
    assert report.lead.auroc == pytest.approx(
        scores["diagnosis"].auroc - scores["image gain"].auroc
    )
    # The difference on the same words is surer than either.
    width = scores["diagnosis"].high - scores["diagnosis"].low
    assert 0 < report.lead.high - report.lead.low < width
    assert "diagnosis above image gain" in str(report)
