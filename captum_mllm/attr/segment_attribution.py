"""SegmentAttribution: perturbs segments of images and words together, for all tokens at once."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import (
    Attribution,
    FeatureAblation,
    FeaturePermutation,
    Lime,
    LimeBase,
    Occlusion,
    PerturbationAttribution,
    ShapleyValueSampling,
)
from torch import Tensor

from captum_mllm._captum import format_output
from captum_mllm.attr.arguments import Target
from captum_mllm.attr.base import TokenAttribution, TokenMaps
from captum_mllm.attr.features import image_baselines, split_baselines, to_tokens
from captum_mllm.attr.segments import Segments
from captum_mllm.metrics.image_baselines import image_baseline
from captum_mllm.models.layout import Size, size_of
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query
from captum_mllm.models.word_embeddings import word_baseline


class Coalitions:
    r"""
    The logits of all explained tokens, of the segments and words that are present.

    Methods that perturb need one pass for each coalition, not one for each token: what was
    computed is kept, so that they can go through the same coalitions for each token.

    Args:
        mllm (MLLM): the model.
        images (Sequence[Tensor]): the images, (1, 3, H, W) in [0, 1].
        query (Query): the question and the answer.
        segments (Sequence[Segments]): of each image, at its size.
        absent (Sequence[Tensor]): pixels of each image shown where a segment is absent,
            (1, 3, H, W).
        words (tuple[Tensor, Tensor, Tensor], optional): the embeddings of the words (1, n, D),
            those that replace absent ones (1, n, D), and the index of the word of each (n,).
            Default: None, the words stay as they are.
    """

    def __init__(
        self,
        mllm: MLLM,
        images: Sequence[Tensor],
        query: Query,
        segments: Sequence[Segments],
        absent: Sequence[Tensor],
        words: tuple[Tensor, Tensor, Tensor] | None = None,
    ) -> None:
        self.mllm = mllm
        self.images = images
        self.query = query
        self.segments = segments
        self.absent = absent
        self.words = words
        self._known: dict[bytes, Tensor] = {}

    @property
    def everything(self) -> tuple[Tensor, ...]:
        """What is present in the input as it is: ones for the segments, and for the words."""
        present = [torch.ones(1, *segments.shape) for segments in self.segments]
        if self.words is not None:
            present.append(torch.ones(1, int(self.words[2].max()) + 1))
        return tuple(present)

    def __call__(self, *present: Tensor) -> Tensor:
        r"""
        Args:
            *present (Tensor): for each image, 1 for each segment that is there, else 0,
                (B, \*segments.shape); then for each word, (B, W), if words are features.

        Returns:
            Tensor: logits (B, T), on the CPU, float32 at least.
        """
        parts = [part > 0.5 for part in present]
        rows = torch.cat([part.flatten(1) for part in parts], dim=1).cpu().numpy()
        # A bit for each feature: there may be many coalitions.
        keys = [row.tobytes() for row in np.packbits(rows, axis=1)]
        # One pass for each coalition that is not known yet.
        new = {key: row for row, key in enumerate(keys) if key not in self._known}
        if new:
            found = self._run([part[list(new.values())] for part in parts])
            self._known.update(zip(new, found))
        return torch.stack([self._known[key] for key in keys])

    @torch.no_grad()
    def _run(self, present: list[Tensor]) -> Tensor:
        inputs = [
            torch.where(segments.seen(part.to(image.device)), image, absent)
            for image, segments, absent, part in zip(
                self.images, self.segments, self.absent, present
            )
        ]
        if self.words is not None:
            own, absent, word_of_token = self.words
            kept = present[-1].to(own.device)[:, word_of_token, None]
            inputs.append(torch.where(kept, own, absent))
        return self.mllm.token_logits(*inputs, self.query).cpu()


class SegmentAttribution(TokenAttribution):
    r"""
    Asks a method that perturbs which segments of the images, and which words, each token needs.

    The method perturbs whether a segment or a word is present, so each is one feature, and all
    tokens of the answer are explained from the same passes: at once by methods that take
    functions of several values, else in turn, with the same random draws and without passes of
    their own.

    Args:
        attribution_method (Attribution): a perturbation method of Captum on an
            :class:`~captum_mllm.MLLM`.
        segments (Sequence[Segments]): of each image.
        words (str, optional): as in :class:`~captum_mllm.attr.features.Features`. Default: None

    Raises:
        TypeError: for a method that does not perturb features.
    """

    def __init__(
        self,
        attribution_method: Attribution,
        segments: Sequence[Segments],
        words: str | None = None,
    ) -> None:
        _check_method(attribution_method)
        super().__init__(attribution_method.forward_func)
        self.attribution_method = attribution_method
        self.segments = segments
        self.words = words

    @property
    def multiplies_by_inputs(self) -> bool:
        return bool(self.attribution_method.multiplies_by_inputs)

    def explain_tokens(
        self,
        images: tuple[Tensor, ...],
        query: Query,
        target: Target | None = None,
        baselines: Any = None,
        sliding_window_shapes: Any = None,
        strides: Any = None,
        **kwargs: Any,
    ) -> TokenMaps:
        r"""
        Maps, the same for all pixels of a segment; where words are features too, also a value for
        each of their tokens, shared by the tokens of a word before the explained one.

        Args:
            images (tuple[Tensor, ...]): the images, (1, 3, H, W) in [0, 1], at any scale.
            query (Query): the question and the answer.
            target (tuple[int, int], optional): not taken: all tokens share their passes.
            baselines (Any): what replaces absent segments and words, see
                :class:`~captum_mllm.MLLMAttribution`. Default: None
            sliding_window_shapes (tuple, optional): of Occlusion, in segments, and in words; one
                shape is for each image. Default: None, one at a time
            strides (tuple or int, optional): of Occlusion. Default: None, 1
            **kwargs (Any): options of the method, such as ``perturbations_per_eval``,
                ``n_samples`` and ``show_progress``.

        Raises:
            ValueError: if the segments or the baselines do not fit the images, for windows of a
                method that has none, and for baselines that are not a pair.
        """
        assert target is None
        image_baseline, word_absent = split_baselines(baselines)
        windows = {"sliding_window_shapes": sliding_window_shapes, "strides": strides}
        windows = {name: value for name, value in windows.items() if value is not None}
        if windows and not isinstance(self.attribution_method, Occlusion):
            raise ValueError(
                f"{self.attribution_method.get_name()} has no windows; leave out "
                f"{' and '.join(windows)}, or take Occlusion"
            )
        segments = [
            each.resized(size_of(image)) for each, image in zip(self.segments, images, strict=True)
        ]
        words = self._words(query, word_absent)
        natives = [query.native[index] for index in query.explained]
        absent = list(map(_absent, images, natives, image_baselines(image_baseline, len(images))))
        coalitions = Coalitions(self.forward_func, images, query, segments, absent, words)
        found = self._values(coalitions, windows, **kwargs)
        maps = tuple(
            each.paint(values.to(image.device))
            for each, values, image in zip(segments, found, images)
        )
        if self.words is None:
            return TokenMaps(maps, unit="logits")
        if words is None:
            return TokenMaps(maps, maps[0].new_zeros(len(maps[0]), 0), unit="logits")
        word_of_token = words[2]
        # The last word of the answer is not a feature.
        n_tokens = len(word_of_token) + (1 if self.words == "earlier" else len(query.answer_ids))
        text = to_tokens(found[-1].to(word_of_token.device), word_of_token, n_tokens)
        return TokenMaps(maps, text, unit="logits")

    def _values(
        self, coalitions: Coalitions, windows: dict[str, Any], **kwargs: Any
    ) -> list[Tensor]:
        """The value of each segment and of each word for each token, (T, ...)."""
        method = copy(self.attribution_method)
        method.forward_func = coalitions
        present = coalitions.everything
        kwargs |= self._window_arguments(present, windows)
        inputs = format_output(len(present) > 1, present)
        if isinstance(method, (FeatureAblation, ShapleyValueSampling)):
            found = method.attribute(inputs, **kwargs)
            found = found if isinstance(found, tuple) else (found,)
            return [part.reshape(-1, *one.shape[1:]) for part, one in zip(found, present)]
        rows = []
        state = torch.get_rng_state()
        for token in range(coalitions(*present).shape[1]):
            # The same draws for each token, so that the coalitions of the first serve them all.
            torch.set_rng_state(state)
            found = method.attribute(inputs, target=token, **kwargs)
            rows.append(found if isinstance(found, tuple) else (found,))
            kwargs.pop("show_progress", None)
        return [torch.cat(parts) for parts in zip(*rows)]

    def _window_arguments(
        self, present: tuple[Tensor, ...], windows: dict[str, Any]
    ) -> dict[str, Any]:
        """Windows of Occlusion for the segments and for the words, of one where none is given."""
        if not isinstance(self.attribution_method, Occlusion):
            return {}
        single = tuple((1,) * (part.ndim - 1) for part in present)
        found = {}
        for name in ("sliding_window_shapes", "strides"):
            given = windows.get(name, ())
            if not isinstance(given, tuple) or not all(isinstance(each, tuple) for each in given):
                given = (given,) * len(self.segments)
            given = (*given, *single[len(given) :])
            found[name] = given if len(present) > 1 else given[0]
        return found

    def _words(self, query: Query, baseline: Any) -> tuple[Tensor, Tensor, Tensor] | None:
        """Embeddings of the words, their replacements, and the word of each token."""
        if self.words is None:
            return None
        mllm: MLLM = self.forward_func
        answer = self.words == "earlier"
        own = mllm.word_embeddings(query, answer)
        if not own.shape[1]:
            return None
        absent = word_baseline(mllm.model, mllm.tokenizer, own, baseline)
        return own, absent, mllm.word_mask(query, answer)[0, :, 0]


def _absent(image: Tensor, native: Size, baseline: Any) -> Tensor:
    """What replaces absent segments of an image."""
    at_native = isinstance(baseline, Tensor) and baseline.ndim >= 2 and size_of(baseline) == native
    if at_native and native != size_of(image):
        whole = baseline.expand(1, image.shape[1], *native)
        baseline = F.interpolate(whole, size_of(image), mode="bilinear", antialias=True)
    return image_baseline(image, baseline)


def _check_method(method: Attribution) -> None:
    known = isinstance(method, PerturbationAttribution)
    known = known and (isinstance(method, Lime) or not isinstance(method, LimeBase))
    if not known or isinstance(method, FeaturePermutation):
        raise TypeError(
            f"{method.get_name()} does not remove segments; give `segments` to FeatureAblation, "
            "Occlusion, ShapleyValueSampling, ShapleyValues, Lime or KernelShap, or leave them out"
        )
