"""``ScaleResult`` and ``WordWeight``, parts of a result, and the checks that its parts fit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from PIL import Image
from torch import Tensor

from captum_mllm.models.prompt_parts import PromptPart
from captum_mllm.models.words import Word


@dataclass(frozen=True)
class ScaleResult:
    r"""
    What one scale of MSEA saw.

    Args:
        scale (float): size of the images relative to the originals.
        image_attrs (tuple[Tensor, ...]): for each explained image its maps, shape (T, h, w); the
            tensor itself where one image is explained.
        output_probs (Tensor or None): probability of each token at this scale, shape (T,).
    """

    scale: float
    image_attrs: tuple[Tensor, ...]
    output_probs: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_attrs", as_tuple(self.image_attrs))

    @property
    def image_attr(self) -> Tensor:
        """The maps of the explained image, where it is the only one."""
        return only(self.image_attrs)


class WordWeight(NamedTuple):
    r"""
    How much an earlier word weighs.

    Args:
        word (str): the word, without the spaces around it.
        weight (float): its weight, the sum over its tokens.
        source (str): ``"prompt"`` or ``"answer"``.
        role (str): who says it in the prompt, such as ``"user"``; ``"assistant"`` in the answer;
            empty where that is not known.
        tokens (tuple[int, ...]): its tokens, as indices of ``input_tokens``.
    """

    word: str
    weight: float
    source: Literal["prompt", "answer"]
    role: str
    tokens: tuple[int, ...]


def as_tuple(tensors: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    """What is given for one image, or for each of several."""
    return (tensors,) if isinstance(tensors, Tensor) else tuple(tensors)


def named(name: str, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """The name of the one image's tensor, or of each of several, for messages."""
    if len(tensors) == 1:
        return {name: tensors[0]}
    return {f"{name}[{place}]": tensor for place, tensor in enumerate(tensors)}


def only(image_attrs: Sequence[Tensor]) -> Tensor:
    r"""The maps of the one image.

    Raises:
        ValueError: if there are several.
    """
    if len(image_attrs) != 1:
        raise ValueError(
            f"{len(image_attrs)} images are explained, and image_attr has the maps of one; take "
            "image_attrs, a tuple with the maps of each"
        )
    return image_attrs[0]


def check_fit(
    input_tokens: list[str],
    output_tokens: list[str],
    image_attrs: Sequence[Tensor],
    token_attr: Tensor,
    output_probs: Tensor,
    n_prompt: int,
    words: Sequence[Word],
    top_predictions: Sequence[Sequence[tuple[str, float]]],
    scales: Sequence[ScaleResult],
) -> None:
    """Raise where the shapes do not fit each other."""
    n_input, n_tokens = len(input_tokens), len(output_tokens)

    def are_maps(each: Sequence[Tensor]) -> bool:
        return len(each) == len(image_attrs) > 0 and all(
            maps.ndim == 3 and maps.numel() > 0 and len(maps) == n_tokens for maps in each
        )

    fits = (
        are_maps(image_attrs)
        and 0 <= n_prompt < n_input
        and n_tokens in (n_input, n_input - n_prompt)
        and token_attr.shape == (n_tokens, n_input)
        and output_probs.shape == (n_tokens,)
        and len(top_predictions) == n_tokens
        and [token for word in words for token in word] == list(range(n_tokens))
        and all(words)
        and all(
            are_maps(scale.image_attrs)
            and (scale.output_probs is None or scale.output_probs.shape == (n_tokens,))
            for scale in scales
        )
    )
    if not fits:
        raise ValueError(
            f"the parts of the result do not fit each other: {n_tokens} output tokens, "
            f"{n_input} input tokens, maps "
            f"{', '.join(str(tuple(maps.shape)) for maps in image_attrs)}, weights "
            f"{tuple(token_attr.shape)}, {len(top_predictions)} lists of predictions"
        )


def check_texts(
    tokens: Mapping[str, Sequence[str]], texts: Sequence[str], parts: Sequence[PromptPart]
) -> None:
    """Raise where a token, a text or a role is not a string."""
    for name, each in tokens.items():
        if not all(isinstance(token, str) for token in each):
            raise TypeError(f"{name} has tokens that are not strings; give the text of each token")
    roles = [part.role for part in parts if part.image is None]
    if not all(isinstance(text, str) for text in [*texts, *roles]):
        raise TypeError("unit, prompt, method, model and the roles of prompt_parts are strings")


def check_finished(finished: bool | None) -> None:
    """Raise for what does not say whether an answer was finished."""
    if finished is not None and not isinstance(finished, bool):
        raise TypeError(f"finished is {finished!r}, expected True, False or None")


def check_times(times: Sequence[float], n_images: int) -> tuple[float, ...]:
    """The times of a video's images; raise where there is not one for each."""
    found = tuple(map(float, times))
    if found and (len(found) != n_images or list(found) != sorted(found)):
        raise ValueError(
            f"times are {found}, expected those of {n_images} image(s) in seconds, in order"
        )
    if not all(map(math.isfinite, found)):
        raise ValueError(f"times are {found}, expected finite numbers of seconds")
    return found


def check_images(
    images: Sequence[Image.Image],
    explained: Sequence[int],
    n_maps: int,
    segments: Sequence[Tensor] | None,
) -> None:
    """Raise where there is no such image, or the maps or segments are not those of the images."""
    if not all(isinstance(image, Image.Image) for image in images):
        raise TypeError("images has an entry that is not a PIL.Image.Image")
    known = set(range(len(images)))
    if not explained or not set(explained) <= known or len(set(explained)) != len(explained):
        raise ValueError(
            f"explained is {tuple(explained)}, expected indices of the {len(images)} image(s)"
        )
    if n_maps != len(explained):
        raise ValueError(f"got maps of {n_maps} image(s), expected {len(explained)}")
    sizes = [(images[index].height, images[index].width) for index in explained]
    shapes = sizes if segments is None else [tuple(each.shape) for each in segments]
    if shapes != sizes:
        given, expected = (" and ".join(map(str, each)) for each in (shapes, sizes))
        raise ValueError(f"segments have shape {given}, expected {expected}")


def check_prompt_parts(parts: Sequence[PromptPart], n_prompt: int) -> None:
    """Raise where the parts do not have the tokens of the prompt."""
    in_prompt = sum(part.n_tokens for part in parts)
    if in_prompt != n_prompt:
        raise ValueError(
            f"prompt_parts have {in_prompt} tokens together, expected n_prompt={n_prompt}"
        )


def check_numbers(tensors: Mapping[str, Tensor], scales: Sequence[ScaleResult]) -> None:
    """Raise for numbers that are not finite, and probabilities outside of [0, 1]."""
    numbers = dict(tensors)
    for index, scale in enumerate(scales):
        numbers |= named(f"scales[{index}].image_attr", scale.image_attrs)
        if scale.output_probs is not None:
            numbers[f"scales[{index}].output_probs"] = scale.output_probs
        if not 0 < scale.scale < math.inf:
            raise ValueError(f"scales[{index}].scale is {scale.scale}, expected a positive number")
    for name, part in numbers.items():
        if not part.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
        # Rounding may carry a sum of probabilities past 1.
        if name.endswith(("probs", "shares")) and bool(((part < -1e-6) | (part > 1 + 1e-6)).any()):
            expected = "probabilities" if name.endswith("probs") else "shares"
            raise ValueError(f"{name} has numbers outside of [0, 1], expected {expected}")
