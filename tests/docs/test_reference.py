"""Every public name has its place in the reference, and every name there is public."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[2] / "docs" / "api"
DIRECTIVE = re.compile(r"^\.\. auto(?:class|function|data):: (\S+)", re.MULTILINE)
PACKAGES = (
    "captum_mllm",
    "captum_mllm.attr",
    "captum_mllm.evaluation",
    "captum_mllm.datasets",
    "captum_mllm.demo",
    "captum_mllm.metrics",
    "captum_mllm.models",
    "captum_mllm.visualization",
)


def documented() -> list[str]:
    pages = sorted(REFERENCE.glob("*.md"))
    return [name for page in pages for name in DIRECTIVE.findall(page.read_text(encoding="utf-8"))]


def find(path: str) -> object:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    names = {path.rpartition(".")[2]: find(path) for path in documented()}
    missing = [name for name in module.__all__ if name not in names]
    others = [
        name for name in module.__all__ if name in names and names[name] != getattr(module, name)
    ]
    assert not missing and not others


def test_every_documented_name_exists_once() -> None:
    paths = documented()
    for path in paths:
        assert find(path) is not None
    assert len(paths) == len(set(paths))


def test_every_page_of_the_reference_is_in_its_index() -> None:
    index = (REFERENCE / "index.md").read_text(encoding="utf-8").splitlines()
    pages = {page.stem for page in REFERENCE.glob("*.md")} - {"index"}
    assert pages == {line for line in index if line in pages}
