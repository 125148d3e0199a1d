"""Results are asked with arguments of any type, and read from files that were changed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captum_mllm import MLLM, ImageTextInput, LogitLens, MLLMAttribution, MLLMAttributionResult
from tests.fuzz.contract import FUZZ, reasoned
from tests.models.tiny_models import shared

INPUT = ImageTextInput(Image.new("RGB", (84, 84), "red"), "what is it ?")
RESULT = MLLMAttribution(LogitLens(MLLM(*shared("llava")))).attribute(INPUT, target="a cat")
FOLDER = Path(tempfile.mkdtemp())
RESULT.save(FOLDER / "result")
SAVED = (FOLDER / "result").read_bytes()

PLACES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.tuples(st.integers(-4, 4), st.integers(-4, 4)),
    st.lists(st.integers(-4, 4), max_size=3),
    st.slices(3),
    st.sampled_from([range(2), np.int64(1), torch.tensor(1), object(), {}, "a", "cat", " cat"]),
)


@FUZZ
@given(place=PLACES)
def test_a_map_is_that_of_a_token_or_refused(place: Any) -> None:
    with reasoned() as outcome:
        found = RESULT.map(place)
    if outcome.refused is None:
        assert np.asarray(found).shape == (84, 84)
        assert np.isfinite(np.asarray(found)).all()


@FUZZ
@given(data=st.data())
def test_a_changed_file_is_the_result_or_refused(data: st.DataObject) -> None:
    changed = bytearray(SAVED)
    for _ in range(data.draw(st.integers(0, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    kept = data.draw(st.just(len(changed)) | st.integers(0, len(changed)))
    path = FOLDER / "changed"
    path.write_bytes(bytes(changed[:kept]))
    with reasoned() as outcome:
        found = MLLMAttributionResult.load(path)
    if outcome.refused is None:
        assert found.output_tokens == RESULT.output_tokens
        assert torch.equal(found.image_attr, RESULT.image_attr)
