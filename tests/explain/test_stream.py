"""Words come as they are said, with the explanations that they have in the whole answer."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from captum.attr import Attribution, Saliency
from PIL import Image

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    AttentionMaps,
    ImageTextInput,
    LogitLens,
    MLLMAttribution,
)
from captum_mllm.demo import DEMO_PROMPT, demo_image
from captum_mllm.explain import AnswerWord
from captum_mllm.explain.stream import Lockstep, ended_words
from captum_mllm.models.words import group_words, token_texts
from tests.models.test_decoding import asked, counted
from tests.models.test_model_unchanged import snapshot, used
from tests.models.tiny_models import FAMILIES, shared, tokenizer

LONG = {"max_new_tokens": 10, "min_new_tokens": 10}
METHODS: dict[str, Callable[[MLLM], Attribution]] = {
    "LogitLens": LogitLens,
    "TAM": lambda mllm: TAM(LogitLens(mllm)),
    "ARC": lambda mllm: ARC(LogitLens(mllm), image_agreement=True),
    "ARC around MSEA": lambda mllm: ARC(MSEA(LogitLens(mllm))),
}


@pytest.fixture(params=FAMILIES)
def mllm(request: pytest.FixtureRequest) -> MLLM:
    return MLLM(*shared(request.param))


@pytest.mark.parametrize("name", METHODS)
def test_words_have_the_explanations_that_they_have_in_the_whole_answer(
    mllm: MLLM, name: str
) -> None:
    options = {"scales": (1.0,)} if "MSEA" in name else {}
    explainer = MLLMAttribution(METHODS[name](mllm))
    inp = asked((84, 168))
    with counted(mllm) as passes, explainer.stream(inp, gen_args=LONG, **options) as stream:
        steps = list(stream)
        result = stream.result
    assert len(passes) == 10
    expected = explainer.attribute(inp, gen_args=LONG, **options)
    assert [step.word for step in steps] == result.output_words == expected.output_words
    assert result.method == expected.method
    assert result.finished is expected.finished is False
    assert [scale.scale for scale in result.scales] == [scale.scale for scale in expected.scales]
    for own, other in (
        (result.image_attr, expected.image_attr),
        (result.token_attr, expected.token_attr),
        (result.output_probs, expected.output_probs),
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    for step, word in zip(steps, expected.words, strict=True):
        assert step.position == word[0]
        assert step.tokens == tuple(expected.output_tokens[token] for token in word)
        torch.testing.assert_close(
            torch.from_numpy(step.map),
            torch.from_numpy(expected.map((word[0], word[-1] + 1))),
            rtol=1e-4,
            atol=1e-5,
        )
        earlier = expected.token_attr[list(word)].sum(0)[: expected.n_prompt + word[0]]
        torch.testing.assert_close(step.token_attr, earlier, rtol=1e-4, atol=1e-5)
        probability = expected.output_probs[list(word)].prod()
        assert step.probability == pytest.approx(float(probability), rel=1e-4)


def test_a_word_comes_as_soon_as_the_next_token_begins_another() -> None:
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    with counted(mllm) as passes:
        inp = ImageTextInput(Image.open(demo_image()), DEMO_PROMPT)
        stream = MLLMAttribution(LogitLens(mllm)).stream(inp, gen_args=LONG)
        assert not passes
        for step in stream:
            if len(passes) < 10:
                assert len(passes) == step.position + len(step.tokens) + 1
                with pytest.raises(RuntimeError, match="has not ended"):
                    _ = stream.result
        assert len(passes) == 10
    assert list(stream) == []
    assert len(stream.result.output_tokens) == 10


def test_sampled_answers_stream_too() -> None:
    mllm = MLLM(*shared("llava"))
    explainer = MLLMAttribution(TAM(LogitLens(mllm)))
    options = {"do_sample": True, **LONG}
    torch.manual_seed(0)
    words = [step.word for step in explainer.stream(asked(), gen_args=options)]
    torch.manual_seed(0)
    assert words == explainer.attribute(asked(), gen_args=options).output_words


@pytest.mark.parametrize("options", [{"num_beams": 2}, {"use_cache": False}], ids=str)
def test_answers_that_are_not_said_token_by_token_are_refused(options: dict[str, Any]) -> None:
    mllm, _, _ = used("qwen2_vl")
    before = snapshot(mllm.model)
    stream = MLLMAttribution(LogitLens(mllm)).stream(asked(), gen_args={**options, **LONG})
    with pytest.raises(ValueError, match="made token by token"):
        list(stream)
    assert snapshot(mllm.model) == before


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda mllm: ARC(MSEA(LogitLens(mllm))), {}, "sees the image at scale 1 alone"),
        (lambda mllm: MSEA(LogitLens(mllm)), {"scales": (0.5, 1.0)}, "at scale 1 alone"),
        (lambda mllm: LogitLens(mllm, layer=0), {}, "leave out the layer"),
        (AttentionMaps, {}, "makes passes of its own"),
        (lambda mllm: TAM(Saliency(mllm)), {}, "Saliency makes passes of its own"),
    ],
)
def test_methods_that_need_more_are_refused_at_once(
    make: Callable[[MLLM], Attribution], options: dict[str, Any], message: str
) -> None:
    mllm = MLLM(*shared("llava"))
    with counted(mllm) as passes, pytest.raises(ValueError, match=message):
        MLLMAttribution(make(mllm)).stream(asked(), **options)
    assert not passes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrast": {"a": "b"}}, "of a word that is not said yet"),
        ({"target": "a cat"}, "what the model says"),
        ({"segments": (2, 2)}, "segments"),
        ({"include_prompt": True}, "include_prompt"),
        ({"n_steps": 5}, "does not take n_steps"),
    ],
)
def test_what_a_stream_does_not_take_is_refused_by_name(
    options: dict[str, Any], message: str
) -> None:
    mllm = MLLM(*shared("llava"))
    with counted(mllm) as passes, pytest.raises(TypeError, match=message):
        MLLMAttribution(LogitLens(mllm)).stream(asked(), **options)
    assert not passes


def test_the_result_of_a_stream_has_reasons_and_signals_too() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    explainer = MLLMAttribution(ARC(LogitLens(mllm)))
    more: dict[str, Any] = {"reasons": "exact", "diagnosis": True, "top_predictions": 2}
    with explainer.stream(asked(), gen_args=LONG, **more) as stream:
        list(stream)
    expected = explainer.attribute(asked(), gen_args=LONG, **more)
    assert stream.result.reasons is not None and expected.reasons is not None
    values = (stream.result.reasons.values, expected.reasons.values)
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stream.result.signals, expected.signals, rtol=1e-4, atol=1e-5)
    assert {len(row) for row in stream.result.top_predictions} == {2}


def test_what_is_no_input_is_refused() -> None:
    explainer = MLLMAttribution(LogitLens(MLLM(*shared("llava"))))
    with pytest.raises(TypeError, match="expected ImageTextInput"):
        explainer.stream("an image")
    with pytest.raises(ValueError, match="generate does not take"):
        explainer.stream(asked(), gen_args={"target": "a cat"})


def close(stream: Any) -> None:
    stream.close()


def leave(stream: Any) -> None:
    with suppress(KeyboardInterrupt), stream:
        next(stream)
        raise KeyboardInterrupt


@pytest.mark.parametrize("family", ["qwen2_vl", "internvl"])
@pytest.mark.parametrize("end", [close, leave, None], ids=["closed", "left", "forgotten"])
def test_a_stream_that_is_not_used_up_leaves_the_model_as_it_was(
    family: str, end: Callable[[Any], None] | None
) -> None:
    mllm, _, _ = used(family)
    before = snapshot(mllm.model)
    with counted(mllm) as passes:
        stream = MLLMAttribution(TAM(LogitLens(mllm))).stream(asked(), gen_args=LONG)
        next(stream)
        if end is not None:
            end(stream)
        else:
            del stream
            gc.collect()
        assert len(passes) < 10
    assert snapshot(mllm.model) == before


def test_an_error_of_the_model_reaches_the_caller_and_leaves_the_model_as_it_was() -> None:
    mllm, _, _ = used("qwen2_vl")
    steps: list[int] = []

    def fail(*_: object) -> None:
        steps.append(1)
        if len(steps) == 6:
            raise RuntimeError("on purpose")

    handle = mllm.model.get_decoder().norm.register_forward_hook(fail)
    before = snapshot(mllm.model)
    stream = MLLMAttribution(LogitLens(mllm)).stream(asked(), gen_args=LONG)
    with pytest.raises(RuntimeError, match="on purpose"):
        list(stream)
    assert snapshot(mllm.model) == before
    handle.remove()


def test_an_explanation_between_two_words_does_not_disturb_the_stream(mllm: MLLM) -> None:
    explainer = MLLMAttribution(ARC(LogitLens(mllm)))
    alone = list(explainer.stream(asked(), gen_args=LONG))
    disturbed: list[AnswerWord] = []
    for step in explainer.stream(asked(), gen_args=LONG):
        disturbed.append(step)
        explainer.attribute(asked((56, 168)), gen_args={"max_new_tokens": 2})
    assert [step.word for step in disturbed] == [step.word for step in alone]
    for step, other in zip(disturbed, alone):
        assert torch.equal(step.image_attr, other.image_attr)


def test_streams_keep_the_callers_modes() -> None:
    mllm = MLLM(*shared("llava"))
    explainer = MLLMAttribution(LogitLens(mllm))
    seen: list[torch.dtype] = []
    down = mllm.model.get_decoder().layers[0].mlp.down_proj
    handle = down.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        list(explainer.stream(asked(), gen_args={"max_new_tokens": 2}))
    handle.remove()
    assert set(seen) == {torch.bfloat16}


TEXTS = [
    "T-shirt, don't; 3.5 and 1,000 (x2)!",
    "a 猫 と 犬.  Два кота - и 'пёс'.",
    "e\u0301te\u0301 👨\u200d👩\u200d👧 👍🏽 🇩🇪🇫🇷 _x_-y- '",
]


@pytest.mark.parametrize("seed", range(6))
def test_words_that_have_ended_stay_as_they_are(seed: int) -> None:
    choose = random.Random(seed)
    tok = tokenizer()
    characters = sorted(set("".join(TEXTS)))
    for _ in range(60):
        text = choose.choice([*TEXTS, "".join(choose.choices(characters, k=12))])
        ids = tok(text, add_special_tokens=False)["input_ids"]
        whole = group_words(token_texts(tok, ids))
        for count in range(1, len(ids)):
            ended = ended_words(token_texts(tok, ids[:count]))
            assert ended == whole[: len(ended)], (text, count)
    # Words do come while an answer goes on.
    assert len(ended_words(["a", " cat", " and", " dogs"])) == 3


def test_lockstep_runs_a_step_at_a_time() -> None:
    done: list[int] = []

    def work(pause: Callable[[], bool]) -> str:
        for step in range(3):
            done.append(step)
            if pause():
                return "closed"
        return "ended"

    running = Lockstep(work)
    with pytest.raises(RuntimeError, match="has not returned"):
        running.result()
    for count in (1, 2, 3):
        assert running.advance()
        assert len(done) == count
    assert not running.advance()
    assert not running.advance()
    assert running.result() == "ended"
    running.close()

    stopped = Lockstep(work)
    assert stopped.advance()
    stopped.close()
    assert not stopped.advance()
    assert stopped.result() == "closed"

    never_begun = Lockstep(work)
    never_begun.close()
    assert not never_begun.advance()
    assert len(done) == 4


def test_the_image_is_read_once(mllm: MLLM) -> None:
    image = torch.rand(3, 84, 84, generator=torch.Generator().manual_seed(0))
    explainer = MLLMAttribution(LogitLens(mllm))
    undisturbed = list(explainer.stream(ImageTextInput(image.clone(), "what ?"), gen_args=LONG))
    stream = explainer.stream(ImageTextInput(image, "what ?"), gen_args=LONG)
    words = [next(stream)]
    image.zero_()
    words += stream
    for found, expected in zip(words, undisturbed, strict=True):
        assert found.word == expected.word
        torch.testing.assert_close(found.image_attr, expected.image_attr)


@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_that_was_broken_off_has_no_result(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("no forward")

    mllm = MLLM(*shared("llava"))
    stream = MLLMAttribution(LogitLens(mllm)).stream(asked(), gen_args=LONG)
    next(stream)
    if fails:
        with monkeypatch.context() as patch:
            patch.setattr(type(mllm.model), "forward", forward)
            with pytest.raises(TypeError, match="no forward"):
                list(stream)
        assert not list(stream)
    else:
        stream.close()
        assert not list(stream)
    with pytest.raises(RuntimeError, match="was broken off"):
        _ = stream.result
