"""``explain_data``: a page for each sample of a data set, and an index to browse them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from captum_mllm import ImageTextInput, MLLMAttribution, MLLMAttributionResult
from captum_mllm.commands.console import say, show
from captum_mllm.commands.evaluate import load_for, open_data, row_messages
from captum_mllm.commands.measuring import output_folder
from captum_mllm.commands.setup import build_method, image_tokens
from captum_mllm.datasets import Sample, SampleError, Samples
from captum_mllm.datasets.chats import Messages
from captum_mllm.datasets.formats import Row
from captum_mllm.evaluation.data_example import ask
from captum_mllm.evaluation.data_run import own_progress
from captum_mllm.evaluation.ledger import Ledger, Worker, in_blocks, run_blocks
from captum_mllm.evaluation.settings import claim
from captum_mllm.explain.result_file import write_file
from captum_mllm.visualization.index_page import Entry, render_index

_PER_PAGE = 1000
_THUMBNAIL = 128
# Options that a run keeps, beside its method and its data.
_SETTINGS = (
    *("model", "processor", "dtype", "answers", "prompt", "system", "scales", "max_image_tokens"),
    *("max_new_tokens", "batch_size", "maps", "limit"),
)
_REFUSED = ("answer", "stream", "contrast", "reasons", "alternatives", "what_if")


@dataclass(frozen=True)
class Explained:
    r"""
    A line of ``explained.jsonl``.

    Args:
        number (int): Which row of the data.
        id (str): What the sample is called.
        question (str): The question.
        answer (str): The answer that was explained.
        error (str): Why there is no page; empty where there is one.
    """

    number: int
    id: str
    question: str = ""
    answer: str = ""
    error: str = ""

    @property
    def key(self) -> int:
        return self.number

    @property
    def name(self) -> str:
        """What its files are called."""
        return f"{self.number:06d}"

    def to_json(self) -> str:
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, line: str) -> Explained:
        try:
            return cls(**json.loads(line))
        except TypeError as error:
            raise ValueError(f"not a line of an explained data set: {error}") from error


def explain_data(options: argparse.Namespace, method: str) -> None:
    r"""
    Explain the samples of a data set, and write ``index.html``, ``pages/``, and maps.

    Args:
        options (argparse.Namespace): What the command's parser gave.
        method (str): One of the methods of the command.

    Raises:
        ValueError: If an option is of single images alone or out of its range, or the folder holds
            another run.
        SampleError: For a bad row, if ``--on-error`` is ``raise``.
    """
    for name in _REFUSED:
        if getattr(options, name):
            raise ValueError(
                f"--{name.replace('_', '-')} is for single images, and {options.images[0]} is a "
                "data set"
            )
    if options.explained is not None:
        raise ValueError("--explained is for several images of one question")
    if options.batch_size < 1:
        raise ValueError(f"got --batch-size {options.batch_size}, expected at least 1")
    worker = Worker.of_environment()
    options.data = options.images[0]
    samples = open_data(options)
    folder = output_folder(options.output, options.resume and worker.rank == 0)
    samples.check_output(folder)
    settings: dict[str, Any] = {name: getattr(options, name) for name in _SETTINGS}
    settings |= {"method": method, "format": samples.format}
    settings["messages"] = row_messages(options)
    settings |= {"data": str(samples.path.resolve()), "fingerprint": samples.fingerprint()}
    mllm = load_for(options, worker)
    claim(folder, settings, options.resume, worker.rank)
    for part in ("pages", "thumbnails", *(() if options.maps == "none" else ("maps",))):
        (folder / part).mkdir(exist_ok=True)
    attribution, arguments = build_method(mllm, method, options.scales)
    arguments["max_image_tokens"] = image_tokens(options)
    explainer = MLLMAttribution(attribution)
    explain = _Explainer(options, samples, explainer, arguments, settings["messages"], folder)
    ledger = Ledger(folder, Explained.from_json, worker, "explained")
    numbers = [row.number for row in samples.rows()]
    watch = None if options.quiet else own_progress(ledger, numbers, options.batch_size)
    blocks = in_blocks(samples.rows(), options.batch_size)
    run_blocks(ledger, blocks, lambda row: row.number, explain, watch)
    found = ledger.merge(numbers)
    if samples.n_bad:
        say(f"captum-mllm: {samples.n_bad} bad rows were skipped")
    if found is None:
        show(f"process {worker.rank} is done; the last one writes {folder / 'index.html'}")
        return
    write_index(folder, found, title=f"{samples.path.name}, {method}, {options.model}")
    show(f"{sum(not each.error for each in found)} answers are explained. Look at them:")
    show(f"  {folder / 'index.html'}")


def write_index(folder: Path, found: Sequence[Explained], title: str) -> None:
    r"""
    Write ``index.html``, and ``index-2.html`` and so on where there are more than 1,000.

    Args:
        folder (Path): The folder with ``pages`` and ``thumbnails``.
        found (Sequence[Explained]): What was explained; errors are left out.
        title (str): The title.
    """
    entries = [
        Entry(
            page=f"pages/{each.name}.html",
            thumbnail=folder / "thumbnails" / f"{each.name}.jpg",
            title=each.id,
            question=each.question,
            answer=each.answer,
        )
        for each in found
        if not each.error
    ]
    count = max(-(-len(entries) // _PER_PAGE), 1)
    names = ["index.html", *(f"index-{number}.html" for number in range(2, count + 1))]
    for place, name in enumerate(names):
        part = entries[place * _PER_PAGE : (place + 1) * _PER_PAGE]
        page = render_index(part, title, names, place, skipped=len(found) - len(entries))
        write_file(folder / name, page.encode("utf-8"))


@dataclass(frozen=True)
class _Explainer:
    """From rows to their pages."""

    options: argparse.Namespace
    samples: Samples
    explainer: MLLMAttribution
    arguments: dict[str, Any]
    messages: Messages
    folder: Path

    def __call__(self, rows: Sequence[Row]) -> list[Explained]:
        found: dict[int, Explained] = {}
        inputs: list[tuple[Sample, ImageTextInput, str | None]] = []
        for row in rows:
            try:
                inputs.append(self._open(row))
            except SampleError as error:
                self._refuse(error, row.number, found)
        if inputs:
            results = self._explain(inputs)
            for (sample, _, _), result in zip(inputs, results):
                if isinstance(result, SampleError):
                    self._refuse(result, sample.number, found)
                else:
                    found[sample.number] = self._write(sample, result)
        return [found[row.number] for row in rows]

    def _refuse(self, error: SampleError, number: int, found: dict[int, Explained]) -> None:
        self.samples.refuse(error)
        found[number] = Explained(number, error.id, error=str(error))

    def _open(self, row: Row) -> tuple[Sample, ImageTextInput, str | None]:
        sample, options = row.make(), self.options
        if options.answers == "reference" and sample.answer is None:
            raise sample.error("there is no reference answer; explain the model's own")
        is_own = options.answers == "model" or (
            options.answers == "auto" and sample.label is not None
        )
        inp = ask(sample, options.system, self.messages)
        return sample, inp, None if is_own else sample.answer

    def _explain(
        self, inputs: Sequence[tuple[Sample, ImageTextInput, str | None]]
    ) -> Sequence[MLLMAttributionResult | SampleError]:
        """One result for each input, together where the model takes them so."""
        targets = [target for _, _, target in inputs]
        generation = {"max_new_tokens": self.options.max_new_tokens} if None in targets else None
        if len(inputs) > 1:
            try:
                return self.explainer.attribute_batch(
                    [inp for _, inp, _ in inputs], targets, gen_args=generation, **self.arguments
                )
            except (ValueError, FloatingPointError):
                # One of them cannot be explained, or not together with the others.
                return [self._explain([each])[0] for each in inputs]
        ((sample, inp, target),) = inputs
        try:
            return [
                self.explainer.attribute(inp, target=target, gen_args=generation, **self.arguments)
            ]
        except (ValueError, FloatingPointError) as error:
            return [sample.error(str(error))]

    def _write(self, sample: Sample, result: MLLMAttributionResult) -> Explained:
        answer = "".join(result.input_tokens[result.n_prompt :]).strip()
        found = Explained(sample.number, sample.id, sample.question, answer)
        result.save_html(self.folder / "pages" / f"{found.name}.html")
        thumbnail = sample.image.convert("RGB")
        thumbnail.thumbnail((_THUMBNAIL, _THUMBNAIL))
        thumbnail.save(self.folder / "thumbnails" / f"{found.name}.jpg", quality=70)
        _WRITERS[self.options.maps](result, self.folder / "maps" / found.name)
        return found


def _save_whole(result: MLLMAttributionResult, path: Path) -> None:
    result.save(path.with_suffix(".safetensors"))


def _save_images(result: MLLMAttributionResult, path: Path) -> None:
    r"""A 16-bit PNG for each word and image; a level counts as many times the ``step``."""
    path.mkdir(exist_ok=True)
    several = len(result.explained) > 1
    words: list[dict[str, Any]] = []
    maps: dict[str, np.ndarray] = {}
    for place, (word, tokens) in enumerate(zip(result.output_words, result.words, strict=True)):
        for image in result.explained:
            name = f"{place:03d}-{image}.png" if several else f"{place:03d}.png"
            words.append({"word": word, "file": name} | ({"image": image} if several else {}))
            maps[name] = result.map(list(tokens), image=image).clip(0, None)
    step = max((float(values.max()) for values in maps.values()), default=0.0) / 65535 or 1.0
    for name, values in maps.items():
        levels = np.rint(values / step).clip(0, 65535).astype(np.uint16)
        Image.fromarray(levels).save(path / name)
    facts = {"step": step, "method": result.method, "model": result.model, "words": words}
    write_file(path / "maps.json", json.dumps(facts, indent=1).encode("ascii"))


_WRITERS: dict[str, Callable[[MLLMAttributionResult, Path], None]] = {
    "safetensors": _save_whole,
    "png": _save_images,
    "none": lambda result, path: None,
}
