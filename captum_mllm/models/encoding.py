"""From pictures and a query to the model's inputs, and back to where everything lies in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor

from captum_mllm.models.geometry import Geometry
from captum_mllm.models.layout import Box, Layout, Piece, size_of
from captum_mllm.models.pixels import to_pil
from captum_mllm.models.query import Query


@dataclass(frozen=True)
class Encoding:
    r"""The model's inputs for a batch of pictures, and the positions of its tokens.

    Each picture of the batch has one row of inputs for each window through which it is seen, the
    rows of one picture beside each other. All rows have their tokens at the same positions.

    Args:
        inputs (dict[str, Tensor]): keyword arguments of the model.
        windows (int): rows of each picture.
        image_positions (tuple[Tensor, ...]): positions of each picture's tokens.
        layouts (tuple[Layout, ...]): layout of each picture, over all its windows.
        word_positions (Tensor): positions of the words of the prompt, shape (P,).
        answer_rows (Tensor): positions of the rows that predict the answer, shape (T,).
    """

    inputs: dict[str, Tensor]
    windows: int
    image_positions: tuple[Tensor, ...]
    layouts: tuple[Layout, ...]
    word_positions: Tensor
    answer_rows: Tensor

    @property
    def word_ids(self) -> Tensor:
        """Vocabulary indices of the words of the prompt, shape (P,)."""
        return self.inputs["input_ids"][0, self.word_positions]

    def explained_rows(self, query: Query) -> Tensor:
        """Positions of the rows that predict the explained tokens."""
        if not query.with_prompt:
            return self.answer_rows
        before = (self.word_positions - 1).clamp(min=0)
        return torch.cat([before, self.answer_rows])


def encode(
    pictures: Sequence[Tensor],
    query: Query,
    processor: Any,
    geometry: Geometry,
    image_token_id: int,
    differentiable: bool = False,
) -> Encoding:
    r"""Run the processor, and append the answer for teacher forcing.

    Args:
        pictures (Sequence[Tensor]): (B, 3, H, W) in [0, 1] for each picture of the prompt.
        query (Query): the question and the answer.
        processor (Any): the model's processor.
        geometry (Geometry): how pictures turn into tokens.
        image_token_id (int): the placeholder's index.
        differentiable (bool): compute the pixels from the tensors instead of 8-bit pictures.

    Returns:
        Encoding: on the device of the pictures.

    Raises:
        ValueError: if a scale cannot be had.
        RuntimeError: if the image tokens are not where the family's facts say.
    """
    boxes = _windows(pictures, query, geometry)
    cut = [_cut(picture, box) for picture, box in zip(pictures, boxes)]
    options = _options(pictures, query, geometry)
    n_rows = len(cut[0])
    flat = [to_pil(picture[row]) for row in range(n_rows) for picture in cut]
    inputs = dict(
        processor(
            images=[flat[row * len(cut) : (row + 1) * len(cut)] for row in range(n_rows)]
            if len(cut) > 1
            else flat,
            text=[query.prompt] * n_rows,
            return_tensors="pt",
            **options,
        )
    )
    ids = inputs["input_ids"]
    windows = max(len(box) for box in boxes)
    image_positions, layouts = _locate(ids[0], cut, inputs, geometry, image_token_id)
    if differentiable:
        inputs["pixel_values"] = _pixel_values(cut, layouts, geometry, inputs["pixel_values"])
    layouts = tuple(
        _merge(layout, picture, box) for layout, picture, box in zip(layouts, pictures, boxes)
    )
    words = _word_positions(ids[0], query, processor.tokenizer, image_token_id)
    prompt_length = ids.shape[1]
    n_answer = len(query.answer_ids)
    inputs = _append(inputs, query.answer_ids[:-1])
    device = pictures[0].device
    return Encoding(
        inputs={name: value.to(device) for name, value in inputs.items()},
        windows=windows,
        image_positions=tuple(positions.to(device) for positions in image_positions),
        layouts=layouts,
        word_positions=words.to(device),
        answer_rows=torch.arange(prompt_length - 1, prompt_length - 1 + n_answer, device=device),
    )


def _windows(pictures: Sequence[Tensor], query: Query, geometry: Geometry) -> list[list[Box]]:
    boxes = [
        geometry.windows(size_of(picture), native)
        for picture, native in zip(pictures, query.native)
    ]
    several = [index for index, box in enumerate(boxes) if len(box) > 1]
    if len(several) > 1:
        raise ValueError(
            "several pictures at a scale above 1 need windows of each, which this family cannot "
            "combine; explain one picture at a time"
        )
    count = max(len(box) for box in boxes)
    return [box if len(box) == count else box * count for box in boxes]


def _cut(pictures: Tensor, boxes: list[Box]) -> Tensor:
    """(B, 3, H, W) to (B * windows, 3, h, w)."""
    parts = [
        pictures[..., int(top) : int(bottom), int(left) : int(right)]
        for left, top, right, bottom in boxes
    ]
    return torch.stack(parts, dim=1).flatten(0, 1)


def _options(pictures: Sequence[Tensor], query: Query, geometry: Geometry) -> dict[str, Any]:
    found = [
        geometry.processor_options(size_of(picture), native)
        for picture, native in zip(pictures, query.native)
    ]
    explained = [found[index] for index in query.explained]
    return explained[0] if explained else {}


def _locate(
    ids: Tensor,
    cut: Sequence[Tensor],
    inputs: dict[str, Any],
    geometry: Geometry,
    image_token_id: int,
) -> tuple[list[Tensor], tuple[Layout, ...]]:
    """Positions of each picture's tokens in a row, and their layout."""
    positions = (ids == image_token_id).nonzero()[:, 0]
    layouts, start = [], 0
    for index, picture in enumerate(cut):
        remaining = len(positions) - start if len(cut) == 1 else _run(positions[start:])
        layout = geometry.layout(size_of(picture), inputs, index, remaining)
        layouts.append(layout)
        start += layout.n_tokens
    if start != len(positions):
        raise RuntimeError(
            f"the prompt has {len(positions)} image tokens, but the family's layout accounts for "
            f"{start}; please report it with the model's name and the picture's size"
        )
    return list(positions.split([layout.n_tokens for layout in layouts])), tuple(layouts)


