"""``States`` holds the hidden states of a pass that explanations need."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from captum_mllm.models.contrasts import alternatives, subtract_alternatives
from captum_mllm.models.encoding import Encoding
from captum_mllm.models.layout import Layout
from captum_mllm.models.query import Query, split_target
from captum_mllm.models.vocabulary import Predictions, Vocabulary

# The name of predictions among what is derived.
PREDICTIONS = "predictions"
# At least so many tokens are ranked, as many as ARC reads, so that its ranking is found here.
RANKED = 50


@dataclass(frozen=True)
class States:
    r"""Hidden states of one pass, after the final norm, for B images.

    Args:
        image (tuple[Tensor, ...]): the tokens of each explained image, shape (B, N, d); none where
            the decoder looks at images by cross-attention.
        layouts (tuple[Layout, ...]): where they lie.
        text (Tensor): the tokens of the prompt's text at their own positions, shape (B, P, d).
        predicting (Tensor): the rows that predict the tokens of the prompt, then those that
            predict the answer, shape (B, P + T, d).
        ids (Tensor): vocabulary indices of those P + T tokens.
        runs (tuple[int, ...], optional): lengths of the runs of neighbouring tokens among the P.
            Default: None, one run.
        derived (dict): what callers computed from them, by names of their own, and may read again
            for as long as the states are kept. Default: empty
        of_prompt (dict): the same, of what does not depend on the answer. Default: empty
    """

    image: tuple[Tensor, ...]
    layouts: tuple[Layout, ...]
    text: Tensor
    predicting: Tensor
    ids: Tensor
    runs: tuple[int, ...] | None = None
    derived: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)
    of_prompt: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def n_prompt(self) -> int:
        return self.text.shape[1]

    @property
    def run_ends(self) -> tuple[int, ...]:
        """Places of the last token of each run of the prompt's text."""
        runs = (self.n_prompt,) if self.runs is None else self.runs
        return tuple(end - 1 for end, run in zip(itertools.accumulate(runs), runs) if run)

    @property
    def context(self) -> Tensor:
        """The state of each token as context, tokens of the prompt by their own, tokens of
        the answer by the state that predicts them, shape (B, P + T, d)."""
        return torch.cat([self.text, self.predicting[:, self.n_prompt :]], dim=1)

    def predictions(self, vocabulary: Vocabulary, k: int, with_text: bool) -> Predictions:
        r"""What the model predicts for each token; of one image.

        All logits of a token are computed once for as long as the states are kept, unless more of
        them will be ranked later on.

        Args:
            vocabulary (Vocabulary): the model's.
            k (int): how many tokens to rank, at least 1.
            with_text (bool): also for the tokens of the prompt, which come first.
        """
        k = min(k, vocabulary.size)
        prompt, answer = slice(self.n_prompt), slice(self.n_prompt, len(self.ids))
        parts = [(answer, self.derived)]
        if with_text:
            parts.insert(0, (prompt, self.of_prompt))
        missing = [
            (rows, kept)
            for rows, kept in parts
            if PREDICTIONS not in kept or kept[PREDICTIONS].top_ids.shape[1] < k
        ]
        if missing:
            # Together, so that the weights are read once.
            rows = slice(missing[0][0].start, missing[-1][0].stop)
            ranked = max(k, RANKED)
            found = vocabulary.predictions(self.predicting[0, rows], self.ids[rows], ranked)
            lengths = [len(self.ids[part]) for part, _ in missing]
            splits = zip(*(value.split(lengths) for value in found))
            for (_, kept), values in zip(missing, splits):
                kept[PREDICTIONS] = Predictions(*values)
        known = [kept[PREDICTIONS] for _, kept in parts]
        return Predictions(
            torch.cat([part.probability for part in known]),
            torch.cat([part.top_ids[:, :k] for part in known]),
            torch.cat([part.top_probability[:, :k] for part in known]),
        )


def gather_states(hidden: Tensor, encoding: Encoding, query: Query) -> States:
    r"""From hidden states (B, windows, S, d) to those that explanations need."""
    # A model on several devices gives them on the last one, the positions are on the first.
    hidden = hidden.to(encoding.answer_rows.device)
    # Text is the same in all windows, and the head is linear: the mean state gives mean logits.
    text = hidden.mean(1) if encoding.windows > 1 else hidden[:, 0]
    rows = encoding.explained_rows(query.including_prompt())
    answer = torch.tensor(query.answer_ids, device=hidden.device)
    return States(
        image=tuple(
            hidden[:, :, encoding.image_positions[index]].flatten(1, 2)
            for index in ([] if encoding.crosses else query.explained)
        ),
        layouts=tuple(encoding.layouts[index] for index in query.explained),
        text=text[:, encoding.text_positions],
        predicting=text[:, rows],
        ids=torch.cat([encoding.text_ids, answer]),
        runs=encoding.text_runs,
    )


def token_logits(vocabulary: Vocabulary, states: States, query: Query) -> Tensor:
    r"""The logit of each explained token, (B, T), float32 at least."""
    start = 0 if query.with_prompt else states.n_prompt
    predicting, ids = states.predicting[:, start:], states.ids[start:]
    logits = vocabulary.scores(predicting, ids).diagonal(dim1=1, dim2=2)
    rows, others = alternatives(query, torch.arange(len(ids), device=ids.device), len(ids))
    taken = vocabulary.scores(predicting[:, rows], others).diagonal(dim1=1, dim2=2)
    return subtract_alternatives(logits, query, taken)


def target_probability(
    vocabulary: Vocabulary, states: States, query: Query, target: Any = None
) -> Tensor:
    r"""The probability of the target of each image, (B,), or of all tokens of one image, (T,).

    Raises:
        ValueError: for several images without a target, and something that is not a target.
    """
    start = 0 if query.with_prompt else states.n_prompt
    predicting, ids = states.predicting[:, start:], states.ids[start:]
    if target is None:
        if len(predicting) != 1:
            raise ValueError(
                f"got a batch of {len(predicting)} images and no target; give a target, or one "
                "image"
            )
        return states.predictions(vocabulary, 1, query.with_prompt).probability
    rows, wanted = split_target(target, len(predicting), len(ids), ids.device, vocabulary.size)
    chosen = predicting[torch.arange(len(predicting), device=rows.device), rows]
    return vocabulary.predictions(chosen, wanted, 1).probability
