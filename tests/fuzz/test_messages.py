"""Every text and image of the messages reaches the model, or a word is said of it."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captum_mllm import MLLM, ImageTextInput
from tests.fuzz.contract import FUZZ, reasoned
from tests.models.tiny_models import build, chat_template

WHOLE = chat_template("<image>\n")
PARTS = (
    "{% for m in messages %}{{ m.role }}: "
    "{% for p in m.content | selectattr('type', 'equalto', 'image') %}<image>{% endfor %}"
    "{% for p in m.content | selectattr('type', 'equalto', 'text') %}{{ p.text }} {% endfor %}"
    "{% endfor %}assistant:"
)
CHANGES = ["trim", "upper", "lower", "title", "reverse", "wordcount", "replace('a', 'b')"]
CHANGES += ["default('')", "e", "truncate(5, True)", "first", "indent"]
TEMPLATES = [
    WHOLE,
    PARTS,
    *(WHOLE.replace("part['text']", f"part['text'] | {change}") for change in CHANGES),
    WHOLE.replace("message in messages", "message in messages if message['role'] != 'system'"),
    WHOLE.replace("{{ message['content'] }}", ""),
    WHOLE.replace("if part['type'] == 'image'", "if message['role'] == 'user' and part['type'] =="
                  " 'image'").replace("part['text']", "(part['text'] or '')"),
    WHOLE.replace("\n{% endfor %}{% if", "</s>{% endfor %}{% if"),
    "{{ raise_exception('no') }}",
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m.content[0].text + m.nothing }}{% endfor %}",
    "<image>",
    "",
]  # fmt: skip

WORDS = ["a cat", "user", "user:", "assistant:", " ", "\n\n", "", "<image>", "</s>", "<s>", "ß"]
WORDS += ["A", "0", "1", "\ue000", "\ue0000\ue001", "\ud800", "猫", "👩‍👧", "it\n is", "(a+)+$"]
TEXTS = st.sampled_from(WORDS) | st.text(max_size=12) | st.lists(
    st.sampled_from(WORDS), max_size=4
).map("".join)  # fmt: skip
PART = st.one_of(
    st.just({"type": "image"}),
    TEXTS.map(lambda text: {"type": "text", "text": text}),
    st.just({"type": "image", "text": None}),
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "user", "assistant", "system", "tool", ""]),
        "content": TEXTS | st.lists(PART, max_size=4),
    }
)
MESSAGES = st.lists(MESSAGE, max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "image"]), inner)
    ),
    max_leaves=8,
)
IMAGE = Image.new("RGB", (84, 84), "red")
MODEL, PROCESSOR = build("llava")
MLLM_ = MLLM(MODEL, PROCESSOR)


def parts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for message in messages:
        content = message["content"]
        found += [{"type": "text", "text": content}] if isinstance(content, str) else content
    return found


@FUZZ
@given(messages=MESSAGES, template=st.sampled_from(TEMPLATES), some_image=st.booleans())
def test_what_is_given_reaches_the_model(
    messages: list[dict[str, Any]], template: str, some_image: bool
) -> None:
    if some_image:
        messages = [{"role": "user", "content": [{"type": "image"}]}, *messages]
    texts = [part["text"] for part in parts(messages) if part["type"] == "text"]
    count = sum(part["type"] == "image" for part in parts(messages))
    PROCESSOR.chat_template = template
    with reasoned() as outcome:
        inp = ImageTextInput([IMAGE] * max(count, 1), messages=messages)
        images, query = MLLM_.prepare(inp, target="a cat")
        encoding = MLLM_.encode(images if isinstance(images, tuple) else (images,), query)
    if outcome.refused is not None:
        return
    assert query.prompt.count("<image>") == count == len(encoding.image_positions)
    assert all(len(positions) for positions in encoding.image_positions)
    seen = [query.prompt[start:end].casefold() for start, end in query.spans]
    for text in (text.strip() for text in texts):
        named = " ".join(text.split())[:20]
        assert (
            not text
            or any(span in (text.casefold(), text.upper().casefold()) for span in seen)
            or any("leaves out" in warning or "rewrites" in warning for warning in outcome.warned)
        ), f"nothing is said of {named!r}"
    ends = parts(messages[-1:])[-1].get("text") if messages[-1]["content"] else None
    if messages[-1]["role"] == "assistant" and ends and ends.strip() and not outcome.warned:
        assert query.prompt.rstrip().endswith(query.prompt[slice(*query.spans[-1])])


@FUZZ
@given(messages=st.lists(JSON, max_size=3) | JSON)
def test_messages_of_any_shape_are_taken_or_refused(messages: Any) -> None:
    PROCESSOR.chat_template = WHOLE
    with reasoned():
        MLLM_.prepare(ImageTextInput(IMAGE, messages=messages), target="a cat")
