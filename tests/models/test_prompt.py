"""The user's words are found where they stand, and nowhere else."""

from __future__ import annotations

import time
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
    return mllm.tokenizer.decode(states.ids[: states.n_prompt])


def chat(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    """Turns of a chat, an image in the first."""
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns]
    messages[0]["content"].insert(0, IMAGE)
    return messages


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["user", "user: user", "e", "assistant:", "what is in it ?"])
def test_a_text_is_found_behind_its_image(family: str, text: str) -> None:
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
    with pytest.warns(UserWarning, match="the chat template leaves out 'two', which the model"):
        _, query = mllm_with(template).prepare(inp, target="no")
    assert said(query) == ["one", "two"]


PARTS_ONLY = (
    "{% for m in messages %}{{ m.role }}: "
    "{% for p in m.content | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }} {% endfor %}"
    "{% endfor %}assistant:"
)


def test_plain_texts_reach_a_template_that_looks_for_parts() -> None:
    messages = [
        {"role": "system", "content": "answer yes or no ."},
        {"role": "user", "content": [IMAGE]},
        {"role": "user", "content": "is it a cat ?"},
    ]
    mllm = mllm_with(PARTS_ONLY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image, query = mllm.prepare(ImageTextInput(PICTURE, messages=messages), target="no")
    assert said(query) == ["answer yes or no .", "is it a cat ?"]
    assert words(mllm, image, query) == " answer yes or no . is it a cat ?"


@pytest.mark.parametrize("role", ["user", "tool"])
def test_a_question_that_the_template_leaves_out_is_refused(role: str) -> None:
    template = chat_template("<image>\n").replace("{{ part['text'] }}", "")
    template = template.replace("{{ message['content'] }}", "")
    messages = [{"role": "user", "content": [IMAGE]}, {"role": role, "content": "what is it ?"}]
    with pytest.raises(ValueError, match=f"leaves out 'what is it \\?'.* the role '{role}'"):
        mllm_with(template).prepare(ImageTextInput(PICTURE, messages=messages), target="no")


def test_an_image_that_the_template_leaves_out_is_named() -> None:
    template = (
        chat_template("<image>\n")
        .replace(
            "if part['type'] == 'image'", "if part['type'] == 'image' and message['role'] == 'user'"
        )
        .replace("{{ part['text'] }}", "{{ part['text'] | default('') }}")
    )
    messages = chat(("user", "one"), ("tool", "two"), ("user", "no"))
    messages[1]["content"].append(IMAGE)
    inp = ImageTextInput([PICTURE, PICTURE], messages=messages)
    with pytest.raises(ValueError, match=r"leaves out image 1 of message 1 \(role 'tool'\)"):
        mllm_with(template).prepare(inp, target="no")


def test_a_text_with_the_placeholder_of_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the text 'what is <image> \?' has the placeholder"):
        MLLM(*shared("llava")).prepare(ImageTextInput(PICTURE, "what is <image> ?"), target="no")


def test_a_text_with_the_placeholder_of_a_video_is_refused() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    text = f"what is {mllm.processor.video_token} ?"
    with pytest.raises(ValueError, match="has the placeholder of a video"):
        mllm.prepare(ImageTextInput(PICTURE, text), target="no")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_beginning_of_an_answer_is_continued(family: str) -> None:
    mllm = MLLM(*shared(family))
    messages = chat(("user", "what is it ?"), ("assistant", "It is a"))
    image, query = mllm.prepare(ImageTextInput(PICTURE, messages=messages), target=" cat")
    assert query.prompt.endswith("assistant: It is a")
    assert said(query) == ["what is it ?", "It is a"]
    ids = mllm.encode((image,), query).inputs["input_ids"][0]
    assert mllm.tokenizer.decode(ids).rpartition("assistant: ")[2].startswith("It is a")


def test_a_template_that_closes_the_answer_is_cut_behind_it() -> None:
    template = chat_template("<image>\n").replace("\n{% endfor %}{% if", "</s>{% endfor %}{% if")
    messages = chat(("user", "what is it ?"), ("assistant", "It is a "))
    _, query = mllm_with(template).prepare(ImageTextInput(PICTURE, messages=messages), target="cat")
    assert query.prompt == "user: <image>\nwhat is it ?</s>assistant: It is a "


def test_a_template_that_cannot_continue_an_answer_says_so() -> None:
    template = chat_template("<image>\n").replace("part['text']", "part['text'] | reverse")
    messages = chat(("user", "what is it ?"), ("assistant", "It is a"))
    with pytest.raises(ValueError, match="whose answer the model is to continue"):
        mllm_with(template).prepare(ImageTextInput(PICTURE, messages=messages), target="cat")


@pytest.mark.parametrize("template", ["{{ raise_exception('only users') }}", "{{ nothing.of() }}"])
def test_what_a_template_raises_is_a_reasoned_error(template: str) -> None:
    with pytest.raises(ValueError, match="the chat template cannot render the messages: "):
        mllm_with(template).prepare(ImageTextInput(PICTURE, "what is it ?"), target="cat")


def test_a_processor_without_a_template_is_refused() -> None:
    mllm = mllm_with("")
    with pytest.raises(ValueError, match="has no chat template"):
        mllm.prepare(ImageTextInput(PICTURE, "what is it ?"), target="cat")


@pytest.mark.parametrize("count", [2, 30])
def test_many_blank_texts_take_no_time(count: int) -> None:
    mllm = mllm_with(chat_template("<image>").replace("part['text']", "part['text'] | upper"))
    rewriting = mllm_with(
        chat_template("<image>").replace("part['text']", "part['text'] | replace('cat', 'dog')")
    )
    blank = [{"type": "text", "text": " \n" * 40}] * count
    content = [IMAGE, *blank, {"type": "text", "text": "what cat ?"}, *blank]
    inp = ImageTextInput(PICTURE, messages=[{"role": "user", "content": content}])
    start = time.monotonic()
    assert said(mllm.prepare(inp, target="no")[1]) == ["WHAT CAT ?"]
    with pytest.warns(UserWarning, match=r"rewrites the texts of the messages \('what cat \?'\)"):
        rewriting.prepare(inp, target="no")
    assert time.monotonic() - start < 5


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
    assert encoding.text_positions.tolist() == [1, 2, 3, 4]
    assert encoding.explained_rows(query)[:4].tolist() == [0, 1, 2, 3]
    assert words(mllm, image, query) == " is it ?"
    # The probability of each word is that by which its predecessors predict it.
    logits = mllm(image, query).softmax(-1)
    ids = mllm.explained_ids(image, query)
    expected = logits[0, range(len(ids)), ids]
    torch.testing.assert_close(mllm.target_probability(image, query), expected)


@pytest.mark.parametrize("written", [True, False])
def test_entries_of_messages_that_the_template_leaves_out_are_named(written: bool) -> None:
    template = chat_template("<image>\n")
    if written:
        template = template.replace(
            "{{ message['role'] }}", "{{ message.role }} {{ message.name }}"
        )
    mllm = mllm_with(template)
    content = [{"type": "image"}, {"type": "text", "text": "what ?"}]
    chat = [{"role": "user", "name": "Ann", "content": content}]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mllm.prepare(ImageTextInput(PICTURE, messages=chat), target="a cat")
    named = [str(warning.message) for warning in caught]
    assert any("leaves out 'name' of message 0" in text for text in named) is not written


def test_words_that_the_tokenizer_does_not_know_are_reported() -> None:
    mllm = MLLM.from_pretrained("demo/llava-1.5")
    with pytest.warns(UserWarning, match="'a zebra' has words that the model does not know"):
        mllm.prepare(ImageTextInput(PICTURE, "a zebra"), target="a red star")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mllm.prepare(ImageTextInput(PICTURE, "Describe the image."), target="a red star")


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_tokenizer_that_cuts_the_prompt_is_reported(side: str) -> None:
    model, processor = build("qwen2_vl")
    mllm = MLLM(model, processor)
    question = "what is in the image ? " * 4
    content = [{"type": "text", "text": question}, {"type": "image"}]
    if side == "right":
        content.reverse()
    inp = ImageTextInput(PICTURE, messages=[{"role": "user", "content": content}])
    image, query = mllm.prepare(inp, target="a cat")
    length = mllm.encode((image,), query).inputs["input_ids"].shape[1] - 1
    limits = {"truncation": True, "max_length": length - 9}
    processor.tokenizer.init_kwargs.update(limits)
    processor.tokenizer.truncation_side = side
    with pytest.warns(UserWarning, match="the tokenizer cuts the prompt off"):
        mllm.encode((image,), query)


def test_a_tokenizer_that_pads_the_prompt_is_refused() -> None:
    model, processor = build("qwen2_vl")
    mllm = MLLM(model, processor)
    image, query = mllm.prepare(ImageTextInput(PICTURE, "what ?"), target="a cat")
    processor.tokenizer.init_kwargs.update({"padding": "max_length", "max_length": 200})
    with pytest.raises(ValueError, match="the tokenizer pads the prompt"):
        mllm.encode((image,), query)
