"""Models as people have them: quantised, compiled, on several devices, in inference mode."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import Attribution
from torch import nn

from captum_mllm import ARC, MLLM, MSEA, TAM, LogitLens, MLLMAttribution, MLLMAttributionResult
from captum_mllm.models.vocabulary import Vocabulary
from tests.models.test_decoding import asked
from tests.models.tiny_models import FAMILIES, build, save, shared

METHODS: dict[str, Callable[[MLLM], Attribution]] = {
    "LogitLens": LogitLens,
    "LogitLens of a layer": lambda mllm: LogitLens(mllm, layer=0),
    "TAM": lambda mllm: TAM(LogitLens(mllm)),
    "ARC": lambda mllm: ARC(MSEA(LogitLens(mllm)), image_agreement=True),
}
LONG = {"max_new_tokens": 5, "min_new_tokens": 5}


def assert_close(found: MLLMAttributionResult, expected: MLLMAttributionResult) -> None:
    assert found.output_tokens == expected.output_tokens
    for name in ("image_attr", "token_attr", "output_probs"):
        own, other = getattr(found, name), getattr(expected, name)
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def explained_both_ways(mllm: MLLM, name: str) -> list[MLLMAttributionResult]:
    explainer = MLLMAttribution(METHODS[name](mllm))
    return [
        explainer.attribute(asked(), target="a cat"),
        explainer.attribute(asked(), gen_args=LONG),
    ]


class Opaque(nn.Module):
    """An output embedding whose rows can only be had by running it."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.out_features = head.out_features
        self.hidden = [head]

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return self.hidden[0](states)


