"""POPE and AMBER."""

from __future__ import annotations

from pathlib import Path

from captum_mllm.datasets import open_samples
from tests.datasets.written import write_image, write_json, write_lines


def test_pope(tmp_path: Path) -> None:
    write_image(tmp_path / "val2014/a.jpg")
    good = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "yes"}
    rows = [good, {**good, "label": "No"}, {**good, "label": "perhaps"}, {**good, "text": ""}]
    path = write_lines(tmp_path / "coco_pope_random.json", rows)
    samples = open_samples(path, "pope", images=tmp_path / "val2014", on_error="skip")
    # Its files are JSON lines, whatever their ending.
    assert [(each.id, each.question, each.label, each.answer) for each in samples] == [
        ("1", "Is there a dog?", "yes", "yes"),
        ("1", "Is there a dog?", "no", "no"),
    ]
    assert [str(error).split(": ")[1] for error in samples.errors] == [
        "'label' is 'perhaps', expected yes or no",
        "'text' is empty",
    ]
    assert open_samples(path, images=tmp_path).format == "pope"


def test_amber(tmp_path: Path) -> None:
    write_image(tmp_path / "image/AMBER_1.jpg")
    query = {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."}
    queries = [query, {**query, "id": 1005, "query": "Is there a sky?"}, {**query, "id": 3}]
    file = write_json(tmp_path / "data/query/query_generative.json", queries)
    write_json(
        tmp_path / "data/annotations.json",
        [
            {"id": 1, "type": "generative", "truth": ["sky"], "hallu": ["dog"]},
            {"id": 1005, "type": "discriminative-attribute-state", "truth": "yes"},
        ],
    )
    for given in (tmp_path, file):
        samples = open_samples(given, on_error="skip")
        first, second = samples
        assert samples.format == "amber"
        assert (first.answer, first.label) == (None, None)
        assert first.facts == {"type": "generative", "truth": ["sky"], "hallu": ["dog"]}
        assert (second.question, second.label) == ("Is there a sky?", "yes")
        assert "there is no 'annotation'" in str(samples.errors[0])
