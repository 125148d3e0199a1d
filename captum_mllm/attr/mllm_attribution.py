"""Explain every word of an answer at once: the picture and the earlier words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum.attr import Attribution
from captum.log import log_usage
from torch import Tensor

from captum_mllm.attr.context_suppression import context_scores
from captum_mllm.attr.forward_function import check_attribution
from captum_mllm.attr.mllm_attribution_result import MLLMAttributionResult, ScaleResult
from captum_mllm.attr.msea import MSEA, ScaleAttribution
from captum_mllm.attr.token_maps import token_maps
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
            words (T, P + T).

        Raises:
            TypeError: if ``inp`` is not an :class:`ImageTextInput`.
            ValueError: for an empty answer, or arguments that the method refuses.
        """
        if not isinstance(inp, ImageTextInput):
            raise TypeError(
                f"got an input of type {type(inp).__name__}, expected ImageTextInput(picture, text)"
            )
        mllm: MLLM = self.forward_func
        image, query = mllm.prepare(inp, target, **(gen_args or {}))
        if include_prompt:
            query = query.including_prompt()
        scales: list[ScaleAttribution] = []
        with mllm.remember():
            options = self._options(kwargs, scales)
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
            scales=_by_scale(scales, len(tokens)),
            picture=to_pil(inp.images[inp.explained]),
            prompt="\n".join(inp.texts),
            method=describe(self.attribution_method),
            model=str(getattr(mllm.model.config, "_name_or_path", "") or "")
            or mllm.model.config.model_type,
            inp=inp,
        )

    def attribute_future(self) -> Callable[..., Any]:
        raise NotImplementedError("attribute_future is not implemented for MLLMAttribution")

    def _options(self, kwargs: dict[str, Any], scales: list[ScaleAttribution]) -> dict[str, Any]:
        """Arguments of the method; where MSEA is in it, its scales are kept for the result."""
        if multi_scale(self.attribution_method) is None:
            return kwargs
        # Maps stay as fine as the finest scale made them: they are enlarged when looked at.
        return {"output_size": "largest", **kwargs, "on_scale": scales.append}

    def _text(self, image: Tensor, query: Query, states: States) -> Tensor:
        method = self.attribution_method
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


def _by_scale(found: Sequence[ScaleAttribution], n_tokens: int) -> list[ScaleResult]:
    """What MSEA gave at each scale: once for all tokens, or for one token at a time."""
    grouped: dict[float, list[ScaleAttribution]] = {}
    for part in found:
        grouped.setdefault(part.scale, []).append(part)
    results = []
    for scale, parts in sorted(grouped.items()):
        maps = torch.cat([_first(part.attributions).sum(1) for part in parts])
        known = [part.probability for part in parts if part.probability is not None]
        # A context wrapper asks for the words of the prompt as well, before the explained ones.
        results.append(
            ScaleResult(
                scale=scale,
                image_attr=maps[-n_tokens:].float().cpu(),
                output_probs=torch.cat(known)[-n_tokens:].cpu() if known else None,
            )
        )
    return results


def _first(attributions: Tensor | tuple[Tensor, ...]) -> Tensor:
    return attributions[0] if isinstance(attributions, tuple) else attributions


def multi_scale(method: Any) -> MSEA | None:
    r"""The MSEA within a chain of wrappers, if there is one."""
    while method is not None and not isinstance(method, MSEA):
        method = getattr(method, "attribution_method", None)
    return method


def describe(method: Attribution) -> str:
    r"""A method as it is written, such as ``ARC(MSEA(LogitLens))``."""
    inner = getattr(method, "attribution_method", None)
    name = type(method).__name__
    return name if inner is None else f"{name}({describe(inner)})"
