"""The page on the command line names the options that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from captum_mllm.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "command_line.md"


def test_the_options_of_explain_are_those_on_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["explain", "--help"])
    told = set(re.findall(r"(?<![\w-])--[a-z-]+", capsys.readouterr().out)) - {"--help"}
    written = set(re.findall(r"^\| `(--[a-z-]+)", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert written == told
