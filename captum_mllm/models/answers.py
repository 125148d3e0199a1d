"""`generate_answers` and `answer_tokens`: the answer that the model makes, or the user gives."""

from __future__ import annotations

import inspect
import math
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)

from captum_mllm._options import check_flag, is_integer
from captum_mllm.models.families import placeholder_ids
from captum_mllm.models.precision import RefuseNotFinite
from captum_mllm.models.query import Answer

# Greedy decoding, without what checkpoints set to change it: each token is the most probable one.
GREEDY: dict[str, Any] = {
    "do_sample": False,
    "temperature": None,
    "top_p": None,
    "top_k": None,
    "min_p": None,
    "typical_p": None,
    "epsilon_cutoff": None,
    "eta_cutoff": None,
    "num_beams": 1,
    "num_return_sequences": 1,
    "repetition_penalty": None,
    "encoder_repetition_penalty": None,
    "no_repeat_ngram_size": None,
    "encoder_no_repeat_ngram_size": None,
    "exponential_decay_length_penalty": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "min_length": None,
    "min_new_tokens": None,
    "guidance_scale": None,
    "watermarking_config": None,
    "penalty_alpha": None,
    "dola_layers": None,
    "prompt_lookup_num_tokens": None,
    "stop_strings": None,
}
# Those of them that a sampled answer takes from the checkpoint.
SAMPLING = {
    *("do_sample", "temperature", "top_p", "top_k"),
    *("min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
}
MAX_NEW_TOKENS = 64
# What they would bring is not part of an answer.
_THROWN_AWAY = {"output_attentions", "output_hidden_states"}
# What `generate` takes without a name in its signature.
_LATER = ("tokenizer", "assistant_tokenizer")


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    tokenizer: Any,
    options: dict[str, Any],
    watcher: StoppingCriteria | None = None,
) -> list[Answer]:
    r"""What a model answers to each prompt of a batch, without special tokens at the end.

    What the options leave open is greedy: each token is the most probable one. What a checkpoint's
    ``generation_config`` sets to change that (a penalty for repetition, beams, sampling, ...) is
    left out with a warning, since the tokens are explained by the probabilities of the model. Only
    its end tokens and ``suppress_tokens`` count.

    Args:
        model (PreTrainedModel): the model.
        inputs (dict[str, Tensor]): what its processor makes of the prompts.
        tokenizer (Any): its tokenizer.
        options (dict): arguments of ``generate``. Default: greedy, 64 tokens at most.
        watcher (StoppingCriteria, optional): is asked after each token, beside those of the
            options. Default: None

    Returns:
        list[Answer]: the tokens of each answer, and whether it was finished.

    Raises:
        ValueError: for options that ask for anything but one answer to each prompt; if the model
            answers nothing.
        FloatingPointError: if the model's logits are NaN.
    """
    options = generation_options(options)
    settings = _settings(model, options)
    _check_names(options, model, inputs)
    if settings["num_return_sequences"] != 1:
        raise ValueError("got num_return_sequences above 1, expected 1: one answer is explained")
    if watcher is not None:
        others = settings.get("stopping_criteria") or ()
        settings["stopping_criteria"] = StoppingCriteriaList([*others, watcher])
    processors = settings.get("logits_processor") or ()
    settings["logits_processor"] = LogitsProcessorList(
        [*processors, RefuseNotFinite(model, inputs)]
    )
    if settings.get("stop_strings"):
        settings["tokenizer"] = tokenizer
    length = inputs["input_ids"].shape[1]
    limit = _limit(settings, length)
    generator: Any = model
    try:
        ends = _tokens(settings, model, "eos_token_id")
        output = generator.generate(**inputs, **settings, return_dict_in_generate=False)
    except (AssertionError, AttributeError, TypeError, ValueError) as error:
        # The model's own errors are no fault of the arguments.
        if not options or _is_of_a_pass(error):
            raise
        raise ValueError(
            f"generate does not take these arguments, {', '.join(sorted(options))}: "
            f"{type(error).__name__}: {error}"
        ) from error
    new = output[:, length:]
    # Rows that ended before others of their batch, by a text to stop at, are filled up.
    fills = _tokens(settings, model, "pad_token_id") if len(new) > 1 else set()
    answers = [
        Answer(
            without_special(without_padding(row, ends), tokenizer),
            finished=len(row) < limit or not ends.isdisjoint(row) or row[-1] in fills,
        )
        for row in new.tolist()
    ]
    if not all(answers):
        raise ValueError("the model answers nothing; give the answer to explain as `target`")
    cut = [index for index, answer in enumerate(answers) if not answer.finished]
    if cut and not {"max_new_tokens", "max_length"} & set(options):
        which = "the answer is" if len(answers) == 1 else f"answers {cut} are"
        warnings.warn(
            f"{which} cut off at {MAX_NEW_TOKENS} tokens, before the model ended; "
            "max_new_tokens=... lets it say more",
            stacklevel=2,
        )
    return answers


