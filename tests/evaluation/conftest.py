"""The bundled model, and one captioned image before it."""

from __future__ import annotations

import pytest

from captum_mllm import MLLM
from captum_mllm.evaluation.examples import Example, sample_examples
from captum_mllm.evaluation.method import Case


@pytest.fixture(scope="session")
def mllm() -> MLLM:
    return MLLM.from_pretrained("demo/qwen2-vl")


@pytest.fixture(scope="session")
def example() -> Example:
    """Three objects, so that later words have earlier ones."""
    (found,) = sample_examples([0], objects=3, prior=0.5)
    return found


@pytest.fixture
def case(mllm: MLLM, example: Example) -> Case:
    return Case(mllm, example)
