from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum.attr import (
    FeatureAblation,
    ImageMaskInput,
    LayerIntegratedGradients,
    LLMAttribution,
    LLMGradientAttribution,
    ShapleyValues,
    TextTemplateInput,
    TextTokenInput,
)
from PIL import Image
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from tests.models.tiny_models import FAMILIES, build

QUESTION = "what is it ?"
ANSWER = "a cat sits"
# LLMAttribution's own arguments, its defaults first.
FORWARDS = [(True, True), (True, False), (False, True), (False, False)]


def random_image(seed: int = 0) -> Image.Image:
    levels = np.random.default_rng(seed).integers(0, 256, (112, 140, 3), dtype=np.uint8)
    return Image.fromarray(levels)


@pytest.fixture(scope="module", params=FAMILIES)
def mllm(request: pytest.FixtureRequest) -> MLLM:
    model, processor = build(request.param)
    return MLLM(model.double(), processor)


def prompt_of(mllm: MLLM) -> str:
    messages = ImageTextInput(random_image(), QUESTION).messages
    return mllm.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def answer_ids(mllm: MLLM) -> list[int]:
    return mllm.tokenizer(ANSWER, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def log_probabilities(mllm: MLLM, image: Image.Image | None, text: str) -> Tensor:
    """Of each token of the answer, from one plain pass of the model for each of them."""
    answer = answer_ids(mllm)
    found = []
    for t, token in enumerate(answer):
        if image is None:
            inputs = {"input_ids": torch.tensor([mllm.tokenizer(text)["input_ids"]])}
        else:
            inputs = dict(mllm.processor(images=[image], text=[text], return_tensors="pt"))
        inputs["input_ids"] = torch.cat(
            [inputs["input_ids"], torch.tensor([answer[:t]], dtype=torch.long)], dim=1
        )
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        if "mm_token_type_ids" in inputs:
            types = inputs["input_ids"] == mllm.image_token_id
            inputs["mm_token_type_ids"] = types.long()
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].double()
        logits = mllm.model(**inputs).logits[0, -1]
        found.append(logits.log_softmax(-1)[token])
    return torch.stack(found)


def with_total(per_token: Tensor) -> Tensor:
    return torch.cat([per_token.sum(0, keepdim=True), per_token])


def explain(mllm: Any, method: Any, inp: Any, in_tokens: bool, cached: bool) -> Tensor:
    explainer = LLMAttribution(method, mllm.tokenizer)
    result = explainer.attribute(
        inp, target=ANSWER, forward_in_tokens=in_tokens, use_cached_outputs=cached
    )
    assert result.token_attr is not None
    return torch.cat([result.seq_attr[None], result.token_attr]).double()


def thirds() -> Tensor:
    mask = torch.zeros(112, 140, dtype=torch.int32)
    mask[:56, 70:] = 1
    mask[56:] = 2
    return mask


def mask_input(mllm: MLLM) -> ImageMaskInput:
    prompt = prompt_of(mllm)

    def process(image: Image.Image) -> Any:
        return mllm.processor(images=[image], text=[prompt], return_tensors="pt")

    return ImageMaskInput(random_image(), mask=thirds(), processor_fn=process)


def blanked(*segments: int) -> Image.Image:
    levels = np.array(random_image())
    for segment in segments:
        levels[(thirds() == segment).numpy()] = 255
    return Image.fromarray(levels)


@pytest.mark.parametrize(("in_tokens", "cached"), FORWARDS)
def test_ablated_segments_equal_ablation_by_hand(mllm: MLLM, in_tokens: bool, cached: bool) -> None:
    prompt = prompt_of(mllm)
    full = log_probabilities(mllm, random_image(), prompt)
    expected = torch.stack(
        [full - log_probabilities(mllm, blanked(segment), prompt) for segment in range(3)], dim=1
    )
    assert expected.abs().max() > 1e-3
    method = FeatureAblation(mllm.as_language_model())
    found = explain(mllm, method, mask_input(mllm), in_tokens, cached)
    torch.testing.assert_close(found, with_total(expected), rtol=0, atol=1e-7)


