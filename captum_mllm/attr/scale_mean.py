"""ScaleOptions, which scales MSEA takes and how, and ScaleMean, the weighted mean of their maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from captum_mllm._captum import format_output, format_tensor_into_tuples
from captum_mllm._options import check_choice, check_number, is_integer, number_tuple
from captum_mllm.attr.resizing import resize_seen, scaled_size
from captum_mllm.models.images import check_scaled
from captum_mllm.models.layout import Layout, Size, size_of

#: The scales of MSEA by default.
SCALES = (0.5, 1.0, 1.5, 2.0)
Weights = Literal["uniform", "confidence"] | Sequence[float]
Normalize = Literal["balance", "max", "sum", "none"]
Attributions = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class ScaleOptions:
    r"""
    How an input is seen at several scales, and how the maps are averaged; see :class:`MSEA`.

    Raises:
        ValueError: if an option is out of its range.
    """

    scales: Sequence[float] = SCALES
    weights: Weights = "uniform"
    normalize: Normalize = "balance"
    output_size: Size | Literal["largest"] | None = None
    interpolate_mode: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", _factors(self.scales))
        check_choice("normalize", self.normalize, get_args(Normalize))
        check_choice("interpolate_mode", self.interpolate_mode, ("bilinear", "bicubic"))
        _check_size(self.output_size)
        _ = self.scale_weights

    def updated(self, **given: Any) -> ScaleOptions:
        r"""The same options, except for the given ones that are not None."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    @property
    def scale_weights(self) -> Tensor | None:
        """One weight per scale, float64, the largest 1; None for confidence."""
        weights, number = self.weights, len(self.scales)
        if isinstance(weights, str):
            check_choice("weights", weights, ("uniform", "confidence"))
            return None if weights == "confidence" else torch.ones(number, dtype=torch.float64)
        given = number_tuple("weights", weights)
        if len(given) != number:
            raise ValueError(
                f"weights must hold one number for each of the {number} scales, got {weights!r}"
            )
        values = torch.tensor(given, dtype=torch.float64)
        if not bool(values.isfinite().all()) or bool((values < 0).any()) or not bool(values.any()):
            raise ValueError(
                f"weights must be finite, not negative, and not all 0, got {weights!r}"
            )
        return values / values.max()

    @property
    def order(self) -> list[int]:
        """The order in which the scales run: the largest first where it gives the output size."""
        order = list(range(len(self.scales)))
        if self.output_size == "largest":
            order.sort(key=lambda index: -self.scales[index])
        return order

    def check_inputs(self, inputs: Any) -> tuple[Tensor, ...]:
        r"""The inputs as a tuple of tensors.

        Raises:
            TypeError: for inputs that are not tensors.
            ValueError: if none is spatial, or a scale leaves one without a pixel.
        """
        tensors = inputs if isinstance(inputs, tuple) else (inputs,)
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"inputs must be a Tensor or a tuple of Tensors, got {type(tensor).__name__}"
                )
        if not any(tensor.dim() == 4 for tensor in tensors):
            raise ValueError(
                "no input is spatial: MSEA resizes tensors of shape (N, C, H, W), got "
                f"{', '.join(str(tuple(tensor.shape)) for tensor in tensors) or 'no tensor'}"
            )
        for scale in self.scales:
            for tensor in tensors:
                size = scaled_size(tensor, scale)
                if size is not None and min(size) < 1:
                    height, width = size_of(tensor)
                    raise ValueError(
                        f"scale {scale:g} makes an input of {height} x {width} pixels {size[0]} x "
                        f"{size[1]}: every side needs at least 1 pixel; use a larger scale"
                    )
                if size is not None:
                    check_scaled(size, scale)
        return tensors


@dataclass(frozen=True)
class ScaleAttribution:
    r"""
    What the wrapped method found at one scale.

    Args:
        scale (float): The scale, relative to the input as given.
        inputs (tuple[Tensor, ...]): The inputs at this scale, as the method got them.
        attributions (Tensor or tuple[Tensor, ...]): Attributions as the method gave them at this
            scale, at their own size, detached.
        layouts (tuple[Layout or None, ...]): For each input where its tokens lie; None where the
            forward function does not tell.
        ask_probability (Callable): Gives the ``probability``.
        share (Tensor, optional): The share of this scale in the mean of the first map, or of the
            maps of all images of a multimodal model, one per example, in [0, 1]: its absolute
            values at the output size, times its weight, over those of all scales. None until all
            scales have run. Default: None
    """

    scale: float
    inputs: tuple[Tensor, ...]
    attributions: Attributions
    layouts: tuple[Layout | None, ...]
    ask_probability: Callable[[], Tensor | None]
    share: Tensor | None = None

    @property
    def probability(self) -> Tensor | None:
        r"""
        Probability that the model gives the target at this scale, one per example, in [0, 1]; None
        where it is not defined. Where it was not needed for the weights of the scales, the first
        look at it costs a forward pass.
        """
        return self.ask_probability()


