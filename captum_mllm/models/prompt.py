"""`open_query` makes a `Query` of an input, and `read_prompt` its text by the chat template.

The user's own texts are found in what the template renders.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from captum_mllm.models.inputs import (
    ImageTextInput,
    Messages,
    check_is_input,
    replace_texts,
    text_parts,
)
from captum_mllm.models.layout import size_of
from captum_mllm.models.pairing import check_tokenizer
from captum_mllm.models.query import Clip, Query

Span = tuple[int, int]

# Characters for private use: no template trims them or turns them into capitals.
_START, _FILL = "\ue000", "\ue001"
_SENTINELS = re.compile(f"{_START}(\\d+){_FILL}+")


def open_query(backbone: Any, inp: ImageTextInput) -> tuple[tuple[Tensor, ...], Query]:
    r"""The images that are explained, and a query without an answer yet.

    A video becomes an image for each group of frames that share their image tokens; or, where the
    model has no tokens for videos, for each frame.

    Args:
        backbone (Backbone): the model.
        inp (ImageTextInput): the images and the question.

    Returns:
        tuple[tuple[Tensor, ...], Query]: images (1, 3, H, W) in [0, 1], or (1, 3 F, H, W) for
        groups of F frames, on the device of the model; and the query.

    Raises:
        TypeError: for what is not an :class:`ImageTextInput`.
        ValueError: where the chat template leaves no place for an image or the question, and for a
            tokenizer that does not tell where its tokens are.
    """
    check_is_input(inp)
    processor, together = backbone.processor, backbone.frames_together
    check_tokenizer(processor.tokenizer)
    clip, times = None, () if inp.video is None else inp.video.times
    if inp.video is not None and together is not None:
        clip = Clip(len(inp.images), inp.video.fps, together)
        times = times[::together]
    else:
        inp = inp.as_images()
    prompt, spans = read_prompt(processor, inp)
    _warn_of_unknown_words(processor.tokenizer, inp.texts)
    # Tensors of their own, also for gradients later on where they are made in inference mode.
    with torch.inference_mode(False):
        images = [image.to(backbone.device, copy=True) for image in _grouped(inp.images, clip)]
    query = Query(
        prompt=prompt,
        answer_ids=(),
        spans=spans,
        native=tuple(map(size_of, images)),
        images=tuple(
            None if index in inp.explained else image for index, image in enumerate(images)
        ),
        clip=clip,
        times=times,
    )
    return tuple(images[index].unsqueeze(0) for index in query.explained), query


def read_prompt(processor: Any, inp: ImageTextInput) -> tuple[str, tuple[Span, ...]]:
    r"""The text that the model reads, and where the user's own texts lie in it.

    The template is rendered once more with sentinels instead of the texts, so a text is found
    also where the template itself has the same words. A template may trim texts and turn them into
    capitals. Texts given as plain strings are rendered as parts where the template wants these.

    Args:
        processor (Any): the model's processor.
        inp (ImageTextInput): the input. If its last message is the assistant's, the prompt ends
            with it; else the template asks for an answer.

    Returns:
        tuple[str, tuple[tuple[int, int], ...]]: the prompt, with one placeholder for each image,
        and start and end of each text that is not blank, in the order of the prompt, without
        spaces around it. All of the prompt, with a warning, if the template rewrites the texts.

    Raises:
        ValueError: if the template cannot render the messages, leaves out an image or all of the
            last message, or does not let the last message be continued; and for a text that has
            the placeholder of an image or a video.
    """
    has_video = inp.video is not None
    placeholder = processor.video_token if has_video else processor.image_token
    video_token = getattr(processor, "video_token", None)
    for text in inp.texts:
        for name, kind in {video_token: "a video", processor.image_token: "an image"}.items():
            if name is not None and name in text:
                raise ValueError(
                    f"the text {_shorten(text)} has the placeholder of {kind}, {name!r}, "
                    f"without {kind}; leave it out"
                )
    messages, prompt, pattern = _render_all(processor, inp)
    unseen = [
        index
        for index in _missing(inp.texts, pattern)
        if not _depends(processor, inp, messages, prompt, index)
    ]
    if unseen:
        _report_unseen(inp, unseen)
    _warn_of_unseen_entries(processor, inp, messages, prompt)
    count = prompt.count(placeholder)
    if has_video and count != 1:
        raise ValueError(
            f"the prompt has {count} placeholder(s) {placeholder!r} for one video; does the chat "
            "template render parts of type 'video'? Else give the frames as a list of images. The "
            f"prompt is {prompt!r}"
        )
    if not has_video and count != len(inp.images):
        raise ValueError(
            f"the prompt has {count} placeholder(s) {placeholder!r} for {len(inp.images)} "
            f"image(s){_name_images(processor, inp, messages, count)}; does the chat template "
            f"render parts of type 'image'? The prompt is {prompt!r}"
        )
    spans = _find_spans(inp.texts, pattern, prompt)
    if spans is None:
        changed = [text for text in inp.texts if text.strip().lower() not in prompt.lower()]
        named = f" ({', '.join(map(_shorten, changed))})" if changed else ""
        warnings.warn(
            f"the chat template rewrites the texts of the messages{named}, so the user's words "
            "cannot be told from the template's; all of the prompt is taken for them",
            stacklevel=5,
        )
        spans = ((0, len(prompt)),)
    return prompt, spans


def _grouped(images: Sequence[Tensor], clip: Clip | None) -> Sequence[Tensor]:
    """The frames of each group as the channels of one image."""
    if clip is None:
        return images
    frames = [images[index] for index in clip.frames]
    return [
        torch.cat(frames[start : start + clip.together])
        for start in range(0, len(frames), clip.together)
    ]


def special_tokens_option(tokenizer: Any, prompt: str) -> dict[str, bool]:
    r"""As :meth:`transformers.ProcessorMixin.apply_chat_template` has it: a prompt in which the
    template wrote the token of the beginning does not get a second one."""
    begins = tokenizer.bos_token is not None and prompt.startswith(tokenizer.bos_token)
    return {"add_special_tokens": False} if begins else {}


def _render_all(processor: Any, inp: ImageTextInput) -> tuple[Messages, str, str]:
    """The messages in the form that the template takes, the prompt, and that of sentinels."""
    forms = [inp.messages]
    if any(isinstance(message["content"], str) for message in inp.messages):
        forms.append(text_parts(inp.messages))
    errors: list[ValueError] = []
    found: list[tuple[Messages, str, str]] = []
    for form in forms:
        try:
            prompt = _render(processor, form, inp.continues)
            pattern = _render(processor, replace_texts(form, _sentinels(inp.texts)), inp.continues)
        except ValueError as error:
            errors.append(error)
            continue
        found.append((form, prompt, pattern))
        if not _missing(inp.texts, pattern):
            break
    if not found:
        raise errors[0]
    return min(found, key=lambda rendered: len(_missing(inp.texts, rendered[2])))


def _render(processor: Any, messages: Messages, continues: bool) -> str:
    if not getattr(processor, "chat_template", None):
        raise ValueError(
            f"the {type(processor).__name__} has no chat template to write the prompt with; set "
            "its `chat_template` to that of the model"
        )
    try:
        return processor.apply_chat_template(
            messages,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            tokenize=False,
        )
    except Exception as error:
        # A template is a program, which may raise anything.
        hint = ""
        if continues:
            hint = (
                ". The last message is the assistant's, whose answer the model is to continue; if "
                "the template does not allow it, let the last message be the user's"
            )
        raise ValueError(f"the chat template cannot render the messages: {error}{hint}") from error


def _sentinels(texts: Sequence[str]) -> list[str]:
    """A sentinel as long as each text, with its spaces; blank texts as they are."""
    found = []
    for index, text in enumerate(texts):
        core = text.strip()
        start = text.find(core)
        sentinel = f"{_START}{index}"
        sentinel += _FILL * max(len(core) - len(sentinel), 1)
        found.append(text[:start] + sentinel + text[start + len(core) :] if core else text)
    return found


def _depends(
    processor: Any, inp: ImageTextInput, messages: Messages, prompt: str, index: int
) -> bool:
    """Whether another text makes another prompt: it is rewritten, not lost."""
    texts = list(inp.texts)
    texts[index] = _sentinels(texts)[index]
    try:
        return _render(processor, replace_texts(messages, texts), inp.continues) != prompt
    except ValueError:
        return True


def _missing(texts: Sequence[str], pattern: str) -> list[int]:
    """Indices of the texts that a rendered template of sentinels does not have."""
    seen = {int(index) for index in _SENTINELS.findall(pattern)}
    return [index for index, text in enumerate(texts) if text.strip() and index not in seen]


def _report_unseen(inp: ImageTextInput, unseen: Sequence[int]) -> None:
    """Warn of texts that the model does not see; refuse an unseen question."""
    content = inp.messages[-1]["content"]
    is_text = [True] if isinstance(content, str) else [part["type"] == "text" for part in content]
    last = range(len(inp.texts) - sum(is_text), len(inp.texts))
    asked = [index for index in last if inp.texts[index].strip()]
    named = ", ".join(_shorten(inp.texts[index]) for index in unseen)
    if asked and set(asked) <= set(unseen):
        raise ValueError(
            f"the chat template leaves out {named}, all text of the last message, so the model "
            f"would not see the question; does it know the role {inp.messages[-1]['role']!r}?"
        )
    warnings.warn(
        f"the chat template leaves out {named}, which the model does not see", stacklevel=5
    )


def _warn_of_unseen_entries(
    processor: Any, inp: ImageTextInput, messages: Messages, prompt: str
) -> None:
    """Warn of entries of messages beside role and content that the template does not write."""
    for turn, message in enumerate(messages):
        for name in [name for name in message if name not in ("role", "content") and message[name]]:
            without = [dict(each) for each in messages]
            del without[turn][name]
            try:
                if _render(processor, without, inp.continues) != prompt:
                    continue
            except ValueError:
                continue
            warnings.warn(
                f"the chat template leaves out {name!r} of message {turn}, which the model does "
                "not see",
                stacklevel=5,
            )


def _warn_of_unknown_words(tokenizer: Any, texts: Sequence[str]) -> None:
    unknown = tokenizer.unk_token_id
    if unknown is None:
        return
    for text in texts:
        if unknown in tokenizer(text, add_special_tokens=False)["input_ids"]:
            warnings.warn(
                f"the text {_shorten(text)} has words that the model does not know; it reads "
                f"{tokenizer.unk_token!r} instead, which has no weight",
                stacklevel=5,
            )


def _name_images(processor: Any, inp: ImageTextInput, messages: Messages, count: int) -> str:
    """Which images the template leaves out: those without which it writes the same."""
    if count > len(inp.images):
        return ""
    unseen = []
    places = [
        (turn, place)
        for turn, message in enumerate(messages)
        if not isinstance(message["content"], str)
        for place, part in enumerate(message["content"])
        if part["type"] == "image"
    ]
    for index, (turn, place) in enumerate(places):
        without = [dict(message) for message in messages]
        content = without[turn]["content"]
        without[turn]["content"] = [*content[:place], *content[place + 1 :]]
        try:
            left = _render(processor, without, inp.continues).count(processor.image_token)
        except ValueError:
            continue
        if left == count:
            unseen.append(f"image {index} of message {turn} (role {messages[turn]['role']!r})")
    return f", it leaves out {', '.join(unseen)}" if unseen else ""


def _find_spans(texts: Sequence[str], pattern: str, prompt: str) -> tuple[Span, ...] | None:
    r"""Where the texts lie in the prompt; None where it does not follow the pattern.

    Spaces are skipped wherever a text or the template's own writing begins, so each of them has
    one place at most, and the search takes one turn.
    """
    place, spans = 0, []
    # What the template writes, and between it the indices of the texts.
    for turn, part in enumerate(_SENTINELS.split(pattern)):
        place = _skip_spaces(prompt, place)
        if turn % 2 == 0:
            core = part.strip()
            end = place + len(core) if prompt.startswith(core, place) else None
        else:
            end = _end_of(texts[int(part)].strip(), prompt, place)
        if end is None:
            return None
        if turn % 2:
            spans.append((place, end))
        place = end
    return tuple(spans) if _skip_spaces(prompt, place) == len(prompt) else None


def _end_of(text: str, prompt: str, start: int) -> int | None:
    """Where a text ends that starts in the prompt, in any case."""
    for form in (text, text.upper(), text.lower()):
        if prompt.startswith(form, start):
            return start + len(form)
    found = re.compile(re.escape(text), re.IGNORECASE).match(prompt, start)
    return None if found is None else found.end()


def _skip_spaces(prompt: str, place: int) -> int:
    while place < len(prompt) and prompt[place].isspace():
        place += 1
    return place


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
