"""A target is a row and a token, and nothing that only looks like them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from captum_mllm.models.query import split_target

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("target", "rows", "tokens"),
    [
        ((0, 5), [0, 0], [5, 5]),
        ((-1, 0), [-1, -1], [0, 0]),
        ([(2, 99), (-3, 1)], [2, -3], [99, 1]),
        ([(np.int64(1), np.int32(4)), (0, 3)], [1, 0], [4, 3]),
    ],
)
def test_one_target_for_all_or_one_for_each(
    target: Any, rows: list[int], tokens: list[int]
) -> None:
    found = split_target(target, 2, 3, CPU, vocabulary=100)
    assert [part.tolist() for part in found] == [rows, tokens]


@pytest.mark.parametrize(
    "target",
    [
        None,
        5,
        (5,),
        (0, 1, 2),
        "01",
        (3, 5),
        (-4, 5),
        (0, -1),
        (0, 100),
        (0, 3.0),
        (0.0, 3),
        (True, 3),
        (0, True),
        (0, None),
        ((0, 1), (0, 1)),
        [],
        [(0, 1)],
        [(0, 1), 5],
        [(0, 1)] * 3,
        torch.tensor([1, 2]),
    ],
    ids=str,
)
def test_what_is_no_target_is_refused(target: Any) -> None:
    with pytest.raises(ValueError, match=r"expected \(t, token_id\), integers, with t below 3"):
        split_target(target, 2, 3, CPU, vocabulary=100)


def test_tokens_are_checked_only_where_the_vocabulary_is_known() -> None:
    assert split_target((0, 100), 1, 3, CPU)[1].tolist() == [100]
    with pytest.raises(ValueError, match="a token below 100"):
        split_target((0, 100), 1, 3, CPU, vocabulary=100)