class RunningMean:
    """Weighted mean of maps, each of which counts in the cells that it knows."""

    def __init__(self, like: Tensor) -> None:
        self.mean = torch.zeros_like(like)
        self.total = like.new_zeros(())
        self.known = like.new_zeros(())
        self.count = 0

    def add(self, value: Tensor, weight: Tensor, seen: Tensor | None) -> None:
        """One more map, a weight for all or each of its examples, and the cells it knows."""
        known = value.new_ones(()) if seen is None else seen.to(value)
        weight = _per_example(weight.to(value), value) * known
        self.total = self.total + weight
        self.known = self.known + known
        self.count += 1
        # While no map has weight in a cell, the mean of those that know it; while none does, of
        # all. The first with a better claim replaces what was there.
        claim = torch.where(self.known > 0, known / self.known, 1 / self.count)
        step = torch.where(self.total > 0, weight / self.total, claim)
        mixed = torch.lerp(self.mean, value, step)
        # A map without a say has none even if it is not finite.
        self.mean = torch.where(step == 0, self.mean, torch.where(step == 1, value, mixed))


class ScaleMean:
    """Weighted mean of the scales' maps at the output size, one scale at a time."""

    def __init__(self, inputs: tuple[Tensor, ...], options: ScaleOptions, name: str) -> None:
        self.inputs = inputs
        self.name = name
        # A single map is not changed.
        self.is_mean = len(options.scales) > 1
        self.output_size = options.output_size
        self.mode = options.interpolate_mode
        # A single scale is not changed, not even by rounding.
        single = options.normalize == "balance" and len(options.scales) == 1
        self.normalize: str = "none" if single else options.normalize
        self.weights = options.scale_weights
        self.is_tuple = False
        self.dtypes: list[torch.dtype] = []
        self.sizes: list[Size | None] = []
        self.means: list[RunningMean] = []
        # The mean size of the maps, which balanced ones are given back.
        self.extents: list[RunningMean] = []
        self._contributions: list[Tensor] = []

    def add(self, index: int, found: ScaleAttribution) -> None:
        """What was found at a scale, by the index of the scale."""
        weight = torch.as_tensor(found.probability if self.weights is None else self.weights[index])
        attributions = format_tensor_into_tuples(found.attributions)
        is_first = not self.means
        if is_first:
            self.is_tuple = isinstance(found.attributions, tuple)
            self.dtypes = [attribution.dtype for attribution in attributions]
            self.sizes = self._sizes(attributions)
        elif len(attributions) != len(self.means):
            raise ValueError(
                f"got {len(attributions)} attributions at scale {found.scale:g} and "
                f"{len(self.means)} at another: they cannot be averaged; see combine=False"
            )
        layouts = found.layouts
        if len(layouts) != len(attributions):
            layouts = (*layouts, *layouts[:1] * len(attributions))[: len(attributions)]
        weight = weight.reshape(-1)
        has_say = self.is_mean and bool((weight > 0).any())
        if has_say and not all(bool(each.isfinite().all()) for each in attributions):
            raise ValueError(
                f"{self.name} gives attributions that are NaN or infinite, at scale "
                f"{found.scale:g}, which have no mean with those of other scales; leave that scale "
                "out, or give it the weight 0"
            )
        values, seen = zip(*map(self._at_output_size, attributions, self.sizes, layouts))
        extents = [_extent(*each, self.normalize) for each in zip(values, seen)]
        together = _images(found.layouts, attributions)
        if together:
            common = _joined(torch.stack([extents[index] for index in together]), self.normalize)
            extents = [common if i in together else extent for i, extent in enumerate(extents)]
        said = []
        for index, (value, known, extent) in enumerate(zip(values, seen, extents)):
            if self.normalize != "none":
                value = value / _per_example(torch.where(extent > 0, extent, 1.0), value)
            if is_first:
                self.means.append(RunningMean(value))
                self.extents.append(RunningMean(extent))
            _validate_fit(value, self.means[index].mean, weight, found.scale)
            self.means[index].add(value, weight, known)
            self.extents[index].add(extent, weight, None)
            if index in (together or (0,)):
                said.append(_extent(value, known, "balance"))
        contribution = _joined(torch.stack(said), "balance")
        self._contributions.append(contribution * weight.to(contribution))

    def result(self) -> Attributions:
        """The mean, in the dtypes of the attributions; that of whole numbers is in float."""
        found = []
        for each, extent, dtype in zip(self.means, self.extents, self.dtypes, strict=True):
            mean = each.mean
            if self.normalize == "balance":
                mean = mean * _per_example(extent.mean, mean)
            found.append(mean.to(dtype) if dtype.is_floating_point else mean)
        return format_output(self.is_tuple, tuple(found))

    def shares(self) -> list[Tensor]:
        """The share of each scale in the mean, (N,), in the order in which the scales were added;
        equal shares where all maps are zero."""
        parts = torch.stack(self._contributions)
        total = parts.sum(0)
        even = torch.full_like(parts, 1 / len(parts))
        return list(torch.where(total > 0, parts / torch.where(total > 0, total, 1.0), even))

    def _sizes(self, attributions: tuple[Tensor, ...]) -> list[Size | None]:
        spatial = [size_of(tensor) if tensor.dim() == 4 else None for tensor in self.inputs]
        first = next(size for size in spatial if size is not None)
        if len(attributions) != len(spatial):
            spatial = [first] * len(attributions)
        sizes: list[Size | None] = []
        for attribution, own in zip(attributions, spatial, strict=True):
            if attribution.dim() != 4:
                sizes.append(None)
            elif self.output_size is None:
                sizes.append(own or first)
            elif isinstance(self.output_size, str):
                sizes.append(size_of(attribution))
            else:
                sizes.append(self.output_size)
        return sizes

    def _at_output_size(
        self, attribution: Tensor, size: Size | None, layout: Layout | None
    ) -> tuple[Tensor, Tensor | None]:
        """The map, and the cells that the model sees if not all of them."""
        value = attribution.to(torch.promote_types(attribution.dtype, torch.float32))
        seen = None
        if size is not None and attribution.dim() == 4:
            value, seen = resize_seen(value, layout, size, self.mode)
        return value, seen


