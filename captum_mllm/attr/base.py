"""TokenAttribution, the contract of a method that explains every token of an answer at once."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeGuard

import torch
from captum.attr import Attribution, GradientAttribution, LayerAttribution
from captum.log import log_usage
from torch import Tensor

from captum_mllm._captum import format_output, format_tensor_into_tuples
from captum_mllm.attr.arguments import Target, check_one_example, multimodal_model, only_query
from captum_mllm.attr.scale_mean import ScaleAttribution
from captum_mllm.models.batches import make_passes
from captum_mllm.models.contrasts import without_alternative
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Prompt, Query, split_arguments


class TokenMaps(NamedTuple):
    r"""What a method says about N tokens.

    Args:
        maps (tuple[Tensor, ...]): for each explained image the map of each token, (N, 1, h, w).
            The images share their units, so that their maps compare.
        text (Tensor, optional): values of the first n of the text tokens, (N, n); only from a
            method that was asked for words as features. Default: None
        in_logits (bool): whether the maps are in the units of the model's logits, so that they
            compare with the logits of text. Default: False
        unit (str): what the values of the maps are counted in, for people. Default: "", not known
        seen (tuple[Tensor, ...], optional): for each image the cells (h, w) that the model sees at
            any scale, bool. Default: None, those that the layout of the image tells
        scales (tuple[ScaleAttribution, ...]): what each scale contributed, for MSEA. Default: ()
    """

    maps: tuple[Tensor, ...]
    text: Tensor | None = None
    in_logits: bool = False
    unit: str = ""
    seen: tuple[Tensor, ...] | None = None
    scales: tuple[ScaleAttribution, ...] = ()


class TokenAttribution(Attribution, ABC):
    r"""
    Base class of the methods that explain every token of an answer in one call.

    A method implements :meth:`explain_tokens`. Captum's ``attribute`` follows from it, and the
    method works within MSEA, ARC and TAM, in a batch and, where the states of one plain pass are
    all that it reads, while the model is still answering.

    Args:
        forward_func (MLLM): the multimodal model.

    Raises:
        TypeError: if ``forward_func`` is not an :class:`~captum_mllm.MLLM`.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import MLLM, ImageTextInput
        >>> from captum_mllm.attr import TokenAttribution, TokenMaps
        >>> from captum_mllm.demo import demo_image
        >>> class StateNorm(TokenAttribution):
        ...     reads_states_only = True
        ...
        ...     def explain_tokens(self, images, query, target=None):
        ...         states = self.forward_func.states(*images, query)
        ...         count = len(query.answer_ids) if target is None else 1
        ...         norms = zip(states.layouts, states.image)
        ...         maps = [layout.paint(tokens.norm(dim=-1)) for layout, tokens in norms]
        ...         return TokenMaps(tuple(each.expand(count, 1, -1, -1) for each in maps))
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> StateNorm(mllm).attribute(image, additional_forward_args=(query,)).shape
        torch.Size([3, 1, 14, 14])
    """

    def __init__(self, forward_func: MLLM) -> None:
        super().__init__(multimodal_model(forward_func))

    @property
    def reads_states_only(self) -> bool:
        """Whether the method reads only ``MLLM.states`` without a layer. A batch then shares
        its passes, and words can be explained while the model says them."""
        return False

    @property
    def weighs_text(self) -> bool:
        """Whether :meth:`attribute_text` gives weights."""
        return False

    @property
    def takes_gradients(self) -> bool:
        """Whether the method takes gradients, which ``torch.inference_mode`` does not record."""
        return False

    @property
    def takes_features(self) -> bool:
        """Whether :meth:`explain_tokens` takes ``features`` and ``show_progress``, as wrappers and
        methods that perturb do."""
        return False

    @abstractmethod
    def explain_tokens(
        self, images: tuple[Tensor, ...], query: Query, target: Target | None = None
    ) -> TokenMaps:
        r"""
        A map of each image for each token. A method may take options of its own as well.

        Args:
            images (tuple[Tensor, ...]): the images that the query leaves open, each of shape
                (1, 3, H, W) in [0, 1].
            query (Query): the question and the answer.
            target (tuple[int, int], optional): ``(t, token_id)``, the one token to explain.
                Default: None, every explained token of the query

        Returns:
            TokenMaps: maps (N, 1, h, w), detached, float32 or wider, on any grid over the image;
            N is 1 for a target.
        """

    @log_usage()
    def attribute(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        target: Any = None,
        additional_forward_args: Any = None,
        **kwargs: Any,
    ) -> Tensor | tuple[Tensor, ...]:
        r"""
        Args:
            inputs (Tensor or tuple[Tensor, ...]): the image, (B, 3, H, W) in [0, 1], or a tuple of
                images where the query leaves several open.
            target (tuple or list[tuple], optional): ``(t, token_id)``, the token at step t of the
                answer, for all B images or for each of them; ``(t, token_id, instead_of)`` for why
                it and not another token, see :meth:`captum_mllm.MLLM.contrast`. Default: None,
                every explained token of the query, for one image
            additional_forward_args (tuple[Query]): the query from ``MLLM.prepare``.
            **kwargs (Any): options of the method; a wrapper passes them on.

        Returns:
            Tensor or tuple[Tensor, ...]: maps of shape (T, 1, h, w) for every token, or
            (B, 1, h, w) for a target. Float32 or wider.

        Raises:
            RuntimeError: for a method that takes gradients, under ``torch.inference_mode``.
            ValueError: for an image far outside of [0, 1], a batch of several without a target, or
                an invalid target.
        """
        check_inference_mode(self)
        check_option_names(self, kwargs)
        query = only_query(additional_forward_args)
        images, _ = split_arguments((*format_tensor_into_tuples(inputs), query))
        count = len(images[0])
        if target is None:
            check_one_example(count)
        targets = target if isinstance(target, list) else [target] * count
        if len(targets) != count:
            raise ValueError(
                f"got target {target!r}, expected (t, token_id), or a list of {count} of them, one "
                "for each image"
            )
        # A single image stays the tensor that it is, so that passes with it are recalled.
        examples = [images] if count == 1 else list(zip(*(each.split(1) for each in images)))
        with self.forward_func.remember():
            if count > 1:
                self.prefetch([(example, query) for example in examples], **kwargs)
            found = [
                self.explain_tokens(example, *self._contrast(example, query, wanted), **kwargs).maps
                for example, wanted in zip(examples, targets)
            ]
        return format_output(isinstance(inputs, tuple), tuple(map(torch.cat, zip(*found))))

    def _contrast(self, images: tuple[Tensor, ...], query: Query, target: Any) -> tuple[Query, Any]:
        """The query with the alternative that a target may have, and the target without it."""
        mllm: MLLM = self.forward_func
        return without_alternative(
            target,
            query,
            lambda: len(mllm.explained_ids(*images, query)),
            mllm.vocabulary.size,
        )

    def attribute_text(
        self, inputs: Tensor | tuple[Tensor, ...], additional_forward_args: Any = None
    ) -> Tensor | None:
        r"""
        Weights of the earlier tokens for each explained token.

        Args:
            inputs (Tensor or tuple[Tensor, ...]): the image, (1, 3, H, W) in [0, 1], or a tuple of
                images where the query leaves several open.
            additional_forward_args (tuple[Query]): the query from ``MLLM.prepare``.

        Returns:
            Tensor or None: of shape (T, P + T) for P text tokens of the prompt and T tokens of the
            answer, 0 for a token itself and those after it; None where the method does not weigh
            text (``weighs_text`` is False).
        """
        return None

    def prefetch(self, prompts: Sequence[Prompt], **kwargs: Any) -> None:
        r"""
        Within ``MLLM.remember``, make as one batch the passes that the method is going to need.

        Args:
            prompts (Sequence[tuple[tuple[Tensor, ...], Query]]): the images and the query of each
                coming call of :meth:`explain_tokens`.
            **kwargs (Any): the options of those calls.
        """
        if self.reads_states_only:
            make_passes(self.forward_func.backbone, prompts)

    def scales_seen(self, **kwargs: Any) -> tuple[float, ...]:
        r"""
        The scales at which the model sees the image.

        Args:
            **kwargs (Any): the options of :meth:`explain_tokens`.
        """
        return (1.0,)

    def leaves_states(self, **kwargs: Any) -> bool:
        r"""
        Whether a run leaves the states of the image as given, so that ``MLLM.states`` needs no
        pass for them within ``MLLM.remember``.

        Args:
            **kwargs (Any): the options of :meth:`explain_tokens`.
        """
        return self.reads_states_only

    def why_not_streamed(self, **kwargs: Any) -> str | None:
        r"""
        Why words cannot be explained while the model says them.

        Args:
            **kwargs (Any): the options of :meth:`explain_tokens`.

        Returns:
            str or None: the reason; None if they can.
        """
        if self.reads_states_only:
            return None
        return (
            f"{self.get_name()} makes passes of its own, so it cannot explain words while the "
            "model says them; stream with LogitLens, or TAM or ARC around it, or explain the "
            "answer with attribute()"
        )

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError(f"attribute_future is not implemented for {self.get_name()}")


def check_option_names(method: TokenAttribution, options: dict[str, Any]) -> None:
    r"""Refuse options that a method does not take; those of a wrapper go on to what it wraps.

    Raises:
        TypeError: which names them, and the options that the method takes.
    """
    known = inspect.signature(method.explain_tokens).parameters
    if any(parameter.kind == parameter.VAR_KEYWORD for parameter in known.values()):
        return
    unknown = [name for name in options if name not in known]
    if unknown:
        own = [name for name in known if name not in ("images", "query", "target")]
        raise TypeError(
            f"{method.get_name()} does not take {', '.join(unknown)}; it takes "
            f"{', '.join(own) or 'no options'}. Scales are options of MSEA, around a method"
        )


def explains_tokens(method: Attribution) -> TypeGuard[TokenAttribution]:
    r"""Whether a method keeps the contract, so that its maps lie on the whole image, whatever their
    grid. Captum's own methods do not."""
    return isinstance(method, TokenAttribution)


