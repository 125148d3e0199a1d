"""Methods that perturb segments of the image and words together, for all tokens at once."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from captum.attr import (
    FeatureAblation,
    FeaturePermutation,
    IntegratedGradients,
    LayerGradCam,
    Lime,
    NoiseTunnel,
    Occlusion,
    Saliency,
    ShapleyValues,
    ShapleyValueSampling,
)
from PIL import Image
from torch import Tensor

from captum_mllm import ARC, MLLM, MSEA, TAM, ImageTextInput, LogitLens, MLLMAttribution
from captum_mllm.attr import AttentionMaps, TokenCam, grid_segments
from captum_mllm.demo import demo_image
from captum_mllm.models import Query
from captum_mllm.models.word_embeddings import word_baseline
from tests.attr.attributor_rows import LeastSquares, kernel_shap
from tests.attr.test_attributor_perturbations import shapley_values
from tests.models.test_decoding import counted
from tests.models.test_mllm import random_image
from tests.models.test_model_unchanged import snapshot
from tests.models.tiny_models import build, shared

PROMPT = "what lynx is it ?"
ANSWER = "a cat and a dog"
GRID = (2, 3)
families = pytest.mark.parametrize("family", ["qwen2_vl", "llava", "internvl"])


def tiny(family: str) -> MLLM:
    return MLLM(*shared(family))


def question(text: str = PROMPT) -> ImageTextInput:
    return ImageTextInput(random_image(84, 112), text)


class ByHand:
    """The logits of the answer's tokens with some segments and words, from passes of their own."""

    def __init__(self, mllm: MLLM, answer: bool = False, image: Any = 0.0) -> None:
        self.mllm = mllm
        self.image, self.query = mllm.prepare(question(), target=ANSWER)
        self.labels = grid_segments((84, 112), GRID)
        self.own = mllm.word_embeddings(self.query, answer)
        self.absent = word_baseline(mllm.model, mllm.tokenizer, self.own, None)
        self.words = mllm.word_mask(self.query, answer)[0, :, 0]
        self.hidden = image
        self.n_words = int(self.words.max()) + 1

    @torch.no_grad()
    def logits(self, segments: Tensor, words: Tensor) -> Tensor:
        image = torch.where(segments[self.labels], self.image, self.hidden)
        embeddings = torch.where(words[self.words][:, None], self.own, self.absent)
        logits = self.mllm(image, embeddings, self.query)[0]
        ids = torch.tensor(self.query.answer_ids)
        return logits.gather(1, ids[:, None])[:, 0]

    def without(self, index: int) -> Tensor:
        """One feature left out: a segment, or behind these a word."""
        kept = torch.ones(6 + self.n_words, dtype=torch.bool)
        kept[index] = index < 0
        return self.logits(kept[:6], kept[6:])


@pytest.mark.parametrize("words", ["prompt", "earlier"])
@families
def test_ablation_equals_ablation_by_hand(family: str, words: Any) -> None:
    mllm = tiny(family)
    hand = ByHand(mllm, words == "earlier")
    whole = hand.without(-1)
    result = MLLMAttribution(FeatureAblation(mllm)).attribute(
        question(), target=ANSWER, segments=GRID, words=words, perturbations_per_eval=4
    )
    assert result.image_attr.shape == (len(whole), 84, 112)
    for segment in range(6):
        expected = (whole - hand.without(segment))[:, None]
        found = result.image_attr[:, hand.labels == segment]
        torch.testing.assert_close(found, expected.expand_as(found), rtol=1e-4, atol=1e-6)
    attributed = torch.zeros(len(whole), len(result.input_tokens))
    for word in range(hand.n_words):
        tokens = (hand.words == word).nonzero()[:, 0]
        # The tokens of a word share what it is worth, so that their sum is that.
        value = (whole - hand.without(6 + word))[:, None] / len(tokens)
        attributed[:, tokens] = value.expand(-1, len(tokens))
    causal = attributed.tril(result.n_prompt - 1)
    torch.testing.assert_close(causal, attributed, rtol=0, atol=1e-6)
    torch.testing.assert_close(result.token_attr, causal, rtol=1e-4, atol=1e-6)
    assert len(hand.words) > hand.n_words
    assert result.token_attr[:, : result.n_prompt].any(1).all()
    assert result.token_attr[1:, result.n_prompt :].any() == (words == "earlier")


