"""The command, from its arguments to its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from captum_mllm.cli import main


def test_the_command_leaves_tables_scores_and_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["benchmark", "--methods", "lens", "arc", "uniform", "--scenes", "2"]
    arguments += ["--metrics", "localization", "consistency", "--reference", "lens"]
    arguments += ["--split", "development", "--output", str(tmp_path), "--quiet"]
    assert main(arguments) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "settings.json",
        "records.jsonl",
        "results.json",
        "report.md",
        "figures",
    }
    report = (tmp_path / "report.md").read_text()
    assert "## demo/qwen2-vl, style caption, 2 images" in report
    assert "### Difference from lens" in report
    (results,) = json.loads((tmp_path / "results.json").read_text())
    assert results["tables"]["localization"]["pointing"]["uniform"]["value"] == 0
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures == {"qwen2-vl-caption-bars.png"} | {
        f"qwen2-vl-caption-maps-{number}.png" for number in range(2)
    }
    assert str(tmp_path / "report.md") in capsys.readouterr().out

    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert main([*arguments, "--resume"]) == 0
    assert all(path.read_bytes() == before for path, before in files.items())


@pytest.mark.parametrize(
    "wrong", [["--styles", "poem"], ["--split", "training"], ["--reference", "magic"]]
)
def test_wrong_options_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["benchmark", *wrong])
