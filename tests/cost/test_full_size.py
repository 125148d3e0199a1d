"""Operations are counted as PyTorch counts them, and the stored data is what they give."""

from __future__ import annotations

import csv
from unittest import mock

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.cost.full_size import DATA, HEAD, network, operations, rows
from tests.cost.subjects import SHAPES, Shape, make_subject, random_model


def test_operations_are_those_that_pytorch_counts() -> None:
    shape = Shape(256, 512, 2, 2, 1, 500, False)
    with mock.patch.dict(SHAPES, {"small": shape}):
        mllm = random_model(shape, "cpu", layers=2)
        # The counter has no rule for the fused attention of the CPU.
        mllm.model.set_attn_implementation("eager")
        subject = make_subject(mllm, 64, 8)
        inputs = mllm.encode((subject.image,), subject.query).inputs
        text = inputs["input_ids"].shape[1] - 64
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            mllm.model(**inputs, logits_to_keep=3)
        found = operations("small", 64, text, 3, layers=2)
        network.cache_clear()
    assert found == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_the_stored_data_is_what_is_counted() -> None:
    with DATA.open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [list(HEAD), *rows()]
