"""The sentences of the pages that hold measured numbers, made from the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.docs.result_tables import RATE, now
from tests.docs.results import (
    MODELS,
    benchmark,
    cost,
    default,
    read,
    scores,
    select,
    text_truth,
)

DEFAULT, BASE = "arc-attended-lens-msea", "attended-lens-msea"
# Of which the language model is a pretrained one.
REAL = "demo/smolvlm"


def _three(values: Sequence[float], form: str = ".1f") -> str:
    first, second, third = (format(value, form) for value in values)
    return f"{first}, {second} and {third}"


def _span(values: Sequence[float], form: str = ".1f") -> str:
    return f"{min(values):{form}} to {max(values):{form}}"


def _changes(method: str, score: str) -> list[float]:
    """Differences from the default, each of which has to exclude 0."""
    found = [change for _, change in default(method, score)]
    assert None not in found, (method, score, found)
    return [change for change in found if change is not None]


def _beats(method: str, score: str) -> list[bool]:
    """Whether the best base beats a method on each model, with an interval apart from 0."""
    found = [benchmark(model, method, f"difference in {score}") for model in MODELS]
    return [each is not None and each.value < 0 and each.excludes_0 for each in found]


def pointing() -> str:
    own = [value for value, _ in default(DEFAULT, "pointing")]
    return (
        f"The largest value of a noun's map is on its object in {_three(own)} of 100 cases, a "
        f"random map's in {_three(scores('random', 'pointing'))}."
    )


def suppression() -> str:
    assert all(change is None for _, change in default(BASE, "pointing"))
    mass = [-change for change in _changes(BASE, "mass")]
    leakage = _changes(BASE, "leakage")
    return (
        f"With it, {_span(mass)} points more of a map are on its object and {_span(leakage)} "
        "points fewer on the objects named before. Pointing does not change."
    )


def equal_weights() -> str:
    lost = [-change for change in _changes("equal-attended-lens-msea", "F1-IoU")]
    return f"With equal weights F1-IoU falls by {_span(lost)} points."


def all_of_it() -> str:
    lost = [-change for change in _changes("arc-strength1-attended-lens-msea", "F1-IoU")]
    return f"and all of it (`arc-strength1`) leaks least and costs {_span(lost)} points of F1-IoU."


def finer_pass() -> str:
    assert all(_beats("attended-lens-2x", "pointing"))
    assert _beats("attended-lens-2x", "F1-IoU") == [False, True, True]
    found = [benchmark(model, "attended-lens-2x", "difference in pointing") for model in MODELS]
    lost = [-each.value for each in found if each is not None]
    return (
        f"**Several scales beat one finer pass in pointing**, by {_three(lost)} points with the "
        "attended lens. In F1-IoU they beat it on two models and are level on one."
    )


def best_row() -> str:
    beaten = ("lens", "lens-squared", "tam", "arc", "attention", "rollout", "grad-cam", "msea")
    for method in (*beaten, "attended-lens"):
        assert all(_beats(method, "F1-IoU")) and all(_beats(method, "pointing")), method
    return "All intervals of these differences exclude 0."


def chance() -> str:
    return (
        f"It points at the object of a noun in {_three(scores('lens', 'pointing'))} of 100 cases."
    )


def words_without_a_place() -> str:
    before, after = scores("lens", "F1-IoU"), scores("msea", "F1-IoU")
    assert [new > old for old, new in zip(before, after)] == [True, True, False]
    return f"on the InternVL its F1-IoU falls from {before[2]:.1f} to {after[2]:.1f}"


def interference() -> str:
    lens, arc, tam, squared = (
        _three(scores(method, "leakage")) for method in ("lens", "arc", "tam", "lens-squared")
    )
    return (
        f"Around the lens, the leakage of {lens} falls to {arc} with the former weights of ARC and "
        f"to {tam} with TAM. Both pay with F1-IoU and pointing. Squaring the lens lowers leakage "
        f"to {squared} and gains F1-IoU."
    )


def causal() -> str:
    attention, grad_cam, base = (
        scores(method, "causal correlation")[1] for method in ("attention", "grad-cam", BASE)
    )
    return (
        f"Mean attention has a causal correlation of {attention:.1f} and Grad-CAM of "
        f"{grad_cam:.1f} on the LLaVA-1.5, the default's base {base:.1f}."
    )


def settings() -> str:
    powers = ("attended-lens-power0.5-msea", "attended-lens-power1-msea")

    def largest(score: str) -> float:
        found = [
            benchmark(model, power, f"difference in {score}")
            for model in MODELS
            for power in powers
        ]
        return max(abs(each.value) for each in found if each is not None)

    spans = []
    for knob in (("arc-k5", "arc-k10", "arc-k20"), ("arc-p0.5", "arc-p0.7", "arc-p0.98")):
        for values in zip(*(scores(method, "F1-IoU") for method in knob)):
            spans.append(max(values) - min(values))
    return (
        f"F1-IoU differs by at most {largest('F1-IoU'):.1f} points and pointing by at most "
        f"{largest('pointing'):.1f}. Of the k and the p of ARC, three values each give F1-IoU "
        f"within {max(spans):.1f} points of each other."
    )


def _correlations(weights: str) -> list[float]:
    return [value.value for value in text_truth(weights).values()]


def words() -> str:
    found = _correlations("the default: attention and the token before")
    return f"Their rank correlation is {_span(found, '.2f')} on {_count(len(found))} models."


def _count(number: int) -> str:
    return {3: "three", 4: "four"}[number]


def distance() -> str:
    own = text_truth("the default: attention and the token before")
    near = text_truth("1 over the distance")
    bundled = [model for model in own if model != REAL]
    assert all(own[model].low > near[model].high for model in bundled)
    assert own[REAL].value < near[REAL].value
    return (
        "The control *1 over the distance* reaches "
        f"{_span([near[model].value for model in bundled], '.2f')} on these three. On "
        "`demo/smolvlm`, around a pretrained language model, it is ahead: "
        f"{near[REAL].value:.2f} "
        f"[{near[REAL].low:.2f}, {near[REAL].high:.2f}] against {own[REAL].value:.2f} "
        f"[{own[REAL].low:.2f}, {own[REAL].high:.2f}]."
    )


def above_controls() -> str:
    own = text_truth("the default: attention and the token before")
    others = ("attention alone", "1 over the distance", "equal", "random")
    for model, found in own.items():
        above = all(found.low > text_truth(name)[model].high for name in others)
        assert above == (model != REAL), model
    return (
        "On the three bundled models with a small vocabulary they are above attention alone and "
        "above every control, with intervals that do not meet."
    )


def sweep() -> str:
    means, best, names, points, best_points = [], [], [], [], []
    for model in MODELS:
        found = {
            (row["score"], row["scales"]): float(row["value"])
            for row in select("scale_sweep", model=model, base="AttendedLens")
        }
        single = ("0.5", "1", "1.5", "2")
        winner = max(single, key=lambda scale: found["F1-IoU", scale])
        names.append(winner)
        best.append(found["F1-IoU", winner])
        best_points.append(max(found["pointing", scale] for scale in single))
        means.append(found["F1-IoU", "0.5 1 1.5 2"])
        points.append(found["pointing", "0.5 1 1.5 2"])
    assert len(set(names)) > 1
    return (
        f"With the attended lens, the mean of four scales has an F1-IoU of {_three(means)}, and "
        f"the best single scale, {names[0]}, {names[1]} and {names[2]}, has {_three(best)}. In "
        f"pointing the mean has {_three(points)}, the best single scale {_three(best_points)}."
    )


def one_pass() -> str:
    lens, attended, tam = (
        now(name, run="quiet")[0] for name in ("LogitLens", "AttendedLens", "TAM(LogitLens)")
    )
    return (
        f"LogitLens takes {lens:.3f}, AttendedLens {attended:.3f} and TAM {tam:.3f} times the bare "
        "pass at 256 image and 64 answer tokens."
    )


def four_scales() -> str:
    msea, arc = (now(name, run="quiet")[0] for name in ("MSEA(LogitLens)", "ARC(MSEA(LogitLens))"))
    return (
        f"MSEA takes {msea:.3f} times the bare passes of its scales, and ARC around it {arc:.3f} "
        "times."
    )


def fixed_time() -> str:
    small, large = now("ARC, after the pass", "ms", run="two lengths")
    (two,) = now("ARC(LogitLens)", run="quiet")
    (eight,) = now("ARC(LogitLens)", run="layers", layers=8)
    return (
        f"Ranking the vocabulary for 64 tokens of an answer takes {small:.0f} ms at 256 image "
        f"tokens and {large:.0f} ms at 1,024. So it weighs less the more layers and image tokens "
        f"the model has: {two:.3f} x bare with two layers, {eight:.3f} with eight."
    )


def memory() -> str:
    bare, lens, arc, attended = (
        now(f"peak of {name}", "MiB", run="busy")[0]
        for name in ("the bare pass", "LogitLens", "ARC(LogitLens)", "AttendedLens")
    )
    assert bare == lens == arc
    (plain,) = select("cost", what="peak of plain TAM", image_tokens=256, answer_tokens=64)
    return (
        f"The peak of LogitLens and of ARC is {bare:.1f} MiB, as that of the bare pass; that of "
        f"AttendedLens {attended:.1f}. All of TAM kept in memory, as its published code does, "
        f"takes {plain['value']} times as much."
    )


def generating() -> str:
    (lens,) = now("generating and LogitLens", "x generating", run="two lengths")
    (two,) = now("generating and ARC", "x generating", run="two lengths")
    (eight,) = now("generating and ARC", "x generating", layers=8)
    return (
        f"{lens:.3f} x `generate` with the lens, {two:.3f} with ARC and two layers, {eight:.3f} "
        "with eight."
    )


def batches() -> str:
    rows = [f"8 inputs, {each} answers: singly / in a batch" for each in ("own", "given")]
    own, given = (now(row, "ratio", run="bundled", answer_tokens=64)[0] for row in rows)
    return (
        "Eight answers of 64 tokens by the bundled model are made and explained "
        f"{own:.1f} times as fast as one at a time. With given answers a batch gains nothing on a "
        f"CPU ({given:.1f})."
    )


def noise() -> str:
    found = now("LogitLens", run="busy") + now("AttendedLens", run="busy")
    return f"is the noise of this measurement: up to {max(abs(each - 1) for each in found):.2f}."


def growth() -> str:
    def power(name: str) -> float:
        return now(name, "power", run="busy")[0]

    low, high = "image tokens from 256 to 1024", "image tokens from 1024 to 4096"
    return (
        "From 256 to 1,024 image tokens the bare pass grows with the power "
        f"{power(f'bare pass, {low}'):g}, from there to 4,096 with "
        f"{power(f'bare pass, {high}'):g}; what TAM adds grows with "
        f"{power(f'TAM after the pass, {low}'):.1f} and "
        f"{power(f'TAM after the pass, {high}'):.1f}, what ARC adds with "
        f"{power(f'ARC after the pass, {low}'):.1f} of the image tokens and "
        f"{power('ARC after the pass, answer tokens'):.1f} of the tokens of the answer."
    )


def small_model() -> str:
    bare = now("bare pass", "ms", run="bundled", answer_tokens=16)[0]
    (step,) = now("a step of decoding", "ms")
    return f"The pass of so small a model takes {bare:g} ms, and a step of its decoding {step:g} ms"


def streamed() -> str:
    (word,) = now("a streamed word", "ms")
    return f"each word is explained by itself, which takes about {word:g} ms."


def beside_the_passes() -> str:
    found = {
        row["what"].removeprefix("beside the passes: "): row["value"]
        for row in select("cost", run="evaluate", quantity="ms")
        if row["what"].startswith("beside")
    }
    parts = ", ".join(
        f"{'the ' if name.startswith('processor') else ''}{name} {value}"
        for name, value in found.items()
        if name != "all"
    )
    return (
        f"**What is done beside the passes takes some {found['all']} ms of an image and scale 1 at "
        f"any size of the model**: {parts}."
    )


def plain_lens_of_a_real_model() -> str:
    row = {
        each["strength"]: f"{float(each['value']):.3f}".lstrip("0")
        for each in read("benchmark/strength")
        if each["base"] == "MSEA(LogitLens)"
    }
    return (
        f"whose IoU is {row['0, no suppression']} without suppression, half of the share leaves "
        f"{row['0.5']}, the cosine {row['the cosine']}, the whole {row['1']}."
    )


def passes() -> str:
    found = [now(name, run="quiet")[0] for name in ("LogitLens", "AttendedLens", "TAM(LogitLens)")]
    return f"A method of one pass takes {_span(found, '.2f')} of the bare forward pass;"


def words_in_part() -> str:
    found = _correlations("the default: attention and the token before")
    return (
        f"The weights of the earlier words have a rank correlation of {_span(found, '.2f')} with "
        f"leave-one-out of the words, on {_count(len(found))} models."
    )


def words_by_method() -> str:
    own, lens, near = (
        _correlations(name)
        for name in (
            "the default: attention and the token before",
            "TAM: how strongly a state says the word",
            "1 over the distance",
        )
    )
    return (
        f"its rank correlation is {_span(own, '.2f')} on {_count(len(own))} models, one of them "
        f"around a pretrained language model; that of TAM's $r_{{tj}}$ is {_span(lens, '.2f')}, "
        f"and that of the distance alone {_span(near, '.2f')}."
    )


def time_of_a_run() -> str:
    (seconds,) = now("a captioned image with all methods", "s of the processor")
    (hours,) = now("300 scenes in three styles on two cores", "hours")
    return (
        f"All methods take about {seconds:g} seconds of processor time for a captioned image, half "
        "of it for the curves and the methods of pixels on few of them: 300 scenes in three styles "
        f"take {60 * hours:g} minutes for a model on two cores."
    )


def whole_models() -> str:
    """What an explanation by a whole model takes, for the first cell of each tutorial."""
    parts = []
    for shape, name in (("2b", "a 2B model"), ("8b", "an 8B model")):
        counted = {
            row["what"]: float(row["value"])
            for row in select("full_size", shape=shape)
            if row["image tokens"] in ("", "256")
        }
        (peak,) = cost("ARC(MSEA(AttendedLens))", "MiB", shape=shape, image_tokens=256)
        weights, peak = counted["weights in 16 bits"], peak / 2 / 1024
        seconds = counted["passes of four scales"] / RATE
        parts.append(
            f"{weights:.1f} GB of weights, {peak:.1f} GB above them and {seconds:.1f} s on {name}"
        )
    return (
        "In 16 bits, the default method explains an answer of 64 tokens about an image of 256 "
        f"tokens with {parts[0]}, and with {parts[1]}; the time is that of the operations at "
        f"{RATE} TFLOP/s, counted and not measured ([cost](../docs/cost.md#whole-models))."
    )


SENTENCES: dict[str, tuple[Callable[[], str], ...]] = {
    "results.md": (
        pointing,
        suppression,
        equal_weights,
        all_of_it,
        finer_pass,
        words,
        above_controls,
        distance,
        sweep,
        best_row,
        chance,
        words_without_a_place,
        interference,
        causal,
        settings,
    ),
    "cost.md": (
        one_pass,
        four_scales,
        fixed_time,
        memory,
        generating,
        batches,
        noise,
        growth,
        small_model,
        streamed,
        beside_the_passes,
    ),
    "method.md": (plain_lens_of_a_real_model, words_by_method),
    "which_method.md": (passes, words_in_part),
    "benchmark.md": (time_of_a_run,),
}
