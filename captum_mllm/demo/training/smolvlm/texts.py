r"""Texts behind images: :class:`Texts` draws them, :func:`pack` lays them in rows behind an image.

The texts of a scene follow its image in one sequence. Each starts at the position after the image
and sees the image and itself alone, so that each gets what it would get by itself, and the image,
which is most of the work, is paid for once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from captum_mllm.datasets import CAPTION_STYLES, Scene, caption
from captum_mllm.datasets.descriptions import describe
from captum_mllm.datasets.phrasing import natural
from captum_mllm.datasets.scene_questions import QUESTION_TOPICS, ask
from captum_mllm.demo import DEMO_PROMPTS

IGNORED = -100

# Odds of the topics of questions.
_TOPICS = {
    "color": 0.24,
    "shape": 0.18,
    "presence": 0.3,
    "count": 0.06,
    "texture": 0.1,
    "size": 0.06,
    "background": 0.06,
}
assert set(_TOPICS) == set(QUESTION_TOPICS)


class Batch(NamedTuple):
    r"""Texts of several images, in rows.

    Args:
        ids (Tensor): (B, T) tokens of the texts.
        labels (Tensor): (B, T) the token to be predicted after each, or :data:`IGNORED`.
        offsets (Tensor): (B, T) positions after the image, from 0 in each text.
        owners (Tensor): (B, T) the text of each token, from 1; 0 is padding.
    """

    ids: Tensor
    labels: Tensor
    offsets: Tensor
    owners: Tensor


class Texts:
    r"""Turns questions and answers into tokens.

    Args:
        tokenizer (Any): The tokenizer, with the image's placeholder.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.before = self.encode("<|im_start|>user\n")

    def encode(self, text: str) -> list[int]:
        r"""The tokens of a text."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def exchange(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        r"""The tokens after the image up to the answer, and those of the answer."""
        asked = self.encode(f"\n{question}<|im_end|>\n<|im_start|>assistant\n")
        return asked, [*self.encode(answer), self.end]

    def of_scene(
        self, scene: Scene, generator: np.random.Generator, budget: int
    ) -> list[tuple[list[int], list[int]]]:
        r"""Draw captions, a description and questions, as many as fit into ``budget`` tokens."""
        styles = list(generator.permutation(CAPTION_STYLES))
        drawn = [(DEMO_PROMPTS[style], str(natural(caption(scene, style)))) for style in styles]
        told = describe(scene, generator)
        drawn.insert(int(generator.integers(3)), (told.question, str(told.answer)))
        texts, used = [], 0
        for question, answer in drawn:
            text = self.exchange(question, answer)
            if used + len(text[0]) + len(text[1]) <= budget - 20:
                texts.append(text)
                used += len(text[0]) + len(text[1])
        while True:
            topic = str(generator.choice(list(_TOPICS), p=list(_TOPICS.values())))
            found = ask(scene, generator, topic)
            if found is None:
                continue
            text = self.exchange(found.question, str(found.answer))
            used += len(text[0]) + len(text[1])
            if used > budget:
                return texts
            texts.append(text)


def pack(texts: list[list[tuple[list[int], list[int]]]], pad: int, width: int = 0) -> Batch:
    r"""Lay texts in rows, one row for each image, of ``width`` tokens at least."""
    longest = max(sum(len(asked) + len(said) for asked, said in row) for row in texts)
    width = max(width, longest)
    ids = torch.full((len(texts), width), pad)
    labels = torch.full((len(texts), width), IGNORED)
    offsets = torch.zeros(len(texts), width, dtype=torch.int64)
    owners = torch.zeros(len(texts), width, dtype=torch.int64)
    for number, row in enumerate(texts):
        start = 0
        for owner, (asked, said) in enumerate(row, start=1):
            stop = start + len(asked) + len(said)
            ids[number, start:stop] = torch.tensor([*asked, *said])
            labels[number, start + len(asked) - 1 : stop - 1] = torch.tensor(said)
            offsets[number, start:stop] = torch.arange(stop - start)
            owners[number, start:stop] = owner
            start = stop
    return Batch(ids, labels, offsets, owners)


def sequence(model: Any, texts: Texts, features: Tensor, cells: Tensor, batch: Batch) -> Tensor:
    r"""The last states of the image tokens and the texts' tokens.

    Args:
        model (transformers.LlavaForConditionalGeneration): The model.
        texts (Texts): The texts' tokens.
        features (Tensor): (B, n, D) features of the image tokens that are kept.
        cells (Tensor): (B, n) which of the image tokens these are; they keep their positions.
        batch (Batch): The texts.

    Returns:
        Tensor: (B, n + T, D).
    """
    size, kept, _ = features.shape
    first = len(texts.before)
    rows = model.get_input_embeddings()
    start = rows(torch.tensor([texts.before])).expand(size, -1, -1)
    x = torch.cat([start, features, rows(batch.ids)], dim=1)
    after = first + model.config.image_seq_length
    positions = torch.cat(
        [torch.arange(first).expand(size, -1), first + cells, after + batch.offsets], dim=1
    )
    owners = torch.cat([torch.zeros(size, first + kept, dtype=torch.int64), batch.owners], dim=1)
    ours, theirs = owners.unsqueeze(2), owners.unsqueeze(1)
    seen = (theirs == 0) | (ours == theirs)
    seen &= torch.ones(owners.shape[1], owners.shape[1], dtype=torch.bool).tril()
    # Padding, which owner 0 shares with the image, comes last: no token before it sees it.
    mask = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf).unsqueeze(1)
    states: Tensor = model.model.language_model(
        inputs_embeds=x, position_ids=positions, attention_mask=mask, use_cache=False
    ).last_hidden_state
    return states[:, first:]
