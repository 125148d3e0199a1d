"""probe: finds the geometry of a family that is not in the table, by trying those of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from captum_mllm.models.backbone import Backbone
from captum_mllm.models.encoding import Encoding
from captum_mllm.models.families import FAMILIES, Family
from captum_mllm.models.locate import locate
from captum_mllm.models.parity import check_parity, noise
from captum_mllm.models.query import Query

# Odd, wide and tall, in pixels, and the share of cells that have to be found at each of them.
SIZES = ((194, 262), (168, 392), (336, 140))
SHARE = 0.95


def probe(model: Any, processor: Any) -> Family:
    r"""The facts of a model's family, found by changing cells of images.

    Every geometry of the table is tried. It is right if the token that it names for a cell moves
    most when the cell is changed, for at least 95 % of the cells at each of three sizes, at its
    native scale and at twice that.

    Args:
        model (PreTrainedModel): a model of images and text.
        processor (ProcessorMixin): its processor.

    Returns:
        Family: its row of facts, as far as they can be found.

    Raises:
        ValueError: if none is right, which tells the best and how far it is.
    """
    results: list[tuple[float, str]] = []
    for family in _candidates(model.config):
        name = family.geometry.__name__ + ("".join(f", {key}" for key in family.options))
        try:
            backbone = Backbone(model, processor, family)
            shares = [_share(backbone, size) for size in SIZES]
        except Exception as error:
            # A geometry that does not fit may raise anything.
            results.append((0.0, f"{name}: {type(error).__name__}: {error}"))
            continue
        if min(shares) >= SHARE:
            return family
        results.append((min(shares), f"{name}: {min(shares):.0%} of the cells were found"))
    best = max(results, key=lambda result: result[0])
    tried = "; ".join(reason for _, reason in sorted(results, reverse=True)[:3])
    raise ValueError(
        f"no geometry is right for {model.config.model_type!r}: the best finds {best[0]:.0%} of "
        f"the cells that were changed, expected {SHARE:.0%} at sizes {SIZES}. {tried}. Write a "
        "geometry of your own, see the page on families"
    )


def _candidates(config: Any) -> Iterator[Family]:
    """A row with each geometry of the table, of the model's own name."""
    seen: list[Any] = []
    for family in FAMILIES.values():
        facts = (family.geometry, dict(family.options))
        if facts not in seen:
            seen.append(facts)
            yield Family(config.model_type, family.geometry, family.options)


def _share(backbone: Backbone, size: tuple[int, int]) -> float:
    """The share of cells that are found at the native scale and at twice that, the lesser one."""
    check_parity(backbone.processor, backbone.geometry, backbone.image_token_id)
    prompt = backbone.processor.image_token
    shares = []
    for scale in (1, 2):
        image = noise(scale * size[0], scale * size[1]).to(backbone.device)
        query = Query(prompt, (0,), (), (size,), (None,))
        shares.append(locate(backbone, _encoder(backbone, query), image).share)
        if shares[-1] < SHARE:
            break
    return min(shares)


def _encoder(backbone: Backbone, query: Query) -> Any:
    def make(images: Tensor) -> Encoding:
        with torch.no_grad():
            return backbone.encode((images,), query)

    return make
