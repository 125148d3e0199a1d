"""Tables that say what was measured, on how much, and what differs."""

from __future__ import annotations

import json

import pytest

from captum_mllm import MLLM
from captum_mllm.evaluation.catalogue import METHODS, select_methods
from captum_mllm.evaluation.examples import sample_examples
from captum_mllm.evaluation.records import Record, Score, Scores
from captum_mllm.evaluation.report import plot_bars, plot_maps, to_markdown
from captum_mllm.evaluation.settings import Settings
from captum_mllm.evaluation.summary import Summary, summarize


def scores(value: float) -> Scores:
    names = ("objects", "functions", "f1_per_image", "pointing", "mass", "rank", "leakage")
    return {name: Score(2 * value, 2.0) for name in names}


def summaries(count: int = 8) -> list[Summary]:
    records = []
    for number in range(count):
        wobble = 0.02 * (number % 3)
        methods = {"lens": scores(0.5 + wobble), "attention": scores(0.7 + wobble)}
        if number % 4 == 0:
            methods["occlusion"] = scores(0.4) | {"insertion": Score(0.6, 1.0)}
        first = {"first": Score(3.0, 4.0), "rank": Score(5.0, 4.0)}
        records.append(
            Record(
                "demo/m",
                "caption",
                number,
                methods,
                {"1": first},
                {"lens": {"agreement": Score(0.5, 1.0)}},
            )
        )
    return summarize(records, "lens", resamples=100)


def test_the_report_holds_each_method_with_its_interval() -> None:
    text = to_markdown(summaries(), Settings(methods=("lens", "attention", "occlusion")))
    rows = [line for line in text.splitlines() if line.startswith("| attention |")]
    localization, comparison, legend = rows
    assert localization.count("71.8 [") == 8
    assert comparison.count("**+20.0 [+20.0, +20.0]**") == 4
    assert "mean of all layers" in legend
    occlusion = [line for line in text.splitlines() if line.startswith("| occlusion |")]
    assert all("(2)" in line for line in occlusion[:3])
    assert "one in 20" in occlusion[-1]
    assert "| 1 | 1.2 [1.2, 1.2] | 75.0 [75.0, 75.0] |" in text


def test_captions_of_one_scene_count_as_one_image() -> None:
    records = [
        Record("demo/m", style, number, {"lens": scores(0.1 * number + shift)}, {}, {})
        for style, shift in (("caption", 0.0), ("dense", 0.2))
        for number in range(4)
    ]
    one, other, both = summarize(records, "lens", resamples=100)
    assert [each.style for each in (one, other, both)] == ["caption", "dense", "all"]
    assert both.images == 4
    means = [each.tables["localization"]["pointing"]["lens"] for each in (one, other, both)]
    assert means[2].value == pytest.approx((means[0].value + means[1].value) / 2)
    # Twice the words of the same scenes are no more evidence.
    assert means[2].high - means[2].low == pytest.approx(means[0].high - means[0].low, rel=0.3)
    assert both.title == "demo/m, all styles, 4 images"


def test_results_are_json() -> None:
    (summary,) = summaries()
    (found,) = json.loads(json.dumps([summary.to_dict()]))
    cell = found["tables"]["localization"]["pointing"]["lens"]
    assert cell["value"] == pytest.approx(0.5175)
    assert cell["images"] == found["images"] == 8


def test_a_bar_for_each_method() -> None:
    (summary,) = summaries()
    first = plot_bars(summary).axes[0]
    assert [label.get_text() for label in first.get_yticklabels()] == [
        "lens",
        "attention",
        "occlusion",
    ]
    assert sorted(round(bar.get_width(), 3) for bar in first.patches) == [0.4, 0.518, 0.718]


def test_a_sheet_has_a_map_for_each_noun_and_method(mllm: MLLM) -> None:
    (example,) = sample_examples([0], objects=2)
    figure = plot_maps(mllm, example, [METHODS["lens"], METHODS["uniform"]])
    assert len(figure.axes) == 4
    assert all(len(axis.images) == 2 for axis in figure.axes)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["lens"], ["lens"]),
        (["tam", "lens"], ["lens", "tam"]),
        (["grad-cam*"], ["grad-cam", "grad-cam++", "grad-cam-msea"]),
        (["*"], list(METHODS)),
    ],
)
def test_methods_are_selected_in_the_table_s_order(patterns: list[str], names: list[str]) -> None:
    assert [method.name for method in select_methods(patterns)] == names


def test_roles_select_their_methods() -> None:
    assert {method.role for method in select_methods(["control"])} == {"control"}
    with pytest.raises(ValueError, match="'lense'"):
        select_methods(["lense"])
