"""Multi-scale explanation aggregation: an attribution method run on the input at several scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
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
    run_forward,
)
from captum_mllm._probability import known_probability
from captum_mllm.attr.arguments import Target, only_query
from captum_mllm.attr.base import TokenMaps, explains_tokens, gradients_for
from captum_mllm.attr.features import Features
from captum_mllm.attr.resizing import (
    ON_PIXELS,
    check_on_input,
    image_layouts,
    resize_arguments,
    resize_inputs,
    seen_cells,
)
from captum_mllm.attr.scale_mean import (
    SCALES,
    Attributions,
    Normalize,
    ScaleAttribution,
    ScaleMean,
    ScaleOptions,
    Weights,
    check_probability,
)
from captum_mllm.attr.token_maps import TokenWrapper, token_maps
from captum_mllm.models.layout import Size, size_of
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Prompt, Query


class MSEA(TokenWrapper):
    r"""
    Multi-scale explanation aggregation (MSEA): runs an attribution method on the input at several
    scales and averages the maps.

    What a cell of a convolutional feature map or a token of a vision encoder sees is fixed in
    pixels. On an enlarged image it is a smaller part of the scene, on a reduced one a larger
    part, and what the maps at different scales have in common depends less on where the
    borders between cells happen to lie. With :math:`R` resizing, :math:`A` the wrapped method and
    :math:`w_s` the weight of scale :math:`s`,

    .. math::
        \mathrm{MSEA}(x) = \frac{\sum_s w_s\, R(A(R_s(x)))}{\sum_s w_s}

    where by default the maps are brought to a common size of their values, see ``normalize``.

    Source: equations 4 and 5 of "Explaining Multimodal LLMs via Intra-Modal Token Interactions"
    (Liang et al., 2025, https://arxiv.org/abs/2509.22415).

    Like :class:`captum.attr.NoiseTunnel`, it wraps any attribution method without changing it.
    The model must take inputs of other sizes. Where it sees only a part of an image at some scale,
    as :class:`~captum_mllm.MLLM` tells by its ``layouts``, that scale counts there alone.

    Args:
        attribution_method (Attribution): An instance of any attribution method, such as
            ``IntegratedGradients(model)``, ``LayerGradCam(model, model.layer4)`` or another
            wrapper.
        scales (Sequence[float], optional): As in :meth:`attribute`, for calls that do not give
            their own, like the arguments that follow. Default: (0.5, 1.0, 1.5, 2.0)
        weights (str or Sequence[float], optional): As in :meth:`attribute`. Default: "uniform"
        normalize (str, optional): As in :meth:`attribute`. Default: "balance"
        output_size (tuple[int, int] or str, optional): As in :meth:`attribute`. Default: None
        interpolate_mode (str, optional): As in :meth:`attribute`. Default: "bilinear"

    Raises:
        TypeError: If ``attribution_method`` is not an instance of ``Attribution``.
        ValueError: If an option is out of its range.

    Examples::

        >>> import torch
        >>> from captum.attr import Saliency
        >>> from captum_mllm.attr import MSEA
        >>> network = torch.nn.Sequential(
        ...     torch.nn.Conv2d(3, 4, 3, padding=1),
        ...     torch.nn.AdaptiveAvgPool2d(1),
        ...     torch.nn.Flatten(),
        ... )
        >>> image = torch.rand(1, 3, 16, 16, requires_grad=True)
        >>> msea = MSEA(Saliency(network))
        >>> msea.attribute(image, scales=(0.5, 1.0, 1.5), target=2).shape
        torch.Size([1, 3, 16, 16])
        >>> by_scale = msea.attribute(image, scales=(0.5, 1.0), combine=False, target=2)
        >>> [tuple(attributions.shape) for attributions in by_scale]
        [(1, 3, 8, 8), (1, 3, 16, 16)]
    """

    def __init__(
        self,
        attribution_method: Attribution,
        scales: Sequence[float] = SCALES,
        weights: Weights = "uniform",
        normalize: Normalize = "balance",
        output_size: Size | Literal["largest"] | None = None,
        interpolate_mode: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> None:
        if not isinstance(attribution_method, Attribution):
            raise TypeError(
                "attribution_method must be an instance of captum.attr.Attribution, got "
                f"{attribution_method!r}; for example MSEA(Saliency(model))"
            )
        super().__init__(attribution_method)
        self.options = ScaleOptions(scales, weights, normalize, output_size, interpolate_mode)
        self.scales = self.options.scales
        self.weights = weights
        self.normalize = normalize
        self.output_size = output_size
        self.interpolate_mode = interpolate_mode

    def has_convergence_delta(self) -> bool:
        r"""
        Returns:
            bool: False: maps of resized inputs, resized, do not add up to the model's output.
        """
        return False

    @classmethod
    def get_name(cls) -> str:
        return "MSEA"

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        scales: Sequence[float] | None = None,
        weights: Weights | None = None,
        normalize: Normalize | None = None,
        output_size: Size | Literal["largest"] | None = None,
        interpolate_mode: Literal["bilinear", "bicubic"] | None = None,
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
                Default: None, those of the constructor, like the four options that follow
            weights (str or Sequence[float], optional): How much each scale counts.

                - ``"uniform"``: all the same.
                - ``"confidence"``: for each example by the probability that the model gives the
                  target there, so that a scale at which the decision changed does not speak for
                  it. It is the softmax of the forward function's output over its last dimension,
                  at ``target``. A forward function with a method
                  ``target_probability(*inputs, *additional_forward_args, target=None)``, which
                  returns a tensor (N,), is asked instead: needed where outputs are not logits.
                  Where it is 0 at all scales, they count the same. Costs a forward pass per scale.
                - one number per scale, at least 0, not all 0.

                Default: None
            normalize (str, optional): Brings the maps of the scales, once they have the output
                size, into the same units. Gradients with respect to single pixels get smaller as
                pixels get more, and attention is spread over more tokens, so that without it the
                smallest scale says most: 50 to 80 % of the mean of four scales.

                - ``"balance"`` divides the map of each scale and example by the mean of its
                  absolute values, so that each scale has the say that its weight gives it, and
                  multiplies the mean with the mean of these, so that a strong map stays stronger
                  than a weak one. A single scale is not changed.
                - ``"sum"`` and ``"max"`` divide by the sum of the absolute values or the largest
                  of them.
                - ``"none"`` leaves maps as they are.

                The maps of several images of one prompt are divided by the same number, so that
                they still compare with each other. A zero map stays zero. Default: None
            output_size (tuple[int, int] or str, optional): Height and width of the result's maps;
                ``"largest"`` for the size of the map at the largest scale, which is then run
                first. By default the size of the input: of the one with the same index if there
                are as many attributions as inputs, otherwise of the first spatial one (layer
                methods). Maps of 4 dimensions are resized.
                Default: None
            interpolate_mode (str, optional): ``"bilinear"`` or ``"bicubic"``, for inputs and maps;
                anti-aliased, corners not aligned. Bicubic results are clamped to the range of the
                plane that was resized.
                Default: None
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
            RuntimeError: If the model does not take an input at one of the scales.
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
            >>> images = torch.rand(2, 3, 16, 16)
            >>> maps = MSEA(LayerGradCam(network, network[0])).attribute(
            ...     images, scales=(1.0, 2.0), weights="confidence", normalize="max", target=1
            ... )
            >>> maps.shape
            torch.Size([2, 1, 16, 16])
        """
        options = self.options.updated(
            scales=scales,
            weights=weights,
            normalize=normalize,
            output_size=output_size,
            interpolate_mode=interpolate_mode,
        )
        tensors = options.check_inputs(inputs)
        method = self.attribution_method
        if kwargs.get("return_convergence_delta"):
            raise ValueError(
                "MSEA has no convergence delta; leave return_convergence_delta out, or ask "
                f"{method.get_name()} itself for it"
            )
        if isinstance(self.forward_func, MLLM):
            kwargs |= self._without_alternative(tensors, **kwargs)
        target = kwargs.get("target")
        additional = format_additional_forward_args(kwargs.get("additional_forward_args")) or ()

        def explain(resized: tuple[Tensor, ...], arguments: dict[str, Any]) -> Attributions:
            try:
                with gradients_for(method, resized):
                    found = method.attribute(
                        format_output(isinstance(inputs, tuple), resized), **arguments
                    )
            except Exception:
                self._check_takes_size(tensors, resized, additional)
                raise
            return self._detached(found)

        mean = ScaleMean(tensors, options, method.get_name())
        separate: dict[int, Attributions] = {}
        for index, found in self._each_scale(
            tensors, options, target, additional, kwargs, explain, show_progress
        ):
            if on_scale is not None:
                on_scale(found)
            if combine:
                if not explains_tokens(method):
                    attributions = format_tensor_into_tuples(found.attributions)
                    check_on_input(attributions, found.inputs, found.layouts)
                mean.add(index, found)
            else:
                separate[index] = found.attributions
        return mean.result() if combine else [separate[index] for index in sorted(separate)]

    def explain_tokens(
        self,
        images: tuple[Tensor, ...],
        query: Query,
        target: Target | None = None,
        features: Features | None = None,
        show_progress: bool = False,
        on_scale: Callable[[ScaleAttribution], object] | None = None,
        scales: Sequence[float] | None = None,
        weights: Weights | None = None,
        normalize: Normalize | None = None,
        output_size: Size | Literal["largest"] | None = None,
        interpolate_mode: Literal["bilinear", "bicubic"] | None = None,
        **kwargs: Any,
    ) -> TokenMaps:
        r"""Averaged maps of every token, as fine as the largest scale makes them by default, and
        what each scale contributed; arguments as for :meth:`attribute` and
        :meth:`TokenAttribution.explain_tokens`."""
        options = self.options.updated(
            scales=scales,
            weights=weights,
            normalize=normalize,
            output_size=output_size or self.output_size or "largest",
            interpolate_mode=interpolate_mode,
        )
        parts: list[TokenMaps] = []

        def explain(resized: tuple[Tensor, ...], arguments: dict[str, Any]) -> Attributions:
            found = token_maps(
                self.attribution_method, resized, query, target, features, **arguments
            )
            parts.append(found)
            tensors = found.maps if found.text is None else (*found.maps, found.text)
            return format_output(len(tensors) > 1, tensors)

        # Arguments on the pixels are put on the features instead, which fit any scale.
        fixed = {} if features is None else {name: kwargs.pop(name, None) for name in ON_PIXELS}
        fixed = {name: value for name, value in fixed.items() if value is not None}
        mean = ScaleMean(images, options, self.attribution_method.get_name())
        found_scales = []
        with self.forward_func.remember():
            for index, found in self._each_scale(
                options.check_inputs(images),
                options,
                target,
                (query,),
                kwargs,
                lambda resized, arguments: explain(resized, {**arguments, **fixed}),
                show_progress,
            ):
                if on_scale is not None:
                    on_scale(found)
                mean.add(index, found)
                found_scales.append(found)
        found_scales = [
            replace(found, share=share) for found, share in zip(found_scales, mean.shares())
        ]
        averaged = format_tensor_into_tuples(mean.result())
        maps = averaged[: len(images)]
        return TokenMaps(
            maps,
            averaged[len(images)] if len(averaged) > len(images) else None,
            in_logits=options.normalize in ("balance", "none")
            and all(part.in_logits for part in parts),
            unit=parts[0].unit if options.normalize in ("balance", "none") else "",
            seen=tuple(
                seen_cells([found.layouts[index] for found in found_scales], size_of(each))
                for index, each in enumerate(maps)
            ),
            scales=tuple(sorted(found_scales, key=lambda found: found.scale)),
        )

    def prefetch(
        self,
        prompts: Sequence[Prompt],
        scales: Sequence[float] | None = None,
        interpolate_mode: Literal["bilinear", "bicubic"] | None = None,
        **kwargs: Any,
    ) -> None:
        options = self.options.updated(scales=scales, interpolate_mode=interpolate_mode)
        for images, _ in prompts:
            options.check_inputs(images)
        # Text is weighed at the image as given.
        text_scale = (1.0,) if self.weighs_text else ()
        for scale in dict.fromkeys((*options.scales, *text_scale)):
            resized = [
                (resize_inputs(images, scale, options.interpolate_mode), query)
                for images, query in prompts
            ]
            super().prefetch(resized, **kwargs)

    def scales_seen(
        self, scales: Sequence[float] | None = None, **kwargs: Any
    ) -> tuple[float, ...]:
        return tuple(self.options.updated(scales=scales).scales)

    def leaves_states(self, scales: Sequence[float] | None = None, **kwargs: Any) -> bool:
        seen = self.options.updated(scales=scales).scales
        return 1.0 in seen and super().leaves_states(**kwargs)

    def why_not_streamed(self, scales: Sequence[float] | None = None, **kwargs: Any) -> str | None:
        if reason := super().why_not_streamed(**kwargs):
            return reason
        seen = self.options.updated(scales=scales).scales
        if seen == (1.0,):
            return None
        return (
            f"got scales={seen}, but while a model answers it sees the image at scale 1 alone; "
            "stream with scales=(1.0,), or explain the answer with attribute()"
        )

    def _without_alternative(
        self,
        inputs: tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """A target with an alternative as Captum's methods take it."""
        if not isinstance(target, tuple) or len(target) != 3:
            return {}
        query, target = self._contrast(inputs, only_query(additional_forward_args), target)
        return {"target": target, "additional_forward_args": (query,)}

    def _each_scale(
        self,
        tensors: tuple[Tensor, ...],
        options: ScaleOptions,
        target: Any,
        additional: tuple[Any, ...],
        kwargs: dict[str, Any],
        explain: Callable[[tuple[Tensor, ...], dict[str, Any]], Attributions],
        show_progress: bool,
    ) -> Iterator[tuple[int, ScaleAttribution]]:
        """What the wrapped method finds at each scale, and the index of the scale."""
        order: Iterable[int] = options.order
        if show_progress:
            name = f"{self.get_name()} attribution"
            order = progress(order, desc=name, total=len(options.scales))
        for index in order:
            scale = options.scales[index]
            resized = resize_inputs(tensors, scale, options.interpolate_mode)
            # Asked at most once, and only if somebody wants to know.
            ask_probability = cache(
                partial(known_probability, self.forward_func, resized, target, additional)
            )
            if options.scale_weights is None:
                check_probability(ask_probability(), scale)
            arguments = resize_arguments(kwargs, tensors, scale, options.interpolate_mode)
            attributions = explain(resized, arguments)
            layouts = image_layouts(self.forward_func, resized, additional)
            yield index, ScaleAttribution(scale, resized, attributions, layouts, ask_probability)

    @torch.no_grad()
    def _check_takes_size(
        self, inputs: tuple[Tensor, ...], resized: tuple[Tensor, ...], additional: tuple[Any, ...]
    ) -> None:
        """Tell an error of a model of fixed size from one of the method or its arguments."""
        sizes = [
            [size_of(each) for each in given if each.dim() == 4] for given in (inputs, resized)
        ]
        if sizes[0] == sizes[1]:
            return
        try:
            run_forward(self.forward_func, resized, None, additional)
        except Exception as error:
            before, after = ("{} x {}".format(*size[0]) for size in sizes)
            raise RuntimeError(
                f"the model does not take an input of {after} pixels, which a scale makes of one "
                f"of {before}: {error}; MSEA needs a model that takes other sizes. Many vision "
                "transformers do with interpolate_pos_encoding=True in their forward function; "
                "else leave out this scale"
            ) from error

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
