"""explain, the pipeline from an input and its answer to the result that people look at."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from captum.attr import Attribution
from torch import Tensor, nn

from captum_mllm._captum import format_tensor_into_tuples
from captum_mllm._options import check_flag, check_whole, is_integer
from captum_mllm.attr.features import find_features, to_earlier
from captum_mllm.attr.image_shares import image_shares, image_units
from captum_mllm.attr.scale_mean import ScaleAttribution
from captum_mllm.attr.segments import SegmentsLike
from captum_mllm.attr.text_attribution import text_attribution
from captum_mllm.attr.token_maps import token_attribution, token_maps
from captum_mllm.explain.alternatives import find_alternatives
from captum_mllm.explain.contrast_words import Contrast, contrast_words
from captum_mllm.explain.estimate import Mode, check_reasons, find_reasons
from captum_mllm.explain.result import MLLMAttributionResult
from captum_mllm.explain.result_parts import ScaleResult
from captum_mllm.explain.signals import token_signals
from captum_mllm.models.answers import generation_options
from captum_mllm.models.inputs import ImageTextInput
from captum_mllm.models.loading import model_name
from captum_mllm.models.mllm import MLLM
from captum_mllm.models.pixels import to_pil
from captum_mllm.models.prompt_parts import prompt_parts
from captum_mllm.models.query import Query
from captum_mllm.models.states import States
from captum_mllm.models.vocabulary import Predictions
from captum_mllm.models.words import Word, group_runs, group_words, token_texts


class Extras(NamedTuple):
    r"""What :meth:`MLLMAttribution.attribute` finds beside maps and weights, named as there."""

    reasons: Mode | None = None
    diagnosis: bool = False
    alternatives: int = 0

    def check(self) -> None:
        """Raise for what is of another type, or out of its range."""
        check_reasons(self.reasons)
        check_flag("diagnosis", self.diagnosis)
        check_whole("alternatives", self.alternatives, 0)


NO_EXTRAS = Extras()

# What methods get from `explain`.
_OWN_ARGUMENTS = {"additional_forward_args", "features", "images", "inputs", "query", "target"}


def explain(
    method: Attribution,
    inp: ImageTextInput,
    images: tuple[Tensor, ...],
    query: Query,
    top_predictions: int = 5,
    show_progress: bool = False,
    segments: SegmentsLike | Sequence[SegmentsLike] | None = None,
    words: str | None = None,
    contrast: Contrast | None = None,
    extras: Extras = NO_EXTRAS,
    **kwargs: Any,
) -> MLLMAttributionResult:
    r"""The result for what :meth:`MLLM.prepare` made of an input.

    Args:
        method (Attribution): a method on an MLLM.
        inp (ImageTextInput): the input.
        images (tuple[Tensor, ...]): its explained images, (1, 3, H, W) in [0, 1].
        query (Query): the question and the answer.
        top_predictions (int): as for :meth:`MLLMAttribution.attribute`, like all that follow.
        extras (Extras): what is found beside maps and weights. Default: nothing
    """
    mllm: MLLM = method.forward_func
    note = ""
    if contrast is not None:
        query, note = contrast_words(mllm, query, contrast)
    # The token itself may be anywhere among the predictions, or nowhere.
    top_predictions = max(top_predictions, extras.alternatives and extras.alternatives + 1)
    with mllm.remember():
        features = find_features(method, images, segments, words)
        if extras.alternatives:
            # The words are explained several times, by themselves and in contrast to others.
            token_attribution(method).prefetch([(images, query)], **kwargs)
        weights = None
        if features.words is None and not token_attribution(method).weighs_text:
            # Attention tells, in a pass that leaves the states which are needed anyway.
            weights = text_attribution(method, images, query)
        found = token_maps(method, images, query, None, features, show_progress, **kwargs)
        states = mllm.states(*images, query)
        if found.text is not None:
            weights = to_earlier(found.text, len(states.ids))
        elif weights is None:
            weights = text_attribution(method, images, query)
        scales = _scale_results(found.scales, len(images))
        found_reasons = find_reasons(mllm, images, query, extras.reasons)
        signals = token_signals(mllm, images, query, found_reasons) if extras.diagnosis else None
        alternatives = find_alternatives(
            method, images, query, features, extras.alternatives, **kwargs
        )
    shown = inp.as_images(1 if query.clip is None else query.clip.together)
    units = image_units(method, images, states.layouts, features)
    start = 0 if query.with_prompt else states.n_prompt
    predicted = states.predictions(mllm.vocabulary, max(top_predictions, 1), query.with_prompt)
    texts = _texts(mllm.tokenizer, states)
    return MLLMAttributionResult(
        input_tokens=texts,
        output_tokens=texts[start:],
        image_attr=[maps[:, 0].float().cpu() for maps in found.maps],
        token_attr=weights.float().cpu(),
        output_probs=predicted.probability.cpu(),
        n_prompt=states.n_prompt,
        words=_words(texts, states, query.with_prompt),
        top_predictions=_rankings(mllm.tokenizer, predicted, top_predictions),
        scales=scales,
        reasons=found_reasons,
        signals=signals,
        alternatives=alternatives,
        images=[to_pil(each) for each in shown.images],
        explained=shown.explained,
        times=query.times,
        image_shares=image_shares(found.maps, units),
        prompt_parts=prompt_parts(
            shown.messages, texts[: states.n_prompt], states.runs or (states.n_prompt,)
        ),
        segments=[each.regions for each in features.segments] if features.segments else None,
        unit=found.unit,
        finished=query.finished,
        prompt="\n".join(inp.texts),
        method=describe(method, kwargs) + features.text + note,
        model=model_name(mllm.model.config),
        inp=inp,
    )


def check_arguments(
    gen_args: dict[str, Any] | None,
    top_predictions: Any,
    extras: Extras,
    options: Iterable[str] = (),
    **flags: Any,
) -> None:
    r"""Refuse arguments that ``generate``, the method or the result does not take.

    Args:
        gen_args (dict, optional): arguments of ``generate``.
        top_predictions (int): how many predictions the result has.
        extras (Extras): what it has beside maps and weights.
        options (Iterable[str]): names of those of the method. Default: ()
        **flags (Any): truth values, by their names.

    Raises:
        TypeError: for a flag that is not a truth value, and for options that the explanation itself
            gives to the method.
        ValueError: for an argument that ``MLLM.prepare`` knows and ``generate`` does not, and for
            a number of predictions that is not an integer of at least 0.
    """
    extras.check()
    for name, flag in flags.items():
        check_flag(name, flag)
    if taken := sorted(_OWN_ARGUMENTS & set(options)):
        raise TypeError(
            f"got {', '.join(taken)} for the method, which the explanation gives it itself: the "
            "input comes first, and its answer is `target`, or `targets` of several inputs"
        )
    if "target" in generation_options(gen_args):
        raise ValueError("gen_args holds 'target', which generate does not take")
    if not is_integer(top_predictions) or top_predictions < 0:
        raise ValueError(
            f"got top_predictions={top_predictions!r}, expected an integer of at least 0"
        )


def describe(method: Attribution, arguments: Mapping[str, Any] | None = None) -> str:
    r"""A method as code, with the options that differ from their defaults.

    Args:
        method (Attribution): any method.
        arguments (Mapping[str, Any], optional): the arguments of its ``attribute``; each is shown
            at the wrapper that takes it. Default: None

    Returns:
        str: such as ``ARC(MSEA(LogitLens, scales=(1.0, 2.0)), top_k=20)``.
    """
    remaining = dict(arguments or {})
    called = inspect.signature(type(method).attribute).parameters
    taken = {name: remaining.pop(name) for name in list(remaining) if name in called}
    made = inspect.signature(type(method).__init__).parameters
    kept = {
        name: getattr(method, name)
        for name in made
        if name not in ("self", "forward_func", "attribution_method") and hasattr(method, name)
    }
    # An argument of a call that is an option of the constructor too replaces that one.
    for name in [name for name in taken if name in kept]:
        value = taken.pop(name)
        kept[name] = kept[name] if value is None else value
    inner = getattr(method, "attribution_method", None)
    parts = [] if inner is None else [describe(inner, remaining)]
    for signature, values in ((made, kept), (called, taken)):
        for name, value in values.items():
            text = _text(value, method)
            is_callback = callable(value) and not isinstance(value, nn.Module)
            if not is_callback and text != _text(signature[name].default, method):
                parts.append(f"{name}={text}")
    return type(method).__name__ + (f"({', '.join(parts)})" if parts else "")


def _text(value: Any, method: Attribution) -> str:
    if isinstance(value, Tensor):
        return f"Tensor{tuple(value.shape)}"
    if isinstance(value, nn.Module) and isinstance(method.forward_func, nn.Module):
        modules = method.forward_func.named_modules()
        name = next((name for name, module in modules if module is value), "")
        return name or type(value).__name__
    if isinstance(value, (tuple, list)):
        texts = [_text(each, method) for each in value]
        return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"
    # The address of an object tells nothing and differs in each run.
    plain = type(value).__repr__ is object.__repr__
    return type(value).__name__ if plain else repr(value)


def _scale_results(scales: Sequence[ScaleAttribution], n_images: int) -> list[ScaleResult]:
    """What each scale saw, smallest first; nothing where a scale came twice."""
    if len({found.scale for found in scales}) != len(scales):
        return []
    results = []
    for found in scales:
        maps = [
            attribution.sum(1).float().cpu()
            for attribution in format_tensor_into_tuples(found.attributions)[:n_images]
        ]
        probability = found.probability
        probs = None if probability is None else probability.cpu()
        results.append(ScaleResult(found.scale, tuple(maps), probs))
    return results


def _texts(tokenizer: Any, states: States) -> list[str]:
    """Texts of the tokens of the prompt, then of the answer."""
    ids = states.ids.tolist()
    prompt, answer = ids[: states.n_prompt], ids[states.n_prompt :]
    return token_texts(tokenizer, prompt) + token_texts(tokenizer, answer)


def _words(texts: Sequence[str], states: States, with_prompt: bool) -> list[Word]:
    """Words of the explained tokens; none crosses the border of the answer or of an image."""
    n_prompt = states.n_prompt
    if not with_prompt:
        return group_words(texts[n_prompt:])
    runs = (n_prompt,) if states.runs is None else states.runs
    return group_runs(texts, (*runs, len(texts) - n_prompt))


def _rankings(tokenizer: Any, predicted: Predictions, k: int) -> list[list[tuple[str, float]]]:
    """The k most probable tokens in each place with their probabilities, best first."""
    return [
        [
            (tokenizer.decode([token]), probability)
            for token, probability in zip(ids[:k], probabilities)
        ]
        for ids, probabilities in zip(
            predicted.top_ids.tolist(), predicted.top_probability.tolist()
        )
    ]
