"""Where a model sees only a part of an image: what is known, what is not, and what is no map."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import Attribution, LayerGradCam, Saliency
from torch import Tensor

from captum_mllm import ARC, MLLM, MSEA, TAM, ImageTextInput, LogitLens, MLLMAttribution
from captum_mllm.attr import AttentionMaps, TokenCam
from captum_mllm.attr.arguments import Target
from captum_mllm.attr.base import TokenAttribution, TokenMaps
from captum_mllm.attr.resizing import resize_seen
from captum_mllm.models.layout import Layout, Piece
from captum_mllm.models.query import Query
from tests.models.test_mllm import random_image
from tests.models.tiny_models import shared

# An image three times as wide as high, of which the model sees the square in the middle.
MIDDLE = Layout((6, 18), (Piece(6, 6, (6, 0, 12, 6)),))
PROMPT = "what is in the image ?"


def plain(method: Attribution, **options: Any) -> MSEA:
    """MSEA that averages maps as they are."""
    return MSEA(method, normalize="none", **options)


class EvenScores(TokenAttribution):
    """Scores all tokens of an image alike, with 1 for the first word, 2 for the second..."""

    def explain_tokens(
        self, images: tuple[Tensor, ...], query: Query, target: Target | None = None
    ) -> TokenMaps:
        (layout,) = self.forward_func.layouts(*images, query)
        count = len(self.forward_func.explained_ids(*images, query))
        scores = torch.arange(1.0, count + 1)[:, None].expand(-1, layout.n_tokens)
        return TokenMaps((layout.paint(scores).unsqueeze(1),), in_logits=True)


@pytest.fixture
def wide() -> tuple[MLLM, Tensor, Query]:
    """LLaVA sees the middle third of this image at scale 1, and all of it at scale 2."""
    mllm = MLLM(*shared("llava"))
    image, query = mllm.prepare(ImageTextInput(random_image(84, 252), PROMPT), target="a cat")
    assert mllm.layouts(image, query)[0].coverage().float().mean() == 1 / 3
    return mllm, image, query


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(6, 18), (12, 36), (5, 31), (3, 9), (60, 180)])
def test_an_even_map_stays_even_up_to_the_edge_of_what_is_seen(
    size: tuple[int, int], mode: str
) -> None:
    maps = torch.full((2, 1, 6, 18), 3.0) * MIDDLE.coverage()
    resized, seen = resize_seen(maps, MIDDLE, size, mode)
    assert seen is not None
    assert torch.equal(seen, MIDDLE.coverage(size))
    torch.testing.assert_close(resized, torch.full((2, 1, *size), 3.0) * seen)


def test_a_image_that_is_seen_as_a_whole_is_resized_as_it_is() -> None:
    whole = Layout((6, 18), (Piece(6, 18, (0, 0, 18, 6)),))
    maps = torch.rand(2, 1, 6, 18)
    for layout in (None, whole):
        resized, seen = resize_seen(maps, layout, (6, 18), "bilinear")
        assert seen is None
        assert resized is maps


def test_a_scale_counts_where_it_sees_the_image(wide: tuple[MLLM, Tensor, Query]) -> None:
    mllm, image, query = wide
    call = {"additional_forward_args": (query,)}
    even = MSEA(EvenScores(mllm)).attribute(image, scales=(0.5, 1.0, 2.0), **call)
    torch.testing.assert_close(even, torch.tensor([1.0, 2.0]).reshape(2, 1, 1, 1).expand_as(even))
    alone = MSEA(EvenScores(mllm)).attribute(image, scales=(0.5, 1.0), **call)
    outside = torch.ones(84, 252, dtype=torch.bool)
    outside[:, 84:168] = False
    assert not alone[..., outside].any()
    torch.testing.assert_close(alone[..., ~outside], even[..., ~outside])


@pytest.mark.parametrize("weights", ["uniform", "confidence", (1.0, 3.0)])
@pytest.mark.parametrize("method_class", [LogitLens, Saliency])
def test_outside_of_the_middle_only_the_scale_that_sees_it_has_a_say(
    wide: tuple[MLLM, Tensor, Query], method_class: type[Attribution], weights: Any
) -> None:
    mllm, image, query = wide
    msea = plain(method_class(mllm))
    call = {"target": (1, query.answer_ids[1]), "additional_forward_args": (query,)}
    both = msea.attribute(image, scales=(1.0, 2.0), weights=weights, **call)
    alone = {scale: msea.attribute(image, scales=(scale,), **call) for scale in (1.0, 2.0)}
    torch.testing.assert_close(both[..., :84], alone[2.0][..., :84])
    torch.testing.assert_close(both[..., 168:], alone[2.0][..., 168:])
    middle = slice(84, 168)
    low = torch.minimum(alone[1.0], alone[2.0])[..., middle]
    high = torch.maximum(alone[1.0], alone[2.0])[..., middle]
    margin = 1e-4 * high.abs().max()
    assert ((low - margin <= both[..., middle]) & (both[..., middle] <= high + margin)).all()
    assert not torch.allclose(both[..., middle], alone[2.0][..., middle])


@pytest.mark.parametrize("wrapper", [ARC, TAM])
def test_what_nobody_sees_has_no_say_in_the_normalisation(
    wide: tuple[MLLM, Tensor, Query], wrapper: type[TAM]
) -> None:
    mllm, image, query = wide
    suppressed = wrapper(LogitLens(mllm), filter_size=None, normalize=True)
    unscaled = wrapper(LogitLens(mllm), filter_size=None, normalize=False)
    call = {"additional_forward_args": (query,)}
    found, maps = suppressed.attribute(image, **call), unscaled.attribute(image, **call)
    seen = mllm.layouts(image, query)[0].coverage()
    assert not found[..., ~seen].any()
    text = TAM(LogitLens(mllm)).attribute_text(image, (query,))
    for token, (normalised, cleaned) in enumerate(zip(found[:, 0], maps[:, 0])):
        scores = torch.cat([cleaned[seen], text[token, : text.shape[1] - len(text) + token]])
        low, high = scores.min(), scores.max()
        torch.testing.assert_close(normalised[seen], (cleaned[seen] - low) / (high - low))


def test_evidence_at_another_scale_alone_is_kept(wide: tuple[MLLM, Tensor, Query]) -> None:
    mllm, image, query = wide
    call = {"additional_forward_args": (query,), "scales": (1.0, 2.0)}
    for options in ({}, {"image_agreement": True}):
        maps = ARC(MSEA(LogitLens(mllm)), normalize=False, **options).attribute(image, **call)
        third = maps.shape[-1] // 3
        assert maps[..., :third].any()
        assert maps[..., -third:].any()


@pytest.mark.parametrize("method_class", [LogitLens, TokenCam, AttentionMaps])
def test_methods_on_tokens_average_over_what_they_see(
    wide: tuple[MLLM, Tensor, Query], method_class: type[Attribution]
) -> None:
    mllm, image, query = wide
    msea = plain(method_class(mllm))
    call = {"additional_forward_args": (query,)}
    both = msea.attribute(image, scales=(1.0, 2.0), **call)
    fine = msea.attribute(image, scales=(2.0,), **call)
    torch.testing.assert_close(both[..., :84], fine[..., :84])


def test_a_layer_whose_rows_are_windows_is_refused() -> None:
    mllm = MLLM(*shared("llava"))
    layer = mllm.model.get_encoder(modality="image").embeddings.patch_embedding
    for size, scale in (((84, 84), 2.0), ((84, 252), 1.0)):
        image, query = mllm.prepare(ImageTextInput(random_image(*size), PROMPT), target="a cat")
        call = {"target": (1, query.answer_ids[1]), "additional_forward_args": (query,)}
        msea = MSEA(LayerGradCam(mllm, layer))
        with pytest.raises(ValueError, match="take TokenCam"):
            msea.attribute(image, scales=(scale,), **call)
        assert len(msea.attribute(image, scales=(scale,), combine=False, **call)) == 1


def test_a_layer_whose_rows_are_tiles_or_tokens_is_refused() -> None:
    mllm = MLLM(*shared("internvl"))
    tower = mllm.model.get_encoder(modality="image").embeddings.patch_embeddings.projection
    decoder = mllm.model.get_decoder().layers[0].mlp
    inp = ImageTextInput(random_image(112, 168), PROMPT)
    image, query = mllm.prepare(inp, target="a cat")
    call = {"target": (1, query.answer_ids[1]), "additional_forward_args": (query,)}
    for layer in (tower, decoder):
        with pytest.raises(ValueError, match="take TokenCam"):
            MSEA(LayerGradCam(mllm, layer)).attribute(image, scales=(1.0,), **call)
        with pytest.raises(ValueError, match="take TokenCam"):
            MLLMAttribution(LayerGradCam(mllm, layer)).attribute(inp, target="a cat")


class Multiplied(Attribution):
    """Returns each example twice."""

    def attribute(self, inputs: Tensor) -> Tensor:
        return inputs.repeat(2, 1, 1, 1)


def test_more_maps_than_examples_are_refused_on_any_network() -> None:
    msea = MSEA(Multiplied(torch.nn.Identity()))
    with pytest.raises(ValueError, match=r"\(4, 3, 8, 8\) for an input of shape \(2, 3, 8, 8\)"):
        msea.attribute(torch.rand(2, 3, 8, 8), scales=(1.0,))
