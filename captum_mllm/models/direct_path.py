"""DirectPath: what each part of the language model adds to the logits of a pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from captum_mllm.models.attention_record import AttentionRecord, record_attention
from captum_mllm.models.attentions import Attention
from captum_mllm.models.hooks import hook
from captum_mllm.models.towers import attention_layers, decoder_of

# Modules of a layer that hand on what they get when nothing is trained.
_IDENTITIES = (nn.Dropout, nn.Identity)
# What the names of modules that mix tokens without softmax attention have in common.
_MIXERS = ("attn", "attention", "conv", "mamba", "mixer")


class DirectParts(NamedTuple):
    r"""What adds up to the logits of R rows.

    Args:
        tokens (Tensor): what the attention of all layers takes from each of n states, (R, b, n).
        embedding (Tensor): what is at the row before the first layer, (R,).
        mlp (Tensor): what the layers compute of the row's own state, (R,).
        rest (Tensor): biases, layers that mix tokens without softmax attention, and what the model
            adds between layers, (R,).
    """

    tokens: Tensor
    embedding: Tensor
    mlp: Tensor
    rest: Tensor


class DirectPath(AttentionRecord):
    r"""
    The direct path of some rows of a pass: the residual stream, and what joins it.

    The final state of a row is a sum: its embedding, and what each module of each layer adds. Each
    summand passes the norms behind it, which are linear once their scale is that of the pass. So
    the derivative of a logit along this path, where no module passes on what it reads, times a
    summand is what the summand adds to the logit. Attention is itself a sum over the states that
    the row attends to.

    A graph is built from the outputs of attention and other modules on alone, and only for the
    rows. Multipliers, gates and parallel branches are part of it, whatever the family.

    Args:
        model (PreTrainedModel): the model.
        rows (Tensor): positions of the R rows, in every sequence of the pass.
    """

    def __init__(self, model: PreTrainedModel, rows: Tensor) -> None:
        super().__init__(attention_layers(model), differentiable=True)
        self.model = model
        self.rows = rows
        # For each summand its name, its value at the rows, and the leaf that stands for it.
        self._summands: list[tuple[str, Tensor, Tensor]] = []
        self._left: Tensor | None = None
        self._shape = torch.Size()

    @contextmanager
    def watch(self) -> Iterator[None]:
        r"""Within it one pass is followed, with gradients from the first layer on.

        Raises:
            RuntimeError: after the pass, if a layer made no attention that could be recorded.
        """
        decoder = decoder_of(self.model)
        with record_attention(self.model, record=self), ExitStack() as hooks:
            for layer in decoder.layers:
                hooks.enter_context(hook(layer, self._enter, before=True))
                hooks.enter_context(hook(layer, self._leave))
                for name, part in layer.named_children():
                    if _is_norm(part):
                        self._follow_norm(part, hooks)
                    elif not isinstance(part, _IDENTITIES):
                        self._follow_branch(name, part, hooks)
            # The last norm, which families name in different ways.
            for part in filter(_is_norm, decoder.children()):
                self._follow_norm(part, hooks)
            yield

    def parts(self, logits: Tensor) -> DirectParts:
        r"""What adds up to logits, each of a row of its own.

        Args:
            logits (Tensor): linear in the final states of the pass, (R,), one for each row.
        """
        heads = [leaf for outputs in self.outputs for leaf in outputs]
        leaves = [*heads, *(leaf for _, _, leaf in self._summands)]
        found = torch.autograd.grad(logits.sum(), leaves, materialize_grads=True)
        calls = [call for calls in self.calls for call in calls]
        tokens: Any = 0
        for call, direction in zip(calls, found):
            tokens = tokens + call.contributions(self.rows, direction).to(logits.device)
        totals = {name: logits.new_zeros(len(logits)) for name in ("embedding", "mlp", "rest")}
        for (name, value, _), direction in zip(self._summands, found[len(heads) :]):
            product = direction.to(logits) * value.to(logits)
            totals[name] = totals[name] + product.flatten(2).sum((0, 2))
        return DirectParts(tokens.transpose(0, 1), **totals)

    @property
    def precision(self) -> float:
        """The relative precision of the pass, after it: the coarsest of its summands."""
        # Norms of most models are computed in float32 whatever the model is in.
        dtypes = {torch.float32, *(value.dtype for _, value, _ in self._summands)}
        return max(torch.finfo(dtype).eps for dtype in dtypes)

    def add(self, module: nn.Module, call: Attention, output: Tensor) -> Tensor:
        index = self._layer_of.get(module)
        if index is None:
            return output
        torch.set_grad_enabled(True)
        opened, leaf = self._open(output.detach())
        self.calls[index].append(call.detach())
        self.outputs[index].append(leaf)
        return opened

    def _open(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """The same states (b, n, ...) and a leaf (b, R, ...) of zeros that is added at the rows."""
        rows = self.rows.to(states.device)
        leaf = states.new_zeros(len(states), len(rows), *states.shape[2:]).requires_grad_()
        return states.index_add(1, rows, leaf), leaf

    def _at_rows(self, states: Tensor) -> Tensor:
        return states[:, self.rows.to(states.device)]

    def _join(self, name: str, states: Tensor, value: Tensor) -> Tensor:
        """The states, whose part with the given value at the rows is a summand."""
        opened, leaf = self._open(states)
        self._summands.append((name, value.detach(), leaf))
        return opened

    def _enter(
        self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What comes into a layer from elsewhere than the layer before it."""
        torch.set_grad_enabled(True)
        states = args[0] if args else kwargs["hidden_states"]
        value = self._at_rows(states)
        name = "embedding" if self._left is None else "rest"
        if self._left is not None:
            value = value - self._left.to(value.device)
        states = self._join(name, states, value)
        self._shape = states.shape
        return (
            ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})
        )

    def _leave(self, layer: nn.Module, args: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        self._left = self._at_rows(states.detach())

    def _follow_norm(self, norm: nn.Module, hooks: ExitStack) -> None:
        """Make a norm linear, with the scale that it has in the pass."""

        def end(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            torch.set_grad_enabled(True)
            (states,) = args
            if not states.requires_grad or states.shape != self._shape:
                return None
            linear, bias = _linear_norm(module, self._at_rows(states), self._at_rows(output))
            # In value nothing is added.
            change = (linear - linear.detach()).to(output.dtype)
            output = self._join("rest", output, bias.to(output.dtype).expand_as(change))
            return output.index_add(1, self.rows.to(output.device), change)

        hooks.enter_context(hook(norm, _without_graph, before=True))
        hooks.enter_context(hook(norm, end))

    def _follow_branch(self, name: str, branch: nn.Module, hooks: ExitStack) -> None:
        """Take what a module adds to the stream for a summand, whatever it reads."""
        kind = "rest" if any(word in name for word in _MIXERS) else "mlp"

        def end(module: nn.Module, args: Any, output: Any) -> Any:
            torch.set_grad_enabled(True)
            first = output[0] if isinstance(output, tuple) else output
            # Attention has been followed inside; what is not of the stream's shape is read further.
            if first.requires_grad or first.numel() != self._shape.numel():
                return None
            states = first.reshape(self._shape)
            joined = self._join(kind, states, self._at_rows(states)).reshape(first.shape)
            return (joined, *output[1:]) if isinstance(output, tuple) else joined

        def add_bias(module: Any, args: Any, output: Any) -> Tensor | None:
            if not isinstance(output, Tensor) or not output.requires_grad:
                return None
            return self._join("rest", output, module.bias.expand_as(self._at_rows(output)))

        hooks.enter_context(hook(branch, _without_graph, before=True))
        hooks.enter_context(hook(branch, end))
        for part in branch.modules():
            if isinstance(getattr(part, "bias", None), Tensor):
                hooks.enter_context(hook(part, add_bias))


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()


def _without_graph(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Before a module of a layer: what it computes has no graph."""
    torch.set_grad_enabled(False)
    if _is_norm(module):
        return None
    # Attention turns gradients on again, and may read its input once more after that.
    return (
        tuple(map(_detached, args)),
        {name: _detached(value) for name, value in kwargs.items()},
    )


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


def _linear_norm(norm: Any, states: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
    """What a norm makes of states, linear in them: without its bias, and the bias."""
    gain, bias, centred = _probe(norm, states)
    shaped = states.to(gain.dtype)
    if centred:
        shaped = shaped - shaped.mean(-1, keepdim=True)
    shaped = shaped * gain
    fixed = shaped.detach()
    size = fixed.square().sum(-1, keepdim=True)
    scale = ((output.to(gain.dtype) - bias) * fixed).sum(-1, keepdim=True)
    return shaped * (scale / torch.where(size > 0, size, 1.0)), bias


@torch.no_grad()
def _probe(norm: Any, states: Tensor) -> tuple[Tensor, Tensor, bool]:
    """The gain of a norm up to a factor, its bias, and whether it takes off the mean.

    Families keep the gain as a weight or as its difference from 1, so the norm itself is asked.
    """
    zeros = states.new_zeros(states.shape[-1])
    signs = zeros.clone()
    signs[::2], signs[1::2] = 1, -1
    given = torch.stack([zeros, signs, signs + 1])[None]
    bias, signed, shifted = norm.forward(given)[0]
    dtype = torch.promote_types(states.dtype, torch.float32)
    gain = (signed - bias).to(dtype) * signs.to(dtype)
    return gain, bias.to(dtype), torch.allclose(signed, shifted)
