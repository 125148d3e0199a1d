from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.vision_utils import get_vision_window_index

from captum_mllm import ARC, MLLM, MSEA, TAM, ImageTextInput, MLLMAttribution
from captum_mllm.attr.attention_maps import AttentionMaps
from captum_mllm.models.layout import Layout, Piece
from captum_mllm.models.query import Query
from tests.models.tiny_models import FAMILIES, build, shared

# Whole patches and merge blocks of every family, and more than one attention window of Qwen2.5-VL.
SIZES = {
    "qwen2_vl": (140, 196),
    "qwen2_5_vl": (140, 196),
    "qwen3_vl": (128, 192),
    "llava": (84, 84),
    "internvl": (56, 112),
}
MODES = ("raw", "rollout", "gradient")
FUSIONS = ("mean", "max", "min")


def noise(size: tuple[int, int], seed: int = 0) -> Tensor:
    return (
        torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)).mul(255).round() / 255
    )


def sharp(family: str) -> MLLM:
    """A model of its own in float64, whose attention is far from uniform."""
    model, processor = build(family)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and any(part in name for part in ("q_proj", "k_proj", "qkv")):
                weight.mul_(12)
    return MLLM(model.double(), processor)


def prepared(mllm: MLLM, size: tuple[int, int], target: Any = "a cat sits") -> tuple[Tensor, Query]:
    return mllm.prepare(ImageTextInput(noise(size), "what is it ?"), target=target)


