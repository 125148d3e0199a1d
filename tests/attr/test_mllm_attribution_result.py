from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from captum.attr import visualization
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from captum_mllm import MLLMAttributionResult
from captum_mllm.explain import ScaleResult

matplotlib.use("Agg")


def make(**changes: Any) -> MLLMAttributionResult:
    """Three tokens, two words ("a", "<b>cat"), after a prompt of two tokens."""
    weights = torch.tensor([[0.5, 1, 0, 0, 0], [0, 2, 1, 0, 0], [0.0, 0, 0, 0, 0]])
    maps = torch.zeros(3, 2, 4)
    maps[0, 0, 0], maps[1, 1, 3], maps[2, 1, 2] = 1.0, 2.0, 4.0
    parts: dict[str, Any] = {
        "input_tokens": ["what", " ?", "a", " <b>", "cat"],
        "output_tokens": ["a", " <b>", "cat"],
        "image_attr": maps,
        "token_attr": weights,
        "output_probs": torch.tensor([0.5, 0.25, 1.0]),
        "n_prompt": 2,
        "words": [(0,), (1, 2)],
        "top_predictions": [[("a", 0.5), ("the", 0.25)]] * 3,
        "picture": Image.fromarray(np.arange(96, dtype=np.uint8).reshape(4, 8, 3)),
        "scales": [
            ScaleResult(1.0, torch.rand(3, 2, 4), torch.rand(3)),
            ScaleResult(2.0, torch.rand(3, 4, 8)),
        ],
        "prompt": "what ?",
        "method": "ARC(MSEA(LogitLens))",
        "model": "toy",
    }
    return MLLMAttributionResult(**{**parts, **changes})


def test_a_map_has_the_size_of_the_picture() -> None:
    result = make()
    for token in (0, -1, (0, 2), None, "a", "<b>cat"):
        array = result.map(token)
        assert array.shape == (4, 8)
        assert array.dtype == np.float32
    assert np.array_equal(result.map(1), result.map(-2))
    assert np.allclose(result.map((1, 3)), (result.map(1) + result.map(2)) / 2)
    assert np.array_equal(result.map("<b>cat"), result.map((1, 3)))
    assert np.allclose(result.map(), sum(result.map(i) for i in range(3)) / 3)
    for token in (3, -4, (3, 5), (1, 1), "dog"):
        with pytest.raises(ValueError, match=r"token|word"):
            result.map(token)


def test_it_is_captums_result() -> None:
    result = make()
    assert torch.equal(result.seq_attr, result.token_attr.sum(0))
    assert result.output_words == ["a", "<b>cat"]
    figure, _ = result.plot_token_attr()
    figure.canvas.draw()


@pytest.mark.parametrize("token", [None, 0, (0, 2), "a"])
def test_the_heatmap_is_drawn_over_the_picture(token: Any) -> None:
    figure, axes = make().plot_image_heatmap(target_token_pos=token)
    figure.canvas.draw()
    picture, overlay = axes.images
    assert np.array_equal(picture.get_array(), np.asarray(make().picture))
    assert np.array_equal(overlay.get_array(), make().map(token))


def test_zero_and_signed_maps_are_drawn_too() -> None:
    for maps in (torch.zeros(3, 2, 4), -torch.rand(3, 2, 4)):
        result = make(image_attr=maps)
        for figure, _ in (result.plot_image_heatmap(), result.plot_words()):
            figure.canvas.draw()
            pixels = np.asarray(figure.canvas.buffer_rgba())
            assert np.isfinite(pixels).all()


def test_the_sheet_has_a_picture_for_each_word() -> None:
    figure, axes = make().plot_words(columns=3)
    figure.canvas.draw()
    assert [place.get_title() for place in axes.flat] == ["a", "<b>cat"]


def test_maps_go_straight_into_captums_visualizer() -> None:
    result = make()
    figure, _ = visualization.visualize_image_attr(
        result.map(1)[..., None],
        np.asarray(result.picture),
        method="blended_heat_map",
        use_pyplot=False,
    )
    figure.canvas.draw()


def test_weights_go_straight_into_captums_text_visualizer() -> None:
    pytest.importorskip("IPython")
    records = make().text_records()
    assert [float(record.word_attributions.max()) for record in records] == [1, 1, 0]
    page = visualization.visualize_text(records).data
    assert "&lt;b&gt;" in page
    assert " <b>" not in page