def generation_options(options: dict[str, Any] | GenerationConfig | None) -> dict[str, Any]:
    r"""Arguments of ``generate``, from a dict, a GenerationConfig, or a dict that has one.

    Args:
        options (dict or GenerationConfig, optional): of a configuration, what it sets counts.
            None for no argument.

    Raises:
        TypeError: for options of another type.
    """
    if options is None:
        return {}
    if isinstance(options, GenerationConfig):
        options = {"generation_config": options}
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise TypeError(
            f"got arguments of generate {options!r}, expected a dict such as "
            "{'max_new_tokens': 100}, or a GenerationConfig"
        )
    given = options.get("generation_config")
    if given is not None and not isinstance(given, GenerationConfig):
        raise TypeError(
            f"got a generation_config of type {type(given).__name__}, expected a GenerationConfig"
        )
    found = {} if given is None else _set_values(given)
    found |= {name: value for name, value in options.items() if name != "generation_config"}
    return {name: value for name, value in found.items() if value is not None}


def without_padding(answer: Sequence[int], ends: set[int]) -> Sequence[int]:
    r"""The tokens of an answer up to the first that ends it; what follows fills up the batch."""
    first = next((place for place, token in enumerate(answer) if token in ends), len(answer))
    return answer[: first + 1]


def without_special(answer: Sequence[int], tokenizer: Any) -> tuple[int, ...]:
    r"""The tokens of an answer up to its last one that is not special."""
    special = set(tokenizer.all_special_ids)
    count = len(answer)
    while count and answer[count - 1] in special:
        count -= 1
    return tuple(answer[:count])


def answer_tokens(
    target: str | Sequence[int] | Tensor, tokenizer: Any, size: int, placeholders: Sequence[int]
) -> Answer:
    r"""The tokens of an answer that the user gives.

    Args:
        target (str, Sequence[int], numpy.ndarray or Tensor): its text, or its tokens, of shape
            (T,) or (1, T).
        tokenizer (Any): the model's tokenizer.
        size (int): of the vocabulary.
        placeholders (Sequence[int]): what stands for images and videos, which an answer must not
            have.

    Raises:
        TypeError: for tokens that are not integers, bytes among them.
        ValueError: if there is no token, or one that an answer cannot have.
    """
    given: Any = target
    if isinstance(target, str):
        given = _encode(target, tokenizer)
    elif isinstance(target, (Tensor, np.ndarray)):
        given = (target[0] if target.ndim == 2 and len(target) == 1 else target).tolist()
    # Bytes would pass for integers.
    is_list = isinstance(given, Sequence) and not isinstance(given, (bytes, bytearray, memoryview))
    ids: list[Any] = list(given) if is_list else [None]
    if not all(map(is_integer, ids)):
        raise TypeError(
            f"got the answer {target!r}, expected a text, or its tokens as a list or tensor of "
            "integers, (T,)"
        )
    if not ids:
        raise ValueError(f"the answer to explain is empty: {target!r}; give at least one token")
    if not all(0 <= token < size for token in ids):
        raise ValueError(f"the answer has tokens outside of the vocabulary of {size}: {ids}")
    for token in placeholders:
        if token in ids:
            raise ValueError(
                f"the answer holds token {token}, the placeholder of an image; leave it out"
            )
    return Answer(map(int, ids))


def _encode(text: str, tokenizer: Any) -> list[int]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"got the answer {text!r}, whose lone surrogates are not characters"
        ) from error
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in ids:
        warnings.warn(
            f"the answer {text!r} has words that the model does not know; "
            f"{tokenizer.unk_token!r} is explained in their place",
            stacklevel=4,
        )
    return ids


