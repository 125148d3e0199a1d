"""A base method as a user would write one: alone, under MSEA, ARC and TAM, in a batch, streamed."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from captum.attr import Attribution
from PIL import Image
from torch import Tensor

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    ImageTextInput,
    LogitLens,
    MLLMAttribution,
    TokenAttribution,
    TokenMaps,
)
from captum_mllm.demo import DEMO_PROMPT, demo_image
from captum_mllm.models.query import Query
from tests.models.test_decoding import counted


def plain(method: Attribution, **options: Any) -> MSEA:
    """MSEA that averages maps as they are."""
    return MSEA(method, normalize="none", **options)


class SoftmaxLens(TokenAttribution):
    """The probability of the token at each image token, instead of its logit."""

    reads_states_only = True

    def explain_tokens(
        self, images: tuple[Tensor, ...], query: Query, target: tuple[int, int] | None = None
    ) -> TokenMaps:
        mllm = self.forward_func
        states = mllm.states(*images, query)
        ids = states.ids if query.with_prompt else states.ids[states.n_prompt :]
        if target is not None:
            ids = torch.tensor([target[1]])
        maps = []
        for tokens, layout in zip(states.image, states.layouts):
            logits = mllm.vocabulary.scores(tokens[0], torch.arange(mllm.vocabulary.size))
            maps.append(layout.paint(logits.softmax(-1)[:, ids].mT).unsqueeze(1))
        return TokenMaps(tuple(maps))


INP = ImageTextInput(Image.open(demo_image()), DEMO_PROMPT)
ANSWER = "a red circle"
WRAPPERS = {
    "alone": lambda method: method,
    "MSEA": MSEA,
    "ARC": ARC,
    "TAM": TAM,
    "ARC(MSEA)": lambda method: ARC(MSEA(method)),
}


@pytest.fixture(scope="module")
def mllm() -> MLLM:
    return MLLM.from_pretrained("demo/qwen2-vl")


def test_the_method_is_at_most_30_lines_long() -> None:
    assert len(inspect.getsource(SoftmaxLens).splitlines()) <= 30


def test_alone_its_maps_are_probabilities_of_the_token_at_each_place(mllm: MLLM) -> None:
    image, query = mllm.prepare(INP, target=ANSWER)
    maps = SoftmaxLens(mllm).attribute(image, additional_forward_args=(query,))
    logits = LogitLens(mllm)
    everything = [
        logits.attribute(image, target=(0, token), additional_forward_args=(query,))
        for token in range(mllm.vocabulary.size)
    ]
    expected = torch.cat(everything).double().softmax(0)[list(query.answer_ids)]
    torch.testing.assert_close(maps.double(), expected, atol=1e-6, rtol=1e-5)
    one = SoftmaxLens(mllm).attribute(
        image, target=(2, query.answer_ids[2]), additional_forward_args=(query,)
    )
    assert torch.equal(one, maps[2:])


def test_under_msea_it_is_the_mean_of_the_scales(mllm: MLLM) -> None:
    image, query = mllm.prepare(INP, target=ANSWER)
    call: dict[str, Any] = {"additional_forward_args": (query,)}
    msea = MSEA(SoftmaxLens(mllm))
    arguments = {"scales": (1.0, 2.0), "output_size": (28, 28), "normalize": "none"}
    found = msea.attribute(image, **arguments, **call)
    by_scale = msea.attribute(image, combine=False, scales=(1.0, 2.0), **call)
    resized = [
        torch.nn.functional.interpolate(maps, (28, 28), mode="bilinear", antialias=True)
        for maps in by_scale
    ]
    torch.testing.assert_close(found, torch.stack(resized).mean(0))


@pytest.mark.parametrize("name", ["ARC", "TAM"])
def test_under_arc_and_tam_its_maps_lose_what_earlier_words_account_for(
    mllm: MLLM, name: str
) -> None:
    image, query = mllm.prepare(INP, target=ANSWER)
    lens = SoftmaxLens(mllm)
    method = ARC(lens) if name == "ARC" else TAM(lens, normalize=False, filter_size=None)
    found = method.attribute(image, additional_forward_args=(query,))
    everything = lens.attribute(image, additional_forward_args=(query.including_prompt(),)).double()
    states = mllm.states(image, query)
    ids, weights, taken = states.ids.tolist(), method.weights(states), []
    for row, t in enumerate(range(states.n_prompt, len(ids))):
        own, interference = everything[t], torch.zeros_like(everything[t])
        for j in range(t):
            if ids[j] != ids[t]:
                interference += weights[t, j].double() * everything[j]
        inner, energy = (own * interference).sum(), interference.square().sum()
        strength = 0.5 if name == "ARC" else 1.0
        expected = (own - strength * inner / energy * interference).relu()
        # What is within rounding of full cancellation becomes zero.
        largest = float(own.max())
        torch.testing.assert_close(found[row].double(), expected, atol=1e-5 * largest, rtol=1e-4)
        taken.append(float((own - expected).abs().max()) / largest)
    assert max(taken) > 1e-3


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_batch_makes_as_many_passes_as_the_logit_lens(mllm: MLLM, name: str) -> None:
    inputs = [INP, ImageTextInput(INP.images[0].flip(-1), "What is in the image?")]
    answers = [ANSWER, "a blue star"]
    passes = {}
    for method in (SoftmaxLens(mllm), LogitLens(mllm)):
        explainer = MLLMAttribution(WRAPPERS[name](method))
        with counted(mllm) as made:
            results = explainer.attribute_batch(inputs, answers)
        passes[type(method)] = len(made)
        for inp, answer, result in zip(inputs, answers, results):
            alone = explainer.attribute(inp, target=answer)
            torch.testing.assert_close(result.image_attr, alone.image_attr, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(result.token_attr, alone.token_attr, atol=1e-4, rtol=1e-4)
    assert passes[SoftmaxLens] == passes[LogitLens]


@pytest.mark.parametrize("name", ["alone", "ARC", "TAM"])
def test_it_is_streamed_without_passes_of_its_own(mllm: MLLM, name: str) -> None:
    explainer = MLLMAttribution(WRAPPERS[name](SoftmaxLens(mllm)))
    with counted(mllm) as made, explainer.stream(INP, gen_args={"max_new_tokens": 6}) as stream:
        words = [step.word for step in stream]
        result = stream.result
    assert words == result.output_words
    whole = explainer.attribute(INP, target=[int(i) for i in _ids(mllm, result)])
    torch.testing.assert_close(result.image_attr, whole.image_attr, atol=1e-4, rtol=1e-3)
    # A pass for each token that is generated, and none to explain it.
    assert len(made) == 6


def test_msea_is_streamed_at_scale_1_alone(mllm: MLLM) -> None:
    explainer = MLLMAttribution(MSEA(SoftmaxLens(mllm)))
    with pytest.raises(ValueError, match="sees the image at scale 1 alone"):
        explainer.stream(INP)
    with explainer.stream(INP, gen_args={"max_new_tokens": 2}, scales=(1.0,)) as stream:
        assert [step.word for step in stream]


def test_a_method_that_declares_nothing_says_why_it_is_not_streamed(mllm: MLLM) -> None:
    class Undeclared(SoftmaxLens):
        reads_states_only = False

    for method in (Undeclared(mllm), ARC(Undeclared(mllm)), MSEA(Undeclared(mllm))):
        with pytest.raises(ValueError, match="makes passes of its own"):
            MLLMAttribution(method).stream(INP, scales=(1.0,))


def test_unknown_options_are_refused(mllm: MLLM) -> None:
    image, query = mllm.prepare(INP, target=ANSWER)
    method: Attribution = SoftmaxLens(mllm)
    with pytest.raises(TypeError, match="does not take scales; it takes"):
        method.attribute(image, additional_forward_args=(query,), scales=(1.0,))


def _ids(mllm: MLLM, result: Any) -> list[int]:
    texts = "".join(result.output_tokens)
    return mllm.tokenizer(texts, add_special_tokens=False)["input_ids"]


def test_by_confidence_each_token_weighs_the_scales_by_its_own_probability(mllm: MLLM) -> None:
    image, query = mllm.prepare(INP, target=ANSWER)
    scales, size = (0.5, 1.0), (14, 14)
    found = plain(LogitLens(mllm), scales=scales, weights="confidence", output_size=size)
    maps = found.explain_tokens((image,), query).maps[0]
    total, weights = torch.zeros(3, 1, *size), torch.zeros(3)
    for scale in scales:
        side = round(224 * scale)
        resized = image
        if scale != 1:
            resized = torch.nn.functional.interpolate(
                image, (side, side), mode="bilinear", antialias=True
            )
        probability = mllm.target_probability(resized, query)
        lens = LogitLens(mllm).attribute(resized, additional_forward_args=(query,))
        lens = torch.nn.functional.interpolate(lens, size, mode="bilinear", antialias=True)
        total += probability[:, None, None, None] * lens
        weights += probability
    torch.testing.assert_close(maps, total / weights[:, None, None, None], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_method_of_ones_own_gives_finite_maps(value: float) -> None:
    class Overflowing(SoftmaxLens):
        def explain_tokens(self, *args: Any, **kwargs: Any) -> TokenMaps:
            found = super().explain_tokens(*args, **kwargs)
            found.maps[0][0, 0, 0, 0] = value
            return found

    lens = Overflowing(MLLM.from_pretrained("demo/qwen2-vl"))
    for method, scale in ((lens, "1"), (MSEA(lens, scales=(0.5,)), "0.5"), (ARC(lens), "1")):
        error = f"Overflowing gives attributions that are NaN or infinite, at scale {scale}"
        with pytest.raises(ValueError, match=error):
            MLLMAttribution(method).attribute(INP, target=ANSWER)


class Sampled(SoftmaxLens):
    """Has an option named as one of Captum's, which may be 0 here."""

    def explain_tokens(  # type: ignore[override]
        self,
        images: tuple[Tensor, ...],
        query: Query,
        target: tuple[int, int] | None = None,
        n_samples: int = 1,
    ) -> TokenMaps:
        return super().explain_tokens(images, query, target)


def test_an_option_of_ones_own_has_values_of_ones_own() -> None:
    mllm = MLLM.from_pretrained("demo/qwen2-vl")
    for method in (Sampled(mllm), plain(Sampled(mllm), scales=(1.0,))):
        result = MLLMAttribution(method).attribute(INP, ANSWER, n_samples=0)
        assert result.image_attr.isfinite().all()
