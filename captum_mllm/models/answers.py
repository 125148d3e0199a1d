"""The answer that is explained: what the model says, or what the user gives."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList

from captum_mllm.models.targets import is_integer

GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
MAX_NEW_TOKENS = 64


@torch.no_grad()
def generate_answers(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    tokenizer: Any,
    options: dict[str, Any],
    watcher: StoppingCriteria | None = None,
) -> list[tuple[int, ...]]:
    r"""What a model answers to each prompt of a batch, without special tokens at the end.

    Args:
        model (PreTrainedModel): the model.
        inputs (dict[str, Tensor]): what its processor makes of the prompts.
        tokenizer (Any): its tokenizer.
        options (dict): arguments of ``generate``. Default: greedy, 64 tokens at most.
        watcher (StoppingCriteria, optional): is asked after each token, beside those of the
            options. Default: None

    Returns:
        list[tuple[int, ...]]: the tokens of each answer.

    Raises:
        ValueError: for options that ask for anything but one answer to each prompt; if the model
            answers nothing.
    """
    settings = _settings(model, options)
    if taken := sorted(set(options) & set(inputs)):
        raise ValueError(f"got {', '.join(taken)} for generate, which the prompt itself gives")
    if _setting(model, settings, "num_return_sequences") not in (None, 1):
        raise ValueError("got num_return_sequences above 1, expected 1: one answer is explained")
    if watcher is not None:
        others = settings.get("stopping_criteria") or ()
        settings["stopping_criteria"] = StoppingCriteriaList([*others, watcher])
    generator: Any = model
    found = _setting(model, settings, "eos_token_id")
    ends = set() if found is None else set(torch.as_tensor(found).reshape(-1).tolist())
    output = generator.generate(**inputs, **settings, return_dict_in_generate=False)
    answers = [
        without_special(without_padding(row, ends), tokenizer)
        for row in output[:, inputs["input_ids"].shape[1] :].tolist()
    ]
    if not all(answers):
        raise ValueError("the model answers nothing; give the answer to explain as `target`")
    return answers


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
    target: str | Sequence[int] | Tensor, tokenizer: Any, size: int, image_token_id: int
) -> tuple[int, ...]:
    r"""The tokens of an answer that the user gives.

    Args:
        target (str, Sequence[int] or Tensor): its text, or its tokens, of shape (T,) or (1, T).
        tokenizer (Any): the model's tokenizer.
        size (int): of the vocabulary.
        image_token_id (int): the placeholder's index, which an answer must not have.

    Raises:
        TypeError: for tokens that are not integers.
        ValueError: if there is no token, or one that an answer cannot have.
    """
    if isinstance(target, str):
        given = tokenizer(target, add_special_tokens=False)["input_ids"]
        if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in given:
            warnings.warn(
                f"the answer {target!r} has words that the model does not know; "
                f"{tokenizer.unk_token!r} is explained in their place",
                stacklevel=3,
            )
    elif isinstance(target, Tensor):
        given = (target[0] if target.ndim == 2 and len(target) == 1 else target).tolist()
    else:
        given = target
    try:
        ids = list(given)
    except TypeError:
        ids = [None]
    if not all(map(is_integer, ids)):
        raise TypeError(
            f"got the answer {target!r}, expected a text, or its tokens as a list or tensor of "
            "integers, (T,)"
        )
    if not ids:
        raise ValueError(f"the answer to explain is empty: {target!r}; give at least one token")
    if not all(0 <= token < size for token in ids):
        raise ValueError(f"the answer has tokens outside of the vocabulary of {size}: {ids}")
    if image_token_id in ids:
        raise ValueError(
            f"the answer holds token {image_token_id}, the picture's placeholder; leave it out"
        )
    return tuple(map(int, ids))


def _setting(model: Any, settings: dict[str, Any], name: str) -> Any:
    """What holds in ``generate``: an argument, else the configuration given, else the model's."""
    if settings.get(name) is not None:
        return settings[name]
    configs = (settings.get("generation_config"), model.generation_config)
    return next(
        (value for each in configs if (value := getattr(each, name, None)) is not None), None
    )


def _settings(model: Any, options: dict[str, Any]) -> dict[str, Any]:
    """The options, completed where they leave something open."""
    given = options.get("generation_config")
    settings = dict(options) if given is not None else {**GREEDY, **options}
    if given is None and "max_length" not in options:
        settings.setdefault("max_new_tokens", MAX_NEW_TOKENS)
    if settings.get("do_sample"):
        settings = {name: value for name, value in settings.items() if value is not None}
    suppressed = options.get("suppress_tokens")
    if suppressed is None:
        suppressed = (given or model.generation_config).suppress_tokens or []
    # A placeholder without a picture behind it would break every later pass.
    settings["suppress_tokens"] = [*suppressed, model.config.image_token_id]
    settings.pop("return_dict_in_generate", None)
    return settings