def _extent(value: Tensor, seen: Tensor | None, normalize: str) -> Tensor:
    """How large the map of each example is, (N,): its largest absolute value, or their sum, or
    their mean over the cells that the model sees."""
    magnitude = value.abs().reshape(len(value) if value.dim() else 1, -1)
    if not magnitude.shape[1]:
        return magnitude.new_zeros(len(magnitude))
    if normalize == "max":
        return magnitude.amax(dim=1)
    if normalize == "sum":
        return magnitude.sum(dim=1)
    return magnitude.mean(dim=1) / (1.0 if seen is None else seen.float().mean().clamp(min=1e-9))


def _images(layouts: Sequence[Layout | None], attributions: Sequence[Tensor]) -> tuple[int, ...]:
    """Which attributions are maps of several images of one prompt: they are brought into the same
    units together, so that they still compare with each other."""
    found = [
        index
        for index, (layout, attribution) in enumerate(zip(layouts, attributions))
        if layout is not None and attribution.dim() == 4
    ]
    return tuple(found) if len(found) > 1 and len(layouts) <= len(attributions) else ()


def _joined(extents: Tensor, normalize: str) -> Tensor:
    """How large the maps of several images are together, (N,), from each of them, (I, N)."""
    if normalize == "max":
        return extents.amax(0)
    return extents.sum(0) if normalize == "sum" else extents.mean(0)


def _per_example(values: Tensor, like: Tensor) -> Tensor:
    """Values (N,), shaped to broadcast along dimension 0."""
    return values.reshape(-1, *[1] * (like.dim() - 1)) if like.dim() else values.reshape(())


def _validate_fit(value: Tensor, mean: Tensor, weight: Tensor, scale: float) -> None:
    if value.shape != mean.shape:
        raise ValueError(
            f"attributions have shape {tuple(value.shape)} at scale {scale:g} and "
            f"{tuple(mean.shape)} at another: only maps of 4 dimensions are resized and averaged; "
            "reshape tokens to a grid (N, C, h, w), or see combine=False"
        )
    if weight.numel() not in (1, len(value) if value.dim() else 1):
        raise ValueError(
            f"the target has {weight.numel()} probabilities, but attributions of shape "
            f"{tuple(value.shape)} do not have as many rows; give one weight per scale instead"
        )


def check_probability(probability: Tensor | None, scale: float) -> None:
    r"""Refuse a probability of the target that cannot weigh a scale."""
    if probability is None:
        raise ValueError(
            "weights='confidence' needs the probability of the target: pass a target that selects "
            "one logit per example from an output (N, ..., classes), or give the forward function "
            "a method target_probability"
        )
    if not bool((probability >= 0).all()):
        raise ValueError(
            f"the probability of the target at scale {scale:g} is below 0 or not a number: "
            f"{probability.tolist()}"
        )


def _factors(scales: Any) -> tuple[float, ...]:
    factors = number_tuple("scales", scales)
    if not factors:
        raise ValueError("scales must hold at least one scale, got an empty sequence")
    for scale in factors:
        check_number("scale", scale, "(0, inf)")
    return factors


def _check_size(size: Any) -> None:
    if size is None or size == "largest":
        return
    is_size = isinstance(size, (tuple, list)) and len(size) == 2
    if not is_size or not all(is_integer(side) and side >= 1 for side in size):
        raise ValueError(
            f"output_size must be None, 'largest' or a height and width of at least 1, got {size!r}"
        )
