"""The pages of results say what the data says: tables, figures and every number in a sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.result_figures import FIGURES, IMAGES, main
from tests.docs.result_sentences import SENTENCES
from tests.docs.result_tables import FILES, MARK, PAGES, TABLES, with_tables
from tests.docs.results import DOCS, FOLDER

#: Where numbers are looked for: in the whole page, or from one heading on.
CHECKED = {
    "results.md": "# Results",
    "cost.md": "## What it costs",
    "which_method.md": "## What the evidence is",
}
#: Conditions of a measurement, and what is no measurement.
GIVEN = {
    "results.md": {
        *("0", "0.5", "0.75", "1", "2", "5", "8", "15", "24", "30", "40", "60", "95", "100", "300"),
    },
    "cost.md": {
        *("0", "1", "2", "7", "16", "20", "32", "64", "86", "100", "224", "256", "300"),
        *("1,024", "4,096", "151,936", "2.13", "5.23", "8"),
    },
    "which_method.md": {"0", "60"},
}


def page(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def flat(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def prose(text: str) -> str:
    """What is left without code, tables, addresses and headings."""
    text = MARK.sub("", text)
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(\||#).*$", "", text, flags=re.MULTILINE)
    return re.sub(r"`[^`]*`|\]\([^)]*\)", "", text)


@pytest.mark.parametrize("name", PAGES)
def test_tables_are_those_of_the_data(name: str) -> None:
    assert page(name) == with_tables(page(name)), "run python -m tests.docs.result_tables"


def test_every_table_has_a_place() -> None:
    marked = [name for each in PAGES for name in MARK.findall(page(each))]
    assert sorted(marked) == sorted(TABLES)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [(name, make) for name, sentences in SENTENCES.items() for make in sentences],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_sentences_say_what_the_data_says(name: str, sentence: object) -> None:
    assert callable(sentence)
    assert flat(sentence()) in flat(page(name))


@pytest.mark.parametrize("name", CHECKED)
def test_every_number_in_a_sentence_is_of_the_data(name: str) -> None:
    text = page(name)
    text = flat(prose(text[text.index(CHECKED[name]) :]))
    for sentence in SENTENCES[name]:
        text = text.replace(flat(prose(sentence())), "")
    # Not those within names, such as Qwen2-VL or x86.
    numbers = set(re.findall(r"(?<![\w.-])\d+(?:,\d{3})*(?:\.\d+)?(?![\w-])", text))
    assert numbers <= GIVEN[name], numbers - GIVEN[name]


def test_every_file_of_the_data_is_listed() -> None:
    found = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.csv")}
    assert found == set(FILES)


def test_figures_are_drawn_from_the_data(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    main(tmp_path)
    for name in FIGURES:
        assert (tmp_path / name).stat().st_size > 10_000
        assert (IMAGES / name).is_file()
