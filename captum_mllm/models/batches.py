"""Several prompts in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm.models.encoding import Encoding
from captum_mllm.models.query import Query
from captum_mllm.models.states import States, gather_states, hidden_states

if TYPE_CHECKING:
    from captum_mllm.models.mllm import MLLM

# What a model takes for each token; all else that a processor gives belongs to the pictures.
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


def join(
    encodings: Sequence[Encoding], tokenizer: Any, side: Literal["left", "right"]
) -> dict[str, Tensor]:
    r"""The inputs of some prompts as those of one batch.

    Args:
        encodings (Sequence[Encoding]): the prompts.
        tokenizer (Any): the tokenizer, for its padding token.
        side (str): where shorter prompts are padded. ``"left"``, out of sight, as ``generate``
            needs it. ``"right"``, where no token before it sees it in a causal model, so that no
            mask is needed and positions are as without it.

    Raises:
        ValueError: for pictures that do not go into one batch.
    """
    if len(encodings) == 1:
        return dict(encodings[0].inputs)
    longest = max(lengths(encodings))
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    fills = dict.fromkeys(PER_TOKEN, 0)
    fills["input_ids"] = next(token for token in ids if token is not None)
    fills["attention_mask"] = int(side == "right")
    joined = {}
    for name in encodings[0].inputs:
        parts = [encoding.inputs[name] for encoding in encodings]
        if name in fills:
            parts = [_pad(part, longest - part.shape[1], fills[name], side) for part in parts]
        elif len({part.shape[1:] for part in parts}) > 1:
            raise ValueError(
                f"the prompts have {name} of shapes {[tuple(part.shape) for part in parts]}, which "
                "do not go into one batch; explain them one at a time"
            )
        joined[name] = torch.cat(parts)
    return joined


def lengths(encodings: Sequence[Encoding]) -> list[int]:
    """How many tokens each prompt has."""
    return [encoding.inputs["input_ids"].shape[1] for encoding in encodings]


def _pad(rows: Tensor, count: int, fill: int, side: str) -> Tensor:
    return F.pad(rows, (count, 0) if side == "left" else (0, count), value=fill)


@torch.no_grad()
def batch_states(
    mllm: MLLM, prompts: Sequence[tuple[Sequence[Tensor], Query]], layer: int | None = None
) -> list[dict[int | None, States]]:
    r"""The states of some prompts with their answers, from one pass.

    Args:
        mllm (MLLM): the model.
        prompts (Sequence[tuple[Sequence[Tensor], Query]]): the open pictures, and the question
            with its answer.
        layer (int, optional): as in :meth:`MLLM.states`.

    Returns:
        list[dict[int or None, States]]: those of each prompt, at the end (None) and behind the
        layer.
    """
    encodings = [mllm.encode(pictures, query) for pictures, query in prompts]
    inputs = join(encodings, mllm.tokenizer, "right")
    with mllm.evaluating():
        found = hidden_states(mllm.model, inputs, layer)
    windows = [encoding.windows for encoding in encodings]
    parts = {place: hidden.split(windows) for place, hidden in found.items()}
    return [
        {
            place: gather_states(rows[index][None, :, :length], encoding, query)
            for place, rows in parts.items()
        }
        for index, (encoding, length, (_, query)) in enumerate(
            zip(encodings, lengths(encodings), prompts)
        )
    ]


def make_passes(
    mllm: MLLM, prompts: Sequence[tuple[Sequence[Tensor], Query]], layer: int | None = None
) -> None:
    r"""Within ``MLLM.remember``, make the passes of some prompts as one, but for those that are
    remembered; arguments as of :func:`batch_states`."""
    missing = [
        (pictures, query)
        for pictures, query in prompts
        if not mllm.knows(*pictures, query, layer=layer)
    ]
    if not missing:
        return
    for (pictures, query), found in zip(missing, batch_states(mllm, missing, layer)):
        for place, states in found.items():
            mllm.keep(states, *pictures, query, layer=place, by_value=True)
