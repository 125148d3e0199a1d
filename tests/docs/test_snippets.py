"""Every Python block of the README and the documentation runs, from top to bottom, page by page."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from captum_mllm.models import families
from tests.models.tiny_models import save

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Written from a run of other tests, with fragments that they run.
GENERATED = ("attributors.md",)
PAGES = {
    page.relative_to(ROOT).as_posix(): blocks
    for page in sorted([ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("api/*.md")])
    if page.name not in GENERATED and (blocks := BLOCK.findall(page.read_text(encoding="utf-8")))
}
# What a block may import that the tests do not install.
OPTIONAL = ("torchao",)


def lacks_a_package(block: str) -> bool:
    return any(
        re.search(rf"^(?:from|import) {name}\b", block, re.MULTILINE)
        and importlib.util.find_spec(name) is None
        for name in OPTIONAL
    )


def test_pages_have_snippets() -> None:
    assert {"README.md", "docs/index.md", "docs/questions.md", "docs/families.md"} <= set(PAGES)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save("llava", tmp_path / "my-finetuned-llava")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(families, "FAMILIES", dict(families.FAMILIES))
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in PAGES[page]:
        if not lacks_a_package(block):
            exec(compile(block, page, "exec"), namespace)
    plt.close("all")
