"""The user's words are found where they stand, and nowhere else."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models import Query
from tests.models.tiny_models import FAMILIES, build, chat_template, shared

PICTURE = torch.rand(3, 56, 84, generator=torch.Generator().manual_seed(0))
IMAGE = {"type": "image"}
SYSTEM = "system: You are a helpful assistant that answers yes or no.\n"


def mllm_with(template: str, family: str = "llava") -> MLLM:
    model, processor = build(family)
    processor.chat_template = template
    return MLLM(model, processor)


def said(query: Query) -> list[str]:
    return [query.prompt[start:end] for start, end in query.spans]


def words(mllm: MLLM, image: torch.Tensor, query: Query) -> str:
    states = mllm.states(image, query)
    return mllm.tokenizer.decode(states.ids[: states.n_words])


def chat(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    """Turns of a chat, a picture in the first."""
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    messages[0]["content"].insert(0, IMAGE)
    return messages


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["user", "user: user", "e", "assistant:", "what is in it ?"])
def test_a_text_is_found_behind_its_picture(family: str, text: str) -> None:
    mllm = MLLM(*shared(family))
    image, query = mllm.prepare(ImageTextInput(PICTURE, text), target="a cat")
    assert said(query) == [text]
    assert query.spans[0][0] > query.prompt.index(mllm.processor.image_token)
    assert words(mllm, image, query).strip() == text


@pytest.mark.parametrize("text", ["a", "no", "yes or no", "You are a helpful assistant"])
def test_a_text_that_the_system_prompt_has_too_is_the_users(text: str) -> None:
    mllm = mllm_with(SYSTEM + chat_template("<image>\n"))
    image, query = mllm.prepare(ImageTextInput(PICTURE, text), target="a cat")
    assert said(query) == [text]
    assert query.spans[0][0] > query.prompt.index("<image>")
    assert words(mllm, image, query).strip() == text


def test_each_turn_with_the_same_text_has_its_own_place() -> None:
    mllm = MLLM(*shared("llava"))
    messages = chat(("user", "one"), ("assistant", "user"), ("user", "one"))
    _, query = mllm.prepare(ImageTextInput(PICTURE, messages=messages), target="no")
    assert said(query) == ["one", "user", "one"]
    assert query.prompt == "user: <image>\noneassistant: useruser: oneassistant:"
    assert [start for start, _ in query.spans] == [14, 28, 38]


@pytest.mark.parametrize("change", ["trim", "upper", "lower", "trim | upper"])
def test_a_template_may_trim_texts_or_change_their_case(change: str) -> None:
    template = chat_template("<image>\n").replace("part['text']", f"part['text'] | {change}")
    mllm = mllm_with(template)
    text = "  What is \n in it ? "
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, query = mllm.prepare(ImageTextInput(PICTURE, text), target="a cat")
    found = said(query)
    assert [part.lower() for part in found] == [text.strip().lower()]


def test_a_template_may_leave_turns_out() -> None:
    template = chat_template("<image>\n").replace(
        "for message in messages", "for message in messages if message['role'] == 'user'"
    )
    messages = chat(("user", "one"), ("assistant", "two"), ("user", "two"))
    inp = ImageTextInput(PICTURE, messages=messages)
    _, query = mllm_with(template).prepare(inp, target="no")
    assert said(query) == ["one", "two"]


@pytest.mark.parametrize("change", ["replace('is', 'was')", "reverse", "wordcount"])
def test_where_a_template_rewrites_texts_there_is_a_warning(change: str) -> None:
    template = chat_template("<image>\n").replace("part['text']", f"part['text'] | {change}")
    mllm = mllm_with(template)
    with pytest.warns(UserWarning, match="the chat template rewrites the texts"):
        _, query = mllm.prepare(ImageTextInput(PICTURE, "what is it ?"), target="a cat")
    assert said(query) == [query.prompt]


def with_bos(tok: Any) -> None:
    """Let a tokenizer put the token of the beginning before every text, as Llama's does."""
    tok.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tok.bos_token_id)]
    )


@pytest.mark.parametrize("written", [True, False], ids=["template writes it", "it does not"])
@pytest.mark.parametrize("differentiable", [True, False])
def test_the_token_of_the_beginning_comes_once(written: bool, differentiable: bool) -> None:
    mllm = mllm_with("<s>" * written + chat_template("<image>\n"))
    with_bos(mllm.tokenizer)
    inp = ImageTextInput(PICTURE, "what is it ?")
    image, query = mllm.prepare(inp, target="a cat")
    ids = mllm.encode((image.requires_grad_(differentiable),), query).inputs["input_ids"][0]
    assert ids.tolist().count(mllm.tokenizer.bos_token_id) == 1
    assert ids[0] == mllm.tokenizer.bos_token_id
    assert words(mllm, image, query).strip() == "what is it ?"


def test_a_first_word_that_nothing_predicts_is_left_out() -> None:
    bare = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    mllm = mllm_with(bare)
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is it ?"}, IMAGE]}]
    image, query = mllm.prepare(ImageTextInput(PICTURE, messages=messages), target="a cat")
    query = query.including_prompt()
    encoding = mllm.encode((image,), query)
    assert encoding.inputs["input_ids"][0, 0] == mllm.tokenizer.convert_tokens_to_ids("what")
    assert encoding.word_positions.tolist() == [1, 2, 3, 4]
    assert encoding.explained_rows(query)[:4].tolist() == [0, 1, 2, 3]
    assert words(mllm, image, query) == " is it ?"
    # The probability of each word is that by which its predecessors predict it.
    logits = mllm(image, query).softmax(-1)
    ids = mllm.explained_ids(image, query)
    expected = logits[0, range(len(ids)), ids]
    torch.testing.assert_close(mllm.target_probability(image, query), expected)
