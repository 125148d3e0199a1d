"""The measurements as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from tests.cost.growth import growth_exponents
from tests.cost.methods import METHODS
from tests.cost.results import Result
from tests.cost.targets import TARGETS

NONE = ""


def markdown(results: Sequence[Result], machine: dict[str, object]) -> str:
    r"""All tables.

    Args:
        results (Sequence[Result]): of each model and input.
        machine (dict[str, object]): what it was measured on.
    """
    parts = ["# Cost", ", ".join(f"{name}: {value}" for name, value in machine.items())]
    for result in results:
        parts += [f"## {result}", _costs(result), _targets(result)]
        if result.stages:
            parts += ["Milliseconds of each stage, in a run of its own:", _stages(result)]
    growth = _growth(results)
    if growth:
        parts += ["## Growth", "Time as a power of the numbers of tokens:", growth]
    return "\n\n".join(parts) + "\n"


def _costs(result: Result) -> str:
    rows = []
    for name in result.seconds:
        low, high = result.spread(name)
        bare = METHODS[name].bare
        rows.append(
            [
                name,
                str(result.passes[name]) if name in result.passes else NONE,
                f"{1e3 * result.time(name):,.1f}",
                f"{1e3 * low:,.1f} to {1e3 * high:,.1f}",
                _number(result.time_ratio(name, bare), ".3f"),
                f"{result.peaks[name] / 2**20:,.1f}" if name in result.peaks else NONE,
                _number(result.peak_ratio(name, bare), ".2f"),
            ]
        )
    header = ("method", "passes", "ms", "quartiles", "x bare", "peak MiB", "x bare")
    return _table(header, rows)


def _targets(result: Result) -> str:
    rows = []
    for target in TARGETS:
        ratio = target.ratio(result)
        if ratio is not None:
            limit = f"{'at least' if target.at_least else 'at most'} {target.limit:g}"
            verdict = "yes" if target.is_met(ratio) else "no"
            rows.append([target.text, f"{ratio:.3f}", limit, verdict])
    return _table(("ratio", "measured", "aim", "met"), rows)


def _stages(result: Result) -> str:
    names = list(dict.fromkeys(name for stages in result.stages.values() for name in stages))
    rows = [
        [method, *(f"{1e3 * stages[name]:,.1f}" if name in stages else NONE for name in names)]
        for method, stages in result.stages.items()
    ]
    if not result.synchronizations:
        return _table(("method", *names), rows)
    for row in rows:
        row.append(str(result.synchronizations.get(row[0], NONE)))
    return _table(("method", *names, "waits for the GPU"), rows)


def _growth(results: Sequence[Result]) -> str:
    rows = []
    by_shape = sorted(results, key=lambda result: (result.shape, result.layers))
    for (shape, _), group in groupby(by_shape, key=lambda result: (result.shape, result.layers)):
        cases = list(group)
        for name in METHODS:
            known = [result for result in cases if result.seconds.get(name)]
            image, answer = growth_exponents(
                [result.image_tokens for result in known],
                [result.answer_tokens for result in known],
                [result.time(name) for result in known],
            )
            if image is not None or answer is not None:
                rows.append([f"`{shape}`", name, _number(image, ".2f"), _number(answer, ".2f")])
    return _table(("shape", "method", "image tokens", "answer tokens"), rows) if rows else ""


def _number(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