@pytest.mark.parametrize("name", ["demo/qwen2-vl", "llava", "internvl"])
def test_shapley_values_of_segments_and_words_sum_to_the_difference(name: str) -> None:
    if name.startswith("demo"):
        mllm = MLLM.from_pretrained(name)
        inp = ImageTextInput(Image.open(demo_image()), "Describe image")
        answer = "a striped red star"
    else:
        mllm, inp, answer = tiny(name), question("what ?"), ANSWER
    explainer = MLLMAttribution(ShapleyValues(mllm))
    result = explainer.attribute(inp, target=answer, segments=(1, 2), perturbations_per_eval=8)
    image, query = mllm.prepare(inp, target=answer)
    own = mllm.word_embeddings(query)
    absent = word_baseline(mllm.model, mllm.tokenizer, own, None)
    assert int(mllm.word_mask(query).max()) == 1
    labels = grid_segments(tuple(image.shape[-2:]), (1, 2))
    games: list[dict[tuple[bool, ...], float]] = [{} for _ in query.answer_ids]
    for kept in itertools.product((False, True), repeat=4):
        present = torch.tensor(kept)
        embeddings = torch.where(present[2:][mllm.word_mask(query)], own, absent)
        with torch.no_grad():
            logits = mllm(torch.where(present[:2][labels], image, 0.0), embeddings, query)[0]
        for game, row, token in zip(games, logits, query.answer_ids):
            game[kept] = row[token].item()
    for step, game in enumerate(games):
        per_segment = [result.image_attr[step][labels == index][0] for index in (0, 1)]
        weights = result.token_attr[step, : result.n_prompt]
        mask = mllm.word_mask(query)[0, :, 0]
        per_word = [weights[mask == index].sum() for index in (0, 1)]
        found = torch.stack([*per_segment, *per_word]).double()
        torch.testing.assert_close(found, shapley_values(game), rtol=1e-4, atol=1e-5)
        difference = game[(True,) * 4] - game[(False,) * 4]
        assert found.sum().item() == pytest.approx(difference, abs=1e-5)


def method_of(name: str, mllm: MLLM) -> tuple[Any, dict[str, Any]]:
    methods: dict[str, tuple[Any, dict[str, Any]]] = {
        "ablation": (FeatureAblation(mllm), {}),
        "occlusion": (Occlusion(mllm), {"sliding_window_shapes": (1, 2, 2)}),
        "sampling": (ShapleyValueSampling(mllm), {"n_samples": 3}),
        "kernel": (kernel_shap(mllm), {"n_samples": 30}),
        "lime": (Lime(mllm, interpretable_model=LeastSquares()), {"n_samples": 30}),
    }
    return methods[name]


