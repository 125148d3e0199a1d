"""Settings of the documentation."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from sphinx.util.nodes import make_refnode

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import captum_mllm  # noqa: E402

project = "captum_mllm"
author = "the captum_mllm authors"
copyright = author
version = release = captum_mllm.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "myst_nb",
    "mathml",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints", "results/README.md"]

# Signatures show names and defaults; the docstrings say what they are.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

# The tutorials are shown as they were run.
nb_execution_mode = "off"
# Tables of Markdown that a cell shows.
nb_render_markdown_format = "myst"
nb_merge_streams = True

# References into this package have to hold; those to other packages are not looked up.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!captum_mllm).*")]

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"captum_mllm {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#5b3fa8", "color-brand-content": "#5b3fa8"},
    "dark_css_variables": {"color-brand-primary": "#b9a5f5", "color-brand-content": "#b9a5f5"},
}
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def copy_tutorials() -> None:
    """Put the notebooks where Sphinx looks for pages, and take away those that are gone."""
    folder = HERE / "tutorials"
    for notebook in folder.glob("*.ipynb"):
        notebook.unlink()
    for notebook in sorted((HERE.parent / "tutorials").glob("*.ipynb")):
        # In the repository notebooks lie beside the folder of these pages, here within it.
        text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
        (folder / notebook.name).write_text(text, encoding="utf-8")


def name_examples(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Captum writes ``Examples::``; napoleon knows a section by a single colon."""
    lines[:] = [re.sub(r"^(\s*)Examples::$", r"\1Examples:", line) for line in lines]


def find_short_name(app: Any, env: Any, node: Any, shown: Any) -> Any:
    """Docstrings may name a thing by its last name, or by the package that exports it."""
    if node.get("refdomain") != "py":
        return None
    python, target = env.domains["py"], node["reftarget"]
    package, _, last = target.rpartition(".")
    kinds = python.objtypes_for_role(node["reftype"]) or ()
    places = {
        (entry.docname, entry.node_id)
        for name, entry in python.objects.items()
        if entry.objtype in kinds
        and not entry.aliased
        and (
            name.endswith(f".{target}")
            or (name.startswith(f"{package}.") and name.endswith(f".{last}"))
        )
    }
    if len(places) != 1:
        return None
    ((page, anchor),) = places
    return make_refnode(app.builder, node["refdoc"], page, anchor, shown, target)


def setup(app: Any) -> None:
    copy_tutorials()
    app.connect("autodoc-process-docstring", name_examples, priority=400)
    app.connect("missing-reference", find_short_name)
