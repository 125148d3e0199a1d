"""TAM's published protocol against a transcription, word by word and pixel by pixel."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.attr import TAM, LogitLens
from captum_mllm.datasets import open_samples
from captum_mllm.evaluation import DataSettings, summarize
from captum_mllm.evaluation.data_run import run_data
from captum_mllm.evaluation.records import Score
from captum_mllm.evaluation.tam_protocol import (
    Tag,
    compatible_scores,
    nltk_tagger,
    read_tags,
    tag_words,
)
from captum_mllm.metrics import grey_levels
from tests.attr.test_tam import golden_mllm
from tests.evaluation.exported import TAGS, export_coco


def resized(levels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinear, with the centres of pixels at halves and edges repeated; halves go up."""
    h, w = levels.shape
    cells = levels.tolist()
    result = np.zeros((height, width), np.uint8)
    for row in range(height):
        for column in range(width):
            # Places in units of half a pixel of the result.
            y = min(max((2 * row + 1) * h - height, 0), (h - 1) * 2 * height)
            x = min(max((2 * column + 1) * w - width, 0), (w - 1) * 2 * width)
            top, dy = divmod(y, 2 * height)
            left, dx = divmod(x, 2 * width)
            below, right = min(top + 1, h - 1), min(left + 1, w - 1)
            upper = cells[top][left] * (2 * width - dx) + cells[top][right] * dx
            lower = cells[below][left] * (2 * width - dx) + cells[below][right] * dx
            total = upper * (2 * height - dy) + lower * dy
            result[row, column] = (total + 2 * height * width) // (4 * height * width)
    return result


def otsu(levels: np.ndarray) -> int:
    """The lowest level with the largest variance between the two classes; 0 for one level."""
    cells = levels.flatten().tolist()
    best, largest = 0, Fraction(0)
    n_low = sum_low = 0
    total = sum(cells)
    for level in range(256):
        count = cells.count(level)
        n_low, sum_low = n_low + count, sum_low + count * level
        n_high, sum_high = len(cells) - n_low, total - sum_low
        if count and n_high:
            gap = Fraction(sum_low, n_low) - Fraction(sum_high, n_high)
            if n_low * n_high * gap**2 > largest:
                best, largest = level, n_low * n_high * gap**2
    return best


def by_hand(
    maps: np.ndarray,
    words: Sequence[tuple[str, str, Sequence[int]]],
    labels: np.ndarray,
    categories: dict[str, int],
) -> dict[str, list[float]]:
    """Words are pairs of tag and lemma, with their tokens."""
    objects: list[tuple[float, float, float]] = []
    thresholds: list[int] = []
    previous = 0
    for tag, lemma, tokens in words:
        category = 0
        if tag.startswith("NN"):
            for name, label in categories.items():
                if lemma in name.split():
                    category = label
            found, largest = [], 0
            for token in tokens:
                image = resized(maps[token], *labels.shape)
                level = otsu(image)
                largest = max(largest, level)
                both = either = marked = true = 0
                for row in range(labels.shape[0]):
                    for column in range(labels.shape[1]):
                        bright = image[row, column] > level
                        inside = category > 0 and labels[row, column] == category
                        both += bright and inside
                        either += bright or inside
                        marked += bright
                        true += inside
                if true:
                    found.append((both / either, both / marked if marked else 0.0, both / true))
            thresholds.append(largest)
            if category > 0 and found:
                objects.append(max(found, key=lambda scores: scores[0]))
            if category > 0 and category == previous and len(objects) >= 2:
                last, before = objects.pop(), objects.pop()
                objects.append(before if before[0] >= last[0] else last)
        previous = category
    functions: list[float] = []
    if thresholds:
        limit = Fraction(sum(thresholds), len(thresholds))
        for tag, _, tokens in words:
            if tag in FUNCTION_TAGS:
                shares = []
                for token in tokens:
                    cells = maps[token].flatten().tolist()
                    shares.append(sum(cell < limit for cell in cells) / len(cells))
                functions.append(sum(shares) / len(shares))
    precision, recall = ([scores[place] for scores in objects] for place in (1, 2))
    return {
        "tam_objects": [scores[0] for scores in objects],
        "tam_functions": functions,
        "tam_precision": precision,
        "tam_recall": recall,
    }


FUNCTION_TAGS = ("CC", "DT", "EX", "MD", "POS", "PRP", "PRP$", "UH", "WDT", "WP", "WP$", "WRB")
CATEGORIES = {"cat": 1, "sports car": 2, "car": 3, "ring": 0, "old dog": 4}
VOCABULARY = [
    *(("NN", lemma) for lemma in ("cat", "car", "sports", "ring", "dog", "sky", "cat", "car")),
    ("NNS", "cat"),
    *(("DT", "the"), ("CC", "and"), ("IN", "on"), ("CD", "two"), ("WP$", "whose"), ("VB", "go")),
]


def draw(seed: int) -> tuple[np.ndarray, list[tuple[str, str, list[int]]], np.ndarray]:
    chance, generator = random.Random(seed), np.random.default_rng(seed)
    words, count = [], 0
    for _ in range(chance.randrange(1, 9)):
        tag, lemma = chance.choice(VOCABULARY)
        tokens = list(range(count, count + chance.randrange(1, 4)))
        count += len(tokens)
        words.append((tag, lemma, tokens))
    maps = generator.integers(0, 256, (count, *generator.integers(1, 6, 2))).astype(np.uint8)
    maps[generator.random(count) < 0.15] = generator.integers(0, 3)
    labels = generator.integers(0, 4, generator.integers(1, 9, 2))
    return maps, words, labels


