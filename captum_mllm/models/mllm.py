"""``MLLM`` makes a multimodal LLM of Hugging Face a forward function of Captum."""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from captum_mllm._captum import format_output, runs_deep_lift
from captum_mllm.models import contrasts, word_embeddings
from captum_mllm.models.backbone import Backbone, logits_at
from captum_mllm.models.check import SCALES, Report, check
from captum_mllm.models.decoding import find_answer
from captum_mllm.models.encoding import Encoding
from captum_mllm.models.families import Family
from captum_mllm.models.geometry import Geometry
from captum_mllm.models.images import ImageLike
from captum_mllm.models.inputs import ImageTextInput
from captum_mllm.models.language_model import LanguageModel
from captum_mllm.models.layout import Layout
from captum_mllm.models.loading import load_model
from captum_mllm.models.pairing import checked_pair
from captum_mllm.models.passes import Passes
from captum_mllm.models.pickling import has_capturing_hooks, picklable_state
from captum_mllm.models.probe import probe
from captum_mllm.models.prompt import open_query
from captum_mllm.models.query import Query, split_arguments
from captum_mllm.models.states import States, target_probability, token_logits
from captum_mllm.models.vocabulary import Vocabulary


class MLLM(nn.Module):
    r"""A multimodal LLM whose answer to a question is a function of an image tensor.

    ``mllm(image, query)`` takes an image of any size, (B, 3, H, W) in [0, 1], and gives the logits
    of the tokens of a fixed answer, (B, T, V), so every attribution method of Captum works on it:
    the target ``(t, token_id)`` stays the same when the size of the image, and with it the
    number of image tokens, changes. An image of another size than its native one is seen at
    another scale. The words of the question are an input too where they are given,
    ``mllm(image, word_embeddings, query)``.

    Where no gradient is wanted, the processor's own path is taken, so that what is explained is
    what the model is used with; else its arithmetic is repeated on tensors. The wrapped model is
    never changed.

    Args:
        model (PreTrainedModel): a model of images and text of transformers, as it is or within a
            ``PeftModel`` or ``DataParallel``.
        processor (ProcessorMixin): its processor.
        geometry (Family or str, optional): the facts of its family; ``"probe"`` finds them for a
            family that is not in the table, see :func:`captum_mllm.models.probe`. Default: None,
            those of the table.

    Raises:
        TypeError: for what is not a model, or not a processor of images and text.
        ValueError: for a model of text alone, of a family that is not known, or without its output
            embedding; and for the processor of another model.

    Examples::
        >>> from captum.attr import Saliency
        >>> from captum_mllm import MLLM, ImageTextInput
        >>> from captum_mllm.demo import demo_image
        >>> from PIL import Image
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> mllm(image, query).shape == (1, 3, mllm.vocabulary.size)
        True
        >>> maps = Saliency(mllm).attribute(
        ...     image, target=(1, query.answer_ids[1]), additional_forward_args=(query,)
        ... )
        >>> maps.shape == image.shape
        True
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Any,
        geometry: Family | Literal["probe"] | None = None,
    ) -> None:
        super().__init__()
        if not (geometry is None or geometry == "probe" or isinstance(geometry, Family)):
            raise TypeError(
                f"got geometry={geometry!r}, expected None, 'probe', or the facts of a family, "
                "captum_mllm.models.Family(...)"
            )
        model, processor = checked_pair(model, processor)
        family = probe(model, processor) if geometry == "probe" else geometry
        self.backbone = Backbone(model, processor, family)
        self.model = model
        self.training = model.training

    def __reduce_ex__(self, protocol: Any) -> Any:
        if not has_capturing_hooks(self):
            return super().__reduce_ex__(protocol)
        return copyreg.__newobj__, (type(self),), picklable_state(self)  # type: ignore[attr-defined]

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **kwargs: Any) -> MLLM:
        r"""Load a model and its processor.

        Args:
            name_or_folder (str or Path): a name on the Hugging Face hub, a folder made by
                ``save_pretrained``, or ``"demo/NAME"`` for a model that comes with this package.
            **kwargs (Any): passed on to ``AutoModelForImageTextToText.from_pretrained``, for
                example ``dtype="bfloat16"`` or ``device_map="auto"``. What says where and how to
                get the files, such as ``revision`` and ``token``, goes to the processor too.
                ``geometry`` is that of this class.

        Returns:
            MLLM: in evaluation mode.
        """
        geometry = kwargs.pop("geometry", None)
        return cls(*load_model(name_or_folder, **kwargs), geometry=geometry)

    @property
    def processor(self) -> Any:
        return self.backbone.processor

    @property
    def tokenizer(self) -> Any:
        return self.backbone.tokenizer

    @property
    def geometry(self) -> Geometry:
        return self.backbone.geometry

    @property
    def image_token_id(self) -> int:
        return self.backbone.image_token_id

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def dtype(self) -> torch.dtype:
        return self.backbone.dtype

    @property
    def vocabulary(self) -> Vocabulary:
        return self.backbone.vocabulary

    def forward(self, *args: Any) -> Tensor:
        r"""Logits of the explained tokens, each predicted from the tokens before it.

        Args:
            *args (Any): the images that the query leaves open, usually one, each of shape
                (B, 3, H, W); embeddings of the words as in :meth:`word_embeddings`, (B, P, D), if
                they are inputs too; then the :class:`Query`.

        Returns:
            Tensor: of shape (B, T, V).

        Raises:
            ValueError: for inputs of another shape, or images far outside of [0, 1].
        """
        refuse_deep_lift(self)
        images, query = split_arguments(args, with_text=True)
        encoding = self.encode(images, query)
        with self.evaluating(encoding):
            return self.explained_logits(encoding, query)

    def explained_logits(self, encoding: Encoding, query: Query) -> Tensor:
        r"""Logits of the explained tokens, (B, T, V), with the graph of the pass where there is
        one."""
        rows = encoding.explained_rows(query)
        logits = logits_at(self.model, encoding.inputs, rows)
        logits = logits.unflatten(0, (-1, encoding.windows)).mean(1)
        return contrasts.subtract_alternatives(logits, query)

    def prepare(
        self,
        inp: ImageTextInput,
        target: str | Sequence[int] | Tensor | None = None,
        **generation: Any,
    ) -> tuple[Any, Query]:
        r"""The images and the query that stand for an input and its answer.

        Args:
            inp (ImageTextInput): the images and the question.
            target (str, Sequence[int] or Tensor, optional): the answer to explain, as text or as
                tokens. Default: None, what the model answers.
            **generation (Any): arguments of ``generate``, such as ``max_new_tokens``, where the
                model answers. Default: greedy, 64 tokens at most.

        Returns:
            tuple[Tensor or tuple[Tensor, ...], Query]: the explained image (1, 3, H, W) in [0, 1],
            or a tuple of them if there are several, on the model's device; and the query.

        Raises:
            ValueError: for an empty answer, and where the chat template leaves no place for the
                image.
        """
        opened, query = open_query(self.backbone, inp)
        answer = find_answer(self.backbone, opened, query, target, generation)
        return format_output(len(opened) > 1, opened), replace(query, answer_ids=answer)

    def contrast(self, query: Query, t: int, instead_of: int) -> Query:
        r"""The query that explains a token in contrast to another one.

        Every logit at t is less by that of the other token, so that what explains the logit of the
        answer's token explains why it was said and not the other. Every method of Captum takes
        such a query; LogitLens has a form of its own for it.

        Args:
            query (Query): the question and the answer.
            t (int): its step in the answer, from the end where it is negative.
            instead_of (int): vocabulary index of the other token.

        Raises:
            TypeError: for something that is not an integer.
            ValueError: for a step outside of the answer, a token outside of the
                vocabulary, or the answer's own.

        Examples::
            >>> from captum.attr import Saliency
            >>> from captum_mllm import MLLM, ImageTextInput
            >>> from captum_mllm.demo import demo_image
            >>> from PIL import Image
            >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
            >>> inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
            >>> image, query = mllm.prepare(inp, target="a red circle")
            >>> (blue,) = mllm.tokenizer(" blue", add_special_tokens=False)["input_ids"]
            >>> why_not_blue = mllm.contrast(query, 1, blue)
            >>> red, call = query.answer_ids[1], {"additional_forward_args": (why_not_blue,)}
            >>> Saliency(mllm).attribute(image, target=(1, red), **call).shape == image.shape
            True
        """
        count = len(query.answer_ids)
        return contrasts.contrast(query, t, instead_of, count, self.vocabulary.size)

    def check(self, inp: ImageTextInput | None = None, scales: Sequence[float] = SCALES) -> Report:
        r"""Prove that the model, its processor and its family's facts fit together.

        Args:
            inp (ImageTextInput, optional): an image and a question of yours. Default: None, coarse
                noise and "Describe the image."
            scales (Sequence[float]): the scales to check. Default: (0.5, 1.0, 1.5, 2.0)

        Returns:
            Report: a verdict for each check; ``print`` it, or ask for ``passed``.

        Examples::
            >>> from captum_mllm import MLLM
            >>> MLLM.from_pretrained("demo/qwen2-vl").check(scales=(1.0,)).passed
            True
        """
        return check(self.backbone, inp, scales)

    @torch.no_grad()
    def states(self, *args: Any, layer: int | None = None) -> States:
        r"""The hidden states that explanations need, from one pass.

        Args:
            *args (Any): the images and the query, as for ``forward``.
            layer (int, optional): take the output of this layer of the language model through the
                final norm; negative ones count from the end. Default: None, the last.

        Returns:
            States: detached.

        Raises:
            ValueError: for a layer that the model does not have.
        """
        images, query = split_arguments(args, with_text=True)
        return self.backbone.states(images, query, layer)

    def layouts(self, *args: Any) -> tuple[Layout, ...]:
        r"""Where the tokens of each explained image lie, without a pass through the model."""
        images, query = split_arguments(args, with_text=True)
        if self._passes is not None and (known := self._passes.recall(images, query, None)):
            return known.layouts
        encoding = self.encode(images, query)
        return tuple(encoding.layouts[index] for index in query.explained)

    def explained_ids(self, *args: Any) -> Tensor:
        r"""Vocabulary indices of the explained tokens, without a pass through the model."""
        images, query = split_arguments(args, with_text=True)
        answer = torch.tensor(query.answer_ids, device=images[0].device)
        if not query.with_prompt:
            return answer
        return torch.cat([self.encode(images, query).text_ids, answer])

    @torch.no_grad()
    def target_probability(
        self, *args: Any, target: Any = None, layer: int | None = None
    ) -> Tensor:
        r"""Probability of the explained tokens, without logits of all of the vocabulary.

        Args:
            *args (Any): the images and the query, as for ``forward``.
            target (tuple, list of tuples, optional): ``(t, token_id)`` for all B images or for
                each of them, as Captum takes it. Default: None, every token of the answer.
            layer (int, optional): as in :meth:`states`.

        Returns:
            Tensor: float32, of shape (B,), or (T,) for one image where no target is given.
        """
        _, query = split_arguments(args, with_text=True)
        states = self.states(*args, layer=layer)
        return target_probability(self.vocabulary, states, query, target)

    @torch.no_grad()
    def token_logits(self, *args: Any) -> Tensor:
        r"""Logits of the explained tokens alone, (B, T), from a pass that nothing remembers."""
        images, query = split_arguments(args, with_text=True)
        states = self.backbone.new_states(images, query)[None]
        return token_logits(self.vocabulary, states, query)

    def word_embeddings(self, query: Query, answer: bool = False) -> Tensor:
        r"""The embeddings of the words, a further input of ``forward``.

        Args:
            query (Query): the question and the answer.
            answer (bool): the tokens of the answer but its last too. Default: False

        Returns:
            Tensor: of shape (1, P, D), or (1, P + T - 1, D) with the answer.
        """
        return word_embeddings.own_embeddings(self.backbone, query, answer)

    def word_mask(self, query: Query, answer: bool = False) -> Tensor:
        r"""A ``feature_mask`` of :meth:`word_embeddings`, (1, P, 1), one feature for each word."""
        return word_embeddings.word_mask(self.backbone, query, answer)

    def as_language_model(self, *images: ImageLike) -> LanguageModel:
        r"""The model for Captum's own ``LLMAttribution``; see :class:`LanguageModel`.

        Args:
            *images (PIL.Image.Image, numpy.ndarray or Tensor): the images of inputs that are
                text alone.
        """
        return LanguageModel(self.backbone, images)

    def encode(self, images: Sequence[Tensor], query: Query) -> Encoding:
        r"""The wrapped model's inputs for a query, and where everything lies in them.

        Args:
            images (Sequence[Tensor]): the images that the query leaves open.
            query (Query): the question and the answer.

        Returns:
            Encoding: differentiable in images that require a gradient.
        """
        return self.backbone.encode(images, query)

    def evaluating(self, encoding: Encoding | None = None) -> AbstractContextManager[None]:
        r"""Within it passes in this thread have no dropout, and the embeddings of the words that
        an encoding brings along; afterwards the model is as before."""
        return self.backbone.evaluating(encoding)

    def remember(self) -> AbstractContextManager[None]:
        r"""Within it a pass with the same images and query is made once in this thread; see
        :class:`~captum_mllm.models.passes.Passes` for what goes unnoticed."""
        return self.backbone.remember()

    @property
    def _passes(self) -> Passes | None:
        """What is remembered here and now."""
        return self.backbone.passes

    @property
    def remembers(self) -> bool:
        r"""Whether passes are remembered here and now."""
        return self.backbone.remembers

    def recall(self, *args: Any, layer: int | None = None) -> States | None:
        r"""The states of the pass with these arguments, if it was made within :meth:`remember`."""
        return self.backbone.recall(*args, layer=layer)

    def knows(self, *args: Any, layer: int | None = None) -> bool:
        r"""Whether the pass with these arguments was made within :meth:`remember`."""
        return self.backbone.knows(*args, layer=layer)

    def keep(
        self, states: States, *args: Any, layer: int | None = None, by_value: bool = False
    ) -> None:
        r"""Within :meth:`remember`, take states for those of the pass with these arguments; if
        ``by_value``, also with other tensors that are equal images."""
        self.backbone.keep(states, *args, layer=layer, by_value=by_value)


def refuse_deep_lift(module: nn.Module) -> None:
    r"""Raise where DeepLift or DeepLiftShap is about to run a module.

    Their rules are for rectifiers, pooling and softmax as modules. Attention, norms and gated
    activations they would pass through as the gradient does, without a word.

    Raises:
        NotImplementedError: if so.
    """
    if runs_deep_lift(module):
        raise NotImplementedError(
            "DeepLift has no rules for the attention, the norms and the activations of a "
            "multimodal LLM and would return gradient * (input - baseline); take InputXGradient, "
            "which is that, or IntegratedGradients"
        )
