"""Alternatives: why the next most probable tokens were not said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import Attribution, Saliency
from PIL import Image
from torch import Tensor

from captum_mllm import (
    ARC,
    MLLM,
    MSEA,
    TAM,
    AttendedLens,
    ImageTextInput,
    LogitDecomposition,
    LogitLens,
    MLLMAttribution,
    MLLMAttributionResult,
)
from captum_mllm.attr import AttentionMaps, text_attribution
from captum_mllm.attr.token_maps import token_maps
from captum_mllm.demo import demo_image
from captum_mllm.models.prompt import open_query
from tests.attr.test_attention_maps import noise
from tests.models.tiny_models import shared
from tests.visualization.test_page_what_if import packed

SIZE = (84, 84)
ANSWER = "a cat sits"
METHODS: dict[str, Callable[[MLLM], Attribution]] = {
    "lens": LogitLens,
    "default": lambda mllm: ARC(MSEA(AttendedLens(mllm), scales=(0.5, 1.0))),
    "tam": lambda mllm: TAM(LogitLens(mllm)),
    "decomposition": LogitDecomposition,
    "gradients": Saliency,
}


def asked() -> ImageTextInput:
    return ImageTextInput(noise(SIZE), "what is it ?")


@pytest.fixture
def mllm() -> MLLM:
    return MLLM(*shared("llava"))


def next_likely(mllm: MLLM, inp: ImageTextInput, count: int) -> list[list[int]]:
    """The tokens that are not the answer's own, from all logits."""
    image, query = mllm.prepare(inp, target=ANSWER)
    with torch.no_grad():
        ranked = mllm(image, query)[0].argsort(dim=-1, descending=True).tolist()
    own = query.answer_ids
    return [[token for token in row if token != said][:count] for row, said in zip(ranked, own)]


def alone(method: Attribution, inp: ImageTextInput, t: int, token: int) -> tuple[Tensor, Tensor]:
    """The map and the weights of one token in contrast to one other, by itself."""
    mllm: MLLM = method.forward_func
    images, query = open_query(mllm.backbone, inp)
    _, prepared = mllm.prepare(inp, target=ANSWER)
    query = mllm.contrast(prepared, t, token)
    maps = token_maps(method, images, query).maps[0]
    return maps[t, 0], text_attribution.text_attribution(method, images, query)[t]


