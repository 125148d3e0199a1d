"""``encode`` turns images and a query into an ``Encoding``: the model's inputs, and the
positions of its tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from captum_mllm.models.geometry import Geometry
from captum_mllm.models.layout import Box, Layout, Piece, Size, size_of
from captum_mllm.models.pixels import saturate, to_pil
from captum_mllm.models.processing import Processed, process, process_again
from captum_mllm.models.query import Query

# Which tiles each token sees by cross-attention, (rows, tokens, images, tiles).
CROSS_MASK = "cross_attention_mask"


@dataclass(frozen=True)
class Encoding:
    r"""The model's inputs for a batch of images, and the positions of its tokens.

    Each image of the batch has one row of inputs for each window through which it is seen, the
    rows of one image beside each other. All rows have their tokens at the same positions.

    Args:
        inputs (dict[str, Tensor]): keyword arguments of the model.
        windows (int): rows of each image.
        image_positions (tuple[Tensor, ...]): positions of each image's tokens; where the decoder
            looks at images by cross-attention, of their states among those that it looks at.
        layouts (tuple[Layout, ...]): layout of each image, over all its windows.
        text_positions (Tensor): positions of the tokens of the prompt, shape (P,). Each has a
            token before it, by which it is predicted.
        answer_rows (Tensor): positions of the rows that predict the answer, shape (T,).
        word_embeddings (Tensor, optional): what replaces the embeddings of the words, as in
            :class:`Query`. Default: None
        fills (dict[str, int]): what inputs that have a value for each token have for what follows
            the prompt. Default: {}
        crosses (bool): whether the decoder looks at images by cross-attention, so that it has no
            image tokens. Default: False
    """

    inputs: dict[str, Tensor]
    windows: int
    image_positions: tuple[Tensor, ...]
    layouts: tuple[Layout, ...]
    text_positions: Tensor
    answer_rows: Tensor
    word_embeddings: Tensor | None = None
    fills: dict[str, int] = field(default_factory=dict)
    crosses: bool = False

    @property
    def earlier_positions(self) -> Tensor:
        """Positions of what an answer rests on, the tokens of the prompt and those of the answer
        but its last, which nothing follows, shape (P + T - 1,)."""
        # The row after the one that predicts a word is its own.
        return torch.cat([self.text_positions, self.answer_rows[:-1] + 1])

    @property
    def text_runs(self) -> tuple[int, ...]:
        """The lengths of the runs of neighbouring tokens of the prompt. Between two runs lies
        something that is not the user's text, such as an image."""
        positions = self.text_positions.tolist()
        starts = [
            place
            for place, position in enumerate(positions)
            if place == 0 or position != positions[place - 1] + 1
        ]
        return tuple(end - start for start, end in zip(starts, [*starts[1:], len(positions)]))

    @property
    def text_ids(self) -> Tensor:
        """Vocabulary indices of the tokens of the prompt, shape (P,)."""
        return self.inputs["input_ids"][0, self.text_positions]

    def without_pixels(self) -> Encoding:
        """The same, without the inputs that take more memory than all else."""
        return replace(self, inputs={"input_ids": self.inputs["input_ids"]})

    def explained_rows(self, query: Query) -> Tensor:
        """Positions of the rows that predict the explained tokens."""
        if not query.with_prompt:
            return self.answer_rows
        return torch.cat([self.text_positions - 1, self.answer_rows])


# One for all caches, so that they can be copied and pickled.
_CACHE_LOCK = Lock()


class TokenCache(OrderedDict[tuple[Any, ...], Processed]):
    r"""What the processor made of the last few shapes of input, all but the pixels.

    Beside the pixels, only the shape of the images matters to what the processor makes. Methods
    with gradients make many passes of the same shape, and samples of a batch share a question.
    """

    SIZE = 8

    def recall(self, key: tuple[Any, ...]) -> Processed | None:
        with _CACHE_LOCK:
            if key in self:
                self.move_to_end(key)
            return self.get(key)

    def keep(self, key: tuple[Any, ...], processed: Processed) -> None:
        """Keep it, and forget the one that was not used for longest if there are too many."""
        # A tensor on the meta device has a shape and no memory.
        inputs = {
            name: value.to("meta") if name.startswith("pixel_values") else value
            for name, value in processed.inputs.items()
        }
        with _CACHE_LOCK:
            self[key] = replace(processed, inputs=inputs)
            if len(self) > self.SIZE:
                self.popitem(last=False)


