"""``render_index``: one page to browse many explanations, with thumbnails and search."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from captum_mllm.visualization.document import fill_document, shown_text


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
    others = "".join(
        f'<a href="{escape(name)}"{" aria-current=page" if number == place else ""}>'
        f"{number + 1}</a>"
        for number, name in enumerate(names)
    )
    return fill_document(
        "index",
        ("index.js",),
        title,
        count=len(entries),
        skipped=f", {skipped} could not be explained" if skipped else "",
        where=" of this page" if len(names) > 1 else "",
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
