"""How methods are put together of bases, wrappers and scales."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from captum_mllm import MSEA, AttentionRollout, LogitLens
from captum_mllm.evaluation.cases import Case
from captum_mllm.evaluation.map_function import geometric_mean, product
from captum_mllm.evaluation.method import attribution
from captum_mllm.evaluation.methods import ATTENTION, LENS


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
        attention = AttentionRollout(case.mllm, mode="raw")
        attended = case.maps(MSEA(attention), scales=(scale,), output_size="largest")
        return expected(lens.relu(), attended).float()

    small, large = at(0.5), at(1.0)
    small = torch.nn.functional.interpolate(
        small[:, None], large.shape[-2:], mode="bilinear", antialias=True
    )[:, 0]
    found = attribution((LENS, ATTENTION), scales=(0.5, 1.0), combine=combine)(case)
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
