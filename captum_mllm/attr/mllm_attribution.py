"""Explain every word of an answer at once: the picture and the earlier words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from captum_mllm._captum import format_tensor_into_tuples
from captum_mllm.attr.context_suppression import ContextSuppression, context_scores
from captum_mllm.attr.forward_function import check_attribution
from captum_mllm.attr.mllm_attribution_result import MLLMAttributionResult
from captum_mllm.attr.msea import MSEA
from captum_mllm.attr.scale_attribution import ScaleAttribution
from captum_mllm.attr.scale_result import ScaleResult
from captum_mllm.attr.token_maps import token_maps
from captum_mllm.attr.wrapper_chain import describe, wrapper_chain
from captum_mllm.models.image_text_input import ImageTextInput
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.pixels import to_pil
from captum_mllm.models.query import Query
from captum_mllm.models.states import States
from captum_mllm.models.words import Word, group_words, token_texts


class MLLMAttribution(Attribution):
    r"""
    Attribution of the whole answer of a multimodal LLM, to the picture and to the earlier words.

    It is what ``LLMAttribution`` is for language models: it takes an attribution method on an
    :class:`~captum_mllm.MLLM` and an input as people have it, and explains every token of the
    answer, the model's own or a given one. With methods that answer for all tokens in one call
    (LogitLens, MSEA around it, TAM, ARC) that takes one forward pass for each scale; the words'
    own probabilities are read at scale 1, which takes one more where 1 is not among the scales.
    Other methods are asked for each token in turn, and a pass for each scale tells how probable
    the tokens are there.

    Args:
        attribution_method (Attribution): a method whose forward function is an MLLM.

    Raises:
        TypeError: if it is not.

    Examples::
        >>> from PIL import Image
        >>> from captum_mllm import ARC, MLLM, MSEA, ImageTextInput, LogitLens, MLLMAttribution
        >>> from captum_mllm.demo import demo_picture
        >>> mllm = MLLM.from_pretrained("demo/qwen2-vl")
        >>> inp = ImageTextInput(Image.open(demo_picture()), "Describe the image.")
        >>> explainer = MLLMAttribution(ARC(MSEA(LogitLens(mllm))))
        >>> result = explainer.attribute(inp, target="a red circle")
        >>> result.output_tokens
        ['a', ' red', ' circle']
        >>> result.map(2).shape
        (224, 224)
    """

    def __init__(self, attribution_method: Attribution) -> None:
        check_attribution(attribution_method)
        super().__init__(attribution_method.forward_func)
        self.attribution_method = attribution_method

    @property
    def multiplies_by_inputs(self) -> bool:
        return bool(self.attribution_method.multiplies_by_inputs)

    @log_usage()
    def attribute(
        self,
        inp: ImageTextInput,
        target: str | Sequence[int] | Tensor | None = None,
        include_prompt: bool = False,
        top_predictions: int = 5,
        gen_args: dict[str, Any] | None = None,
        show_progress: bool = False,
        **kwargs: Any,
    ) -> MLLMAttributionResult:
        r"""
        Args:
            inp (ImageTextInput): the picture and the question.
            target (str, Sequence[int] or Tensor, optional): the answer to explain, as text or as
                tokens. Default: None, what the model answers.
            include_prompt (bool): explain the words of the question too, before those of the
                answer. Default: False
            top_predictions (int): how many of the model's most probable tokens to keep for each
                explained one. Default: 5
            gen_args (dict, optional): arguments of ``generate`` where the model answers.
                Default: None, greedy and 64 tokens at most.
            show_progress (bool): show bars over scales, and over tokens for methods that take
                them in turn. Default: False
            **kwargs (Any): passed on to the attribution method: ``scales``, ``n_steps``,
                ``baselines`` ...

        Returns:
            MLLMAttributionResult: maps of the picture (T, h, w) and weights of the earlier
            words (T, P + T): those that the method gives to text (``attribute_text`` of ARC, TAM
            and AttentionRollout, also within other wrappers), else how strongly the state of each
            earlier word says the token, in logits, at least 0. What each scale of MSEA saw is part
            of it where MSEA is the method or lies directly within ARC or TAM.

        Raises:
            RuntimeError: for a gradient method under ``torch.inference_mode``.
            TypeError: if ``inp`` is not an :class:`ImageTextInput`.
            ValueError: for an empty answer, or arguments that clash or that the method refuses.
        """
        if not isinstance(inp, ImageTextInput):
            raise TypeError(
                f"got an input of type {type(inp).__name__}, expected ImageTextInput(picture, text)"
            )
        clash = {"every_picture", "target"} & set(gen_args or {})
        if clash:
            raise ValueError(f"gen_args holds {sorted(clash)}, which generate does not take")
        mllm: MLLM = self.forward_func
        image, query = mllm.prepare(inp, target, **(gen_args or {}))
        if include_prompt:
            query = query.including_prompt()
        scales: list[ScaleResult] = []
        with mllm.remember():
            options = self._options(kwargs, query, scales)
            maps = token_maps(self.attribution_method, image, query, show_progress, **options)
            states = mllm.states(image, query)
            weights = self._text(image, query, states)
        start = 0 if query.with_prompt else states.n_words
        predicted = mllm.vocabulary.predictions(
            states.predicting[0, start:], states.ids[start:], max(top_predictions, 1)
        )
        texts = self._texts(states)
        tokens = texts[start:]
        return MLLMAttributionResult(
            input_tokens=texts,
            output_tokens=tokens,
            image_attr=maps[:, 0].float().cpu(),
            token_attr=weights.float().cpu(),
            output_probs=predicted.probability.cpu(),
            n_prompt=states.n_words,
            words=self._words(texts, states.n_words, start),
            top_predictions=[
                [
                    (mllm.tokenizer.decode([token]), probability)
                    for token, probability in zip(ids[:top_predictions], row)
                ]
                for ids, row in zip(predicted.top_ids.tolist(), predicted.top_probability.tolist())
            ],
            scales=_once_each(scales),
            picture=to_pil(inp.images[inp.explained]),
            prompt="\n".join(inp.texts),
            method=describe(self.attribution_method, kwargs),
            model=_model_name(mllm.model.config),
            inp=inp,
        )

    @classmethod
    def get_name(cls) -> str:
        return "MLLM Attribution"

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for MLLMAttribution")

    def _options(
        self, kwargs: dict[str, Any], query: Query, scales: list[ScaleResult]
    ) -> dict[str, Any]:
        """Arguments of the method; where MSEA is in it, its scales are kept for the result."""
        method = self.attribution_method
        if not any(isinstance(found, MSEA) for found in wrapper_chain(method)):
            return kwargs
        # Maps stay as fine as the finest scale made them: they are enlarged when looked at.
        kwargs = {"output_size": "largest", **kwargs}
        while isinstance(method, ContextSuppression):
            method = method.attribution_method
        if not isinstance(method, MSEA):
            # Another wrapper may call MSEA as often as it likes, on whatever picture.
            return kwargs
        callback = kwargs.get("on_scale")

        def on_scale(found: ScaleAttribution) -> None:
            probability = self.forward_func.target_probability(*found.inputs, query)
            # A context wrapper asks for the words of the prompt as well, before the explained ones.
            maps = format_tensor_into_tuples(found.attributions)[0].sum(1)[-len(probability) :]
            scales.append(ScaleResult(found.scale, maps.float().cpu(), probability.cpu()))
            if callback is not None:
                callback(found)

        return {**kwargs, "on_scale": on_scale}

    def _text(self, image: Tensor, query: Query, states: States) -> Tensor:
        for method in wrapper_chain(self.attribution_method):
            if hasattr(method, "attribute_text"):
                return method.attribute_text(image, additional_forward_args=(query,))
        weights = context_scores(self.forward_func, states).tril(-1)
        return weights if query.with_prompt else weights[states.n_words :]

    @staticmethod
    def _words(texts: list[str], n_prompt: int, start: int) -> list[Word]:
        """Words of the explained tokens; none goes from the prompt over into the answer."""
        prompt, answer = group_words(texts[start:n_prompt]), group_words(texts[n_prompt:])
        shift = n_prompt - start
        return [*prompt, *(tuple(token + shift for token in word) for word in answer)]

    def _texts(self, states: States) -> list[str]:
        """Texts of the words of the prompt, then of the answer."""
        ids = states.ids.tolist()
        tokenizer = self.forward_func.tokenizer
        words, answer = ids[: states.n_words], ids[states.n_words :]
        return token_texts(tokenizer, words) + token_texts(tokenizer, answer)


def _once_each(scales: list[ScaleResult]) -> list[ScaleResult]:
    """What each scale saw, smallest first; nothing where a scale came twice."""
    distinct = len({found.scale for found in scales}) == len(scales)
    return sorted(scales, key=lambda found: found.scale) if distinct else []


def _model_name(config: Any) -> str:
    """The name on the hub, or of the folder: where it lies is nobody's business."""
    name = str(getattr(config, "_name_or_path", "") or config.model_type)
    return Path(name).name if Path(name).is_dir() else name
