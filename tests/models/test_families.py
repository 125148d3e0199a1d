"""Every family of the table, proven on a tiny random model of the real class."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm import MLLM, MSEA, ImageTextInput, LogitLens
from captum_mllm.attr.attention_maps import AttentionMaps
from captum_mllm.cli import main
from captum_mllm.models import Query
from captum_mllm.models.batches import batch_states
from captum_mllm.models.families import FAMILIES as ROWS
from captum_mllm.models.layout import Layout
from captum_mllm.models.pixels import to_pil
from captum_mllm.models.towers import decoder_layers
from tests.models.test_model_unchanged import IMAGE, snapshot
from tests.models.tiny_families import FAMILIES, build, shared
from tests.models.tiny_models import FAMILIES as FIRST

# Odd, wide and tall.
SIZES = [(97, 131), (84, 196), (168, 70)]
SCALES = (0.5, 1.0, 1.5, 2.0)
# Cells that are tried, of each of some pieces.
PATCHES, PIECES = 4, 4
# Each of its windows has 256 tokens, of 16 patches each.
FEWER_PATCHES = {"got_ocr2": 2}
# Orders of the colours, of six.
ORDERS = {"aya_vision": 3, "cohere2_vision": 6, "got_ocr2": 3, "paligemma": 3, "paligemma2": 3}
# Its numbers of tokens are doubled at least, and no smaller ones.
FEWER_SCALES = {"gemma4": (1.0, 1.5, 2.0)}
NEW = [family for family in FAMILIES if family not in FIRST]
sizes = pytest.mark.parametrize(
    "size", [SIZES[0], *(pytest.param(size, marks=pytest.mark.slow) for size in SIZES[1:])], ids=str
)


def opened(family: str, size: tuple[int, int], target: Any = "a cat") -> tuple[MLLM, Tensor, Query]:
    mllm = MLLM(*shared(family))
    picture = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    picture = picture.mul(255).round() / 255
    image, query = mllm.prepare(ImageTextInput(picture, "what is it ?"), target=target)
    return mllm, image, query


def scaled(image: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return image
    size = [round(scale * length) for length in image.shape[-2:]]
    return F.interpolate(image, size=size, mode="bilinear", antialias=True)


def reordered(images: Tensor, order: int) -> Tensor:
    """With the colours in another order."""
    images = images.roll(order, 1)
    return images if order < 3 else images.flip(1)


def features(mllm: MLLM, images: Tensor, query: Query, index: int = 0) -> tuple[Tensor, Layout]:
    """What the decoder receives in the place of each image token, (B, N, d), and where they lie."""
    seen: list[Tensor] = []

    def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])

    encoding = mllm.encode((images,), query)
    first = decoder_layers(mllm.model)[0]
    handle = first.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad():
        mllm.model(**encoding.inputs, use_cache=False)
    handle.remove()
    found = seen[0][:, encoding.image_positions[index]]
    return found.unflatten(0, (-1, encoding.windows)).flatten(1, 2), encoding.layouts[index]


def cells(layout: Layout, count: int) -> list[list[tuple[int, tuple[int, int, int, int]]]]:
    """For each piece some of its tokens that lie in the image, with the pixels of their cells."""
    height, width = layout.size
    found, start = [], 0
    for piece in layout.pieces:
        left, top, right, bottom = piece.box
        down, across = (bottom - top) / piece.rows, (right - left) / piece.columns
        inside = []
        for token in range(piece.n_tokens):
            y, x = top + token // piece.columns * down, left + token % piece.columns * across
            if y >= -1 and x >= -1 and y + down <= height + 1 and x + across <= width + 1:
                edges = [max(round(edge), 0) for edge in (x, y, x + across, y + down)]
                inside.append((start + token, tuple(edges)))
        found.append(inside[:: max(len(inside) // count, 1)][:count])
        start += piece.n_tokens
    return found


def test_every_row_of_the_table_has_a_tiny_model() -> None:
    # A tiny model is called as its model_type is, or after its vision tower.
    names = {name.removesuffix("2").removeprefix("llava_") for name in FAMILIES} | set(FAMILIES)
    for model_type, vision_type in ROWS:
        tower = (vision_type or "").removesuffix("_vision_model")
        # That which looks by cross-attention has tests of its own.
        if model_type == "mllama":
            continue
        assert model_type in names and (tower in names or tower in ("", "clip")), model_type


@sizes
@pytest.mark.parametrize("family", FAMILIES)
def test_a_changed_cell_moves_its_own_token_most(family: str, size: tuple[int, int]) -> None:
    mllm, image, query = opened(family, size)
    tried = 0
    for scale in FEWER_SCALES.get(family, SCALES):
        picture = scaled(image, scale)
        layout = mllm.layouts(picture, query)[0]
        start, count = 0, len(layout.pieces)
        tried_pieces = {round(index * (count - 1) / (PIECES - 1)) for index in range(PIECES)}
        # A projection of random weights may hardly see a change, but not each of some.
        orders = range(ORDERS.get(family, 1))
        before = [features(mllm, reordered(picture, order), query)[0] for order in orders]
        tried_cells = cells(layout, FEWER_PATCHES.get(family, PATCHES))
        for index, (piece, chosen) in enumerate(zip(layout.pieces, tried_cells)):
            chosen = chosen if index in tried_pieces else []
            changed = picture.repeat(len(chosen), 1, 1, 1)
            for row, (_, (left, top, right, bottom)) in enumerate(chosen):
                part = changed[row, :, top:bottom, left:right]
                part.copy_(1 - part.round())
            if chosen:
                moved = torch.zeros(1)
                for order in orders:
                    after, _ = features(mllm, reordered(changed, order), query)
                    moved = moved + (after - before[order]).norm(dim=-1)
                moved = moved[:, start : start + piece.n_tokens]
                own = [token - start for token, _ in chosen]
                assert moved.argmax(1).tolist() == own, (scale, piece)
            start += piece.n_tokens
            tried += len(chosen)
    assert tried >= 12


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_states_are_those_of_the_model(family: str) -> None:
    mllm, image, query = opened(family, SIZES[0], target=list(range(5, 15)))
    logits = mllm(image, query)
    states = mllm.states(image, query)
    every = torch.arange(mllm.vocabulary.size)
    found = mllm.vocabulary.scores(states.predicting[:, -10:], every)
    torch.testing.assert_close(found, logits, rtol=1e-4, atol=1e-5)
    chosen = logits[0].softmax(-1)[torch.arange(10), list(query.answer_ids)]
    torch.testing.assert_close(mllm.target_probability(image, query), chosen, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_forcing_equals_stepwise_generation(family: str) -> None:
    mllm, image, query = opened(family, SIZES[0], target=[7])
    inputs = mllm.encode((image,), query).inputs
    with torch.no_grad():
        said = mllm.model.generate(
            **inputs,
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            suppress_tokens=[mllm.image_token_id],
        )
    answer = tuple(said.sequences[0, inputs["input_ids"].shape[1] :].tolist())
    forced = mllm(image, replace(query, answer_ids=answer))
    stepwise = torch.stack(said.logits, 1)
    torch.testing.assert_close(forced, stepwise, rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_equal_single_runs(family: str) -> None:
    mllm, image, query = opened(family, SIZES[0])
    other = 1 - image.flip(-1)
    together = mllm.states(torch.cat([image, other]), query)
    for row, picture in enumerate((image, other)):
        alone = mllm.states(picture, query)
        for name in ("text", "predicting"):
            own, batched = getattr(alone, name)[0], getattr(together, name)[row]
            torch.testing.assert_close(batched, own, rtol=0, atol=1e-5)
        torch.testing.assert_close(together.image[0][row], alone.image[0][0], rtol=0, atol=1e-5)
    # Prompts of other lengths beside each other.
    _, shorter = mllm.prepare(ImageTextInput(image[0], "what"), target="a dog")
    prompts = [((image,), query), ((image,), shorter)]
    for found, prompt in zip(batch_states(mllm.backbone, prompts), prompts):
        alone = mllm.states(*prompt[0], prompt[1])
        torch.testing.assert_close(found[None].predicting, alone.predicting, rtol=0, atol=1e-5)
        torch.testing.assert_close(found[None].image[0], alone.image[0], rtol=0, atol=1e-5)


@sizes
@pytest.mark.parametrize("family", FAMILIES)
def test_differentiable_pixels_are_those_of_the_processor(
    family: str, size: tuple[int, int]
) -> None:
    mllm, image, query = opened(family, size)
    for scale in FEWER_SCALES.get(family, SCALES):
        picture = scaled(image, scale)
        own = mllm.encode((picture.clone().requires_grad_(),), query).inputs["pixel_values"]
        with torch.no_grad():
            processors = mllm.encode((picture,), query).inputs["pixel_values"]
        std = torch.as_tensor(mllm.geometry.option("image_std")).max()
        factor = std if mllm.geometry.option("do_normalize") else 1.0
        assert own.requires_grad
        assert ((own - processors).abs().mean() * factor) <= 1 / 255, scale


@pytest.mark.parametrize("family", NEW)
def test_a_family_is_explained_and_its_model_left_as_it_was(family: str) -> None:
    model, processor = build(family)
    mllm = MLLM(model, processor)
    # It is set up by transformers when it first runs.
    image, query = mllm.prepare(ImageTextInput(IMAGE, "what is it ?"), max_new_tokens=3)
    before = snapshot(model)
    scales = FEWER_SCALES.get(family, SCALES)
    maps = MSEA(LogitLens(mllm)).attribute(image, scales=scales, additional_forward_args=(query,))
    assert maps.isfinite().all() and maps.abs().sum() > 0
    image.requires_grad_()
    (gradient,) = torch.autograd.grad(mllm(image, query)[0, 0, query.answer_ids[0]], image)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0
    assert snapshot(model) == before


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in ("qwen3_5", "smolvlm") else pytest.mark.slow)
        for family in FAMILIES
    ],
)
def test_the_command_explains_a_saved_model(family: str, tmp_path: Path) -> None:
    model, processor = build(family)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    picture = tmp_path / "image.png"
    to_pil(IMAGE).save(picture)
    scales = ",".join(map(str, FEWER_SCALES.get(family, SCALES)))
    arguments = ["explain", str(picture), "--model", str(tmp_path / "model"), "--answer", "a cat"]
    assert main([*arguments, "--scales", scales, "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "page.html").stat().st_size > 10_000


def test_hybrid_models_say_why_there_is_no_rollout() -> None:
    mllm, image, query = opened("qwen3_5", SIZES[0])
    with pytest.raises(ValueError, match="3 of 4 layers of this model have none"):
        AttentionMaps(mllm)
    maps = AttentionMaps(mllm, mode="raw").attribute(image, additional_forward_args=(query,))
    assert maps.isfinite().all() and maps.sum() > 0


def test_the_page_on_families_names_every_row() -> None:
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    table = page.partition("What each of them allows, tried")[0]
    for model_type, vision_type in ROWS:
        assert f"`{model_type}`" in table, model_type
        assert vision_type is None or f"`{vision_type}`" in table, vision_type
    assert len({model_type for model_type, _ in ROWS}) == 37


@pytest.mark.parametrize("index", [pytest.param(0, marks=pytest.mark.slow), 1])
@pytest.mark.parametrize("family", FAMILIES)
def test_of_two_images_the_tokens_of_each_are_its_own(family: str, index: int) -> None:
    mllm = MLLM(*shared(family))
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, *size, generator=generator) for size in (SIZES[0], (168, 112))]
    content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "which ?"}]
    inp = ImageTextInput(images, messages=[{"role": "user", "content": content}], explained=index)
    image, query = mllm.prepare(inp, target="a cat")
    before, layout = features(mllm, image, query, index)
    chosen = cells(layout, 3)[-1] or cells(layout, 3)[0]
    changed = image.repeat(len(chosen), 1, 1, 1)
    for row, (_, (left, top, right, bottom)) in enumerate(chosen):
        changed[row, :, top:bottom, left:right] = (
            1 - changed[row, :, top:bottom, left:right].round()
        )
    after, _ = features(mllm, changed, query, index)
    moved = (after - before).norm(dim=-1)
    start = sum(piece.n_tokens for piece in layout.pieces[: -1 if cells(layout, 3)[-1] else 0])
    own = [token - start for token, _ in chosen]
    count = layout.pieces[-1 if start else 0].n_tokens
    assert moved[:, start : start + count].argmax(1).tolist() == own
    # The other image is seen by itself.
    other, _ = features(mllm, changed[:1], query, 1 - index)
    same, _ = features(mllm, image, query, 1 - index)
    torch.testing.assert_close(other, same)
    expected = mllm.encode((image,), query).inputs["pixel_values"]
    own_pixels = mllm.encode((image.clone().requires_grad_(),), query).inputs["pixel_values"]
    assert (own_pixels - expected).abs().mean() < 0.03
