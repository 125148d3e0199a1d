"""Attributions that only the evaluation uses.

``SharedMaps`` computes maps once for all methods around a base, ``MapFunction`` combines maps,
``LensProbability`` reads the logit lens otherwise, ``PictureContrast`` subtracts an empty image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm.attr.token_maps import token_maps
from captum_mllm.metrics.picture_baselines import PictureBaseline, picture_baseline
from captum_mllm.models import MLLM, Query
from captum_mllm.models.layout import Size, size_of


class SharedMaps(Attribution):
    r"""
    A method whose maps of a picture are computed once at each of its sizes.

    It is for one picture, whose size tells its scale.

    Args:
        method (Attribution): A method on an :class:`~captum_mllm.MLLM`.
        pictures (dict): The picture at each size; filled with those that come.
    """

    explains_every_token = True

    def __init__(self, method: Attribution, pictures: dict[Size, Tensor]) -> None:
        super().__init__(method.forward_func)
        self.method = method
        self._pictures = pictures
        self._maps: dict[Size, Tensor] = {}

    @property
    def multiplies_by_inputs(self) -> bool:
        return bool(self.method.multiplies_by_inputs)

    @property
    def in_logit_units(self) -> bool:
        """Whether the maps compare with the logits of text."""
        return bool(getattr(self.method, "in_logit_units", False))

    def attribute(self, inputs: Tensor, additional_forward_args: tuple[Query]) -> Tensor:
        r"""
        Args:
            inputs (Tensor): The picture at any scale, (1, 3, H, W).
            additional_forward_args (tuple[Query]): The query from ``MLLM.prepare``.

        Returns:
            Tensor: A map for each explained token, (T, 1, h, w).
        """
        (query,) = additional_forward_args
        size = size_of(inputs)
        # The same tensor for all methods, by which the model knows a pass again.
        picture = self._pictures.setdefault(size, inputs)
        if size not in self._maps:
            self._maps[size] = token_maps(self.method, picture, query.including_prompt())
        maps = self._maps[size]
        return maps if query.with_prompt else maps[len(maps) - len(query.answer_ids) :]

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for SharedMaps")


class MapFunction(Attribution):
    r"""
    A method whose maps are a function of the maps that other methods find for the same picture.

    Args:
        function (Callable): From the maps of each method, (T, 1, h, w), to maps of that shape.
        *methods (Attribution): One or more methods on one :class:`~captum_mllm.MLLM`, whose maps
            have one size.
    """

    explains_every_token = True

    def __init__(self, function: Callable[..., Tensor], *methods: Attribution) -> None:
        super().__init__(methods[0].forward_func)
        self.function = function
        self.methods = methods

    @property
    def multiplies_by_inputs(self) -> bool:
        return False

    def attribute(
        self, inputs: Tensor, additional_forward_args: tuple[Query], **kwargs: Any
    ) -> Tensor:
        r"""
        Args:
            inputs (Tensor): The picture, (1, 3, H, W) in [0, 1].
            additional_forward_args (tuple[Query]): The query from ``MLLM.prepare``.
            **kwargs (Any): Passed on to each of the methods.

        Returns:
            Tensor: A map for each explained token, (T, 1, h, w).
        """
        (query,) = additional_forward_args
        return self.function(
            *(token_maps(method, inputs, query, **kwargs) for method in self.methods)
        )

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for MapFunction")


def product(first: Tensor, *others: Tensor) -> Tensor:
    r"""The product of the positive parts of maps."""
    found = first.relu()
    for other in others:
        found = found * other.relu()
    return found


def geometric_mean(*maps: Tensor) -> Tensor:
    r"""The geometric mean of the positive parts of maps."""
    return product(*maps) ** (1 / len(maps))


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


class PictureContrast(Attribution):
    r"""
    A method's map of a picture less its map of the picture's baseline, where that is positive.

    What the model says of a word even of an empty picture, because of the words before it or of
    the place in the grid, is taken out.

    Args:
        method (Attribution): A method on an :class:`~captum_mllm.MLLM`.
        baselines (Tensor, float or str): As for :func:`~captum_mllm.metrics.insertion_auc`.
            Default: "mean"
    """

    explains_every_token = True

    def __init__(self, method: Attribution, baselines: PictureBaseline = "mean") -> None:
        super().__init__(method.forward_func)
        self.method = method
        self.baselines = baselines

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
        empty = picture_baseline(inputs, self.baselines)
        found = token_maps(self.method, inputs, query)
        return (found - token_maps(self.method, empty, query)).relu()

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for PictureContrast")