def wants_gradient(images: Sequence[Tensor]) -> bool:
    r"""Whether pixels are computed from the tensors.

    Raises:
        RuntimeError: where torch would give no gradient.
    """
    wanted = torch.is_grad_enabled() and any(image.requires_grad for image in images)
    if wanted and torch.is_inference_mode_enabled():
        raise RuntimeError(
            "gradients cannot be had within torch.inference_mode(); call a method that needs them "
            "outside of it (torch.no_grad() does no harm)"
        )
    return wanted


def encode(
    images: Sequence[Tensor],
    query: Query,
    processor: Any,
    geometry: Geometry,
    token_ids: Sequence[int],
    dtype: torch.dtype,
    options_key: str,
    cache: TokenCache | None = None,
    differentiable: bool = False,
) -> Encoding:
    r"""Run the processor, and append the answer for teacher forcing.

    Args:
        images (Sequence[Tensor]): (B, 3, H, W) in [0, 1] for each image of the prompt, or
            (B, 3 F, H, W) for each group of frames.
        query (Query): the question and the answer.
        processor (Any): the model's processor.
        geometry (Geometry): how images turn into tokens.
        token_ids (Sequence[int]): the indices that tokens of images have in the vocabulary.
        dtype (torch.dtype): of the pixels.
        options_key (str): that of the geometry.
        cache (TokenCache, optional): where it is given all but the pixels is made once for each
            shape. Default: None
        differentiable (bool): whether the pixels are computed from the tensors. Default: False,
            the processor makes them of 8-bit images.

    Returns:
        Encoding: on the device of the images.

    Raises:
        ValueError: if a scale cannot be had.
        RuntimeError: if the image tokens are not where the family's facts say.
    """
    boxes = _windows(images, query, geometry)
    cut = [_cut(image, box) for image, box in zip(images, boxes)]
    options = [
        geometry.processor_options(size_of(image), native)
        for image, native in zip(images, query.native)
    ]
    shapes = (part.shape for part in (*images, *cut))
    key = (query.prompt, query.native, query.clip, *shapes, options_key)
    processed = cache.recall(key) if cache is not None else None
    if processed is None or not differentiable:
        rows = [
            [to_pil(frame) for image in cut for frame in image[row].split(3)]
            for row in range(len(cut[0]))
        ]
        if processed is not None:
            processed = process_again(processor, processed, rows, options)
    if processed is None:
        processed = process(processor, query.prompt, rows, options, token_ids, query.clip)
        if cache is not None:
            cache.keep(key, processed)
    inputs = dict(processed.inputs)
    positions = [(processed.image == index).nonzero()[:, 0] for index in range(len(cut))]
    layouts = [
        _layout(size_of(image), processed.images | inputs, index, len(positions[index]), geometry)
        for index, image in enumerate(cut)
    ]
    for layout, image, box, native in zip(layouts, images, boxes, query.native):
        if len(box) == 1:
            geometry.check_scale(size_of(image), native, layout)
    positions = [
        geometry.positions(found, layout, index)
        for index, (found, layout) in enumerate(zip(positions, layouts))
    ]
    if differentiable:
        name = geometry.pixels
        inputs[name] = _pixel_values(cut, layouts, geometry, inputs[name])
    length, n_answer = inputs["input_ids"].shape[1], len(query.answer_ids)
    inputs = _append(inputs, query.answer_ids[:-1], geometry.answer_fills)
    device = images[0].device
    return Encoding(
        inputs={
            name: value.to(device, dtype if value.is_floating_point() else value.dtype)
            for name, value in inputs.items()
        },
        windows=max(len(box) for box in boxes),
        image_positions=tuple(found.to(device) for found in positions),
        layouts=tuple(map(_merge, layouts, images, boxes)),
        text_positions=_text_positions(processed, query, processor.tokenizer).to(device),
        answer_rows=torch.arange(length - 1, length - 1 + n_answer, device=device),
        word_embeddings=query.word_embeddings,
        fills=geometry.answer_fills,
        crosses=geometry.crosses,
    )


