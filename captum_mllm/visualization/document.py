"""``fill_document``, an HTML document that loads nothing, and ``shown_text``, text in it."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any

_UNSEEN = re.compile("[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def fill_document(
    name: str, scripts: Sequence[str], title: str, styles: Sequence[str] = (), **parts: Any
) -> str:
    r"""
    Fill a template of this package.

    The document's content security policy lets nothing run but its own script.

    Args:
        name (str): The template and its style.
        scripts (Sequence[str]): Files that make its script.
        title (str): The title, as text.
        styles (Sequence[str]): Files of more styles. Default: ()
        **parts (Any): HTML for the other places of the template.

    Returns:
        str: An HTML document.
    """
    style = "".join(map(_asset, ("document.css", f"{name}.css", *styles)))
    script = "\n".join(map(_asset, scripts))
    shown = shown_text(title)
    return Template(_asset("document.html")).substitute(
        title=shown,
        policy=(
            f"default-src 'none'; img-src data:; style-src '{_source_hash(style)}'; "
            f"script-src '{_source_hash(script)}'; base-uri 'none'; form-action 'none'"
        ),
        style=style,
        script=script,
        body=Template(_asset(f"{name}.html")).substitute(title=shown, **parts),
    )


def shown_text(text: str) -> str:
    r"""Text as HTML shows it, whatever it holds; what cannot be seen is shown as a sign."""
    return escape(_UNSEEN.sub("\ufffd", text))


def _source_hash(source: str) -> str:
    """The name by which a content security policy allows an inline style or script."""
    digest = hashlib.sha256(source.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"


def _asset(name: str) -> str:
    return resources.files("captum_mllm.visualization").joinpath(name).read_text(encoding="utf-8")
