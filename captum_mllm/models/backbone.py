"""``Backbone``, a model with its processor and its geometry: all that makes a pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.video_processing_utils import BaseVideoProcessor

from captum_mllm._options import is_integer
from captum_mllm.models.context import check_length
from captum_mllm.models.encoding import Encoding, TokenCache, encode, wants_gradient
from captum_mllm.models.families import Family, family_of, placeholder_ids, softcap
from captum_mllm.models.geometry import Geometry
from captum_mllm.models.hooks import evaluation_mode, hook
from captum_mllm.models.layout import size_of
from captum_mllm.models.pairing import complete_processor
from captum_mllm.models.parity import check_parity
from captum_mllm.models.passes import PassMemory
from captum_mllm.models.precision import check_finite
from captum_mllm.models.query import Clip, Query
from captum_mllm.models.states import States, gather_states
from captum_mllm.models.towers import body_of, decoder_of
from captum_mllm.models.vocabulary import Vocabulary


class Backbone(PassMemory):
    r"""A multimodal model with its processor and its geometry: all that makes a pass.

    Args:
        model (PreTrainedModel): a model of images and text of transformers.
        processor (ProcessorMixin): its processor.
        family (Family, optional): its row of facts. Default: None, that of the table.

    Raises:
        ValueError: for a model of text alone, a family that is not known, and another processor.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Any, family: Family | None = None
    ) -> None:
        family = family or family_of(model.config)
        if not hasattr(processor, "image_processor"):
            raise ValueError(
                f"got a {type(processor).__name__}, expected the model's processor of images and "
                "text, as AutoProcessor.from_pretrained gives it"
            )
        super().__init__(model.parameters)
        self.model: Any = model
        self.processor = processor
        self.family = family
        self.image_token_id: int = model.config.image_token_id
        self._tokens = TokenCache()
        self._checked_options = ""
        self._video: tuple[Clip, Geometry, str] | None = None
        try:
            self.geometry = family.make_geometry(model.config, processor)
            self._check_options()
        except (AttributeError, LookupError, TypeError, ZeroDivisionError) as error:
            raise ValueError(
                f"the geometry {family.geometry.__name__} does not fit a "
                f"{model.config.model_type!r} and its {type(processor).__name__} "
                f"({type(error).__name__}: {error}); MLLM(model, processor, geometry='probe') "
                "finds the one that does"
            ) from error

    @property
    def device(self) -> torch.device:
        """Where the inputs of the model go."""
        embeddings: Any = self.model.get_input_embeddings()
        # Where accelerate runs it, if its weights lie elsewhere until then.
        moved = getattr(embeddings, "_hf_hook", None)
        device = getattr(moved, "execution_device", None)
        return embeddings.weight.device if device is None else torch.device(device)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def vocabulary(self) -> Vocabulary:
        return Vocabulary(self.model.get_output_embeddings(), softcap(self.model.config))

    @property
    def frames_together(self) -> int | None:
        """How many frames of a video share their tokens; None where a model has no tokens for
        videos, or its processor, without torchvision, cannot make them."""
        video_processor = getattr(self.processor, "video_processor", None)
        if self.family.video is None or not isinstance(video_processor, BaseVideoProcessor):
            return None
        return int(getattr(self.model.config.vision_config, "temporal_patch_size", 1))

    def encode(
        self, images: Sequence[Tensor], query: Query, within_context: bool = True
    ) -> Encoding:
        r"""The model's inputs for a query; see :meth:`captum_mllm.MLLM.encode`.

        Args:
            images (Sequence[Tensor]): the images that the query leaves open.
            query (Query): the question and the answer.
            within_context (bool): refuse an enlarged image that makes the inputs longer than the
                context of the model. Default: True
        """
        geometry, options = self._checked_geometry(query.clip)
        differentiable = wants_gradient(images)
        # Kept for the time of an explanation where the processor makes the pixels.
        here = self.passes
        cache = self._tokens if differentiable else here.tokens if here is not None else None
        encoding = encode(
            query.all_images(images),
            query,
            complete_processor(self.processor, self.model.config),
            geometry,
            placeholder_ids(self.model.config),
            self.dtype,
            options,
            cache,
            differentiable,
        )
        if within_context:
            self._check_length(encoding, images, query)
        positions = self._positions(encoding.inputs)
        if positions is not None:
            encoding.inputs["position_ids"] = positions
        return encoding

    @contextmanager
    def evaluating(self, encoding: Encoding | None = None) -> Iterator[None]:
        r"""Within it passes in this thread have no dropout, and the embeddings of the words that
        an encoding brings along."""
        with evaluation_mode(self.model), placed_embeddings(self.model, encoding):
            yield

    def _checked_geometry(self, clip: Clip | None) -> tuple[Geometry, str]:
        """The geometry of images, or of a video, and the options that it was checked for."""
        if clip is None:
            self._check_options()
            return self.geometry, self._checked_options
        kept = self._video
        if kept is None or kept[0] != clip or kept[1].options_key != kept[2]:
            made = self.family.make_video_geometry(self.model.config, self.processor, clip)
            kept = self._video = clip, made, made.options_key
        return kept[1:]

    def _check_options(self) -> None:
        """Refuse options of the image processor that its geometry does not reflect; they may have
        been set since."""
        options = self.geometry.options_key
        if options != self._checked_options:
            self.geometry.verify_options()
            check_parity(self.processor, self.geometry, self.image_token_id)
            self._checked_options = options

    def _check_length(self, encoding: Encoding, images: Sequence[Tensor], query: Query) -> None:
        tokens = encoding.inputs["input_ids"].shape[1]
        for image, index in zip(images, query.explained):
            check_length(self.model.config, tokens, size_of(image), query.native[index])

    def states(self, images: Sequence[Tensor], query: Query, layer: int | None = None) -> States:
        r"""The states of a pass, which is remembered where passes are; see
        :meth:`captum_mllm.MLLM.states`."""
        passes = self.passes
        if passes is not None and (known := passes.recall(images, query, layer)):
            return known
        for place, states in self.new_states(images, query, layer).items():
            if passes is not None:
                passes.keep(states, images, query, place)
        return states

    def new_states(
        self, images: Sequence[Tensor], query: Query, layer: int | None = None
    ) -> dict[int | None, States]:
        r"""The states of a new pass, the model's own under None, then a layer's."""
        encoding = self.encode(images, query)
        with self.evaluating(encoding):
            found = self.hidden_states(encoding.inputs, layer)
        return {
            place: gather_states(hidden.unflatten(0, (-1, encoding.windows)), encoding, query)
            for place, hidden in found.items()
        }

    def hidden_states(
        self, inputs: dict[str, Tensor], layer: int | None = None
    ) -> dict[int | None, Tensor]:
        r"""Hidden states of a pass after the final norm, (rows, S, d).

        Args:
            inputs (dict[str, Tensor]): inputs of the model.
            layer (int, optional): a layer whose output is wanted; None for that of the model alone.

        Returns:
            dict[int or None, Tensor]: the model's own under None, then the layer's.

        Raises:
            RuntimeError: if the pass cannot be watched.
            ValueError: for a layer that the model does not have.
        """
        model = self.model
        if layer is None:
            return {None: last_states(model, inputs)}
        decoder = decoder_of(model)
        count = len(decoder.layers)
        if not is_integer(layer) or not -count <= layer < count:
            raise ValueError(
                f"layer={layer}, expected one of the {count} layers of the language model, "
                f"{-count} to {count - 1}"
            )
        seen: list[Tensor] = []

        def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])

        # What the next module receives: some families add visual features between layers.
        following = [*decoder.layers, decoder.norm][layer % count + 1]
        with hook(following, keep, before=True):
            last = last_states(model, inputs)
        if len(seen) != 1:
            raise RuntimeError(
                f"what follows layer {layer} was seen {len(seen)} times in a pass, expected once; "
                "is the model compiled? Its layers can be read in the model as it was"
            )
        return {None: last, layer: decoder.norm(seen[0])}

    @torch.no_grad()
    def _positions(self, inputs: dict[str, Tensor]) -> Tensor | None:
        """Positions of the tokens in models that count them by the image's grid (Qwen-VL).

        Such a model would leave something of each pass behind, by which it counts on when a user's
        own decoding goes on with a cache, maybe in another thread.
        """
        count: Any = getattr(self.model.base_model, "get_rope_index", None)
        if count is None or "mm_token_type_ids" not in inputs:
            return None
        known = {name: value for name, value in inputs.items() if "pixel" not in name}
        positions: Tensor = count(**known)[0]
        return positions


