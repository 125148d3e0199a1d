"""Formulas as MathML, which browsers draw by themselves: no script, and nothing to load."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

LOGGER = logging.getLogger(__name__)

# What docutils does not know, and how it is written for it. Brackets grow by themselves.
REWRITTEN = {r"\\(?:big|Big|bigg|Bigg)[lrm]?(?![a-zA-Z])": "", r"\\dots(?![a-zA-Z])": r"\\ldots"}


def to_mathml(formula: str, node: nodes.Node, as_block: bool) -> str:
    for pattern, replacement in REWRITTEN.items():
        formula = re.sub(pattern, replacement, formula)
    try:
        return tex2mathml(formula, as_block=as_block)
    except MathError as error:
        LOGGER.warning("formula %r: %s", formula, error, location=node)
        return f"<code>{escape(formula)}</code>"


def visit_math(self: Any, node: nodes.math) -> None:
    self.body.append(to_mathml(node.astext(), node, as_block=False))
    raise nodes.SkipNode


def visit_displaymath(self: Any, node: nodes.math_block) -> None:
    formula = to_mathml(node.astext(), node, as_block=True)
    self.body.append(f'<div class="formula" tabindex="0">{formula}</div>')
    raise nodes.SkipNode


def setup(app: Any) -> dict[str, Any]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_displaymath, None))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
