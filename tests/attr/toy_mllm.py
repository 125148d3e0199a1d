"""A multimodal model whose hidden states are set by hand, so that the right maps are known."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from captum_mllm.models.layout import Layout, Piece, size_of
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.passes import PassMemory
from captum_mllm.models.query import Query
from captum_mllm.models.states import States
from captum_mllm.models.vocabulary import Vocabulary


class StatesAtHand(PassMemory):
    """States are set by hand, so no passes have to be made for them."""

    def knows(self, *args: Any, layer: int | None = None) -> bool:
        return True


class ToyMLLM(MLLM):
    """An MLLM without a network: image states come from a function of the image.

    Args:
        head (Tensor): output embedding (V, d).
        see (Callable): an image (1, 3, H, W) to image states (h, w, d).
        words (Tensor): states of the words of the prompt (P, d).
        predicting (Tensor): states of the rows that predict all P + T tokens (P + T, d).
        ids (list[int]): those tokens.
    """

    def __init__(
        self,
        head: Tensor,
        see: Callable[[Tensor], Tensor],
        words: Tensor,
        predicting: Tensor,
        ids: list[int],
    ) -> None:
        nn.Module.__init__(self)
        self.head = nn.Linear(head.shape[1], head.shape[0], bias=False).to(head.dtype)
        self.head.weight.data.copy_(head)
        self.see = see
        self.words, self.predicting, self.ids = words, predicting, ids
        self.backbone = StatesAtHand(self.parameters)
        self.passes = 0

    @property
    def geometry(self) -> Any:
        return SimpleNamespace(crosses=False)

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.head)

    def query(self) -> Query:
        answer = tuple(self.ids[len(self.words) :])
        return Query("", answer, (), ((8, 8),), (None,))

    def layouts(self, *args: Any) -> tuple[Layout, ...]:
        rows, columns = self.see(args[0]).shape[:2]
        height, width = size_of(args[0])
        return (Layout((height, width), (Piece(rows, columns, (0, 0, width, height)),)),)

    def explained_ids(self, *args: Any) -> Tensor:
        ids = torch.tensor(self.ids)
        return ids if args[-1].with_prompt else ids[len(self.words) :]

    def states(self, *args: Any, layer: int | None = None) -> States:
        self.passes += 1
        images = args[0]
        count = len(images)
        return States(
            image=(torch.stack([self.see(each).flatten(0, 1) for each in images.split(1)]),),
            layouts=self.layouts(images),
            text=self.words.expand(count, -1, -1),
            predicting=self.predicting.expand(count, -1, -1),
            ids=torch.tensor(self.ids),
        )
