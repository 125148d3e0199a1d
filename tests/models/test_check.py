"""The check passes where all is right, and names what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.cli import main
from captum_mllm.models import Family, families
from captum_mllm.models.check import Verdict
from captum_mllm.models.grids import NativeGrid
from captum_mllm.models.layout import Layout
from captum_mllm.models.newline_grid import NewlineGrid
from captum_mllm.models.squares import FixedSquare
from captum_mllm.models.tiles import SplitTiles, Tiles
from tests.models.tiny_families import FAMILIES, build, shared
from tests.models.tiny_models import chat_template, save

IMAGE = torch.rand(3, 120, 180, generator=torch.Generator().manual_seed(0))
INPUT = ImageTextInput(IMAGE, "what is it ?")
SHORT = (1.0, 2.0)


def failed(mllm: MLLM) -> list[Verdict]:
    report = mllm.check(INPUT, SHORT)
    found = [verdict for verdict in report.verdicts if verdict.passed is False]
    assert report.passed == (not found)
    for verdict in found:
        assert f"FAILED  {verdict.name}" in str(report)
    return found


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in ("qwen2_5_vl", "llava") else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_every_family_passes(family: str) -> None:
    report = MLLM(*shared(family)).check(INPUT, SHORT)
    assert report.passed, str(report)
    assert len(report.verdicts) == 10


def test_hybrid_models_are_told_which_layers_have_attention() -> None:
    report = MLLM(*shared("qwen3_5")).check(INPUT, (1.0,))
    (attention,) = (verdict for verdict in report.verdicts if verdict.name == "attention")
    assert attention.passed is None and "layers=[3]" in attention.detail
    assert report.passed


class Frozen(transformers.Qwen2VLImageProcessorPil):
    """An image processor that makes the same of every size."""

    def resize(self, image: Any, size: Any, *args: Any, **kwargs: Any) -> Any:
        least = type(size)(shortest_edge=28 * 28 * 24, longest_edge=28 * 28 * 24)
        return super().resize(image, least, *args, **kwargs)


def frozen_scale(model: Any, processor: Any) -> None:
    processor.image_processor = Frozen(**processor.image_processor.to_dict())


def equal_limits(model: Any, processor: Any) -> None:
    processor.image_processor.min_pixels = processor.image_processor.max_pixels = 28 * 28 * 24


def no_resizing(model: Any, processor: Any) -> None:
    processor.image_processor.do_resize = False


def other_template(model: Any, processor: Any) -> None:
    processor.chat_template = chat_template("<image>")


def template_without_text(model: Any, processor: Any) -> None:
    processor.chat_template = (
        "{% for message in messages %}<|vision_start|><|image_pad|><|vision_end|>{% endfor %}"
    )


def weights_that_are_not_numbers(model: Any, processor: Any) -> None:
    with torch.no_grad():
        model.get_decoder().layers[0].mlp.up_proj.weight[0, 0] = torch.nan


FAULTS: dict[Callable[[Any, Any], None], tuple[str, str]] = {
    frozen_scale: ("scales", "expected"),
    equal_limits: ("options", "freezes the scale"),
    no_resizing: ("options", "do_resize=False"),
    other_template: ("prompt", "placeholder"),
    template_without_text: ("prompt", "what is it"),
    weights_that_are_not_numbers: ("precision", "finite"),
}


@pytest.mark.parametrize("break_it", FAULTS)
def test_a_fault_is_named(break_it: Callable[[Any, Any], None]) -> None:
    model, processor = build("qwen2_vl")
    mllm = MLLM(model, processor)
    break_it(model, processor)
    name, reason = FAULTS[break_it]
    found = {verdict.name: verdict.detail for verdict in failed(mllm)}
    assert reason in found[name], found


class Mirrored(FixedSquare):
    """A geometry that takes the tokens from right to left."""

    def drawn(self, layout: Layout, n_tokens: int) -> Tensor:
        side = layout.pieces[0].columns
        return super().drawn(layout, n_tokens).unflatten(0, (-1, side)).flip(1).flatten()


def test_a_wrong_geometry_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = build("llava")
    row = replace(families.family_of(model.config), geometry=Mirrored)
    (places,) = failed(MLLM(model, processor, geometry=row))
    assert places.name == "places" and "Mirrored is not that of this model" in places.detail


@pytest.mark.parametrize("geometry", [NativeGrid, Tiles, SplitTiles, NewlineGrid], ids=str)
def test_a_geometry_that_cannot_be_is_refused_by_name(geometry: Any) -> None:
    model, processor = shared("llava")
    with pytest.raises(ValueError, match=f"{geometry.__name__} |image processor has"):
        MLLM(model, processor, geometry=Family("llava", geometry))


@pytest.mark.parametrize(("size", "passed"), [((37, 211), True), ((20, 900), None)], ids=str)
def test_oblong_images_are_looked_at_as_far_as_they_go(
    size: tuple[int, int], passed: bool | None
) -> None:
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    report = MLLM(*shared("deepseek_vl")).check(ImageTextInput(image, "what is it ?"), (1.0,))
    (places,) = (verdict for verdict in report.verdicts if verdict.name == "places")
    assert places.passed is passed, places


def test_the_command_tells_by_its_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save("llava", tmp_path / "model")
    assert main(["check", str(folder), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] and len(report["verdicts"]) == 10
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["image_size"] = 56
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["check", str(folder)]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_the_command_loads_as_explain_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save("llava", tmp_path / "model")
    processor = tmp_path / "processor"
    processor.mkdir()
    for file in folder.iterdir():
        if file.name not in ("config.json", "model.safetensors", "generation_config.json"):
            file.rename(processor / file.name)
    command = ["check", str(folder), "--device", "cpu", "--dtype", "float32"]
    assert main([*command, "--processor", str(processor)]) == 0
    assert main(["check", str(folder), "--device", "nonsense"]) == 2
    assert "expected auto or a device" in capsys.readouterr().err


def test_an_unknown_family_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = build("llava")
    model.config.model_type = "my_vl"
    with pytest.raises(ValueError, match="geometry='probe'"):
        MLLM(model, processor)
    assert MLLM(model, processor, geometry=Family("my_vl", FixedSquare)).check(INPUT, SHORT).passed
