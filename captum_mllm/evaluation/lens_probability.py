"""The logit lens read as probabilities or ranks instead of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm.models import MLLM, Query

Reading = Literal["probability", "contrast", "reciprocal rank"]


class LensProbability(Attribution):
    r"""
    What the logit lens says of a word in comparison with the other words.

    With :math:`z_{ic}` the logit of word c at image token i and :math:`p_{ic}` its softmax,

    - ``"probability"`` is :math:`p_{ic}`;
    - ``"contrast"`` is the log-probability above its mean over the picture's tokens,
      :math:`\mathrm{relu}(\log p_{ic} - \mathrm{mean}_j \log p_{jc})`, which takes out what the
      model says of a word wherever it looks;
    - ``"reciprocal rank"`` is one over the rank of word c among all words at token i.

    It computes the logits of the whole vocabulary at each image token, so it is for benchmarks.

    Args:
        mllm (MLLM): The model.
        reading (str): One of the above. Default: "probability"

    Raises:
        ValueError: For another reading.
    """

    explains_every_token = True

    def __init__(self, mllm: MLLM, reading: Reading = "probability") -> None:
        if reading not in get_args(Reading):
            raise ValueError(f"reading={reading!r}, expected one of {', '.join(get_args(Reading))}")
        super().__init__(mllm)
        self.reading = reading

    @property
    def multiplies_by_inputs(self) -> bool:
        return False

    def attribute(self, inputs: Tensor, additional_forward_args: tuple[Query]) -> Tensor:
        r"""
        Args:
            inputs (Tensor): The picture, (1, 3, H, W) in [0, 1].
            additional_forward_args (tuple[Query]): The query from ``MLLM.prepare``.

        Returns:
            Tensor: A map for each explained token, (T, 1, h, w), at least 0.
        """
        (query,) = additional_forward_args
        mllm: MLLM = self.forward_func
        states = mllm.states(inputs, query)
        ids = states.ids if query.with_prompt else states.ids[states.n_words :]
        everything = torch.arange(mllm.vocabulary.size, device=ids.device)
        logits = mllm.vocabulary.scores(states.image[0][0], everything)
        return states.layouts[0].paint(self._read(logits, ids).mT).unsqueeze(1)

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for LensProbability")

    def _read(self, logits: Tensor, ids: Tensor) -> Tensor:
        """From logits (N, V) to scores of the words (N, T)."""
        if self.reading == "probability":
            return logits.softmax(-1)[:, ids]
        if self.reading == "contrast":
            likelihood = logits.log_softmax(-1)[:, ids]
            return (likelihood - likelihood.mean(0)).relu()
        ranks = (-logits).argsort(dim=-1, stable=True).argsort(dim=-1)
        return 1.0 / (1 + ranks[:, ids]).to(logits)
