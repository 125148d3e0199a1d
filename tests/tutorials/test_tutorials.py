"""The stored notebooks are whole and portable; run from an empty kernel, they still work."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from nbformat import NotebookNode

from tests.demo.test_adapted_model import is_installed
from tests.docs.result_sentences import whole_models
from tests.tutorials.execute import FOLDER, NOTEBOOKS, execute, read

NAMES = [
    "01_first_look",
    "02_msea",
    "03_earlier_words",
    "04_with_captum",
    "05_trust",
    "06_hallucination",
    "07_your_own",
    "08_many_images",
    "09_families_and_check",
    "10_why_this_word",
    "11_real_photos",
    "12_pretrained_language_model",
]
# Explains a classifier.
NO_MLLM = ("11_real_photos",)
# Needs the language model of demo/smolvlm.
PRETRAINED = ("12_pretrained_language_model",)
REAL_MODELS = (
    "Qwen/Qwen2-VL-2B-Instruct",
    "llava-hf/llava-1.5-7b-hf",
    "OpenGVLab/InternVL3-1B-hf",
)
LARGEST = 600_000
#: Numbers that no cell prints: intervals of 95 %, and what follows from other numbers.
GIVEN = {
    "02_msea": {"95"},
    "03_earlier_words": {"95", "40"},  # range(100, 140)
    "04_with_captum": {"24"},  # orders of four
    "05_trust": {"95", "7.5"},  # squares of four scales, summed
    "07_your_own": {"150,000"},  # a usual vocabulary
    "12_pretrained_language_model": {"95"},
}
# Folders of people and of systems, and addresses of objects in memory.
MACHINE = re.compile(
    r"/(home|root|Users|tmp|usr|opt|var|private|work)/\w|[A-Z]:\\\\|0x[0-9a-f]{6,}"
)

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def output_kinds(notebook: NotebookNode) -> list[list[str]]:
    return [[output.output_type for output in cell.get("outputs", ())] for cell in notebook.cells]


def shown(cell: NotebookNode) -> list[str]:
    """What the reader of a cell's outputs gets to see, images left out."""
    texts = []
    for output in cell.outputs:
        texts.append(output.get("text", ""))
        data = output.get("data", {})
        texts += [value for kind, value in data.items() if kind.startswith("text/")]
    return texts


def test_all_tutorials_are_there() -> None:
    assert [path.stem for path in NOTEBOOKS] == NAMES


@each_notebook
def test_every_cell_was_run_in_order_and_none_failed(path: Path) -> None:
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert "error" not in kinds
    assert {output.name for cell in cells for output in cell.outputs if "name" in output} <= {
        "stdout"
    }


@each_notebook
def test_cells_that_show_something_have_it_stored(path: Path) -> None:
    calls = re.compile(
        r"^\s*(print|plt\.show|show|report|compare|evaluate\w*|table)\(|show=True", re.M
    )
    cells = code_cells(path)
    showing = [cell for cell in cells if calls.search(_at_top_level(cell.source))]
    assert len(showing) >= len(cells) / 2
    assert all(cell.outputs for cell in showing)


def _at_top_level(source: str) -> str:
    """The source without the bodies of functions and classes."""
    return re.sub(r"^(?:def|class) .*\n(?:(?:[ \t].*)?\n)*", "", source + "\n", flags=re.M)


@each_notebook
def test_nothing_of_the_machine_is_stored(path: Path) -> None:
    for cell in read(path).cells:
        assert not MACHINE.search(cell.source), cell.source
        assert not cell.metadata
        for text in shown(cell) if cell.cell_type == "code" else ():
            assert not MACHINE.search(text), MACHINE.search(text)


@each_notebook
def test_the_first_cell_says_what_to_install_and_what_to_change(path: Path) -> None:
    first, second, *_ = read(path).cells
    assert first.cell_type == "markdown"
    assert "pip install" in first.source
    assert second.cell_type == "code"
    if path.stem in NO_MLLM:
        assert re.search(r"^network = ", second.source, re.M)
        return
    for name in REAL_MODELS:
        assert name in first.source
    assert re.search(r'^MODEL, DTYPE, DEVICE = "demo/', second.source, re.M)


@each_notebook
def test_the_first_cell_says_what_a_real_model_takes(path: Path) -> None:
    assert whole_models() in " ".join(read(path).cells[0].source.split())


@each_notebook
def test_notebooks_are_small_and_their_links_hold(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            for target in re.findall(r"\]\((?!https?://)([^)#]+)", cell.source):
                assert (FOLDER / target).is_file(), target


def numbers_without_a_cell(notebook: NotebookNode, name: str) -> set[str]:
    """Numbers in the text that no cell has, in its code or in what it shows."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    known = "\n".join(
        [*(cell.source for cell in cells), *(text for c in cells for text in shown(c))]
    )
    told: set[str] = set()
    for cell in notebook.cells[1:]:
        if cell.cell_type == "markdown":
            # Without code, and without other tutorials by their numbers.
            text = re.sub(r"```.*?```|`[^`]*`|\[[^]]*\]\([^)]*\)", "", cell.source, flags=re.S)
            told |= set(re.findall(r"(?<![\w.,])\d+(?:[.,]\d+)?(?!\w)", text))
    return told - {*re.findall(r"\d+(?:\.\d+)?", known), *GIVEN.get(name, ())}


@each_notebook
def test_numbers_in_the_text_are_those_of_the_cells(path: Path) -> None:
    assert not numbers_without_a_cell(read(path), path.stem)


@pytest.mark.slow
@each_notebook
def test_notebook_says_the_same_from_an_empty_kernel(path: Path) -> None:
    if path.stem in PRETRAINED and not is_installed():
        pytest.skip("the language model of demo/smolvlm is not installed")
    found = execute(read(path))
    assert output_kinds(found) == output_kinds(read(path))
    assert not numbers_without_a_cell(found, path.stem)
