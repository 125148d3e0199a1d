"""A Hugging Face multimodal LLM as a forward function of Captum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText, PreTrainedModel

from captum_mllm.models.encoding import Encoding, encode
from captum_mllm.models.families import family_of
from captum_mllm.models.image_text_input import ImageTextInput
from captum_mllm.models.language_model import LanguageModel
from captum_mllm.models.layout import Layout, size_of
from captum_mllm.models.pictures import Picture, check_pictures
from captum_mllm.models.processors import load_processor
from captum_mllm.models.prompt import render_prompt, text_spans
from captum_mllm.models.query import Query
from captum_mllm.models.states import States, gather_states
from captum_mllm.models.targets import split_target
from captum_mllm.models.vocabulary import Vocabulary

GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
MAX_NEW_TOKENS = 64


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
        self._passes: dict[tuple[Any, ...], tuple[States, tuple[Tensor, ...]]] | None = None

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **kwargs: Any) -> MLLM:
        r"""Load a model and its processor.

        Args:
            name_or_folder (str or Path): a name on the Hugging Face hub, a folder made by
                ``save_pretrained``, or ``"demo/NAME"`` for a model that comes with this package.
            **kwargs (Any): passed on to ``AutoModelForImageTextToText.from_pretrained``, for
                example ``dtype="bfloat16"`` or ``device_map="auto"``.

        Returns:
            MLLM: in evaluation mode.
        """
        if str(name_or_folder).startswith("demo/"):
            from captum_mllm.demo import demo_folder

            name_or_folder = demo_folder(str(name_or_folder).removeprefix("demo/"))
        model = AutoModelForImageTextToText.from_pretrained(name_or_folder, **kwargs)
        return cls(model.eval(), load_processor(name_or_folder))

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
        pictures, query = self.arguments(args)
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
        pictures = [picture.to(self.device) for picture in inp.images]
        query = Query(
            prompt=prompt,
            answer_ids=(),
            spans=text_spans(prompt, inp.texts),
            native=tuple(map(size_of, pictures)),
            pictures=tuple(
                None if every_picture or index == inp.explained else picture
                for index, picture in enumerate(pictures)
            ),
        )
        opened = tuple(pictures[index].unsqueeze(0) for index in query.explained)
        if target is None:
            answer = self._generate(opened, query, generation)
        elif generation:
            raise ValueError(
                f"got both an answer and {', '.join(generation)}, which ask the model for one; "
                "leave out one of them"
            )
        else:
            answer = self._tokens(target)
        query = Query(prompt, answer, query.spans, query.native, query.pictures)
        return (opened if every_picture else opened[0]), query

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
        pictures, query = self.arguments(args)
        key = (tuple(map(_identity, pictures)), query.inputs_key, layer)
        if self._passes is not None and key in self._passes:
            return self._passes[key][0]
        encoding = self.encode(pictures, query)
        with self.evaluating():
            hidden = self._hidden(encoding.inputs, layer)
        states = gather_states(hidden.unflatten(0, (-1, encoding.windows)), encoding, query)
        if self._passes is not None:
            # The pictures are kept so that no other tensor takes their identity.
            self._passes[key] = (states, pictures)
        return states

    def layouts(self, *args: Any) -> tuple[Layout, ...]:
        r"""Where the tokens of each explained picture lie, without a pass through the model."""
        pictures, query = self.arguments(args)
        encoding = self.encode(pictures, query)
        return tuple(encoding.layouts[index] for index in query.explained)

    def explained_ids(self, *args: Any) -> Tensor:
        r"""Vocabulary indices of the explained tokens, without a pass through the model."""
        pictures, query = self.arguments(args)
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
        _, query = self.arguments(args)
        states = self.states(*args, layer=layer)
        start = 0 if query.with_prompt else states.n_words
        predicting, ids = states.predicting[:, start:], states.ids[start:]
        if target is None:
            if len(predicting) != 1:
                raise ValueError(
                    f"got {len(predicting)} pictures and no target; give a target, or one picture"
                )
            return self.vocabulary.predictions(predicting[0], ids, 1).probability
        rows, wanted = split_target(target, len(predicting), len(ids), ids.device)
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
        """Within it, a pass with the same pictures and query is made once."""
        if self._passes is not None:
            yield
            return
        self._passes = {}
        try:
            yield
        finally:
            self._passes = None

    def arguments(self, args: tuple[Any, ...]) -> tuple[tuple[Tensor, ...], Query]:
        r"""The pictures and the query among the arguments of ``forward``, checked.

        Args:
            args (tuple): the pictures, then the query.

        Returns:
            tuple[tuple[Tensor, ...], Query]: the two apart.

        Raises:
            TypeError: if the last is no query.
            ValueError: if a picture is none.
        """
        if len(args) < 2 or not isinstance(args[-1], Query):
            raise TypeError(
                "expected the picture and a Query; pass additional_forward_args=(query,) with the "
                "query that MLLM.prepare gives"
            )
        for picture in args[:-1]:
            check_pictures(picture)
        return args[:-1], args[-1]

    def encode(self, pictures: Sequence[Tensor], query: Query) -> Encoding:
        r"""The wrapped model's inputs for a query, and where everything lies in them.

        Args:
            pictures (Sequence[Tensor]): the pictures that the query leaves open.
            query (Query): the question and the answer.

        Returns:
            Encoding: differentiable in pictures that require a gradient.
        """
        differentiable = torch.is_grad_enabled() and any(p.requires_grad for p in pictures)
        encoding = encode(
            query.all_pictures(pictures),
            query,
            self.processor,
            self.geometry,
            self.image_token_id,
            differentiable,
        )
        for name, value in encoding.inputs.items():
            if value.is_floating_point():
                encoding.inputs[name] = value.to(self.dtype)
        return encoding

    def _hidden(self, inputs: dict[str, Tensor], layer: int | None) -> Tensor:
        if layer is None:
            return self.model.base_model(**inputs, use_cache=False).last_hidden_state
        decoder: Any = self.model.get_decoder()
        count = len(decoder.layers)
        if not -count <= layer < count:
            raise ValueError(
                f"layer={layer}, expected one of the {count} layers of the language model, "
                f"{-count} to {count - 1}"
            )
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        # What the next module receives: some families add visual features between layers.
        following = [*decoder.layers, decoder.norm][layer % count + 1]
        handle = following.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            self.model.base_model(**inputs, use_cache=False)
        finally:
            handle.remove()
        return decoder.norm(seen[0])

    @torch.no_grad()
    def _generate(
        self, pictures: Sequence[Tensor], query: Query, options: dict[str, Any]
    ) -> tuple[int, ...]:
        inputs = self.encode(pictures, query).inputs
        # A placeholder without a picture behind it would break every later pass.
        placeholders = {"suppress_tokens": [self.image_token_id]}
        settings = {**GREEDY, **placeholders, "max_new_tokens": MAX_NEW_TOKENS, **options}
        if settings["do_sample"]:
            settings = {name: value for name, value in settings.items() if value is not None}
        model: Any = self.model
        with self.evaluating():
            output = model.generate(**inputs, **settings)
        answer = output[0, inputs["input_ids"].shape[1] :].tolist()
        special = set(self.tokenizer.all_special_ids)
        while answer and answer[-1] in special:
            answer.pop()
        if not answer:
            raise ValueError("the model answers nothing; give the answer to explain as `target`")
        return tuple(answer)

    def _tokens(self, target: str | Sequence[int] | Tensor) -> tuple[int, ...]:
        if isinstance(target, str):
            ids = self.tokenizer(target, add_special_tokens=False)["input_ids"]
        else:
            ids = target.flatten().tolist() if isinstance(target, Tensor) else list(target)
        if not ids:
            raise ValueError(f"the answer to explain is empty: {target!r}; give at least one token")
        if not all(0 <= token < self.vocabulary.size for token in ids):
            raise ValueError(
                f"the answer has tokens outside of the vocabulary of {self.vocabulary.size}: {ids}"
            )
        if self.image_token_id in ids:
            raise ValueError(
                f"the answer holds token {self.image_token_id}, the picture's placeholder; leave "
                "it out"
            )
        return tuple(ids)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        r"""Within it, there is no dropout; afterwards every training flag is as before."""
        training = [module for module in self.model.modules() if module.training]
        if not training:
            yield
            return
        self.model.eval()
        try:
            yield
        finally:
            for module in training:
                module.training = True


def _identity(tensor: Tensor) -> tuple[int, int]:
    return id(tensor), 0 if tensor.is_inference() else tensor._version
