"""Multi-scale explanation aggregation: an attribution method run on the input at several scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any, Literal

import torch
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from captum_mllm._captum import (
    format_additional_forward_args,
    format_output,
    format_tensor_into_tuples,
    progress,
)
from captum_mllm.attr.gradients import gradients_for
from captum_mllm.attr.map_mean import MapMean
from captum_mllm.attr.picture_layout import check_on_input, picture_layouts
from captum_mllm.attr.resizing import Size, resize_arguments, resize_inputs
from captum_mllm.attr.scale_arguments import (
    check_inputs,
    check_options,
    check_probability,
    check_scales,
    check_weights,
)
from captum_mllm.attr.scale_attribution import Attributions, ScaleAttribution
from captum_mllm.attr.scale_probability import target_probability

__all__ = ["MSEA"]


class MSEA(Attribution):
    r"""
    Multi-scale explanation aggregation (MSEA): runs an attribution method on the input at several
    scales and averages the maps.

    What a cell of a convolutional feature map or a token of a vision encoder sees is fixed in
    pixels. On an enlarged picture it is a smaller part of the scene, on a reduced one a larger
    part, and what the maps at different scales have in common depends less on where the
    borders between cells happen to lie. With :math:`R` resizing, :math:`A` the wrapped method and
    :math:`w_s` the weight of scale :math:`s`,

    .. math::
        \mathrm{MSEA}(x) = \frac{\sum_s w_s\, R(A(R_s(x)))}{\sum_s w_s}

    Source: equations 4 and 5 of "Explaining Multimodal LLMs via Intra-Modal Token Interactions"
    (Liang et al., 2025, https://arxiv.org/abs/2509.22415).

    Like :class:`captum.attr.NoiseTunnel`, it wraps any attribution method, and leaves it as it is.
    The model must take inputs of other sizes. Where it sees only a part of a picture at some scale,
    as :class:`~captum_mllm.MLLM` tells by its ``layouts``, that scale counts there alone.

    Args:
        attribution_method (Attribution): An instance of any attribution method, such as
            ``IntegratedGradients(model)``, ``LayerGradCam(model, model.layer4)`` or another
            wrapper.

    Raises:
        TypeError: If ``attribution_method`` is not an instance of ``Attribution``.

    Examples::

        >>> import torch
        >>> from captum.attr import Saliency
        >>> from captum_mllm.attr import MSEA
        >>> network = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3, padding=1),
        ...     torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(),
        ... )
        >>> picture = torch.rand(1, 3, 16, 16, requires_grad=True)
        >>> msea = MSEA(Saliency(network))
        >>> msea.attribute(picture, scales=(0.5, 1.0, 1.5), target=2).shape
        torch.Size([1, 3, 16, 16])
        >>> by_scale = msea.attribute(picture, scales=(0.5, 1.0), combine=False, target=2)
        >>> [tuple(attributions.shape) for attributions in by_scale]
        [(1, 3, 8, 8), (1, 3, 16, 16)]
    """

    def __init__(self, attribution_method: Attribution) -> None:
        if not isinstance(attribution_method, Attribution):
            raise TypeError(
                "attribution_method must be an instance of captum.attr.Attribution, got "
                f"{attribution_method!r}; for example MSEA(Saliency(model))"
            )
        super().__init__(attribution_method.forward_func)
        self.attribution_method = attribution_method

    @property
    def multiplies_by_inputs(self) -> bool:
        return bool(self.attribution_method.multiplies_by_inputs)

    @property
    def explains_every_token(self) -> bool:
        """Whether one call without a target gives a map for each token of an answer."""
        return getattr(self.attribution_method, "explains_every_token", False)

    @property
    def in_logit_units(self) -> bool:
        """Whether maps, if not normalized, are in the units of the model's logits."""
        return getattr(self.attribution_method, "in_logit_units", False)

    def has_convergence_delta(self) -> bool:
        r"""
        Returns:
            bool: False: maps of resized inputs, resized, do not add up to the model's output.
        """
        return False

    @classmethod
    def get_name(cls) -> str:
        return "MSEA"

    def attribute_future(self) -> None:
        r"""
        This method is not implemented for MSEA.
        """
        raise NotImplementedError("attribute_future is not implemented for MSEA")

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        scales: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
        weights: Literal["uniform", "confidence"] | Sequence[float] = "uniform",
        normalize: Literal["max", "sum"] | None = None,
        output_size: Size | Literal["largest"] | None = None,
        interpolate_mode: Literal["bilinear", "bicubic"] = "bilinear",
        combine: bool = True,
        on_scale: Callable[[ScaleAttribution], object] | None = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> Attributions | list[Attributions]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): Input to explain. Tensors with 4 dimensions
                (N, C, H, W) are resized; others are passed on as they are, and their
                attributions averaged over the scales as well.
            scales (Sequence[float], optional): Factors on height and width, above 0. A side of H
                pixels becomes ``round(H * scale)``. Where no side changes, the wrapped method
                gets the very tensor that was given. One scale is run at a time.
                Default: (0.5, 1.0, 1.5, 2.0)
            weights (str or Sequence[float], optional): How much each scale counts.

                - ``"uniform"``: all the same.
                - ``"confidence"``: for each example by the probability that the model gives the
                  target there, so that a scale at which the decision changed does not speak for
                  it. It is the softmax of the forward function's output over its last dimension,
                  at ``target``. A forward function with a method
                  ``target_probability(*inputs, *additional_forward_args, target=None)``, which
                  returns a tensor (N,), is asked instead: needed where outputs are not logits.
                  Where it is 0 at all scales, they count the same. Costs a forward pass per scale.
                - one number per scale, none negative, not all 0.

                Default: "uniform"
            normalize (str, optional): Divides the map of each scale and example, once it has the
                output size, by its largest absolute value (``"max"``) or the sum of its absolute
                values (``"sum"``). Gradients with respect to single pixels get smaller as pixels
                get more; without normalization, small scales weigh most in a gradient method. A
                zero map stays zero.
                Default: None
            output_size (tuple[int, int] or str, optional): Height and width of the result's maps;
                ``"largest"`` for the size of the map at the largest scale, which is then run
                first. By default the size of the input: of the one with the same index if there
                are as many attributions as inputs, otherwise of the first spatial one (layer
                methods). Maps of 4 dimensions are resized.
                Default: None
            interpolate_mode (str, optional): ``"bilinear"`` or ``"bicubic"``, for inputs and maps;
                anti-aliased, corners not aligned. Bicubic results are clamped to the range of the
                plane that was resized.
                Default: "bilinear"
            combine (bool, optional): If False, the attributions of the scales are returned one by
                one, each at its own size, and ``weights``, ``normalize`` and ``output_size``
                have no effect.
                Default: True
            on_scale (Callable, optional): Called with a :class:`ScaleAttribution` after each
                scale, for a look at, or a copy of, what goes into the average.
                Default: None
            show_progress (bool, optional): Whether to show a progress bar over the scales. It is
                not passed on to the wrapped method.
                Default: False
            **kwargs (Any, optional): Arguments of the wrapped method, passed on as they are,
                except for those that lie on the pixels and are resized along:

                - ``baselines``: tensors, like the inputs. Numbers, None and callables are passed
                  on as they are.
                - ``feature_mask``: by nearest neighbour; every segment must keep a pixel.
                - ``sliding_window_shapes`` and ``strides``: rounded, at least 1 and at most the
                  size. A default stride is 1 pixel at every scale.

        Returns:
            Tensor or tuple[Tensor, ...] or list: Weighted mean of the maps, structured and typed
            as the wrapped method's attributions, without a graph; summed in float32, or float64
            if they are. With ``scales=(1.0,)`` they are those of the wrapped method exactly, at
            the output size. With ``combine=False`` a list with the attributions of each scale,
            in the order of ``scales``.

        Raises:
            RuntimeError: If the wrapped method takes gradients under ``torch.inference_mode``.
            TypeError: If ``inputs`` or what the wrapped method returns are not tensors.
            ValueError: If an argument is out of its range, no input is spatial, a scale leaves an
                input or a segment of ``feature_mask`` without a pixel, the probability of the
                target is wanted and not defined, ``return_convergence_delta`` is set, the
                attributions of two scales do not fit together, or those of a layer do not lie on
                the inputs.

        Examples::

            >>> import torch
            >>> from captum.attr import LayerGradCam
            >>> from captum_mllm.attr import MSEA
            >>> network = torch.nn.Sequential(
            ...     torch.nn.Conv2d(3, 4, 4, stride=4),
            ...     torch.nn.AdaptiveAvgPool2d(1),
            ...     torch.nn.Flatten(),
            ... )
            >>> pictures = torch.rand(2, 3, 16, 16)
            >>> maps = MSEA(LayerGradCam(network, network[0])).attribute(
            ...     pictures, scales=(1.0, 2.0), weights="confidence", normalize="max", target=1
            ... )
            >>> maps.shape
            torch.Size([2, 1, 16, 16])
        """
        tensors = check_inputs(inputs)
        scales = check_scales(scales, tensors)
        scale_weights = check_weights(weights, len(scales))
        method = self.attribution_method
        check_options(method.get_name(), normalize, output_size, interpolate_mode, kwargs)
        target = kwargs.get("target")
        additional = format_additional_forward_args(kwargs.get("additional_forward_args")) or ()

        order: Iterable[int] = range(len(scales))
        if output_size == "largest":
            order = sorted(order, key=lambda index: -scales[index])
        if show_progress:
            order = progress(order, desc=f"{self.get_name()} attribution", total=len(scales))

        by_confidence = combine and scale_weights is None
        mean = MapMean(tensors, output_size, interpolate_mode, normalize)
        separate: dict[int, Attributions] = {}
        for index in order:
            scale = scales[index]
            resized = resize_inputs(tensors, scale, interpolate_mode)
            # Asked at most once, and only if somebody wants to know.
            ask_probability = cache(
                partial(target_probability, self.forward_func, resized, target, additional)
            )
            if by_confidence:
                check_probability(ask_probability(), scale)
            arguments = resize_arguments(kwargs, tensors, scale, interpolate_mode)
            with gradients_for(method, resized):
                attributions = method.attribute(
                    format_output(isinstance(inputs, tuple), resized), **arguments
                )
            attributions = self._detached(attributions)
            layouts = picture_layouts(self.forward_func, resized, additional)
            found = ScaleAttribution(scale, resized, attributions, layouts, ask_probability)
            if on_scale is not None:
                on_scale(found)
            if combine:
                if not self.explains_every_token:
                    check_on_input(format_tensor_into_tuples(attributions), resized, layouts)
                weight = found.probability if scale_weights is None else scale_weights[index]
                mean.add(found, torch.as_tensor(weight))
            else:
                separate[index] = attributions
        return mean.result() if combine else [separate[index] for index in range(len(scales))]

    def _detached(self, attributions: Any) -> Attributions:
        as_tuple = attributions if isinstance(attributions, tuple) else (attributions,)
        for attribution in as_tuple:
            if not isinstance(attribution, Tensor):
                raise TypeError(
                    f"MSEA averages tensors, but {self.attribution_method.get_name()} returned "
                    f"{type(attribution).__name__}"
                )
        detached = tuple(attribution.detach() for attribution in as_tuple)
        return format_output(isinstance(attributions, tuple), detached)
