"""``what_if``: what the model says once the region that explains a word is hidden."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from captum_mllm._options import check_choice, check_flag, check_number, check_whole
from captum_mllm.explain.result import MLLMAttributionResult
from captum_mllm.explain.selection import Selection
from captum_mllm.explain.word_changes import Hiding, WhatIf, WordChange
from captum_mllm.metrics.image_baselines import image_baseline
from captum_mllm.metrics.localization import otsu_threshold
from captum_mllm.models.decoding import find_answer
from captum_mllm.models.inputs import ImageTextInput
from captum_mllm.models.knockout import hidden_columns
from captum_mllm.models.layout import Layout, size_of
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.pixels import to_pil
from captum_mllm.models.precision import full_precision
from captum_mllm.models.prompt import open_query
from captum_mllm.models.query import Query
from captum_mllm.models.states import States
from captum_mllm.models.words import token_texts

_TOP = 5
# Places that are tried for a region elsewhere.
_TRIES = 200


@torch.no_grad()
def what_if(
    mllm: MLLM,
    result: MLLMAttributionResult,
    remove: Selection,
    by: Hiding = "fill",
    inp: ImageTextInput | None = None,
    margin: float = 2.0,
    answer: bool = True,
    seed: int = 0,
    image: int | None = None,
) -> WhatIf:
    r"""
    Hide the region that explains a word, and see what the model then says.

    The region is what the word's map has above Otsu's threshold. The answer stays as it was up to
    each word, so that its probabilities compare. A region of the same shape elsewhere is the
    control: where it changes as much, the map does not tell what the word rests on.

    Args:
        mllm (MLLM): the model that gave the result.
        result (MLLMAttributionResult): the explained answer.
        remove (optional): the word or the phrase, as in :meth:`MLLMAttributionResult.map`.
        by (str): ``"fill"``, fill the region from what surrounds it; ``"mean"`` or ``"blur"``, as
            in :func:`~captum_mllm.metrics.deletion_auc`; ``"knockout"``, leave the image as it is,
            but let no token look at the image tokens in the region. Default: "fill"
        inp (ImageTextInput, optional): the input of a result that was loaded from a file.
            Default: None, that of the result
        margin (float): by how much the region grows on each side, in cells of the map, since the
            rim of an object still shows its shape. Default: 2.0
        answer (bool): also let the model answer anew; with ``"knockout"`` it never does.
            Default: True
        seed (int): of the place of the other region. Default: 0
        image (int, optional): which image of the prompt, where several are explained.
            Default: None, the only one

    Returns:
        WhatIf: the probabilities before and after.

    Raises:
        TypeError: for a result or an option of another type.
        ValueError: for words that are not there or are of the prompt, a flat map, a result without
            its input or with that of another one, a result of another answer's tokens, or an option
            outside of its range.
    """
    if not isinstance(result, MLLMAttributionResult):
        raise TypeError(
            f"got a result of type {type(result).__name__}, expected that of attribute()"
        )
    check_choice("by", by, get_args(Hiding))
    check_number("margin", margin, "[0, inf)")
    check_flag("answer", answer)
    check_whole("seed", seed, 0)
    inp = result.inp if inp is None else inp
    if not isinstance(inp, ImageTextInput):
        raise ValueError(
            "the result has no input, as it was loaded from a file; give it as inp=ImageTextInput("
            "image, text)"
        )
    opened, query = open_query(mllm.backbone, inp)
    query = replace(query, answer_ids=tuple(_answer_ids(mllm, result)))
    start = len(result.input_tokens) - len(result.output_tokens)
    tokens = result.tokens_of(remove)
    skipped = result.n_prompt - start
    words = [word for word in result.words if word[0] >= skipped]
    chosen = [index for index, word in enumerate(words) if set(word) & set(tokens)]
    texts = "".join(result.output_tokens[token] for token in tokens).strip()
    if not chosen:
        raise ValueError(
            f"{texts!r} is of the prompt, which the model does not say; remove a word of its answer"
        )
    _check_images(result, opened)
    region = explained_region(result, tokens, margin, image)
    control = moved_elsewhere(region, seed)
    regions = torch.stack([torch.zeros_like(region), region, control]).to(mllm.device)
    place = 0 if image is None else result.explained.index(image)
    states, shown = _hidden_states(mllm, opened, place, query, regions, by)
    _check_prompt(mllm, result, states)
    changes = _changes(mllm, states, result, [[t - skipped for t in word] for word in words])
    said = ""
    if answer and by != "knockout":
        hidden = tuple(each[1:2] for each in shown)
        ids = find_answer(mllm.backbone, hidden, replace(query, answer_ids=()), None, {})
        said = mllm.tokenizer.decode(list(ids), skip_special_tokens=True).strip()
    return WhatIf(
        removed=texts,
        region=region.numpy(),
        control=control.numpy(),
        image=to_pil(shown[place][1, :3]),
        words=changes,
        selected=chosen,
        answer=said,
        by=by,
        shown=result.explained[place],
    )


def explained_region(
    result: MLLMAttributionResult,
    tokens: Sequence[int],
    margin: float = 2.0,
    image: int | None = None,
) -> Tensor:
    r"""
    The pixels where the map of some tokens is above Otsu's threshold.

    Args:
        result (MLLMAttributionResult): the explained answer.
        tokens (Sequence[int]): the tokens, whose maps are averaged.
        margin (float): by how much it grows on each side, in cells of the map. Default: 2.0
        image (int, optional): which image, where several are explained. Default: None

    Returns:
        Tensor: bool, (H, W).

    Raises:
        ValueError: for a map that is the same everywhere.
    """
    map_ = torch.from_numpy(result.map(list(tokens), image=image)).clamp(min=0)
    place = 0 if image is None else result.explained.index(image)
    region = map_ > otsu_threshold(map_[None])[0]
    if not region.any():
        raise ValueError(
            f"the map of {''.join(result.output_tokens[token] for token in tokens).strip()!r} is "
            "the same everywhere, so no region explains it"
        )
    rows, columns = (
        round(margin * pixels / cells)
        for pixels, cells in zip(map_.shape, result.image_attrs[place].shape[1:])
    )
    size = (2 * rows + 1, 2 * columns + 1)
    return F.max_pool2d(region[None].float(), size, 1, (rows, columns))[0] > 0


def moved_elsewhere(region: Tensor, seed: int = 0) -> Tensor:
    r"""
    A region moved to a random place within the image where it does not overlap itself. Where there
    is no such place, it goes on at the opposite edge, and overlaps itself as little as it can.

    Args:
        region (Tensor): bool, (H, W).
        seed (int): which place. Default: 0
    """
    generator = torch.Generator().manual_seed(seed)
    if not region.any():
        return region
    within = []
    for axis, side in enumerate(region.shape):
        lines = region.any(1 - axis).nonzero()
        within.append((-int(lines.min()), side - int(lines.max())))
    anywhere = [(0, side) for side in region.shape]
    best, least = region, int(region.sum()) + 1
    for spans in (within, anywhere):
        for _ in range(_TRIES):
            shift = [int(torch.randint(low, high, (), generator=generator)) for low, high in spans]
            moved = region.roll(shift, (0, 1))
            overlap = int((moved & region).sum())
            if overlap < least:
                best, least = moved, overlap
            if not overlap:
                return best
    return best


@full_precision()
def filled(image: Tensor, region: Tensor) -> Tensor:
    r"""
    An image whose region is filled smoothly from what surrounds it.

    Coarser and coarser means of the pixels outside are taken, and each pixel of the region has
    that of the finest level that knows one (pull-push, Gortler et al., SIGGRAPH 1996).

    Args:
        image (Tensor): of shape (1, C, H, W), floating point.
        region (Tensor): bool, (H, W).

    Returns:
        Tensor: of the shape of the image; one that is hidden whole has its mean colour.
    """
    values = image.to(torch.promote_types(image.dtype, torch.float32))
    known = (~region).to(values)[None, None]
    if not known.any():
        return image_baseline(image, "mean").clone()
    levels = [(values * known, known)]
    while levels[-1][1].shape[-2:] != (1, 1):
        summed, weight = (
            F.avg_pool2d(part, 2, ceil_mode=True, count_include_pad=False) for part in levels[-1]
        )
        # A cell that knows enough counts as one that knows all.
        full = weight.clamp(max=0.25) * 4
        levels.append((summed / weight.clamp(min=1e-6) * full, full))
    found, weight = levels[-1]
    found = found / weight.clamp(min=1e-6)
    for summed, weight in reversed(levels[:-1]):
        coarse = F.interpolate(found, weight.shape[-2:], mode="bilinear")
        found = summed + (1 - weight) * coarse
    return torch.where(region, found, values).to(image.dtype)


def _hidden_states(
    mllm: MLLM,
    images: tuple[Tensor, ...],
    place: int,
    query: Query,
    regions: Tensor,
    by: Hiding,
) -> tuple[States, tuple[Tensor, ...]]:
    """The states with each region of one of the images hidden, from one pass, and the images."""
    image = images[place]
    batch = [each.expand(len(regions), -1, -1, -1) for each in images]
    if by == "fill":
        batch[place] = torch.cat([filled(image, region) for region in regions])
    elif by != "knockout":
        batch[place] = torch.where(regions[:, None], image_baseline(image, by), image)
    shown = tuple(batch)
    if by != "knockout":
        return mllm.backbone.new_states(shown, query)[None], shown
    encoding = mllm.encode(images, query)
    if encoding.crosses:
        raise ValueError(
            f"by='knockout' hides image tokens, but the decoder of a "
            f"{mllm.model.config.model_type!r} has none: it looks at images by cross-attention; "
            "take by='fill'"
        )
    if encoding.windows > 1:
        raise ValueError("by='knockout' takes images that are seen at once; take by='fill'")
    index = query.explained[place]
    positions, layout = encoding.image_positions[index], encoding.layouts[index]
    columns = regions.new_zeros(len(regions), encoding.inputs["input_ids"].shape[1])
    columns[:, positions] = torch.stack([tokens_in(layout, region) for region in regions])
    with hidden_columns(mllm, columns):
        return mllm.backbone.new_states(shown, query)[None], shown


def tokens_in(layout: Layout, region: Tensor) -> Tensor:
    r"""Which image tokens have their centre in a region (H, W), bool, (N,)."""
    height, width = size_of(region)
    found = []
    for piece in layout.pieces:
        left, top, right, bottom = piece.box
        down = top + (torch.arange(piece.rows) + 0.5) * (bottom - top) / piece.rows
        across = left + (torch.arange(piece.columns) + 0.5) * (right - left) / piece.columns
        y, x = down.floor().long(), across.floor().long()
        inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))
        cells = region[y.clamp(0, height - 1).to(region.device)][:, x.clamp(0, width - 1)]
        found.append((cells & inside.to(region.device)).flatten())
    return torch.cat(found)


def _check_images(result: MLLMAttributionResult, opened: Sequence[Tensor]) -> None:
    """Refuse images of other sizes than those of the result."""
    found = [size_of(image)[::-1] for image in opened]
    sizes = [result.images[index].size for index in result.explained]
    if found != sizes:
        raise ValueError(
            f"the input has explained images of {found} pixels (width, height), the result of "
            f"{sizes}; give the input that the result is of"
        )


def _check_prompt(mllm: MLLM, result: MLLMAttributionResult, states: States) -> None:
    """Refuse another question than that of the result."""
    found = token_texts(mllm.tokenizer, states.ids[: states.n_prompt].tolist())
    expected = result.input_tokens[: result.n_prompt]
    if found != expected:
        raise ValueError(
            f"the input asks {''.join(found)!r}, but the result is of {''.join(expected)!r}; give "
            "the input that the result is of"
        )


def _changes(
    mllm: MLLM, states: States, result: MLLMAttributionResult, words: Sequence[Sequence[int]]
) -> list[WordChange]:
    """Each word, its tokens counted from the beginning of the answer, in the three images."""
    ids = states.ids[states.n_prompt :]
    rows = states.predicting[:, states.n_prompt :].flatten(0, 1)
    found = mllm.vocabulary.predictions(rows, ids.repeat(3), _TOP)
    probability = found.probability.unflatten(0, (3, -1)).cpu().double()
    top_ids = found.top_ids.unflatten(0, (3, -1)).cpu()
    top_probability = found.top_probability.unflatten(0, (3, -1)).cpu()
    other = top_ids[..., 0] != ids.cpu()
    texts = result.input_tokens[result.n_prompt :]
    changes = []
    for word in words:
        before, after, elsewhere = probability[:, list(word)].prod(1).tolist()
        tops = []
        for hidden in (1, 2):
            place = next((token for token in word if other[hidden, token]), word[0])
            pairs = zip(top_ids[hidden, place].tolist(), top_probability[hidden, place].tolist())
            tops.append([(mllm.tokenizer.decode([token]), value) for token, value in pairs])
        changes.append(
            WordChange(
                word="".join(texts[token] for token in word).strip(),
                before=before,
                after=after,
                elsewhere=elsewhere,
                changed=bool(other[1, list(word)].any()),
                changed_elsewhere=bool(other[2, list(word)].any()),
                top_after=tops[0],
                top_elsewhere=tops[1],
            )
        )
    return changes


def _answer_ids(mllm: MLLM, result: MLLMAttributionResult) -> list[int]:
    """The tokens of the answer, from their texts."""
    texts = result.input_tokens[result.n_prompt :]
    ids = mllm.tokenizer("".join(texts), add_special_tokens=False)["input_ids"]
    if token_texts(mllm.tokenizer, ids) != texts:
        raise ValueError(
            "the answer is not made of the tokens that this model's tokenizer makes of its text; "
            "give the model that gave the result, or explain the answer anew by its text"
        )
    return list(ids)
