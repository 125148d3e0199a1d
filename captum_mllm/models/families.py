"""The model families: a row of facts each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from captum_mllm.models.geometry import FixedSquare, Geometry, NativeGrid, Tiles


@dataclass(frozen=True)
class Family:
    r"""What there is to know of a family of multimodal models.

    Everything else is read from the model's configuration and its processor.

    Args:
        model_type (str): the name in the model's configuration.
        geometry (type[Geometry]): how its vision encoder turns a picture into tokens.
    """

    model_type: str
    geometry: type[Geometry]


FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("qwen2_vl", NativeGrid),
        Family("qwen2_5_vl", NativeGrid),
        Family("qwen3_vl", NativeGrid),
        Family("llava", FixedSquare),
        Family("internvl", Tiles),
    )
}


def register_family(family: Family) -> None:
    r"""Make a family of your own known, or replace the facts on a known one.

    Args:
        family (Family): its row of facts.

    Examples::
        >>> from captum_mllm.models.families import FAMILIES, Family, register_family
        >>> from captum_mllm.models.geometry import NativeGrid
        >>> register_family(Family("my_vl", NativeGrid))
        >>> FAMILIES.pop("my_vl").geometry.__name__
        'NativeGrid'
    """
    FAMILIES[family.model_type] = family


def family_of(config: Any) -> Family:
    r"""The family of a model's configuration.

    Raises:
        ValueError: for a family that is not in the table, and for a model without pictures.
    """
    known = ", ".join(FAMILIES)
    if getattr(config, "vision_config", None) is None:
        raise ValueError(
            f"{config.model_type!r} is a model of text alone, expected one that takes pictures: "
            f"{known}"
        )
    if config.model_type not in FAMILIES:
        raise ValueError(
            f"the family {config.model_type!r} is not known, expected one of {known}; if its "
            "picture tokens lie as those of a known family do, add a row for it with "
            "captum_mllm.models.register_family(Family(model_type, geometry))"
        )
    return FAMILIES[config.model_type]