@pytest.mark.parametrize("name", METHODS)
def test_they_are_contrasts_of_each_token_by_itself(name: str, mllm: MLLM) -> None:
    method, inp = METHODS[name](mllm), asked()
    found = MLLMAttribution(method).attribute(inp, target=ANSWER, alternatives=2).alternatives
    assert found is not None
    ids = next_likely(mllm, inp, 2)
    for t, k in ((0, 1), (2, 0)):
        map_, weights = alone(method, inp, t, ids[t][k])
        torch.testing.assert_close(found.image_attrs[0][t, k], map_, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(found.token_attr[t, k], weights, atol=1e-6, rtol=1e-4)


def test_the_words_in_contrast_give_the_same() -> None:
    explainer = MLLMAttribution(METHODS["default"](MLLM.from_pretrained("demo/qwen2-vl")))
    inp = ImageTextInput(Image.open(demo_image()), "Describe the image.")
    options: dict[str, Any] = {"target": "a red star"}
    plain = explainer.attribute(inp, **options)
    result = explainer.attribute(inp, **options, alternatives=2, include_prompt=True)
    found, first = result.alternatives, result.n_prompt
    assert found is not None
    torch.testing.assert_close(result.image_attr[first:], plain.image_attr)
    for k, rank in enumerate(found.ranks[2].tolist()):
        other = result.top_predictions[first + 2][rank][0].strip()
        why = explainer.attribute(inp, **options, contrast={"star": other})
        torch.testing.assert_close(
            found.image_attrs[0][2, k], why.image_attr[2], atol=1e-6, rtol=1e-5
        )
    # The words after a contrast are as without it.
    why = explainer.attribute(inp, **options, contrast={"red": "blue"})
    torch.testing.assert_close(why.image_attr[[0, 2]], plain.image_attr[[0, 2]])
    assert not torch.allclose(why.image_attr[1], plain.image_attr[1])


def test_the_lens_takes_no_further_pass(mllm: MLLM) -> None:
    explainer = MLLMAttribution(METHODS["default"](mllm))
    counts = []
    for count in (0, 3):
        passes: list[Any] = []
        handle = mllm.model.register_forward_hook(lambda *_, seen=passes: seen.append(1))
        inner = mllm.model.get_decoder().register_forward_hook(lambda *_, s=passes: s.append(1))
        explainer.attribute(asked(), target=ANSWER, alternatives=count)
        handle.remove()
        inner.remove()
        counts.append(len(passes))
    assert counts[0] == counts[1] > 0


def test_batches_and_streams_have_them_too(mllm: MLLM) -> None:
    explainer = MLLMAttribution(ARC(LogitLens(mllm)))
    options: dict[str, Any] = {"gen_args": {"max_new_tokens": 4}, "alternatives": 2}
    alone = explainer.attribute(asked(), **options).alternatives
    (batched,) = explainer.attribute_batch([asked()], **options)
    with explainer.stream(asked(), **options) as stream:
        list(stream)
    assert alone is not None
    for found in (batched.alternatives, stream.result.alternatives):
        assert found is not None and torch.equal(found.ranks, alone.ranks)
        torch.testing.assert_close(found.image_attrs, alone.image_attrs, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.token_attr, alone.token_attr, atol=1e-5, rtol=1e-4)


def test_they_are_saved_and_loaded(mllm: MLLM, tmp_path: Path) -> None:
    result = MLLMAttribution(LogitLens(mllm)).attribute(
        asked(), target=ANSWER, alternatives=2, top_predictions=0
    )
    found = result.alternatives
    assert found is not None and len(result.top_predictions[0]) == 3
    result.save(tmp_path / "result")
    loaded = MLLMAttributionResult.load(tmp_path / "result").alternatives
    assert loaded is not None
    assert torch.equal(loaded.ranks, found.ranks)
    assert torch.equal(loaded.token_attr, found.token_attr)
    assert torch.equal(loaded.image_attrs[0], found.image_attrs[0])


@pytest.mark.parametrize("make", [LogitLens, AttendedLens])
def test_the_page_has_them_beside_the_predictions(
    make: Callable[[MLLM], Attribution], mllm: MLLM
) -> None:
    result = MLLMAttribution(make(mllm)).attribute(
        asked(), target=ANSWER, alternatives=2, include_prompt=True
    )
    found, data = result.alternatives, packed(result.to_html())
    assert found is not None
    shown = data["alternatives"]
    assert shown["ranks"] == found.ranks.tolist()
    maps = found.image_attrs[0].flatten(0, 1).flatten(1)
    high, low = maps.amax(1).clamp(min=0), maps.amin(1).clamp(max=0)
    # The lens says what speaks against a word too; the page shows both signs.
    assert bool((low < 0).any()) == (make is LogitLens)
    counts = torch.where((low < 0) & (high > 0), 254, 255)
    steps = torch.tensor(shown["maps"][0]["steps"])
    torch.testing.assert_close(counts * steps, high - low, atol=1e-6, rtol=1e-5)
    # Attention does not know the word.
    assert (shown["weights"] is None) == (make is AttendedLens)
    entries = result.to_dict(maps=False)["words"][-1]["alternatives"]
    ranked = result.top_predictions[result.words[-1][0]]
    place = result.words[-1][0] - result.n_prompt
    names = [ranked[rank][0] for rank in found.ranks[place].tolist()]
    assert [entry["token"] for entry in entries] == names


def test_what_is_out_of_range_is_refused(mllm: MLLM) -> None:
    explainer = MLLMAttribution(LogitLens(mllm))
    for count, error in ((-1, ValueError), (True, TypeError), (1.5, TypeError)):
        with pytest.raises(error, match="alternatives="):
            explainer.attribute(asked(), target=ANSWER, alternatives=count)
    with pytest.raises(ValueError, match="tokens of the vocabulary"):
        explainer.attribute(asked(), target=ANSWER, alternatives=mllm.vocabulary.size)
    with pytest.raises(ValueError, match="does not depend on the word"):
        MLLMAttribution(AttentionMaps(mllm)).attribute(asked(), target=ANSWER, alternatives=1)
