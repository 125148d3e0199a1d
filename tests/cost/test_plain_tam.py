"""The plain way gives the maps of the published code, and those of the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from captum_mllm import TAM, LogitLens
from tests.cost.plain_tam import Places, PlainPass, plain_maps, plain_pass
from tests.cost.subjects import load_model, make_subject

DATA = Path(__file__).parents[1] / "attr" / "data"


@pytest.mark.parametrize("name", ["tam_square", "tam_wide"])
def test_equals_the_published_code_within_two_grey_levels(name: str) -> None:
    case = np.load(DATA / f"{name}.npz")
    rows, columns = case["grid"].tolist()
    image, prompt, answer = (int(case[f"{part}_start"]) for part in ("image", "prompt", "answer"))
    places = Places(
        ids=case["token_ids"].tolist(),
        image=list(range(image, image + rows * columns)),
        words=list(range(prompt, prompt + int(case["prompt_len"]))),
        answer=list(range(answer, answer + int(case["answer_len"]))),
        grid=(rows, columns),
    )
    logits = torch.tensor(case["hidden"]) @ torch.tensor(case["lm_head"]).T
    maps = np.stack(plain_maps(PlainPass(logits), places))
    assert maps.shape == case["maps"].shape
    assert np.abs(np.floor(maps * 255) - case["maps"].astype(float)).max() <= 2


def test_equals_the_package_on_a_model() -> None:
    subject = make_subject(load_model("tiny"), 64, 6)
    plain = np.stack(plain_maps(*plain_pass(subject)))
    ours = TAM(LogitLens(subject.mllm)).attribute(
        subject.image, additional_forward_args=(subject.query,)
    )
    np.testing.assert_allclose(ours[:, 0].numpy(), plain, atol=1e-3)
