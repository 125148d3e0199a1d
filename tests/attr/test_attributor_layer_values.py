"""Methods on layers and on tokens give right values on every kind of model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from captum.attr import (
    InternalInfluence,
    LayerActivation,
    LayerConductance,
    LayerGradCam,
    LayerGradientXActivation,
    LayerIntegratedGradients,
)
from torch import Tensor, nn

from captum_mllm import LogitLens
from captum_mllm.attr import AttentionMaps, TokenCam
from captum_mllm.models.attention_record import record_attention
from captum_mllm.models.towers import decoder_layers, vision_layers
from tests.attr.attributor_columns import BUNDLED, COLUMNS, MULTIMODAL, Column, column

pytestmark = pytest.mark.filterwarnings(
    "ignore:Input Tensor .* did not already require gradients",
)
layers_of_all = pytest.mark.parametrize(
    ("name", "layer"),
    [(name, "first") for name in [*COLUMNS, *BUNDLED]]
    + [(name, "vision") for name in [*MULTIMODAL, *BUNDLED]],
)


def states_and_gradient(where: Column, module: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """The output of a layer and the gradient of the score there, by plain backpropagation.

    Images that require no gradient are seen as the model's processor shows them.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = module.register_forward_hook(keep)
    try:
        score = where.score(images).sum()
    finally:
        handle.remove()
    (gradient,) = torch.autograd.grad(score, seen[0])
    return seen[0].detach(), gradient


@layers_of_all
def test_activations_and_their_gradients_are_those_of_backpropagation(
    name: str, layer: str
) -> None:
    where = column(name)
    module = where.layers[layer]
    states, gradient = states_and_gradient(where, module, where.images)
    product = where.explain(LayerGradientXActivation(where.network, module))
    scale = float((states * gradient).abs().max())
    torch.testing.assert_close(product, states * gradient, rtol=1e-4, atol=1e-6 * scale)
    method = LayerActivation(where.network, module)
    found = method.attribute(where.images, additional_forward_args=where.extra or None)
    torch.testing.assert_close(found, states)


@pytest.mark.parametrize(
    ("name", "layer"),
    [(name, "first") for name in COLUMNS]
    + [(name, "vision") for name in MULTIMODAL]
    + [
        pytest.param(name, layer, marks=pytest.mark.slow)
        for name in BUNDLED
        for layer in ("first", "vision")
    ],
)
def test_integrated_gradients_of_a_layer_sum_to_the_difference(name: str, layer: str) -> None:
    where = column(name)
    method = LayerIntegratedGradients(where.network, where.layers[layer])
    # A trained model is steeper than one with random weights.
    maps = where.explain(method, n_steps=64 if name in BUNDLED else 24)
    assert maps.sum().item() == pytest.approx(where.difference(), rel=0.01)


def along_the_path(where: Column, module: nn.Module, n_steps: int) -> list[tuple[Tensor, ...]]:
    """States and gradients in the middle of each step from a black image to the image."""
    points = [(step + 0.5) / n_steps for step in range(n_steps)]
    return [
        states_and_gradient(where, module, (point * where.images).requires_grad_())
        for point in points
    ]


