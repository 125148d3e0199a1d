"""The layers of the two towers of a multimodal LLM: the vision tower and the decoder.

Methods name layers in one way: ``layer`` is an index, and ``layers`` are several; negative ones
count from the last. ``tower`` says in which tower they count, where a method can read either.
"""

from __future__ import annotations

from collections.abc import Sequence
from reprlib import repr as shown
from typing import Any, Literal

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from captum_mllm._options import is_integer

Tower = Literal["decoder", "vision"]

# What the families call the list of blocks of their vision tower.
_LISTS = ("blocks", "layers", "layer")


def decoder_of(model: PreTrainedModel) -> Any:
    r"""The language model without its output embedding: ``layers``, then ``norm``."""
    decoder: Any = model.get_decoder()
    # Llama 4 gives the one with the output embedding.
    return decoder if hasattr(decoder, "layers") else decoder.model


def body_of(model: PreTrainedModel) -> Any:
    r"""The part of a model whose output is the hidden states after the final norm."""
    base: Any = model.base_model
    # Llama 4 has none for images and text together.
    return base if base is not model else decoder_of(model)


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    r"""The layers of the language model, first to last."""
    return list(decoder_of(model).layers)


def cross_layers(model: PreTrainedModel) -> list[nn.Module]:
    r"""The layers of the language model that look at images by cross-attention, first to last."""
    layers = decoder_layers(model)
    places = getattr(model.config.get_text_config(), "cross_attention_layers", None) or ()
    return [layers[place] for place in places]


def attention_layers(model: PreTrainedModel) -> list[nn.Module]:
    r"""The layers of the language model in which tokens attend to each other, first to last.

    Hybrid models (Qwen3.5) have layers of linear attention between them, others convolutions or
    cross-attention.
    """
    crossing = cross_layers(model)
    layers = [layer for layer in decoder_layers(model) if layer not in crossing]
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
    if len(kinds) != len(layers):
        return layers
    other = ("linear", "conv", "mamba", "recurrent")
    return [layer for layer, kind in zip(layers, kinds) if not any(name in kind for name in other)]


def vision_layers(model: PreTrainedModel) -> list[nn.Module]:
    r"""The layers of the vision tower that the language model sees, first to last.

    LLaVA takes its features from a layer before the last, so what follows that layer has no
    influence on any answer, and is left out.

    Raises:
        ValueError: if the model has no list of layers where a vision tower has it.
    """
    tower = model.get_encoder(modality="image")
    for name, module in tower.named_modules():
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] in _LISTS:
            return list(module)[: _count_seen(model.config, len(module))]
    raise ValueError(
        f"no list of layers is found in the vision tower, a {type(tower).__name__}; give the layer "
        "as a module"
    )


def pick_layers(layers: Sequence[nn.Module], indices: Sequence[int], tower: str) -> list[nn.Module]:
    r"""Some of the layers, in the order in which they run, each once.

    Raises:
        TypeError: for indices that are not a sequence of integers.
        ValueError: if there is no index, or one that none of the layers has.
    """
    count = len(layers)
    is_listed = isinstance(indices, (Sequence, np.ndarray)) and not isinstance(indices, str)
    if not is_listed or not all(map(is_integer, indices)):
        raise TypeError(f"got layers {shown(indices)}, expected a list of indices, such as [0, 1]")
    if not len(indices) or not all(-count <= index < count for index in indices):
        raise ValueError(
            f"got {list(indices)}, expected indices of the {count} layers of the {tower} that the "
            f"answer comes from, {-count} to {count - 1}"
        )
    return [layers[index] for index in sorted({index % count for index in indices})]


def is_decoder_module(model: PreTrainedModel, module: nn.Module) -> bool:
    r"""Whether a module of the model is part of the language model."""
    return any(module is part for part in decoder_of(model).modules())


def _count_seen(config: Any, count: int) -> int:
    taken = getattr(config, "vision_feature_layer", -1)
    taken = [taken] if isinstance(taken, int) else taken
    # Hidden state 0 is the embedding, so that of index k is the output of layer k - 1.
    return max(index if index >= 0 else count + 1 + index for index in taken)
