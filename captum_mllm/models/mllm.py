"""A Hugging Face multimodal LLM as a forward function of Captum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from captum_mllm.models.answers import answer_tokens, generate_answer
from captum_mllm.models.deep_lift import refuse_deep_lift
from captum_mllm.models.encoding import Encoding, TokenCache, encode, wants_gradient
from captum_mllm.models.evaluation_mode import evaluation_mode
from captum_mllm.models.families import family_of
from captum_mllm.models.image_text_input import ImageTextInput
from captum_mllm.models.language_model import LanguageModel
from captum_mllm.models.layout import Layout, size_of
from captum_mllm.models.passes import Passes
from captum_mllm.models.pictures import Picture
from captum_mllm.models.processors import HUB_ARGUMENTS, load_processor
from captum_mllm.models.prompt import render_prompt, text_spans
from captum_mllm.models.query import Query, split_arguments
from captum_mllm.models.states import States, gather_states, hidden_states
from captum_mllm.models.targets import split_target
from captum_mllm.models.vocabulary import Vocabulary


class MLLM(nn.Module):
    r"""A multimodal LLM whose answer to a question is a function of a picture tensor.

    ``mllm(image, query)`` takes a picture of any size, (B, 3, H, W) in [0, 1], and gives the logits
    of the tokens of a fixed answer, (B, T, V), so every attribution method of Captum works on it:
    the target ``(t, token_id)`` stays the same when the size of the picture, and with it the
    number of image tokens, changes. A picture of another size than its native one is seen at
    another scale.

    Where no gradient is wanted, the processor's own path is taken, so that what is explained is
    what the model is used with; else its arithmetic is repeated on tensors. The wrapped model is
    never changed.

    Args:
        model (PreTrainedModel): a model of pictures and text of transformers.
        processor (ProcessorMixin): its processor.

    Raises:
        ValueError: for a model of text alone, and for a family that is not known.

    Examples::
        >>> from captum.attr import Saliency
        >>> from captum_mllm import MLLM, ImageTextInput
        >>> from captum_mllm.demo import demo_picture
        >>> from PIL import Image
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_picture()), "Describe the image.")
        >>> image, query = mllm.prepare(inp, target="a red circle")
        >>> mllm(image, query).shape == (1, 3, mllm.vocabulary.size)
        True
        >>> maps = Saliency(mllm).attribute(
        ...     image, target=(1, query.answer_ids[1]), additional_forward_args=(query,)
        ... )
        >>> maps.shape == image.shape
        True
    """

    def __init__(self, model: PreTrainedModel, processor: Any) -> None:
        super().__init__()
        family = family_of(model.config)
        if not hasattr(processor, "image_processor"):
            raise ValueError(
                f"got a {type(processor).__name__}, expected the model's processor of pictures and "
                "text, as AutoProcessor.from_pretrained gives it"
            )
        self.model = model
        self.processor = processor
        self.geometry = family.geometry(model.config, processor)
        self.image_token_id: int = model.config.image_token_id
        self.training = model.training
        self._tokens = TokenCache()
        self._passes: Passes | None = None

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **kwargs: Any) -> MLLM:
        r"""Load a model and its processor.

        Args:
            name_or_folder (str or Path): a name on the Hugging Face hub, a folder made by
                ``save_pretrained``, or ``"demo/NAME"`` for a model that comes with this package.
            **kwargs (Any): passed on to ``AutoModelForImageTextToText.from_pretrained``, for
                example ``dtype="bfloat16"`` or ``device_map="auto"``. What says where and how to
                get the files, such as ``revision`` and ``token``, goes to the processor too.

        Returns:
            MLLM: in evaluation mode.
        """
        if str(name_or_folder).startswith("demo/"):
            from captum_mllm.demo import demo_folder

            name_or_folder = demo_folder(str(name_or_folder).removeprefix("demo/"))
        model = AutoModelForImageTextToText.from_pretrained(name_or_folder, **kwargs)
        access = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS}
        return cls(model.eval(), load_processor(name_or_folder, **access))

    @property
    def device(self) -> torch.device:
        embeddings: Any = self.model.get_input_embeddings()
        return embeddings.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.model.get_output_embeddings())

    def forward(self, *args: Any) -> Tensor:
        r"""Logits of the explained tokens, each predicted from what stands before it.

        Args:
            *args (Any): the pictures that the query leaves open, usually one, each of shape
                (B, 3, H, W); then the :class:`Query`.

        Returns:
            Tensor: of shape (B, T, V).
        """
        refuse_deep_lift(self)
        pictures, query = split_arguments(args)
        encoding = self.encode(pictures, query)
        with self.evaluating():
            rows = encoding.explained_rows(query)
            logits = self.model(**encoding.inputs, logits_to_keep=rows, use_cache=False).logits
        return logits.unflatten(0, (-1, encoding.windows)).mean(1)

    def prepare(
        self,
        inp: ImageTextInput,
        target: str | Sequence[int] | Tensor | None = None,
        every_picture: bool = False,
        **generation: Any,
    ) -> tuple[Any, Query]:
        r"""The tensor and the query that stand for an input and its answer.

        Args:
            inp (ImageTextInput): the pictures and the question.
            target (str, Sequence[int] or Tensor, optional): the answer to explain, as text or as
                tokens. Default: None, what the model answers.
            every_picture (bool): leave every picture open, not only the explained one.
            **generation (Any): arguments of ``generate``, such as ``max_new_tokens``, where the
                model answers. Default: greedy, 64 tokens at most.

        Returns:
            tuple[Tensor, Query]: the picture (1, 3, H, W) in [0, 1], or a tuple of all pictures
            if ``every_picture``, on the model's device, and the query.

        Raises:
            ValueError: for an empty answer, and where the chat template leaves no place for the
                picture.
        """
        prompt = render_prompt(self.processor, inp)
        # Tensors of their own, also for gradients later on where they are made in inference mode.
        with torch.inference_mode(False):
            pictures = [picture.to(self.device, copy=True) for picture in inp.images]
        query = Query(
            prompt=prompt,
            answer_ids=(),
            spans=text_spans(self.processor, inp, prompt),
            native=tuple(map(size_of, pictures)),
            pictures=tuple(
                None if every_picture or index == inp.explained else picture
                for index, picture in enumerate(pictures)
            ),
        )
        opened = tuple(pictures[index].unsqueeze(0) for index in query.explained)
        if target is None:
            inputs = self.encode(opened, query).inputs
            with self.evaluating():
                answer = generate_answer(self.model, inputs, self.tokenizer, generation)
        elif generation:
            raise ValueError(
                f"got both an answer and {', '.join(generation)}, which ask the model for one; "
                "leave out one of them"
            )
        else:
            answer = answer_tokens(
                target, self.tokenizer, self.vocabulary.size, self.image_token_id
            )
        return (opened if every_picture else opened[0]), replace(query, answer_ids=answer)

    @torch.no_grad()
    def states(self, *args: Any, layer: int | None = None) -> States:
        r"""The hidden states that explanations need, from one pass.

        Args:
            *args (Any): the pictures and the query, as for ``forward``.
            layer (int, optional): take the output of this layer of the language model through the
                final norm; negative ones count from the end. Default: None, the last.

        Returns:
            States: detached.

        Raises:
            ValueError: for a layer that the model does not have.
        """
        pictures, query = split_arguments(args)
        passes = self._passes
        if passes is not None and (known := passes.recall(pictures, query, layer)):
            return known
        encoding = self.encode(pictures, query)
        with self.evaluating():
            found = hidden_states(self.model, encoding.inputs, layer)
        for place, hidden in found.items():
            states = gather_states(hidden.unflatten(0, (-1, encoding.windows)), encoding, query)
            if passes is not None:
                passes.keep(states, pictures, query, place)
        return states

    def layouts(self, *args: Any) -> tuple[Layout, ...]:
        r"""Where the tokens of each explained picture lie, without a pass through the model."""
        pictures, query = split_arguments(args)
        if self._passes is not None and (known := self._passes.recall(pictures, query, None)):
            return known.layouts
        encoding = self.encode(pictures, query)
        return tuple(encoding.layouts[index] for index in query.explained)

    def explained_ids(self, *args: Any) -> Tensor:
        r"""Vocabulary indices of the explained tokens, without a pass through the model."""
        pictures, query = split_arguments(args)
        answer = torch.tensor(query.answer_ids, device=pictures[0].device)
        if not query.with_prompt:
            return answer
        return torch.cat([self.encode(pictures, query).word_ids, answer])

    @torch.no_grad()
    def target_probability(
        self, *args: Any, target: Any = None, layer: int | None = None
    ) -> Tensor:
        r"""Probability of the explained tokens, without logits of all of the vocabulary.

        Args:
            *args (Any): the pictures and the query, as for ``forward``.
            target (tuple, list of tuples, optional): ``(t, token_id)`` for all B pictures or for
                each of them, as Captum takes it. Default: None, every token of the answer.
            layer (int, optional): as in :meth:`states`.

        Returns:
            Tensor: float32, of shape (B,), or (T,) for one picture where no target is given.
        """
        _, query = split_arguments(args)
        states = self.states(*args, layer=layer)
        start = 0 if query.with_prompt else states.n_words
        predicting, ids = states.predicting[:, start:], states.ids[start:]
        if target is None:
            if len(predicting) != 1:
                raise ValueError(
                    f"got {len(predicting)} pictures and no target; give a target, or one picture"
                )
            return self.vocabulary.predictions(predicting[0], ids, 1).probability
        rows, wanted = split_target(
            target, len(predicting), len(ids), ids.device, self.vocabulary.size
        )
        chosen = predicting[torch.arange(len(predicting), device=rows.device), rows]
        return self.vocabulary.predictions(chosen, wanted, 1).probability

    def as_language_model(self, *images: Picture) -> LanguageModel:
        r"""The model for Captum's own ``LLMAttribution``; see :class:`LanguageModel`.

        Args:
            *images (PIL.Image.Image, numpy.ndarray or Tensor): the pictures of inputs that are
                text alone.
        """
        return LanguageModel(self, images)

    @contextmanager
    def remember(self) -> Iterator[None]:
        r"""Within it, a pass with the same pictures and query is made once.

        What randomises weights or changes pictures in place must not run within it, see
        :class:`~captum_mllm.models.passes.Passes` for what goes unnoticed.
        """
        outer, self._passes = self._passes, self._passes or Passes(self.parameters())
        try:
            yield
        finally:
            self._passes = outer

    def encode(self, pictures: Sequence[Tensor], query: Query) -> Encoding:
        r"""The wrapped model's inputs for a query, and where everything lies in them.

        Args:
            pictures (Sequence[Tensor]): the pictures that the query leaves open.
            query (Query): the question and the answer.

        Returns:
            Encoding: differentiable in pictures that require a gradient.
        """
        encoding = encode(
            query.all_pictures(pictures),
            query,
            self.processor,
            self.geometry,
            self.image_token_id,
            self._tokens if wants_gradient(pictures) else None,
        )
        for name, value in encoding.inputs.items():
            if value.is_floating_point():
                encoding.inputs[name] = value.to(self.dtype)
        return encoding

    def evaluating(self) -> AbstractContextManager[None]:
        r"""Within it, there is no dropout; afterwards the model is as before."""
        return evaluation_mode(self.model)
