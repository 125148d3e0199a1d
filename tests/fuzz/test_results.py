"""A file that was changed is not read as another result."""

from __future__ import annotations

import tempfile
from pathlib import Path

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
