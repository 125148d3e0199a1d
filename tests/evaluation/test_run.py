"""Runs are reproducible bit for bit, whether interrupted or not, by one worker or two."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from captum_mllm.evaluation import report
from captum_mllm.evaluation import run as runner
from captum_mllm.evaluation.ledger import Ledger
from captum_mllm.evaluation.method import Case, Method
from captum_mllm.evaluation.records import Record
from captum_mllm.evaluation.run import run_benchmark
from captum_mllm.evaluation.settings import Settings
from captum_mllm.evaluation.summary import summarize

SETTINGS = Settings(
    methods=("lens", "arc", "true-mask"),
    metrics=("localization", "causal", "curves"),
    split="development",
    steps=2,
    curves_every=2,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    run_benchmark(SETTINGS, 3, folder)
    return folder


def test_the_same_seed_gives_the_same_table(finished: Path, tmp_path: Path) -> None:
    records = run_benchmark(SETTINGS, 3, tmp_path)
    assert (tmp_path / "records.jsonl").read_bytes() == (finished / "records.jsonl").read_bytes()
    tables = [
        report.to_markdown(summarize(each, "lens", resamples=100), SETTINGS)
        for each in (records, list(reversed(records)))
    ]
    assert tables[0] == tables[1]


def test_a_resumed_run_equals_an_uninterrupted_one(finished: Path, tmp_path: Path) -> None:
    run_benchmark(SETTINGS, 2, tmp_path)
    path = tmp_path / "records.jsonl"
    path.write_text(path.read_text()[:-100])
    run_benchmark(SETTINGS, 3, tmp_path, resume=True)
    assert path.read_bytes() == (finished / "records.jsonl").read_bytes()


def test_what_is_done_is_not_done_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    monkeypatch.setattr(runner, "_score_task", lambda *given: scored.append(given[-1]))
    records = run_benchmark(SETTINGS, 2, finished, resume=True)
    assert not scored
    assert [record.number for record in records] == [0, 1]


def test_an_interrupted_run_keeps_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def score(settings: Settings, device: str, task: tuple[str, str, int]) -> Record:
        if task[2] == 2:
            raise KeyboardInterrupt
        return Record(*task, {}, {}, {})

    monkeypatch.setattr(runner, "_score_task", score)
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(SETTINGS, 4, tmp_path)
    assert [each.number for each in Ledger(tmp_path, Record.from_json).records()] == [0, 1]


def test_a_folder_with_another_run_is_refused(finished: Path) -> None:
    with pytest.raises(ValueError, match="--resume"):
        run_benchmark(SETTINGS, 3, finished)
    other = replace(SETTINGS, methods=("lens",), seed=1)
    with pytest.raises(ValueError, match="other methods, seed"):
        run_benchmark(other, 3, finished, resume=True)


def test_a_failing_method_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: object) -> None:
        raise ZeroDivisionError("by hand")

    monkeypatch.setitem(runner.METHODS, "lens", Method("lens", fail))
    with pytest.raises(RuntimeError, match=r"lens fails on demo/qwen2-vl, caption 0: by hand"):
        run_benchmark(SETTINGS, 1, tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"styles": ("poem",)},
        {"metrics": ("beauty",)},
        {"split": "training"},
        {"baseline": "white"},
        {"methods": ("magic",)},
        {"models": ()},
        {"steps": 0},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected|no method"):
        Settings(**wrong)


@pytest.mark.parametrize(("scenes", "workers"), [(0, 1), (1, 0)])
def test_wrong_numbers_are_refused(tmp_path: Path, scenes: int, workers: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        run_benchmark(SETTINGS, scenes, tmp_path, workers)


def test_curves_are_drawn_for_some_images_and_not_for_sweeps(tmp_path: Path) -> None:
    settings = Settings(
        methods=("lens", "arc-p0.5-attended-lens-msea"),
        metrics=("curves",),
        steps=2,
        curves_every=2,
    )
    first, second = run_benchmark(settings, 2, tmp_path)
    assert set(first.methods["lens"]) == {"insertion", "deletion", "difference"}
    assert first.methods["arc-p0.5-attended-lens-msea"] == second.methods["lens"] == {}


def test_a_image_without_curves_is_not_explained_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    explained: list[int] = []
    lens = runner.METHODS["lens"]

    def explain(case: Case) -> Tensor:
        explained.append(case.example.number)
        return lens.explain(case)

    monkeypatch.setitem(runner.METHODS, "lens", replace(lens, explain=explain))
    settings = Settings(methods=("lens",), metrics=("curves",), steps=2, curves_every=2)
    run_benchmark(settings, 3, tmp_path)
    assert explained == [0, 2]


@pytest.mark.slow
def test_two_workers_find_what_one_does(finished: Path, tmp_path: Path) -> None:
    run_benchmark(SETTINGS, 3, tmp_path, workers=2)
    assert (tmp_path / "records.jsonl").read_bytes() == (finished / "records.jsonl").read_bytes()
