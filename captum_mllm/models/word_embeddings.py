"""``own_embeddings`` and ``word_mask`` make the embeddings of the text an input beside the
image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from captum_mllm._options import is_integer
from captum_mllm.models.backbone import Backbone
from captum_mllm.models.query import Query
from captum_mllm.models.words import group_runs, run_texts

WordBaseline = Tensor | float | str | None


def text_ids(backbone: Backbone, query: Query, answer: bool) -> tuple[Tensor, tuple[int, ...]]:
    r"""The tokens of the words, with those of the answer but its last, and the lengths of
    the runs of neighbouring ones: those of the prompt, then the answer."""
    # They do not depend on the images.
    blank = [
        torch.zeros(1, query.channels, *query.native[index], device=backbone.device)
        for index in query.explained
    ]
    encoding = backbone.encode(blank, replace(query, word_embeddings=None))
    positions = encoding.earlier_positions if answer else encoding.text_positions
    runs = (*encoding.text_runs, len(positions) - len(encoding.text_positions))
    return encoding.inputs["input_ids"][0, positions], runs


@torch.no_grad()
def embed(model: PreTrainedModel, ids: Tensor) -> Tensor:
    r"""The embeddings (1, n, D) of tokens (n,)."""
    embedding: Any = model.get_input_embeddings()
    return embedding(ids[None].to(embedding.weight.device)).clone()


def own_embeddings(backbone: Backbone, query: Query, answer: bool) -> Tensor:
    r"""The embeddings of the words as the model has them; see :meth:`MLLM.word_embeddings`."""
    return embed(backbone.model, text_ids(backbone, query, answer)[0])


def word_mask(backbone: Backbone, query: Query, answer: bool) -> Tensor:
    r"""The word of each token; see :meth:`MLLM.word_mask`."""
    ids, runs = text_ids(backbone, query, answer)
    texts = run_texts(backbone.tokenizer, ids.tolist(), runs)
    sizes = [len(word) for word in group_runs(texts, runs)]
    words = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.long))
    return words[None, :, None].to(ids.device)


@torch.no_grad()
def word_baseline(
    model: PreTrainedModel, tokenizer: Any, embeddings: Tensor, baseline: WordBaseline
) -> Tensor:
    r"""What replaces a word that is removed.

    By default it is the mean of all embeddings: what tokens have in common, without what makes a
    word this word. Every model has it, while a token for padding or for a space is lacking in some
    and untrained in others, and no token has the embedding 0.

    Args:
        model (PreTrainedModel): the model.
        tokenizer (PreTrainedTokenizerBase): its tokenizer.
        embeddings (Tensor): of the words, (1, n, D).
        baseline (Tensor, float or str, optional): ``"mean"``; the text of a token, such as
            ``" "`` or ``tokenizer.pad_token``; a number; or an embedding (D,), or one for each
            word, (n, D). None is the mean.

    Returns:
        Tensor: of the shape of ``embeddings``.

    Raises:
        ValueError: for a text that is not one token, and a tensor that does not fit.
    """
    weight: Any = model.get_input_embeddings().weight
    if baseline is None or (isinstance(baseline, str) and baseline == "mean"):
        found = weight.mean(0, dtype=torch.promote_types(weight.dtype, torch.float32))
    elif isinstance(baseline, str):
        ids = tokenizer(baseline, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(
                f"the text {baseline!r} for removed words is {len(ids)} tokens of this tokenizer, "
                "expected the text of one token, such as ' ' or that for padding, or 'mean'"
            )
        if ids == [tokenizer.unk_token_id] and baseline != tokenizer.unk_token:
            raise ValueError(
                f"the text {baseline!r} for removed words is not known to this tokenizer, which "
                f"writes {tokenizer.unk_token!r} for it"
            )
        found = embed(model, torch.tensor(ids))
    elif is_integer(baseline) and baseline != 0:
        raise ValueError(
            f"got the integer {baseline} for removed words; if it is a token, give its text, such "
            "as tokenizer.decode(token), and if it is the value of all dimensions, a float"
        )
    else:
        found = torch.as_tensor(baseline)
    try:
        found = found.to(embeddings).expand_as(embeddings)
    except RuntimeError as error:
        raise ValueError(
            f"got embeddings {tuple(found.shape)} for removed words, expected a number, (D,) or "
            f"(n, D) for words of shape (1, n, D) = {tuple(embeddings.shape)}"
        ) from error
    if not found.isfinite().all():
        raise ValueError("the embeddings for removed words have to be finite")
    return found
