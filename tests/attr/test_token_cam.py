from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from captum_mllm import ARC, MLLM, MSEA, TAM, ImageTextInput
from captum_mllm.attr.token_cam import TokenCam
from captum_mllm.models.layout import Layout, Piece
from captum_mllm.models.query import Query
from captum_mllm.models.towers import Tower
from tests.models.tiny_models import FAMILIES, build, shared

# Whole patches and merge blocks of every family, and more than one attention window of Qwen2.5-VL.
SIZES = {
    "qwen2_vl": (140, 196),
    "qwen2_5_vl": (140, 196),
    "qwen3_vl": (128, 192),
    "llava": (84, 84),
    "internvl": (56, 112),
}
VARIANTS = ("hires_cam", "grad_cam", "grad_cam++")


def noise(size: tuple[int, int], seed: int = 0) -> Tensor:
    return (
        torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)).mul(255).round() / 255
    )


def prepared(mllm: MLLM, size: tuple[int, int], target: Any = "a cat") -> tuple[Tensor, Query]:
    return mllm.prepare(ImageTextInput(noise(size), "what is it ?"), target=target)


def vision_blocks(mllm: MLLM) -> list[nn.Module]:
    tower: Any = mllm.model.get_encoder(modality="image")
    blocks = getattr(tower, "blocks", None)
    if blocks is None:
        blocks = getattr(tower.encoder, "layers", None) or tower.encoder.layer
    return list(blocks)


