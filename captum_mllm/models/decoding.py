"""``find_answer`` takes the answer that is given, or lets the model answer.

``answer_prompts`` does it for several prompts, and keeps the states by which the model answered,
which ``Decoding`` watches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria

from captum_mllm.models.answers import answer_tokens, generate_answers
from captum_mllm.models.backbone import Backbone
from captum_mllm.models.batches import join, lengths
from captum_mllm.models.encoding import Encoding
from captum_mllm.models.families import placeholder_ids, softcap
from captum_mllm.models.hooks import hook
from captum_mllm.models.query import Answer, Prompt, Query
from captum_mllm.models.states import PREDICTIONS, RANKED, States, gather_states
from captum_mllm.models.towers import body_of
from captum_mllm.models.vocabulary import Predictions, cap_logits, predict


class Decoding(StoppingCriteria):
    r"""
    Watches ``generate``: the hidden states and the predictions of each of its steps.

    It is a stopping criterion, which is asked after each token. Decoding that does not go token by
    token with a cache (beam search, assisted decoding, a prompt in chunks) and a compiled model
    leave nothing, see :attr:`is_whole`.

    Args:
        model (PreTrainedModel): the model.
        after_token (Callable[[], bool], optional): called after each token; True ends the answer.
            Default: None
    """

    def __init__(self, model: Any, after_token: Callable[[], bool] | None = None) -> None:
        self.hidden: list[Tensor] = []
        self.predictions: list[Predictions] = []
        self.tokens: list[Tensor] = []
        self._model = model
        self._after_token = after_token
        self._new_hidden: list[Tensor] = []
        self._new_logits: list[Tensor] = []
        self._spoilt = False

    @property
    def is_whole(self) -> bool:
        """Whether every step was seen."""
        return not self._spoilt and bool(self.tokens)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within it, passes in this thread are steps."""
        body, head = body_of(self._model), self._model.get_output_embeddings()
        with hook(body, self._see_hidden), hook(head, self._see_logits):
            yield

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Any:
        self._take_step(input_ids)
        stop = self._after_token is not None and self._after_token()
        return torch.full((len(input_ids),), stop, dtype=torch.bool, device=input_ids.device)

    def states(self, prompt: States, row: int, answer_ids: Sequence[int]) -> States:
        r"""The states that a pass with the answer would have.

        Args:
            prompt (States): those of the prompt and the first token, see :meth:`prompt_states`.
            row (int): which prompt of the batch.
            answer_ids (Sequence[int]): the answer, or its beginning.
        """
        count = len(answer_ids)
        steps = [hidden[row : row + 1].to(prompt.text) for hidden in self.hidden[1:count]]
        answer = torch.tensor(answer_ids, device=prompt.ids.device)
        said = [[part[row] for part in step] for step in self.predictions[:count]]
        predictions = Predictions(*(torch.stack(part).to(answer.device) for part in zip(*said)))
        return replace(
            prompt,
            predicting=torch.cat([prompt.predicting, *steps], dim=1),
            ids=torch.cat([prompt.ids[: prompt.n_prompt], answer]),
            derived={PREDICTIONS: predictions},
        )

    def prompt_states(self, encoding: Encoding, query: Query, row: int, padding: int) -> States:
        r"""The states of a prompt and of what predicts the first token of its answer.

        Args:
            encoding (Encoding): the prompt.
            query (Query): the question.
            row (int): which prompt of the batch.
            padding (int): tokens before it.
        """
        hidden = self.hidden[0][row : row + 1, None, padding:]
        last = torch.tensor([hidden.shape[2] - 1], device=encoding.answer_rows.device)
        first = (int(self.tokens[0][row]),)
        return gather_states(
            hidden, replace(encoding, answer_rows=last), replace(query, answer_ids=first)
        )

    def _see_hidden(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling():
            self._spoilt = True
        elif not self._spoilt:
            self._new_hidden.append(getattr(output, "last_hidden_state", output[0]).detach())

    def _see_logits(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if torch.compiler.is_compiling():
            self._spoilt = True
        elif not self._spoilt:
            self._new_logits.append(output.detach()[:, -1])

    def _take_step(self, input_ids: Tensor) -> None:
        new_hidden, self._new_hidden = self._new_hidden, []
        new_logits, self._new_logits = self._new_logits, []
        expected = 1 if self.hidden else input_ids.shape[1] - 1
        is_step = len(new_hidden) == len(new_logits) == 1 and new_hidden[0].shape[:2] == (
            len(input_ids),
            expected,
        )
        if self._spoilt or not is_step:
            self._spoilt = True
            for kept in (self.hidden, self.predictions, self.tokens):
                kept.clear()
            return
        logits = new_logits[0]
        token = input_ids[:, -1].to(logits.device)
        in_float = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
        in_float = cap_logits(in_float, softcap(self._model.config))
        self.hidden.append(new_hidden[0])
        self.predictions.append(predict(iter([(0, in_float)]), token, min(RANKED, logits.shape[1])))
        self.tokens.append(token)


def find_answer(
    backbone: Backbone,
    images: Sequence[Tensor],
    query: Query,
    target: str | Sequence[int] | Tensor | None,
    generation: dict[str, Any],
) -> Answer:
    r"""The tokens of the answer that is given, or that the model makes.

    Args:
        backbone (Backbone): the model.
        images (Sequence[Tensor]): the images that the query leaves open.
        query (Query): the question.
        target (str, Sequence[int] or Tensor, optional): the answer. None for the model's own.
        generation (dict): arguments of ``generate``.

    Raises:
        ValueError: for an answer and arguments of ``generate`` at once, and an empty answer.
    """
    answer = given_answer(backbone, target, generation)
    if answer is None:
        return answer_prompts(backbone, [(tuple(images), query)], generation)[0]
    return answer


def given_answer(
    backbone: Backbone, target: str | Sequence[int] | Tensor | None, generation: dict[str, Any]
) -> Answer | None:
    r"""The tokens of the answer that is given; None where the model is to make it.

    Args:
        backbone (Backbone): the model.
        target (str, Sequence[int] or Tensor, optional): the answer. None for the model's own.
        generation (dict): arguments of ``generate``.

    Raises:
        ValueError: for an answer and arguments of ``generate`` at once, and an empty answer.
    """
    if target is None:
        return None
    if generation:
        raise ValueError(
            f"got both an answer and {', '.join(generation)}, which ask the model for one; "
            "leave out one of them"
        )
    return answer_tokens(
        target,
        backbone.tokenizer,
        backbone.vocabulary.size,
        placeholder_ids(backbone.model.config),
    )


def answer_prompts(
    backbone: Backbone, prompts: Sequence[Prompt], options: dict[str, Any]
) -> list[Answer]:
    r"""The model's own answers to some prompts, in one batch.

    Within :meth:`MLLM.remember` the states by which it said them are kept, so that explaining them
    takes no further pass.

    Args:
        backbone (Backbone): the model.
        prompts (Sequence[tuple[tuple[Tensor, ...], Query]]): the open images and the question.
        options (dict): arguments of ``generate``.

    Raises:
        ValueError: for options that ask for anything but one answer to each prompt; if the model
            answers one of them with nothing.
    """
    encodings = [backbone.encode(images, query) for images, query in prompts]
    inputs = join(encodings, backbone.tokenizer, "left")
    decoding = Decoding(backbone.model)
    wanted = backbone.remembers and all(encoding.windows == 1 for encoding in encodings)
    with backbone.evaluating():
        if not wanted:
            return generate_answers(backbone.model, inputs, backbone.tokenizer, options)
        with decoding.watching():
            answers = generate_answers(
                backbone.model, inputs, backbone.tokenizer, options, decoding
            )
    if decoding.is_whole:
        padded = inputs["input_ids"].shape[1]
        for row, (encoding, answer) in enumerate(zip(encodings, answers)):
            images, query = prompts[row]
            prompt = decoding.prompt_states(encoding, query, row, padded - lengths([encoding])[0])
            states = decoding.states(prompt, row, answer)
            backbone.keep(states, *images, replace(query, answer_ids=answer))
    return answers
