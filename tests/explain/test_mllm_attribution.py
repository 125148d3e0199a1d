"""The whole line, from an image and a question to maps and weights."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from captum.attr import (
    Attribution,
    FeatureAblation,
    InputXGradient,
    IntegratedGradients,
    LayerGradCam,
    NoiseTunnel,
    Occlusion,
    Saliency,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    AttendedLens,
    ImageTextInput,
    LogitLens,
    MLLMAttribution,
)
from captum_mllm.attr import AttentionMaps, ScaleAttribution
from captum_mllm.models.vocabulary import CHUNK
from tests.models.test_decoding import counted
from tests.models.test_mllm import random_image
from tests.models.test_model_unchanged import snapshot
from tests.models.tiny_models import FAMILIES, build, shared

PROMPT = "what is in the image ?"
ANSWER = "a cat and a dog"
SCALES = (0.5, 1.0, 2.0)


@pytest.fixture(params=FAMILIES)
def mllm(request: pytest.FixtureRequest) -> MLLM:
    return MLLM(*shared(request.param))


@pytest.fixture
def inp() -> ImageTextInput:
    return ImageTextInput(random_image(), PROMPT)


def arc(mllm: MLLM) -> Attribution:
    return ARC(MSEA(LogitLens(mllm)))


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5, 2.0), (1.0, 2.0)], ids=str)
def test_all_tokens_take_one_pass_for_each_scale(
    mllm: MLLM, inp: ImageTextInput, scales: tuple[float, ...]
) -> None:
    for weights in ("uniform", "confidence"):
        with counted(mllm) as passes:
            result = MLLMAttribution(arc(mllm)).attribute(
                inp, target=ANSWER, scales=scales, weights=weights
            )
        assert len(passes) == len(scales)
        assert [scale.scale for scale in result.scales] == list(scales)


def test_without_scale_one_the_words_own_probabilities_take_one_more(
    mllm: MLLM, inp: ImageTextInput
) -> None:
    with counted(mllm) as passes:
        MLLMAttribution(arc(mllm)).attribute(inp, target=ANSWER, scales=(0.5, 2.0))
    assert len(passes) == 3


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
@pytest.mark.parametrize("weights", ["uniform", "confidence"])
def test_a_gradient_method_takes_a_pass_for_each_token_and_scale_and_one_for_each_scale(
    family: str, weights: str
) -> None:
    mllm = MLLM(*shared(family))
    inp = ImageTextInput(random_image(84, 84), PROMPT)
    n_prompt = len(PROMPT.split())
    n_answer = len(mllm.prepare(inp, target=ANSWER)[1].answer_ids)
    options = {"target": ANSWER, "scales": (1.0, 1.5), "weights": weights}
    kept: list[int] = []
    for wrap, n_tokens in ((lambda m: m, n_answer), (ARC, n_prompt + n_answer)):
        method = wrap(MSEA(Saliency(mllm)))
        kept.clear()
        with counted(mllm) as passes, patched_states(mllm, kept):
            result = MLLMAttribution(method).attribute(inp, **options)
        assert len(passes) == 2 * n_tokens + 2
        # Of the states of a pass, those of each scale are kept, not those of each token.
        assert len(set(kept)) == 2
        assert [len(scale.output_probs) for scale in result.scales] == [n_answer] * 2


@contextmanager
def patched_states(mllm: MLLM, seen: list[int]) -> Iterator[None]:
    """Notes the identity of every object of states that is given out."""
    given, held = mllm.states, []

    def states(*args: Any, **kwargs: Any) -> Any:
        held.append(given(*args, **kwargs))
        seen.append(id(held[-1]))
        return held[-1]

    mllm.states = states
    try:
        yield
    finally:
        del mllm.states


def test_methods_in_turn_give_the_scales_what_they_give_alone() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    inp = ImageTextInput(random_image(84, 84), PROMPT)
    image, query = mllm.prepare(inp, target="a cat")
    options = {"scales": (0.5, 1.0), "weights": "confidence", "normalize": "none"}
    msea = MSEA(InputXGradient(mllm))
    result = MLLMAttribution(msea).attribute(inp, target="a cat", **options)
    for token, target in enumerate(enumerate(query.answer_ids)):
        call = {"target": target, "additional_forward_args": (query,), **options}
        expected = msea.attribute(image, output_size="largest", **call)[0].sum(0)
        torch.testing.assert_close(result.image_attr[token], expected)
        by_scale = msea.attribute(image, combine=False, **call)
        for scale, maps in zip(result.scales, by_scale):
            torch.testing.assert_close(scale.image_attr[token], maps[0].sum(0))


def test_the_lens_of_a_layer_shares_its_pass_with_the_probabilities(
    mllm: MLLM, inp: ImageTextInput
) -> None:
    for method in (MSEA(LogitLens(mllm, layer=0)), ARC(MSEA(LogitLens(mllm, layer=0)))):
        with counted(mllm) as passes:
            MLLMAttribution(method).attribute(inp, target=ANSWER, scales=(1.0, 2.0))
        assert len(passes) == 2


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and not is_parameter_view(func):
                self.largest = max(self.largest, tensor.numel())
        return output


def is_parameter_view(func: Any) -> bool:
    """Whether an operation gives a view, such as the transposed output embedding."""
    return any(info.alias_info is not None for info in func._schema.returns)


PEAK = """
import resource, torch
torch.set_num_threads(1)
from captum_mllm import ARC, MLLM, MSEA, ImageTextInput, LogitLens, MLLMAttribution
from tests.explain.test_mllm_attribution import large_vocabulary
mllm, inp, query = large_vocabulary()
inputs = mllm.encode((inp.to_tensor(),), query).inputs
with torch.no_grad():
    mllm.model(**inputs, logits_to_keep=1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = peak()
explainer = MLLMAttribution(ARC(MSEA(LogitLens(mllm))))
explainer.attribute(inp, target=query.answer_ids, scales=(1.0, 2.0))
print(peak() - before)
"""


def large_vocabulary() -> tuple[MLLM, ImageTextInput, Any]:
    """A model with 150,000 words, an image, and an answer of 200 of them."""
    model, processor = build("llava")
    model.resize_token_embeddings(150_000, mean_resizing=False)
    mllm = MLLM(model.eval(), processor)
    inp = ImageTextInput(torch.rand(3, 168, 168), PROMPT)
    return mllm, inp, mllm.prepare(inp, target=list(range(3, 203)))[1]


def test_no_tensor_of_positions_by_vocabulary_is_made() -> None:
    mllm, inp, query = large_vocabulary()
    explainer = MLLMAttribution(arc(mllm))
    with LargestTensor() as seen:
        explainer.attribute(inp, target=query.answer_ids, scales=(1.0, 2.0))
    # The 206 words alone would have 31 million logits, all positions twice as many.
    assert seen.largest <= CHUNK
    with LargestTensor() as seen, torch.no_grad():
        mllm(inp.to_tensor(), query)
    assert seen.largest == 200 * 150_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads the largest resident set in KiB")
def test_peak_memory_stays_near_a_bare_forward_pass() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, timeout=300
    )
    more = float(run.stdout.split()[-1])
    # Logits of the 206 words in float32 would take 118 MiB, of all positions 450 MiB.
    assert more < 100, f"{more:.0f} MiB above a bare forward pass"


UNITS: dict[str, Callable[[MLLM], Attribution]] = {
    "logits": lambda mllm: ARC(MSEA(LogitLens(mllm), scales=(1.0, 2.0))),
    "": lambda mllm: TAM(LogitLens(mllm)),
    "attention": lambda mllm: MSEA(AttentionMaps(mllm, mode="raw"), scales=(1.0,)),
    "logits ": lambda mllm: FeatureAblation(mllm),
    " ": lambda mllm: Saliency(mllm),
}


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_of_maps_is_named_where_it_is_known(unit: str, inp: ImageTextInput) -> None:
    method = UNITS[unit](MLLM(*shared("qwen2_vl")))
    options = {"segments": (2, 2)} if isinstance(method, FeatureAblation) else {}
    result = MLLMAttribution(method).attribute(inp, target="a cat", **options)
    assert result.unit == unit.strip()
    assert result.finished is None


def test_the_parts_fit_each_other(mllm: MLLM, inp: ImageTextInput) -> None:
    result = MLLMAttribution(arc(mllm)).attribute(inp, target=ANSWER, scales=SCALES)
    n_words = result.n_prompt
    assert result.output_words == ANSWER.split()
    assert "".join(result.input_tokens[:n_words]).split() == PROMPT.split()
    assert result.input_tokens[n_words:] == result.output_tokens
    assert result.token_attr.shape == (5, n_words + 5)
    assert not result.token_attr[:, n_words:].triu().any()
    assert (result.token_attr >= 0).all()
    assert result.image_attr.min() >= 0
    assert result.image_attr.max() <= 1
    assert ((result.output_probs > 0) & (result.output_probs < 1)).all()
    for row, probability in zip(result.top_predictions, result.output_probs):
        probabilities = [value for _, value in row]
        assert len(row) == 5
        assert probabilities == sorted(probabilities, reverse=True)
        assert probability <= probabilities[0] + 1e-6


def test_the_maps_are_those_of_the_method(mllm: MLLM, inp: ImageTextInput) -> None:
    image, query = mllm.prepare(inp, target=ANSWER)
    for method, arguments in [
        (LogitLens(mllm), {}),
        (TAM(LogitLens(mllm)), {}),
        (arc(mllm), {"scales": SCALES, "output_size": (9, 13)}),
    ]:
        expected = method.attribute(image, additional_forward_args=(query,), **arguments)
        result = MLLMAttribution(method).attribute(inp, target=ANSWER, **arguments)
        assert torch.equal(result.image_attr, expected[:, 0])


def test_what_each_scale_saw_is_the_base_methods(mllm: MLLM, inp: ImageTextInput) -> None:
    image, query = mllm.prepare(inp, target=ANSWER)
    base = MSEA(LogitLens(mllm))
    alone = base.attribute(image, scales=SCALES, combine=False, additional_forward_args=(query,))
    for method in (base, ARC(base)):
        result = MLLMAttribution(method).attribute(inp, target=ANSWER, scales=SCALES)
        for scale, expected in zip(result.scales, alone):
            # A pass that records attention sums in another order on some processors.
            torch.testing.assert_close(scale.image_attr, expected[:, 0], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result.scales[1].output_probs, result.output_probs)


def test_scales_are_told_only_where_they_are_those_of_the_image() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    inp = ImageTextInput(random_image(84, 84), PROMPT)
    noisy = {"nt_samples": 2, "stdevs": 1e-9, "scales": (1.0, 0.5)}
    told = {
        "directly": (MSEA(NoiseTunnel(LogitLens(mllm))), noisy),
        "in suppression": (ARC(TAM(MSEA(LogitLens(mllm)))), {"scales": (1.0, 0.5)}),
        "around suppression": (MSEA(ARC(LogitLens(mllm))), {"scales": (1.0, 0.5)}),
    }
    for method, options in told.values():
        result = MLLMAttribution(method).attribute(inp, target="a cat", **options)
        assert [scale.scale for scale in result.scales] == [0.5, 1.0]
    for method, options in [
        (NoiseTunnel(MSEA(LogitLens(mllm))), noisy),
        (ARC(NoiseTunnel(MSEA(LogitLens(mllm)))), noisy),
        (MSEA(LogitLens(mllm)), {"scales": (1.0, 1.0)}),
        (LogitLens(mllm), {}),
    ]:
        result = MLLMAttribution(method).attribute(inp, target="a cat", **options)
        assert result.scales == []
        assert torch.isfinite(result.image_attr).all()


@pytest.mark.parametrize("base", [LogitLens, Saliency])
def test_the_users_own_callback_sees_the_scales_too(base: type[Attribution]) -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    inp = ImageTextInput(random_image(84, 84), PROMPT)
    for method in (MSEA(base(mllm)), ARC(MSEA(base(mllm))), NoiseTunnel(MSEA(base(mllm)))):
        seen: list[ScaleAttribution] = []
        tunnel = {"nt_samples": 1, "stdevs": 1e-9} if isinstance(method, NoiseTunnel) else {}
        result = MLLMAttribution(method).attribute(
            inp, target="a", scales=(0.5, 1.0), on_scale=seen.append, **tunnel
        )
        # The largest, which gives the size of the maps, runs first; another wrapper of Captum
        # calls MSEA's attribute, whose maps have the size of the image.
        order = [0.5, 1.0] if isinstance(method, NoiseTunnel) else [1.0, 0.5]
        assert [found.scale for found in seen] == order
        assert len(result.scales) in (0, 2)
        for found, scale in zip(reversed(seen), result.scales):
            maps = found.attributions.sum(1)[-1:]
            torch.testing.assert_close(scale.image_attr, maps)
            torch.testing.assert_close(scale.output_probs, found.probability[-1:])


def test_weights_of_text_come_from_the_method_that_has_them() -> None:
    mllm = MLLM(*shared("qwen2_vl"))
    inp = ImageTextInput(random_image(84, 84), PROMPT)

    def text(method: Attribution, **options: Any) -> torch.Tensor:
        return MLLMAttribution(method).attribute(inp, target=ANSWER, **options).token_attr

    once = {"scales": (1.0,)}
    arc, rollout, lens = ARC(LogitLens(mllm)), AttentionMaps(mllm), LogitLens(mllm)
    assert torch.equal(text(MSEA(arc), **once), text(arc))
    assert torch.equal(text(MSEA(rollout), **once), text(rollout))
    assert torch.equal(text(ARC(rollout)), text(rollout))
    scores = text(lens)
    assert torch.equal(text(arc), scores)
    assert torch.equal(text(MSEA(lens), **once), scores)
    assert torch.equal(text(TAM(lens)), scores)
    # What weighs no text leaves that to attention.
    attention = text(AttendedLens(mllm))
    assert not torch.equal(attention, scores)
    gradients = InputXGradient(mllm)
    for method in (gradients, MSEA(gradients), ARC(gradients)):
        options = once if isinstance(method, MSEA) else {}
        torch.testing.assert_close(text(method, **options), attention)
    weighed = text(ARC(gradients, text_floor=0.0))
    assert (weighed <= attention + 1e-6).all() and not torch.equal(weighed, attention)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"combine": False}, "each word has one map here"),
        ({"return_convergence_delta": True}, "each word has one map here"),
        ({"scales": "12"}, "got scales='12', expected a sequence of numbers"),
        ({"scales": ("1", "2")}, "expected a sequence of numbers"),
        ({"target": None, "gen_args": {"target": "a"}}, "gen_args holds 'target'"),
    ],
)
def test_options_that_clash_are_refused(arguments: dict[str, Any], message: str) -> None:
    mllm = MLLM(*shared("llava"))
    inp = ImageTextInput(random_image(84, 84), PROMPT)
    with pytest.raises(ValueError, match=message):
        MLLMAttribution(MSEA(LogitLens(mllm))).attribute(inp, **{"target": "a cat", **arguments})


@pytest.mark.parametrize("family", ["qwen2_vl", "internvl"])
def test_the_words_of_the_prompt_can_be_explained_too(family: str, inp: ImageTextInput) -> None:
    mllm = MLLM(*shared(family))
    for method in (LogitLens(mllm), TAM(LogitLens(mllm)), Saliency(mllm)):
        explainer = MLLMAttribution(method)
        alone = explainer.attribute(inp, target=ANSWER)
        both = explainer.attribute(inp, target=ANSWER, include_prompt=True)
        assert both.output_words == [*PROMPT.split(), *ANSWER.split()]
        assert both.output_tokens == both.input_tokens
        torch.testing.assert_close(both.image_attr[both.n_prompt :], alone.image_attr)
        assert torch.equal(both.token_attr[both.n_prompt :], alone.token_attr)
        assert both.map("cat").shape == (120, 180)
        assert both.to_html().startswith("<!")


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "internvl"])
def test_captums_methods_explain_each_token_in_turn(family: str) -> None:
    mllm = MLLM(*shared(family))
    inp = ImageTextInput(random_image(84, 84), PROMPT)
    image, query = mllm.prepare(inp, target="a cat")
    for method, arguments in [
        (Saliency(mllm), {}),
        (IntegratedGradients(mllm), {"n_steps": 2}),
        (MSEA(InputXGradient(mllm)), {"scales": (1.0, 0.5)}),
        (ARC(Saliency(mllm)), {}),
    ]:
        result = MLLMAttribution(method).attribute(inp, target="a cat", **arguments)
        assert len(result.image_attr) == 2
        assert torch.isfinite(result.image_attr).all()
        assert result.image_attr.any()
        if isinstance(method, Saliency):
            one = method.attribute(
                image, target=(1, query.answer_ids[1]), additional_forward_args=(query,)
            )
            torch.testing.assert_close(result.image_attr[1], one[0].sum(0))


@pytest.mark.parametrize("family", ["qwen2_vl", "llava", "internvl"])
def test_msea_wraps_captums_methods_on_an_mllm(family: str) -> None:
    mllm = MLLM(*shared(family))
    image, query = mllm.prepare(ImageTextInput(random_image(56, 84), PROMPT), target="a cat")
    call = {"target": (1, query.answer_ids[1]), "additional_forward_args": (query,)}
    for method, arguments in [
        (LogitLens(mllm), {}),
        (Saliency(mllm), {}),
        (IntegratedGradients(mllm), {"n_steps": 2, "baselines": torch.zeros_like(image)}),
        (Occlusion(mllm), {"sliding_window_shapes": (3, 28, 28), "strides": (3, 28, 28)}),
    ]:
        alone = method.attribute(image, **call, **arguments)
        same = MSEA(method).attribute(image, scales=(1.0,), **call, **arguments)
        if alone.shape == same.shape:
            assert torch.equal(same, alone)
        else:
            # LLaVA sees the square in the middle; what lies beside it does not count as zero.
            (layout,) = mllm.layouts(image, query)
            enlarged, share = (
                torch.nn.functional.interpolate(maps, size=(56, 84), mode="bilinear")
                for maps in (alone, layout.coverage()[None, None].float())
            )
            expected = torch.where(layout.coverage((56, 84)), enlarged / share, 0.0)
            torch.testing.assert_close(same, expected)
        both = MSEA(method).attribute(image, scales=(1.0, 1.5), **call, **arguments)
        assert both.shape == same.shape
        assert torch.isfinite(both).all()
        assert not torch.equal(both, same)
    noisy = {"nt_samples": 2, "stdevs": 0.05}
    for method in (NoiseTunnel(MSEA(Saliency(mllm))), MSEA(NoiseTunnel(Saliency(mllm)))):
        found = method.attribute(image, scales=(1.0, 0.5), **noisy, **call)
        assert found.shape == image.shape
        assert torch.isfinite(found).all()


def test_layer_grad_cam_runs_on_the_convolution_of_a_vision_tower() -> None:
    mllm = MLLM(*shared("llava"))
    image, query = mllm.prepare(ImageTextInput(random_image(84, 84), PROMPT), target="a cat")
    layer = mllm.model.get_encoder(modality="image").embeddings.patch_embedding
    maps = MSEA(LayerGradCam(mllm, layer)).attribute(
        image, scales=(1.0,), target=(1, query.answer_ids[1]), additional_forward_args=(query,)
    )
    assert maps.shape == (1, 1, 84, 84)
    assert not maps.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_give_nearly_the_same_maps(
    mllm: MLLM, inp: ImageTextInput, dtype: torch.dtype
) -> None:
    model, processor = build(mllm.model.config.model_type)
    half = MLLM(model.to(dtype), processor)
    for method in (LogitLens, lambda m: TAM(LogitLens(m)), arc):
        options = {"scales": SCALES} if method is arc else {}
        expected = MLLMAttribution(method(mllm)).attribute(inp, target=ANSWER, **options)
        found = MLLMAttribution(method(half)).attribute(inp, target=ANSWER, **options)
        difference = (found.image_attr - expected.image_attr).abs()
        assert difference.max() <= 2e-2 * expected.image_attr.abs().max().clamp(min=1)
        # The shares of words in a word, not their logits, which half precision rounds.
        assert (found.token_attr - expected.token_attr).abs().max() <= 2e-2


def test_results_are_bitwise_equal_from_run_to_run(mllm: MLLM, inp: ImageTextInput) -> None:
    first, second = (
        MLLMAttribution(arc(mllm)).attribute(inp, target=ANSWER, scales=SCALES) for _ in range(2)
    )
    assert torch.equal(first.image_attr, second.image_attr)
    assert torch.equal(first.token_attr, second.token_attr)
    assert torch.equal(first.output_probs, second.output_probs)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_the_models_own_answer_is_explained(family: str, inp: ImageTextInput) -> None:
    mllm = MLLM(*shared(family))
    result = MLLMAttribution(LogitLens(mllm)).attribute(inp, gen_args={"max_new_tokens": 4})
    assert 1 <= len(result.output_tokens) <= 4
    assert result.finished is (len(result.output_tokens) < 4)
    placeholder = mllm.tokenizer.decode([mllm.image_token_id])
    answer = mllm.prepare(inp, max_new_tokens=4)[1].answer_ids
    assert len(answer) == len(result.output_tokens)
    for token, probability, row in zip(answer, result.output_probs, result.top_predictions):
        # Greedy: the most probable one that is no placeholder; these are suppressed.
        best = next(candidate for candidate in row if candidate[0] != placeholder)
        assert best == (mllm.tokenizer.decode([token]), pytest.approx(float(probability)))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_is_left_as_it_was_also_after_an_exception(
    family: str, inp: ImageTextInput
) -> None:
    model, processor = build(family)
    mllm = MLLM(model, processor)
    MLLMAttribution(LogitLens(mllm)).attribute(inp, target=ANSWER)
    model.train()
    before = snapshot(model)
    MLLMAttribution(arc(mllm)).attribute(inp, target=ANSWER, scales=SCALES)
    MLLMAttribution(Saliency(mllm)).attribute(inp, target="a")
    assert snapshot(model) == before
    for bad in (
        {"target": ""},
        {"scales": ()},
        {"scales": (0.0,)},
        {"scales": (-1.0, 1.0)},
        {"scales": (torch.nan,)},
        {"scales": (1e-3,)},
    ):
        with pytest.raises(ValueError, match=r"empty|scale"):
            MLLMAttribution(arc(mllm)).attribute(inp, **{"target": ANSWER, **bad})
        assert snapshot(model) == before
        assert mllm._passes is None


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_a_scale_too_small_for_one_token_is_an_error(family: str) -> None:
    mllm = MLLM(*shared(family))
    inp = ImageTextInput(random_image(40, 90), PROMPT)
    with pytest.raises(ValueError, match="too few for one image token"):
        MLLMAttribution(arc(mllm)).attribute(inp, target=ANSWER, scales=(1.0, 0.25))


def test_bad_answers_and_inputs_are_refused(inp: ImageTextInput) -> None:
    mllm = MLLM(*shared("llava"))
    explainer = MLLMAttribution(LogitLens(mllm))
    with pytest.raises(ValueError, match="the answer to explain is empty"):
        explainer.attribute(inp, target="")
    with pytest.raises(ValueError, match="outside of the vocabulary"):
        explainer.attribute(inp, target=[10**6])
    with pytest.raises(ValueError, match="placeholder"):
        explainer.attribute(inp, target=[mllm.image_token_id])
    with pytest.raises(ValueError, match="leave out one of them"):
        explainer.attribute(inp, target="a", gen_args={"max_new_tokens": 3})
    with pytest.raises(TypeError, match="expected ImageTextInput"):
        explainer.attribute(inp.to_tensor(), target="a")
    with pytest.raises(TypeError, match="expected an instance of a Captum attribution"):
        MLLMAttribution(mllm)
    image, query = mllm.prepare(inp, target="a")
    for bad, error, message in [
        ((image, query, query), ValueError, "expected an image tensor"),
        ((image,), TypeError, "additional_forward_args"),
        ((image * 255, query), ValueError, "expected \\[0, 1\\]"),
        (((image * 255).byte(), query), ValueError, "dtype torch.uint8"),
        ((image * torch.nan, query), ValueError, "NaN"),
        ((image[0], query), ValueError, "expected an image tensor"),
        ((image[..., :1, :1], query), ValueError, "1 x 1 pixels"),
    ]:
        with pytest.raises(error, match=message):
            mllm(*bad)


def test_a_template_without_a_place_for_the_image_is_an_error(inp: ImageTextInput) -> None:
    model, processor = build("llava")
    processor.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(ValueError, match=r"leaves out '.*', all text of the last message"):
        MLLM(model, processor).prepare(inp, target="a")


def test_unknown_families_and_models_of_text_are_named() -> None:
    import transformers

    _, processor = shared("llava")
    text = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=10,
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
    )
    with pytest.raises(ValueError, match="'llama' is a model of text alone"):
        MLLM(text, processor)
    model, processor = build("llava")
    model.config.model_type = "my_vl"
    with pytest.raises(ValueError, match=r"'my_vl' .*is not known, expected one of .*qwen2_vl"):
        MLLM(model, processor)
    model, processor = build("llava")
    with pytest.raises(TypeError, match="expected the model's processor"):
        MLLM(model, processor.tokenizer)