def scores_of(
    maps: np.ndarray, words: Sequence[tuple[str, str, Sequence[int]]], labels: np.ndarray
) -> dict[str, Score]:
    # The text of a word tells its place here, by which it is tagged.
    named = [(str(place), tuple(tokens)) for place, (_, _, tokens) in enumerate(words)]
    tagged = tag_words(named, lambda text: Tag(*words[int(text)][:2]), CATEGORIES)
    return compatible_scores(torch.from_numpy(maps), tagged, torch.from_numpy(labels))


def check(found: dict[str, Score], expected: dict[str, list[float]]) -> None:
    for name, values in expected.items():
        assert found[name].words == len(values), name
        assert found[name].total == pytest.approx(sum(values), abs=1e-9), name


@pytest.mark.parametrize("seed", range(150))
def test_equals_the_transcription(seed: int) -> None:
    maps, words, labels = draw(seed)
    check(scores_of(maps, words, labels), by_hand(maps, words, labels, CATEGORIES))


@pytest.mark.parametrize("name", ["tam_square", "tam_wide"])
def test_equals_the_transcription_on_maps_of_tam(name: str) -> None:
    mllm, published = golden_mllm(name)
    query = mllm.query()
    own = TAM(LogitLens(mllm)).attribute(torch.zeros(1, 3, 8, 8), additional_forward_args=(query,))
    count = len(published)
    cycle = [VOCABULARY[(3 * place) % len(VOCABULARY)] for place in range(count)]
    words = [(tag, lemma, [place]) for place, (tag, lemma) in enumerate(cycle)]
    labels = np.random.default_rng(0).integers(0, 4, (20, 28))
    for maps in (published, grey_levels(own[:, 0]).numpy()):
        expected = by_hand(maps, words, labels, CATEGORIES)
        assert expected["tam_objects"] and expected["tam_functions"]
        check(scores_of(maps, words, labels), expected)


def test_equals_the_transcription_on_thirty_scenes_in_the_layout_of_coco(tmp_path: Path) -> None:
    folder = export_coco(tmp_path / "coco", 30, size=56)
    tagger, digest = read_tags(folder / "tags.json")
    settings = DataSettings(
        data=str(folder),
        format="tam-coco",
        model="demo/qwen2-vl",
        methods=("tam",),
        metrics=("tam",),
        prompt="Describe the image.",
        tags=digest,
    )
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    samples = open_samples(folder, prompt=settings.prompt)
    records = run_data(settings, samples, mllm, tmp_path / "out", tagger)
    assert records is not None and len(records) == 30
    totals: dict[str, list[float]] = {}
    for record, sample in zip(records, samples, strict=True):
        # A token of this model is a word.
        said = record.facts["answer"].split()
        inp = ImageTextInput(sample.image, "Describe the image.")
        image, query = mllm.prepare(inp, target=record.facts["answer"])
        assert len(query.answer_ids) == len(said)
        own = TAM(LogitLens(mllm)).attribute(image, additional_forward_args=(query,))
        maps = np.floor(own[:, 0].numpy() * np.float32(255)).astype(np.uint8)
        words = [(TAGS.get(word, ""), word, [place]) for place, word in enumerate(said)]
        assert sample.labels is not None
        expected = by_hand(maps, words, sample.label_image, dict(sample.labels.categories))
        check(record.methods["tam"], expected)
        for name, values in expected.items():
            totals.setdefault(name, []).extend(values)
    (summary,) = summarize(records, "tam", resamples=10)
    objects, functions = (float(np.mean(totals[name])) for name in ("tam_objects", "tam_functions"))
    table = {title: column["tam"].value for title, column in summary.tables["tam"].items()}
    assert table["TAM Obj-IoU"] == pytest.approx(objects, abs=1e-9)
    assert table["TAM Func-IoU"] == pytest.approx(functions, abs=1e-9)
    f1 = 2 * objects * functions / (objects + functions)
    assert table["TAM F1-IoU"] == pytest.approx(f1, abs=1e-9)


def test_the_published_faults_are_kept() -> None:
    labels = np.array([[1, 1, 3, 3]])
    right = np.array([[[0, 0, 9, 9]]], dtype=np.uint8)
    bright = np.full((1, 1, 4), 7, dtype=np.uint8)
    # All of a constant map is foreground.
    found = scores_of(bright, [("NN", "cat", [0])], labels)
    assert found["tam_objects"] == (0.5, 1.0)
    # Two dogs that the image does not show make one score of a cat's and a car's.
    words = [("NN", "cat", [0]), ("VB", "go", [0]), ("NN", "car", [0])]
    assert scores_of(right, words, labels)["tam_objects"] == (1.0, 2.0)
    dogs = [*words, ("NN", "dog", [0]), ("NN", "dog", [0])]
    assert scores_of(right, dogs, labels)["tam_objects"] == (1.0, 1.0)


def test_a_table_of_tags_is_a_tagger(tmp_path: Path) -> None:
    path = tmp_path / "tags.json"
    path.write_text(json.dumps({"cats": ["NNS", "cat"], "the": "DT"}))
    tag, digest = read_tags(path)
    assert (tag("Cats"), tag("The"), tag("of")) == (
        Tag("NNS", "cat"),
        Tag("DT", "the"),
        Tag("", "of"),
    )
    assert len(digest) == 64
    for wrong in ("[1]", "{", '{"a": 3}', '{"a": ["NN"]}'):
        path.write_text(wrong)
        with pytest.raises(ValueError, match="is not a JSON object from words to tags"):
            read_tags(path)


def test_what_is_missing_of_nltk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nltk", None)
    with pytest.raises(ValueError, match=r"--tags, or install nltk: pip install nltk"):
        nltk_tagger()
