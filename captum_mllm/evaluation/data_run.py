"""``run_data``: score methods on a data set, by any number of processes, in one folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.datasets import Sample, SampleError, Samples
from captum_mllm.datasets.formats import Row
from captum_mllm.evaluation.answers import rouge_l, said_yes
from captum_mllm.evaluation.data_example import DataExample, ask
from captum_mllm.evaluation.ledger import Ledger, Worker, in_blocks, run_blocks
from captum_mllm.evaluation.method import Case, Method
from captum_mllm.evaluation.progress import Progress
from captum_mllm.evaluation.records import Record, Score, Scores
from captum_mllm.evaluation.run import OF_MAPS, Further, prefetch, score_case, threads
from captum_mllm.evaluation.settings import DataSettings
from captum_mllm.evaluation.tam_protocol import Tagger, compatible_scores, tag_words
from captum_mllm.explain.batch import answered, open_prompts
from captum_mllm.explain.calibration import default_calibration
from captum_mllm.explain.signals import SIGNALS, token_signals
from captum_mllm.metrics import Word, grey_levels
from captum_mllm.models.query import Prompt

Key = tuple[str, str, int]

#: Metrics that look at the model's own answers to yes/no questions.
OF_ANSWERS = {"answers", "diagnosis"}


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
        RuntimeError: If a method fails other than by refusing the sample; the batches before are
            kept.
    """
    if "tam" in settings.metrics and tagger is None:
        raise ValueError("the metric tam needs a tagger of words")
    settings.claim(output, resume, worker.rank)
    ledger = Ledger(output, Record.from_json, worker)
    score = _Scorer(settings, samples, mllm, tagger)
    keys = [score.key(row) for row in samples.rows()]
    if not keys:
        raise ValueError(f"{samples.path} has no rows")
    watch = own_progress(ledger, keys, settings.batch_size) if show_progress else None
    with threads(settings.threads):
        # Rows that share passes are the same for any number of processes.
        run_blocks(ledger, in_blocks(samples.rows(), settings.batch_size), score.key, score, watch)
    return ledger.merge(keys)


def own_progress(ledger: Ledger[Any], keys: Sequence[Any], batch_size: int = 1) -> Progress | None:
    r"""Progress over the rows of this process; None for all processes but the first."""
    worker = ledger.worker
    if worker.rank:
        return None
    done = ledger.done()
    own = islice(in_blocks(keys, batch_size), 0, None, worker.world)
    missing = sum(key not in done for block in own for key in block)
    several = f" of the first of {worker.world} processes" if worker.world > 1 else ""
    return Progress(f"images{several}", missing)


class _Opened(NamedTuple):
    """A row that can be read, and what the model is to be asked and to say."""

    row: Row
    sample: Sample
    inp: ImageTextInput
    target: str | None