def _set_values(config: GenerationConfig) -> dict[str, Any]:
    """What a configuration sets, and does not leave as all have it."""
    usual = vars(GenerationConfig())
    return {
        name: value
        for name, value in vars(config).items()
        if not name.startswith("_") and name in usual and value != usual[name]
    }


def _tokens(settings: dict[str, Any], model: Any, name: str) -> set[int]:
    """The end or padding tokens that hold in ``generate``."""
    found = settings.get(name)
    found = getattr(model.generation_config, name) if found is None else found
    return set() if found is None else set(torch.as_tensor(found).reshape(-1).tolist())


def _settings(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options, completed where they leave something open."""
    own = _set_values(model.generation_config)
    left_out = {
        name: own[name]
        for name in sorted(set(GREEDY) & set(own) - set(SAMPLING) - set(options))
        if own[name] not in _NEUTRAL.get(name, ())
    }
    if left_out:
        named = ", ".join(f"{name}={value!r}" for name, value in left_out.items())
        warnings.warn(
            f"the checkpoint's generation_config sets {named}, which is left out, so that each "
            "token of the answer is the most probable one; pass it as an argument of generate to "
            "have the answer that it makes",
            stacklevel=3,
        )
    check_flag("do_sample", options.get("do_sample", False))
    for name, value in options.items():
        is_list = isinstance(value, (list, tuple))
        if name in ("logits_processor", "stopping_criteria") and not is_list:
            raise TypeError(f"got {name} of type {type(value).__name__}, expected a list")
        if isinstance(value, float) and math.isnan(value):
            raise ValueError(f"got {name}={value} for generate, expected a number")
    settings = {**GREEDY, **options}
    if "max_length" not in options:
        settings.setdefault("max_new_tokens", MAX_NEW_TOKENS)
    if settings["do_sample"]:
        # The checkpoint's own temperature and so on, where the options have none.
        settings = {
            name: value
            for name, value in settings.items()
            if value is not None or name not in SAMPLING
        }
    suppressed = settings.get("suppress_tokens") or model.generation_config.suppress_tokens or []
    # A placeholder without an image behind it would break every later pass.
    settings["suppress_tokens"] = [*suppressed, *placeholder_ids(model.config)]
    settings.pop("return_dict_in_generate", None)
    return settings


def _check_names(options: dict[str, Any], model: Any, inputs: dict[str, Tensor]) -> None:
    """Refuse arguments that the prompt gives, or that would change the pass of the model, which
    the explanation makes without them, and those that ``generate`` does not know."""
    settings = set(vars(GenerationConfig()))
    forward = set(inspect.signature(getattr(model, "_orig_mod", model).forward).parameters)
    reserved = ({"inputs", *inputs, *forward} - settings) | _THROWN_AWAY
    if taken := sorted(reserved & set(options)):
        raise ValueError(
            f"got {', '.join(taken)} for generate, which the prompt itself gives, or which the "
            "explanation does not know of; give settings of transformers.GenerationConfig alone"
        )
    known = settings | set(_LATER) | set(inspect.signature(model.generate).parameters)
    unknown = sorted(set(options) - known)
    # A function of the user's own may take any.
    if unknown and "custom_generate" not in options:
        raise ValueError(
            f"got {', '.join(map(repr, unknown))} for generate, which takes the arguments of "
            "transformers.GenerationConfig, such as max_new_tokens"
        )


def _is_of_a_pass(error: BaseException) -> bool:
    """Whether an error is from within the forward pass of a module."""
    return any(
        frame.f_code.co_name == "forward" and isinstance(frame.f_locals.get("self"), nn.Module)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _limit(settings: dict[str, Any], length: int) -> int:
    """How many tokens an answer has at most, to a prompt of a length."""
    for name in ("max_new_tokens", "max_length", "num_beams"):
        value = settings.get(name)
        if value is not None and not (is_integer(value) and value >= 1):
            raise ValueError(f"got {name}={value!r}, expected an integer of at least 1")
    limit = settings.get("max_new_tokens") or (settings["max_length"] - length)
    if limit < 1:
        raise ValueError(
            f"got max_length={settings['max_length']}, but the prompt alone has {length} tokens; "
            "give max_new_tokens instead"
        )
    return int(limit)


# Values by which a setting changes nothing.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_return_sequences": (1,),
    "repetition_penalty": (1.0,),
    "encoder_repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "guidance_scale": (1.0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
}
