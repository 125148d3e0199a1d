"""Files of records that processes write side by side, and that survive whatever ends them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest

from captum_mllm.evaluation import ledger as ledger_module
from captum_mllm.evaluation.ledger import Ledger, Worker, run_blocks
from captum_mllm.evaluation.records import Record, Score
from captum_mllm.explain.result_file import write_file


def record(number: int, error: str = "") -> Record:
    scores = {"lens": {"mass": Score(number / 3, 1.0)}}
    return Record("m", "s", number, {} if error else scores, {}, {}, error=error)


def ledger(folder: Path, rank: int = 0, world: int = 1) -> Ledger[Record]:
    return Ledger(folder, Record.from_json, Worker(rank, world))


def key(number: int) -> tuple[str, str, int]:
    return "m", "s", number


def test_records_of_several_processes_become_one_file(tmp_path: Path) -> None:
    blocks = [[0, 1], [2, 3], [4, 5], [6]]
    scored: list[int] = []

    def score(block: Sequence[int]) -> list[Record]:
        scored.extend(block)
        return [record(number) for number in block]

    wanted = [key(number) for number in range(7)]
    second, first = ledger(tmp_path, 1, 2), ledger(tmp_path, 0, 2)
    run_blocks(second, blocks, key, score)
    assert second.merge(wanted) is None
    assert scored == [2, 3, 6]
    run_blocks(first, blocks, key, score)
    assert first.merge(wanted) == [record(number) for number in range(7)]
    assert sorted(scored) == list(range(7))
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]
    # Two that end at once both find that nothing is missing.
    before = first.path.read_bytes()
    assert second.merge(wanted) == first.merge(wanted)
    assert first.path.read_bytes() == before


def test_whatever_ends_processes_nothing_is_lost_and_nothing_twice(tmp_path: Path) -> None:
    chance = random.Random(0)
    numbers = list(range(57))
    blocks = [numbers[start : start + 4] for start in range(0, 57, 4)]
    wanted = [key(number) for number in numbers]
    scored: list[int] = []

    def score(block: Sequence[int]) -> list[Record]:
        scored.extend(block)
        return [record(number) for number in block]

    for world in (2, 3, 1, 2, 3, 2, 1):
        whole = world == 1 and len(scored) > 57
        for rank in range(world):
            own = ledger(tmp_path, rank, world)
            kept = chance.randrange(4)

            def some(function, items, kept=kept):  # type: ignore[no-untyped-def]
                return islice(map(function, items), kept)

            run_blocks(own, blocks, key, score, apply=map if whole else some)
            # The line that was being written when the process was killed.
            if not whole and own.own.exists() and chance.random() < 0.7:
                with own.own.open("a") as file:
                    file.write(record(99).to_json()[: chance.randrange(1, 40)])
    for rank in range(3):
        run_blocks(ledger(tmp_path, rank, 3), blocks, key, score)
    assert ledger(tmp_path).merge(wanted) == [record(number) for number in numbers]
    # A block that was cut in two is scored again, and its rest is written.
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    assert lines == [record(number).to_json() for number in numbers]


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    own = ledger(tmp_path)
    own.write([record(0), record(1)])
    own.path.write_text(own.path.read_text()[:-20])
    assert list(own.records()) == [record(0)]
    own.repair()
    assert own.path.read_text() == record(0).to_json() + "\n"
    own.path.write_text("no end" * 30000)
    own.repair()
    assert own.path.read_text() == ""
    ledger(tmp_path / "none").repair()
    assert list(ledger(tmp_path / "none").records()) == []


def test_another_line_is_refused_by_its_number(tmp_path: Path) -> None:
    own = ledger(tmp_path)
    own.path.write_text(record(0).to_json() + "\n{}\n")
    with pytest.raises(ValueError, match="line 2"):
        list(own.records())


def test_errors_are_tried_again_and_give_way_to_results(tmp_path: Path) -> None:
    own = ledger(tmp_path)
    run_blocks(own, [[0, 1]], key, lambda block: [record(0), record(1, "broken")])
    assert own.done() == {key(0)}
    merged = own.merge([key(0), key(1)])
    assert merged is not None and merged[1].error == "broken"
    run_blocks(own, [[0, 1]], key, lambda block: [record(0), record(1)])
    assert own.merge([key(0), key(1)]) == [record(0), record(1)]
    assert len(own.path.read_text().splitlines()) == 2


def test_a_process_is_told_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Worker.of_environment() == Worker(0, 1, 0)
    monkeypatch.setenv("RANK", "5")
    with pytest.raises(ValueError, match="RANK=5 and WORLD_SIZE=1"):
        Worker.of_environment()
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Worker.of_environment() == Worker(5, 8, 1)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "2")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert Worker.of_environment() == Worker(2, 4, 0)


def test_errors_of_an_earlier_run_wait_for_the_process_that_tries_them_again(
    tmp_path: Path,
) -> None:
    wanted, blocks = [key(0), key(1)], [[0], [1]]
    ledger(tmp_path).write([record(0, "broken"), record(1, "broken")])
    first, second = ledger(tmp_path, 0, 2), ledger(tmp_path, 1, 2)
    run_blocks(first, blocks, key, lambda block: [record(*block)])
    # The second process has not yet tried its row again.
    assert first.merge(wanted) is None
    run_blocks(second, blocks, key, lambda block: [record(*block, "still broken")])
    merged = second.merge(wanted)
    assert merged is not None
    assert [each.error for each in merged] == ["", "still broken"]
    # Its own errors are taken away before it tries again.
    again = ledger(tmp_path, 1, 2)
    again.write([record(1, "of a run that was killed")])
    again.repair()
    assert again.own.read_text() == ""


def test_what_is_written_while_files_are_put_together_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = ledger(tmp_path, 0, 2), ledger(tmp_path, 1, 2)
    first.write([record(0)])
    second.write([record(1)])

    def write(path: Path, data: bytes) -> None:
        write_file(path, data)
        second.write([record(2)])

    monkeypatch.setattr(ledger_module, "write_file", write)
    assert first.merge([key(0), key(1)]) == [record(0), record(1)]
    monkeypatch.undo()
    assert first.merge([key(0), key(1), key(2)]) == [record(0), record(1), record(2)]
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]