class _Prepared(NamedTuple):
    """A row with the answer that is explained, and the scores of maps that its kind has."""

    row: Row
    example: DataExample
    case: Case
    further: list[Further]


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
        found: dict[int, Record] = {}
        opened: list[_Opened] = []
        for row in rows:
            try:
                opened.append(self._open(row))
            except SampleError as error:
                found[row.number] = self._refuse(row, error)
        # What passes leave is shared by the methods, and ends with the rows of a batch.
        with self.mllm.remember():
            cases: list[_Prepared] = []
            for each, prompt in zip(opened, self._prepare(opened)):
                try:
                    cases.append(self._case(each, prompt))
                except SampleError as error:
                    found[each.row.number] = self._refuse(each.row, error)
            self._prefetch([each.case for each in cases if self._explains(each)])
            for prepared in cases:
                try:
                    found[prepared.row.number] = self._score(prepared)
                except SampleError as error:
                    found[prepared.row.number] = self._refuse(prepared.row, error)
        return [found[row.number] for row in rows]

    def _refuse(self, row: Row, error: SampleError) -> Record:
        self.samples.refuse(error)
        return Record(*self.key(row), {}, {}, {}, error.id, {}, str(error))

    def _open(self, row: Row) -> _Opened:
        sample = row.make()
        sample.check()
        # Masks are decoded before the model runs in vain.
        _ = sample.masks, None if sample.labels is None else sample.label_image
        if sample.chat is not None and sample.chat.explained is None:
            raise sample.error("say by 'explained' which of the images is measured, from 0")
        target = sample.answer if explains_reference(self.settings, sample) else None
        inp = ask(sample, self.settings.system, self.settings.messages)
        return _Opened(row, sample, inp, target)

    def _prepare(self, opened: Sequence[_Opened]) -> list[Prompt | SampleError]:
        """The prompts with their answers, which the model says in one batch if it can."""
        targets = [each.target for each in opened]
        generation = {"max_new_tokens": self.settings.max_new_tokens} if None in targets else {}
        if not opened:
            return []
        try:
            inputs = [each.inp for each in opened]
            prompts, answers = open_prompts(self.mllm, inputs, targets, generation)
            return [*answered(self.mllm, prompts, answers, generation)]
        except (TypeError, ValueError, FloatingPointError) as error:
            if len(opened) == 1:
                return [opened[0].sample.error(str(error))]
            return [self._prepare([each])[0] for each in opened]

    def _case(self, opened: _Opened, prompt: Prompt | SampleError) -> _Prepared:
        if isinstance(prompt, SampleError):
            raise prompt
        (image,), query = prompt
        tokenizer = self.mllm.tokenizer
        example = DataExample(opened.sample, self.settings.format, tokenizer, query.answer_ids)
        case = Case(self.mllm, example, (image, query))
        further = []
        if "tam" in self.settings.metrics:
            further.append(self._tam(example))
        if self._is_yes_or_no(example.sample):
            further.append(_strength)
        return _Prepared(opened.row, example, case, further)

    def _is_yes_or_no(self, sample: Sample) -> bool:
        """Whether the model's own answer to a yes/no question is scored."""
        return (
            not OF_ANSWERS.isdisjoint(self.settings.metrics)
            and sample.label is not None
            and not explains_reference(self.settings, sample)
        )

    def _explains(self, prepared: _Prepared) -> bool:
        """Whether metrics look at maps."""
        return bool(prepared.further) or not OF_MAPS.isdisjoint(self.settings.metrics)

    def _prefetch(self, cases: Sequence[Case]) -> None:
        """Make the passes of a batch together. Images that do not go into one make them later."""
        if len(cases) > 1:
            with suppress(ValueError, FloatingPointError):
                prefetch(cases, self.settings)

    def _score(self, prepared: _Prepared) -> Record:
        further = partial(_all, prepared.further) if prepared.further else None
        try:
            record = score_case(prepared.case, self.settings.model, self.settings, further)
        except RuntimeError as error:
            # What methods refuse, such as an image that is too large at a scale.
            if not isinstance(error.__cause__, (ValueError, FloatingPointError)):
                raise
            raise prepared.example.sample.error(str(error)) from error
        return replace(record, facts=self._facts(prepared))

    def _tam(self, example: DataExample) -> Further:
        sample = example.sample
        if sample.labels is None:
            raise sample.error("the metric tam needs a label image")
        assert self.tagger is not None
        named = [(example.text_of(word), word) for word in example.token_words]
        words = tag_words(named, self.tagger, sample.labels.categories)
        return partial(_tam_scores, words, torch.from_numpy(sample.label_image))

    def _facts(self, prepared: _Prepared) -> dict[str, Any]:
        example = prepared.example
        sample, answer = example.sample, example.answer.strip()
        facts: dict[str, Any] = {"answer": answer}
        if self._is_yes_or_no(sample):
            said = "yes" if said_yes(answer) else "no"
            sure = first_word_probability(prepared.case)
            facts |= {"label": sample.label, "said": said, "probability": sure}
            if "diagnosis" in self.settings.metrics:
                facts["signals"] = answer_signals(prepared.case)
            return facts
        if "answers" not in self.settings.metrics or explains_reference(self.settings, sample):
            return facts
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


def first_word_probability(case: Case) -> float:
    r"""How sure the model is of the first word of its answer, in [0, 1]."""
    states = case.mllm.states(case.image, case.query)
    predicted = states.predictions(case.mllm.vocabulary, 1, False)
    return float(predicted.probability[list(_first_word(case))].prod())


def answer_signals(case: Case) -> dict[str, float]:
    r"""
    What a diagnosis reads of the first word of an answer, at its token of which the model is least
    sure: the signals of ``captum_mllm.explain.signals.SIGNALS``, and ``"diagnosis"``, 1 less the
    risk that the calibration of the package makes of them.
    """
    signals = token_signals(case.mllm, (case.image,), case.query)[list(_first_word(case))]
    least = signals[signals[:, SIGNALS.index("probability")].argmin()][None]
    shown = 1 - float(default_calibration().risk(least))
    return {**dict(zip(SIGNALS, least[0].tolist())), "diagnosis": shown}


def _first_word(case: Case) -> tuple[int, ...]:
    """The tokens of the first word of the answer."""
    return min((word.tokens for word in case.words), default=(0,))


def _all(parts: Sequence[Further], case: Case, method: Method, maps: Tensor) -> Scores:
    return {name: score for part in parts for name, score in part(case, method, maps).items()}


def _strength(case: Case, method: Method, maps: Tensor) -> Scores:
    """How strong the map of the answer's first word is where it is strongest."""
    return {"strength": Score(float(maps[list(_first_word(case))].mean(0).amax()), 1.0)}


def _tam_scores(
    words: Sequence[Word], labels: Tensor, case: Case, method: Method, maps: Tensor
) -> Scores:
    return compatible_scores(grey_levels(maps, method.levels), words, labels)
