"""``Reasons``: what each token of an answer rests on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from captum_mllm._options import is_integer

#: How what is gained by groups together is divided between them.
Division = Literal["words first", "shapley"]

PRIOR = "prior"
#: The groups of words. All others are images, or the frames of a video by their times.
TEXTS = ("question", "answer")


@dataclass(frozen=True, eq=False)
class Reasons:
    r"""
    What each explained token rests on, in nats.

    The logarithm of how much more probable a token is than a random one of the V tokens of the
    vocabulary, :math:`\log p + \log V`, is the sum of the parts of its groups: the image (each
    image, where there are several), the question, the answer so far, and the rest, which is there
    without any of them (the prior, that of the template included). A part below zero speaks
    against the token.

    They say on which inputs the probability depends, not whether the token is right.

    Args:
        groups (tuple[str, ...]): the groups, such as ``("image", "question", "answer")``.
        values (Tensor): the part of each group for each token, and last that of the prior,
            of shape (T, G + 1).
        kind (str): ``"words first"`` or ``"shapley"`` for exact parts, see :meth:`divided`; or how
            they were estimated.
        coalitions (Tensor, optional): :math:`\log p + \log V` of each token where some groups alone
            are there, (2 ** G, T); group g is there in row r if bit g of r is set. Default: None,
            the parts are estimated.
        method (str): how they were found, to be read. Default: ""

    Raises:
        ValueError: if the parts do not fit each other, or a number is not finite.

    Examples::
        >>> import torch
        >>> from captum_mllm.explain import Reasons
        >>> coalitions = torch.tensor([[0.0], [1.0], [2.0], [6.0]])
        >>> reasons = Reasons.of_coalitions(("image", "answer"), coalitions, "shapley")
        >>> reasons.parts([0])
        {'image': 2.5, 'answer': 3.5, 'prior': 0.0}
        >>> reasons.divided("words first").parts([0])
        {'image': 4.0, 'answer': 2.0, 'prior': 0.0}
    """

    groups: tuple[str, ...]
    values: Tensor
    kind: str
    coalitions: Tensor | None = None
    method: str = ""

    def __post_init__(self) -> None:
        count = len(self.groups)
        fits = self.values.ndim == 2 and self.values.shape[1] == count + 1
        if fits and self.coalitions is not None:
            fits = self.coalitions.shape == (2**count, len(self.values))
        if not fits:
            raise ValueError(
                f"the values of reasons have shape {tuple(self.values.shape)}, expected (T, "
                f"{count + 1}) for {count} groups and the prior, and (2 ** {count}, T) coalitions"
            )
        for part in (self.values, self.coalitions):
            if part is not None and not part.isfinite().all():
                raise ValueError("the values of reasons must be finite, got NaN or infinity")

    @classmethod
    def of_coalitions(
        cls,
        groups: Sequence[str],
        coalitions: Tensor,
        division: Division = "words first",
        method: str = "",
    ) -> Reasons:
        r"""The parts of groups, from the values of all coalitions; see :meth:`divided`."""
        values = _divide(tuple(groups), coalitions, division)
        return cls(tuple(groups), values, division, coalitions, method)

    def to_parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and what JSON can hold, for the file of a result."""
        tensors = {"reasons.values": self.values}
        if self.coalitions is not None:
            tensors["reasons.coalitions"] = self.coalitions
        return tensors, {"groups": list(self.groups), "kind": self.kind, "method": self.method}

    @classmethod
    def from_parts(
        cls, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None
    ) -> Reasons | None:
        """What :meth:`to_parts` gave; None where there were no reasons."""
        if facts is None:
            return None
        return cls(
            tuple(map(str, facts["groups"])),
            tensors["reasons.values"],
            str(facts["kind"]),
            tensors.get("reasons.coalitions"),
            str(facts["method"]),
        )

    @property
    def exact(self) -> bool:
        """Whether the parts were found by intervention."""
        return self.coalitions is not None

    def divided(self, division: Division) -> Reasons:
        r"""
        The same reasons with what groups gain together divided in another way.

        Args:
            division (str): ``"words first"``: the question counts for what it adds to nothing, the
                answer so far for what it adds to the question, and the images for what they add
                to all words, between several images by Shapley's value. So the part of an image is
                what no words could have told. ``"shapley"``: Shapley's value over all groups, the
                mean over all orders in which they may come.

        Raises:
            ValueError: for another division, or reasons that are estimated.
        """
        if self.coalitions is None:
            raise ValueError(
                "these reasons are an estimate, which cannot be divided in another way; ask for "
                'reasons="exact"'
            )
        return Reasons.of_coalitions(self.groups, self.coalitions, division, self.method)

    def parts(self, tokens: Sequence[int]) -> dict[str, float]:
        r"""
        The part of each group and of the prior, in nats.

        Args:
            tokens (Sequence[int]): the tokens, whose parts are summed, as their probabilities
                multiply to that of a word.

        Raises:
            ValueError: for what is not a sequence of such tokens.
        """
        count = len(self.values)
        if isinstance(tokens, str) or not isinstance(tokens, Sequence):
            raise ValueError(
                f"tokens={tokens!r}, expected a sequence of positions among the {count} explained "
                "tokens, such as a word of result.words"
            )
        if outside := [each for each in tokens if not is_integer(each) or not 0 <= each < count]:
            raise ValueError(
                f"tokens have {outside[0]!r}, expected positions among the {count} explained tokens"
            )
        sums = self.values[list(tokens)].double().sum(0).tolist()
        return dict(zip((*self.groups, PRIOR), sums))

    def shares(self, tokens: Sequence[int]) -> dict[str, float]:
        r"""
        The share of each part in all that speaks for the tokens, in [0, 1].

        Args:
            tokens (Sequence[int]): as for :meth:`parts`.

        Returns:
            dict[str, float]: with a sum of 1. What speaks against the tokens has none; all are 0
            where nothing speaks for them.
        """
        positive = {name: max(part, 0.0) for name, part in self.parts(tokens).items()}
        total = sum(positive.values())
        return {name: part / total if total else 0.0 for name, part in positive.items()}


def _divide(groups: tuple[str, ...], coalitions: Tensor, division: Division) -> Tensor:
    """The part of each group and of the prior, (T, G + 1)."""
    if division == "shapley":
        parts = _shapley(coalitions, list(range(len(groups))), 0)
    elif division == "words first":
        texts = [index for index, name in enumerate(groups) if name in TEXTS]
        parts, there = torch.zeros(len(groups), coalitions.shape[1]), 0
        for index in texts:
            parts[index] = coalitions[there | 1 << index] - coalitions[there]
            there |= 1 << index
        images = [index for index in range(len(groups)) if index not in texts]
        parts += _shapley(coalitions, images, there)
    else:
        raise ValueError(f"division={division!r}, expected one of {get_args(Division)}")
    return torch.cat([parts, coalitions[:1]]).T.contiguous()


def _shapley(coalitions: Tensor, players: Sequence[int], there: int) -> Tensor:
    """Shapley's values (G, T) of some groups where others are there anyway; 0 for all else."""
    groups = len(coalitions).bit_length() - 1
    values = coalitions.new_zeros(groups, coalitions.shape[1], dtype=torch.float64)
    count = len(players)
    for subset in range(2**count):
        members = [player for place, player in enumerate(players) if subset >> place & 1]
        row = there | sum(1 << player for player in members)
        for player in players:
            if player not in members:
                weight = 1 / (count * math.comb(count - 1, len(members)))
                gain = coalitions[row | 1 << player].double() - coalitions[row].double()
                values[player] += weight * gain
    return values.to(coalitions.dtype)
