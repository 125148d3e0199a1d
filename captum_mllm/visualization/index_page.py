"""``render_index``: one page to browse many explanations, with thumbnails and search."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import NamedTuple

from captum_mllm.visualization.page import shown_text, source_hash


class Entry(NamedTuple):
    r"""
    A row of an index.

    Args:
        page (str): The page's address, relative to the index.
        thumbnail (Path): A small JPEG.
        title (str): What it is called.
        question (str): The question.
        answer (str): The answer.
    """

    page: str
    thumbnail: Path
    title: str
    question: str
    answer: str


def render_index(
    entries: Sequence[Entry], title: str, names: Sequence[str], place: int, skipped: int = 0
) -> str:
    r"""
    Render an index as one HTML document that loads nothing.

    Its content security policy lets nothing run but its own script. All texts are shown as text,
    whatever they hold.

    Args:
        entries (Sequence[Entry]): The rows.
        title (str): The title.
        names (Sequence[str]): The files of all pages of the index.
        place (int): Which of them this is.
        skipped (int): How many samples have no page. Default: 0

    Returns:
        str: An HTML document.
    """
    style, script = _asset("index.css"), _asset("index.js")
    others = "".join(
        f'<a href="{escape(name)}"{" aria-current=page" if number == place else ""}>'
        f"{number + 1}</a>"
        for number, name in enumerate(names)
    )
    return Template(_asset("index.html")).substitute(
        title=shown_text(title),
        policy=(
            f"default-src 'none'; img-src data:; style-src '{source_hash(style)}'; "
            f"script-src '{source_hash(script)}'; base-uri 'none'; form-action 'none'"
        ),
        style=style,
        script=script,
        count=len(entries),
        skipped=f", {skipped} could not be explained" if skipped else "",
        others=f'<nav aria-label="Pages of the index">{others}</nav>' if len(names) > 1 else "",
        entries="\n".join(map(_row, entries)),
    )


def _row(entry: Entry) -> str:
    thumbnail = base64.b64encode(entry.thumbnail.read_bytes()).decode("ascii")
    return (
        f'<li><a href="{escape(entry.page)}">'
        f'<img src="data:image/jpeg;base64,{thumbnail}" alt="" loading="lazy" decoding="async">'
        f"<span><b>{shown_text(entry.title)}</b>"
        f"<q>{shown_text(entry.question)}</q>"
        f"<span>{shown_text(entry.answer)}</span></span></a></li>"
    )


def _asset(name: str) -> str:
    return resources.files("captum_mllm.visualization").joinpath(name).read_text(encoding="utf-8")
