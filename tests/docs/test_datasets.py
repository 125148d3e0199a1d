"""Each format of data has a page, whose example prints what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from captum_mllm.datasets import FORMATS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in DOCS.glob("datasets/*.md")}


def test_each_format_has_a_page_in_the_index() -> None:
    assert PAGES.keys() == FORMATS.keys()
    index = (DOCS / "datasets.md").read_text(encoding="utf-8")
    for name in FORMATS:
        assert f"(datasets/{name}.md)" in index and f"\ndatasets/{name}\n" in index


@pytest.mark.parametrize("name", FORMATS)
def test_the_example_prints_what_the_page_says(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = PAGES[name]
    assert f"`--format {name}`" in page and "captum-mllm evaluate" in page
    (example,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (shown,) = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, name, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out == shown
    # Good rows and bad ones.
    assert name in shown.splitlines()[0] or name in ("jsonl", "folder")
    assert len(re.findall(r"^[\w/.-]+, (?:line|entry|image|\S+\.jpg)", shown, re.M)) >= 1
