r"""Questions without masks, about what is there: POPE and AMBER."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captum_mllm.datasets.entries import Entry
from captum_mllm.datasets.json_lines import yes_or_no
from captum_mllm.datasets.rows import RawRow, json_rows, read_json
from captum_mllm.datasets.samples import Sample

_AMBER_QUERIES = "data/query/query_generative.json"


def pope_sample(entry: Entry) -> Sample:
    r"""
    A sample of POPE or RePOPE: ``{question_id, image, text, label: "yes" or "no"}``.

    Raises:
        SampleError: If something is missing or wrong.
    """
    label = yes_or_no(entry, "label")
    return entry.sample(
        entry.id("question_id"),
        entry.image(entry.text("image")),
        entry.text("text"),
        answer=label,
        references=(label,),
        label=label,
    )


def amber_file(path: Path) -> Path | None:
    r"""The file of queries in AMBER's folder, or the given one of them."""
    if path.is_file():
        return path if path.name.startswith("query_") and path.suffix == ".json" else None
    return path / _AMBER_QUERIES if (path / _AMBER_QUERIES).is_file() else None


def amber_rows(path: Path) -> Iterator[RawRow]:
    r"""
    The queries of AMBER, each with what ``annotations.json`` says of it.

    Raises:
        ValueError: If there are no such files, or the annotations are damaged.
    """
    file = amber_file(path)
    if file is None:
        raise ValueError(f"there is no file {_AMBER_QUERIES} in {path}")
    annotations = read_json(file.parent.parent / "annotations.json")
    try:
        truth: dict[Any, Any] = {row["id"]: row for row in annotations}
    except (KeyError, TypeError) as error:
        raise ValueError(f"the annotations of {file} are damaged: {error!r}") from error
    for raw in json_rows(file):
        if isinstance(raw.value, dict):
            id = raw.value.get("id")
            known = truth.get(id) if isinstance(id, (int, str)) else None
            yield RawRow(raw.source, {**raw.value, "annotation": known})
        else:
            yield raw


def amber_sample(entry: Entry) -> Sample:
    r"""
    A sample of AMBER: ``{id, image, query}``; of a yes/no query, the annotation is the answer.

    Raises:
        SampleError: If something is missing or wrong.
    """
    known = Entry(
        entry.number, entry.source, entry.get("annotation", dict), entry.data, entry.images
    )
    base = entry.data.parent.parent if entry.data.name == "query" else entry.data
    image = entry.image(entry.text("image"), entry.images, base / "image", base.parent / "image")
    is_question = known.has("truth") and isinstance(known.value["truth"], str)
    label = yes_or_no(known, "truth") if is_question else None
    facts = {key: known.value[key] for key in ("type", "truth", "hallu") if known.has(key)}
    return entry.sample(
        entry.id("id"),
        image,
        entry.text("query"),
        answer=label,
        references=() if label is None else (label,),
        label=label,
        facts=facts,
    )