def logits_at(model: Any, inputs: dict[str, Tensor], rows: Tensor) -> Tensor:
    r"""Logits of a pass at some positions, (B, rows, V).

    Args:
        model (PreTrainedModel): the model.
        inputs (dict[str, Tensor]): its inputs.
        rows (Tensor): the positions.
    """
    logits: Tensor = model(**inputs, logits_to_keep=rows, use_cache=False).logits
    # Some models (MiniCPM-V) give those of every token, whatever is asked.
    return logits if logits.shape[1] == len(rows) else logits[:, rows.to(logits.device)]


def last_states(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    r"""The hidden states of a pass after the final norm, (rows, S, d).

    Raises:
        FloatingPointError: if they are NaN or infinite, with the module that made them so.
    """
    body = body_of(model)
    if body is model.base_model:
        last = body(**inputs, use_cache=False).last_hidden_state
    else:
        seen: list[Tensor] = []

        def see(module: nn.Module, args: Any, output: Any) -> None:
            seen.append(output.last_hidden_state)

        with hook(body, see):
            model(**inputs, logits_to_keep=1, use_cache=False)
        (last,) = seen
    check_finite(last, model, inputs)
    return last


@contextmanager
def placed_embeddings(model: PreTrainedModel, encoding: Encoding | None) -> Iterator[None]:
    r"""Within it the embeddings that an encoding brings along take the places of the words, in the
    passes of this thread.

    Whatever the family does with its embeddings, the model does with these.

    Args:
        model (PreTrainedModel): the model.
        encoding (Encoding, optional): its inputs; without ``word_embeddings`` nothing happens.

    Raises:
        ValueError: if there is not one embedding of the model's size for each word.
    """
    given = None if encoding is None else encoding.word_embeddings
    if encoding is None or given is None:
        yield
        return
    embedding: Any = model.get_input_embeddings()
    positions = _text_positions(given, encoding, embedding.weight.shape[1])
    shape = encoding.inputs["input_ids"].shape

    def place(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        # Some models look up single tokens as well.
        if output.shape[:-1] != shape:
            return output
        rows = given.repeat_interleave(len(output) // len(given), 0).to(output)
        return output.index_copy(1, positions.to(output.device), rows)

    with hook(embedding, place):
        yield


def _text_positions(given: Tensor, encoding: Encoding, size: int) -> Tensor:
    """The places of the embeddings among the tokens."""
    choices = (encoding.text_positions, encoding.earlier_positions)
    for positions in choices:
        if given.is_floating_point() and given.shape[1:] == (len(positions), size):
            return positions
    counts = " or ".join(str(len(positions)) for positions in choices)
    raise ValueError(
        f"got embeddings of words of shape {tuple(given.shape)} and dtype {given.dtype}, expected "
        f"(B, {counts}, {size}), floating point, one for each word of the prompt or of prompt and "
        "answer; MLLM.word_embeddings(query) gives those of the tokens themselves"
    )