@pytest.mark.parametrize("name", ["ablation", "occlusion", "sampling", "kernel", "lime"])
@families
def test_several_perturbations_at_a_time_give_the_same(family: str, name: str) -> None:
    mllm = tiny(family)
    results = []
    for at_once in (1, 3, 16):
        method, arguments = method_of(name, mllm)
        torch.manual_seed(0)
        results.append(
            MLLMAttribution(method).attribute(
                question(),
                target=ANSWER,
                segments=GRID,
                perturbations_per_eval=at_once,
                **arguments,
            )
        )
    assert results[0].image_attr.any()
    assert results[0].token_attr.any()
    for result in results[1:]:
        torch.testing.assert_close(result.image_attr, results[0].image_attr, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(result.token_attr, results[0].token_attr, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["ablation", "occlusion", "sampling", "kernel", "lime"])
def test_all_tokens_are_explained_from_the_same_passes(name: str) -> None:
    mllm = tiny("qwen2_vl")
    method, arguments = method_of(name, mllm)
    passes = []
    for answer in ("a", ANSWER):
        torch.manual_seed(0)
        with counted(mllm) as seen:
            MLLMAttribution(method).attribute(question(), target=answer, segments=GRID, **arguments)
        passes.append(len(seen))
    assert passes[0] == passes[1]
    if name == "ablation":
        # Six segments and five words, the whole, and one for the probabilities.
        assert passes[0] == 6 + 5 + 2


@pytest.mark.parametrize("name", ["kernel", "lime"])
def test_methods_in_turn_draw_the_same_for_each_token(name: str) -> None:
    mllm = tiny("llava")
    method, arguments = method_of(name, mllm)
    torch.manual_seed(0)
    whole = MLLMAttribution(method).attribute(question(), target=ANSWER, segments=GRID, **arguments)
    after = torch.rand(())
    torch.manual_seed(0)
    first = MLLMAttribution(method).attribute(
        question(), target=ANSWER.split()[0], segments=GRID, **arguments
    )
    torch.testing.assert_close(whole.image_attr[0], first.image_attr[0], rtol=1e-3, atol=1e-5)
    assert torch.rand(()) == after


def test_occlusion_has_windows_of_segments_and_of_words() -> None:
    mllm = tiny("llava")
    hand = ByHand(mllm)
    whole = hand.without(-1)
    options = {"target": ANSWER, "segments": GRID, "perturbations_per_eval": 4}
    explainer = MLLMAttribution(Occlusion(mllm))
    single = explainer.attribute(question(), **options)
    ablation = MLLMAttribution(FeatureAblation(mllm)).attribute(question(), **options)
    torch.testing.assert_close(single.image_attr, ablation.image_attr)
    torch.testing.assert_close(single.token_attr, ablation.token_attr)
    wide = explainer.attribute(
        question(), **options, sliding_window_shapes=((1, 2, 2), (2,)), strides=((1, 1, 1), (2,))
    )
    left, right = torch.zeros(2, 6, dtype=torch.bool), torch.ones(hand.n_words, dtype=torch.bool)
    left[0, [2, 5]] = True
    left[1, [0, 3]] = True
    drops = [whole - hand.logits(segments, right) for segments in left]
    corner = wide.image_attr[:, 0, 0]
    torch.testing.assert_close(corner, drops[0], rtol=1e-4, atol=1e-6)
    middle = wide.image_attr[:, 0, 56]
    torch.testing.assert_close(middle, (drops[0] + drops[1]) / 2, rtol=1e-4, atol=1e-6)
    kept = right.clone()
    kept[:2] = False
    drop = whole - hand.logits(torch.ones(6, dtype=torch.bool), kept)
    first = wide.token_attr[:, hand.words.tolist().index(0)]
    torch.testing.assert_close(first, drop, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("given", ["mean", 0.5, "tensor"])
def test_what_stands_in_the_place_of_the_absent_is_the_users(given: Any) -> None:
    mllm = tiny("qwen2_vl")
    image = question().to_tensor()
    baseline: Any = given
    shown: Any = given
    if given == "mean":
        shown = image.mean((-2, -1), keepdim=True)
    elif given == "tensor":
        baseline = shown = image.flip(-1)
    hand = ByHand(mllm, image=shown)
    hand.absent = word_baseline(mllm.model, mllm.tokenizer, hand.own, " ")
    whole = hand.without(-1)
    explainer = MLLMAttribution(FeatureAblation(mllm))
    result = explainer.attribute(
        question(), target=ANSWER, segments=GRID, baselines=(baseline, " ")
    )
    found = result.image_attr[:, hand.labels == 4][:, 0]
    torch.testing.assert_close(found, whole - hand.without(4), rtol=1e-4, atol=1e-6)
    tokens = (hand.words == 3).nonzero()[:, 0]
    found = result.token_attr[:, tokens].sum(1)
    torch.testing.assert_close(found, whole - hand.without(6 + 3), rtol=1e-4, atol=1e-6)
    # Under MSEA an image goes along with the scale.
    MLLMAttribution(MSEA(FeatureAblation(mllm))).attribute(
        question(), target="a", segments=GRID, baselines=(baseline, " "), scales=(0.5, 1.0)
    )


@pytest.mark.parametrize("words", [None, "earlier"])
@families
def test_under_msea_the_scales_are_averaged(family: str, words: Any) -> None:
    mllm = tiny(family)
    options = {"target": ANSWER, "segments": GRID, "words": words, "perturbations_per_eval": 8}
    method = FeatureAblation(mllm)
    plain = {"normalize": "none", **options}
    both = MLLMAttribution(MSEA(method)).attribute(question(), scales=(1.0, 2.0), **plain)
    each = [
        MLLMAttribution(MSEA(method)).attribute(question(), scales=(scale,), **options)
        for scale in (1.0, 2.0)
    ]
    alone = MLLMAttribution(method).attribute(question(), **options)
    torch.testing.assert_close(each[0].token_attr, alone.token_attr)
    torch.testing.assert_close(each[0].image_attr, alone.image_attr)
    torch.testing.assert_close(both.token_attr, (each[0].token_attr + each[1].token_attr) / 2)
    assert both.image_attr.shape[1:] == (168, 224)
    maps = [result.map((0, 1)) for result in (both, *each)]
    inside = (slice(10, 30), slice(40, 60))
    expected = (maps[1][inside] + maps[2][inside]) / 2
    torch.testing.assert_close(torch.tensor(maps[0][inside]), torch.tensor(expected))
    assert [scale.scale for scale in both.scales] == [1.0, 2.0]


@families
def test_arc_cleans_the_maps_of_segments_and_leaves_words_as_they_are(family: str) -> None:
    mllm = tiny(family)
    options: dict[str, Any] = {"target": ANSWER, "segments": GRID, "perturbations_per_eval": 8}
    for method in (FeatureAblation(mllm), MSEA(FeatureAblation(mllm))):
        scales = {"scales": (1.0, 1.5)} if isinstance(method, MSEA) else {}
        result = MLLMAttribution(ARC(method)).attribute(question(), **options, **scales)
        bare = MLLMAttribution(method).attribute(question(), **options, **scales)
        torch.testing.assert_close(result.token_attr, bare.token_attr)
        left = MLLMAttribution(ARC(method, suppress=None)).attribute(
            question(), **options, **scales
        )
        # LLaVA does not see what lies beside the square in the middle.
        seen = left.image_attr != 0
        torch.testing.assert_close(left.image_attr, bare.image_attr.relu() * seen)
        assert seen[bare.image_attr > 0].float().mean() > 0.7
        # Earlier tokens can only take away.
        cleaned = result.image_attr.flatten(1)
        assert (cleaned >= 0).all()
        assert not torch.allclose(cleaned, left.image_attr.flatten(1), atol=1e-3)
    with pytest.raises(ValueError, match="TAM weighs the earlier words by itself"):
        MLLMAttribution(TAM(FeatureAblation(mllm))).attribute(question(), **options, words="prompt")


def test_the_words_of_the_question_are_explained_by_those_before_them() -> None:
    mllm = tiny("llava")
    result = MLLMAttribution(FeatureAblation(mllm)).attribute(
        question(), target="a cat", segments=GRID, words="earlier", include_prompt=True
    )
    count = len(result.input_tokens)
    assert result.token_attr.shape == (count, count)
    assert not result.token_attr.triu().any()
    assert result.token_attr.tril(-1).any(1)[1:].all()
    assert result.to_html().startswith("<!")


@pytest.mark.parametrize("words", ["prompt", "earlier"])
@families
def test_gradients_of_image_and_words_are_those_of_captum(family: str, words: Any) -> None:
    mllm = tiny(family)
    image, query = mllm.prepare(question(), target="a cat")
    own = mllm.word_embeddings(query, words == "earlier")
    absent = word_baseline(mllm.model, mllm.tokenizer, own, None)
    method = IntegratedGradients(mllm)
    result = MLLMAttribution(method).attribute(question(), target="a cat", words=words, n_steps=3)
    for step, token in enumerate(query.answer_ids):
        maps, weights = method.attribute(
            (image, own),
            baselines=(torch.zeros_like(image), absent),
            target=(step, token),
            additional_forward_args=(query,),
            n_steps=3,
        )
        torch.testing.assert_close(result.image_attr[step], maps[0].sum(0).float())
        expected = F.pad(weights[0].sum(-1).float(), (0, len(result.input_tokens) - own.shape[1]))
        torch.testing.assert_close(result.token_attr[step], expected)
    for method, arguments in [
        (Saliency(mllm), {}),
        (MSEA(IntegratedGradients(mllm)), {"n_steps": 2, "scales": (1.0, 0.5)}),
        (NoiseTunnel(Saliency(mllm)), {"nt_samples": 2, "stdevs": (0.05, 0.001)}),
    ]:
        found = MLLMAttribution(method).attribute(
            question(), target="a cat", words=words, **arguments
        )
        assert found.image_attr.any()
        assert found.token_attr[:, : found.n_prompt].any(1).all()


def test_the_method_is_told_with_its_features() -> None:
    mllm = tiny("llava")
    explainer = MLLMAttribution(FeatureAblation(mllm))
    result = explainer.attribute(question(), target="a", segments=GRID, perturbations_per_eval=9)
    assert result.method == (
        "FeatureAblation(perturbations_per_eval=9) over a grid of 2 x 3 and the words of the prompt"
    )
    labels = grid_segments((84, 112), GRID)
    result = explainer.attribute(question(), target="a", segments=labels, words="earlier")
    assert result.method == "FeatureAblation over 6 segments and the earlier words"


@pytest.mark.parametrize("method", [FeatureAblation, ShapleyValueSampling, kernel_shap])
def test_a_bar_shows_the_progress(method: Any, capsys: pytest.CaptureFixture[str]) -> None:
    mllm = tiny("llava")
    arguments = {} if method is FeatureAblation else {"n_samples": 4}
    MLLMAttribution(method(mllm)).attribute(
        question(), target="a cat", segments=(1, 2), show_progress=True, **arguments
    )
    # One bar, however often a slow machine draws it.
    assert capsys.readouterr().err.count("\n") == 1
    MLLMAttribution(method(mllm)).attribute(
        question(), target="a cat", segments=(1, 2), **arguments
    )
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    ("make", "arguments", "error", "message"),
    [
        (FeaturePermutation, {"segments": GRID}, TypeError, "does not remove segments"),
        (Saliency, {"segments": GRID}, TypeError, "Saliency does not remove segments"),
        (LogitLens, {"segments": GRID}, TypeError, "does not remove segments"),
        (LogitLens, {"words": "prompt"}, ValueError, "by itself"),
        (TokenCam, {"words": "prompt"}, TypeError, "does not ask for the words"),
        (FeatureAblation, {"words": "prompt"}, TypeError, r"give it `segments`, \(1, 1\)"),
        (AttentionMaps, {"words": "prompt"}, ValueError, "by itself"),
        (
            lambda mllm: LayerGradCam(mllm, mllm.model.get_decoder().layers[0]),
            {"words": "prompt"},
            TypeError,
            "does not ask for the words",
        ),
        (IntegratedGradients, {"words": "all"}, ValueError, "words='all', expected 'prompt'"),
        (FeatureAblation, {"segments": (9, 200)}, ValueError, "at most one for each"),
        (FeatureAblation, {"segments": GRID, "strides": 1}, ValueError, "has no windows"),
        (
            FeatureAblation,
            {"segments": GRID, "baselines": (0, 0, 0)},
            ValueError,
            r"expected \(image, words\)",
        ),
        (
            FeatureAblation,
            {"segments": GRID, "baselines": (torch.zeros(3, 5, 5), None)},
            ValueError,
            "do not fit inputs",
        ),
        (
            IntegratedGradients,
            {"words": "prompt", "baselines": (0, "two words")},
            ValueError,
            "expected the text of one token",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_the_model_is_as_it_was(
    make: Any, arguments: dict[str, Any], error: Any, message: str
) -> None:
    mllm = MLLM(*build("llava"))
    mllm.prepare(question(), target="a cat")
    before = snapshot(mllm.model)
    with pytest.raises(error, match=message):
        MLLMAttribution(make(mllm)).attribute(question(), target="a cat", **arguments)
    assert snapshot(mllm.model) == before
    assert mllm._passes is None


def test_a_failing_pass_leaves_the_model_and_the_method_as_they_were() -> None:
    mllm = MLLM(*build("internvl"))
    MLLMAttribution(LogitLens(mllm)).attribute(question(), target="a cat")
    method = FeatureAblation(mllm)
    before = snapshot(mllm.model)
    seen: list[Query] = []

    def fail(module: Any, given: Any) -> None:
        seen.append(given)
        if len(seen) == 4:
            raise RuntimeError("out of memory")

    handle = mllm.model.get_decoder().layers[1].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        MLLMAttribution(method).attribute(question(), target="a cat", segments=GRID)
    handle.remove()
    assert method.forward_func is mllm
    assert not mllm.model.get_input_embeddings()._forward_hooks
    after = snapshot(mllm.model)
    assert {name for name in after if after[name] != before[name]} <= {
        name for name in after if name.endswith("_forward_pre_hooks")
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same(dtype: torch.dtype) -> None:
    model, processor = build("llava")
    half = MLLM(model.to(dtype), processor)
    results = [
        MLLMAttribution(FeatureAblation(mllm)).attribute(
            question(), target="a cat", segments=(1, 2), perturbations_per_eval=3
        )
        for mllm in (tiny("llava"), half)
    ]
    assert results[1].image_attr.dtype == torch.float32
    difference = (results[1].image_attr - results[0].image_attr).abs().max()
    assert difference <= 0.02


@pytest.mark.parametrize(
    ("answer", "with_prompt"), [("a horse and a cat", False), ("a horse", True)]
)
def test_tokens_of_cut_words_keep_what_the_words_before_them_are_worth(
    answer: str, with_prompt: bool
) -> None:
    mllm = tiny("qwen2_vl")
    inp = question("what is it ?" if with_prompt else "what ?")
    method = ShapleyValueSampling(mllm) if with_prompt else ShapleyValues(mllm)
    result = MLLMAttribution(method).attribute(
        inp,
        target=answer,
        include_prompt=with_prompt,
        segments=(1, 1),
        words="earlier",
        perturbations_per_eval=64,
    )
    image, query = mllm.prepare(inp, target=answer)
    query = query.including_prompt() if with_prompt else query
    own = mllm.word_embeddings(query, True)
    absent = word_baseline(mllm.model, mllm.tokenizer, own, None)
    with torch.no_grad():
        present, nothing = (
            mllm.token_logits(*inputs, query)[0]
            for inputs in ((image, own), (torch.zeros_like(image), absent))
        )
    found = result.image_attr[:, 0, 0] + result.token_attr.sum(1)
    assert len(result.words) < len(result.output_tokens)
    torch.testing.assert_close(found, present - nothing, rtol=0, atol=1e-5)
