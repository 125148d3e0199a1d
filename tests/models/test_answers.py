"""The answer is what the model says, however it is asked, or what the user gives."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from captum_mllm import MLLM, ImageTextInput
from captum_mllm.models.answers import generation_options
from captum_mllm.models.query import Answer
from tests.models.tiny_models import build, shared

IMAGE = torch.rand(3, 84, 112, generator=torch.Generator().manual_seed(0))
INPUT = ImageTextInput(IMAGE, "what is in the image ?")
LONG = {"max_new_tokens": 6, "min_new_tokens": 6}


@pytest.fixture
def mllm() -> MLLM:
    return MLLM(*shared("llava"))


def answer(mllm: MLLM, **options: Any) -> tuple[int, ...]:
    return mllm.prepare(INPUT, **options)[1].answer_ids


def test_an_answer_as_an_object_is_read_too(mllm: MLLM) -> None:
    given = answer(mllm, return_dict_in_generate=True, output_scores=True, **LONG)
    assert given == answer(mllm, **LONG)
    assert len(given) == 6


def test_beams_and_samples_give_one_answer(mllm: MLLM) -> None:
    inputs = mllm.encode((IMAGE[None],), mllm.prepare(INPUT, "a")[1]).inputs
    expected = mllm.model.generate(
        **inputs, num_beams=3, do_sample=False, suppress_tokens=[mllm.image_token_id], **LONG
    )
    length = inputs["input_ids"].shape[1]
    assert answer(mllm, num_beams=3, **LONG) == tuple(expected[0, length:].tolist())
    torch.manual_seed(0)
    first = answer(mllm, do_sample=True, **LONG)
    torch.manual_seed(0)
    assert answer(mllm, do_sample=True, **LONG) == first
    assert len(first) == 6


def test_the_users_suppressed_tokens_are_suppressed_along_with_the_placeholder() -> None:
    mllm = MLLM(*build("llava"))
    likely = answer(mllm, **LONG)[0]
    # A head that would say the placeholder first, and then what is likely.
    with torch.no_grad():
        weight = mllm.model.get_output_embeddings().weight
        weight[mllm.image_token_id] = 3 * weight[likely]
    assert answer(mllm, **LONG)[0] == likely
    found = answer(mllm, suppress_tokens=[likely], **LONG)
    assert not {likely, mllm.image_token_id} & set(found)
    config = GenerationConfig(suppress_tokens=[likely], do_sample=False, **LONG)
    assert answer(mllm, generation_config=config) == found
    mllm.model.generation_config.suppress_tokens = [likely]
    assert answer(mllm, **LONG) == found


def test_the_users_length_is_not_cut_by_ours(mllm: MLLM) -> None:
    length = mllm.encode((IMAGE[None],), mllm.prepare(INPUT, "a")[1]).inputs["input_ids"].shape[1]
    assert len(answer(mllm, max_length=length + 80, min_length=length + 80)) == 80
    assert len(answer(mllm, min_new_tokens=64)) == 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences above 1"),
        (
            {"generation_config": GenerationConfig(num_return_sequences=2, do_sample=True)},
            "num_return_sequences above 1",
        ),
        ({"input_ids": torch.tensor([[1]])}, "input_ids for generate, which the prompt"),
        ({"inputs_embeds": torch.zeros(1, 1, 32)}, "inputs_embeds for generate, which the prompt"),
        ({"labels": torch.tensor([[1]]), "inputs": 1}, "inputs, labels for generate"),
        ({"output_attentions": True}, "output_attentions for generate"),
        ({"top_p": float("nan"), "do_sample": True}, "got top_p=nan for generate"),
        ({"stop_strings": 3}, "does not take these arguments, stop_strings"),
        ({"repetition_penalty": -1.0}, "does not take these arguments, repetition_penalty"),
        ({"position_ids": torch.tensor([[1]])}, "position_ids for generate"),
        ({"target": "a cat", "num_beams": 2}, "both an answer and num_beams"),
        ({"max_tokens": 5}, "'max_tokens' for generate, which takes the arguments of"),
        ({"max_new_tokens": 0}, "max_new_tokens=0, expected an integer of at least 1"),
        ({"num_beams": "two"}, "num_beams='two', expected an integer"),
        ({"max_length": 3}, "max_length=3, but the prompt alone has"),
    ],
)
def test_conflicting_options_are_refused(mllm: MLLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        answer(mllm, **options)


def test_a_configuration_is_taken_for_the_options_that_it_sets(mllm: MLLM) -> None:
    config = GenerationConfig(max_new_tokens=3, min_new_tokens=3)
    assert generation_options(config) == {"max_new_tokens": 3, "min_new_tokens": 3}
    assert generation_options(None) == {}
    expected = answer(mllm, max_new_tokens=3, min_new_tokens=3)
    assert len(expected) == 3
    assert answer(mllm, generation_config=config) == expected
    assert (
        answer(mllm, generation_config=config, max_new_tokens=2, min_new_tokens=2) == expected[:2]
    )


def test_none_is_no_option(mllm: MLLM) -> None:
    for name in ("logits_processor", "stopping_criteria", "do_sample", "num_return_sequences"):
        assert answer(mllm, max_new_tokens=2, **{name: None}) == answer(mllm, max_new_tokens=2)


def test_an_error_of_the_model_is_not_of_the_arguments() -> None:
    mllm = MLLM(*build("llava"))

    def fail(*arguments: Any) -> None:
        raise TypeError("a fault of the model")

    mllm.model.get_input_embeddings().register_forward_hook(fail)
    with pytest.raises(TypeError, match=r"^a fault of the model$"):
        answer(mllm, **LONG)


@pytest.mark.parametrize("options", [5, "greedy", ["max_new_tokens"], {5: 6}])
def test_what_are_no_options_is_refused(options: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a dict such as .*GenerationConfig"):
        generation_options(options)
    with pytest.raises(TypeError, match="a generation_config of type dict"):
        generation_options({"generation_config": {}})


def end_with(model: PreTrainedModel, token: int | None) -> None:
    model.generation_config.eos_token_id = token


def test_an_answer_tells_whether_the_model_ended_it() -> None:
    mllm = MLLM(*build("llava"))
    end_with(mllm.model, None)
    said = answer(mllm, max_new_tokens=8)
    # A token that is said for the first time at place 3 or later ends the answer there.
    place = next(place for place in range(2, 8) if said[place] not in said[:place])
    assert mllm.prepare(INPUT, max_new_tokens=8)[1].finished is False
    end_with(mllm.model, said[place])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        query = mllm.prepare(INPUT, max_new_tokens=8)[1]
        assert query.answer_ids == said[: place + 1]
        assert query.finished is True
        assert mllm.prepare(INPUT, max_new_tokens=place)[1].finished is False
        assert mllm.prepare(INPUT)[1].finished is True
    assert mllm.prepare(INPUT, "a cat")[1].finished is None


def test_an_answer_that_is_cut_off_by_default_comes_with_a_warning() -> None:
    mllm = MLLM(*build("llava"))
    end_with(mllm.model, None)
    with pytest.warns(UserWarning, match="the answer is cut off at 64 tokens"):
        query = mllm.prepare(INPUT)[1]
    assert len(query.answer_ids) == 64
    assert query.finished is False


def test_padding_that_the_model_says_itself_does_not_end_its_answer() -> None:
    mllm = MLLM(*build("llava"))
    end_with(mllm.model, None)
    said = answer(mllm, max_new_tokens=8)
    mllm.model.generation_config.pad_token_id = said[3]
    assert mllm.prepare(INPUT, max_new_tokens=8)[1].finished is False


def test_an_answer_keeps_its_end_when_it_is_pickled_and_copied() -> None:
    said = Answer((1, 2), finished=False)
    for same in (pickle.loads(pickle.dumps(said)), copy.deepcopy(said)):
        assert same == (1, 2)
        assert same.finished is False


CHANGES: dict[str, Any] = {
    "repetition_penalty": 1.8,
    "encoder_repetition_penalty": 1.8,
    "no_repeat_ngram_size": 1,
    "num_beams": 3,
    "min_new_tokens": 6,
    "forced_eos_token_id": 9,
    "exponential_decay_length_penalty": (0, 1.5),
    "bad_words_ids": [[5]],
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_checkpoint_sets_does_not_change_greedy_answers(name: str) -> None:
    mllm = MLLM(*build("llava"))
    options = {"max_new_tokens": 10}
    expected = answer(mllm, **options)
    setattr(mllm.model.generation_config, name, CHANGES[name])
    with pytest.warns(UserWarning, match=f"generation_config sets {name}=.*left out"):
        image, query = mllm.prepare(INPUT, **options)
    assert query.answer_ids == expected
    # Each token is the most probable one.
    predicted = mllm(image, query)[0].argmax(-1)
    assert predicted.tolist() == list(expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mllm.prepare(INPUT, **options, **{name: CHANGES[name]})


def test_a_checkpoint_that_samples_answers_greedily_without_a_word(mllm: MLLM) -> None:
    mllm = MLLM(*build("llava"))
    expected = answer(mllm, **LONG)
    for name, value in {"do_sample": True, "temperature": 2.0, "top_k": 90, "top_p": 0.9}.items():
        setattr(mllm.model.generation_config, name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answer(mllm, **LONG) == expected


def test_an_answer_of_half_a_character_is_refused(mllm: MLLM) -> None:
    with pytest.raises(ValueError, match="lone surrogates"):
        mllm.prepare(INPUT, target="a \ud83d")


@pytest.mark.parametrize(
    "target",
    [
        [5, 9],
        np.array([[5, 9]], np.uint16),
        range(5, 10, 4),
        (5, 9),
        np.array([5, 9]),
        torch.tensor([5, 9]),
        torch.tensor([[5, 9]]),
    ],
)
def test_tokens_of_every_kind_are_read(mllm: MLLM, target: Any) -> None:
    ids = mllm.prepare(INPUT, target=target)[1].answer_ids
    assert ids == (5, 9)
    assert all(type(token) is int for token in ids)


@pytest.mark.parametrize(
    "target",
    [
        [True, False],
        [5.0, 9.0],
        [[5, 9]],
        ["a", "cat"],
        [None],
        7,
        torch.tensor([5.0, 9.0]),
        torch.tensor([True]),
        torch.tensor([[5], [9]]),
        torch.tensor(5),
        {"a": 1},
        {5: 1},
        {5, 9},
        b"\x05\x09",
        bytearray(b"\x05\x09"),
        pytest.param(memoryview(b"\x05\x09"), id="memoryview"),
    ],
    ids=str,
)
def test_what_are_no_tokens_is_refused(mllm: MLLM, target: Any) -> None:
    with pytest.raises(TypeError, match="expected a text, or its tokens"):
        mllm.prepare(INPUT, target=target)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("", "is empty"),
        ([], "is empty"),
        ([-1], "outside of the vocabulary"),
        ([10**6], "outside of the vocabulary"),
    ],
)
def test_tokens_that_make_no_answer_are_refused(mllm: MLLM, target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mllm.prepare(INPUT, target=target)


def test_unknown_words_are_explained_with_a_warning() -> None:
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    inp = ImageTextInput(torch.zeros(3, 112, 112), "Describe the image.")
    with pytest.warns(UserWarning, match=r"'a red bus'.*does not know.*<unk>"):
        mllm.prepare(inp, target="a red bus")
