"""The figures of the results: ``python -m tests.docs.result_figures`` draws them from the data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.docs.results import DOCS, MODELS, read, select, text_truth

IMAGES = DOCS / "images"
COLORS = {"LogitLens": "#3b6fb6", "AttendedLens": "#5b3fa8"}
CONTROL = "#b0b0b0"
ALL_MODELS = {**MODELS, "demo/smolvlm": "SmolVLM"}


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
            value, low, high, _ = text_truth(name)[model]
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
