"""Folders that are claimed by the first of several processes, and settings that are refused."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from captum_mllm.evaluation import DataSettings, settings
from captum_mllm.evaluation.settings import claim
from captum_mllm.explain.result_file import write_file


def test_other_processes_wait_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(tmp_path, {"a": 1}, resume=False)
    done = threading.Event()

    def wait() -> None:
        claim(tmp_path, {"a": 2}, resume=False, rank=1)
        done.set()

    waiting = threading.Thread(target=wait)
    waiting.start()
    # What an earlier run has left is not taken for the present one.
    assert not done.wait(0.5)
    write_file(tmp_path / "settings.json", json.dumps({"a": 2}).encode())
    assert done.wait(5)
    waiting.join()
    monkeypatch.setattr(settings, "_WAIT_SECONDS", 0)
    with pytest.raises(ValueError, match="no process has claimed"):
        claim(tmp_path, {"a": 3}, resume=False, rank=1)


def test_the_first_process_goes_on_with_the_same_settings_alone(tmp_path: Path) -> None:
    claim(tmp_path, {"a": (1, 2)}, resume=False)
    with pytest.raises(ValueError, match="add --resume"):
        claim(tmp_path, {"a": (1, 2)}, resume=False)
    claim(tmp_path, {"a": (1, 2)}, resume=True)
    with pytest.raises(ValueError, match="a run with other a;"):
        claim(tmp_path, {"a": (1, 3)}, resume=True)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"format": "poem"}, "format 'poem', expected one of jsonl"),
        ({"metrics": ("causal",)}, "metric 'causal', expected one of localization"),
        ({"answers": "mine"}, "answers 'mine', expected one of auto"),
        ({"baseline": "counterfactual"}, "is of scenes"),
        ({"threads": 0}, "threads=0, expected at least 1"),
        ({"methods": ("magic",)}, "no method is called 'magic'"),
    ],
)
def test_wrong_settings_of_data_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataSettings(**{"data": "x", "format": "jsonl", "model": "m", **wrong})
