"""``run_data``: score methods on a data set, by any number of processes, in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.datasets import Sample, SampleError, Samples
from captum_mllm.datasets.formats import Row
from captum_mllm.evaluation.answers import rouge_l, said_yes
from captum_mllm.evaluation.data_example import DataExample
from captum_mllm.evaluation.ledger import Ledger, Worker, run_blocks
from captum_mllm.evaluation.method import Case, Method
from captum_mllm.evaluation.progress import Progress
from captum_mllm.evaluation.records import Record, Scores
from captum_mllm.evaluation.run import Further, score_case, threads
from captum_mllm.evaluation.settings import DataSettings
from captum_mllm.evaluation.tam_protocol import Tagger, compatible_scores, tag_words
from captum_mllm.metrics import Word, grey_levels

Key = tuple[str, str, int]


def run_data(
    settings: DataSettings,
    samples: Samples,
    mllm: MLLM,
    output: Path,
    tagger: Tagger | None = None,
    resume: bool = False,
    worker: Worker = Worker(),  # noqa: B008
    show_progress: bool = False,
) -> list[Record] | None:
    r"""
    Score every method on every sample, and keep the scores in ``output/records.jsonl``.

    Several processes share the rows by their numbers, each with a file of its own, and none waits
    for another. The last to end puts the files together. The records depend neither on the number
    of processes nor on interruptions.

    Args:
        settings (DataSettings): What is measured.
        samples (Samples): The data. Bad rows become records with an error, or raise it, as
            ``samples.on_error`` says.
        mllm (MLLM): The model.
        output (Path): The folder of the run.
        tagger (Callable, optional): Tags words for TAM's protocol. Default: None
        resume (bool): Whether to go on with what the folder holds. Default: False
        worker (Worker): Which process this is. Default: the only one
        show_progress (bool): Whether to print how far it is. Default: False

    Returns:
        list[Record] or None: All records in the order of the data; None where other processes are
        not yet done.

    Raises:
        ValueError: If the folder holds another run, the data has no rows, or TAM's protocol has no
            tagger.
        SampleError: For a bad row, if ``samples.on_error`` is ``"raise"``.
        RuntimeError: If a method fails; the samples before are kept.
    """
    if "tam" in settings.metrics and tagger is None:
        raise ValueError("the metric tam needs a tagger of words")
    settings.claim(output, resume, worker.rank)
    ledger = Ledger(output, Record.from_json, worker)
    score = _Scorer(settings, samples, mllm, tagger)
    keys = [score.key(row) for row in samples.rows()]
    if not keys:
        raise ValueError(f"{samples.path} has no rows")
    watch = own_progress(ledger, keys) if show_progress else None
    with threads(settings.threads):
        # A block is one row: methods share the passes of a sample, and none goes over to the next.
        blocks = ([row] for row in samples.rows())
        run_blocks(ledger, blocks, score.key, score, watch)
    return ledger.merge(keys)


def own_progress(ledger: Ledger[Any], keys: Sequence[Any]) -> Progress | None:
    r"""Progress over the rows of this process; None for all processes but the first."""
    worker = ledger.worker
    if worker.rank:
        return None
    done = ledger.done()
    missing = sum(key not in done for key in islice(keys, 0, None, worker.world))
    several = f" of the first of {worker.world} processes" if worker.world > 1 else ""
    return Progress(f"images{several}", missing)


@dataclass(frozen=True)
class _Scorer:
    """From rows to their records."""

    settings: DataSettings
    samples: Samples
    mllm: MLLM
    tagger: Tagger | None

    def key(self, row: Row) -> Key:
        return self.settings.model, self.settings.format, row.number

    def __call__(self, rows: Sequence[Row]) -> list[Record]:
        return [self._record(row) for row in rows]

    def _record(self, row: Row) -> Record:
        try:
            sample = row.make()
            sample.check()
            # Masks are decoded before the model runs in vain.
            _ = sample.masks, None if sample.labels is None else sample.label_image
            with self.mllm.remember():
                case, example = self._case(sample)
                further = self._tam(example) if "tam" in self.settings.metrics else None
                record = score_case(case, self.settings.model, self.settings, further)
                return replace(record, facts=self._facts(example))
        except SampleError as error:
            self.samples.refuse(error)
            return Record(*self.key(row), {}, {}, {}, error.id, {}, str(error))

    def _case(self, sample: Sample) -> tuple[Case, DataExample]:
        options: dict[str, Any] = {"max_new_tokens": self.settings.max_new_tokens}
        if explains_reference(self.settings, sample):
            options = {"target": sample.answer}
        try:
            inp = ImageTextInput(sample.image, sample.question)
            image, query = self.mllm.prepare(inp, **options)
        except (TypeError, ValueError, FloatingPointError) as error:
            raise sample.error(str(error)) from error
        tokenizer = self.mllm.tokenizer
        example = DataExample(sample, self.settings.format, tokenizer, query.answer_ids)
        return Case(self.mllm, example, (image, query)), example

    def _tam(self, example: DataExample) -> Further:
        sample = example.sample
        if sample.labels is None:
            raise sample.error("the metric tam needs a label image")
        assert self.tagger is not None
        named = [(example.text_of(word), word) for word in example.token_words]
        words = tag_words(named, self.tagger, sample.labels.categories)
        return partial(_tam_scores, words, torch.from_numpy(sample.label_image))

    def _facts(self, example: DataExample) -> dict[str, Any]:
        sample, answer = example.sample, example.answer.strip()
        facts: dict[str, Any] = {"answer": answer}
        if "answers" not in self.settings.metrics or explains_reference(self.settings, sample):
            return facts
        if sample.label is not None:
            return {**facts, "label": sample.label, "said": "yes" if said_yes(answer) else "no"}
        if sample.references:
            return {**facts, "rouge_l": rouge_l(answer, sample.references)}
        return facts


def explains_reference(settings: DataSettings, sample: Sample) -> bool:
    r"""
    Whether the reference answer is explained, and not the model's own.

    Raises:
        SampleError: If it is asked for and missing.
    """
    if settings.answers == "reference" and sample.answer is None:
        raise sample.error("there is no reference answer; explain the model's own")
    if settings.answers != "auto":
        return settings.answers == "reference"
    is_own = sample.label is not None or "tam" in settings.metrics
    return sample.answer is not None and not is_own


def _tam_scores(
    words: Sequence[Word], labels: Tensor, case: Case, method: Method, maps: Tensor
) -> Scores:
    return compatible_scores(grey_levels(maps, method.levels), words, labels)
