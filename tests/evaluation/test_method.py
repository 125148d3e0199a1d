"""A model before one sample, and how methods are put together of bases, wrappers and scales."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
from captum.attr import Attribution
from torch import Tensor

from captum_mllm import ARC, MLLM, MSEA, TAM, AttentionMaps, LogitLens, TokenCam
from captum_mllm.attr.token_maps import token_maps
from captum_mllm.evaluation.attributions import geometric_mean, product
from captum_mllm.evaluation.method import Case, attribution
from captum_mllm.evaluation.published import ATTENTION, LENS
from captum_mllm.models.backbone import Backbone

SCALES = (0.5, 1.0, 1.5)


@pytest.mark.parametrize(
    ("base", "wrap"),
    [
        (LogitLens, lambda base: ARC(MSEA(base))),
        (LogitLens, lambda base: TAM(MSEA(base))),
        (AttentionMaps, lambda base: ARC(MSEA(base))),
        (TokenCam, MSEA),
    ],
)
def test_shared_maps_are_the_method_s_own(
    case: Case, base: Callable[[MLLM], Attribution], wrap: Callable[[Attribution], Attribution]
) -> None:
    options: dict[str, Any] = {"scales": SCALES, "output_size": "largest"}
    alone = token_maps(wrap(base(case.mllm)), (case.image,), case.query, **options).maps[0][:, 0]
    with case.sharing():
        case.maps(MSEA(case.base(base)), **options)
        shared = case.maps(wrap(case.base(base)), **options)
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-5)


def test_methods_on_one_base_make_one_pass_for_each_scale(case: Case) -> None:
    passes = []
    handle = case.mllm.model.register_forward_hook(lambda *_: passes.append(1))
    inner = case.mllm.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    try:
        with case.sharing():
            for wrap in (MSEA, lambda base: ARC(MSEA(base)), lambda base: TAM(MSEA(base))):
                case.maps(wrap(case.base(LogitLens)), scales=SCALES)
            case.maps(ARC(case.base(LogitLens)))
            case.logits(0.5)
    finally:
        handle.remove()
        inner.remove()
    assert len(passes) == len(SCALES)


def test_further_methods_on_one_base_do_not_run_the_processor(case: Case) -> None:
    with case.sharing():
        case.maps(MSEA(case.base(LogitLens)), scales=SCALES)
        with mock.patch.object(Backbone, "encode", side_effect=AssertionError):
            case.maps(ARC(MSEA(case.base(LogitLens))), scales=SCALES)


def test_logits_are_those_of_the_model(case: Case) -> None:
    with torch.no_grad():
        expected = case.mllm(case.image, case.query)[0]
    torch.testing.assert_close(case.logits(), expected)


def test_the_map_of_a_word_is_the_mean_over_its_tokens(case: Case) -> None:
    words = case.words
    case.words = (type(words[0])("noun", (0, 2), 0), *words[1:])
    maps = torch.rand(len(case.query.answer_ids), 3, 3)
    torch.testing.assert_close(case.of_words(maps, [0])[0], (maps[0] + maps[2]) / 2)
    assert case.of_words(maps, []).shape == (0, 3, 3)


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        (product, lambda lens, attention: lens * attention),
        (geometric_mean, lambda lens, attention: (lens.double() * attention.double()).sqrt()),
    ],
)
def test_several_bases_are_combined_at_each_scale(
    case: Case, combine: Callable[..., Tensor], expected: Callable[[Tensor, Tensor], Tensor]
) -> None:
    def at(scale: float) -> Tensor:
        lens = case.maps(MSEA(LogitLens(case.mllm)), scales=(scale,), output_size="largest")
        attention = AttentionMaps(case.mllm, mode="raw")
        attended = case.maps(MSEA(attention), scales=(scale,), output_size="largest")
        return expected(lens.relu(), attended).float()

    small, large = at(0.5), at(1.0)
    small = torch.nn.functional.interpolate(
        small[:, None], large.shape[-2:], mode="bilinear", antialias=True
    )[:, 0]
    options = {"scales": (0.5, 1.0), "normalize": "none"}
    found = attribution((LENS, ATTENTION), combine=combine, **options)(case)
    torch.testing.assert_close(found, (small + large) / 2, rtol=1e-4, atol=1e-6)


def test_several_bases_share_their_maps_with_others(case: Case) -> None:
    attribution((LENS, ATTENTION))(case)
    passes: list[int] = []
    handle = case.mllm.model.base_model.register_forward_hook(lambda *_: passes.append(1))
    try:
        attribution((LENS, ATTENTION), combine=geometric_mean)(case)
        attribution(ATTENTION)(case)
    finally:
        handle.remove()
    assert not passes