class Doubled(nn.Linear):
    """A linear layer with an adapter: its weights are not all there is to it."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(states)


def int8(head: nn.Linear) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.ao.nn.quantized.dynamic.Linear
        copy = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None)
        copy.load_state_dict(head.state_dict())
        copy.qconfig = torch.ao.quantization.default_dynamic_qconfig
        return quantized.from_float(copy)


def doubled(head: nn.Linear) -> nn.Module:
    copy = Doubled(head.in_features, head.out_features, bias=head.bias is not None)
    copy.load_state_dict(head.state_dict())
    return copy


@pytest.mark.parametrize("make", [int8, doubled, Opaque])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("chunk", [2**21, 300], ids=["one chunk", "chunks"])
def test_heads_whose_rows_are_not_their_weights_are_run(
    make: Callable[[nn.Linear], nn.Module],
    bias: bool,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("captum_mllm.models.vocabulary.CHUNK", chunk)
    torch.manual_seed(0)
    head = make(nn.Linear(16, 101, bias=bias))
    states, ids = torch.randn(2, 7, 16), torch.tensor([5, 100, 5, 0, 1, 2, 3])
    with torch.no_grad():
        # A head that is quantised on the fly does it for each of its calls.
        rows = torch.cat([head(row) for row in states.flatten(0, 1).split(max(chunk // 101, 1))])
    vocabulary = Vocabulary(head)
    assert vocabulary.size == 101
    expected = rows[:, ids].unflatten(0, (2, 7))
    torch.testing.assert_close(vocabulary.scores(states, ids), expected)
    with torch.no_grad():
        blocks = states[0].split(max(chunk // 101, 1))
        probabilities = torch.cat([head(block) for block in blocks]).softmax(-1)
    found = vocabulary.predictions(states[0], ids, 10)
    torch.testing.assert_close(found.probability, probabilities[torch.arange(7), ids])
    assert torch.equal(found.top_ids, probabilities.topk(10).indices)
    assert torch.equal(vocabulary.rankings(states[0], 10), found.top_ids)


@pytest.mark.parametrize("name", METHODS)
def test_a_quantised_output_embedding_explains_as_it_answers(name: str) -> None:
    model, processor = build("llava")
    exact = MLLM(*shared("llava"))
    model.set_output_embeddings(int8(model.get_output_embeddings()))
    mllm = MLLM(model, processor)
    found, own = explained_both_ways(mllm, name)
    expected = MLLMAttribution(METHODS[name](exact)).attribute(asked(), target="a cat")
    for result in (found, own):
        assert result.image_attr.isfinite().all()
    # Of 8 bits, hardly anything is left in the maps of a random model but the likelihood.
    torch.testing.assert_close(found.output_probs, expected.output_probs, rtol=0.02, atol=0)
    image, query = mllm.prepare(asked(), target="a cat")
    said = mllm(image, query).softmax(-1)[0, torch.arange(2), list(query.answer_ids)]
    torch.testing.assert_close(found.output_probs, said, rtol=0.02, atol=0)


def test_a_head_that_tells_no_size_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a linear layer, or a module that tells"):
        Vocabulary(nn.Sequential(nn.Linear(4, 5)))


def compiled(model: Any) -> Any:
    return torch.compile(model, backend="eager")


def compiled_in_place(model: Any) -> Any:
    model.compile(backend="eager")
    return model


def compiled_by_layer(model: Any) -> Any:
    for layer in model.get_decoder().layers:
        layer.compile(backend="eager")
    return model


@pytest.mark.parametrize(
    "compile_",
    [
        pytest.param(compiled, marks=pytest.mark.slow),
        pytest.param(compiled_in_place, marks=pytest.mark.slow),
        compiled_by_layer,
    ],
)
def test_compiled_models_are_explained_as_the_others(compile_: Callable[[Any], Any]) -> None:
    model, processor = build("qwen2_vl")
    plain, mllm = MLLM(*shared("qwen2_vl")), MLLM(compile_(model), processor)
    torch.compiler.reset()
    for name in METHODS:
        for found, expected in zip(
            explained_both_ways(mllm, name), explained_both_ways(plain, name), strict=True
        ):
            assert_close(found, expected)
    image, query = mllm.prepare(asked(), target="a cat")
    torch.testing.assert_close(mllm(image, query), plain(image, query), rtol=1e-4, atol=1e-5)
    torch.compiler.reset()


def test_a_layer_that_is_not_seen_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = MLLM(*shared("llava"))
    image, query = mllm.prepare(asked(), target="a cat")
    layers = mllm.model.get_decoder().layers
    monkeypatch.setattr(layers[1], "forward", lambda hidden_states, **_: hidden_states)
    inputs = mllm.encode((image,), query).inputs
    skipped = type(layers[1]).__call__
    monkeypatch.setattr(
        type(layers[1]),
        "__call__",
        lambda self, *args, **kwargs: (
            self.forward(*args, **kwargs) if self is layers[1] else skipped(self, *args, **kwargs)
        ),
    )
    with pytest.raises(RuntimeError, match="seen 0 times"):
        mllm.backbone.hidden_states(inputs, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_inference_mode_changes_nothing(family: str) -> None:
    mllm = MLLM(*shared(family))
    for name in METHODS:
        expected = explained_both_ways(mllm, name)
        with torch.inference_mode():
            for found, outside in zip(explained_both_ways(mllm, name), expected):
                assert_close(found, outside)


def spread(model: nn.Module) -> dict[str, str]:
    """The last layer, the final norm and the output embedding on the disk, the rest in memory."""
    on_disk = ("layers.1", "language_model.norm", "lm_head")
    opened = ("", "model", "model.language_model", "model.language_model.layers")
    return {
        name: "disk" if name.endswith(on_disk) else "cpu"
        for name, _ in model.named_modules()
        if name not in opened and name.rpartition(".")[0] in opened
    }


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
@pytest.mark.parametrize("place", ["cpu", "disk", "several"])
def test_weights_may_be_anywhere(family: str, place: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    folder = save(family, tmp_path / "model")
    plain = MLLM.from_pretrained(folder)
    places = spread(plain.model) if place == "several" else {"": place}
    offload = str(tmp_path / "offload")
    mllm = MLLM.from_pretrained(folder, device_map=places, offload_folder=offload)
    assert mllm.device.type == "cpu"
    weight = mllm.model.get_output_embeddings().weight
    assert weight.is_meta == (place != "cpu")
    for name in METHODS:
        for found, expected in zip(
            explained_both_ways(mllm, name), explained_both_ways(plain, name), strict=True
        ):
            assert_close(found, expected)
