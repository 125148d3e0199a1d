"""The tables of the results: ``python -m tests.docs.result_tables`` writes them from the data into
their pages, between ``<!-- table NAME -->`` and ``<!-- end of table -->``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from tests.docs.results import (
    ALL_MODELS,
    DEFAULT,
    DOCS,
    MODELS,
    REAL,
    TWIN,
    benchmark,
    read,
    reference_words,
    select,
)

PAGES = ("results.md", "cost.md", "method.md")
MARK = re.compile(r"<!-- table ([\w -]+) -->\n.*?<!-- end of table -->", re.DOTALL)

METHODS = (
    "true-mask",
    "arc-attended-lens-msea",
    "attended-lens-msea",
    "attended-lens",
    "attended-lens-2x",
    "attended-lens-msea-squared",
    "arc-msea",
    "arc-cosine-msea",
    "tam-msea",
    "msea",
    "msea-squared",
    "arc",
    "tam",
    "lens",
    "lens-squared",
    "lens-filtered",
    "lens-2x",
    "attention",
    "attention-squared",
    "rollout",
    "grad-cam",
    "random",
)
SCORES = ("F1-IoU", "pointing", "mass", "leakage", "causal correlation", "insertion - deletion")
LOWER_IS_BETTER = ("leakage",)
# Between the numbers of a cell, one for each model.
BREAK = "<br>"
# One that keeps a cell on its line.
SPACE = "\u00a0"
VARIANTS = {
    "arc-attended-lens-msea": "the default",
    "attended-lens-msea": "no suppression",
    "attended-lens-msea-plain": "no balance of scales either",
    "arc-cosine-attended-lens-msea": "as much as the cosine",
    "arc-strength1-attended-lens-msea": "all of the interference",
    "equal-attended-lens-msea": "equal weights",
    "tam-attended-lens-msea": "TAM's weights",
    "attended-lens-msea-squared": "squared instead",
    "arc-centered-attended-lens-msea": "around the lens with `centered=True`",
    "attended-lens-msea-centered": "the lens less its mean over the image",
    "attended-probability-msea": "softmax of the lens",
}

CAUSES = (
    "arc-attended-lens-msea",
    "attended-lens-msea",
    "attended-lens",
    "arc-msea",
    "msea",
    "tam",
    "lens",
    "random",
)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: bool = True) -> str:
    r"""A table of Markdown.

    Args:
        header (Sequence[str]): its first row.
        rows (Iterable[Sequence[str]]): the others.
        numbers (bool): whether all columns except the first are set flush right. Default: True
    """
    rule = ["---", *["---:" if numbers else "---"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))


def _titles(scores: Sequence[str]) -> list[str]:
    return [f"{score} ↓" if score in LOWER_IS_BETTER else score for score in scores]


def variants() -> str:
    """The default beside its controls, a number for each model."""
    return _by_model({f"`{each}`, {note}": each for each, note in VARIANTS.items()}, ALL_MODELS)


def causes() -> str:
    """A model, the same without losses on its image tokens, and the pretrained language model."""
    return _by_model({f"`{each}`": each for each in CAUSES}, ("demo/llava-1.5", TWIN, REAL))


def _by_model(rows: Mapping[str, str], models: Iterable[str]) -> str:
    """Scores of methods, each under a title, a number for each model."""
    scores = ("F1-IoU", "pointing", "mass", "leakage")
    lines = [
        [title, *(BREAK.join(_beside(model, each, score) for model in models) for score in scores)]
        for title, each in rows.items()
    ]
    return table(["method", *_titles(scores)], lines, numbers=False)


def _beside(model: str, method: str, score: str) -> str:
    """A score, and its difference from the default where the interval excludes 0."""
    found = benchmark(model, method, score)
    if found is None:
        return "–"
    change = benchmark(model, method, f"difference in {score}")
    if change is None or not change.excludes_0:
        return f"{found.value:.1f}"
    return f"{found.value:.1f}{SPACE}({change.value:+.1f})".replace("-", "−")


def methods(model: str) -> str:
    """The scores of each method that was measured, against the default."""
    rows = [
        [f"`{method}`", *(_score(model, method, each) for each in SCORES)] for method in METHODS
    ]
    rows = [row for row in rows if any(row[1:])]
    measured = [place for place in range(len(SCORES) + 1) if any(row[place] for row in rows)]
    header = ["method", *_titles(SCORES)]
    return table(
        [header[place] for place in measured], [[row[place] for place in measured] for row in rows]
    )


def _score(model: str, method: str, score: str) -> str:
    found = benchmark(model, method, score)
    if found is None:
        return ""
    text = f"{found.value:.1f}{SPACE}±{SPACE}{(found.high - found.low) / 2:.1f}"
    change = benchmark(model, method, f"difference in {score}")
    if method != DEFAULT and change is not None and change.excludes_0:
        text += SPACE + ("▲" if (change.value > 0) != (score in LOWER_IS_BETTER) else "▽")
    return text


def prior() -> str:
    """Leakage of the lens, and objects that are named though they are gone, by language prior."""
    rows = []
    for model, name in MODELS.items():
        leakage = {
            row["prior"]: row
            for row in select("benchmark/prior", model=model)
            if "leakage" in row["what"]
        }
        change = leakage["1 against 0"]
        gone = select("benchmark/prior", model=model, what="names an object that is gone")
        rows.append(
            [
                name,
                leakage["0"]["value"],
                leakage["1"]["value"],
                f"{float(change['value']):+.1f} [{change['low']}, {change['high']}]",
                ", ".join(row["value"] for row in gone),
            ]
        )
    header = ["model", "leakage without", "with", "difference", "names what is gone, at 0, 0.5, 1"]
    return table(header, rows)


def strength() -> str:
    """Scores of maps by how much of the interference ARC takes."""
    rows, scores = [], ("F1-IoU", "pointing", "mass", "leakage")
    known = [row for row in read("benchmark/strength") if row["base"] == "MSEA(AttendedLens)"]
    for each in dict.fromkeys(row["strength"] for row in known):
        cells = [
            BREAK.join(
                f"{float(row['value']):.1f}"
                for model in ALL_MODELS
                for row in known
                if (row["model"], row["strength"], row["score"]) == (model, each, score)
            )
            for score in scores
        ]
        rows.append([each, *cells])
    return table(["strength", *_titles(scores)], rows, numbers=False)


def references() -> str:
    """How often the largest weight is on the word that decides a later one."""
    columns = {
        "a colour, directly before": ("color", "all"),
        "a shape, three words before": ("repeat", "all"),
        "the same, among all but the last word": ("repeat", "all but the last"),
    }
    lines = []
    for name in dict.fromkeys(row["weights"] for row in read("reference_words") if row["words"]):
        cells = []
        for kind, words in columns.values():
            found = reference_words(name, kind, words)
            cells.append(
                BREAK.join(f"{found[m].value:.2f}" if m in found else "–" for m in ALL_MODELS)
            )
        lines.append([name, *cells])
    return table(["weights", *columns], lines, numbers=False)


def data_files() -> str:
    """What each file of the data holds."""
    rows = [
        [f"[{name}](results/{name})", str(len(read(name.removesuffix(".csv")))), note]
        for name, note in FILES.items()
    ]
    return table(["file", "rows", "what it holds"], rows, numbers=False)


FILES = {
    **{
        f"benchmark/{model.removeprefix('demo/')}.csv": f"methods, scores and styles, {name}"
        for model, name in ALL_MODELS.items()
    },
    f"benchmark/{TWIN}.csv": "the same, LLaVA-1.5 without losses on its image tokens",
    "benchmark/scales.csv": "what the models say of the caption at other scales",
    "benchmark/agreement.csv": "how alike the maps of nouns are at different scales",
    "benchmark/strength.csv": "how much of the interference ARC takes, development scenes",
    "benchmark/prior.csv": "the language prior",
    "scale_sweep.csv": "single scales and means over scales",
    "text_truth.csv": "weights of earlier words against leaving words out",
    "reference_words.csv": "weights of earlier words where one word decides another",
    "cost.csv": "time and memory",
    "full_size.csv": "parameters and operations of whole models",
}


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _costs(what: Sequence[str], **wanted: object) -> list[list[str]]:
    rows = []
    for name in what:
        found = {row["quantity"]: row["value"] for row in select("cost", what=name, **wanted)}
        ratio = f"{float(found['x bare']):.3f}" if "x bare" in found else ""
        rows.append([f"`{name}`" if "(" in name else name, _ms(float(found["ms"])), ratio])
    return rows


def quiet() -> str:
    """The methods at one length, on a machine that did little else."""
    what = list(dict.fromkeys(row["what"] for row in select("cost", run="quiet")))
    return table(["", "ms", "x bare"], _costs(what, run="quiet"))


def lengths() -> str:
    """The same at other lengths and depths."""
    found = [row for row in select("cost", run="busy") if row["answer tokens"]]
    cases = list(
        dict.fromkeys((row["image tokens"], row["answer tokens"], row["layers"]) for row in found)
    )
    rows = []
    for what, quantity in (
        ("bare pass", "ms"),
        ("LogitLens", "x bare"),
        ("AttendedLens", "x bare"),
        ("ARC(LogitLens)", "x bare"),
        ("TAM, after the pass", "ms"),
        ("ARC, after the pass", "ms"),
    ):
        values = {
            (row["image tokens"], row["answer tokens"], row["layers"]): row["value"]
            for row in found
            if (row["what"], row["quantity"]) == (what, quantity)
        }
        show = _ms if quantity == "ms" else "{:.3f}".format
        cells = [show(float(values[case])) if case in values else "" for case in cases]
        rows.append([f"{what}, {quantity}", *cells])
    titles = [f"{int(image):,}, {answer}, {layers}" for image, answer, layers in cases]
    return table(["image and answer tokens, layers", *titles], rows)


def bundled() -> str:
    """The bundled model, at two lengths of the answer."""
    rows: dict[str, list[str]] = {}
    for row in select("cost", run="bundled"):
        unit = "" if row["quantity"] == "ratio" else f", {row['quantity']}"
        rows.setdefault(row["what"] + unit, []).append(row["value"])
    known = [[name, *values] for name, values in rows.items() if len(values) == 2]
    return table(["", "16 answer", "64 answer"], known)


PARAMETERS = {
    "tiny": "`demo/qwen2-vl`, half a million parameters",
    "demo/smolvlm": "`demo/smolvlm`, 135 million",
}


def data_sets() -> str:
    """What `evaluate` takes beside its passes."""
    rows = []
    found = [
        row
        for row in select("cost", run="evaluate")
        if not row["what"].startswith(("beside", "longest"))
    ]
    for shape in dict.fromkeys(row["shape"] for row in found):
        methods = [row["what"] for row in found if row["shape"] == shape]
        for method in (name for name in dict.fromkeys(methods) if ":" not in name):
            cells = {
                row["what"].removeprefix(f"{method}: "): float(row["value"])
                for row in found
                if row["shape"] == shape and row["what"].startswith(method)
            }
            rows.append(
                [
                    PARAMETERS[shape],
                    method if method == "attended-lens" else f"{method}, four scales",
                    f"{cells['bare pass of an image']:,.0f}",
                    f"{cells[method]:.2f}",
                    *(
                        f"{cells[key]:g} %"
                        for key in ("encoding", "reading and scores", "the rest")
                    ),
                ]
            )
    header = ["model", "method", "bare pass, ms", "x bare", "encoding", "reading and scores"]
    return table([*header, "the rest"], rows)


def _range(values: Sequence[float], form: str = ".3f") -> str:
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def aims() -> str:
    """Each aim, what was measured of it, and whether that meets it."""
    two: dict[str, object] = {"shape": "2b", "layers": 2, "answer_tokens": 64}
    tiny: dict[str, object] = {"shape": "tiny"}
    own, given = (f"8 inputs, {each} answers: singly / in a batch" for each in ("own", "given"))
    faster = {
        row["image tokens"]: float(row["value"])
        for row in select("cost", run="two lengths", what="after the pass, plain TAM / TAM")
    }
    lens, arc = (now(each, **two) for each in ("LogitLens", "ARC(LogitLens)"))
    scales = now("MSEA(LogitLens)", shape="2b") + now("ARC(MSEA(LogitLens))", shape="2b")
    generated = {
        f"{each}, {layers} layers": now(f"generating and {each}", "x generating", layers=layers)[0]
        for each in ("LogitLens", "ARC")
        for layers in (2, 8)
    }
    peaks = {
        "AttendedLens": now("peak of AttendedLens", **tiny)[0],
        "MSEA": now("peak of MSEA(LogitLens)", **tiny)[0],
        "MSEA of AttendedLens": now("peak of MSEA(AttendedLens)", **tiny)[0],
    }
    after = {each: now(f"{each}, after the pass", "% of the pass")[0] for each in ("TAM", "ARC")}
    batches = now(own, "ratio") + now(given, "ratio")
    real, small = (
        [now(each, shape=shape, run="evaluate")[0] for each in ("attended-lens", "the default")]
        for shape in ("demo/smolvlm", "tiny")
    )
    rows = [
        ["LogitLens at most 1.05 x bare", _range(lens), _verdict(max(lens) <= 1.05, lens, 1.05)],
        ["ARC at most 1.10 x bare", _range(arc), _verdict(max(arc) <= 1.10, arc, 1.10)],
        [
            "MSEA over four scales at most 1.05 x their passes",
            _range(scales),
            _verdict(max(scales) <= 1.05, scales, 1.05),
        ],
        [
            "generating with an explanation at most 1.03 x `generate`",
            _listed(generated, ".3f"),
            _verdict(max(generated.values()) <= 1.03, list(generated.values()), 1.03),
        ],
        [
            "after the pass 100 x faster than plain TAM at 1,024 image tokens",
            f"{faster['256']:g} at 256, {faster['1024']:g} at 1,024",
            "met" if faster["1024"] >= 100 else "missed",
        ],
        [
            "peak at most 1.1 x bare, bundled model",
            _listed(peaks, ".2f"),
            _verdict(max(peaks.values()) <= 1.1, list(peaks.values()), 1.1),
        ],
        [
            "peak at most a tenth of plain TAM's",
            f"{now('peak of LogitLens / peak of plain TAM', 'ratio')[0]:g}: the pass itself holds "
            "that much",
            "missed",
        ],
        [
            "at most 5 % after the pass at 4,096 image and 256 answer tokens",
            _listed(after, ".1f"),
            _verdict(max(after.values()) <= 5, list(after.values()), 5),
        ],
        [
            "a batch of 8 at least 2 x faster on the bundled model",
            f"own answers {_range(batches[:2], '.1f')}, given answers {_range(batches[2:], '.1f')}",
            "met for long answers of the model's own",
        ],
        [
            "`evaluate` at most 1.15 x bare",
            f"`demo/smolvlm` {_range(real, '.2f')}, `demo/qwen2-vl` {_range(small, '.2f')}",
            "met with passes of a second, missed with passes of 20 ms",
        ],
        ["a GPU", "none at hand", "not measured"],
    ]
    return table(["Aim", "Measured", ""], rows, numbers=False)


def now(what: str, quantity: str = "x bare", **wanted: object) -> list[float]:
    """What was measured of the present code."""
    rows = select("cost", what=what, quantity=quantity, **wanted)
    past = ("before rankings in chunks", "bundled, earlier")
    return [float(row["value"]) for row in rows if row["run"] not in past]


def _listed(values: dict[str, float], form: str) -> str:
    return ", ".join(f"{name} {value:{form}}" for name, value in values.items())


def _verdict(met: bool, values: Sequence[float], limit: float) -> str:
    if met:
        return "met"
    within = sum(value <= limit for value in values)
    return f"met by {within} of {len(values)}" if within else "missed"


def whole_models() -> str:
    """Memory and time of an explanation by a whole model, of 64 tokens at four scales."""
    facts = {(r["shape"], r["image tokens"], r["what"]): r["value"] for r in read("full_size")}
    cases = [key[:2] for key in facts if key[2] == "one pass"]
    rows = []
    for shape, tokens in cases:
        one = float(facts[shape, tokens, "one pass"])
        four = float(facts[shape, tokens, "passes of four scales"])
        peaks = [
            float(row["value"]) / 2 / 1024
            for row in select("cost", run="peaks", shape=shape, what="ARC(MSEA(AttendedLens))")
            if row["image tokens"] == tokens
        ]
        rows.append(
            [
                f"{shape.upper()}, {int(tokens):,}",
                f"{facts[shape, '', 'weights in 16 bits']} GB",
                f"{peaks[0]:.1f} GB" if peaks else "not measured",
                f"{one:,.1f}",
                f"{four:,.1f}",
                f"{four / RATE:.1f} s",
            ]
        )
    header = ["model, image tokens", "weights", "above them", "TFLOP of one pass", "of four scales"]
    return table([*header, f"at {RATE} TFLOP/s"], rows)


# What a large GPU reaches in 16 bits on long inputs; half of it or less on short ones.
RATE = 100

TABLES: dict[str, Callable[[], str]] = {
    "default": variants,
    "causes": causes,
    **{
        f"methods {model.removeprefix('demo/').replace('.', '-')}": lambda model=model: methods(
            model
        )
        for model in ALL_MODELS
    },
    "prior": prior,
    "strength": strength,
    "references": references,
    "files": data_files,
    "quiet": quiet,
    "lengths": lengths,
    "bundled": bundled,
    "data sets": data_sets,
    "aims": aims,
    "whole models": whole_models,
}


def with_tables(text: str) -> str:
    r"""A page with its tables as they follow from the data.

    Args:
        text (str): the page.
    """
    return MARK.sub(
        lambda found: f"<!-- table {found[1]} -->\n\n{TABLES[found[1]]()}\n\n<!-- end of table -->",
        text,
    )


def main(folder: Path = DOCS) -> None:
    for name in PAGES:
        page = folder / name
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
