"""A caption, its words and the maps of its tokens, beside the truth."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from captum_mllm.metrics.aligned_maps import check_maps
from captum_mllm.metrics.localization import grey_levels

Kind = Literal["noun", "function", "other"]


@dataclass(frozen=True)
class Word:
    r"""
    A word of a caption.

    Args:
        kind (str): ``"noun"``; ``"function"`` for conjunctions, determiners, pronouns, modal and
            other words that no part of an image shows; ``"other"`` for all else, which is not
            scored (adjectives, prepositions, numbers, verbs).
        tokens (tuple[int, ...]): Indices of its tokens in the caption.
        category (int, optional): The noun's label in the label image, from 0 upwards; None for a
            noun that the label image has no category for.
            Default: None

    Raises:
        ValueError: If the kind is not one of these, there are no tokens or a negative one, the
            category is negative, or a word that is not a noun has one.
    """

    kind: Kind
    tokens: tuple[int, ...]
    category: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {get_args(Kind)}, got {self.kind!r}")
        if not self.tokens or min(self.tokens) < 0:
            raise ValueError(
                f"tokens must be one or more indices from 0 upwards, got {self.tokens}"
            )
        if self.category is not None and self.kind != "noun":
            raise ValueError(
                f"only nouns have a category, got {self.category} for a word of kind {self.kind!r}"
            )
        if self.category is not None and self.category < 0:
            raise ValueError(f"category must be a label from 0 upwards, got {self.category}")


@dataclass(frozen=True, eq=False)
class ExplainedCaption:
    r"""
    An image's caption as :func:`~captum_mllm.metrics.token_iou` scores it.

    Args:
        maps (Tensor): The map of each token, of shape (T, h, w): uint8, or of a floating-point
            dtype in [0, 1], which becomes 256 grey levels. For values of another range see
            :func:`~captum_mllm.metrics.grey_levels`.
        words (tuple[Word, ...]): The words in their order.
        labels (Tensor): The category of each pixel, of shape (H, W) and an integer dtype.

    Raises:
        TypeError: If a tensor has a wrong dtype.
        ValueError: If a tensor has a wrong shape or values out of range, or a word has a token
            without a map.

    Examples::

        >>> import torch
        >>> words = (Word("function", (0,)), Word("noun", (1, 2), category=7))
        >>> caption = ExplainedCaption(torch.rand(3, 4, 4), words, torch.full((8, 8), 7))
        >>> caption.maps.dtype
        torch.uint8
    """

    maps: Tensor
    words: tuple[Word, ...]
    labels: Tensor

    def __post_init__(self) -> None:
        maps, labels = check_maps(self.maps), self.labels
        if maps.dim() != 3:
            raise ValueError(f"maps must have shape (T, h, w), got {tuple(maps.shape)}")
        if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.is_complex():
            given = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
            raise TypeError(f"labels must be a Tensor of integers, got {given}")
        if labels.dim() != 2 or not labels.numel():
            raise ValueError(
                f"labels must have shape (H, W) with at least one pixel, got {tuple(labels.shape)}"
            )
        if labels.device != maps.device:
            raise ValueError(
                f"maps and labels must be on one device, got {maps.device} and {labels.device}"
            )
        for word in self.words:
            if max(word.tokens) >= len(maps):
                raise ValueError(f"{word} has a token beyond the {len(maps)} maps of the caption")
        # A frozen value: its fields are settled here once.
        object.__setattr__(self, "maps", grey_levels(maps))
        object.__setattr__(self, "labels", labels.to(torch.int64))
        object.__setattr__(self, "words", tuple(self.words))


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
