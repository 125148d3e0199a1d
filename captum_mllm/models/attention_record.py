"""``record_attention`` records the attention of a pass, whichever implementation a model has."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from captum_mllm.models.attentions import Attention
from captum_mllm.models.hooks import Settings, shared_setting

IMPLEMENTATION = "captum_mllm"
# Those of transformers that differ from it by rounding alone.
_SOFTMAX = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")


class AttentionRecord:
    r"""The attention of some layers in one pass.

    A layer has one call or, where a vision tower takes its images or windows in turn, several.

    Args:
        layers (Sequence[nn.Module]): the layers.
        differentiable (bool): make the pass differentiable from the first of these layers on.
        keep (Callable): what to keep of each call. Default: the call, without a graph
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        differentiable: bool,
        keep: Callable[[Attention], Any] = Attention.detach,
    ) -> None:
        self.differentiable = differentiable
        self.keep = keep
        self.calls: list[list[Any]] = [[] for _ in layers]
        self.outputs: list[list[Tensor]] = [[] for _ in layers]
        self._layer_of = {
            module: index for index, layer in enumerate(layers) for module in layer.modules()
        }

    def add(self, module: nn.Module, call: Attention, output: Tensor) -> Tensor:
        """Keep a call if it is of one of the layers; returns its output."""
        index = self._layer_of.get(module)
        if index is None:
            return output
        if self.differentiable and not output.requires_grad:
            # Nothing below is differentiated, so its graph need not be built.
            torch.set_grad_enabled(True)
            output = output.detach().requires_grad_()
        self.calls[index].append(self.keep(call))
        if self.differentiable:
            self.outputs[index].append(output)
        return output

    def gradients(self, scalar: Tensor | None) -> list[list[Tensor | None]]:
        """Of a scalar, with respect to the output of each call; None for each if it is None."""
        if scalar is None:
            return [[None] * len(calls) for calls in self.calls]
        outputs = [output for outputs in self.outputs for output in outputs]
        found = iter(
            torch.autograd.grad(scalar, outputs, retain_graph=True, materialize_grads=True)
        )
        return [[next(found) for _ in outputs] for outputs in self.outputs]

    def check(self) -> None:
        """Refuse layers whose attention went another way."""
        missing = sum(not calls for calls in self.calls)
        if missing:
            raise RuntimeError(
                f"{missing} of {len(self.calls)} layers made no attention weights through the "
                "AttentionInterface of transformers: either they have no softmax attention, or "
                "their model does not let its attention be set"
            )


_record: ContextVar[AttentionRecord | None] = ContextVar("attention_record", default=None)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it, which adds to the record of the pass.

    In a thread that records nothing it is the attention that the model has by itself.
    """
    record = _record.get()
    own = _own_attention(module) if record is None else None
    if own is not None:
        options = {"scaling": scaling, "softcap": softcap, "is_causal": is_causal, **kwargs}
        given = {name: value for name, value in options.items() if value is not None}
        return own(module, query, key, value, attention_mask, **given)
    for name in ("position_bias", "s_aux"):
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"attention with {name!r} cannot be recorded")
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    call = Attention(
        query=query,
        key=key,
        value=value,
        mask=attention_mask,
        causal=attention_mask is None and bool(is_causal) and query.shape[2] > 1,
        scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
        softcap=softcap,
    )
    if softcap is None:
        kernel = AttentionInterface()["sdpa"]
        output, _ = kernel(
            module, query, key, value, attention_mask, scaling=scaling, is_causal=is_causal
        )
    else:
        output = call.output()
    return (output if record is None else record.add(module, call, output)), None


def _mask(*args: Any, config: Any = None, **kwargs: Any) -> Any:
    """The mask for :func:`_attend`."""
    name = "sdpa" if _record.get() is not None else _own_names.get(id(config), "sdpa")
    function = AttentionMaskInterface().get(name)
    return None if function is None else function(*args, config=config, **kwargs)


AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, _mask)

# The models whose attention is switched now, and the implementation that each of their
# configurations, by its identity, has otherwise.
_switched: Settings = WeakKeyDictionary()
_own_names: dict[int, str] = {}


@contextmanager
def _switched_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model runs :func:`_attend`."""

    def switch() -> Callable[[], None]:
        before = _implementations(model.config)
        configs: list[Any] = [
            module.config for module in model.modules() if hasattr(module, "config")
        ]
        names = {id(config): config._attn_implementation for config in configs}
        _own_names.update(names)

        def put_back() -> None:
            model.set_attn_implementation(before)
            for config in names:
                del _own_names[config]

        try:
            model.set_attn_implementation(IMPLEMENTATION)
        except BaseException:
            put_back()
            raise
        return put_back

    with shared_setting(_switched, model, switch):
        yield


def _own_attention(module: nn.Module) -> Callable[..., Any] | None:
    """The attention that a module runs where nothing is recorded; None if that is not known."""
    config: Any = getattr(module, "config", None)
    name = _own_names.get(id(config)) or getattr(config, "_attn_implementation", None)
    if name == IMPLEMENTATION:
        return None
    if name in AttentionInterface():
        return AttentionInterface()[name]
    # Each file of transformers has an eager attention of its own.
    for parent in type(module).__mro__:
        eager = getattr(sys.modules[parent.__module__], "eager_attention_forward", None)
        if eager is not None:
            return eager
    return None


@contextmanager
def record_attention(
    model: PreTrainedModel,
    layers: Sequence[nn.Module] = (),
    differentiable: bool = False,
    keep: Callable[[Attention], Any] = Attention.detach,
    record: AttentionRecord | None = None,
) -> Iterator[AttentionRecord]:
    r"""Record the attention of a pass, whichever implementation the model was loaded with.

    Within it the model runs the attention registered as ``"captum_mllm"``, in other threads the
    one that it has by itself; afterwards each part of the model has the implementation that it had
    before, after an exception too.

    Args:
        model (PreTrainedModel): the model.
        layers (Sequence[nn.Module]): layers of the model.
        differentiable (bool): make the pass differentiable from the first of these layers on, also
            under ``torch.no_grad``. Default: False
        keep (Callable): what to keep of each call of a layer. Default: the call, without a graph
        record (AttentionRecord, optional): a record of your own to be filled, in place of the
            options above. Default: None

    Yields:
        AttentionRecord: filled by the pass.

    Raises:
        RuntimeError: after the pass, if a layer made no attention weights that could be recorded.
    """
    record = record or AttentionRecord(layers, differentiable, keep)
    token = _record.set(record)
    try:
        with _switched_attention(model), torch.set_grad_enabled(torch.is_grad_enabled()):
            yield record
    finally:
        _record.reset(token)
    record.check()


def has_softmax_attention(model: PreTrainedModel) -> bool:
    """Whether a pass within :func:`record_attention` gives the model's own states up to
    rounding; attention that a user registered may be something else."""

    def known(found: dict[str, Any]) -> bool:
        return all(
            known(part) if isinstance(part, dict) else part in _SOFTMAX for part in found.values()
        )

    return known(_implementations(model.config))


def _implementations(config: Any) -> dict[str, Any]:
    """The attention implementation of each part, as ``set_attn_implementation`` takes it."""
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    nested = {name: _implementations(part) for name, part in parts.items() if part is not None}
    return {"": _own_names.get(id(config), config._attn_implementation), **nested}