def raster_of_vision_states(mllm: MLLM, states: Tensor, size: tuple[int, int]) -> list[Tensor]:
    """States of patches as a (rows, columns, d) grid for each piece, by each family's rules."""
    family = mllm.model.config.model_type
    if family in ("llava", "internvl"):
        side = int((states.shape[1] - 1) ** 0.5)
        return [tile[1:].reshape(side, side, -1) for tile in states]
    vision = mllm.model.config.vision_config
    rows, columns = size[0] // vision.patch_size, size[1] // vision.patch_size
    merge = vision.spatial_merge_size
    blocks = states.reshape(-1, merge * merge, states.shape[-1])
    if family == "qwen2_5_vl":
        grid = torch.tensor([[1, rows, columns]])
        index, _ = get_vision_window_index(grid, merge, vision.window_size, vision.patch_size)
        blocks = blocks[torch.argsort(index)]
    found = states.new_zeros(rows, columns, states.shape[-1])
    for block_row in range(rows // merge):
        for block_column in range(columns // merge):
            block = blocks[block_row * (columns // merge) + block_column]
            for y in range(merge):
                for x in range(merge):
                    found[block_row * merge + y, block_column * merge + x] = block[y * merge + x]
    return [found]


def naive_map(activation: Tensor, gradient: Tensor, variant: str) -> Tensor:
    """One value for each of N tokens from (N, d), channel by channel, in float64."""
    activation, gradient = activation.double(), gradient.double()
    total = torch.zeros(len(activation), dtype=torch.float64)
    for channel in range(activation.shape[1]):
        states, slope = activation[:, channel], gradient[:, channel]
        if variant == "hires_cam":
            weight = slope
        elif variant == "grad_cam":
            weight = slope.mean()
        else:
            alpha = slope**2 / (2 * slope**2 + states.clamp(min=0).sum() * slope**3)
            weight = (alpha.nan_to_num() * slope.clamp(min=0)).sum()
        total += weight * states
    return total.clamp(min=0)


def states_and_gradient(
    mllm: MLLM, layer: nn.Module, image: Tensor, query: Query, t: int
) -> tuple[Tensor, Tensor]:
    """The output of a layer and the gradient of one logit, by plain backpropagation."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        states.retain_grad()
        seen.append(states)

    handle = layer.register_forward_hook(keep)
    logit = mllm(image, query)[:, t, query.answer_ids[t]].sum()
    handle.remove()
    logit.backward()
    mllm.model.zero_grad(set_to_none=True)
    assert seen[0].grad is not None
    return seen[0].detach(), seen[0].grad


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_decoder_maps_equal_a_straightforward_implementation(family: str, variant: Any) -> None:
    mllm = MLLM(*build(family))
    image, query = prepared(mllm, SIZES[family])
    states, gradient = states_and_gradient(
        mllm, mllm.model.get_decoder().layers[0], image, query, 1
    )
    (ids,) = mllm.processor(
        images=[ImageTextInput(image, "x").images[0].mul(255).byte().permute(1, 2, 0).numpy()],
        text=[query.prompt],
        return_tensors="pt",
    )["input_ids"]
    places = (ids == mllm.image_token_id).nonzero()[:, 0]
    expected = naive_map(states[0, places], gradient[0, places], variant)

    found = TokenCam(mllm, layer=0, variant=variant, tower="decoder").attribute(
        image, target=(1, query.answer_ids[1]), additional_forward_args=(query,)
    )

    painted = mllm.layouts(image, query)[0].paint(expected)
    assert painted.max() > 0
    torch.testing.assert_close(found[0, 0].double(), painted, rtol=1e-4, atol=1e-4 * painted.max())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_vision_maps_equal_a_straightforward_implementation(
    family: str, index: int, variant: Any
) -> None:
    mllm = MLLM(*build(family))
    size = SIZES[family]
    image, query = prepared(mllm, size)
    layer = vision_blocks(mllm)[index]
    states, gradient = states_and_gradient(mllm, layer, image, query, 0)
    grids = raster_of_vision_states(mllm, states, size)
    slopes = raster_of_vision_states(mllm, gradient, size)
    expected = naive_map(
        torch.cat([grid.flatten(0, 1) for grid in grids]),
        torch.cat([slope.flatten(0, 1) for slope in slopes]),
        variant,
    )
    if variant == "hires_cam" and layer is vision_blocks(mllm)[-1] and family.startswith("qwen"):
        pytest.skip("refused: its states are normalised before anything reads them")
    pieces = [
        Piece(grid.shape[0], grid.shape[1], piece.box)
        for grid, piece in zip(grids, mllm.layouts(image, query)[0].pieces, strict=True)
    ]
    painted = Layout(size, tuple(pieces)).paint(expected)

    for given in (layer, index):
        found = TokenCam(mllm, layer=given, variant=variant, tower="vision").attribute(
            image, target=(0, query.answer_ids[0]), additional_forward_args=(query,)
        )
        assert painted.max() > 0
        torch.testing.assert_close(
            found[0, 0].double(), painted, rtol=1e-4, atol=1e-4 * painted.max()
        )


def test_windows_of_a_larger_scale_are_one_image() -> None:
    mllm = MLLM(*build("llava"))
    _, query = prepared(mllm, (84, 84))
    image = noise((168, 168), seed=1)[None]
    token = query.answer_ids[1]
    layer = mllm.model.get_decoder().layers[0]
    states, slopes = [], []
    for top in (0, 84):
        for left in (0, 84):
            window = image[..., top : top + 84, left : left + 84]
            found, gradient = states_and_gradient(mllm, layer, window, query, 1)
            places = slice(*image_span(mllm, window, query))
            states.append(found[0, places])
            slopes.append(gradient[0, places] / 4)
    expected = naive_map(torch.cat(states), torch.cat(slopes), "grad_cam")
    grid = expected.unflatten(0, (2, 2, 6, 6)).transpose(1, 2).reshape(12, 12)

    maps = TokenCam(mllm, layer=0, variant="grad_cam", tower="decoder").attribute(
        image, target=(1, token), additional_forward_args=(query,)
    )

    torch.testing.assert_close(maps[0, 0].double(), grid, rtol=1e-4, atol=1e-4 * grid.max())


def image_span(mllm: MLLM, image: Tensor, query: Query) -> tuple[int, int]:
    """Where the image tokens start and end in a prompt of one image and one piece."""
    count = mllm.layouts(image, query)[0].n_tokens
    before = query.prompt.split(mllm.processor.image_token)[0]
    start = len(mllm.tokenizer(before)["input_ids"])
    return start, start + count


def switch_off_attention(model: nn.Module) -> None:
    """Each state comes from its own token alone, but in the last layer of the decoder."""
    last = model.get_decoder().layers[-1]
    kept = {id(module) for module in last.modules()}
    for name, module in model.named_modules():
        projections = ("attn.proj", "o_proj", "out_proj", "projection_layer")
        if id(module) not in kept and name.endswith(projections):
            assert isinstance(module, nn.Linear)
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


@pytest.mark.parametrize(("tower", "layer"), [("decoder", 0), ("vision", 0), ("vision", -1)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_patch_moves_the_map_most_at_its_place(
    family: str, tower: Tower, layer: int
) -> None:
    model, processor = build(family)
    switch_off_attention(model)
    mllm = MLLM(model, processor)
    size = SIZES[family]
    # Many words, so that no change is missed because it is orthogonal to one of them.
    image, query = prepared(mllm, size, target=list(range(3, 19)))
    method = TokenCam(mllm, layer, "grad_cam", tower)
    before = method.attribute(image, additional_forward_args=(query,))
    cell = 2 * mllm.model.config.vision_config.patch_size if family.startswith("qwen") else 28
    corners = [(y, x) for y in range(0, size[0], cell) for x in range(0, size[1], cell)]

    for y, x in corners[:: max(len(corners) // 4, 1)]:
        changed = image.clone()
        changed[..., y : y + cell, x : x + cell] = 1 - changed[..., y : y + cell, x : x + cell]
        after = method.attribute(changed, additional_forward_args=(query,))
        moved = (after - before).abs().sum((0, 1))
        row, column = divmod(int(moved.argmax()), moved.shape[1])
        assert y <= (row + 0.5) * size[0] / moved.shape[0] <= y + cell
        assert x <= (column + 0.5) * size[1] / moved.shape[1] <= x + cell


@pytest.mark.parametrize("layer", [None, 0])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_at_once_equals_one_target_after_the_other(
    family: str, layer: int | None
) -> None:
    mllm = MLLM(*shared(family))
    image, query = prepared(mllm, SIZES[family])
    query = query.including_prompt()
    method = TokenCam(mllm, layer=layer)
    together = method.attribute(image, additional_forward_args=(query,))
    ids = mllm.explained_ids(image, query).tolist()
    assert len(together) == len(ids)
    for t, token in enumerate(ids):
        single = method.attribute(image, target=(t, token), additional_forward_args=(query,))
        torch.testing.assert_close(single, together[t : t + 1])


@pytest.mark.parametrize("tower", ["decoder", "vision"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_images_equals_single_ones(family: str, tower: Tower) -> None:
    mllm = MLLM(*shared(family))
    size = SIZES[family]
    _, query = prepared(mllm, size)
    images = torch.stack([noise(size, seed) for seed in range(2)])
    targets = [(0, query.answer_ids[0]), (1, 5)]
    method = TokenCam(mllm, 0, tower=tower)
    together = method.attribute(images, target=targets, additional_forward_args=(query,))
    for image, target, found in zip(images, targets, together):
        single = method.attribute(image[None], target=target, additional_forward_args=(query,))
        torch.testing.assert_close(found[None], single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tower", ["decoder", "vision"])
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "llava"])
def test_several_open_images_have_a_map_each(family: str, tower: Tower) -> None:
    mllm = MLLM(*shared(family))
    first, second = noise((84, 84), 1), noise((84, 140), 2)
    inp = ImageTextInput([first, second], "what differs ?")
    images, query = mllm.prepare(inp, target="a cat")
    maps = TokenCam(mllm, 0, tower=tower).attribute(images, additional_forward_args=(query,))
    assert isinstance(maps, tuple)
    for index, found in enumerate(maps):
        inp = ImageTextInput([first, second], "what differs ?", explained=index)
        image, alone = mllm.prepare(inp, target="a cat")
        expected = TokenCam(mllm, 0, tower=tower).attribute(image, additional_forward_args=(alone,))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("wrap", [MSEA, TAM, lambda method: ARC(MSEA(method))])
@pytest.mark.parametrize("family", FAMILIES)
def test_runs_under_the_wrappers(family: str, wrap: Callable[[Any], Any]) -> None:
    mllm = MLLM(*shared(family))
    image, query = prepared(mllm, SIZES[family])
    maps = wrap(TokenCam(mllm)).attribute(image, additional_forward_args=(query,))
    assert maps.shape[:2] == (2, 1)
    assert torch.isfinite(maps).all()
    assert (maps >= 0).all()
    assert maps.max() > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_and_a_constant_image_give_finite_float32_maps(variant: Any) -> None:
    model, processor = build("qwen2_vl")
    mllm = MLLM(model.bfloat16(), processor)
    image, query = mllm.prepare(ImageTextInput(torch.zeros(3, 56, 84), "what ?"), target="a cat")
    maps = TokenCam(mllm, variant=variant).attribute(image, additional_forward_args=(query,))
    assert maps.dtype == torch.float32
    assert torch.isfinite(maps).all()


def snapshot(model: nn.Module) -> list[Any]:
    return [
        (name, module.training, list(module._forward_hooks), list(module._forward_pre_hooks))
        for name, module in model.named_modules()
    ] + [(name, part.requires_grad, part.grad) for name, part in model.named_parameters()]


@pytest.mark.parametrize("tower", ["decoder", "vision"])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_left_as_it_was(
    family: str, fails: bool, tower: Tower, monkeypatch: pytest.MonkeyPatch
) -> None:
    mllm = MLLM(*build(family))
    image, query = prepared(mllm, SIZES[family])
    # transformers adds hooks of its own in the first pass.
    mllm(image, query)
    mllm.model.train()
    next(iter(mllm.model.parameters())).requires_grad_(False)
    before = snapshot(mllm.model)
    method = TokenCam(mllm, 0, tower=tower)

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
    assert not image.requires_grad


def test_the_default_is_hires_cam_in_the_middle_of_the_vision_tower() -> None:
    model, processor = build("qwen2_vl")
    mllm = MLLM(model, processor)
    model.get_encoder(modality="image").blocks.extend(nn.Identity() for _ in range(5))
    method = TokenCam(mllm)
    assert method.layer is vision_blocks(mllm)[3]
    assert method.variant == "hires_cam"


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_where_the_size_of_states_does_not_matter_hires_cam_says_so(family: str) -> None:
    mllm = MLLM(*shared(family))
    image, query = prepared(mllm, SIZES[family])
    before = snapshot(mllm.model)
    with pytest.raises(ValueError, match="normalised before anything reads them"):
        TokenCam(mllm, -1).attribute(image, additional_forward_args=(query,))
    assert snapshot(mllm.model) == before
    # The norm behind that layer takes scaled states for the same.
    layer = vision_blocks(mllm)[-1]
    handle = layer.register_forward_hook(lambda module, given, output: 3 * output)
    scaled = mllm(image, query)
    handle.remove()
    torch.testing.assert_close(scaled, mllm(image, query), rtol=1e-2, atol=1e-4)
    maps = TokenCam(mllm, -1, "grad_cam").attribute(image, additional_forward_args=(query,))
    assert maps.any()


def scale_token(place: int, factor: float, module: nn.Module, given: Any, output: Any) -> Any:
    states = (output[0] if isinstance(output, tuple) else output).clone()
    states[:, place] *= factor
    return (states, *output[1:]) if isinstance(output, tuple) else states


@torch.no_grad()
def test_hires_cam_tells_what_scaling_a_token_does() -> None:
    mllm = MLLM(build("llava")[0].double(), shared("llava")[1])
    image, query = prepared(mllm, SIZES["llava"])
    layer = vision_blocks(mllm)[0]
    target = (1, query.answer_ids[1])
    maps = TokenCam(mllm, layer).attribute(image, target=target, additional_forward_args=(query,))
    # A stencil of five points allows a step at which norms in float32 do no harm.
    step = 1e-2
    for patch in (0, 7, 20):
        logits = {}
        for steps in (-2, -1, 1, 2):
            factor = 1 + steps * step
            handle = layer.register_forward_hook(partial(scale_token, 1 + patch, factor))
            logits[steps] = mllm(image, query)[0, target[0], target[1]].item()
            handle.remove()
        slope = (8 * (logits[1] - logits[-1]) - (logits[2] - logits[-2])) / (12 * step)
        assert maps.flatten()[patch].item() == pytest.approx(max(slope, 0), rel=1e-3, abs=1e-9)


@pytest.mark.parametrize(
    ("tower", "layer", "error", "message"),
    [
        ("decoder", -1, ValueError, "is the last of the language model.*exactly zero.*up to 0"),
        ("decoder", 1, ValueError, "is the last of the language model"),
        ("decoder", 2, ValueError, "got .2., expected indices of the 2 layers of the language mo"),
        ("vision", 2, ValueError, "of the 2 layers of the vision tower that the answer comes from"),
        ("both", 0, ValueError, "tower='both', expected one of 'decoder', 'vision'"),
        ("vision", 1.0, TypeError, "got a layer of type float"),
        ("vision", "vision.1", TypeError, "got a layer of type str.*tower='decoder' or 'vision'"),
        ("decoder", True, TypeError, "got a layer of type bool"),
    ],
)
def test_layers_that_cannot_be_used_are_refused(
    tower: Any, layer: Any, error: type[Exception], message: str
) -> None:
    # LLaVA has three vision layers, and takes its features from the second.
    with pytest.raises(error, match=message):
        TokenCam(MLLM(*shared("llava")), layer=layer, tower=tower)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.language_model.norm", "exactly zero at the image tokens"),
        ("model.language_model.layers.1.mlp", "exactly zero at the image tokens"),
        ("model.vision_tower.encoder.layers.2", "exactly zero at the image tokens"),
        ("model.vision_tower", "give a layer of a tower"),
        ("lm_head", "one of .*a state for each patch"),
        ("model.vision_tower.embeddings.patch_embedding", "one of .*a state for each patch"),
    ],
)
def test_modules_that_cannot_be_used_are_refused(name: str, message: str) -> None:
    mllm = MLLM(*shared("llava"))
    image, query = prepared(mllm, (84, 84))
    method = TokenCam(mllm, layer=mllm.model.get_submodule(name))
    with pytest.raises(ValueError, match=message):
        method.attribute(image, additional_forward_args=(query,))


@pytest.mark.parametrize("tower", ["decoder", "vision"])
def test_frozen_parameters_do_not_matter(tower: Tower) -> None:
    model, processor = build("llava")
    mllm = MLLM(model, processor)
    image, query = prepared(mllm, (84, 84))
    expected = TokenCam(mllm, 0, tower=tower).attribute(image, additional_forward_args=(query,))
    model.requires_grad_(False)
    found = TokenCam(mllm, 0, tower=tower).attribute(image, additional_forward_args=(query,))
    torch.testing.assert_close(found, expected)
    unused = TokenCam(mllm, layer=vision_blocks(mllm)[2])
    with pytest.raises(ValueError, match="exactly zero at the image tokens"):
        unused.attribute(image, additional_forward_args=(query,))


def test_a_module_of_another_model_is_refused() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = prepared(mllm, (84, 84))
    method = TokenCam(mllm, layer=build("llava")[0].get_decoder().layers[0])
    with pytest.raises(ValueError, match="runs 0 times in a pass"):
        method.attribute(image, additional_forward_args=(query,))


def test_bad_arguments_are_refused() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = prepared(mllm, (84, 84))
    with pytest.raises(ValueError, match="variant='cam'"):
        TokenCam(mllm, variant="cam")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected an MLLM"):
        TokenCam(mllm.model)  # type: ignore[arg-type]
    method = TokenCam(mllm)
    with pytest.raises(ValueError, match="got a batch of 2 images and no target"):
        method.attribute(image.expand(2, -1, -1, -1), additional_forward_args=(query,))
    with pytest.raises(ValueError, match=r"expected \(t, token_id\)"):
        method.attribute(image, target=7, additional_forward_args=(query,))
    with pytest.raises(TypeError, match="with the query"):
        method.attribute(image)
