"""The costs that must not grow: passes and memory. Times are reported, never asserted."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import pytest
import torch
from transformers.utils import is_torchvision_available

from captum_mllm.attr.resizing import resize_inputs
from captum_mllm.models.backbone import Backbone
from tests.cost import measure
from tests.cost.methods import (
    ARC_LENS,
    ARC_SCALES,
    AT_ONCE,
    AT_ONCE_OWN,
    ATTENDED,
    ATTENDED_SCALES,
    EXPLAINED,
    EXPLAINED_ARC,
    FOUR,
    LENS,
    LENS_SCALES,
    METHODS,
    ONE,
    PLAIN,
    SINGLY,
    STREAMED,
    TAM_AFTER,
    TAM_LENS,
    choose,
)
from tests.cost.peak_memory import allocated_peak, resident_peak
from tests.cost.results import Result
from tests.cost.stages import Stages, split
from tests.cost.subjects import (
    SHAPES,
    Shape,
    Subject,
    load_model,
    make_subject,
    random_model,
    random_network,
)
from tests.cost.timing import Clock, time_rounds

ANSWER = 8


@cache
def small() -> Subject:
    return make_subject(load_model("tiny"), 64, ANSWER)


@cache
def larger() -> Subject:
    return make_subject(load_model("tiny"), 256, 16)


@cache
def peak(name: str) -> int:
    return allocated_peak(METHODS[name].prepare(larger()))


def counted_pixels(scale: float) -> int:
    """Bytes of the pixels that a pass reads. A bare pass has them beforehand; the allocator counts
    them where torchvision makes them, and not where NumPy does."""
    if not is_torchvision_available():
        return 0
    subject = larger()
    (image,) = resize_inputs((subject.image,), scale, "bilinear")
    return subject.mllm.encode((image,), subject.query).inputs["pixel_values"].nbytes


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (ONE, 1),
        (FOUR, 4),
        (LENS, 1),
        (TAM_LENS, 1),
        (ARC_LENS, 1),
        (TAM_AFTER, 0),
        (LENS_SCALES, 4),
        (ARC_SCALES, 4),
        (f"MLLMAttribution({ARC_SCALES})", 4),
        (ATTENDED, 1),
        (ATTENDED_SCALES, 4),
        (f"MLLMAttribution({ATTENDED_SCALES})", 4),
        ("AttentionMaps", 1),
        (PLAIN, 1),
        # A pass for each token that is said, and none to explain them.
        (EXPLAINED, ANSWER),
        (EXPLAINED_ARC, ANSWER),
        (STREAMED, ANSWER),
        (AT_ONCE, 1),
        (AT_ONCE_OWN, ANSWER),
    ],
)
def test_an_explanation_needs_no_more_passes(name: str, expected: int) -> None:
    subject = small()
    work = METHODS[name].prepare(subject)
    clock = Clock(subject.mllm.device)
    _, passes = time_rounds({name: work}, frozenset(), 1, clock, subject.mllm.model.base_model)
    assert 0 <= passes[name] <= expected


@pytest.mark.parametrize(("name", "scales"), [(LENS, 1), (ARC_LENS, 1), (ARC_SCALES, 4)])
def test_the_processor_runs_at_most_twice_a_scale(name: str, scales: int) -> None:
    subject = small()
    work = METHODS[name].prepare(subject)
    with mock.patch.object(
        Backbone, "encode", autospec=True, side_effect=Backbone.encode
    ) as encode:
        work()
    # Once for the pass, and once more at most for where the image tokens lie.
    assert scales <= encode.call_count <= 2 * scales


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        (LENS, 1.05),
        (TAM_LENS, 1.05),
        (ARC_LENS, 1.05),
        (ATTENDED, 1.05),
        (LENS_SCALES, 1.15),
        (ARC_SCALES, 1.15),
        (ATTENDED_SCALES, 1.15),
    ],
)
def test_an_explanation_holds_hardly_more_than_its_bare_passes(name: str, limit: float) -> None:
    bare = METHODS[name].bare
    assert 0 < peak(name) <= limit * peak(bare) + counted_pixels(2.0 if bare == FOUR else 1.0)


def test_the_limits_would_notice_all_states_and_logits() -> None:
    assert peak(PLAIN) > 1.05 * peak(ONE)


def test_the_command_writes_tables_and_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [LENS, TAM_AFTER, ARC_SCALES]
    common = ["--shapes", "tiny", "--image-tokens", "16", "64", "--answer-tokens", "2"]
    common += ["--methods", *names, "--repetitions", "2", "--memory", "allocated", "--split"]
    measure.main([*common, "--device", "cpu", "--output", str(tmp_path / "cost")])
    found = json.loads((tmp_path / "cost.json").read_text())["results"]
    assert [result["image_tokens"] for result in found] == [16, 64]
    for result in found:
        assert set(result["seconds"]) == {ONE, FOUR, *names}
        assert all(len(seconds) == 2 for seconds in result["seconds"].values())
        assert set(result["peaks"]) == {ONE, FOUR, LENS, ARC_SCALES}
        assert result["stages"][ARC_SCALES]["forward"] > 0
    text = (tmp_path / "cost.md").read_text()
    assert text.count(f"| {ARC_SCALES} | 4 |") == 2
    assert f"| `tiny` | {LENS} |" in text.split("## Growth")[1]
    # For whoever reads the log.
    with capsys.disabled():
        print(text)


def test_batches_are_measured_on_the_small_shape_unless_asked_for() -> None:
    names = {shape: {method.name for method in choose(None, shape)} for shape in ("tiny", "2b")}
    assert names["tiny"] == set(METHODS)
    assert AT_ONCE not in names["2b"]
    assert [method.name for method in choose([AT_ONCE], "2b")] == [SINGLY, AT_ONCE]


def test_unknown_methods_and_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown methods"):
        choose(["LogitLenz"], "tiny")
    with pytest.raises(ValueError, match="expected 'tiny' or one of"):
        load_model("3b")
    with pytest.raises(ValueError, match="do not make a square"):
        make_subject(small().mllm, 250, 4)


def test_no_answer_holds_the_placeholder_of_the_image() -> None:
    mllm = random_model(Shape(128, 128, 1, 1, 1, 1000, True), "cpu", layers=1)
    assert mllm.image_token_id not in make_subject(mllm, 16, 5000).query.answer_ids


@pytest.mark.parametrize(("shape", "parameters"), [("2b", 2_208_985_600), ("7b", 8_291_375_616)])
def test_shapes_have_as_many_parameters_as_the_published_models(
    shape: str, parameters: int
) -> None:
    model = random_network(SHAPES[shape], "meta")
    assert sum(weight.numel() for weight in model.parameters()) == parameters


def test_ratios_are_taken_within_a_round() -> None:
    result = Result("tiny", 3, 64, 8, {ONE: [1.0, 10.0, 2.0], LENS: [1.5, 11.0, 8.0]})
    # The ratio of the medians would be 4: they are from different rounds.
    assert result.time_ratio(LENS, ONE) == 1.5
    assert result.above_bare(LENS) == 1.0
    assert result.time_ratio(TAM_LENS, ONE) is None
    assert result.spread(ONE) == (1.5, 6.0)


def test_rounds_interleave_and_long_works_run_once() -> None:
    order: list[str] = []
    works = {name: (lambda name=name: order.append(name)) for name in ("a", "b", "long")}
    seconds, _ = time_rounds(
        works, frozenset(["long"]), 2, Clock(torch.device("cpu")), torch.nn.Identity()
    )
    assert order == ["a", "b", "a", "b", "long", "a", "b"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2, "long": 1}


def test_a_stage_counts_without_those_within() -> None:
    class Ticks(Clock):
        times = iter([0.0, 1.0, 4.0, 6.0])

        def now(self) -> float:
            return next(self.times)

    stages = Stages(Ticks(torch.device("cpu")))
    with stages.stage("outer"), stages.stage("inner"):
        pass
    assert stages.seconds == {"outer": 3.0, "inner": 3.0}


def test_splitting_leaves_everything_as_it_was() -> None:
    mllm = small().mllm
    before = mllm.model.base_model.forward, torch.Tensor.cpu, type(mllm).states
    stages = split(mllm, METHODS[ARC_LENS].prepare(small()), Clock(mllm.device))
    assert (mllm.model.base_model.forward, torch.Tensor.cpu, type(mllm).states) == before
    assert {"forward", "lens", "suppression", "rankings", "processor"} <= set(stages)


def _work() -> None:
    torch.ones(64, 2**20).sum()


def test_peaks_see_what_is_gone_again() -> None:
    assert allocated_peak(_work) == pytest.approx(2**28, rel=0.01)
    # As it is used: what this process has freed may still count as resident.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        resident = pool.submit(resident_peak, _work).result()
    assert resident is None or resident == pytest.approx(2**28, rel=0.1)
