"""Any attribution method as one on tokens: the adapter for Captum's, and the base of wrappers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import (
    Attribution,
    GradientAttribution,
    LayerAttribution,
    PerturbationAttribution,
)
from torch import Tensor

from captum_mllm._captum import format_output, format_tensor_into_tuples, progress
from captum_mllm._options import check_whole
from captum_mllm.attr.arguments import Target
from captum_mllm.attr.base import (
    TokenAttribution,
    TokenMaps,
    check_option_names,
    explains_tokens,
    gradients_for,
    text_weigher,
    wrapper_chain,
)
from captum_mllm.attr.features import Features, image_baselines, split_baselines
from captum_mllm.attr.resizing import check_on_input, for_each_input, image_layouts
from captum_mllm.attr.segment_attribution import SegmentAttribution
from captum_mllm.attr.segments import check_feature_mask
from captum_mllm.metrics.image_baselines import image_baseline
from captum_mllm.models.layout import size_of
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Prompt, Query
from captum_mllm.models.word_embeddings import word_baseline

# Of methods of Captum and of the package, and at least 1.
_COUNTS = {"internal_batch_size", "n_samples", "n_steps", "nt_samples", "perturbations_per_eval"}


def token_maps(
    method: Attribution,
    images: tuple[Tensor, ...],
    query: Query,
    target: Target | None = None,
    features: Features | None = None,
    show_progress: bool = False,
    **kwargs: Any,
) -> TokenMaps:
    r"""What any attribution method says about each explained token of a query.

    Args:
        method (Attribution): a method on a multimodal model.
        images (tuple[Tensor, ...]): the open images, (1, 3, H, W) in [0, 1] each.
        query (Query): the question and the answer.
        target (tuple[int, int], optional): the one token to explain. Default: None, all
        features (Features, optional): segments of the images, and words. Default: None
        show_progress (bool): show a bar over the scales of MSEA, or over the tokens where a method
            explains them in turn, or over what it perturbs. Default: False
        **kwargs (Any): options of the method.

    Returns:
        TokenMaps: channels summed; detached, float32 or wider.

    Raises:
        TypeError: for a method that takes no segments or words.
        ValueError: if the options ask for something else than one map for each token, and for
            maps that are not finite.
    """
    if kwargs.get("return_convergence_delta") or not kwargs.get("combine", True):
        raise ValueError(
            "each word has one map here; leave out return_convergence_delta and combine=False, or "
            f"ask {method.get_name()} itself"
        )
    *_, inner = wrapper_chain(method)
    if type(inner).__module__.startswith(("captum.", "captum_mllm.")):
        for name in _COUNTS & set(kwargs):
            check_whole(name, kwargs[name], 1, optional=name == "internal_batch_size")
    found = token_attribution(method)
    check_option_names(found, kwargs)
    if found.takes_features:
        kwargs |= {"features": features, "show_progress": show_progress}
    elif features is not None and features.segments is not None:
        SegmentAttribution(method, features.segments)
    elif features is not None and features.words is not None:
        raise _no_words(method)
    explained = found.explain_tokens(images, query, target, **kwargs)
    if not all(bool(maps.isfinite().all()) for maps in explained.maps):
        height = query.native[query.explained[0]][0]
        raise ValueError(
            f"{method.get_name()} gives attributions that are NaN or infinite, at scale "
            f"{size_of(images[0])[0] / height:.3g}, so no map can be shown; look in it for a "
            f"division by zero, or for sums beyond the range of {method.forward_func.dtype}"
        )
    return explained


def token_attribution(method: Attribution) -> TokenAttribution:
    r"""The method itself where it explains tokens, else the method within the adapter."""
    return method if explains_tokens(method) else TokenByToken(method)


class TokenByToken(TokenAttribution):
    r"""
    Asks a method of Captum for each explained token in turn.

    Args:
        attribution_method (Attribution): any method on an :class:`~captum_mllm.MLLM`.
    """

    takes_features = True

    def __init__(self, attribution_method: Attribution) -> None:
        super().__init__(attribution_method.forward_func)
        self.attribution_method = attribution_method

    @property
    def multiplies_by_inputs(self) -> bool:
        return bool(self.attribution_method.multiplies_by_inputs)

    @property
    def weighs_text(self) -> bool:
        return text_weigher(self.attribution_method) is not None

    def explain_tokens(
        self,
        images: tuple[Tensor, ...],
        query: Query,
        target: Target | None = None,
        features: Features | None = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> TokenMaps:
        r"""
        Maps with channels summed; values of words where they are features.

        Args:
            images (tuple[Tensor, ...]): the images, at any scale.
            query (Query): the question and the answer.
            target (tuple[int, int], optional): the one token to explain. Default: None, all
            features (Features, optional): what the method perturbs or differentiates beside the
                pixels. Default: None
            show_progress (bool): show a bar. Default: False
            **kwargs (Any): options of the method. With features, ``baselines`` is the pair of
                :class:`~captum_mllm.MLLMAttribution`.

        Raises:
            RuntimeError: for a gradient method under ``torch.inference_mode``.
            TypeError: for a method that does not take the features.
            ValueError: if the method's maps are not maps of the whole image.
        """
        method = self.attribution_method
        _check_names(method, kwargs)
        segments, words = (None, None) if features is None else (features.segments, features.words)
        if segments is not None:
            if show_progress and "show_progress" in _parameters(method):
                kwargs["show_progress"] = True
            found = SegmentAttribution(method, segments, words)
            return found.explain_tokens(images, query, target, **kwargs)
        tensors = images
        if words is not None:
            tensors, kwargs = _with_word_embeddings(method, images, query, words, kwargs)
        parts = self._in_turn(tensors, query, target, show_progress, kwargs)
        text = None
        if words is not None:
            # Embeddings have a value for each dimension.
            text = parts.pop().sum(-1)
        perturbs = isinstance(method, PerturbationAttribution)
        return TokenMaps(
            tuple(part.sum(1, keepdim=True) for part in parts),
            text,
            unit="logits" if perturbs or method.multiplies_by_inputs else "",
        )

    def attribute_text(
        self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: Any = None
    ) -> Tensor | None:
        # A wrapper of Captum's may hold one, such as NoiseTunnel(ARC(...)).
        inner = text_weigher(self.attribution_method)
        return None if inner is None else inner.attribute_text(inputs, additional_forward_args)

    def why_not_streamed(self, **kwargs: Any) -> str | None:
        return (
            f"{self.attribution_method.get_name()} makes passes of its own, so it cannot explain "
            "words while the model says them; stream with LogitLens, or TAM or ARC around it, or "
            "explain the answer with attribute()"
        )

    def _in_turn(
        self,
        tensors: tuple[Tensor, ...],
        query: Query,
        target: Target | None,
        show_progress: bool,
        kwargs: dict[str, Any],
    ) -> list[Tensor]:
        """The attributions of each input, (N, ...), detached."""
        mllm: MLLM = self.forward_func
        method = self.attribution_method
        targets: Any = [target]
        if target is None:
            targets = list(enumerate(mllm.explained_ids(*tensors, query).tolist()))
        if show_progress:
            name = f"{method.get_name()} attribution"
            targets = progress(targets, desc=name, total=len(targets))
        rows = []
        inputs = format_output(len(tensors) > 1, tensors)
        kwargs = for_each_input(kwargs, len(tensors))
        masks = kwargs.get("feature_mask")
        for mask in masks if isinstance(masks, tuple) else (masks,):
            check_feature_mask(mask)
        with gradients_for(method, tensors):
            for wanted in targets:
                found = method.attribute(
                    inputs, target=wanted, additional_forward_args=(query,), **kwargs
                )
                rows.append([part.detach() for part in format_tensor_into_tuples(found)])
        if len(rows[0]) != len(tensors) and len(tensors) > 1:
            raise ValueError(
                f"{method.get_name()} gives {len(rows[0])} attribution(s) for {len(tensors)} "
                "inputs, expected one for each; explain one image of them, "
                "ImageTextInput(..., explained=0), or take TokenCam for layers"
            )
        check_on_input(rows[0], tensors, image_layouts(mllm, tensors, (query,)))
        parts = map(torch.cat, zip(*rows))
        return [part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts]


class TokenWrapper(TokenAttribution):
    r"""
    Base class of the methods that wrap another one and hand on what they do not change.

    Args:
        attribution_method (Attribution): the wrapped method.
    """

    takes_features = True

    def __init__(self, attribution_method: Attribution) -> None:
        Attribution.__init__(self, attribution_method.forward_func)
        self.attribution_method = attribution_method

    @property
    def multiplies_by_inputs(self) -> bool:
        return bool(self.attribution_method.multiplies_by_inputs)

    @property
    def wrapped(self) -> TokenAttribution:
        """The wrapped method, as one on tokens."""
        return token_attribution(self.attribution_method)

    @property
    def reads_states_only(self) -> bool:
        return self.wrapped.reads_states_only

    @property
    def weighs_text(self) -> bool:
        return self.wrapped.weighs_text

    @property
    def takes_gradients(self) -> bool:
        return self.wrapped.takes_gradients

    def attribute_text(
        self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: Any = None
    ) -> Tensor | None:
        return self.wrapped.attribute_text(inputs, additional_forward_args)

    def prefetch(self, prompts: Sequence[Prompt], **kwargs: Any) -> None:
        self.wrapped.prefetch(prompts, **kwargs)

    def scales_seen(self, **kwargs: Any) -> tuple[float, ...]:
        return self.wrapped.scales_seen(**kwargs)

    def leaves_states(self, **kwargs: Any) -> bool:
        return self.wrapped.leaves_states(**kwargs)

    def why_not_streamed(self, **kwargs: Any) -> str | None:
        return self.wrapped.why_not_streamed(**kwargs)


def _with_word_embeddings(
    method: Attribution,
    images: tuple[Tensor, ...],
    query: Query,
    words: str,
    kwargs: dict[str, Any],
) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """The inputs of a gradient method that explains words too, and its options."""
    *_, inner = wrapper_chain(method)
    if not isinstance(inner, GradientAttribution) or isinstance(inner, LayerAttribution):
        raise _no_words(method)
    mllm: MLLM = method.forward_func
    embeddings = mllm.word_embeddings(query, words == "earlier")
    if "baselines" in _parameters(inner):
        replaced, text = split_baselines(kwargs.get("baselines"))
        absent = map(_image_baseline, images, image_baselines(replaced, len(images)))
        words_absent = word_baseline(mllm.model, mllm.tokenizer, embeddings, text)
        kwargs = {**kwargs, "baselines": (*absent, words_absent)}
    return (*images, embeddings), kwargs


def _image_baseline(image: Tensor, baseline: Any) -> Tensor:
    if not isinstance(baseline, Tensor):
        return image_baseline(image, baseline)
    if baseline.ndim == 4 and size_of(baseline) != size_of(image):
        return F.interpolate(baseline, size_of(image), mode="bilinear", antialias=True)
    return baseline


def _no_words(method: Attribution) -> TypeError:
    return TypeError(
        f"{method.get_name()} does not ask for the words of the question; leave `words` out, "
        "take a method of gradients such as IntegratedGradients, or one that perturbs, such "
        "as FeatureAblation, and give it `segments`, (1, 1) for the image as a whole"
    )


def _check_names(method: Attribution, options: dict[str, Any]) -> None:
    """Refuse options that no method of Captum in a chain has: those that perturb take any name, and
    do nothing with it."""
    chain = list(wrapper_chain(method))
    if not type(chain[-1]).__module__.startswith("captum."):
        return
    windows = {"baselines", "sliding_window_shapes", "strides"}
    unknown = sorted(set(options).difference(windows, *map(_parameters, chain)))
    if unknown:
        raise TypeError(
            f"{method.get_name()} does not take {', '.join(unknown)}; see the arguments of its "
            "attribute(), and those of MLLMAttribution.attribute"
        )


def _parameters(method: Attribution) -> Any:
    return inspect.signature(type(method).attribute).parameters
