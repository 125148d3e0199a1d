"""Context suppression against a slow twin, and on hand-wired models whose right maps are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum.attr import Attribution, NoiseTunnel, Saliency
from torch import Tensor

from captum_mllm.attr import (
    ARC,
    MSEA,
    TAM,
    ContextSuppression,
    LogitLens,
    TokenMaps,
    suppress_context,
)
from captum_mllm.models.vocabulary import Predictions, Vocabulary
from tests.attr.toy_mllm import ToyMLLM
from tests.attr.toy_networks import ConvolutionalClassifier

IMAGE = torch.zeros(1, 3, 8, 8)


def slow_suppression(
    maps: Tensor, context: Tensor, weights: Tensor, strength: float | None = 1.0
) -> Tensor:
    """Map by map and cell by cell in float64."""
    cleaned = torch.zeros_like(maps, dtype=torch.float64)
    for t, own in enumerate(maps.double()):
        interference = torch.zeros_like(own)
        for j, other in enumerate(context.double()):
            interference += weights[t, j].double() * other
        energy = float((interference * interference).sum())
        share = float((own * interference).sum()) / energy if energy > 0 else 0.0
        size = (float((own * own).sum()) * energy) ** 0.5
        cosine = float((own * interference).sum()) / size if size > 0 else 0.0
        taken = max(share, 0.0) * (cosine if strength is None else strength)
        for place in range(own.numel()):
            left = own.flatten()[place] - taken * interference.flatten()[place]
            cleaned[t].view(-1)[place] = max(float(left), 0.0)
    return cleaned


@pytest.mark.parametrize("shape", [(5, 7), (1, 3, 4), (1,)])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strength", [1.0, 0.3, None])
def test_equals_the_slow_twin(shape: tuple[int, ...], seed: int, strength: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(4, *shape, generator=generator)
    context = torch.rand(6, *shape, generator=generator)
    weights = torch.rand(4, 6, generator=generator)
    weights[1] = 0
    torch.testing.assert_close(
        suppress_context(maps, context, weights, strength).double(),
        slow_suppression(maps, context, weights, strength),
        rtol=1e-4,
        atol=2e-5,
    )


def test_the_scale_of_the_weights_does_not_matter() -> None:
    maps, context, weights = torch.rand(2, 9), torch.rand(3, 9), torch.rand(2, 3)
    expected = suppress_context(maps, context, weights)
    for factor in (1e-20, 1e20, 1e-36, 1e38):
        torch.testing.assert_close(suppress_context(maps, context, weights * factor), expected)
        # Their products would leave the range of float32, and these weights alone do.
        torch.testing.assert_close(
            suppress_context(maps, context * 1e10, weights.double() * factor**2), expected
        )


@pytest.mark.parametrize("strength", [1.0, None])
@pytest.mark.parametrize("size", [1e-25, 1e3, 1e25])
def test_full_cancellation_leaves_nothing(strength: float | None, size: float) -> None:
    maps = torch.rand(20, 30, 30) * size
    assert not suppress_context(maps, maps, torch.eye(20), strength).any()


def test_by_the_cosine_a_map_keeps_what_it_does_not_share() -> None:
    """A map that is interference alone goes; of one at 60 degrees half of the share goes."""
    maps = torch.tensor([[2.0, 0.0], [1.0, 3.0**0.5]])
    cleaned = suppress_context(maps, torch.tensor([[1.0, 0.0]]), torch.ones(2, 1), None)
    torch.testing.assert_close(cleaned, torch.tensor([[0.0, 0.0], [0.5, 3.0**0.5]]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    maps, context, weights = torch.rand(2, 9) * 200, torch.rand(3, 9) * 200, torch.rand(2, 3)
    cleaned = suppress_context(maps.to(dtype), context.to(dtype), weights.to(dtype))
    assert cleaned.dtype == dtype
    torch.testing.assert_close(
        cleaned.float(), suppress_context(maps, context, weights), rtol=2e-2, atol=4
    )


def test_empty_context_and_zero_maps_are_defined() -> None:
    maps = torch.tensor([[1.0, -1.0]])
    assert suppress_context(maps, torch.zeros(0, 2), torch.zeros(1, 0)).tolist() == [[1, 0]]
    zero = torch.zeros(2, 4)
    for strength in (1.0, None):
        assert torch.equal(suppress_context(zero, zero, torch.ones(2, 2), strength), zero)
    assert suppress_context(torch.zeros(0, 4), zero, torch.zeros(0, 2)).shape == (0, 4)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(2, 3), "expected \\(N, \\*map\\)"),
        (-torch.ones(2, 2), "at least 0"),
        (torch.full((2, 2), torch.nan), "finite"),
    ],
)
def test_bad_weights_are_refused(weights: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        suppress_context(torch.rand(2, 5), torch.rand(2, 5), weights)


# A vocabulary of four orthogonal words in four dimensions: a state says how strongly it speaks of
# each. The image has an object of word 0 on the left and one of word 1 on the right; the tokens
# on the right also speak, falsely, of word 2, as much as they speak of word 1.
CAT, DOG, RED, THE = range(4)
HEAD = torch.eye(4)
LEFT, RIGHT = torch.tensor([2.0, 0, 0, 0]), torch.tensor([0, 3.0, 3.0, 0])
SEEN = torch.stack([LEFT, torch.zeros(4), RIGHT]).expand(2, 3, 4)


def toy(predicting: list[list[float]], ids: list[int], n_words: int = 1) -> ToyMLLM:
    states = torch.tensor(predicting)
    words = torch.eye(4)[ids[:n_words]]
    return ToyMLLM(HEAD, lambda image: SEEN, words, states, ids)


def test_the_lens_reads_the_words_off_the_states() -> None:
    mllm = toy([[0, 0, 0, 1.0], [1.0, 0, 0, 0], [0, 1.0, 0, 0]], [THE, CAT, DOG])
    maps = LogitLens(mllm).attribute(IMAGE, additional_forward_args=(mllm.query(),))
    assert maps[:, 0].tolist() == [[[2, 0, 0]] * 2, [[0, 0, 3]] * 2]


# "the cat dog red": what says DOG says RED as well, so DOG's map interferes with RED's.
PREDICTING = [[0, 0, 0, 1.0], [1.0, 0, 0, 0], [0, 2.0, 1.0, 0], [0, 1.0, 2.0, 0]]


def test_tam_takes_from_a_word_what_an_earlier_word_accounts_for() -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    tam = TAM(LogitLens(mllm), normalize=False, filter_size=None)
    maps = tam.attribute(IMAGE, additional_forward_args=(mllm.query(),))[:, 0]
    assert maps.tolist() == [[[2, 0, 0]] * 2, [[0, 0, 3]] * 2, [[0, 0, 0]] * 2]


def test_without_suppression_maps_stay_and_words_are_still_weighed() -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    query = (mllm.query(),)
    lens = LogitLens(mllm)
    words_only = ARC(lens, top_k=2, suppress=None)
    call = {"additional_forward_args": query}
    assert torch.equal(words_only.attribute(IMAGE, **call), lens.attribute(IMAGE, **call))
    weights = words_only.attribute_text(IMAGE, query)
    assert weights[2, 2] > 0
    assert torch.equal(weights, ARC(lens, top_k=2).attribute_text(IMAGE, query))
    normalized = ARC(lens, top_k=2, suppress=None, normalize=True).attribute(IMAGE, **call)
    # RED's own map goes up to 3, and so does nothing that the words before say of it.
    assert normalized[2].max() == 1 and normalized[2].min() == 0


def test_image_agreement_gates_each_token_by_its_own_ranking() -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    query = (mllm.query(),)
    plain = ARC(LogitLens(mllm), top_k=1, normalize=False)
    gated = ARC(LogitLens(mllm), top_k=1, normalize=False, image_agreement=True)
    before = plain.attribute(IMAGE, additional_forward_args=query)[:, 0]
    after = gated.attribute(IMAGE, additional_forward_args=query)[:, 0]
    # On the left CAT comes first, as it does where it is said; the right ranks DOG before RED.
    assert torch.equal(after[0], before[0])
    assert torch.equal(after[1], before[1])
    states = mllm.states(IMAGE, *query)
    assert mllm.vocabulary.rankings(states.image[0][0], 1).flatten()[2] == DOG


def test_a_repeated_word_does_not_suppress_itself() -> None:
    mllm = toy([[0, 0, 0, 1.0], [1.0, 0, 0, 0], [1.0, 0, 0, 0]], [THE, CAT, CAT])
    tam = TAM(LogitLens(mllm), normalize=False, filter_size=None)
    maps = tam.attribute(IMAGE, additional_forward_args=(mllm.query(),))
    assert torch.equal(maps[0], maps[1])
    assert maps[1].max() == 2


def test_a_word_that_rests_on_text_has_a_faint_map() -> None:
    strong, weak = PREDICTING, [[0, 0, 0, 1.0], [1.0, 8.0, 0, 0], [0, 2.0, 1.0, 0]]
    lens = [toy(strong, [THE, CAT, DOG, RED]), toy(weak, [THE, CAT, DOG])]
    maps = [
        TAM(LogitLens(mllm), filter_size=None).attribute(
            IMAGE, additional_forward_args=(mllm.query(),)
        )[1]
        for mllm in lens
    ]
    # DOG was already said by the state of CAT, with 8 against 3 in the image.
    assert maps[0].max() == 1
    assert maps[1].max() == 3 / 8


class InOtherUnits(LogitLens):
    """The logit lens times a factor, so no longer in logits."""

    def explain_tokens(self, *args: Any) -> TokenMaps:
        (maps,) = super().explain_tokens(*args).maps
        return TokenMaps((maps / 1000,))


@pytest.mark.parametrize("wrapper", [TAM, ARC])
def test_maps_in_other_units_are_not_weighed_against_logits_of_text(wrapper: type[TAM]) -> None:
    weak = [[0, 0, 0, 1.0], [1.0, 8.0, 0, 0], [0, 2.0, 1.0, 0]]
    mllm = toy(weak, [THE, CAT, DOG])
    call = {"additional_forward_args": (mllm.query(),)}

    def largest(method: Attribution, **arguments: Any) -> float:
        options = {"filter_size": None, "normalize": True}
        return float(wrapper(method, **options).attribute(IMAGE, **call, **arguments)[1].max())

    once = {"scales": (1.0,)}
    assert largest(LogitLens(mllm)) == 3 / 8
    assert largest(MSEA(LogitLens(mllm)), **once) == 3 / 8
    assert largest(InOtherUnits(mllm)) == 1
    assert largest(MSEA(InOtherUnits(mllm)), **once) == 1
    assert largest(MSEA(LogitLens(mllm)), normalize="max", **once) == 1
    assert largest(NoiseTunnel(LogitLens(mllm)), nt_samples=2, stdevs=0.01) == 1
    assert largest(TAM(LogitLens(mllm), filter_size=None)) == 1


def test_maps_are_as_fine_as_the_largest_scale_makes_them() -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    mllm.see = lambda image: SEEN.repeat_interleave(image.shape[-1] // 8, 0)
    call = {"additional_forward_args": (mllm.query(),), "scales": (1.0, 2.0)}
    assert TAM(MSEA(LogitLens(mllm))).attribute(IMAGE, **call).shape == (3, 1, 4, 3)
    sized = TAM(MSEA(LogitLens(mllm))).attribute(IMAGE, output_size=(8, 8), **call)
    assert sized.shape == (3, 1, 8, 8)


def test_rankings_of_the_same_states_are_made_once() -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    states = mllm.states(IMAGE, mllm.query())
    arc = ARC(LogitLens(mllm), top_k=2)
    made: list[int] = []

    class Counting(Vocabulary):
        def predictions(self, states: Tensor, ids: Tensor, k: int) -> Predictions:
            made.append(k)
            return super().predictions(states, ids, k)

    class Counted(ToyMLLM):
        vocabulary = property(lambda self: Counting(self.head))

    mllm.__class__ = Counted
    first = arc.correlation(states)
    assert torch.equal(arc.weights(states), arc.weights(states))
    assert torch.equal(arc.correlation(states), first)
    # Longer ones serve the next request.
    ARC(LogitLens(mllm), top_k=3).correlation(states)
    states.predictions(mllm.vocabulary, 1, with_text=False)
    assert len(made) == 1


def test_the_default_ranking_is_all_of_a_small_vocabulary() -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    states = mllm.states(IMAGE, mllm.query())
    all_of_it = ARC(LogitLens(mllm), top_k=4).correlation(states)
    assert torch.equal(ARC(LogitLens(mllm)).correlation(states), all_of_it)


def test_suppression_without_weights_is_abstract() -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    with pytest.raises(TypeError, match="abstract"):
        ContextSuppression(LogitLens(mllm))


@pytest.mark.parametrize("arguments", [{"combine": False}, {"return_convergence_delta": True}])
def test_what_is_not_one_map_for_each_word_is_refused(arguments: dict[str, Any]) -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    with pytest.raises(ValueError, match="each word has one map here"):
        ARC(MSEA(LogitLens(mllm))).attribute(IMAGE, None, (mllm.query(),), **arguments)


def test_msea_averages_the_scales() -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])

    def see(image: Tensor) -> Tensor:
        return SEEN * (image.shape[-1] / 8)

    mllm.see = see
    maps = MSEA(LogitLens(mllm)).attribute(
        IMAGE,
        scales=(0.5, 1.0, 2.0),
        output_size="largest",
        additional_forward_args=(mllm.query(),),
    )
    torch.testing.assert_close(maps[0, 0], torch.tensor([[2.0, 0, 0]] * 2) * 3.5 / 3)


def test_a_target_selects_one_word_of_the_answer() -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    tam, query = TAM(LogitLens(mllm)), (mllm.query(),)
    every = tam.attribute(IMAGE, additional_forward_args=query)
    for place, target in enumerate([(0, CAT), (1, DOG), (-1, RED)]):
        one = tam.attribute(IMAGE, target=target, additional_forward_args=query)
        assert torch.equal(one, every[place : place + 1])
    for target in [(0, DOG), (3, CAT), 1, (0,), [(0, DOG)], (True, CAT), (0.0, CAT)]:
        with pytest.raises(ValueError, match=r"expected \(t, token_id\)"):
            tam.attribute(IMAGE, target=target, additional_forward_args=query)


def test_a_tuple_of_one_image_gives_a_tuple() -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    tam, query = TAM(LogitLens(mllm)), (mllm.query(),)
    found = tam.attribute((IMAGE,), additional_forward_args=query)
    assert isinstance(found, tuple)
    assert len(found) == 1
    assert torch.equal(found[0], tam.attribute(IMAGE, additional_forward_args=query))
    assert torch.equal(tam.attribute_text((IMAGE,), query), tam.attribute_text(IMAGE, query))


@pytest.mark.parametrize("wrapper", [TAM, ARC])
def test_a_batch_with_targets_is_explained_image_by_image(wrapper: type[TAM]) -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    mllm.see = lambda image: SEEN + image.mean() * torch.tensor([1.0, 2, 0, 0])
    method, query = wrapper(LogitLens(mllm)), (mllm.query(),)
    batch = torch.rand(3, 3, 8, 8)
    targets = [(0, CAT), (1, DOG), (-1, RED)]
    found = method.attribute(batch, targets, query)
    same = method.attribute(batch, (1, DOG), query)
    for index, target in enumerate(targets):
        image = batch[index : index + 1]
        assert torch.equal(found[index : index + 1], method.attribute(image, target, query))
        assert torch.equal(same[index : index + 1], method.attribute(image, (1, DOG), query))
    with pytest.raises(ValueError, match="a list of 3 of them"):
        method.attribute(batch, targets[:2], query)


@pytest.mark.parametrize("wrapper", [TAM, ARC])
def test_within_and_around_a_noise_tunnel(wrapper: type[TAM]) -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    mllm.see = lambda image: SEEN + image.mean().clamp(0, 1)
    noisy = {"nt_samples": 3, "stdevs": 0.1, "additional_forward_args": (mllm.query(),)}
    around = NoiseTunnel(wrapper(LogitLens(mllm)))
    assert around.attribute(IMAGE + 0.5, target=(1, DOG), **noisy).shape == (1, 1, 2, 3)
    within = wrapper(NoiseTunnel(LogitLens(mllm)))
    assert within.attribute(IMAGE + 0.5, **noisy).shape == (3, 1, 2, 3)


def test_the_words_of_the_prompt_can_be_explained_too() -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED], n_words=2)
    tam, query = TAM(LogitLens(mllm)), mllm.query()
    every = tam.attribute(IMAGE, additional_forward_args=(query.including_prompt(),))
    assert len(every) == 4
    assert torch.equal(every[2:], tam.attribute(IMAGE, additional_forward_args=(query,)))
    text = tam.attribute_text(IMAGE, (query.including_prompt(),))
    assert text.shape == (4, 4)
    assert not text.triu().any()


def test_what_is_not_an_attribution_on_an_mllm_is_refused() -> None:
    mllm = toy(PREDICTING, [THE, CAT, DOG, RED])
    for method in (mllm, None, Saliency(ConvolutionalClassifier()), LogitLens):
        with pytest.raises(TypeError, match="expected an"):
            TAM(method)
    with pytest.raises(TypeError, match="wrap the model as MLLM"):
        LogitLens(ConvolutionalClassifier())
    for top_k in (0, -1, 2.5, True, "3", mllm.vocabulary.size + 1):
        with pytest.raises(ValueError, match=f"top_k={top_k!r}, expected a whole number"):
            ARC(LogitLens(mllm), top_k=top_k)
    with pytest.raises(ValueError, match=r"persistence=1\.0"):
        ARC(LogitLens(mllm), persistence=1.0)
    with pytest.raises(ValueError, match="suppress='all'"):
        ARC(LogitLens(mllm), suppress="all")
    with pytest.raises(ValueError, match="kernel_size must be odd"):
        TAM(LogitLens(mllm), filter_size=2)
    with pytest.raises(ValueError, match="no target; give a target for each, or explain one"):
        TAM(LogitLens(mllm)).attribute(torch.zeros(2, 3, 8, 8), None, (mllm.query(),))
    with pytest.raises(TypeError, match=r"the query that MLLM\.prepare gives"):
        TAM(LogitLens(mllm)).attribute(IMAGE)


def test_interference_is_summed_in_full_precision_under_autocast() -> None:
    maps, context, weights = torch.rand(2, 9), torch.rand(3, 9), torch.rand(2, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = suppress_context(maps, context, weights)
    assert torch.equal(found, suppress_context(maps, context, weights))
