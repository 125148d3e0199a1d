"""Controls whose scores are known beforehand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from captum_mllm import ARC, AttendedLens, LogitLens
from captum_mllm.attr import suppress_context
from captum_mllm.attr.text_attribution import context_scores
from captum_mllm.evaluation.attributions import EqualWeights
from captum_mllm.evaluation.catalogue import METHODS
from captum_mllm.evaluation.controls import attended, centered_lens, power
from captum_mllm.evaluation.method import Case
from captum_mllm.evaluation.records import Scores
from captum_mllm.evaluation.scores import localization_scores


def scores(case: Case, name: str) -> Scores:
    method = METHODS[name]
    return localization_scores(case, method, method.explain(case))


def test_the_true_mask_is_the_upper_bound(case: Case) -> None:
    found = {name: score.total / score.words for name, score in scores(case, "true-mask").items()}
    assert found["pointing"] == 1
    assert found["leakage"] < 0.01
    assert min(found["objects"], found["rank"], found["mass"]) > 0.9
    assert found["f1_per_image"] > 0.9
    for other in ("lens", "random", "uniform", "blob"):
        weaker = scores(case, other)
        for name in ("objects", "mass", "rank", "f1_per_image"):
            assert weaker[name].total < found[name] * weaker[name].words


def test_a_uniform_map_points_nowhere(case: Case) -> None:
    found = scores(case, "uniform")
    assert found["pointing"].total == found["objects"].total == 0
    area = sum(float(case.example.region(place).float().mean()) for place in case.nouns)
    assert found["mass"].total == pytest.approx(area)
    assert found["rank"].total == pytest.approx(area)


def test_random_maps_are_the_same_for_the_same_image(case: Case) -> None:
    first, second = (METHODS["random"].explain(case) for _ in range(2))
    assert torch.equal(first, second)
    assert first.std() > 0.2


def test_a_power_keeps_the_order_and_so_the_pointing(case: Case) -> None:
    plain, cubed = scores(case, "lens"), scores(case, "lens-cubed")
    assert cubed["pointing"] == plain["pointing"]
    assert cubed["mass"].total > plain["mass"].total


def test_the_attended_lens_reads_another_lens_in_its_place(case: Case) -> None:
    own = case.maps(AttendedLens(case.mllm))
    assert torch.equal(case.maps(attended(LogitLens, case.mllm)), own)
    read = case.maps(LogitLens(case.mllm))
    level = read - read.mean((1, 2), keepdim=True)
    expected = torch.where(read > 0, own * level.relu() / read, 0)
    found = case.maps(attended(centered_lens, case.mllm))
    torch.testing.assert_close(found[read > 0], expected[read > 0], rtol=1e-4, atol=1e-5)
    assert (level <= 0).any() and not found[level <= 0].any()


def test_equal_weights_suppress_all_other_words_before_alike(case: Case) -> None:
    lens = LogitLens(case.mllm)
    every = lens.attribute(case.image, additional_forward_args=(case.query.including_prompt(),))
    ids = case.mllm.states(case.image, case.query).ids
    weights = (ids[:, None] != ids).float().tril(-1)
    maps = every[:, 0].relu()
    expected = suppress_context(maps, maps, weights, 0.5)[-len(case.query.answer_ids) :]
    torch.testing.assert_close(case.maps(EqualWeights(lens)), expected)


def test_a_power_is_of_the_positive_part(case: Case) -> None:
    base = case.base(LogitLens)
    expected = case.maps(base).clamp(min=0).double().pow(3)
    torch.testing.assert_close(case.maps(power(base, 3)).double(), expected, rtol=1e-5, atol=1e-6)


def test_joint_normalisation_is_that_of_arc_without_its_suppression(case: Case) -> None:
    base = case.base(LogitLens)
    found = case.maps(ARC(base, suppress=None, normalize=True))
    lens = case.maps(base).relu()
    states = case.mllm.states(case.image, case.query)
    text = context_scores(case.mllm, states)[states.n_prompt :]
    for row, (token_map, weights) in enumerate(zip(lens, text)):
        before = weights[: states.n_prompt + row]
        everything = torch.cat([token_map.flatten(), before])
        low, high = everything.min(), everything.max()
        torch.testing.assert_close(found[row], (token_map - low) / (high - low))


def test_one_pass_at_the_largest_scale_is_the_lens_there(case: Case) -> None:
    explain = METHODS["lens-2x"].explain
    enlarged = torch.nn.functional.interpolate(
        case.image, scale_factor=2.0, mode="bilinear", antialias=True
    )
    arguments = {"additional_forward_args": (case.query,)}
    expected: Tensor = LogitLens(case.mllm).attribute(enlarged, **arguments)
    torch.testing.assert_close(explain(case), expected[:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name, each in METHODS.items() if each.every == 1])
def test_every_cheap_method_explains_every_token(case: Case, name: str) -> None:
    with case.sharing():
        maps = METHODS[name].explain(case)
    assert maps.ndim == 3
    assert len(maps) == len(case.query.answer_ids)
    assert maps.isfinite().all()
    assert name == "uniform" or maps.std() > 0
    if METHODS[name].levels is None:
        assert 0 <= maps.min() <= maps.max() <= 1
