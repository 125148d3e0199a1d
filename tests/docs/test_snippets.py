"""Every Python block of the README and the documentation runs, from top to bottom, page by page,
and every command is one that there is."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from captum_mllm import cli
from captum_mllm.demo.language_model import find_language_model
from captum_mllm.models import families
from tests.models.tiny_models import save

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Written from a run of other tests, with fragments that they run.
GENERATED = ("attributors.md",)
FILES = sorted(
    [
        *(ROOT / "README.md", *DOCS.glob("*.md"), *DOCS.glob("api/*.md")),
        *(ROOT / "captum_mllm" / "demo").glob("*/README.md"),
    ]
)
PAGES = {
    page.relative_to(ROOT).as_posix(): blocks
    for page in FILES
    if page.name not in GENERATED and (blocks := BLOCK.findall(page.read_text(encoding="utf-8")))
}
# What is no code of Python, and what the tests below do with it.
SHELL = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
DATA = re.compile(r"^```json\n(.*?)^```", re.MULTILINE | re.DOTALL)
LAUNCHERS = ("torchrun", "accelerate", "srun")
OTHERS = ("sh", "json", "bibtex", "text", "{contents}", "{eval-rst}", "{image}", "{toctree}")
# What a block may import that the tests do not install.
OPTIONAL = ("torchao",)


def lacks_a_package(block: str) -> bool:
    if '"demo/smolvlm"' in block:
        try:
            find_language_model()
        except (ImportError, FileNotFoundError):
            return True
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


def texts() -> Iterator[tuple[str, str]]:
    for page in FILES:
        yield page.relative_to(ROOT).as_posix(), page.read_text(encoding="utf-8")


def commands() -> list[tuple[str, str]]:
    """Each command of a block for the shell, with its page."""
    found = []
    for page, text in texts():
        for block in SHELL.findall(text):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page, part.strip()) for line in lines for part in line.split("&&")]
    return [(page, command) for page, command in found if command]


def test_no_block_of_python_is_left_out() -> None:
    for page, text in texts():
        fences = re.findall(r"^([ >]*)```(\S+)", text, re.MULTILINE)
        for indent, language in fences:
            assert language in OTHERS or (language == "python" and not indent), (page, language)
        if page not in PAGES and not page.endswith(GENERATED):
            assert "```python" not in text


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_are_understood(page: str, command: str) -> None:
    program, *arguments = shlex.split(command, comments=True) or ["#"]
    if program in LAUNCHERS:
        program, arguments = "captum-mllm", arguments[arguments.index("captum_mllm") + 1 :]
    if program == "captum-mllm":
        assert cli._parser().parse_args(arguments).run
    elif program == "python":
        assert arguments[0] == "-m" and importlib.util.find_spec(arguments[1]) is not None
    else:
        assert program in ("#", "pip", "pre-commit", "ruff", "mypy"), command


def test_data_is_json() -> None:
    for _, text in texts():
        for block in DATA.findall(text):
            try:
                json.loads(block)
            except ValueError:
                for line in block.splitlines():
                    json.loads(line)
