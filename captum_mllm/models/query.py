"""``Query`` holds the question and the answer under explanation: all inputs of a pass except the
image."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from captum_mllm._options import is_integer
from captum_mllm.models.images import check_images
from captum_mllm.models.layout import Size


class Answer(tuple[int, ...]):
    r"""The tokens of an answer.

    Args:
        tokens (Iterable[int]): the tokens.
        finished (bool, optional): whether the model ended it, or else was cut off. Default: None,
            the answer is not the model's own.
    """

    finished: bool | None

    def __new__(cls, tokens: Iterable[int], finished: bool | None = None) -> Answer:
        answer = super().__new__(cls, tokens)
        answer.finished = finished
        return answer

    def __getnewargs__(self) -> tuple[tuple[int, ...], bool | None]:
        return tuple(self), self.finished


@dataclass(frozen=True)
class Clip:
    r"""A video of a prompt whose neighbouring frames are groups that share their image tokens.

    Args:
        n_frames (int): how many frames it has. The last group may lack some, and repeats the last
            frame then.
        fps (float): frames per second.
        together (int): how many frames a group has.
    """

    n_frames: int
    fps: float
    together: int

    @property
    def n_groups(self) -> int:
        return -(-self.n_frames // self.together)

    @property
    def frames(self) -> list[int]:
        """The index of each frame of each group."""
        count = self.n_groups * self.together
        return [min(index, self.n_frames - 1) for index in range(count)]


@dataclass(frozen=True, eq=False)
class Query:
    r"""A question, its teacher-forced answer, and what stays fixed while an image changes.

    It is not a tensor, so Captum passes it through ``additional_forward_args`` untouched. Made by
    :meth:`captum_mllm.MLLM.prepare`.

    Args:
        prompt (str): the text of the chat template, with one placeholder for each image.
        answer_ids (tuple[int, ...]): the tokens of the answer.
        spans (tuple[tuple[int, int], ...]): where the user's own texts lie in ``prompt``.
        native (tuple[tuple[int, int], ...]): height and width of each image as it was given;
            an image of another size is that image at another scale.
        images (tuple[Tensor or None, ...]): the images that stay fixed, (3, H, W), or
            (3 F, H, W) for groups of F frames, in [0, 1]; None for each image that is an input of
            the explained function.
        with_prompt (bool): whether the tokens of the prompt are explained before those of the
            answer. Default: False, the answer alone.
        word_embeddings (Tensor, optional): what replaces the embeddings of the words, (B, P, D), or
            (B, P + T - 1, D) with those of the answer except its last token. Default: None, no
            replacement.
        instead_of (tuple[tuple[int, int], ...]): tokens that are explained in contrast to another
            one, see :meth:`captum_mllm.MLLM.contrast`: the place of each, from the end and
            negative, and the other token. Default: (), no token
        clip (Clip, optional): the video whose groups of frames the images are, each group of F
            frames as an image of 3 F channels. Default: None, they are images
        times (tuple[float, ...]): when each image of a video was seen, in seconds. Default: (),
            they are not of a video
    """

    prompt: str
    answer_ids: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    native: tuple[Size, ...]
    images: tuple[Tensor | None, ...]
    with_prompt: bool = False
    word_embeddings: Tensor | None = None
    instead_of: tuple[tuple[int, int], ...] = ()
    clip: Clip | None = None
    times: tuple[float, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What the images are called."""
        return name_images(len(self.images), self.times)

    @property
    def channels(self) -> int:
        """Channels of each image: three, or those of all frames of a group."""
        return 3 if self.clip is None else 3 * self.clip.together

    @property
    def finished(self) -> bool | None:
        """Whether the model ended its own answer, or was cut off; None for a given answer."""
        return self.answer_ids.finished if isinstance(self.answer_ids, Answer) else None

    @property
    def explained(self) -> tuple[int, ...]:
        """Indices of the images that are inputs of the explained function."""
        return tuple(index for index, fixed in enumerate(self.images) if fixed is None)

    @property
    def inputs_key(self) -> tuple[Any, ...]:
        """Equal for queries that make the same pass through the model."""
        words = self.word_embeddings
        version = None if words is None or words.is_inference() else words._version
        images = tuple(map(id, self.images))
        return (self.prompt, self.answer_ids, self.native, images, id(words), version, self.clip)

    def including_prompt(self) -> Query:
        """The same query with the tokens of the prompt explained too."""
        return replace(self, with_prompt=True)

    def all_images(self, given: Sequence[Tensor]) -> list[Tensor]:
        """The images in the order of the prompt, (B, 3, H, W) each, fixed ones repeated.

        Raises:
            ValueError: if the number of images is not that of the explained ones.
        """
        if len(given) != len(self.explained):
            raise ValueError(
                f"got {len(given)} image tensor(s), expected {len(self.explained)}, one for each "
                "image that the query leaves open"
            )
        remaining = iter(given)
        like = given[0]
        return [
            next(remaining) if fixed is None else fixed.to(like).expand(len(like), -1, -1, -1)
            for fixed in self.images
        ]


