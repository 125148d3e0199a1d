"""Metrics with a multimodal LLM as the forward function."""

import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput, LogitLens
from captum_mllm.metrics import (
    deletion_auc,
    insertion_auc,
    perturbation_curve,
    randomization_sanity,
)
from captum_mllm.models import Query
from tests.models.tiny_models import build, shared


def prepare(mllm: MLLM) -> tuple[Tensor, Query]:
    image = Image.effect_noise((84, 56), 90).convert("RGB")
    return mllm.prepare(ImageTextInput(image, "what is in the image ?"), target="a cat")


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "internvl"])
def test_curves_equal_passes_one_by_one(family: str) -> None:
    mllm = MLLM(*shared(family))
    image, query = prepare(mllm)
    target = list(enumerate(query.answer_ids))
    rows = image.expand(len(target), -1, -1, -1)
    maps = LogitLens(mllm).attribute(image, additional_forward_args=(query,))
    curve = perturbation_curve(
        mllm,
        rows,
        maps,
        "deletion",
        baselines="mean",
        target=target,
        additional_forward_args=(query,),
        steps=3,
        perturbations_per_eval=4,
    )
    assert curve.probability.shape == (len(target), 4)
    with torch.no_grad():
        whole, empty = mllm(image, query), mllm(image.mean((2, 3), True).expand_as(image), query)
    for row, (place, token) in enumerate(target):
        ends = [logits[0, place].softmax(-1)[token] for logits in (whole, empty)]
        torch.testing.assert_close(curve.probability[row, [0, -1]], torch.stack(ends))


def test_one_target_for_one_image() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    image, query = prepare(mllm)
    maps = torch.rand(1, 1, 4, 6)
    for metric in (insertion_auc, deletion_auc):
        area = metric(
            mllm,
            image,
            maps,
            target=(0, query.answer_ids[0]),
            additional_forward_args=query,
            steps=2,
        )
        assert area.shape == (1,)
        assert 0 < float(area) < 1


def test_a_missing_target_is_refused() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    image, query = prepare(mllm)
    with pytest.raises(ValueError, match="give a target"):
        insertion_auc(mllm, image, torch.rand(1, 1, 4, 6), additional_forward_args=(query,))


def test_randomised_weights_change_the_lens_and_come_back() -> None:
    mllm = MLLM(*build("qwen2_vl"))
    image, query = prepare(mllm)
    before = {name: value.clone() for name, value in mllm.state_dict().items()}

    def explain() -> Tensor:
        return LogitLens(mllm).attribute(image, additional_forward_args=(query,))[:, 0]

    layers = ["model.lm_head", "model.model.language_model", "model.model.visual"]
    similarity = randomization_sanity(mllm, explain, layers)
    assert similarity.shape == (3, len(query.answer_ids))
    assert (similarity[-1].abs() < 0.9).all()
    after = mllm.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