def _run(positions: Tensor) -> int:
    """Length of the run of neighbouring positions at the start."""
    gaps = (positions.diff() != 1).nonzero()
    return int(gaps[0]) + 1 if len(gaps) else len(positions)


def _pixel_values(
    cut: Sequence[Tensor], layouts: Sequence[Layout], geometry: Geometry, expected: Tensor
) -> Tensor:
    parts = [geometry.pixel_values(picture, layout) for picture, layout in zip(cut, layouts)]
    rows = len(cut[0])
    # Pictures of one prompt stand beside each other, prompt after prompt.
    values = torch.cat([part.unflatten(0, (rows, -1)) for part in parts], dim=1).flatten(0, 1)
    if values.shape != expected.shape:
        raise RuntimeError(
            f"the differentiable pixels have shape {tuple(values.shape)}, the processor's "
            f"{tuple(expected.shape)}; please report it with the model's name"
        )
    return values


def _merge(layout: Layout, pictures: Tensor, boxes: list[Box]) -> Layout:
    """The layout of a picture from that of its windows."""
    pieces = [
        replace(piece, box=_shift(piece, left, top))
        for left, top, _, _ in boxes
        for piece in layout.pieces
    ]
    return Layout(size_of(pictures), tuple(pieces))


def _shift(piece: Piece, across: float, down: float) -> Box:
    left, top, right, bottom = piece.box
    return (left + across, top + down, right + across, bottom + down)


def _append(inputs: dict[str, Any], answer_ids: Sequence[int]) -> dict[str, Tensor]:
    """Teacher forcing: the answer but its last token follows the prompt."""
    extended = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    ids = extended["input_ids"]
    answer = torch.tensor(answer_ids, dtype=ids.dtype).expand(len(ids), -1)
    fills = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": 0}
    extended["input_ids"] = torch.cat([ids, answer], dim=1)
    for name, fill in fills.items():
        if name in extended:
            tail = torch.full_like(answer, fill, dtype=extended[name].dtype)
            extended[name] = torch.cat([extended[name], tail], dim=1)
    return extended


def _word_positions(ids: Tensor, query: Query, tokenizer: Any, image_token_id: int) -> Tensor:
    """Positions of the tokens that lie in the user's own texts.

    The prompt is tokenised once more, with the offsets of its characters, and aligned with the
    processor's tokens, in which each placeholder has become many.
    """
    plain = tokenizer(query.prompt, return_offsets_mapping=True)
    special = set(tokenizer.all_special_ids)
    wanted = [
        token not in special
        and any(start < span_end and end > span_start for span_start, span_end in query.spans)
        for token, (start, end) in zip(plain["input_ids"], plain["offset_mapping"])
    ]
    text = [index for index, token in enumerate(ids.tolist()) if token != image_token_id]
    matcher = SequenceMatcher(None, plain["input_ids"], ids[text].tolist(), autojunk=False)
    positions = [
        text[match.b + step]
        for match in matcher.get_matching_blocks()
        for step in range(match.size)
        if wanted[match.a + step]
    ]
    return torch.tensor(positions, dtype=torch.long)
