"""Phrases that do not read as plain English, in the package, the README and the documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import captum_mllm

PACKAGE = Path(captum_mllm.__file__).parent
ROOT = PACKAGE.parent
#: What to write instead.
PHRASES = {
    r"\bbut for\b": "except for; up to a factor of",
    r"\bthat (is|are|was|were) none\b": "that is not ...",
    r"\bto be had\b": "can be read, is available",
    r"\bto be seen\b": "is shown",
    r"\bturned away\b": "refused",
    r"\bwho asks\b": "name who does",
    r"\bnobody's\b": "say what is left out",
    r"\bif there is none\b": "without ...; if it is missing",
    r"\bnothing but\b": "only",
    r"\bwhat lies\b": "name the thing",
    r"\bstands? (at|behind|before|beside|for itself|still|in the place)\b": "is, comes, replaces",
    r"\bin the place of (each|the|an?|removed|one)\b": "instead of; for",
    r"\b(stays?|leaves it|leave it|left|taken|takes it|passed on) as it is\b": "unchanged",
}
#: Sentences that show what not to write.
EXAMPLES = re.compile(r"<!-- before and after -->.*<!-- end of before and after -->", re.DOTALL)
FILES = [
    *sorted(PACKAGE.rglob("*.py")),
    *sorted(PACKAGE.rglob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
]


def _flat(text: str) -> str:
    """A text without the breaks of its lines, in strings and comments too, and without examples."""
    return re.sub(r'\s*"?\s*\n\s*(#:?\s?|f?")?', " ", EXAMPLES.sub("", text))


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_that_is_not_plain_english_is_not_used(phrase: str) -> None:
    pattern = re.compile(phrase, re.IGNORECASE)
    found = [
        f"{path.relative_to(ROOT)}: ...{text[max(match.start() - 40, 0) : match.end() + 20]}"
        for path in FILES
        if path.is_file()
        for text in [_flat(path.read_text(encoding="utf-8"))]
        for match in pattern.finditer(text)
    ]
    assert not found, f"rather: {PHRASES[phrase]}\n" + "\n".join(found)


def test_phrases_are_found_over_the_end_of_a_line() -> None:
    assert "all but for one" in _flat('"all but "\n    "for one"')
    assert "all but for one" in _flat("# all but\n    # for one")
