"""How methods are written."""

from __future__ import annotations

import pytest
import torch
from captum.attr import IntegratedGradients, Lime, NoiseTunnel, Saliency

from captum_mllm import ARC, MLLM, MSEA, TAM, ImageTextInput, LogitLens, MLLMAttribution
from captum_mllm.attr import AttentionMaps, TokenCam
from captum_mllm.attr.base import wrapper_chain
from captum_mllm.explain.explanation import describe
from tests.models.tiny_models import shared


@pytest.fixture
def mllm() -> MLLM:
    return MLLM(*shared("llava"))


def test_the_chain_goes_from_the_outermost_to_the_innermost(mllm: MLLM) -> None:
    lens = LogitLens(mllm)
    tunnel = NoiseTunnel(MSEA(lens))
    arc = ARC(tunnel)
    assert list(wrapper_chain(arc)) == [arc, tunnel, tunnel.attribution_method, lens]


def test_only_options_that_were_set_are_written(mllm: MLLM) -> None:
    lens = LogitLens(mllm)
    written = {
        "LogitLens": lens,
        "LogitLens(layer=0)": LogitLens(mllm, layer=0),
        "ARC(MSEA(LogitLens))": ARC(MSEA(lens)),
        "ARC(MSEA(LogitLens), top_k=20)": ARC(MSEA(lens), top_k=20),
        "ARC(LogitLens, suppress='relevant', image_agreement=True)": ARC(
            lens, suppress="relevant", image_agreement=True
        ),
        "TAM(LogitLens, filter_size=None)": TAM(lens, filter_size=None),
        "NoiseTunnel(MSEA(Saliency))": NoiseTunnel(MSEA(Saliency(mllm))),
        "AttentionMaps(mode='raw', layers=(0, 1))": AttentionMaps(mllm, mode="raw", layers=[0, 1]),
        "TokenCam(layer=model.model.language_model.layers.0)": TokenCam(mllm, 0, tower="decoder"),
    }
    assert {text: describe(method) for text, method in written.items()} == {
        text: text for text in written
    }


def test_objects_are_named_without_their_addresses(mllm: MLLM) -> None:
    assert describe(Lime(mllm)) == "Lime(interpretable_model=SkLearnLasso)"


def test_arguments_stand_with_the_wrapper_that_takes_them(mllm: MLLM) -> None:
    arguments = {
        "scales": (1.0, 2.0),
        "normalize": None,
        "on_scale": print,
        "baselines": torch.zeros(1, 3, 8, 8),
        "n_steps": 5,
    }
    method = ARC(MSEA(IntegratedGradients(mllm)), top_k=5)
    assert describe(method, arguments) == (
        "ARC(MSEA(IntegratedGradients(baselines=Tensor(1, 3, 8, 8), n_steps=5), "
        "scales=(1.0, 2.0)), top_k=5)"
    )
    defaults = {"scales": [0.5, 1.0, 1.5, 2.0], "weights": "uniform"}
    assert describe(MSEA(LogitLens(mllm)), defaults) == "MSEA(LogitLens)"


def test_a_result_says_how_it_was_made(mllm: MLLM) -> None:
    inp = ImageTextInput(torch.rand(3, 84, 84), "what is this ?")
    method = ARC(MSEA(LogitLens(mllm)), persistence=0.8)
    result = MLLMAttribution(method).attribute(inp, target="a cat", scales=(1.0,))
    assert result.method == "ARC(MSEA(LogitLens, scales=(1.0,)), persistence=0.8)"


def test_names_are_those_of_the_papers(mllm: MLLM) -> None:
    names = [ARC.get_name(), TAM.get_name(), MSEA.get_name(), MLLMAttribution.get_name()]
    assert names == ["ARC", "TAM", "MSEA", "MLLM Attribution"]
