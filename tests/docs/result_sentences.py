"""The sentences of the pages that hold measured numbers, made from the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.docs.result_tables import RATE, now
from tests.docs.results import (
    DEFAULT,
    MODELS,
    REAL,
    TWIN,
    Value,
    benchmark,
    cost,
    reference_words,
    scores,
    select,
    text_truth,
)

BASE = "attended-lens-msea"


def _three(values: Sequence[float], form: str = ".1f") -> str:
    first, second, third = (format(value, form) for value in values)
    return f"{first}, {second} and {third}"


def _span(values: Sequence[float], form: str = ".1f") -> str:
    return f"{min(values):{form}} to {max(values):{form}}"


def _differences(method: str, score: str) -> list[Value]:
    """From the default, on each of the three models."""
    found = [benchmark(model, method, f"difference in {score}") for model in MODELS]
    return [each for each in found if each is not None]


def _changes(method: str, score: str) -> list[float]:
    """Differences from the default, each of which has to exclude 0."""
    found = _differences(method, score)
    assert all(each.excludes_0 for each in found), (method, score, found)
    return [each.value for each in found]


def _is_behind(method: str, score: str) -> list[bool]:
    """Whether the default beats a method on each model, with an interval apart from 0."""
    return [each.high < 0 for each in _differences(method, score)]


def pointing() -> str:
    return (
        "The largest value of a noun's map is on its object in "
        f"{_three(scores(DEFAULT, 'pointing'))} of 100 cases, a random map's in "
        f"{_three(scores('random', 'pointing'))}."
    )


def suppression() -> str:
    mass = [-change for change in _changes(BASE, "mass")]
    leakage = _changes(BASE, "leakage")
    pointing, f1 = (
        [-each.value for each in _differences(BASE, score)] for score in ("pointing", "F1-IoU")
    )
    return (
        f"With it, {_span(mass)} points more of a map are on its object and {_span(leakage)} "
        f"points fewer on the objects named before. F1-IoU changes by {_three(f1, '+.1f')} points "
        f"and pointing by {_three(pointing, '+.1f')}."
    )


def equal_weights() -> str:
    lost = [-change for change in _changes("equal-attended-lens-msea", "F1-IoU")]
    return f"With equal weights F1-IoU falls by {_span(lost)} points."


def all_of_it() -> str:
    lost = [-change for change in _changes("arc-strength1-attended-lens-msea", "F1-IoU")]
    return f"and all of it (`arc-strength1`) leaks least and costs {_span(lost)} points of F1-IoU."


def finer_pass() -> str:
    lost = [-change for change in _changes("attended-lens-2x", "pointing")]
    f1 = _differences("attended-lens-2x", "F1-IoU")
    assert [each.excludes_0 for each in f1] == [False, True, True]
    return (
        f"The default is {_three(lost)} points ahead of one pass of the attended lens at scale 2 "
        f"in pointing, and {_three([-each.value for each in f1])} in F1-IoU, of which the first "
        "may be chance."
    )


def best_row() -> str:
    for method in ("lens", "arc", "tam", "tam-msea", "attention", "rollout"):
        assert all(_is_behind(method, "F1-IoU")) and all(_is_behind(method, "pointing")), method
    assert all(_is_behind("attended-lens", "F1-IoU")) and all(_is_behind("arc-msea", "F1-IoU"))
    assert _is_behind("attended-lens", "pointing") == [True, False, True]
    return (
        "All intervals of these differences exclude 0, except that of the attended lens's "
        "pointing on the LLaVA-1.5."
    )


def chance() -> str:
    return (
        f"It points at the object of a noun in {_three(scores('lens', 'pointing'))} of 100 cases."
    )


def paper() -> str:
    before, after = (scores(method, "mass") for method in ("msea", "arc-msea"))
    leaks, less = (scores(method, "leakage") for method in ("msea", "arc-msea"))
    return (
        f"Around MSEA of the lens, ARC raises mass from {_three(before)} to {_three(after)} and "
        f"lowers leakage from {_three(leaks)} to {_three(less)}."
    )


def squaring() -> str:
    mass, f1 = (_differences("attended-lens-msea-squared", each) for each in ("mass", "F1-IoU"))
    assert all(each.low > 0 for each in mass) and all(each.high < 0 for each in f1)
    return (
        f"Squaring the maps instead has {_span([each.value for each in mass])} points more mass "
        f"and {_span([-each.value for each in f1])} points less F1-IoU."
    )


def causal() -> str:
    attention, default = (
        scores(method, "causal correlation")[1] for method in ("attention", DEFAULT)
    )
    assert _differences("attention", "causal correlation")[1].low > 0
    return (
        f"Mean attention has a causal correlation of {attention:.1f} on the LLaVA-1.5, the default "
        f"{default:.1f}."
    )


def curves() -> str:
    lost = [each.value for each in _differences(BASE, "insertion - deletion")]
    return (
        f"Insertion less deletion is {_three(scores(DEFAULT, 'insertion - deletion'))} with it, "
        f"{_three(lost)} points less than without."
    )


def settings() -> str:
    spans = [
        abs(each.value)
        for key in ("k5", "k10", "k20", "p0.5", "p0.7", "p0.98")
        for score in ("F1-IoU", "mass", "leakage")
        for each in _differences(f"arc-{key}-attended-lens-msea", score)
    ]
    return (
        f"The length k of the rankings and their persistence p change no score by more than "
        f"{max(spans):.1f} points."
    )


def reading() -> str:
    relevant, before = (
        [-change for change in _changes(f"arc-{key}-attended-lens-msea", "F1-IoU")]
        for key in ("relevant", "previous")
    )
    activation = _differences("arc-activation-attended-lens-msea", "F1-IoU")
    assert [each.excludes_0 for each in activation] == [False, True, True]
    return (
        f"Suppressing the relevant tokens instead costs {_three(relevant)} points of F1-IoU, and "
        f"reading the ranking before the earlier token {_three(before)}. The product with the "
        f"lens changes it by {_three([each.value for each in activation], '+.1f')}, of which the "
        "first may be chance."
    )


def _of(model: str, method: str, score: str) -> Value:
    """A score that has been measured."""
    found = benchmark(model, method, score)
    assert found is not None, (model, method, score)
    return found


def _change(model: str, method: str, score: str) -> Value:
    """Its difference from the default, which has to exclude 0."""
    found = _of(model, method, f"difference in {score}")
    assert found.excludes_0, (model, method, score, found)
    return found


def real_model() -> str:
    def of(method: str, score: str) -> str:
        return f"{_of(REAL, method, score).value:.1f}"

    assert not _of(REAL, BASE, "difference in pointing").excludes_0
    return (
        "On `demo/smolvlm`, around a pretrained language model, ARC raises the F1-IoU of the "
        f"attended lens from {of(BASE, 'F1-IoU')} to {of(DEFAULT, 'F1-IoU')} and its mass from "
        f"{of(BASE, 'mass')} to {of(DEFAULT, 'mass')}, and leakage falls from "
        f"{of(BASE, 'leakage')} to {of(DEFAULT, 'leakage')}. Pointing changes from "
        f"{of(BASE, 'pointing')} to {of(DEFAULT, 'pointing')}, which may be chance. Around the "
        f"plain lens F1-IoU rises from {of('msea', 'F1-IoU')} to {of('arc-msea', 'F1-IoU')}, and "
        f"to {of('arc-cosine-msea', 'F1-IoU')} with `strength=None`, the cosine."
    )


def suppression_of_the_twin() -> str:
    f1, points, mass, leakage = (
        _change(TWIN, BASE, score).value for score in ("F1-IoU", "pointing", "mass", "leakage")
    )
    assert f1 > 0 and points > 0 and mass < 0 and leakage > 0
    return (
        "On a LLaVA-1.5 that was trained without losses on its image tokens, whose lens points at "
        f"the object of a noun in {_of(TWIN, 'lens', 'pointing').value:.1f} of 100 cases, it costs "
        f"{f1:.1f} points of F1-IoU and {points:.1f} of pointing, for {-mass:.1f} points of mass "
        f"and {leakage:.1f} of leakage."
    )


def parts_of_the_twin() -> str:
    f1, points = (
        [f"{_of(TWIN, each, score).value:.1f}" for each in ("lens", "attended-lens", BASE)]
        for score in ("F1-IoU", "pointing")
    )
    return (
        "On this model the product with attention raises the F1-IoU of the lens from "
        f"{f1[0]} to {f1[1]} and its pointing from {points[0]} to {points[1]}, and four scales "
        f"raise them to {f1[2]} and {points[2]}."
    )


def strength_of_the_twin() -> str:
    methods = (BASE, DEFAULT, "arc-cosine-attended-lens-msea", "arc-strength1-attended-lens-msea")
    none, half, cosine, whole = (_of(TWIN, each, "F1-IoU").value for each in methods)
    assert none > half > cosine > whole
    return (
        f"The more of it ARC takes, the lower is the F1-IoU: {none:.1f} with none of it, "
        f"{half:.1f} with the default, {cosine:.1f} with the cosine and {whole:.1f} with all."
    )


def cosine_of_a_real_model() -> str:
    cosine, told = "arc-cosine-attended-lens-msea", []
    for score in ("mass", "pointing"):
        _change(REAL, cosine, score)
        found, own = _of(REAL, cosine, score), _of(REAL, DEFAULT, score)
        told.append(f"{found.value:.1f} against {own.value:.1f}")
    return f"On the SmolVLM the cosine has more mass, {told[0]}, and points worse, {told[1]}."


def centred_of_a_real_model() -> str:
    method = "arc-centered-attended-lens-msea"
    assert all(_change(REAL, method, score).low > 0 for score in ("F1-IoU", "mass"))
    f1, mass = (_of(REAL, method, score).value for score in ("F1-IoU", "mass"))
    return (
        f"There the default around the centred lens is ahead, with an F1-IoU of {f1:.1f} and a "
        f"mass of {mass:.1f}."
    )


def _correlations(weights: str) -> list[float]:
    return [value.value for value in text_truth(weights).values()]


def words() -> str:
    found = _correlations("the default: attention and the token before")
    return f"Their rank correlation is {_span(found, '.2f')} on {_count(len(found))} models."


def _pointing(weights: str, kind: str, words: str) -> list[float]:
    """On the models with a vocabulary of words that know the pairs."""
    found = reference_words(weights, kind, words)
    return [found[model].value for model in MODELS if model in found]


def _shares(values: Sequence[float]) -> str:
    """A number, or the span of several that differ."""
    span = _span(values, ".2f")
    return span if len({f"{value:.2f}" for value in values}) > 1 else span.split()[0]


def deciding_word() -> str:
    own, looks = "the default: attention and the token before", "attention alone"
    near, far = (_shares(_pointing(own, kind, "all")) for kind in ("color", "repeat"))
    return (
        f"Where the word directly before decides, the default finds it in {near} of the cases, and "
        f"attention alone in {_shares(_pointing(looks, 'color', 'all'))}. Where an earlier one "
        f"does, the default finds it in {far}, since its share for the word directly before is "
        f"larger, and among all others in {_shares(_pointing(own, 'repeat', 'all but the last'))}."
    )


def deciding_word_of_a_real_model() -> str:
    own, gradients, truth = (
        reference_words(weights, "repeat", "all but the last")[REAL]
        for weights in (
            "the default: attention and the token before",
            "gradients times embeddings",
            "leaving words out",
        )
    )
    return (
        f"On `demo/smolvlm` the default finds the earlier word in {own.value:.2f} of the cases, "
        "also among all others: its mean attention rests on other words. Gradients times "
        f"embeddings find it there in {gradients.value:.2f}, and leaving words out in "
        f"{truth.value:.2f}."
    )


def gradients_of_words() -> str:
    own = text_truth("the default: attention and the token before")
    other = text_truth("gradients times embeddings")
    assert all(other[model].value < own[model].value for model in other)
    return (
        "Gradients times embeddings, with a backward pass for each word, have "
        f"{_span([each.value for each in other.values()], '.2f')}, less than the default on each "
        "model."
    )


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


def two_processes() -> str:
    found = {
        row["what"].rpartition(", ")[2]: row["value"]
        for row in select("cost", run="evaluate, two processes", quantity="times as fast")
    }
    return (
        f"**Two processes on two cores were {found['median']} times as fast as one**, in the "
        f"median of three rounds of 480 images ({found['least']} to {found['most']}):"
    )


def answering() -> str:
    lens, attended, four = (
        now(f"answering and {name}", "x generating", run="smolvlm")[0]
        for name in ("LogitLens", "ARC(AttendedLens)", "ARC(MSEA(AttendedLens))")
    )
    return (
        f"`demo/smolvlm` says and explains a caption of 18 tokens in {lens:.2f} times `generate` "
        f"with the lens, {attended:.2f} times with the attended lens, which makes a pass for its "
        f"attention, and {four:.1f} times at four scales."
    )


def plain_lens_of_a_real_model() -> str:
    row = {
        each["strength"]: f"{float(each['value']):.1f}"
        for each in select("benchmark/strength", model=REAL, base="MSEA(LogitLens)", score="F1-IoU")
    }
    return (
        f"whose F1-IoU is {row['0, no suppression']} without suppression, half of the share leaves "
        f"{row['0.5']}, the cosine {row['the cosine']}, the whole {row['1']}."
    )


def passes() -> str:
    found = [now(name, run="quiet")[0] for name in ("LogitLens", "AttendedLens", "TAM(LogitLens)")]
    two, eight = (
        now("ARC(LogitLens)", run="quiet")[0],
        now("ARC(LogitLens)", run="layers", layers=8)[0],
    )
    return (
        f"The lens, the attended lens and TAM take {_span(found, '.2f')} times the bare forward "
        f"pass. ARC adds a fixed time: {two:.2f} times with two layers, {eight:.2f} with eight."
    )


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
        gradients_of_words,
        deciding_word,
        deciding_word_of_a_real_model,
        sweep,
        best_row,
        chance,
        paper,
        squaring,
        causal,
        curves,
        settings,
        reading,
        real_model,
        suppression_of_the_twin,
        parts_of_the_twin,
        strength_of_the_twin,
        cosine_of_a_real_model,
        centred_of_a_real_model,
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
        two_processes,
        answering,
    ),
    "method.md": (plain_lens_of_a_real_model, words_by_method),
    "which_method.md": (passes, words_in_part),
    "benchmark.md": (time_of_a_run,),
}
