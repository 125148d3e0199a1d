"""TAM against maps of the published code, and against hand-set states."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from captum_mllm.attr import TAM, LogitLens
from tests.attr.toy_mllm import ToyMLLM

DATA = Path(__file__).parent / "data"


def golden_mllm(name: str) -> tuple[ToyMLLM, np.ndarray]:
    case = np.load(DATA / f"{name}.npz")
    hidden, ids = torch.tensor(case["hidden"]), case["token_ids"].tolist()
    rows, columns = case["grid"].tolist()
    image, prompt, answer = (int(case[f"{part}_start"]) for part in ("image", "prompt", "answer"))
    words = list(range(prompt, prompt + int(case["prompt_len"])))
    spoken = list(range(answer, answer + int(case["answer_len"])))
    seen = hidden[image : image + rows * columns].reshape(rows, columns, -1)
    mllm = ToyMLLM(
        head=torch.tensor(case["lm_head"]),
        see=lambda picture: seen,
        words=hidden[words],
        predicting=hidden[[place - 1 for place in words + spoken]],
        ids=[ids[place] for place in words + spoken],
    )
    return mllm, case["maps"]


@pytest.mark.parametrize("name", ["tam_square", "tam_wide"])
def test_equals_the_published_code_within_two_grey_levels(name: str) -> None:
    mllm, expected = golden_mllm(name)
    query = mllm.query()
    maps = TAM(LogitLens(mllm)).attribute(torch.zeros(1, 3, 8, 8), additional_forward_args=(query,))
    levels = (maps[:, 0] * 255).numpy()
    assert levels.shape == expected.shape
    # The published code cuts to whole levels and finds its factor by a numeric search.
    assert np.abs(np.floor(levels) - expected.astype(float)).max() <= 2
