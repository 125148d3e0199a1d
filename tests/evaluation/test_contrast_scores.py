"""Whether contrasts are scored on the right words and the right objects."""

from __future__ import annotations

import json

import pytest
import torch
from captum.attr import InputXGradient

from captum_mllm import MLLM, LogitLens
from captum_mllm.attr.token_maps import token_maps
from captum_mllm.datasets import COLORS, SHAPES
from captum_mllm.evaluation.contrast_scores import METHODS, compare, contrast_pairs, table
from captum_mllm.evaluation.examples import SceneExample, sample_examples
from captum_mllm.evaluation.method import Case
from captum_mllm.metrics import pointing_game, relevance_mass

SCORES = (pointing_game, relevance_mass)


@pytest.fixture(scope="module")
def mllm() -> MLLM:
    return MLLM.from_pretrained("demo/qwen2-vl")


@pytest.fixture(scope="module")
def example(mllm: MLLM) -> SceneExample:
    """The first scene whose two objects differ in one of colour and shape, and are named by it."""
    for each in sample_examples(range(20), objects=2, similarity=1.0):
        if list(contrast_pairs(Case(mllm, each), each)):
            return each
    raise AssertionError("no such scene")


def test_pairs_are_words_of_the_two_objects(mllm: MLLM, example: SceneExample) -> None:
    case = Case(mllm, example)
    pairs = list(contrast_pairs(case, example))
    assert len(pairs) == 2
    said = [mllm.tokenizer.decode([case.query.answer_ids[pair.step]]).strip() for pair in pairs]
    instead = [mllm.tokenizer.decode([pair.instead_of]).strip() for pair in pairs]
    assert said == instead[::-1] and len(set(said)) == 2
    for pair, word in zip(pairs, said):
        assert word == example.texts[pair.place]
        assert word in (COLORS if pair.kind == "color" else SHAPES)


@pytest.mark.parametrize("name", ["LogitLens", "InputXGradient"])
def test_scores_are_those_of_each_word_by_itself(
    name: str, mllm: MLLM, example: SceneExample
) -> None:
    case = Case(mllm, example)
    rows = []
    for pair in contrast_pairs(case, example):
        token, mask = case.query.answer_ids[pair.step], example.region(pair.place)[None]
        method = {"LogitLens": LogitLens, "InputXGradient": InputXGradient}[name](mllm)
        row = []
        for query in (case.query, mllm.contrast(case.query, pair.step, pair.instead_of)):
            found = method.attribute(
                case.image, target=(pair.step, token), additional_forward_args=(query,)
            )
            maps = found.sum(1) if name == "InputXGradient" else found[:, 0]
            row += [score(maps.detach().relu(), mask) for score in SCORES]
        rows.append(torch.cat(row))
    (found,) = compare(mllm, [example], [name]).values()
    torch.testing.assert_close(found, torch.stack(rows).mean(0)[None], rtol=1e-3, atol=1e-4)
    assert not torch.equal(found[:, 1], found[:, 3])


def test_the_table_has_a_line_for_each_method_and_kind_of_word(
    mllm: MLLM, example: SceneExample
) -> None:
    found = compare(mllm, [example], list(METHODS))
    lines = [json.loads(json.dumps(line)) for line in table(found)]
    assert [line["method"] for line in lines] == list(METHODS)
    for line, rows in zip(lines, found.values()):
        assert line["scenes"] == 1
        assert line["mass"] == [round(float(rows[0, 1]), 3), round(float(rows[0, 3]), 3)]


def test_a_map_of_all_words_has_those_of_one(mllm: MLLM, example: SceneExample) -> None:
    case = Case(mllm, example)
    (pair, *_) = contrast_pairs(case, example)
    query = mllm.contrast(case.query, pair.step, pair.instead_of)
    lens, target = LogitLens(mllm), (pair.step, case.query.answer_ids[pair.step])
    every = token_maps(lens, (case.image,), query).maps[0][pair.step]
    torch.testing.assert_close(
        every, token_maps(lens, (case.image,), query, target).maps[0][0], rtol=1e-5, atol=1e-5
    )
