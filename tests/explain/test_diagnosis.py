"""The risk that an image does not show a word: its signals, how they combine, and its words."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from captum_mllm import MLLM, AttendedLens, ImageTextInput, MLLMAttribution, MLLMAttributionResult
from captum_mllm.attr.attention_maps import TEXT_RESIDUAL
from captum_mllm.demo import demo_image
from captum_mllm.explain import Calibration, calibration_error, exact_reasons
from captum_mllm.explain.calibration import default_calibration
from captum_mllm.explain.diagnosis import is_content
from captum_mllm.explain.estimate import attention_masses
from captum_mllm.explain.signals import SIGNALS, token_signals
from captum_mllm.models import Query
from tests.models.test_mllm import random_image
from tests.models.tiny_models import shared


@pytest.fixture(scope="module")
def result() -> MLLMAttributionResult:
    explainer = MLLMAttribution(AttendedLens(MLLM.from_pretrained("demo/qwen2-vl")))
    inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
    answer = "a striped red cross is above a blue triangle"
    return explainer.attribute(inp, target=answer, diagnosis=True)


def slow_masses(mllm: MLLM, image: Tensor, query: Query) -> Tensor:
    """Shares of attention of the image, the question, the answer and the rest, by definition."""
    encoding = mllm.encode((image,), query)
    implementation = mllm.model.config._attn_implementation
    mllm.model.set_attn_implementation("eager")
    with torch.no_grad():
        attentions = mllm.model(**encoding.inputs, output_attentions=True).attentions
    mllm.model.set_attn_implementation(implementation)
    weights = torch.stack(list(attentions)).double().mean((0, 1, 2))
    groups = [encoding.image_positions[0], encoding.text_positions, encoding.answer_rows[1:]]
    rows = []
    for row in encoding.answer_rows.tolist():
        looked = weights[row].clone()
        looked[row] += TEXT_RESIDUAL
        looked = looked / looked.sum()
        parts = [float(looked[each].sum()) for each in groups]
        rows.append([*parts, 1 - sum(parts)])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("family", ["qwen2_vl", "llava"])
def test_signals_equal_their_slow_twin(family: str) -> None:
    mllm = MLLM(*shared(family))
    inp = ImageTextInput(random_image(), "what is in the image ?")
    image, query = mllm.prepare(inp, target="a cat and a dog")
    reasons = exact_reasons(mllm, (image,), query)
    found = dict(zip(SIGNALS, token_signals(mllm, (image,), query).T))
    states = mllm.states(image, query)
    lens = mllm.model.get_output_embeddings()(states.image[0][0]).detach().double()
    whole = mllm.target_probability(image, query).log()
    assert reasons.coalitions is not None
    expected = {
        "probability": whole,
        "image gain": reasons.values[:, 0],
        "without words": reasons.coalitions[3] - math.log(mllm.vocabulary.size),
        "lens confidence": torch.tensor(
            [max(row.log_softmax(0)[token] for row in lens) for token in query.answer_ids]
        ),
        "lens peak": torch.tensor(
            [
                (lens[:, token].max() - lens[:, token].mean()) / lens[:, token].std(correction=0)
                for token in query.answer_ids
            ]
        ),
    }
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values.float(), atol=1e-3, rtol=1e-3)
    masses = slow_masses(mllm, image, query)
    torch.testing.assert_close(attention_masses(mllm, (image,), query).double(), masses)
    torch.testing.assert_close(found["image attention"].double(), masses[:, 0].log())
    # The same from exact reasons, without passes of their own.
    again = token_signals(mllm, (image,), query, reasons)
    torch.testing.assert_close(again, torch.stack(list(found.values()), 1), atol=1e-4, rtol=1e-4)


def test_a_word_that_is_not_shown_has_the_highest_risk(result: MLLMAttributionResult) -> None:
    risks = {each.word: each for each in result.diagnosis()}
    assert list(risks) == ["striped", "red", "cross", "blue", "triangle"]
    assert max(risks.values(), key=lambda each: each.risk).word == "cross"
    assert risks["cross"].level == "high" and risks["cross"].why
    assert risks["triangle"].risk < 0.2 and not risks["cross"].calibrated
    (only,) = result.diagnosis(words="cross")
    assert only == risks["cross"]
    own = replace(default_calibration(), model=result.model)
    assert all(each.calibrated for each in result.diagnosis(own))


def test_signals_and_reasons_are_saved(result: MLLMAttributionResult, tmp_path: Path) -> None:
    result.save(tmp_path / "result")
    loaded = MLLMAttributionResult.load(tmp_path / "result")
    assert loaded.diagnosis() == result.diagnosis()
    explainer = MLLMAttribution(AttendedLens(MLLM.from_pretrained("demo/qwen2-vl")))
    assert result.inp is not None and result.reasons is None and loaded.reasons is None
    for mode in ("exact", "estimate"):
        found = explainer.attribute(result.inp, target="a red star", reasons=mode)
        found.save(tmp_path / mode)
        again = MLLMAttributionResult.load(tmp_path / mode)
        assert found.reasons is not None and again.reasons is not None
        assert again.reasons.parts([2]) == found.reasons.parts([2])
        assert again.reasons.exact == (mode == "exact")
        vocabulary = explainer.forward_func.vocabulary.size
        whole = math.log(float(found.output_probs[2]) * vocabulary)
        assert sum(found.reasons.parts([2]).values()) == pytest.approx(whole, abs=1e-4)
        assert found.to_dict(maps=False)["words"][2]["reasons"] == found.reasons.parts([2])


def test_what_was_not_asked_for_is_missing_with_a_remedy() -> None:
    mllm = MLLM(*shared("llava"))
    explainer = MLLMAttribution(AttendedLens(mllm))
    inp = ImageTextInput(random_image(), "?")
    with pytest.raises(ValueError, match="diagnosis=True"):
        explainer.attribute(inp, target="a cat").diagnosis()
    with pytest.raises(ValueError, match="reasons='all'"):
        explainer.attribute(inp, target="a cat", reasons="all")


def examples(count: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    signals = torch.randn(count, len(SIGNALS)) * torch.arange(1.0, 7.0) + 3
    odds = -1.5 * (signals[:, 1] - 3) + 0.5 * (signals[:, 3] - 3) - 0.5
    return signals, torch.rand(count) < odds.sigmoid()


def test_a_fit_finds_the_weights_and_is_calibrated() -> None:
    signals, absent = examples()
    fitted = Calibration.fit(signals, absent)
    assert fitted.weights["image gain"] == pytest.approx(-1.5, abs=0.35)
    assert fitted.weights["lens confidence"] == pytest.approx(0.5, abs=0.15)
    assert abs(fitted.weights["lens peak"]) < 0.1
    # The gradient of a fit without a penalty on the bias is zero there.
    assert float((fitted.risk(signals) - absent.double()).mean()) == pytest.approx(0, abs=1e-6)
    assert calibration_error(fitted.risk(signals), absent) < 0.05
    assert (
        calibration_error(torch.full((4,), 0.5), torch.tensor([True, False, True, False]), 1) == 0
    )
    assert calibration_error(torch.ones(4), torch.zeros(4, dtype=torch.bool)) == 1


def test_a_calibration_is_saved_and_checked(tmp_path: Path) -> None:
    signals, absent = examples(50)
    fitted = Calibration.fit(signals, absent, model="mine", data="random words")
    fitted.save(tmp_path / "calibration.json")
    assert Calibration.load(tmp_path / "calibration.json") == fitted
    (tmp_path / "other.json").write_text('{"format": "?"}')
    with pytest.raises(ValueError, match="is not a calibration"):
        Calibration.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match="some of both"):
        Calibration.fit(signals, torch.zeros(50, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected \(N, 6\)"):
        Calibration.fit(signals[:, :3], absent)
    with pytest.raises(ValueError, match="anew with captum-mllm calibrate"):
        replace(fitted, weights={"heat": 1.0})
    with pytest.raises(ValueError, match="finite"):
        replace(fitted, bias=math.nan)


def test_separable_words_give_finite_weights() -> None:
    signals = torch.zeros(20, len(SIGNALS))
    absent = torch.arange(20) < 10
    signals[absent] = 1.0
    fitted = Calibration.fit(signals, absent)
    assert (fitted.risk(signals) > 0.5).tolist() == absent.tolist()


TYPICAL = dict.fromkeys(SIGNALS, 5.0)


@pytest.mark.parametrize(
    ("gain", "probability", "expected"),
    [
        (1.0, 0.5, "the words alone predict it with 18%, the image adds little"),
        (-1.0, 0.2, "the image speaks against it: 54% without the image, 20% with it"),
        (
            -12.0,
            1e-6,
            "the image speaks against it: less than 1% with it, far more without",
        ),
    ],
)
def test_what_words_alone_predict(
    result: MLLMAttributionResult, gain: float, probability: float, expected: str
) -> None:
    only = Calibration({name: -float(name == "image gain") for name in SIGNALS}, 0.0, TYPICAL)
    changed = copy.copy(result)
    assert result.signals is not None
    changed.signals = result.signals.clone()
    changed.signals[0, 1] = gain
    changed.output_probs = result.output_probs.clone()
    changed.output_probs[0] = probability
    assert changed.diagnosis(only, words=[0])[0].why == (expected,)


def test_a_signal_that_is_high_is_no_reason(result: MLLMAttributionResult) -> None:
    """A calibration may count a high signal as a risk; the sentences are about low ones."""
    assert result.signals is not None
    low = {name: float(value) - 5 for name, value in zip(SIGNALS, result.signals[0])}
    odd = Calibration(dict.fromkeys(SIGNALS, 1.0), 50.0, low)
    assert result.diagnosis(odd, words=[0])[0].why == ()
    typical = {name: low[name] + 10 for name in low}
    usual = Calibration(dict.fromkeys(SIGNALS, -1.0), 50.0, typical)
    assert len(result.diagnosis(usual, words=[0])[0].why) == len(SIGNALS)
    # A low risk needs no reason.
    assert result.diagnosis(replace(usual, bias=-50.0), words=[0])[0].why == ()


@pytest.mark.parametrize(
    ("word", "content"),
    [
        ("dog", True),
        ("dog's", True),
        ("isn't", False),
        ("isn\u2019t", False),
        ("It's", False),
        ("can't", False),
        ("there's", False),
        ("o'clock", True),
        ("12", False),
    ],
)
def test_content_words(word: str, content: bool) -> None:
    assert is_content(word) == content


def test_signals_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="signals have shape"):
        default_calibration().risk(torch.zeros(3))