def wrapper_chain(method: Attribution) -> Iterator[Attribution]:
    r"""A method, the method that it wraps, and so on, by the name that Captum's wrappers use."""
    found: Attribution | None = method
    while found is not None:
        yield found
        found = getattr(found, "attribution_method", None)


def text_weigher(method: Attribution) -> TokenAttribution | None:
    r"""The first of a method and those that it wraps that weighs text by itself; None if none
    does."""
    chain = wrapper_chain(method)
    return next((each for each in chain if explains_tokens(each) and each.weighs_text), None)


def check_inference_mode(method: Attribution) -> None:
    r"""Refuse a method that takes gradients, or wraps one that does, under inference mode."""
    if not torch.is_inference_mode_enabled():
        return
    for found in wrapper_chain(method):
        token_wise = explains_tokens(found) and found.takes_gradients
        if token_wise or isinstance(found, GradientAttribution):
            raise RuntimeError(
                f"{found.get_name()} takes gradients, and torch.inference_mode records none; run "
                "it outside of that"
            )


@contextmanager
def gradients_for(method: Attribution, inputs: Sequence[Tensor]) -> Iterator[None]:
    r"""Within it a gradient method can take the gradient of its inputs. Afterwards they require
    one as before, also after an exception, which Captum's methods do not take care of.

    Raises:
        RuntimeError: for a gradient method under ``torch.inference_mode``.
    """
    check_inference_mode(method)
    before = [tensor.requires_grad for tensor in inputs]
    try:
        # Captum would do it too, with a warning for each call. Layer methods do without.
        if isinstance(method, GradientAttribution) and not isinstance(method, LayerAttribution):
            for tensor in inputs:
                if tensor.is_floating_point():
                    tensor.requires_grad_()
        yield
    finally:
        for tensor, required in zip(inputs, before, strict=True):
            if not required:
                tensor.requires_grad_(False)