def test_it_is_read_as_it_was_saved(tmp_path: Path) -> None:
    result, path = make(), tmp_path / "result.safetensors"
    result.save(path)
    read = MLLMAttributionResult.load(path)
    for name in ("image_attr", "token_attr", "output_probs", "seq_attr"):
        assert torch.equal(getattr(read, name), getattr(result, name))
    for name in ("input_tokens", "output_tokens", "words", "top_predictions", "n_prompt"):
        assert getattr(read, name) == getattr(result, name)
    for name in ("prompt", "method", "model"):
        assert getattr(read, name) == getattr(result, name)
    assert np.array_equal(np.asarray(read.picture), np.asarray(result.picture))
    for one, other in zip(read.scales, result.scales, strict=True):
        assert one.scale == other.scale
        assert torch.equal(one.image_attr, other.image_attr)
    assert read.scales[1].output_probs is None
    assert read.to_html() == result.to_html()


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def test_what_was_tampered_with_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.safetensors"
    make().save(path)
    tensors, header = contents(path)

    changed = {**tensors, "output_probs": tensors["output_probs"] + 0.1}
    save_file(changed, path, metadata=header)
    with pytest.raises(ValueError, match="was changed since it was saved"):
        MLLMAttributionResult.load(path)

    facts = json.loads(header["facts"])
    facts["output_tokens"][0] = "the"
    save_file(tensors, path, metadata={**header, "facts": json.dumps(facts)})
    with pytest.raises(ValueError, match="was changed since it was saved"):
        MLLMAttributionResult.load(path)

    save_file(tensors, path, metadata={"format": "other"})
    with pytest.raises(ValueError, match="of the format 'other'"):
        MLLMAttributionResult.load(path)

    make().save(path)
    whole = path.read_bytes()
    for bad in (whole[: len(whole) // 2], b"", b"\x80\x04pickle"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="is not a saved result"):
            MLLMAttributionResult.load(path)
    with pytest.raises(FileNotFoundError, match="no saved result"):
        MLLMAttributionResult.load(tmp_path / "absent")


def test_a_sealed_file_without_a_part_is_refused(tmp_path: Path) -> None:
    from captum_mllm.attr import result_file

    path = tmp_path / "result.safetensors"
    make().save(path)
    tensors, facts = result_file.read(path)
    del tensors["picture"]
    result_file.write(path, tensors, facts)
    with pytest.raises(ValueError, match="lacks a part of a result: 'picture'"):
        MLLMAttributionResult.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_attr": torch.zeros(2, 2, 4)},
        {"image_attr": torch.zeros(3, 8)},
        {"token_attr": torch.zeros(3, 4)},
        {"output_probs": torch.zeros(2)},
        {"words": [(0,), (2,)]},
        {"n_prompt": 4},
        {"top_predictions": []},
        {"scales": [ScaleResult(1.0, torch.zeros(2, 2, 4))]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        make(**changes)


@pytest.mark.parametrize("part", ["image_attr", "token_attr", "output_probs"])
def test_numbers_that_are_not_finite_are_refused(part: str) -> None:
    whole = getattr(make(), part)
    with pytest.raises(ValueError, match=f"{part} has numbers that are not finite"):
        make(**{part: torch.full_like(whole, torch.nan)})


def test_half_precision_is_kept_as_float32(tmp_path: Path) -> None:
    half = make(image_attr=make().image_attr.bfloat16(), token_attr=make().token_attr.bfloat16())
    half.save(tmp_path / "result.safetensors")
    read = MLLMAttributionResult.load(tmp_path / "result.safetensors")
    assert read.image_attr.dtype == read.token_attr.dtype == torch.float32
    assert torch.equal(read.image_attr, make().image_attr)


def test_a_saved_file_has_the_users_permissions(tmp_path: Path) -> None:
    make().save(tmp_path / "result.safetensors")
    (tmp_path / "plain").write_text("")
    assert (tmp_path / "result.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_word_of_the_prompt_gives_way_to_the_answers() -> None:
    repeated = make(
        input_tokens=["a", " dog", "a", " <b>", "cat"],
        output_tokens=["a", " dog", "a", " <b>", "cat"],
        image_attr=torch.arange(5.0)[:, None, None].expand(5, 2, 4),
        token_attr=torch.zeros(5, 5),
        output_probs=torch.ones(5),
        top_predictions=[[]] * 5,
        words=[(0,), (1,), (2,), (3, 4)],
        scales=[],
    )
    assert repeated.map("a").max() == 2
    assert repeated.map("dog").max() == 1


def test_the_page_and_the_notebook_view_are_made(tmp_path: Path) -> None:
    result = make()
    result.save_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page == result.to_html()
    assert "ARC(MSEA(LogitLens))" in page
    assert result._repr_html_().startswith("<iframe")
