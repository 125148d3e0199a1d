"""Runs on data sets: by any number of processes, killed and resumed, bit for bit the same."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from captum_mllm import MLLM, ImageTextInput, LogitLens, MLLMAttribution
from captum_mllm.cli import main
from captum_mllm.datasets import SampleError, open_samples
from captum_mllm.demo import demo_folder
from captum_mllm.evaluation import METHODS, DataSettings
from captum_mllm.evaluation.data_example import DataExample, ask
from captum_mllm.evaluation.data_run import run_data
from captum_mllm.evaluation.examples import sample_examples
from captum_mllm.evaluation.ledger import Worker
from captum_mllm.evaluation.method import Case
from captum_mllm.evaluation.records import Record
from captum_mllm.evaluation.scores import localization_scores
from captum_mllm.evaluation.tam_protocol import read_tags
from captum_mllm.explain.signals import SIGNALS
from captum_mllm.models.backbone import Backbone
from tests.datasets.written import write_json, write_lines
from tests.evaluation.exported import export_coco, export_lines


def settings_of(path: Path, format: str = "jsonl", **options: Any) -> DataSettings:
    parts: dict[str, Any] = {"methods": ("lens",), "metrics": ("localization",)}
    return DataSettings(data=str(path), format=format, model="demo/qwen2-vl", **(parts | options))


def test_exported_scenes_have_the_scores_of_scenes(mllm: MLLM, tmp_path: Path) -> None:
    path = export_lines(tmp_path / "data", 3)
    names = ("lens", "true-mask")
    settings = settings_of(path, methods=names)
    found = run_data(settings, open_samples(path), mllm, tmp_path / "out")
    assert found is not None and [record.number for record in found] == [0, 1, 2]
    for record, example in zip(found, sample_examples(range(3), "test", objects=2)):
        case = Case(mllm, example)
        for name in names:
            method = METHODS[name]
            maps = method.explain(case).float().clamp_min(0)
            for metric, score in localization_scores(case, method, maps).items():
                # The background has no mask, so a data set does not count it as a noun.
                if metric not in ("functions", "f1_per_image"):
                    assert record.methods[name][metric] == pytest.approx(score), metric
        assert record.methods["lens"]["pointing"].words > 0


def scores_of(found: list[Record] | None) -> dict[str, float]:
    assert found is not None
    return {
        f"{record.number} {method} {metric}": score.total
        for record in found
        for method, scores in record.methods.items()
        for metric, score in scores.items()
    }


def test_samples_that_share_passes_have_the_scores_that_they_have_alone(
    mllm: MLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export_lines(tmp_path / "data", 3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    # Of another size, and with an answer of the model's own.
    Image.open(tmp_path / "data" / "2.png").resize((168, 112)).save(tmp_path / "data" / "2.png")
    rows[2] = {"image": "2.png", "prompt": rows[0]["prompt"]}
    rows.insert(1, {"image": "absent.png", "answer": "a star"})
    path = write_lines(path, rows)
    options: dict[str, Any] = {
        "methods": ("lens", "arc-msea", "lens-x-attention", "random"),
        "max_new_tokens": 4,
    }
    samples = open_samples(path, on_error="skip")
    alone = run_data(settings_of(path, **options), samples, mllm, tmp_path / "alone")
    shapes = []
    states = Backbone.hidden_states

    def counted(self: Backbone, inputs: dict[str, Any], *args: Any) -> Any:
        shapes.append(len(inputs["input_ids"]))
        return states(self, inputs, *args)

    monkeypatch.setattr(Backbone, "hidden_states", counted)
    settings = settings_of(path, batch_size=4, **options)
    together = run_data(settings, samples, mllm, tmp_path / "together")
    assert scores_of(together) == pytest.approx(scores_of(alone), abs=1e-5)
    assert together is not None and [bool(each.error) for each in together] == [0, 1, 0, 0]
    # The three that can be read, at each scale; those of an own answer are known from saying it.
    assert shapes == [2, 3, 3, 3]


def test_the_message_of_the_system_comes_first(tmp_path: Path) -> None:
    (sample,) = open_samples(export_lines(tmp_path, 1))
    (question,) = ask(sample).messages
    assert [part["type"] for part in question["content"]] == ["image", "text"]
    first, second = ask(sample, "Answer in one word.").messages
    assert (first["role"], first["content"][0]["text"]) == ("system", "Answer in one word.")
    assert second == question


def test_rows_are_asked_in_a_chat(mllm: MLLM, tmp_path: Path) -> None:
    path = export_lines(tmp_path, 3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    answer = [{"type": "text", "text": rows[2]["answer"]}]
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image", "path": "2.png"}]},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "{question}"}]},
    ]
    chat = write_json(tmp_path / "chat.json", turns)
    several = {**rows[0], "images": ["2.png", "0.png"]}
    data = write_lines(tmp_path / "data.jsonl", [rows[0], {**several, "explained": 1}, several])
    arguments = ["evaluate", str(data), "--methods", "lens", "--metrics", "localization"]
    arguments += ["--device", "cpu", "--quiet", "--on-error", "skip"]
    assert main([*arguments, "--messages", str(chat), "--output", str(tmp_path / "chat")]) == 0
    assert main([*arguments, "--output", str(tmp_path / "plain")]) == 0
    in_chat, plain = (
        [json.loads(line) for line in (tmp_path / name / "records.jsonl").open()]
        for name in ("chat", "plain")
    )
    assert "leave out --messages" in in_chat[1]["error"] and not in_chat[0]["error"]
    assert "say by 'explained' which of the images is measured" in plain[2]["error"]
    # Each has the scores of the explanation of the same messages by hand.
    images = [Image.open(tmp_path / name) for name in ("2.png", "0.png")]
    question = {"type": "text", "text": rows[0]["prompt"]}
    pair = [{"role": "user", "content": [{"type": "image"}, {"type": "image"}, question]}]
    turns[0]["content"][0].pop("path")
    turns[2]["content"][1] = question
    (sample, *_) = open_samples(path)
    for record, messages in ((in_chat[0], turns), (plain[1], pair)):
        inp = ImageTextInput(images, messages=messages, explained=1)
        image, query = mllm.prepare(inp, target=sample.answer)
        example = DataExample(sample, "jsonl", mllm.tokenizer, query.answer_ids)
        case = Case(mllm, example, (image, query))
        maps = METHODS["lens"].explain(case).float().clamp_min(0)
        for metric, score in localization_scores(case, METHODS["lens"], maps).items():
            assert record["methods"]["lens"][metric] == pytest.approx(list(score)), metric
    masses = [record["methods"]["lens"]["mass"] for record in (in_chat[0], plain[0], plain[1])]
    assert masses[0] != masses[1] != masses[2]
    settings = json.loads((tmp_path / "chat" / "settings.json").read_text())
    assert settings["messages"][0]["content"][0]["path"] == str(tmp_path / "2.png")


def test_records_of_batches_depend_on_no_number_of_processes(mllm: MLLM, tmp_path: Path) -> None:
    path = export_lines(tmp_path / "data", 5)
    settings, samples = settings_of(path, batch_size=2), open_samples(path)
    run_data(settings, samples, mllm, tmp_path / "one")
    for rank in (0, 1):
        run_data(settings, samples, mllm, tmp_path / "two", worker=Worker(rank, 2))
    text = (tmp_path / "one" / "records.jsonl").read_text()
    assert (tmp_path / "two" / "records.jsonl").read_text() == text
    # A batch of which one record is left is scored as a whole again.
    lines = text.splitlines(keepends=True)
    (tmp_path / "two" / "records.jsonl").write_text("".join(lines[1:4]) + lines[4][:9])
    run_data(settings, samples, mllm, tmp_path / "two", resume=True)
    assert (tmp_path / "two" / "records.jsonl").read_text() == text


def test_bad_rows_are_recorded_and_tried_again(mllm: MLLM, tmp_path: Path) -> None:
    path = export_lines(tmp_path / "data", 3)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    hidden = tmp_path / "data" / "hidden.png"
    (tmp_path / "data" / "1.png").rename(hidden)
    rows.append({"image": "0.png", "answer": "an unknownword"})
    write_lines(path, rows)
    settings = settings_of(path)
    with pytest.raises(SampleError, match=r"scenes.jsonl, line 2: there is no image '1.png'"):
        run_data(settings, open_samples(path), mllm, tmp_path / "strict")
    samples = open_samples(path, on_error="skip")
    found = run_data(settings, samples, mllm, tmp_path / "out")
    assert found is not None
    assert [bool(record.error) for record in found] == [False, True, False, False]
    assert samples.n_bad == 1 and "line 2: there is no image" in found[1].error
    hidden.rename(tmp_path / "data" / "1.png")
    again = run_data(settings, samples, mllm, tmp_path / "out", resume=True)
    assert again is not None and not any(record.error for record in again)
    assert [record.number for record in again] == [0, 1, 2, 3]
    other = settings_of(path, max_new_tokens=3)
    with pytest.raises(ValueError, match="other max_new_tokens"):
        run_data(other, samples, mllm, tmp_path / "out", resume=True)


def test_yes_no_questions_are_answered_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export_lines(tmp_path, 2)
    rows = [
        {"question_id": n, "image": f"{n}.png", "text": "Describe the image.", "label": label}
        for n, label in enumerate(["yes", "no"])
    ]
    path = write_lines(tmp_path / "pope.json", rows)
    arguments = ["evaluate", str(path), "--methods", "lens", "--metrics"]
    arguments += ["answers", "curves", "diagnosis", "--curves-every", "1", "--device", "cpu"]
    arguments += ["--output", str(tmp_path / "out")]
    assert main([*arguments, "--quiet"]) == 0
    (results,) = json.loads((tmp_path / "out" / "results.json").read_text())
    # The model was never asked yes or no: it describes, which says yes by POPE's rule.
    answers = results["answers"]
    assert (answers["questions"], answers["accuracy"], answers["yes_ratio"]) == (2, 0.5, 1.0)
    names = [*SIGNALS, "diagnosis", "lens"]
    assert {answers[f"auroc of {name}"] for name in names} <= {0.0, 0.5, 1.0}
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").open()]
    for row, record in zip(rows, records, strict=True):
        found = record["facts"]["signals"]
        assert_signals_are_those_of_an_explanation(found, tmp_path / row["image"], record)
    assert results["tables"]["faithfulness"]["insertion"]["lens"]["images"] == 2
    report = (tmp_path / "out" / "report.md").read_text()
    assert "| accuracy | 0.5 |" in report and "data pope, 2 images" in report
    assert str(tmp_path / "out" / "report.md") in capsys.readouterr().out


def test_a_model_may_be_laid_on_several_devices(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    data = export_lines(tmp_path / "data", 1)
    processor = ["--processor", str(demo_folder("qwen2-vl"))]
    for name, more in (("one", []), ("map", ["--device-map", "auto", *processor])):
        assert main(command(data, tmp_path / name, *more)) == 0
    one, mapped = (tmp_path / name / "records.jsonl" for name in ("one", "map"))
    assert one.read_text() == mapped.read_text()
    assert main(command(data, tmp_path / "none", "--device-map", "nowhere")) == 2


def assert_signals_are_those_of_an_explanation(
    found: dict[str, float], image: Path, record: dict[str, Any]
) -> None:
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    inp = ImageTextInput(Image.open(image), "Describe the image.")
    answer = record["facts"]["answer"]
    result = MLLMAttribution(LogitLens(mllm)).attribute(inp, target=answer, diagnosis=True)
    assert result.signals is not None
    # Words of the bundled models are a token each.
    assert [found[name] for name in SIGNALS] == pytest.approx(result.signals[0].tolist(), abs=1e-3)
    (risk, *_) = result.diagnosis(words=result.words[0][0])
    assert found["diagnosis"] == pytest.approx(1 - risk.risk, abs=1e-4)


def test_tam_on_scenes_in_the_layout_of_coco(mllm: MLLM, tmp_path: Path) -> None:
    folder = export_coco(tmp_path / "coco", 3)
    tagger, digest = read_tags(folder / "tags.json")
    samples = open_samples(folder)
    options: dict[str, Any] = {"methods": ("tam", "true-mask"), "metrics": ("tam", "answers")}
    settings = settings_of(
        folder, "tam-coco", tags=digest, fingerprint=samples.fingerprint(), **options
    )
    found = run_data(settings, samples, mllm, tmp_path / "out", tagger)
    assert found is not None
    for record in found:
        assert set(record.methods["tam"]) == {
            "tam_objects",
            "tam_functions",
            "tam_precision",
            "tam_recall",
        }
        assert record.methods["tam"]["tam_functions"].words > 0
        assert 0 <= record.facts["rouge_l"] <= 1
    with pytest.raises(ValueError, match="needs a tagger"):
        run_data(settings, samples, mllm, tmp_path / "other")


def command(path: Path, output: Path, *more: str) -> list[str]:
    return [
        *("evaluate", str(path), "--methods", "lens", "--metrics", "localization"),
        *("--batch-size", "2", "--device", "cpu", "--quiet", "--output", str(output)),
        *more,
    ]


def lines_in(output: Path) -> int:
    files = list(output.glob("records*.jsonl"))
    return sum(file.read_bytes().count(b"\n") for file in files)


def evaluate(arguments: list[str], rank: int, world: int) -> None:
    """The command in a process of its own, as a launcher of several starts it."""
    # A forked process has none of the threads of the one that it comes from.
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(world))
    sys.exit(main(arguments))


def launch(arguments: list[str], world: int = 1) -> list[Any]:
    """Forked, since to import torch takes longer than what is killed."""
    fork: Any = multiprocessing.get_context("fork")
    processes = [fork.Process(target=evaluate, args=(arguments, r, world)) for r in range(world)]
    for process in processes:
        process.start()
    return processes


def exit_codes(processes: list[Any]) -> list[int]:
    for process in processes:
        process.join(3600)
    return [process.exitcode for process in processes]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_processes_leave_what_an_undisturbed_one_does(tmp_path: Path) -> None:
    count, worlds = 30, (2, 1, 2)
    path, output = export_lines(tmp_path / "data", count), tmp_path / "killed"
    undisturbed = tmp_path / "undisturbed"
    assert exit_codes(launch(command(path, undisturbed))) == [0]
    chance = random.Random(0)
    for turn, world in enumerate(worlds):
        more = ["--resume"] if turn else []
        wanted = lines_in(output) + chance.randrange(1, max(count // (2 * len(worlds)), 2))
        processes = launch(command(path, output, *more), world)
        if turn < len(worlds) - 1:
            while lines_in(output) < wanted and any(each.is_alive() for each in processes):
                time.sleep(0.01)
            for process in processes:
                process.kill()
            codes = set(exit_codes(processes))
            # One of several may have been done with its share.
            assert -signal.SIGKILL in codes and codes <= {0, -signal.SIGKILL}
    assert exit_codes(processes) == [0] * worlds[-1]
    for name in ("records.jsonl", "results.json", "report.md"):
        assert (output / name).read_bytes() == (undisturbed / name).read_bytes(), name
    numbers = [json.loads(line)["number"] for line in (output / "records.jsonl").open()]
    assert numbers == list(range(count))
    assert not list(output.glob("*.rank*"))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_a_method_refuses_is_a_bad_row(
    mllm: MLLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    path = export_lines(tmp_path / "data", 2)
    whole = LogitLens.explain_tokens

    def explain(self: LogitLens, images: Any, query: Any, target: Any = None, **kwargs: Any) -> Any:
        if refused and torch.equal(images[0], refused[0]):
            raise ValueError("the image has too many tokens at this scale")
        return whole(self, images, query, target, **kwargs)

    refused: list[torch.Tensor] = []
    monkeypatch.setattr(LogitLens, "explain_tokens", explain)
    settings = settings_of(path, batch_size=batch_size)
    good = run_data(settings, open_samples(path), mllm, tmp_path / "good")
    second = list(open_samples(path))[1]
    refused.append(mllm.prepare(ask(second), target=second.answer)[0])
    samples = open_samples(path, on_error="skip")
    found = run_data(settings, samples, mllm, tmp_path / "out")
    assert good is not None and found is not None
    assert found[0] == good[0] and samples.n_bad == 1
    assert "line 2: lens fails on demo/qwen2-vl" in found[1].error
    assert "too many tokens at this scale" in found[1].error
    with pytest.raises(SampleError, match="too many tokens at this scale"):
        run_data(settings, open_samples(path), mllm, tmp_path / "strict")


def test_options_that_change_results_are_kept(tmp_path: Path) -> None:
    path = export_lines(tmp_path / "data", 1)
    kept = settings_of(path)
    kept.claim(tmp_path / "out", False)
    with pytest.raises(ValueError, match="other processor"):
        settings_of(path, processor="another").claim(tmp_path / "out", True)


def test_no_report_without_a_scored_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_lines(tmp_path / "data.jsonl", [{"image": "absent.png", "answer": "a star"}])
    arguments = ["evaluate", str(path), "--on-error", "skip", "--quiet", "--methods", "lens"]
    assert main([*arguments, "--device", "cpu", "--output", str(tmp_path / "out")]) == 2
    assert "none of 1 rows could be scored" in capsys.readouterr().err
    more = ["--max-new-tokens", "0", "--output", str(tmp_path / "none")]
    assert main([*arguments, "--device", "cpu", *more]) == 2
    assert "max_new_tokens=0" in capsys.readouterr().err
