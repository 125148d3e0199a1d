"""The README's short table of families says what the long one in the docs says."""

from __future__ import annotations

from pathlib import Path

from captum_mllm.models.families import FAMILIES
from tests.models.family_table import FRAMES, YES, stored_rows

README = Path(__file__).parents[2] / "README.md"


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def short_table() -> tuple[list[str], list[list[str]]]:
    lines = README.read_text(encoding="utf-8").splitlines()
    start = next(index for index, line in enumerate(lines) if line.startswith("| Families |"))
    end = next(index for index in range(start, len(lines)) if not lines[index])
    return cells(lines[start])[1:], [cells(line)[1:] for line in lines[start + 2 : end]]


def test_the_short_table_has_the_rows_of_the_long_one_once() -> None:
    text = (README.parent / "docs" / "families.md").read_text(encoding="utf-8")
    header = cells(next(line for line in text.splitlines() if line.startswith("| | lens")))[1:]
    names, short = short_table()
    long = [dict(zip(header, cells(row)[1:])) for row in stored_rows().values()]
    assert {tuple(row[name] for name in names) for row in long} == {tuple(row) for row in short}
    assert len(short) == len({tuple(row) for row in short})
    for name in set(header) - set(names):
        assert {row[name] for row in long} == ({YES, FRAMES} if name == "video" else {YES})


def test_the_number_of_families_is_that_of_the_table() -> None:
    types = {family.model_type for family in FAMILIES.values()}
    assert f"{len(types)} families" in README.read_text(encoding="utf-8")
