"""The figures of the results: ``python -m tests.docs.result_figures`` draws them from the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.docs.results import ALL_MODELS, DOCS, MODELS, benchmark, read, select, text_truth

IMAGES = DOCS / "images"
COLORS = {"LogitLens": "#3b6fb6", "AttendedLens": "#5b3fa8"}
CONTROL = "#b0b0b0"


def draw_scales() -> Figure:
    r"""F1-IoU and pointing at single scales, and of the mean over four."""
    scores = ("F1-IoU", "pointing")
    figure = Figure(figsize=(8.4, 5.0), layout="constrained")
    grid = figure.subplots(len(scores), len(MODELS), sharex=True, sharey="row")
    for axes, score in zip(grid, scores):
        for axis, (model, name) in zip(axes, MODELS.items()):
            for base, color in COLORS.items():
                _draw_sweep(axis, model, base, score, color)
            if score == scores[0]:
                axis.set_title(name, fontsize=10)
            axis.grid(alpha=0.25)
        axes[0].set_ylabel(f"{score}, percent")
    for axis in grid[-1]:
        axis.set_xlabel("scale of a single pass")
        axis.set_xticks([0.5, 1, 1.5, 2])
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _draw_sweep(axis: Axes, model: str, base: str, score: str, color: str) -> None:
    rows = select("scale_sweep", model=model, base=base, score=score)
    single = [row for row in rows if " " not in row["scales"]]
    (mean,) = [row for row in rows if row["scales"] == "0.5 1 1.5 2"]
    values = [float(row["value"]) for row in single]
    spans = [
        [value - float(row["low"]) for value, row in zip(values, single)],
        [float(row["high"]) - value for value, row in zip(values, single)],
    ]
    places = [float(row["scales"]) for row in single]
    axis.errorbar(
        places, values, spans, color=color, marker="o", capsize=3, label=f"{base}, one pass"
    )
    axis.axhline(float(mean["value"]), color=color, ls="--", label=f"{base}, mean of four scales")


SETTINGS = {
    "k5": "k = 5",
    "k10": "k = 10",
    "k20": "k = 20",
    "p0.5": "p = 0.5",
    "p0.7": "p = 0.7",
    "p0.98": "p = 0.98",
    "power0.5": "weights to the power of 0.5",
    "power2": "weights squared",
    "previous": "ranking before the earlier token",
    "relevant": "relevant tokens suppressed",
    "activation": "times the lens of the earlier token",
    "cosine": "as much interference as the cosine",
    "strength1": "all of the interference",
}
MARKERS = {"demo/qwen2-vl": "o", "demo/llava-1.5": "s", "demo/internvl": "^"}


def draw_settings() -> Figure:
    r"""By how much each setting of ARC is above or below the default, with intervals."""
    scores = ("F1-IoU", "mass", "leakage")
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots(1, len(scores), sharey=True)
    for axis, score in zip(axes, scores):
        axis.axvline(0, color="black", lw=0.6)
        for shift, (model, name) in zip((-0.25, 0.0, 0.25), MODELS.items()):
            method = "arc-{}-attended-lens-msea".format
            found = [benchmark(model, method(key), f"difference in {score}") for key in SETTINGS]
            known = [(place, each) for place, each in enumerate(found) if each is not None]
            spans = [
                [each.value - each.low for _, each in known],
                [each.high - each.value for _, each in known],
            ]
            axis.errorbar(
                [each.value for _, each in known],
                [place + shift for place, _ in known],
                xerr=spans,
                ls="",
                marker=MARKERS[model],
                ms=4,
                lw=1,
                label=name,
            )
        axis.set_title(score, fontsize=10)
        axis.grid(axis="x", alpha=0.25)
    figure.supxlabel("points above the default", fontsize=10)
    axes[0].set_yticks(range(len(SETTINGS)), list(SETTINGS.values()), fontsize=9)
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return figure


def draw_words() -> Figure:
    r"""The rank correlation of weights of earlier words with leaving each word out."""
    rows = read("text_truth")
    names = list(dict.fromkeys(row["weights"] for row in rows))
    controls = {row["weights"] for row in rows if row["role"] == "control"}
    models = [model for model in ALL_MODELS if any(row["model"] == model for row in rows)]
    figure = Figure(figsize=(8.4, 3.6), layout="constrained")
    axes = figure.subplots(1, len(models), sharey=True, sharex=True)
    for axis, model in zip(axes, models):
        for place, name in enumerate(names):
            value, low, high = text_truth(name)[model]
            color = CONTROL if name in controls else COLORS["AttendedLens"]
            axis.barh(place, value, 0.7, color=color)
            axis.plot([low, high], [place, place], color="black", lw=1.2)
        axis.axvline(0, color="black", lw=0.6)
        axis.set_title(ALL_MODELS[model], fontsize=10)
        axis.grid(axis="x", alpha=0.25)
    axes[0].set_yticks(range(len(names)), names, fontsize=9)
    axes[0].invert_yaxis()
    figure.supxlabel("rank correlation with leaving each word out", fontsize=10)
    return figure


def draw_cost() -> Figure:
    r"""Time against image tokens: the pass, and what each method adds."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axis = figure.subplots()
    lines = (
        ("bare pass", "busy", 256, "bare pass", "black", "o"),
        ("ARC, after the pass", "busy", 256, "ARC adds", COLORS["AttendedLens"], "^"),
        ("TAM, after the pass", "busy", 256, "TAM adds", COLORS["LogitLens"], "v"),
        ("plain TAM, after the pass", "two lengths", 64, "plain TAM adds", "#b65b3b", "s"),
    )
    for what, run, answer, label, color, marker in lines:
        wanted = {"run": run, "what": what, "quantity": "ms", "answer_tokens": answer}
        rows = [row for row in select("cost", **wanted) if row["layers"] == "2"]
        tokens = [int(row["image tokens"]) for row in rows]
        values = [float(row["value"]) for row in rows]
        named = f"{label}, {answer} tokens of answer"
        axis.loglog(tokens, values, color=color, marker=marker, label=named)
    axis.set_xticks([256, 1024, 4096], ["256", "1,024", "4,096"])
    axis.minorticks_off()
    axis.set_xlabel("image tokens")
    axis.set_ylabel("ms of one thread, two layers")
    axis.grid(alpha=0.25)
    axis.legend(frameon=False, fontsize=8)
    return figure


FIGURES: dict[str, Callable[[], Figure]] = {
    "results-scales.png": draw_scales,
    "results-settings.png": draw_settings,
    "results-words.png": draw_words,
    "results-cost.png": draw_cost,
}


def main(folder: Path = IMAGES) -> None:
    r"""Draw all figures.

    Args:
        folder (Path): where they go. Default: that of the docs
    """
    for name, draw in FIGURES.items():
        draw().savefig(folder / name, dpi=130, metadata={"Software": None})


if __name__ == "__main__":
    main()
