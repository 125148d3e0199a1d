"""The numbers of a run: every column of every table, with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_mllm.datasets import CAPTION_STYLES
from captum_mllm.evaluation.answers import auroc, yes_no_scores
from captum_mllm.evaluation.records import NOTHING, Record, Scores
from captum_mllm.metrics import paired_bootstrap
from captum_mllm.metrics.aligned_maps import safe_ratio
from captum_mllm.metrics.token_iou import harmonic_mean


def _pooled(total: Tensor, count: Tensor) -> Tensor:
    return safe_ratio(total, count)


def _f1(objects: Tensor, n_objects: Tensor, functions: Tensor, n_functions: Tensor) -> Tensor:
    return harmonic_mean(safe_ratio(objects, n_objects), safe_ratio(functions, n_functions))


@dataclass(frozen=True)
class Column:
    r"""
    A statistic of the scores of all images.

    Args:
        title (str): Its heading.
        scores (tuple[str, ...]): The scores that it is made of.
        statistic (Callable): From the means over images of the total and the count of each
            score to its value. Default: the mean over words, total by count.
        higher_is_better (bool): Whether large values are good. Default: True
        is_share (bool): Whether it is a share of one, shown in percent. Default: True
    """

    title: str
    scores: tuple[str, ...]
    statistic: Callable[..., Tensor] = _pooled
    higher_is_better: bool = True
    is_share: bool = True


#: Where maps lie.
LOCALIZATION: tuple[Column, ...] = (
    Column("Obj-IoU", ("objects",)),
    Column("Func-IoU", ("functions",)),
    Column("F1-IoU", ("objects", "functions"), _f1),
    Column("F1 per image", ("f1_per_image",)),
    Column("pointing", ("pointing",)),
    Column("mass", ("mass",)),
    Column("rank", ("rank",)),
    Column("leakage", ("leakage",), higher_is_better=False),
)

#: TAM's protocol as it was published.
TAM: tuple[Column, ...] = (
    Column("TAM Obj-IoU", ("tam_objects",)),
    Column("TAM Func-IoU", ("tam_functions",)),
    Column("TAM F1-IoU", ("tam_objects", "tam_functions"), _f1),
    Column("TAM precision", ("tam_precision",)),
    Column("TAM recall", ("tam_recall",)),
)

#: Whether the model depends on what they mark.
FAITHFULNESS: tuple[Column, ...] = (
    Column("insertion", ("insertion",)),
    Column("deletion", ("deletion",), higher_is_better=False),
    Column("insertion - deletion", ("difference",)),
    Column("causal correlation", ("causal",)),
)

#: Whether weights of earlier words match what removing each word costs.
TEXT: tuple[Column, ...] = (
    Column("text correlation", ("text_correlation",)),
    Column("text hit", ("text_hit",)),
    Column("text mass", ("text_mass",)),
)

#: Those on which methods are compared pair by pair.
COMPARED: tuple[Column, ...] = tuple(
    column
    for column in (*LOCALIZATION, *FAITHFULNESS)
    if column.title
    in ("F1-IoU", "pointing", "mass", "leakage", "insertion - deletion", "causal correlation")
)

#: What the model says of the caption at a scale.
TARGETS: tuple[Column, ...] = (
    Column("probability", ("probability",)),
    Column("rank", ("rank",), higher_is_better=False, is_share=False),
    Column("first choice", ("first",)),
    Column("probability, nouns and attributes", ("content_probability",)),
    Column("first choice, nouns and attributes", ("content_first",)),
)

#: How alike the maps of a base are at different scales.
AGREEMENT: tuple[Column, ...] = (Column("agreement", ("agreement",)),)


RESAMPLES = 10000


class Estimate(NamedTuple):
    r"""
    A statistic and its 95 % interval.

    Args:
        value (float): The statistic of the images as they are.
        low (float): Lower end of the interval.
        high (float): Upper end.
        images (int): How many images it rests on.
    """

    value: float
    low: float
    high: float
    images: int


# For each method, the estimate of a column; methods without a score are left out.
Estimates = dict[str, Estimate]


def estimate(
    images: Sequence[dict[str, Scores]],
    column: Column,
    reference: str | None = None,
    resamples: int = RESAMPLES,
) -> Estimates:
    r"""
    A column for each method, or how each differs from one of them.

    In each resample the same images are drawn for all methods. A method that was not run on
    some images is compared with the reference on those on which both were.

    Args:
        images (Sequence[dict[str, Scores]]): For each image the scores of each method.
        column (Column): The statistic.
        reference (str, optional): The method whose value is subtracted. Default: None, no method.
        resamples (int): Number of resamples. Default: 10000

    Returns:
        dict[str, Estimate]: For each method that was scored; without the reference.
    """
    # Each tensor has a row for each image and a column for each method.
    names = list(dict.fromkeys(name for image in images for name in image))
    if not names or (reference is not None and reference not in names):
        return {}
    means = _table(images, names, column)
    counts = torch.stack(means[1::2])
    if reference is not None:
        base = [mean[:, names.index(reference), None] for mean in means]
        both = ((counts > 0) & (torch.stack(base[1::2]) > 0)).any(0)
        # Not of this comparison: images that only one of the two has.
        means = [mean * both for mean in (*means, *base)]
        counts = torch.stack(means[1 : 2 * len(column.scores) : 2])
    used = (counts > 0).any(0).sum(0)
    half = 2 * len(column.scores)

    def statistic(*parts: Tensor) -> Tensor:
        value = column.statistic(*parts[:half])
        return value - column.statistic(*parts[half:]) if reference is not None else value

    found = paired_bootstrap(statistic, *means, resamples=resamples)
    return {
        name: Estimate(
            float(found.estimate[index]),
            float(found.low[index]),
            float(found.high[index]),
            int(used[index]),
        )
        for index, name in enumerate(names)
        if used[index] and name != reference
    }


def _table(
    images: Sequence[dict[str, Scores]], names: Sequence[str], column: Column
) -> list[Tensor]:
    """Total and count of each score of the column in turn, (images, methods) each."""
    tables: list[Tensor] = []
    for score in column.scores:
        rows = [[image.get(name, {}).get(score, NOTHING) for name in names] for image in images]
        tables += torch.tensor(rows, dtype=torch.float64).unbind(-1)
    return tables


#: The style of a summary of all captions of each scene.
ALL_STYLES = "all"

# For each column of a table, by its title, the estimate of each row.
Table = dict[str, Estimates]


@dataclass(frozen=True)
class Summary:
    r"""
    The tables of one model on captions of one style, or of all styles together.

    Args:
        model (str): The model's name.
        style (str): The style of the captions, or :data:`ALL_STYLES`.
        images (int): How many there are.
        tables (dict[str, dict]): ``"localization"``, ``"tam"``, ``"faithfulness"``, ``"text"``,
            ``"targets"`` (a row for each scale), ``"agreement"`` (a row for each base), and
            ``"comparison"``, how each method differs from the reference.
        reference (str): The method that the others are compared with.
        answers (dict[str, float]): Scores of the model's own answers. Default: none
        skipped (tuple[str, ...]): Why samples were not scored. Default: none
    """

    model: str
    style: str
    images: int
    tables: dict[str, Table]
    reference: str
    answers: dict[str, float] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """What it is of, for headings."""
        style = "all styles" if self.style == ALL_STYLES else f"style {self.style}"
        if self.style not in (ALL_STYLES, *CAPTION_STYLES):
            style = f"data {self.style}"
        return f"{self.model}, {style}, {self.images} images"

    def to_dict(self) -> dict[str, Any]:
        """The same in values of JSON."""
        tables = {
            name: {
                title: {row: each._asdict() for row, each in column.items()}
                for title, column in table.items()
            }
            for name, table in self.tables.items()
        }
        return {**vars(self), "tables": tables}


def summarize(
    records: Sequence[Record], reference: str, resamples: int = RESAMPLES
) -> list[Summary]:
    r"""
    The tables of each model and style, and of each model on all styles if there are several.

    The captions of a scene in different styles are not independent samples, so that all of them
    together count as one image in the bootstrap.

    Args:
        records (Sequence[Record]): Those of a run.
        reference (str): The method that the others are compared with.
        resamples (int): Resamples of the bootstrap. Default: 10000

    Returns:
        list[Summary]: In the order in which models and styles first come.
    """
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in sorted(records, key=lambda record: record.number):
        if record.error:
            continue
        groups.setdefault(record.model, {}).setdefault(record.style, []).append(record)
    for styles in groups.values():
        if len(styles) > 1:
            styles[ALL_STYLES] = _by_scene([each for group in styles.values() for each in group])
    summaries = []
    skipped = tuple(record.error for record in records if record.error)
    for group in (group for styles in groups.values() for group in styles.values()):
        methods = [record.methods for record in group]
        tables = {
            "localization": _estimates(methods, LOCALIZATION, resamples),
            "tam": _estimates(methods, TAM, resamples),
            "faithfulness": _estimates(methods, FAITHFULNESS, resamples),
            "text": _estimates(methods, TEXT, resamples),
            "comparison": _estimates(methods, COMPARED, resamples, reference),
            "targets": _estimates([record.targets for record in group], TARGETS, resamples),
            "agreement": _estimates([record.agreement for record in group], AGREEMENT, resamples),
        }
        of_all = group[0].model, group[0].style, len(group)
        answers = _of_answers(group)
        summaries.append(Summary(*of_all, tables, reference, answers, skipped))
    return summaries


def _of_answers(records: Sequence[Record]) -> dict[str, float]:
    facts = [record.facts for record in records]
    rouge = [row["rouge_l"] for row in facts if "rouge_l" in row]
    mean = {"rouge_l": sum(rouge) / len(rouge)} if rouge else {}
    return yes_no_scores(facts) | _of_right_answers(records) | mean


def _of_right_answers(records: Sequence[Record]) -> dict[str, float]:
    """How well the model's certainty, the signals of a diagnosis and the strength of each method's
    map tell right answers from wrong ones."""
    scores: dict[str, list[tuple[float, bool]]] = {}
    for record in records:
        facts = record.facts
        if "probability" not in facts:
            continue
        is_right = facts["said"] == facts["label"]
        # The product over the tokens of the word, where the signal is that of one of them.
        known = {**facts.get("signals", {}), "probability": facts["probability"]}
        for name, value in known.items():
            scores.setdefault(name, []).append((value, is_right))
        for name, found in record.methods.items():
            if "strength" in found:
                scores.setdefault(name, []).append((found["strength"].total, is_right))
    areas = {name: auroc(*zip(*pairs)) for name, pairs in scores.items()}
    return {f"auroc of {name}": area for name, area in areas.items() if area is not None}


def _by_scene(records: Sequence[Record]) -> list[Record]:
    """One record for each scene, with the scores of all its captions."""
    scenes: dict[int, list[Record]] = {}
    for record in records:
        scenes.setdefault(record.number, []).append(record)
    return [
        Record(
            model=group[0].model,
            style=ALL_STYLES,
            number=number,
            methods=_sum_scores([record.methods for record in group]),
            targets=_sum_scores([record.targets for record in group]),
            agreement=_sum_scores([record.agreement for record in group]),
        )
        for number, group in sorted(scenes.items())
    ]


def _sum_scores(rows: Sequence[dict[str, Scores]]) -> dict[str, Scores]:
    found: dict[str, Scores] = {}
    for row in rows:
        for name, scores in row.items():
            sums = found.setdefault(name, {})
            for metric, score in scores.items():
                sums[metric] = sums.get(metric, NOTHING).plus(score)
    return found


def _estimates(
    images: list[dict[str, Scores]],
    columns: Sequence[Column],
    resamples: int,
    reference: str | None = None,
) -> Table:
    found = {column.title: estimate(images, column, reference, resamples) for column in columns}
    return {title: column for title, column in found.items() if column}
