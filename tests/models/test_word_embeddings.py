"""The embeddings of words as an input of the model, beside the image."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from captum_mllm import (
    MLLM,
    MSEA,
    AttentionMaps,
    ImageTextInput,
    LogitLens,
    MLLMAttribution,
    TokenCam,
)
from captum_mllm.models import Query
from captum_mllm.models.word_embeddings import word_baseline
from tests.models.test_model_unchanged import snapshot
from tests.models.tiny_models import FAMILIES, build, shared

IMAGE = torch.rand(3, 84, 112, generator=torch.Generator().manual_seed(0))


def prepared(mllm: MLLM, text: str = "what is in the image ?") -> tuple[Tensor, Query]:
    return mllm.prepare(ImageTextInput(IMAGE, text), target="a cat and a dog")


@pytest.fixture(params=FAMILIES)
def mllm(request: pytest.FixtureRequest) -> MLLM:
    return MLLM(*shared(request.param))


@pytest.mark.parametrize("scale", [1, 2])
def test_with_its_own_embeddings_a_model_says_the_same(mllm: MLLM, scale: int) -> None:
    image, query = prepared(mllm)
    image = image.repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    expected = mllm(image, query)
    for answer in (False, True):
        embeddings = mllm.word_embeddings(query, answer)
        assert not embeddings.requires_grad
        assert torch.equal(mllm(image, embeddings, query), expected)
        torch.testing.assert_close(
            mllm.token_logits(image, embeddings, query),
            expected.gather(2, torch.tensor(query.answer_ids)[None, :, None])[..., 0],
        )


@pytest.mark.parametrize("answer", [False, True])
def test_another_words_embedding_is_another_word(mllm: MLLM, answer: bool) -> None:
    image, query = prepared(mllm, "what is in the image ?")
    changed = "what is on the image ?"
    _, other = prepared(mllm, changed)
    if answer:
        other = replace(query, answer_ids=(5, *query.answer_ids[1:]))
    expected = mllm(image, other)
    found = mllm(image, mllm.word_embeddings(other, answer), query)
    assert not torch.equal(found, mllm(image, query))
    torch.testing.assert_close(found, expected)


def test_each_row_of_a_batch_has_words_of_its_own(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    # At twice the size LLaVA sees the image through windows.
    images = torch.cat([image, image.flip(-1)]).repeat_interleave(2, -1).repeat_interleave(2, -2)
    own = mllm.word_embeddings(query)
    words = torch.cat([own, own.flip(1)])
    together = mllm(images, words, query)
    for row in range(2):
        single = mllm(images[row, None], words[row, None], query)
        torch.testing.assert_close(together[row, None], single, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_words_is_the_slope(mllm: MLLM) -> None:
    model, processor = build(mllm.model.config.model_type)
    double = MLLM(model.double(), processor)
    image, query = prepared(double)
    words = double.word_embeddings(query, answer=True).requires_grad_()
    target = (0, -1, query.answer_ids[-1])
    double(image, words, query)[target].backward()
    assert words.grad is not None
    assert (words.grad.abs().sum((0, 2)) > 0).all()
    direction = torch.randn(words.shape, generator=torch.Generator().manual_seed(1)).to(words)
    # The norms are in float32.
    step = 1e-4
    with torch.no_grad():
        ends = [double(image, words + sign * step * direction, query)[target] for sign in (1, -1)]
    slope = (ends[0] - ends[1]).item() / (2 * step)
    assert (words.grad * direction).sum().item() == pytest.approx(slope, rel=1e-3)


def test_what_is_told_of_a_pass_is_that_of_these_words(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    words = mllm.word_embeddings(query).flip(1)
    logits = mllm(image, words, query)
    target = (2, query.answer_ids[2])
    with mllm.remember():
        mllm.states(image, query)
        probability = mllm.target_probability(image, words, query, target=target)
        kept = mllm.states(image, words, query)
        assert mllm.states(image, words, query) is kept
        words.mul_(2)
        assert mllm.states(image, words, query) is not kept
    torch.testing.assert_close(probability, logits.softmax(-1)[:, target[0], target[1]])
    (layout,) = mllm.layouts(image, words, query)
    assert layout == mllm.layouts(image, query)[0]
    assert torch.equal(mllm.explained_ids(image, words, query), mllm.explained_ids(image, query))


def test_tokens_of_a_word_are_one_feature() -> None:
    mllm = MLLM(*shared("llava"))
    _, query = prepared(mllm, "what lynx is it ?")
    ids = [
        mllm.tokenizer.decode([token])
        for token in mllm.encode((IMAGE[None],), query).text_ids.tolist()
    ]
    assert "".join(ids) == "what lynx is it ?"
    mask = mllm.word_mask(query)
    assert mask.shape == (1, len(ids), 1)
    words = [
        "".join(text for text, at in zip(ids, mask[0, :, 0].tolist()) if at == word).strip()
        for word in range(int(mask.max()) + 1)
    ]
    assert words == ["what", "lynx", "is", "it", "?"]
    assert len(ids) > len(words)
    # The answer begins a new word, and its last one is followed by nothing.
    both = mllm.word_mask(query, answer=True)
    assert torch.equal(both[:, : len(ids)], mask)
    assert int(both.max()) == 4 + 4


@pytest.mark.parametrize(
    "shape", [(1, 3, 32), (1, 6, 31), (2, 6, 32), (1, 0, 32)], ids=lambda shape: str(shape)
)
def test_other_shapes_are_refused_and_the_model_stays_as_it_was(shape: tuple[int, ...]) -> None:
    mllm = MLLM(*build("qwen2_vl"))
    image, query = prepared(mllm, "is it a dog ?")
    mllm(image, query)
    before = snapshot(mllm.model)
    with pytest.raises(ValueError, match=r"embeddings of words of shape|batches of \[1, 2\]"):
        mllm(image, torch.zeros(shape), query)
    assert snapshot(mllm.model) == before


def test_whole_numbers_are_no_embeddings() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = prepared(mllm)
    words = mllm.word_embeddings(query)
    with pytest.raises(ValueError, match=r"dtype torch.int64, expected \(B, 6 or 10, 32\)"):
        mllm(image, words.long(), query)


def test_the_model_is_as_it_was_when_a_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    mllm = MLLM(*build("internvl"))
    image, query = prepared(mllm)
    mllm(image, query)
    before = snapshot(mllm.model)

    def fail(*args: object) -> None:
        raise RuntimeError("out of memory")

    handle = mllm.model.get_decoder().layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        mllm(image, mllm.word_embeddings(query), query)
    handle.remove()
    assert (
        snapshot(mllm.model)["model.language_model._forward_hooks"]
        == (before["model.language_model._forward_hooks"])
    )
    assert not mllm.model.get_input_embeddings()._forward_hooks


def test_methods_on_tokens_of_the_image_take_no_words() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = prepared(mllm)
    words = mllm.word_embeddings(query)
    for method in (TokenCam(mllm), AttentionMaps(mllm), MSEA(TokenCam(mllm))):
        with pytest.raises(ValueError, match="give the image alone"):
            method.attribute((image, words), additional_forward_args=(query,))


def test_absent_words_are_the_mean_embedding_or_what_is_given() -> None:
    model, processor = build("llava")
    tokenizer = processor.tokenizer
    weight = model.get_input_embeddings().weight.detach()
    own = weight[None, 5:8]
    for given in (None, "mean"):
        found = word_baseline(model, tokenizer, own, given)
        torch.testing.assert_close(found, weight.mean(0).expand(1, 3, -1))
    pad = word_baseline(model, tokenizer, own, tokenizer.pad_token)
    assert torch.equal(pad, weight[tokenizer.pad_token_id].expand(1, 3, -1))
    assert not word_baseline(model, tokenizer, own, 0).any()
    each = torch.randn(3, 32)
    assert torch.equal(word_baseline(model, tokenizer, own, each)[0], each)
    for bad, message in [
        ("a cat", "is 2 tokens"),
        (torch.zeros(5), "got embeddings"),
        (float("nan"), "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            word_baseline(model, tokenizer, own, bad)


def test_words_on_both_sides_of_a_image_stay_apart(mllm: MLLM) -> None:
    parts = [
        {"type": "text", "text": "what cat"},
        {"type": "image"},
        {"type": "text", "text": "dog is it ?"},
    ]
    inp = ImageTextInput(IMAGE, messages=[{"role": "user", "content": parts}])
    _, query = mllm.prepare(inp, target="a cat")
    mask = mllm.word_mask(query)[0, :, 0].tolist()
    result = MLLMAttribution(LogitLens(mllm)).attribute(inp, target="a cat", include_prompt=True)
    assert result.output_words == ["what", "cat", "dog", "is", "it", "?", "a", "cat"]
    words = [word for word in result.words if word[0] < result.n_prompt]
    assert mask == [place for place, word in enumerate(words) for _ in word]


def test_a_token_number_is_no_baseline(mllm: MLLM) -> None:
    _, query = prepared(mllm)
    own = mllm.word_embeddings(query)
    with pytest.raises(ValueError, match=r"the integer 5 .*give its text"):
        word_baseline(mllm.model, mllm.tokenizer, own, 5)