# The other layers of vision towers are refused: test_attributor_matrix.
@pytest.mark.parametrize(
    ("name", "layer"), [*((name, "first") for name in COLUMNS), ("llava", "vision")]
)
def test_conductance_and_influence_equal_a_loop_over_the_path(name: str, layer: str) -> None:
    where = column(name)
    module = where.layers[layer]
    arguments = {"n_steps": 3, "method": "riemann_middle"}
    influence = torch.stack([gradient for _, gradient in along_the_path(where, module, 3)]).mean(0)
    found = where.explain(InternalInfluence(where.network, module), **arguments)
    scale = float(influence.abs().max())
    torch.testing.assert_close(found, influence, rtol=1e-4, atol=1e-6 * scale)

    # Captum takes one step more, and the gradient at the start of what the layer moves in each.
    path = along_the_path(where, module, 4)
    steps = [
        gradient * (after - states) for (states, gradient), (after, _) in itertools.pairwise(path)
    ]
    conductance = torch.stack(steps).sum(0)
    found = where.explain(LayerConductance(where.network, module), **arguments)
    scale = float(conductance.abs().max())
    torch.testing.assert_close(found, conductance, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("name", ["cnn", "vit"])
def test_grad_cam_of_a_convolution_follows_its_definition(name: str) -> None:
    where = column(name)
    states, gradient = states_and_gradient(where, where.layers["first"], where.images)
    expected = torch.zeros_like(states[:, :1])
    for channel in range(states.shape[1]):
        expected += gradient[0, channel].mean() * states[:, channel : channel + 1]
    found = where.explain(LayerGradCam(where.network, where.layers["first"]))
    torch.testing.assert_close(found, expected)


# The tokens of an image. Beyond this, each method of this package has tests of its own.


def image_positions(where: Column) -> list[int]:
    """Where the tokens of the image stand in the prompt."""
    (query,) = where.extra
    network: Any = where.network
    encoding = network.encode((where.images,), query)
    return (encoding.inputs["input_ids"][0] == network.image_token_id).nonzero()[:, 0].tolist()


@torch.no_grad()
@pytest.mark.parametrize("name", [*MULTIMODAL, *BUNDLED])
def test_the_logit_lens_reads_hidden_states(name: str) -> None:
    where = column(name)
    (query,) = where.extra
    network: Any = where.network
    inputs = network.encode((where.images,), query).inputs
    hidden = network.model(**inputs, output_hidden_states=True).hidden_states[-1]
    word = network.model.get_output_embeddings().weight[where.target[1]]
    scores = torch.stack([hidden[0, place] @ word for place in image_positions(where)])
    found = where.explain(LogitLens(network))
    expected = network.layouts(where.images, query)[0].paint(scores)
    torch.testing.assert_close(found[0, 0], expected)


@contextmanager
def attention_of(where: Column, layers: list[nn.Module]) -> Any:
    """The attention weights of each head, (H, n, n), of each call of each layer."""
    (query,) = where.extra
    network: Any = where.network
    found: list[Tensor] = []
    with torch.no_grad(), record_attention(network.model, layers) as record:
        network(where.images, query)
    for calls in record.calls:
        for call in calls:
            found.append(call.weights(torch.arange(call.query.shape[2])))
    yield found


@pytest.mark.parametrize("tower", [decoder_layers, vision_layers])
@pytest.mark.parametrize("name", [*MULTIMODAL, *BUNDLED])
def test_rows_of_attention_sum_to_one(name: str, tower: Callable[..., list[nn.Module]]) -> None:
    where = column(name)
    network: Any = where.network
    with attention_of(where, tower(network.model)) as attention:
        assert attention
        for weights in attention:
            assert (weights >= 0).all()
            torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_rollout_of_the_bundled_model_is_a_product_of_matrices() -> None:
    where = column("bundled")
    (query,) = where.extra
    network: Any = where.network
    with attention_of(where, decoder_layers(network.model)) as attention:
        product = torch.eye(attention[0].shape[-1], dtype=torch.float64)
        for weights in attention:
            product = 0.5 * product + 0.5 * weights[0].mean(0) @ product
    row = len(product) - len(query.answer_ids) + where.target[0]
    found = where.explain(AttentionMaps(network))
    torch.testing.assert_close(found.flatten(), product[row, image_positions(where)])


@pytest.mark.parametrize("layer", [0, 1])
def test_grad_cam_of_the_bundled_model_follows_its_definition(layer: int) -> None:
    where = column("bundled")
    network: Any = where.network
    module = decoder_layers(network.model)[layer]
    states, gradient = states_and_gradient(where, module, where.images)
    places = image_positions(where)
    states, gradient = states[0, places], gradient[0, places]
    expected = torch.zeros(len(places), dtype=torch.float64)
    for channel in range(states.shape[1]):
        expected += gradient[:, channel].mean() * states[:, channel]
    found = where.explain(TokenCam(network, layer, "grad_cam", "decoder"))
    assert expected.max() > 0
    torch.testing.assert_close(found.flatten(), expected.relu())