@contextmanager
def written_out(mllm: MLLM, vision: bool) -> Iterator[list[list[Tensor]]]:
    """Whole attention matrices (H, n, n) of each call, layer by layer, part of the graph."""
    tower: Any = mllm.model.get_encoder(modality="image")
    part: Any = tower if vision else mllm.model.get_decoder()
    seen: dict[nn.Module, list[Tensor]] = {}
    inside = {id(module) for module in part.modules()}

    def attend(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = query @ key.mT * scaling
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = scores.softmax(-1)
        if id(module) in inside:
            seen.setdefault(module, []).append(weights)
        return (weights @ value).transpose(1, 2).contiguous(), weights

    AttentionInterface.register("written_out", attend)
    AttentionMaskInterface.register("written_out", AttentionMaskInterface()["eager"])
    mllm.model.set_attn_implementation("written_out")
    layers: list[list[Tensor]] = []
    yield layers
    layers.extend(seen.values())
    mllm.model.set_attn_implementation("sdpa")


def fused(weights: Tensor, fusion: str, scaled: bool) -> Tensor:
    """(b, H, n, n) to (b, n, n)."""
    if fusion == "mean":
        return weights.mean(1)
    result = weights.max(1).values if fusion == "max" else weights.min(1).values
    return result / result.sum(-1, keepdim=True) if scaled else result


def block_diagonal(calls: list[Tensor]) -> Tensor:
    """The attention of all states to all states, from (b, n, n) of each call."""
    return torch.block_diag(*[sequence for call in calls for sequence in call])


def matrices(
    mllm: MLLM, image: Tensor, query: Query, t: int, mode: str, fusion: str, vision: bool
) -> list[Tensor]:
    """The attention matrix of each layer, as the mode asks for it."""
    with written_out(mllm, vision) as layers:
        logit = mllm(image, query)[0, t, query.answer_ids[t]]
    found = []
    for calls in layers:
        if mode == "gradient":
            slopes = torch.autograd.grad(
                logit, calls, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            calls = [call * slope.clamp(min=0) for call, slope in zip(calls, slopes)]
        found.append(
            block_diagonal([fused(call, fusion, mode != "gradient") for call in calls]).detach()
        )
    return found


def combined(layers: list[Tensor], mode: str, residual: float = 0.5) -> Tensor:
    """The matrix product written out."""
    if mode == "raw":
        return sum(layers) / len(layers)
    result = torch.eye(len(layers[0]), dtype=layers[0].dtype)
    for layer in layers:
        identity = torch.eye(len(layer), dtype=layer.dtype)
        result = (residual * identity + (1 - residual) * layer) @ result
    return result


def places(mllm: MLLM, query: Query) -> tuple[Tensor, Tensor]:
    """Positions of the image tokens, and of the rows that predict the answer."""
    size = query.native[0]
    levels = noise(size).mul(255).round().byte().permute(1, 2, 0).numpy()
    (ids,) = mllm.processor(images=[levels], text=[query.prompt], return_tensors="pt")["input_ids"]
    rows = torch.arange(len(ids) - 1, len(ids) - 1 + len(query.answer_ids))
    return (ids == mllm.image_token_id).nonzero()[:, 0], rows


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_maps_equal_the_matrix_product_written_out(
    family: str, mode: Any, fusion: Any
) -> None:
    mllm = sharp(family)
    image, query = prepared(mllm, SIZES[family])
    found = AttentionMaps(mllm, mode, head_fusion=fusion).attribute(
        image, additional_forward_args=(query,)
    )
    tokens, rows = places(mllm, query)
    layout = mllm.layouts(image, query)[0]
    for t, row in enumerate(rows):
        layers = matrices(mllm, image, query, t, mode, fusion, vision=False)
        expected = layout.paint(combined(layers, mode)[row, tokens])
        torch.testing.assert_close(found[t, 0], expected, rtol=1e-6, atol=1e-12)
        single = AttentionMaps(mllm, mode, head_fusion=fusion).attribute(
            image, target=(t, query.answer_ids[t]), additional_forward_args=(query,)
        )
        torch.testing.assert_close(single, found[t : t + 1], rtol=1e-6, atol=1e-12)
    assert found.max() > 0


def patch_order(mllm: MLLM, size: tuple[int, int]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Flat index of each patch, pieces one after the other in raster order; the pieces' shapes."""
    family = mllm.model.config.model_type
    if family in ("llava", "internvl"):
        side = 6 if family == "llava" else 4
        tiles = 1 if family == "llava" else 3
        per_tile = side * side + 1
        order = [tile * per_tile + 1 + patch for tile in range(tiles) for patch in range(side**2)]
        return torch.tensor(order), [(side, side)] * tiles
    vision = mllm.model.config.vision_config
    rows, columns = size[0] // vision.patch_size, size[1] // vision.patch_size
    merge = vision.spatial_merge_size
    block_of = list(range(rows * columns // merge**2))
    if family == "qwen2_5_vl":
        index, _ = get_vision_window_index(
            torch.tensor([[1, rows, columns]]), merge, vision.window_size, vision.patch_size
        )
        block_of = torch.argsort(index).tolist()
    order = []
    for y in range(rows):
        for x in range(columns):
            block = block_of[(y // merge) * (columns // merge) + x // merge]
            order.append(block * merge**2 + (y % merge) * merge + x % merge)
    return torch.tensor(order), [(rows, columns)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_vision_maps_equal_the_matrix_product_written_out(family: str, mode: Any) -> None:
    mllm = sharp(family)
    size = SIZES[family]
    image, query = prepared(mllm, size)
    found = AttentionMaps(mllm, mode, tower="vision").attribute(
        image, additional_forward_args=(query,)
    )
    tokens, rows = places(mllm, query)
    layout = mllm.layouts(image, query)[0]
    order, shapes = patch_order(mllm, size)
    for t, row in enumerate(rows):
        decoder = combined(matrices(mllm, image, query, t, mode, "mean", vision=False), mode)
        vision = matrices(mllm, image, query, t, mode, "mean", vision=True)
        if family == "llava":
            # Its features are the output of the second of three layers.
            vision = vision[:2]
        start = torch.zeros(len(vision[0]), dtype=torch.float64)
        each, position = decoder[row, tokens], 0
        patches = iter(order.tolist())
        for piece, (height, width) in zip(layout.pieces, shapes, strict=True):
            finer = height // piece.rows
            for y in range(height):
                for x in range(width):
                    token = position + (y // finer) * piece.columns + x // finer
                    start[next(patches)] = each[token] / finer**2
            position += piece.n_tokens
        end = (start @ combined(vision, mode))[order]
        pieces = [Piece(*shape, piece.box) for shape, piece in zip(shapes, layout.pieces)]
        expected = Layout(size, tuple(pieces)).paint(end)
        torch.testing.assert_close(found[t, 0], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("with_prompt", [False, True])
@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_text_weights_equal_the_matrix_product_written_out(
    family: str, with_prompt: bool, mode: Any
) -> None:
    mllm = sharp(family)
    image, query = prepared(mllm, SIZES[family])
    method = AttentionMaps(mllm, mode)
    asked = query.including_prompt() if with_prompt else query
    found = method.attribute_text(image, additional_forward_args=(asked,))
    words = len(mllm.states(image, query).text[0])
    count = words + len(query.answer_ids)
    assert found.shape == (count if with_prompt else count - words, count)
    answers = found[-len(query.answer_ids) :]
    _, rows = places(mllm, query)
    # The user's words end with the question mark, which the template's line end follows.
    prompt = mllm.tokenizer(query.prompt)["input_ids"]
    mark = mllm.tokenizer.convert_tokens_to_ids("Ġ?")
    end = int(rows[0]) + 1 - (len(prompt) - prompt.index(mark)) + 1
    for t, row in enumerate(rows):
        product = combined(matrices(mllm, image, query, t, mode, "mean", vision=False), mode)
        earlier = [*range(end - words, end), *rows[:t] + 1]
        expected = product[row, torch.tensor(earlier)]
        torch.testing.assert_close(answers[t, : words + t], expected, rtol=1e-6, atol=1e-12)
        assert (answers[t, words + t :] == 0).all()
    assert (found.triu(count - len(found)) == 0).all()


@pytest.mark.parametrize("tower", ["decoder", "vision"])
def test_only_the_chosen_layers_count(tower: Any) -> None:
    mllm = sharp("qwen3_vl")
    image, query = prepared(mllm, SIZES["qwen3_vl"])

    def explain(layers: list[int] | None) -> Tensor:
        method = AttentionMaps(mllm, "raw", layers=layers, tower=tower)
        return method.attribute(image, additional_forward_args=(query,))

    count = len(
        mllm.model.get_decoder().layers if tower == "decoder" else mllm.model.model.visual.blocks
    )
    each = [explain([layer]) for layer in range(count)]
    torch.testing.assert_close(explain(None), sum(each) / count)
    torch.testing.assert_close(explain([-1, -1]), each[-1])
    torch.testing.assert_close(explain([-1, 0]), (each[0] + each[-1]) / 2)
    assert not torch.allclose(each[0], each[-1])


def test_the_residual_is_the_share_that_stays() -> None:
    mllm = sharp("llava")
    image, query = prepared(mllm, SIZES["llava"])

    def explain(residual: float, mode: Any = "rollout") -> Tensor:
        method = AttentionMaps(mllm, mode, residual=residual, layers=[0])
        return method.attribute(image, additional_forward_args=(query,))

    assert (explain(1.0) == 0).all()
    torch.testing.assert_close(explain(0.0), explain(0.0, "raw"))
    torch.testing.assert_close(explain(0.25), 0.75 * explain(0.0))


@pytest.mark.parametrize("tower", ["decoder", "vision"])
@pytest.mark.parametrize("size", [(84, 84), (168, 168)])
def test_relative_maps_count_in_even_shares(size: tuple[int, int], tower: Any) -> None:
    mllm = sharp("llava")
    _, query = prepared(mllm, (84, 84))
    image = noise(size, seed=1)[None]

    def explain(relative: bool) -> Tensor:
        method = AttentionMaps(mllm, "raw", tower=tower, relative=relative)
        return method.attribute(image, additional_forward_args=(query,))

    # Windows of a larger scale share a row each among 6 x 6 tokens.
    torch.testing.assert_close(explain(True), 36 * explain(False))


@pytest.mark.parametrize("family", ["qwen2_vl", "internvl"])
def test_a_row_that_looks_evenly_at_images_alone_has_ones(family: str) -> None:
    mllm = sharp(family)
    pictures = [noise(SIZES[family], 1), noise((112, 56), 2)]
    opened, query = mllm.prepare(ImageTextInput(pictures, "what differs ?"), target="a cat")

    def evenly(weights: Tensor) -> Tensor:
        spread = torch.zeros_like(weights)
        spread[..., images] = 1 / len(images)
        return spread.mean(1)

    encoding = mllm.encode(opened, query)
    images = torch.cat(encoding.image_positions)
    method = AttentionMaps(mllm, "raw", relative=True)
    with mock.patch.object(method, "_fuse", evenly):
        maps = method.attribute(opened, additional_forward_args=(query,))
    assert all(torch.allclose(found, torch.ones_like(found)) for found in maps)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tower", ["decoder", "vision"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_images_equals_single_ones(family: str, tower: Any, mode: Any) -> None:
    mllm = MLLM(*shared(family))
    size = SIZES[family]
    _, query = prepared(mllm, size)
    images = torch.stack([noise(size, seed) for seed in range(2)])
    targets = [(0, query.answer_ids[0]), (1, 5)]
    method = AttentionMaps(mllm, mode, tower=tower)
    together = method.attribute(images, target=targets, additional_forward_args=(query,))
    for image, target, found in zip(images, targets, together):
        single = method.attribute(image[None], target=target, additional_forward_args=(query,))
        torch.testing.assert_close(found[None], single, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("tower", ["decoder", "vision"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_several_open_images_have_a_map_each(family: str, tower: Any) -> None:
    mllm = sharp(family)
    pictures = [noise((84, 84), 1), noise((84, 140), 2)]
    opened, query = mllm.prepare(ImageTextInput(pictures, "what differs ?"), target="a cat")
    method = AttentionMaps(mllm, tower=tower)
    maps = method.attribute(opened, additional_forward_args=(query,))
    assert isinstance(maps, tuple)
    for index, found in enumerate(maps):
        inp = ImageTextInput(pictures, "what differs ?", explained=index)
        image, alone = mllm.prepare(inp, target="a cat")
        torch.testing.assert_close(found, method.attribute(image, additional_forward_args=(alone,)))


def test_each_window_of_a_larger_scale_is_a_pass_of_its_own() -> None:
    mllm = sharp("llava")
    _, query = prepared(mllm, (84, 84))
    image = noise((168, 168), seed=1)[None]
    for tower in ("decoder", "vision"):
        method = AttentionMaps(mllm, tower=tower)
        found = method.attribute(image, additional_forward_args=(query,))
        for top in (0, 84):
            for left in (0, 84):
                window = image[..., top : top + 84, left : left + 84]
                expected = method.attribute(window, additional_forward_args=(query,))
                row, column = top // 14, left // 14
                torch.testing.assert_close(found[..., row : row + 6, column : column + 6], expected)


@pytest.mark.parametrize("wrap", [MSEA, TAM, lambda method: ARC(MSEA(method))])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_runs_under_the_wrappers(family: str, mode: Any, wrap: Callable[[Any], Any]) -> None:
    mllm = MLLM(*shared(family))
    image, query = prepared(mllm, SIZES[family])
    method = wrap(AttentionMaps(mllm, mode))
    maps = method.attribute(image, additional_forward_args=(query,))
    assert maps.shape[:2] == (len(query.answer_ids), 1)
    assert torch.isfinite(maps).all()
    assert (maps >= 0).all()
    assert maps.max() > 0


def test_gives_a_result_its_maps_and_its_weights_of_words() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    inp = ImageTextInput(noise((56, 84)), "what is it ?")
    method = AttentionMaps(mllm)
    image, query = mllm.prepare(inp, target="a cat")
    result = MLLMAttribution(method).attribute(inp, target="a cat")
    torch.testing.assert_close(
        result.image_attr, method.attribute(image, additional_forward_args=(query,))[:, 0]
    )
    assert result.token_attr is not None
    torch.testing.assert_close(result.token_attr, method.attribute_text(image, query))


def local(family: str) -> MLLM:
    """A model whose image tokens come from their own patches alone."""
    mllm = sharp(family)
    for name, module in mllm.model.get_encoder(modality="image").named_modules():
        if name.endswith(("attn.proj", "out_proj", "projection_layer")):
            assert isinstance(module, nn.Linear)
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return mllm


@pytest.mark.parametrize("mode", ["raw", "rollout"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_patch_moves_the_map_most_at_its_place(family: str, mode: Any) -> None:
    mllm = local(family)
    size = SIZES[family]
    image, query = prepared(mllm, size, target=list(range(3, 35)))
    # The first layer attends to tokens that do not know of each other yet.
    method = AttentionMaps(mllm, mode, layers=[0])
    before = method.attribute(image, additional_forward_args=(query,))
    cell = 2 * mllm.model.config.vision_config.patch_size if family.startswith("qwen") else 28
    corners = [(y, x) for y in range(0, size[0], cell) for x in range(0, size[1], cell)]

    for y, x in corners[:: max(len(corners) // 5, 1)]:
        changed = image.clone()
        changed[..., y : y + cell, x : x + cell] = 1 - changed[..., y : y + cell, x : x + cell]
        after = method.attribute(changed, additional_forward_args=(query,))
        moved = (after - before).abs().sum((0, 1))
        row, column = divmod(int(moved.argmax()), moved.shape[1])
        assert y <= (row + 0.5) * size[0] / moved.shape[0] <= y + cell
        assert x <= (column + 0.5) * size[1] / moved.shape[1] <= x + cell


def snapshot(model: Any) -> list[Any]:
    modules = [
        (name, module.training, list(module._forward_hooks))
        for name, module in model.named_modules()
    ]
    parameters = [(name, part.requires_grad, part.grad) for name, part in model.named_parameters()]
    parts = [model.config, model.config.vision_config, model.config.text_config]
    return [*modules, *parameters, *(part._attn_implementation for part in parts)]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_left_as_it_was(
    family: str, mode: Any, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    mllm = MLLM(*build(family))
    image, query = prepared(mllm, SIZES[family])
    # transformers adds hooks of its own in the first pass.
    mllm(image, query)
    mllm.model.train()
    mllm.model.set_attn_implementation({"vision_config": "eager", "text_config": "sdpa"})
    before = snapshot(mllm.model)
    method = AttentionMaps(mllm, mode, tower="vision")

    def run() -> None:
        method.attribute(image, additional_forward_args=(query,))

    with torch.no_grad():
        if fails:

            def fail(*args: Any, **kwargs: Any) -> None:
                raise FloatingPointError

            monkeypatch.setattr(mllm.model.get_decoder().layers[-1], "forward", fail)
            with pytest.raises(FloatingPointError):
                run()
        else:
            run()
        assert not torch.is_grad_enabled()

    assert snapshot(mllm.model) == before


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loaded_implementation_does_not_matter(family: str, mode: Any) -> None:
    mllm = sharp(family)
    image, query = prepared(mllm, SIZES[family])
    maps = []
    for implementation in ("sdpa", "eager"):
        mllm.model.set_attn_implementation(implementation)
        method = AttentionMaps(mllm, mode, tower="vision")
        maps.append(method.attribute(image, additional_forward_args=(query,)))
        assert mllm.model.config._attn_implementation == implementation
    torch.testing.assert_close(*maps)


@pytest.mark.parametrize("mode", MODES)
def test_bfloat16_and_a_constant_image_give_finite_float32_maps(mode: Any) -> None:
    model, processor = build("qwen2_vl")
    mllm = MLLM(model.bfloat16(), processor)
    image, query = mllm.prepare(ImageTextInput(torch.zeros(3, 56, 84), "what ?"), target="a cat")
    maps = AttentionMaps(mllm, mode).attribute(image, additional_forward_args=(query,))
    assert maps.dtype == torch.float32
    assert torch.isfinite(maps).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "flow"}, "mode='flow', expected one of 'raw', 'rollout', 'gradient'"),
        ({"head_fusion": "sum"}, "head_fusion='sum', expected one of"),
        ({"tower": "both"}, "tower='both', expected one of"),
        ({"residual": 1.5}, "residual=1.5, expected a number in"),
        ({"layers": [2]}, "indices of the 2 layers of the language model"),
        ({"layers": []}, "indices of the 2 layers of the language model"),
        # LLaVA has three vision layers, and takes its features from the second.
        ({"layers": [2], "tower": "vision"}, "indices of the 2 layers of the vision tower"),
    ],
)
def test_unknown_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AttentionMaps(MLLM(*shared("llava")), **options)


def test_several_images_need_a_target() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = prepared(mllm, (84, 84))
    with pytest.raises(ValueError, match="got a batch of 2 images and no target"):
        AttentionMaps(mllm).attribute(image.expand(2, -1, -1, -1), additional_forward_args=(query,))
    with pytest.raises(TypeError, match="expected an MLLM"):
        AttentionMaps(mllm.model)  # type: ignore[arg-type]
