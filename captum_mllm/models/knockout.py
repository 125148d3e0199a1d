"""Hiding tokens from all later ones, for attention knock-out: :func:`hidden_words` and
:func:`hidden_columns`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from captum_mllm.models.hooks import hook
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query
from captum_mllm.models.towers import decoder_layers

# Kernels that take no mask of rows and columns.
_MASKLESS = ("flash", "flex", "paged")


class TakesNoMask(ValueError):
    """A layer takes no mask of rows and columns, so tokens cannot be hidden from others in it."""


def hidden_words(
    mllm: MLLM, image: Tensor, query: Query
) -> Callable[[Tensor], AbstractContextManager[None]]:
    r"""
    A switch that hides words of the prompt and of the answer from every other token.

    In each layer of the language model no row except the word's own may look at a hidden word.
    Each layer's own mask stays in force, so it works with every family whose layers take a mask of
    rows and columns. Layers without softmax attention (linear attention, state spaces) and
    attention kernels that take no such mask (flash, flex) are refused.

    Args:
        mllm (MLLM): The model.
        image (Tensor): The image that will be passed to it, of shape (1, 3, H, W).
        query (Query): The question and the answer.

    Returns:
        Callable: Takes a mask, bool, of shape (B, n): the words to hide for each row of a batch of
        images, in the order of ``mllm.word_embeddings(query, answer=True)``. Gives a context
        manager; passes of this thread within it hide them.

    Raises:
        ValueError: If the attention implementation takes no mask; on a pass, if a layer does not.

    Examples::

        >>> from captum_mllm import MLLM, ImageTextInput
        >>> from captum_mllm.demo import demo_image
        >>> from captum_mllm.metrics import attention_knockout
        >>> from PIL import Image
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> drops = attention_knockout(
        ...     mllm,
        ...     (image, mllm.word_embeddings(query, answer=True)),
        ...     hidden_words(mllm, image, query),
        ...     additional_forward_args=(query,),
        ...     target=query.answer_ids,
        ... )
        >>> len(drops)
        3
    """
    encoding = mllm.encode((image,), query)
    positions, length = encoding.earlier_positions, encoding.inputs["input_ids"].shape[1]
    check_takes_mask(mllm)

    @contextmanager
    def hide(hidden: Tensor) -> Iterator[None]:
        if hidden.dim() != 2 or hidden.shape[1] != len(positions) or hidden.dtype != torch.bool:
            raise ValueError(
                f"expected a bool mask (B, {len(positions)}), one value for each word, got "
                f"{hidden.dtype} of shape {tuple(hidden.shape)}"
            )
        columns = torch.zeros(len(hidden), length, dtype=torch.bool, device=positions.device)
        columns[:, positions] = hidden.to(positions.device)
        with hidden_columns(mllm, columns.repeat_interleave(encoding.windows, 0)):
            yield

    return hide


@contextmanager
def hidden_columns(mllm: MLLM, columns: Tensor) -> Iterator[None]:
    r"""
    Within it, in passes of this thread, no token looks at some others, in any layer.

    Args:
        mllm (MLLM): The model.
        columns (Tensor): The tokens to hide in each row of the model's inputs, bool, (rows, S). A
            hidden token still looks at itself.

    Raises:
        TakesNoMask: If the attention implementation takes no mask; on a pass, if a layer does not.
        ValueError: On a pass of another number of rows or tokens.
    """
    check_takes_mask(mllm)
    with ExitStack() as stack:
        for layer in decoder_layers(mllm.model):
            stack.enter_context(hook(layer, _masking(columns), before=True))
        yield


def _masking(columns: Tensor) -> Callable[..., tuple[Any, Any]]:
    def mask_columns(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        states = args[0] if args else kwargs["hidden_states"]
        if states.shape[:2] != columns.shape:
            raise ValueError(
                f"words are hidden in {columns.shape[0]} rows of {columns.shape[1]} tokens, but "
                f"the pass has {states.shape[0]} of {states.shape[1]}; hide one row of words for "
                "each image of the batch, at the size that hidden_words was given"
            )
        if "attention_mask" not in kwargs:
            raise _refusal(layer)
        allowed = _hide(kwargs["attention_mask"], columns.to(states.device), layer)
        return args, {**kwargs, "attention_mask": allowed}

    return mask_columns


def _hide(mask: Any, columns: Tensor, layer: nn.Module) -> Tensor:
    """The mask of a layer, in which only its own row looks at each of these columns."""
    size = columns.shape[1]
    own = torch.eye(size, dtype=torch.bool, device=columns.device)
    blocked = columns[:, None, None] & ~own
    if mask is None:
        # What sdpa takes for a causal mask without padding.
        if not hasattr(layer, "self_attn"):
            raise _refusal(layer)
        return torch.ones(size, size, dtype=torch.bool, device=columns.device).tril() & ~blocked
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise _refusal(layer)
    mask = mask[..., :size]
    if mask.dtype == torch.bool:
        return mask & ~blocked
    return mask.masked_fill(blocked, torch.finfo(mask.dtype).min)


def _refusal(layer: nn.Module) -> TakesNoMask:
    return TakesNoMask(
        f"a {type(layer).__name__} takes no mask of rows and columns, so words cannot be hidden in "
        "it; remove words by leave_one_out instead"
    )


def check_takes_mask(mllm: MLLM) -> None:
    r"""Refuse a model whose attention takes no mask of rows and columns.

    Raises:
        TakesNoMask: If it does not.
    """
    config = mllm.model.get_decoder().config
    name = getattr(config, "_attn_implementation", None) or ""
    if any(kind in name for kind in _MASKLESS):
        raise TakesNoMask(
            f"attention {name!r} takes no mask of rows and columns, so words cannot be hidden; "
            'load the model with attn_implementation="sdpa", or remove words by leave_one_out'
        )