def test_shapley_values_of_segments_sum_to_the_difference(mllm: MLLM) -> None:
    prompt = prompt_of(mllm)
    full = log_probabilities(mllm, random_image(), prompt)
    expected = full - log_probabilities(mllm, blanked(0, 1, 2), prompt)
    method = ShapleyValues(mllm.as_language_model())
    found = explain(mllm, method, mask_input(mllm), *FORWARDS[0])
    torch.testing.assert_close(found.sum(1), with_total(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("in_tokens", "cached"), FORWARDS)
def test_ablated_tokens_equal_ablation_by_hand(mllm: MLLM, in_tokens: bool, cached: bool) -> None:
    language_model = mllm.as_language_model(random_image())
    text = language_model.expand(prompt_of(mllm))
    word = mllm.tokenizer.convert_tokens_to_ids("Ġis")
    skipped = set(mllm.tokenizer(text)["input_ids"]) - {word}
    # "no" is a token of its own, so that the text by hand has the same tokens.
    baseline = mllm.tokenizer.convert_tokens_to_ids("Ġno")
    inp = TextTokenInput(text, mllm.tokenizer, baselines=baseline, skip_tokens=sorted(skipped))
    assert inp.values == ["Ġis"]
    full = log_probabilities(mllm, random_image(), prompt_of(mllm))
    without = log_probabilities(mllm, random_image(), prompt_of(mllm).replace(" is", " no"))
    expected = (full - without)[:, None]
    assert expected.abs().max() > 1e-4
    found = explain(mllm, FeatureAblation(language_model), inp, in_tokens, cached)
    torch.testing.assert_close(found, with_total(expected), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("in_tokens", "cached"), FORWARDS)
def test_ablated_words_of_a_template_equal_ablation_by_hand(
    mllm: MLLM, in_tokens: bool, cached: bool
) -> None:
    language_model = mllm.as_language_model(random_image())
    template = prompt_of(mllm).replace("what is", "{} {}")
    inp = TextTemplateInput(
        language_model.expand(template), values=["what", "is"], baselines=["dog", "red"]
    )
    full = log_probabilities(mllm, random_image(), template.format("what", "is"))
    expected = torch.stack(
        [
            full - log_probabilities(mllm, random_image(), template.format(*words))
            for words in (("dog", "is"), ("what", "red"))
        ],
        dim=1,
    )
    assert expected.abs().max() > 1e-4
    found = explain(mllm, FeatureAblation(language_model), inp, in_tokens, cached)
    torch.testing.assert_close(found, with_total(expected), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("in_tokens", "cached"), FORWARDS)
def test_text_without_a_image_does_not_remember_an_earlier_image(
    mllm: MLLM, in_tokens: bool, cached: bool
) -> None:
    # The model's own positions go on from the last image that it saw.
    inputs = mllm.processor(images=[random_image()], text=[prompt_of(mllm)], return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].double()
    mllm.model(**inputs)
    inp = TextTemplateInput("{} is it ?", values=["what"], baselines=["dog"])
    expected = torch.stack(
        [
            log_probabilities(mllm, None, "what is it ?")
            - log_probabilities(mllm, None, "dog is it ?")
        ],
        dim=1,
    )
    found = explain(mllm, FeatureAblation(mllm.as_language_model()), inp, in_tokens, cached)
    torch.testing.assert_close(found, with_total(expected), rtol=0, atol=1e-7)


def test_gradients_of_embeddings_sum_to_the_difference_that_the_image_is_part_of(
    mllm: MLLM,
) -> None:
    prompt = prompt_of(mllm)
    totals = []
    for seed in (0, 1):
        language_model = mllm.as_language_model(random_image(seed))
        text = language_model.expand(prompt)
        word = mllm.tokenizer.convert_tokens_to_ids("Ġis")
        baseline = mllm.tokenizer.convert_tokens_to_ids("Ġno")
        skipped = set(mllm.tokenizer(text)["input_ids"]) - {word}
        inp = TextTokenInput(text, mllm.tokenizer, baselines=baseline, skip_tokens=sorted(skipped))
        layer = language_model.get_input_embeddings()
        explainer = LLMGradientAttribution(
            LayerIntegratedGradients(language_model, layer), mllm.tokenizer
        )
        found = explainer.attribute(inp, target=ANSWER, n_steps=20).token_attr
        assert found is not None
        full = log_probabilities(mllm, random_image(seed), prompt)
        without = log_probabilities(mllm, random_image(seed), prompt.replace(" is", " no"))
        torch.testing.assert_close(found.sum(1), full - without, rtol=1e-2, atol=1e-6)
        totals.append(found.sum(1))
    assert not torch.allclose(*totals, rtol=1e-2)


def test_generates_what_the_model_generates(mllm: MLLM) -> None:
    options = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False}
    suppressed = {"suppress_tokens": [mllm.image_token_id]}
    inputs = mllm.processor(images=[random_image()], text=[prompt_of(mllm)], return_tensors="pt")
    inputs["pixel_values"] = inputs["pixel_values"].double()
    expected = mllm.model.generate(**inputs, **options, **suppressed)
    # A type for each token and a mask are what Captum leaves out.
    bare = {name: inputs[name] for name in inputs if name.startswith(("pixel", "image", "input"))}
    assert mllm.as_language_model().generate(**bare, **options).tolist() == expected.tolist()
    bound = mllm.as_language_model(random_image())
    assert bound.generate(inputs["input_ids"], **options).tolist() == expected.tolist()


