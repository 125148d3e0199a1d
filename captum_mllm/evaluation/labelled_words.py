"""``LabelledAnswer`` and ``read_words``: words of which it is known whether their images show them,
with the signals by which a diagnosis judges them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from captum_mllm.datasets.rows import json_rows
from captum_mllm.evaluation.temptation import TemptedCaption
from captum_mllm.explain.signals import SIGNALS, token_signals
from captum_mllm.models import MLLM, ImageTextInput, Query
from captum_mllm.models.towers import decoder_layers
from captum_mllm.models.words import token_texts


@dataclass(frozen=True, eq=False)
class LabelledAnswer:
    r"""
    An answer some of whose words are labelled.

    Args:
        group (str): what belongs together, such as one scene: intervals resample groups.
        image (PIL.Image.Image): the image.
        prompt (str): the question.
        answer (str): the answer.
        spans (Sequence[tuple[int, int, bool]]): for each labelled word its first character in the
            answer, the one after its last, and whether the image shows what it names.
    """

    group: str
    image: Image.Image
    prompt: str
    answer: str
    spans: Sequence[tuple[int, int, bool]]


@dataclass(frozen=True, eq=False)
class LabelledWords:
    r"""
    N words with their signals.

    Args:
        signals (Tensor): of shape (N, len(SIGNALS)).
        absent (Tensor): whether the image does not show what the word names, bool, (N,).
        groups (Sequence[str]): of each word.
        contextual (Tensor, optional): what :func:`contextual_lens` gives, (N,). Default: None
    """

    signals: Tensor
    absent: Tensor
    groups: Sequence[str]
    contextual: Tensor | None = None

    @property
    def probability(self) -> Tensor:
        """Of each word at the token where the model was least sure, (N,)."""
        return self.signals[:, SIGNALS.index("probability")].exp()


def of_scenes(captions: Iterable[TemptedCaption]) -> Iterator[LabelledAnswer]:
    r"""Captions and questions that tempt a model, see
    :func:`~captum_mllm.evaluation.temptation.tempted_captions`, as labelled answers."""
    for each in captions:
        spans = [(*each.caption.spans[place], shown) for place, shown in each.labels.items()]
        yield LabelledAnswer(str(each.number), each.image, each.prompt, each.answer, spans)


def of_file(path: str | Path) -> Iterator[LabelledAnswer]:
    r"""
    Labelled answers of a file of JSON lines.

    Each line is ``{"image": file, "prompt": text, "answer": text, "present": [words], "absent":
    [words]}``; images are named relative to the file. An answer to a question of yes or no, as in
    POPE, has "yes" among the absent words where the right answer is no. Answers about the same
    image belong together, or those with the same ``"group"``, where lines have one.

    Raises:
        ValueError: for a line that lacks a part, and a word that the answer does not have.
    """
    path = Path(path)
    for row in json_rows(path):
        line: Any = row.value
        try:
            answer, prompt, name = (str(line[key]) for key in ("answer", "prompt", "image"))
            labels = [(word, True) for word in line.get("present", ())]
            labels += [(word, False) for word in line.get("absent", ())]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{row.source} lacks {error}") from error
        spans = []
        for word, shown in labels:
            match = re.search(rf"(?<!\w){re.escape(str(word))}(?!\w)", answer, re.IGNORECASE)
            if match is None:
                raise ValueError(f"{row.source}: {answer!r} has no word {word!r}")
            spans.append((*match.span(), shown))
        with Image.open(path.parent / name) as image:
            group = str(line.get("group", name))
            yield LabelledAnswer(group, image.convert("RGB"), prompt, answer, spans)


@torch.no_grad()
def read_words(
    mllm: MLLM,
    answers: Iterable[LabelledAnswer],
    watch: Callable[[int], None] | None = None,
) -> LabelledWords:
    r"""
    The signals of all labelled words, each at the token where the model was least sure.

    Args:
        mllm (MLLM): the model.
        answers (Iterable[LabelledAnswer]): the answers, in turn.
        watch (Callable, optional): told 1 after each answer, such as a
            :class:`~captum_mllm.evaluation.progress.Progress`. Default: None

    Raises:
        ValueError: if no answer has a labelled word.
    """
    rows: list[Tensor] = []
    contextual: list[Tensor] = []
    absent: list[bool] = []
    groups: list[str] = []
    for answer in answers:
        with mllm.remember():
            image, query = mllm.prepare(
                ImageTextInput(answer.image, answer.prompt), target=answer.answer
            )
            signals = token_signals(mllm, (image,), query)
            cosines = contextual_lens(mllm, (image,), query)
        for start, end, shown in answer.spans:
            tokens = _tokens_of(mllm.tokenizer, query.answer_ids, start, end)
            token = min(tokens, key=lambda token: float(signals[token, 0]))
            rows.append(signals[token])
            contextual.append(cosines[token])
            absent.append(not shown)
            groups.append(answer.group)
        if watch is not None:
            watch(1)
    if not rows:
        raise ValueError("no answer has a labelled word")
    return LabelledWords(torch.stack(rows), torch.tensor(absent), groups, torch.stack(contextual))


@torch.no_grad()
def contextual_lens(mllm: MLLM, images: tuple[Tensor, ...], query: Query) -> Tensor:
    r"""
    The largest cosine of an image token's state with that of each token of the answer, after the
    middle layer of the language model ("contextual lens", Phukan et al., arXiv 2411.19187).

    The last token of an answer has no state, as nothing follows it; it takes that which predicts
    it. States are read through the final norm.

    Args:
        mllm (MLLM): the model.
        images (tuple[Tensor, ...]): the images that the query leaves open, (1, 3, H, W) each.
        query (Query): the question and the answer.

    Returns:
        Tensor: of shape (T,), on the CPU, in [-1, 1].
    """
    middle = len(decoder_layers(mllm.model)) // 2 - 1
    states = mllm.states(*images, query, layer=middle)
    predicting = states.predicting[0, states.n_prompt :]
    # The row that predicts a token is the state of the one before.
    words = torch.cat([predicting[1:], predicting[-1:]]).float()
    tokens = torch.cat([image[0] for image in states.image]).float()
    cosines = F.normalize(tokens, dim=1) @ F.normalize(words, dim=1).T
    return cosines.amax(0).cpu()


def _tokens_of(tokenizer: Any, ids: Sequence[int], start: int, end: int) -> list[int]:
    """The tokens that overlap some characters of an answer."""
    ends = list(accumulate(map(len, token_texts(tokenizer, ids))))
    starts = [0, *ends[:-1]]
    found = [i for i, (first, last) in enumerate(zip(starts, ends)) if first < end and last > start]
    return found or [len(ids) - 1]
