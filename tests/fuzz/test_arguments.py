"""Arguments of any type make a right result or a reasoned error."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captum_mllm import MLLM, MSEA, ImageTextInput, LogitLens, MLLMAttribution
from captum_mllm.models.answers import generation_options
from tests.fuzz.contract import FUZZ, reasoned
from tests.models.tiny_models import build

MODEL, PROCESSOR = build("llava")
MLLM_ = MLLM(MODEL, PROCESSOR)
INPUT = ImageTextInput(Image.new("RGB", (84, 84), "red"), "what is it ?")

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.lists(st.integers(-2, 400), max_size=4),
    st.lists(st.text(max_size=3) | st.none() | st.floats(), max_size=3),
    st.sets(st.integers(0, 9), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([object(), int, len, range(3), np.arange(3), np.zeros((2, 2))]),
    st.sampled_from([torch.tensor([3, 4]), torch.ones(2), torch.tensor(3), torch.ones(2) > 0]),
    st.sampled_from([MODEL, PROCESSOR, PROCESSOR.tokenizer, MODEL.model, MLLM_, torch.nn.Linear]),
)  # fmt: skip


@FUZZ
@given(model=JUNK, processor=JUNK)
def test_the_constructor_takes_a_model_and_its_processor_alone(model: Any, processor: Any) -> None:
    for pair in ((model, PROCESSOR), (MODEL, processor), (model, processor)):
        with reasoned() as outcome:
            MLLM(*pair)
        assert outcome.refused is not None or pair == (MODEL, PROCESSOR)


@FUZZ
@given(target=JUNK.filter(lambda target: target is not None))
def test_an_answer_is_tokens_or_refused(target: Any) -> None:
    with reasoned() as outcome:
        query = MLLM_.prepare(INPUT, target=target)[1]
    if outcome.refused is None:
        assert query.answer_ids
        assert all(type(token) is int for token in query.answer_ids)
        if not isinstance(target, str):
            assert list(query.answer_ids) == [
                int(token) for token in np.asarray(target).reshape(-1)
            ]


@FUZZ
@given(options=JUNK)
def test_arguments_of_generate_are_a_dict_or_refused(options: Any) -> None:
    with reasoned() as outcome:
        found = generation_options(options)
    if outcome.refused is None:
        assert isinstance(found, dict)


@FUZZ
@given(inp=JUNK)
def test_what_is_explained_is_an_input(inp: Any) -> None:
    with reasoned() as outcome:
        MLLMAttribution(LogitLens(MLLM_)).attribute(inp, target="a cat")
    assert outcome.refused is not None


OPTIONS = ["top_predictions", "gen_args", "scales", "weights", "normalize", "output_size"]
OPTIONS += ["interpolate_mode", "max_image_tokens", "segments", "words"]


@FUZZ
@given(name=st.sampled_from(OPTIONS), value=JUNK)
def test_arguments_of_an_explanation_are_taken_or_refused(name: str, value: Any) -> None:
    target = None if name == "gen_args" else "a cat"
    with reasoned() as outcome:
        found = MLLMAttribution(MSEA(LogitLens(MLLM_), scales=(1.0,))).attribute(
            INPUT, target=target, **{name: value}
        )
    if outcome.refused is None:
        assert found.image_attr.isfinite().all()
        assert len(found.image_attr) == len(found.output_tokens)
