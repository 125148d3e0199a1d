"""What words rest on, against passes of single coalitions and Shapley's value over all orders."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from statistics import fmean

import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput, Video
from captum_mllm._captum import format_tensor_into_tuples
from captum_mllm.datasets import Scene, SceneObject, render
from captum_mllm.explain import Reasons, exact_reasons
from captum_mllm.explain.signals import token_signals
from captum_mllm.models.knockout import TakesNoMask
from captum_mllm.models.query import Query
from tests.models.test_mllm import random_image
from tests.models.test_model_unchanged import snapshot
from tests.models.tiny_models import FAMILIES, shared

PROMPT = "what is in the image ?"
ANSWER = "a cat and a dog"


@pytest.fixture(params=FAMILIES)
def mllm(request: pytest.FixtureRequest) -> MLLM:
    return MLLM(*shared(request.param))


def prepared(
    mllm: MLLM, prompt: str = PROMPT, answer: str = ANSWER, seed: int = 0
) -> tuple[Tensor, Query]:
    return mllm.prepare(ImageTextInput(random_image(seed=seed), prompt), target=answer)


def log_probability(logits: Tensor, ids: tuple[int, ...]) -> Tensor:
    return logits[0].log_softmax(-1)[torch.arange(len(ids)), list(ids)]


@pytest.mark.parametrize(("division", "with_prompt"), [("words first", False), ("shapley", True)])
def test_the_parts_sum_to_the_whole(mllm: MLLM, division: str, with_prompt: bool) -> None:
    image, query = prepared(mllm)
    query = query.including_prompt() if with_prompt else query
    whole = mllm.target_probability(image, query).log() + math.log(mllm.vocabulary.size)
    before = snapshot(mllm.model)
    reasons = exact_reasons(mllm, (image,), query, division)
    assert snapshot(mllm.model) == before
    torch.testing.assert_close(reasons.values.sum(1), whole, atol=1e-5, rtol=0)
    # Nothing of the answer comes before its first token, nor before the question.
    first = len(reasons.values) - len(query.answer_ids)
    torch.testing.assert_close(
        reasons.values[: first + 1, 2], torch.zeros(first + 1), atol=1e-5, rtol=0
    )


def test_coalitions_equal_passes_with_other_pixels_and_embeddings(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    reasons = exact_reasons(mllm, (image,), query, absent_image="mean", perturbations_per_eval=3)
    words = mllm.word_embeddings(query, answer=True)
    mean = mllm.model.get_input_embeddings().weight.mean(0)
    n_prompt = words.shape[1] - len(query.answer_ids) + 1
    blank = image.mean((2, 3), keepdim=True).expand_as(image)
    for row in range(8):
        given = words.clone()
        if not row & 2:
            given[:, :n_prompt] = mean
        if not row & 4:
            given[:, n_prompt:] = mean
        with torch.no_grad():
            logits = mllm(image if row & 1 else blank, given, query)
        expected = log_probability(logits, query.answer_ids) + math.log(mllm.vocabulary.size)
        torch.testing.assert_close(reasons.coalitions[row], expected, atol=1e-4, rtol=1e-4)


def test_an_absent_group_has_no_influence(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    own = exact_reasons(mllm, (image,), query).coalitions
    other_image, _ = prepared(mllm, seed=1)
    other = exact_reasons(mllm, (other_image,), query).coalitions
    without = [row for row in range(8) if not row & 1]
    torch.testing.assert_close(own[without], other[without], atol=1e-5, rtol=1e-5)
    assert (own[7] - other[7]).abs().max() > 1e-4
    # The last token of another answer is predicted from the same place, and is the same.
    changed = (*query.answer_ids[:-1][::-1], query.answer_ids[-1])
    third = exact_reasons(mllm, (image,), replace(query, answer_ids=changed)).coalitions
    without = [row for row in range(8) if not row & 4]
    torch.testing.assert_close(own[without, -1], third[without, -1], atol=1e-5, rtol=1e-5)
    assert (own[7, -1] - third[7, -1]).abs() > 1e-5


def test_each_of_several_images_is_a_group() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    torch.manual_seed(0)
    images = [random_image(), random_image(84, 56)]
    inp = ImageTextInput(images, PROMPT, explained=1)
    image, query = mllm.prepare(inp, target=ANSWER)
    found = exact_reasons(mllm, (image,), query, "shapley")
    assert found.groups == ("image 1", "image 2", "question", "answer")
    assert found.coalitions is not None and found.coalitions.shape[0] == 16
    whole = mllm.target_probability(image, query).log() + math.log(mllm.vocabulary.size)
    torch.testing.assert_close(found.values.sum(1), whole, atol=1e-5, rtol=0)
    # What the explained image shows has no influence where it is absent.
    other = exact_reasons(mllm, (1 - image,), query).coalitions
    without = [row for row in range(16) if not row & 2]
    torch.testing.assert_close(found.coalitions[without], other[without], atol=1e-5, rtol=1e-5)


def test_a_model_without_masks_gets_a_mean_image(monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = MLLM(*shared("llava"))
    image, query = prepared(mllm)
    expected = exact_reasons(mllm, (image,), query, absent_image="mean")

    def refuse(*args: object) -> None:
        raise TakesNoMask("no mask")

    monkeypatch.setattr("captum_mllm.explain.ablation.hidden_columns", refuse)
    found = exact_reasons(mllm, (image,), query)
    torch.testing.assert_close(found.coalitions, expected.coalitions)
    assert "absent image: 'mean'" in found.method


def test_a_blank_image_still_tells_how_bright_it_is() -> None:
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    scene = Scene((SceneObject("star", "pink", x=0.5, y=0.5, radius=0.2),), "dark")
    inp = ImageTextInput(Image.fromarray(render(scene).image), "Describe the image.")
    image, query = mllm.prepare(inp, target="there is a pink star on a dark background .")
    hidden = exact_reasons(mllm, (image,), query).parts([7])["image"]
    blank = exact_reasons(mllm, (image,), query, absent_image="mean").parts([7])["image"]
    assert hidden > blank + 2


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_shapley_values_are_means_over_all_orders(count: int) -> None:
    torch.manual_seed(count)
    values = torch.randn(2**count, 5)
    names = [f"image {number}" for number in range(count)]
    found = Reasons.of_coalitions(names, values, "shapley").values
    for group in range(count):
        gains = []
        for order in itertools.permutations(range(count)):
            before = sum(1 << other for other in order[: order.index(group)])
            gains.append((values[before | 1 << group] - values[before]).double())
        expected = torch.tensor([fmean(column) for column in torch.stack(gains).T.tolist()])
        torch.testing.assert_close(found[:, group], expected.float(), atol=1e-5, rtol=1e-5)
    assert torch.equal(found[:, -1], values[0])


def test_words_count_first_and_images_for_what_they_add() -> None:
    values = torch.arange(16.0).square()[:, None]
    reasons = Reasons.of_coalitions(("image 1", "image 2", "question", "answer"), values)
    parts = reasons.parts([0])
    assert parts["prior"] == values[0]
    assert parts["question"] == values[4] - values[0]
    assert parts["answer"] == values[12] - values[4]
    alone, last = values[13] - values[12], values[15] - values[14]
    assert parts["image 1"] == pytest.approx(float(alone + last) / 2)


def test_shares_are_of_what_speaks_for_a_word() -> None:
    values = torch.tensor([[3.0, -1.0, 1.0, 0.0], [-2.0, -1.0, -1.0, -1.0]])
    reasons = Reasons(("image", "question", "answer"), values, "estimate")
    shares = reasons.shares([0])
    assert shares == {"image": 0.75, "question": 0.0, "answer": 0.25, "prior": 0.0}
    assert set(reasons.shares([1]).values()) == {0.0}
    assert reasons.parts([0, 1])["image"] == 1.0
    with pytest.raises(ValueError, match="estimate"):
        reasons.divided("shapley")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"division": "images first"}, "division='images first'"),
        ({"perturbations_per_eval": 0}, "perturbations_per_eval=0"),
        ({"absent_image": "grey"}, "baselines must be"),
        ({"absent_word": "two words"}, "tokens of this tokenizer"),
    ],
    ids=str,
)
def test_wrong_options_are_refused(options: dict[str, object], message: str) -> None:
    mllm = MLLM(*shared("llava"))
    image, query = prepared(mllm)
    with pytest.raises(ValueError, match=message):
        exact_reasons(mllm, (image,), query, **options)
    with pytest.raises(ValueError, match="have shape"):
        Reasons(("image",), torch.zeros(2, 3), "estimate")
    with pytest.raises(ValueError, match="finite"):
        Reasons(("image",), torch.full((2, 2), torch.nan), "estimate")


def test_frames_of_a_video_are_images_not_words() -> None:
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    scene = Scene((SceneObject("star", "red", x=0.5, y=0.5, radius=0.2),), "dark")
    frames = [render(scene).image, 255 - render(scene).image]
    found = {}
    for given in (frames, Video(frames)):
        inp = ImageTextInput(given, "Describe the image.")
        images, query = mllm.prepare(inp, target="a red star")
        reasons = exact_reasons(mllm, images, query)
        assert reasons.groups[-2:] == ("question", "answer") and reasons.coalitions is not None
        texts = 0b11 << len(reasons.groups) - 2
        of_images = reasons.coalitions[-1] - reasons.coalitions[texts]
        torch.testing.assert_close(reasons.values[:, :-3].sum(1), of_images, atol=1e-5, rtol=0)
        gain = token_signals(mllm, format_tensor_into_tuples(images), query)[:, 1]
        torch.testing.assert_close(gain, of_images.clamp(-12, 12), atol=1e-3, rtol=1e-3)
        found[type(given)] = reasons
    # Shares of an image do not depend on what it is called.
    named = found[list]
    assert named.coalitions is not None
    timed = Reasons.of_coalitions(("0.0 s", "0.5 s", "question", "answer"), named.coalitions)
    torch.testing.assert_close(timed.values, named.values)


def test_arguments_are_checked() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = prepared(mllm)
    found = exact_reasons(mllm, image, query)
    torch.testing.assert_close(found.values, exact_reasons(mllm, (image,), query).values)
    with pytest.raises(ValueError, match="batch of 2"):
        exact_reasons(mllm, image.repeat(2, 1, 1, 1), query)
    for tokens, message in (("a", "sequence of positions"), (2, "sequence"), ([7], "have 7")):
        with pytest.raises(ValueError, match=message):
            found.parts(tokens)  # type: ignore[arg-type]
