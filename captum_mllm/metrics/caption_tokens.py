"""The tokens of all captions in one table, and their maps in stacks of one shape."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from captum_mllm.metrics.explained_caption import ExplainedCaption, Kind

NO_CATEGORY = -1

# Largest stack of label images, in pixels.
_PIXELS = 1 << 22


class CaptionTokens(NamedTuple):
    r"""
    The tokens of all words of one kind, of all captions.

    Args:
        caption (Tensor): Index of each token's caption, of shape (N,).
        word (Tensor): Index of its word among those of the kind.
        run (Tensor): Index of its run: neighbouring words with the same category.
        place (Tensor): Index of the token in its caption.
        category (Tensor): The word's category, or :data:`NO_CATEGORY`.
    """

    caption: Tensor
    word: Tensor
    run: Tensor
    place: Tensor
    category: Tensor

    @classmethod
    def of(cls, captions: Sequence[ExplainedCaption], kind: Kind) -> CaptionTokens:
        """The tokens of all words of a kind."""
        rows: list[tuple[int, int, int, int, int]] = []
        n_words = n_runs = 0
        for number, caption in enumerate(captions):
            before = None
            for word in caption.words:
                if word.kind == kind:
                    goes_on = word.category is not None and word.category == before
                    n_runs += not goes_on
                    category = NO_CATEGORY if word.category is None else word.category
                    rows += [(number, n_words, n_runs - 1, i, category) for i in word.tokens]
                    n_words += 1
                before = word.category
        return cls(*torch.tensor(rows, dtype=torch.int64).reshape(-1, 5).unbind(1))

    def where(self, chosen: Tensor) -> CaptionTokens:
        """The chosen ones, by a mask of shape (N,)."""
        return CaptionTokens(*(column[chosen] for column in self))

    def stacks(
        self, captions: Sequence[ExplainedCaption]
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Chunks of tokens (n,) whose captions have one shape, with their maps (n, h, w) and
        label images (n, H, W)."""
        groups: dict[object, list[int]] = defaultdict(list)
        for number, caption in enumerate(captions):
            groups[caption.maps.shape[1:], caption.labels.shape].append(number)
        for group in groups.values():
            first_map = torch.full((len(captions),), -1)
            lengths = torch.tensor([0, *(len(captions[number].maps) for number in group)])
            first_map[group] = lengths.cumsum(0)[:-1]
            label_image = torch.full((len(captions),), -1)
            label_image[group] = torch.arange(len(group))
            maps = torch.cat([captions[number].maps for number in group])
            labels = torch.stack([captions[number].labels for number in group])
            members = (first_map[self.caption] >= 0).nonzero()[:, 0]
            for chunk in members.split(max(1, _PIXELS // labels[0].numel())):
                owner = self.caption[chunk]
                rows = (first_map[owner] + self.place[chunk]).to(maps.device)
                yield chunk, maps[rows], labels[label_image[owner].to(maps.device)]
