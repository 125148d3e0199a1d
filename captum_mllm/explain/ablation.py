"""``exact_reasons`` finds what each token rests on by leaving out groups of inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from captum_mllm._captum import format_tensor_into_tuples
from captum_mllm._options import is_integer
from captum_mllm.attr.arguments import check_one_example
from captum_mllm.explain.reasons import TEXTS, Division, Reasons
from captum_mllm.metrics.image_baselines import ImageBaseline, image_baseline
from captum_mllm.models.knockout import TakesNoMask, hidden_columns
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.query import Query
from captum_mllm.models.word_embeddings import WordBaseline, word_baseline

AbsentImage = ImageBaseline | Literal["knockout"]

# More images count as one group: each one doubles the number of passes.
_MOST_IMAGES = 4


def group_names(names: Sequence[str]) -> tuple[str, ...]:
    r"""The groups of inputs: each image by its name, all of them where there are too many, and the
    texts."""
    if len(names) == 1:
        names = ["image"]
    elif len(names) > _MOST_IMAGES:
        names = ["images"]
    return (*names, *TEXTS)


class Ablation:
    r"""
    The log-probabilities of the explained tokens where some groups of inputs are left out.

    The groups are the images, each by itself unless there are more than four; the question; and the
    answer so far. One row of a batch explains every token.

    Args:
        mllm (MLLM): the model.
        images (tuple[Tensor, ...]): the images that the query leaves open, (1, 3, H, W) each.
        query (Query): the question and the answer.
        absent_image (str, Tensor, float): as for :func:`exact_reasons`.
        absent_word (str, Tensor or float): the same.

    Attributes:
        groups (tuple[str, ...]): their names.

    Raises:
        TakesNoMask: to hide an image from a decoder that looks at images by cross-attention.
    """

    def __init__(
        self,
        mllm: MLLM,
        images: tuple[Tensor, ...],
        query: Query,
        absent_image: AbsentImage,
        absent_word: WordBaseline,
    ) -> None:
        count = len(query.images)
        self.mllm = mllm
        self.absent_image = absent_image
        # Every image has to be replaced, not only the explained ones.
        self.images = tuple(query.all_images(images))
        self.query = replace(query, images=(None,) * count)
        self.encoding = mllm.encode(self.images, self.query)
        if isinstance(absent_image, str) and absent_image == "knockout" and self.encoding.crosses:
            raise TakesNoMask(
                f"the decoder of a {mllm.model.config.model_type!r} looks at images by "
                "cross-attention, so it has no image tokens that could be hidden; take "
                "absent_image='mean'"
            )
        self.words = mllm.word_embeddings(query, answer=True)
        self.mean = word_baseline(mllm.model, mllm.tokenizer, self.words, absent_word)
        self.groups = group_names(query.names)
        n_images = len(self.groups) - 2
        self._of_image = list(range(count)) if n_images == count else [0] * count
        n_prompt = len(self.encoding.text_positions)
        of_answer = torch.arange(self.words.shape[1], device=self.words.device) >= n_prompt
        self._of_word = n_images + of_answer.long()

    @torch.no_grad()
    def log_probability(self, present: Tensor) -> Tensor:
        r"""
        Args:
            present (Tensor): which groups are there, bool, (B, G).

        Returns:
            Tensor: of shape (B, T), on the CPU, float32 at least.
        """
        present = present.to(self.words.device)
        seen = present[:, self._of_image]
        query = self.query
        if self.words.shape[1]:
            kept = present[:, self._of_word, None]
            query = replace(query, word_embeddings=torch.where(kept, self.words, self.mean))
        images = tuple(image.expand(len(present), -1, -1, -1) for image in self.images)
        hidden: AbstractContextManager[None] = nullcontext()
        if isinstance(self.absent_image, str) and self.absent_image == "knockout":
            hidden = hidden_columns(self.mllm, self._columns(seen))
        else:
            images = tuple(
                torch.where(there[:, None, None, None], image, self._absent(image))
                for there, image in zip(seen.T, images)
            )
        with hidden:
            states = self.mllm.backbone.new_states(images, query)[None]
        start = 0 if query.with_prompt else states.n_prompt
        predicting, ids = states.predicting[:, start:], states.ids[start:]
        return self.mllm.vocabulary.log_probability(predicting, ids).cpu()

    def _absent(self, image: Tensor) -> Tensor:
        assert self.absent_image != "knockout"
        return image_baseline(image, self.absent_image)

    def _columns(self, seen: Tensor) -> Tensor:
        """The tokens of the images that are not seen, (rows, S)."""
        columns = seen.new_zeros(len(seen), self.encoding.inputs["input_ids"].shape[1])
        for there, positions in zip(seen.T, self.encoding.image_positions):
            columns[:, positions] = ~there[:, None]
        return columns.repeat_interleave(self.encoding.windows, 0)


def exact_reasons(
    mllm: MLLM,
    images: Tensor | tuple[Tensor, ...],
    query: Query,
    division: Division = "words first",
    absent_image: AbsentImage = "knockout",
    absent_word: WordBaseline = "mean",
    perturbations_per_eval: int = 8,
) -> Reasons:
    r"""
    What each explained token rests on, by leaving out every group of inputs, alone and together.

    One row of a batch for each of the :math:`2^G` coalitions explains all tokens: 8 rows for one
    image, 16 for two.

    By default an absent image is one at which no later token may look: a blank image would still
    tell how bright it is, and that it shows nothing. An absent word has the mean of all
    embeddings: to look away from it is not enough, since the last word is where the next one is
    predicted. Where a layer of the model takes no mask by which an image could be hidden, or the
    decoder looks at images by cross-attention, the absent image is its mean colour.

    Args:
        mllm (MLLM): the model.
        images (Tensor or tuple[Tensor, ...]): the image, (1, 3, H, W), or the images that the query
            leaves open.
        query (Query): the question and the answer.
        division (str): see :meth:`Reasons.divided`. Default: "words first"
        absent_image (str, Tensor or float): ``"knockout"``, or what is shown in its place as
            in :func:`~captum_mllm.metrics.deletion_auc`, such as ``"mean"`` or an unrelated image.
            Default: "knockout"
        absent_word (str, Tensor or float): what replaces absent words, as in
            :class:`~captum_mllm.MLLMAttribution`. Default: "mean", of all embeddings
        perturbations_per_eval (int): how many coalitions go through the model in one pass.
            Default: 8

    Returns:
        Reasons: of the T explained tokens, on the CPU.

    Raises:
        ValueError: for an option outside of its range, and for a batch of several images.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import MLLM, ImageTextInput
        >>> from captum_mllm.demo import demo_image
        >>> from captum_mllm.explain import exact_reasons
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> reasons = exact_reasons(mllm, image, query)
        >>> reasons.groups, reasons.values.shape
        (('image', 'question', 'answer'), torch.Size([3, 4]))
    """
    if not is_integer(perturbations_per_eval) or perturbations_per_eval < 1:
        raise ValueError(
            f"perturbations_per_eval={perturbations_per_eval!r}, expected an int of at least 1"
        )
    shown = format_tensor_into_tuples(images)
    for image in shown:
        check_one_example(len(image))
    try:
        ablation = Ablation(mllm, shown, query, absent_image, absent_word)
        groups = torch.arange(len(ablation.groups))
        present = (torch.arange(2 ** len(groups))[:, None] >> groups) % 2 == 1
        found = [
            ablation.log_probability(there) for there in present.split(int(perturbations_per_eval))
        ]
    except TakesNoMask:
        return exact_reasons(
            mllm, images, query, division, "mean", absent_word, perturbations_per_eval
        )
    coalitions = torch.cat(found) + math.log(mllm.vocabulary.size)
    method = f"absent image: {_name(absent_image)}, absent words: {_name(absent_word)}"
    return Reasons.of_coalitions(ablation.groups, coalitions, division, method)


def _name(absent: AbsentImage | WordBaseline) -> str:
    return "a tensor" if isinstance(absent, Tensor) else repr(absent)