def test_several_images_are_bound_in_order(mllm: MLLM) -> None:
    placeholder = mllm.processor.image_token
    text = f"{placeholder} a {placeholder} b"
    small = random_image(1).resize((56, 84))
    inputs = dict(
        mllm.processor(images=[[random_image(), small]], text=[text], return_tensors="pt")
    )
    inputs["pixel_values"] = inputs["pixel_values"].double()
    language_model = mllm.as_language_model(random_image(), small)
    ids = torch.tensor([mllm.tokenizer(language_model.expand(text))["input_ids"]])
    assert ids.tolist() == inputs["input_ids"].tolist()
    with torch.no_grad():
        torch.testing.assert_close(
            language_model(ids).logits, mllm.model(**inputs, use_cache=False).logits
        )


def test_padded_rows_equal_single_ones(mllm: MLLM) -> None:
    language_model = mllm.as_language_model(random_image())
    texts = [language_model.expand(prompt_of(mllm)), language_model.expand(prompt_of(mllm)[:-9])]
    rows = [mllm.tokenizer(text)["input_ids"] for text in texts]
    length = max(map(len, rows))
    ids = torch.tensor([[mllm.tokenizer.pad_token_id] * (length - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows])
    with torch.no_grad():
        together = language_model(ids, attention_mask=mask, use_cache=True)
        nxt = torch.full((2, 1), 5)
        later = language_model(
            torch.cat([ids, nxt], dim=1),
            attention_mask=mask,
            past_key_values=together.past_key_values,
            use_cache=True,
        )
        for index, row in enumerate(rows):
            alone = language_model(torch.tensor([[*row, 5]])).logits[0]
            torch.testing.assert_close(together.logits[index, -1], alone[-2])
            torch.testing.assert_close(later.logits[index, -1], alone[-1])


def test_the_model_is_left_as_it_was(mllm: MLLM) -> None:
    base = mllm.model.base_model
    # Where the model keeps how far the positions of the last image reached.
    reached = torch.tensor([[-12345]])
    base.rope_deltas = reached
    mllm.model.train()
    with torch.no_grad():
        mllm.as_language_model()(**mask_input(mllm).to_model_input(), use_cache=True)
    assert all(module.training for module in mllm.model.modules())
    assert base.rope_deltas is reached
    assert all(part.grad is None and part.requires_grad for part in mllm.model.parameters())
    mllm.model.eval()


def test_has_what_captum_asks_a_model_for(mllm: MLLM) -> None:
    language_model = mllm.as_language_model()
    assert language_model.device == mllm.device
    assert language_model.dtype == torch.float64
    assert language_model.config is mllm.model.config
    assert not language_model.training
    assert {id(part) for part in language_model.parameters()} == {
        id(part) for part in mllm.model.parameters()
    }


def test_placeholders_without_their_image_are_refused(mllm: MLLM) -> None:
    bound = mllm.as_language_model(random_image())
    inp = TextTokenInput(bound.expand(prompt_of(mllm)), mllm.tokenizer)
    ids = inp.inp_tensor
    with pytest.raises(ValueError, match=r"image token\(s\), expected 0 for 0 image\(s\)"):
        mllm.as_language_model()(ids)
    with pytest.raises(ValueError, match=r"has \[0\] image token"):
        bound(torch.tensor([[5, 6, 7]]))
    with pytest.raises(ValueError, match="skip_tokens of TextTokenInput"):
        LLMAttribution(FeatureAblation(bound), mllm.tokenizer).attribute(inp, target=ANSWER)


@pytest.mark.parametrize("count", [0, 2])
def test_a_text_is_expanded_with_one_placeholder_for_each_image(mllm: MLLM, count: int) -> None:
    text = mllm.processor.image_token * count
    with pytest.raises(ValueError, match=rf"the text has {count} placeholder\(s\).*1 image"):
        mllm.as_language_model(random_image()).expand(text)