def _windows(images: Sequence[Tensor], query: Query, geometry: Geometry) -> list[list[Box]]:
    """The windows of each image, in each row the next of all images. An image of fewer windows
    than another begins again."""
    boxes = [
        geometry.windows(size_of(image), native) for image, native in zip(images, query.native)
    ]
    count = max(len(box) for box in boxes)
    return [list(islice(cycle(box), count)) for box in boxes]


def _cut(images: Tensor, boxes: list[Box]) -> Tensor:
    """(B, C, H, W) to (B * windows, C, h, w), in float32 at least."""
    images = images.to(torch.promote_types(images.dtype, torch.float32))
    parts = [
        images[..., int(top) : int(bottom), int(left) : int(right)]
        for left, top, right, bottom in boxes
    ]
    return torch.stack(parts, dim=1).flatten(0, 1)


def _layout(
    size: Size, inputs: dict[str, Tensor], index: int, n_tokens: int, geometry: Geometry
) -> Layout:
    layout = geometry.layout(size, inputs, index, n_tokens)
    if len(geometry.drawn(layout, n_tokens)) != layout.n_tokens:
        raise RuntimeError(
            f"the prompt has {n_tokens} image tokens for an image, but the family's layout "
            f"accounts for {layout.n_tokens}; please report it with the model's name and the "
            "image's size"
        )
    return layout


def _pixel_values(
    cut: Sequence[Tensor], layouts: Sequence[Layout], geometry: Geometry, expected: Tensor
) -> Tensor:
    parts = [geometry.pixel_values(saturate(image), layout) for image, layout in zip(cut, layouts)]
    values = geometry.fill(geometry.join(parts, len(cut[0])), expected.shape)
    if values.shape != expected.shape:
        raise RuntimeError(
            f"the differentiable pixels have shape {tuple(values.shape)}, the processor's "
            f"{tuple(expected.shape)}; please report it with the model's name"
        )
    return values


def _merge(layout: Layout, images: Tensor, boxes: list[Box]) -> Layout:
    """The layout of an image from that of its windows."""
    pieces = [
        replace(piece, box=_shift(piece, left, top))
        for left, top, _, _ in boxes
        for piece in layout.pieces
    ]
    return Layout(size_of(images), tuple(pieces))


def _shift(piece: Piece, across: float, down: float) -> Box:
    left, top, right, bottom = piece.box
    return (left + across, top + down, right + across, bottom + down)


def _append(
    inputs: dict[str, Tensor], answer_ids: Sequence[int], fills: dict[str, int]
) -> dict[str, Tensor]:
    """Teacher forcing: the answer but its last token follows the prompt."""
    extended = dict(inputs)
    ids = extended["input_ids"]
    answer = torch.tensor(answer_ids, dtype=ids.dtype).expand(len(ids), -1)
    extended["input_ids"] = torch.cat([ids, answer], dim=1)
    for name, fill in fills.items():
        if name in extended:
            tail = torch.full_like(answer, fill, dtype=extended[name].dtype)
            extended[name] = torch.cat([extended[name], tail], dim=1)
    seen = extended.get(CROSS_MASK)
    if seen is not None:
        # The answer sees what the end of the prompt sees.
        tail = seen[:, -1:].expand(-1, answer.shape[1], -1, -1)
        extended[CROSS_MASK] = torch.cat([seen, tail], dim=1)
    return extended


def _text_positions(processed: Processed, query: Query, tokenizer: Any) -> Tensor:
    """Positions of the tokens that lie in the user's own texts.

    The very first token is left out: no token comes before it, so nothing predicts it.
    """
    start, end = processed.offsets.unbind(1)
    ids = processed.inputs["input_ids"][0]
    wanted = (processed.image < 0) & (start < end)
    wanted &= ~torch.isin(ids, torch.tensor(tokenizer.all_special_ids, dtype=ids.dtype))
    wanted[:1] = False
    first, last = torch.tensor(query.spans, dtype=start.dtype).reshape(-1, 2).unbind(1)
    within = (start[:, None] < last) & (end[:, None] > first)
    return (wanted & within.any(1)).nonzero()[:, 0]
