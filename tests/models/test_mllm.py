from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models import Query
from tests.models.tiny_models import FAMILIES, shared

PROMPT = "what is in the image ?"


def random_image(height: int = 120, width: int = 180, seed: int = 0) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(levels.numpy())


def prepared(mllm: MLLM, target: str | None = "a cat and a dog") -> tuple[Tensor, Query]:
    return mllm.prepare(ImageTextInput(random_image(), PROMPT), target=target)


@pytest.fixture(params=FAMILIES)
def mllm(request: pytest.FixtureRequest) -> MLLM:
    return MLLM(*shared(request.param))


def generated(mllm: MLLM, steps: int) -> tuple[Tensor, Query, Tensor]:
    """The answer and the logits of stepwise ``generate`` on the processor's own inputs."""
    image, query = prepared(mllm)
    inputs = mllm.processor(images=[random_image()], text=[query.prompt], return_tensors="pt")
    output = mllm.model.generate(
        **inputs,
        max_new_tokens=steps,
        min_new_tokens=steps,
        do_sample=False,
        suppress_tokens=[mllm.image_token_id],
        return_dict_in_generate=True,
        output_logits=True,
    )
    answer = output.sequences[0, inputs["input_ids"].shape[1] :]
    return (
        image,
        mllm.prepare(ImageTextInput(random_image(), PROMPT), answer)[1],
        torch.cat(output.logits),
    )


def test_teacher_forced_logits_equal_those_of_generate(mllm: MLLM) -> None:
    image, query, logits = generated(mllm, steps=8)
    torch.testing.assert_close(mllm(image, query)[0], logits, rtol=0, atol=1e-4)


def test_the_models_own_answer_is_the_one_of_generate(mllm: MLLM) -> None:
    _, query, _ = generated(mllm, steps=8)
    _, own = mllm.prepare(
        ImageTextInput(random_image(), PROMPT), max_new_tokens=8, min_new_tokens=8
    )
    special = set(mllm.tokenizer.all_special_ids)
    expected = list(query.answer_ids)
    while expected[-1] in special:
        expected.pop()
    assert list(own.answer_ids) == expected


def test_image_states_from_one_pass_do_not_depend_on_the_answer(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    _, other = prepared(mllm, target="yes no")
    first, second = mllm.states(image, query), mllm.states(image, other)
    torch.testing.assert_close(first.image[0], second.image[0], rtol=0, atol=1e-5)


def test_states_make_the_logits(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    states = mllm.states(image, query)
    logits = states.predicting @ mllm.vocabulary.head.weight.T
    both = mllm(image, query.including_prompt())
    torch.testing.assert_close(logits, both, rtol=0, atol=1e-5)
    torch.testing.assert_close(mllm(image, query), both[:, states.n_prompt :])


def test_target_probability_is_the_softmax_of_the_logits(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    probabilities = mllm(image, query).softmax(-1)
    expected = probabilities[0].gather(1, torch.tensor(query.answer_ids)[:, None])[:, 0]
    torch.testing.assert_close(mllm.target_probability(image, query), expected)
    two = image.repeat(2, 1, 1, 1)
    got = mllm.target_probability(two, query, target=[(0, 5), (2, 7)])
    torch.testing.assert_close(got, torch.stack([probabilities[0, 0, 5], probabilities[0, 2, 7]]))


def test_a_batch_equals_single_images(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    batch = torch.cat([image, image.flip(-1)])
    singles = torch.cat([mllm(part, query) for part in batch.split(1)])
    torch.testing.assert_close(mllm(batch, query), singles, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        mllm.states(batch, query).image[0][1:],
        mllm.states(image.flip(-1), query).image[0],
        rtol=0,
        atol=1e-5,
    )


def test_both_paths_to_the_pixels_give_nearly_the_same_logits(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    with torch.no_grad():
        processors = mllm(image, query)
    own = mllm(image.requires_grad_(), query)
    torch.testing.assert_close(own, processors, rtol=0, atol=2e-3)


def test_the_words_of_the_prompt_are_the_users(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    states = mllm.states(image, query)
    assert mllm.tokenizer.decode(states.ids[: states.n_prompt]).split() == PROMPT.split()
    assert states.ids[states.n_prompt :].tolist() == list(query.answer_ids)


def test_a_chat_history_is_context_and_several_images_have_a_place_each(mllm: MLLM) -> None:
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "one cat"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and two ?"}]},
    ]
    images = [random_image(), random_image(90, 70, seed=1)]
    inp = ImageTextInput(images, messages=messages, explained=1)
    image, query = mllm.prepare(inp, target="no")
    states = mllm.states(image, query)
    assert image.shape[-2:] == (90, 70)
    words = mllm.tokenizer.decode(states.ids[: states.n_prompt]).split()
    assert " ".join(words).replace(" ", "") == "onecatyesandtwo?"
    assert len(states.image) == len(states.layouts) == 1
    assert states.layouts[0].size == (90, 70)

    both, every = mllm.prepare(ImageTextInput(images, messages=messages), target="no")
    assert [part.shape[-2:] for part in both] == [(120, 180), (90, 70)]
    torch.testing.assert_close(mllm(*both, every), mllm(image, query))
    torch.testing.assert_close(mllm.states(*both, every).image[1], states.image[0])


def test_the_layer_is_read_through_the_final_norm(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    last = len(mllm.model.get_decoder().layers) - 1
    expected = mllm.states(image, query)
    for layer in (last, -1):
        states = mllm.states(image, query, layer=layer)
        torch.testing.assert_close(states.image[0], expected.image[0])
    assert not torch.allclose(mllm.states(image, query, layer=0).image[0], expected.image[0])
    with pytest.raises(ValueError, match="layer=7, expected one of the 2 layers"):
        mllm.states(image, query, layer=7)


def test_within_remember_an_equal_pass_is_made_once(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    passes = []
    handle = mllm.model.get_decoder().register_forward_hook(lambda *_: passes.append(1))
    try:
        with mllm.remember():
            first = mllm.states(image, query)
            assert mllm.states(image, query.including_prompt()) is first
            mllm.states(image.clone(), query)
            assert len(passes) == 2
            image += 0.0
            mllm.states(image, query)
            assert len(passes) == 3
        mllm.states(image, query)
        assert len(passes) == 4
    finally:
        handle.remove()


def test_the_scale_changes_what_the_model_sees(mllm: MLLM) -> None:
    image, query = prepared(mllm)
    counts = []
    for scale in (0.5, 1.0, 1.5, 2.0):
        scaled = torch.nn.functional.interpolate(image, scale_factor=scale, mode="bilinear")
        counts.append(mllm.states(scaled, query).layouts[0].n_tokens)
    assert counts == sorted(counts)
    assert counts[-1] > 2.5 * counts[1]