def name_images(count: int, times: Sequence[float] = ()) -> tuple[str, ...]:
    r"""What images are called: by their number, or those of a video by their time.

    Args:
        count (int): how many there are.
        times (Sequence[float]): when each was seen, in seconds; or none. Default: ()

    Examples::
        >>> name_images(2)
        ('image 1', 'image 2')
        >>> name_images(3, (0.0, 0.5, 1.0))
        ('0.0 s', '0.5 s', '1.0 s')
    """
    if not times:
        return tuple(f"image {number + 1}" for number in range(count))
    for digits in range(4):
        names = tuple(f"{time:.{digits}f} s" for time in times)
        if len(set(names)) == count and (digits > 0 or all(float(t).is_integer() for t in times)):
            break
    return names


#: The images that a query leaves open, (B, 3, H, W) each, and the query.
Prompt = tuple[tuple[Tensor, ...], Query]


def split_arguments(
    args: tuple[Any, ...], with_text: bool = False, look: bool = True
) -> tuple[tuple[Tensor, ...], Query]:
    r"""The images and the query apart that are the arguments of an ``MLLM``.

    Args:
        args (tuple): the images, (B, 3, H, W) each; the embeddings of the words, (B, P, D), where
            they are inputs too; then the query.
        with_text (bool): whether embeddings may be among them. Default: False
        look (bool): whether to look at the images, which takes time. Default: True

    Returns:
        tuple[tuple[Tensor, ...], Query]: the images, and the query, which has the embeddings.

    Raises:
        TypeError: if the last is not a query.
        ValueError: if an image is not a tensor of an image, or batches differ in size.
    """
    if len(args) < 2 or not isinstance(args[-1], Query):
        raise TypeError(
            "expected the image and a Query; pass additional_forward_args=(query,) with the "
            "query that MLLM.prepare gives"
        )
    *inputs, query = args
    has_words = len(inputs) > 1 and isinstance(inputs[-1], Tensor) and inputs[-1].ndim == 3
    if has_words and with_text:
        query = replace(query, word_embeddings=inputs.pop())
    if not with_text and (has_words or query.word_embeddings is not None):
        raise ValueError(
            "got embeddings of the words, which this method does not take for an input; give the "
            "image alone"
        )
    if look:
        for image in inputs:
            check_images(image, query.channels)
    words = query.word_embeddings
    sizes = [len(tensor) for tensor in (*inputs, *([] if words is None else [words]))]
    if len(set(sizes)) > 1:
        raise ValueError(f"got batches of {sizes} inputs, expected the same number in each")
    return tuple(inputs), query


def split_target(
    target: Any, batch: int, length: int, device: torch.device, vocabulary: int | None = None
) -> tuple[Tensor, Tensor]:
    r"""Captum's targets of answer logits as rows and tokens, a (B,) tensor each.

    Args:
        target (tuple or list of tuples): ``(t, token_id)``, for all images or for each; ``t``
            counts from the end where it is negative.
        batch (int): how many images there are.
        length (int): how many tokens are explained.
        device (torch.device): the device of the tensors.
        vocabulary (int, optional): how many tokens there are, to be checked. Default: None

    Raises:
        ValueError: for a target that is not ``(t, token_id)``, one for all or one for each image.
    """
    pairs = target if isinstance(target, list) else [target] * batch
    valid = len(pairs) == batch and all(
        isinstance(pair, tuple)
        and len(pair) == 2
        and all(map(is_integer, pair))
        and -length <= pair[0] < length
        and pair[1] >= 0
        and (vocabulary is None or pair[1] < vocabulary)
        for pair in pairs
    )
    if not valid:
        limit = "" if vocabulary is None else f" below {vocabulary}"
        raise ValueError(
            f"got target {target!r}, expected (t, token_id), integers, with t below {length}, the "
            f"number of explained tokens, and a token{limit}; or a list of {batch} of them, one "
            "for each image"
        )
    rows, tokens = torch.tensor(pairs, dtype=torch.long, device=device).unbind(-1)
    return rows, tokens
