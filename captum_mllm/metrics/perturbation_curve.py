"""The probability of the target while an image appears or vanishes in the order of a map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from captum_mllm._captum import TargetType, format_additional_forward_args
from captum_mllm._options import is_integer
from captum_mllm._probability import target_probability
from captum_mllm.metrics.aligned_maps import check_maps, in_double, resize
from captum_mllm.metrics.image_baselines import PixelBaseline, image_baseline
from captum_mllm.metrics.imputation import impute_linearly

# An image that is no likelier than its baseline by this much shows nothing to explain.
_SMALLEST_DROP = 1e-6

# The grid of the random field that orders pixels of equal attribution.
_FIELD = (14, 14)


class PerturbationCurve(NamedTuple):
    r"""
    Probability of the target over the area that was inserted or deleted.

    Args:
        area (Tensor): Share of the pixels that were, from 0 to 1, of shape (S + 1,).
        probability (Tensor): Probability of the target with each area, of shape (B, S + 1).
        kind (str): ``"insertion"`` or ``"deletion"``.
    """

    area: Tensor
    probability: Tensor
    kind: Literal["insertion", "deletion"]

    def area_under(self, normalize: bool = False) -> Tensor:
        r"""
        Area under the curve, by trapezoids.

        Args:
            normalize (bool, optional): Whether to map the probability of the baseline to 0 and
                that of the image to 1 first, and to clamp the rest: for models and
                images that differ in these. Where the image is no likelier than the baseline,
                there is nothing to explain; the area is then 0.5, neither good nor bad.
                Default: False

        Returns:
            Tensor: Of shape (B,).
        """
        curve = self.probability
        if normalize:
            first, last = curve[:, :1], curve[:, -1:]
            empty, full = (first, last) if self.kind == "insertion" else (last, first)
            drop = full - empty
            shown = drop > _SMALLEST_DROP
            scaled = (curve - empty) / torch.where(shown, drop, 1)
            curve = torch.where(shown, scaled.clamp(0, 1), 0.5)
        return torch.trapezoid(curve, self.area.to(curve), dim=-1)


def perturbation_curve(
    forward_func: Callable[..., Any],
    inputs: Tensor,
    attributions: Tensor,
    kind: Literal["insertion", "deletion"],
    baselines: PixelBaseline = "blur",
    additional_forward_args: Any = None,
    target: TargetType = None,
    steps: int = 20,
    perturbations_per_eval: int = 1,
    spacing: Literal["even", "quadratic"] = "even",
) -> PerturbationCurve:
    r"""
    Replace the baseline by the image (insertion) or the image by its baseline (deletion), the
    pixels with the largest attributions first, step by step.

    Pixels with equal attributions follow each other in the order of a fixed random field, patch by
    patch: a constant map gets the curve of a random one, not that of a scan from the top, and what
    a mask leaves out is not noise of single pixels, which few models have ever seen.

    Args:
        forward_func (Callable): A model or function, such as an
            :class:`~captum_mllm.MLLM`. Its method
            ``target_probability(inputs, *additional_forward_args, target=...)`` is asked, if it
            has one; else the softmax of its output over the last dimension. An output of shape
            (B,), without a target, is taken for the probability.
        inputs (Tensor): Images, of shape (B, C, H, W) and a floating-point dtype.
        attributions (Tensor): Of shape (B, c, h, w); summed over c and resized to the images,
            bilinear.
        kind (str): ``"insertion"`` or ``"deletion"``.
        baselines (Tensor, float or str, optional): What replaces the pixels:
            ``"blur"``, the image blurred by a Gaussian with a standard deviation of a tenth of
            its shorter side; ``"mean"``, its mean colour; ``"road"``, noisy means of the pixels
            around, see :func:`~captum_mllm.metrics.impute_linearly`; a tensor that broadcasts with
            ``inputs``, such as the same scene without an object; or a number. None is 0.
            Default: "blur"
        additional_forward_args (Any, optional): Further arguments of ``forward_func``, a tuple if
            several. Tensors with one row per example are repeated along with the inputs, anything
            else is passed on unchanged.
            Default: None
        target (int, tuple, Tensor or list, optional): The output to look at, as in Captum: one
            for all examples, or a list or tensor with one for each.
            Default: None
        steps (int, optional): Number of steps S.
            Default: 20
        perturbations_per_eval (int, optional): How many steps are evaluated in one call of
            ``forward_func``, each with all B examples.
            Default: 1
        spacing (str, optional): ``"even"`` for steps of equal area; ``"quadratic"`` for an area of
            :math:`(s/S)^2` after step s, where what matters is a small part of an image and the
            first of a few even steps would already cover it.
            Default: "even"

    Returns:
        PerturbationCurve: With S + 1 points. Nothing has a gradient.

    Raises:
        TypeError: If a tensor or the baseline has a wrong type.
        ValueError: If shapes do not fit together, values are not finite, an option is out of its
            range, or the probability is not defined.

    Examples::

        >>> import torch
        >>> def red_of_left_half(image):
        ...     return image[:, 0, :, :2].mean((1, 2))
        >>> image = torch.ones(1, 3, 4, 4)
        >>> attributions = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(1, 1, 4, 4)
        >>> curve = perturbation_curve(
        ...     red_of_left_half, image, attributions, "insertion", baselines=0.0, steps=4
        ... )
        >>> curve.probability
        tensor([[0.0000, 0.5000, 1.0000, 1.0000, 1.0000]])
    """
    _validate(inputs, attributions, kind, steps, perturbations_per_eval)
    steps, perturbations_per_eval = int(steps), int(perturbations_per_eval)
    if spacing not in ("even", "quadratic"):
        raise ValueError(f'spacing must be "even" or "quadratic", got {spacing!r}')
    inputs = inputs.detach()
    ranks = _ranks(attributions, inputs)
    known = None
    if not (isinstance(baselines, str) and baselines == "road"):
        known = image_baseline(inputs, baselines).detach()
    cells = inputs.shape[-2] * inputs.shape[-1]
    done_steps, all_steps = torch.arange(steps + 1, device=inputs.device), steps
    if spacing == "quadratic":
        done_steps, all_steps = done_steps**2, steps**2
    counts = (2 * cells * done_steps + all_steps) // (2 * all_steps)
    extra = format_additional_forward_args(additional_forward_args) or ()
    probabilities = []
    for chunk in counts.split(perturbations_per_eval):
        done = (ranks < chunk[:, None, None, None])[:, :, None]
        removed = done if kind == "deletion" else ~done
        if known is None:
            repeated = inputs.repeat(len(chunk), 1, 1, 1)
            images = impute_linearly(repeated, removed.flatten(0, 1))
        else:
            images = torch.where(removed, known, inputs).flatten(0, 1)
        found = target_probability(
            forward_func,
            (images,),
            _repeat_target(target, len(inputs), len(chunk)),
            tuple(_repeat(each, len(inputs), len(chunk)) for each in extra),
        )
        _validate_probability(found, len(images))
        probabilities.append(found.reshape(len(chunk), len(inputs)))
    probability = torch.cat(probabilities).mT.contiguous()
    return PerturbationCurve((in_double(counts) / cells).to(probability), probability, kind)


def _ranks(attributions: Tensor, inputs: Tensor) -> Tensor:
    """Place of each pixel in the order of its attribution, largest first, (B, H, W)."""
    height, width = inputs.shape[-2:]
    maps = resize(check_maps(attributions, "attributions").sum(1), (height, width))
    flat = maps.flatten(1).to(inputs.device)
    generator = torch.Generator().manual_seed(0)
    field = torch.rand(1, *_FIELD, generator=generator)
    shuffled = resize(field, (height, width)).flatten().argsort().to(flat.device)
    order = shuffled[flat[:, shuffled].argsort(dim=1, descending=True, stable=True)]
    places = torch.arange(flat.shape[1], device=flat.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places).reshape(maps.shape)


def _repeat(argument: Any, batch: int, times: int) -> Any:
    """An argument for ``times`` copies of the batch, one after the other."""
    if isinstance(argument, Tensor) and argument.dim() and len(argument) == batch:
        return argument.repeat(times, *[1] * (argument.dim() - 1))
    return argument


def _repeat_target(target: TargetType, batch: int, times: int) -> TargetType:
    if isinstance(target, list):
        return target * times
    return _repeat(target, batch, times)


def _validate_probability(values: Tensor, count: int) -> None:
    if len(values) != count:
        raise ValueError(
            f"expected one probability for each of {count} examples, got {len(values)}; give a "
            "target that chooses one output per example, (t, token_id) for the answer of a "
            "multimodal LLM"
        )
    if not values.isfinite().all():
        raise ValueError("the forward function gave NaN or infinity for a perturbed input")


def _validate(
    inputs: Tensor, attributions: Tensor, kind: str, steps: int, perturbations_per_eval: int
) -> None:
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        given = inputs.dtype if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TypeError(f"inputs must be one floating-point Tensor of images, got {given}")
    if inputs.dim() != 4 or not inputs.numel():
        raise ValueError(f"inputs must have shape (B, C, H, W), got {tuple(inputs.shape)}")
    if not inputs.isfinite().all():
        raise ValueError("inputs must be finite, got NaN or infinity")
    if not isinstance(attributions, Tensor):
        raise TypeError(f"attributions must be a Tensor, got {type(attributions).__name__}")
    if attributions.dim() != 4 or len(attributions) != len(inputs):
        raise ValueError(
            f"attributions must have shape ({len(inputs)}, c, h, w), one for each image, got "
            f"{tuple(attributions.shape)}; to score T maps of one image, expand it to T rows and "
            "give a list of T targets"
        )
    if kind not in ("insertion", "deletion"):
        raise ValueError(f'kind must be "insertion" or "deletion", got {kind!r}')
    for name, value in (("steps", steps), ("perturbations_per_eval", perturbations_per_eval)):
        if not is_integer(value) or value < 1:
            raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
