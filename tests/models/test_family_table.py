"""The table of what each family allows says what the code does."""

from __future__ import annotations

import pytest

from tests.models.family_table import BUILDERS, COLUMNS, abilities, row, stored_rows
from tests.models.tiny_families import NEEDS

QUICK = ("llava", "qwen3_5", "mllama")


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in QUICK else pytest.mark.slow)
        for family in BUILDERS
    ],
)
def test_the_stored_row_is_what_the_family_allows(family: str) -> None:
    if family in NEEDS:
        pytest.importorskip(NEEDS[family])
    assert stored_rows()[family] == row(family, abilities(family))


def test_every_family_has_a_row() -> None:
    assert set(stored_rows()) == set(BUILDERS)
    assert all(line.count("|") == len(COLUMNS) + 2 for line in stored_rows().values())
