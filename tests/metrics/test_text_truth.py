import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from captum_mllm.metrics import (
    attention_knockout,
    earlier_tokens,
    leave_one_out,
    text_perturbation_curve,
)

P, T, D, V = 4, 3, 5, 7
N = P + T - 1
TARGET = [2, 0, 5]
WORDS = torch.tensor([0, 0, 1, 2, 2, 3])


class CausalModel:
    """One layer of attention over an image token and n words; float64."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        self.query, self.key, self.value, self.mix = (draw(D, D) for _ in range(4))
        self.unembed = draw(V, D)
        self.image, self.embeddings = draw(1, D), draw(1, N, D)
        self.hidden: Tensor | None = None
        self.rows: list[int] = []

    def __call__(self, image: Tensor, embeddings: Tensor) -> Tensor:
        self.rows.append(len(embeddings))
        states = torch.cat([image[:, None], embeddings], 1)
        size = states.shape[1]
        allowed = torch.ones(size, size, dtype=torch.bool).tril().expand(len(states), -1, -1)
        if self.hidden is not None:
            columns = torch.cat([self.hidden.new_zeros(len(states), 1), self.hidden], 1)
            allowed = allowed & (~columns[:, None] | torch.eye(size, dtype=torch.bool))
        for _ in range(2):
            scores = (states @ self.query) @ (states @ self.key).mT / math.sqrt(D)
            weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
            states = states + torch.tanh(weights @ states @ self.value @ self.mix)
        return states[:, -T:] @ self.unembed.T

    @contextmanager
    def hide(self, hidden: Tensor) -> Iterator[None]:
        self.hidden = hidden
        yield
        self.hidden = None


@pytest.fixture
def model() -> CausalModel:
    return CausalModel()


def log_probability(model: CausalModel, embeddings: Tensor, t: int) -> float:
    return float(model(model.image, embeddings)[0, t].log_softmax(0)[TARGET[t]])


def removed(model: CausalModel, tokens: list[int], baseline: Tensor) -> Tensor:
    embeddings = model.embeddings.clone()
    for token in tokens:
        embeddings[0, token] = baseline
    return embeddings


def tokens_of(words: Tensor | None) -> list[list[int]]:
    if words is None:
        return [[token] for token in range(N)]
    return [[i for i in range(N) if words[i] == w] for w in range(int(words.max()) + 1)]


@pytest.mark.parametrize("words", [None, WORDS])
def test_what_comes_before_a_token(words: Tensor | None) -> None:
    found = earlier_tokens(T, N, words)
    for t in range(T):
        expected = [tokens[0] < P + t for tokens in tokens_of(words)]
        assert found[t].tolist() == expected


@pytest.mark.parametrize("words", [None, WORDS, WORDS[None, :, None]])
@pytest.mark.parametrize("per_eval", [1, 4, 100])
def test_leave_one_out_equals_one_pass_at_a_time(
    model: CausalModel, words: Tensor | None, per_eval: int
) -> None:
    baseline = torch.linspace(-1, 1, D, dtype=torch.float64)
    found = leave_one_out(
        model,
        (model.image, model.embeddings),
        baseline,
        target=TARGET,
        feature_mask=words,
        perturbations_per_eval=per_eval,
    )
    flat = None if words is None else words.flatten()
    for t in range(T):
        for word, tokens in enumerate(tokens_of(flat)):
            drop = log_probability(model, model.embeddings, t) - log_probability(
                model, removed(model, tokens, baseline), t
            )
            if tokens[0] >= P + t:
                assert drop == pytest.approx(0, abs=1e-12)
                drop = 0
            assert float(found[t, word]) == pytest.approx(drop, abs=1e-12)
    assert found.dtype == torch.float64
    assert max(model.rows) <= per_eval


@pytest.mark.parametrize("words", [None, WORDS])
@pytest.mark.parametrize("per_eval", [1, 4, 100])
def test_knockout_equals_one_pass_at_a_time(
    model: CausalModel, words: Tensor | None, per_eval: int
) -> None:
    found = attention_knockout(
        model,
        (model.image, model.embeddings),
        model.hide,
        target=TARGET,
        feature_mask=words,
        perturbations_per_eval=per_eval,
    )
    for t in range(T):
        for word, tokens in enumerate(tokens_of(words)):
            hidden = torch.zeros(1, N, dtype=torch.bool)
            hidden[0, tokens] = True
            whole = log_probability(model, model.embeddings, t)
            with model.hide(hidden):
                left = log_probability(model, model.embeddings, t)
            drop = whole - left if tokens[0] < P + t else 0
            assert float(found[t, word]) == pytest.approx(drop, abs=1e-12)


@pytest.mark.parametrize("words", [None, WORDS])
@pytest.mark.parametrize("kind", ["insertion", "deletion"])
@pytest.mark.parametrize("steps", [1, 3, 9])
def test_curves_equal_one_pass_at_a_time(
    model: CausalModel, words: Tensor | None, kind: str, steps: int
) -> None:
    groups = tokens_of(words)
    weights = torch.randn(T, len(groups), generator=torch.Generator().manual_seed(1))
    baseline = torch.zeros(D, dtype=torch.float64)
    curve = text_perturbation_curve(
        model,
        (model.image, model.embeddings),
        weights,
        kind,  # type: ignore[arg-type]
        baseline,
        target=TARGET,
        feature_mask=words,
        steps=steps,
        perturbations_per_eval=5,
    )
    assert curve.area.tolist() == pytest.approx([step / steps for step in range(steps + 1)])
    for t in range(T):
        earlier = [word for word, tokens in enumerate(groups) if tokens[0] < P + t]
        order = sorted(earlier, key=lambda word: -float(weights[t, word]))
        for step in range(steps + 1):
            count = math.floor(len(order) * step / steps + 0.5)
            out = order[:count] if kind == "deletion" else order[count:]
            tokens = [token for word in out for token in groups[word]]
            expected = math.exp(log_probability(model, removed(model, tokens, baseline), t))
            assert float(curve.probability[t, step]) == pytest.approx(expected, abs=1e-12)
    assert curve.area_under().shape == (T,)


def test_a_perfect_order_has_the_better_curves(model: CausalModel) -> None:
    drops = leave_one_out(model, (model.image, model.embeddings), target=TARGET)

    def area(weights: Tensor, kind: str) -> Tensor:
        curve = text_perturbation_curve(
            model,
            (model.image, model.embeddings),
            weights,
            kind,  # type: ignore[arg-type]
            target=TARGET,
        )
        return curve.area_under().mean()

    assert area(drops, "insertion") > area(-drops, "insertion")
    assert area(drops, "deletion") < area(-drops, "deletion")


def test_equal_weights_are_not_read_from_left_to_right(model: CausalModel) -> None:
    def probability(weights: Tensor) -> Tensor:
        inputs = (model.image, model.embeddings)
        return text_perturbation_curve(
            model, inputs, weights, "deletion", target=TARGET
        ).probability

    constant = probability(torch.ones(T, N))
    assert torch.equal(constant, probability(torch.zeros(T, N)))
    assert not torch.equal(constant, probability(torch.arange(N, 0, -1.0).expand(T, N)))


def test_scores_are_taken_as_they_are(model: CausalModel) -> None:
    def scores(image: Tensor, embeddings: Tensor) -> Tensor:
        logits = model(image, embeddings).log_softmax(-1)
        return logits[:, torch.arange(T), torch.tensor(TARGET)]

    inputs = (model.image, model.embeddings)
    expected = leave_one_out(model, inputs, target=TARGET)
    torch.testing.assert_close(leave_one_out(scores, inputs), expected)


def test_an_answer_of_one_token_after_nothing() -> None:
    def score(embeddings: Tensor) -> Tensor:
        return embeddings.sum((1, 2))[:, None]

    assert leave_one_out(score, (torch.zeros(1, 0, D),)).shape == (1, 0)


def test_further_arguments_are_passed_on(model: CausalModel) -> None:
    def sharper(image: Tensor, embeddings: Tensor, factor: float) -> Tensor:
        return model(image, embeddings) * factor

    inputs = (model.image, model.embeddings)
    found = leave_one_out(sharper, inputs, additional_forward_args=(1.0,), target=TARGET)
    assert torch.equal(found, leave_one_out(model, inputs, target=TARGET))


def test_bad_arguments_are_refused(model: CausalModel) -> None:
    inputs = (model.image, model.embeddings)
    with pytest.raises(ValueError, match="one example"):
        leave_one_out(model, (model.image, model.embeddings.expand(2, -1, -1)), target=TARGET)
    with pytest.raises(TypeError, match="embeddings of the text last"):
        leave_one_out(model, (model.image, "words"), target=TARGET)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="do not fit embeddings"):
        leave_one_out(model, inputs, torch.zeros(D + 1), target=TARGET)
    with pytest.raises(ValueError, match="the 3 tokens of the answer"):
        leave_one_out(model, inputs, target=TARGET[:2])
    with pytest.raises(ValueError, match="logits of the answer"):
        leave_one_out(model, inputs)
    with pytest.raises(ValueError, match="without a gap"):
        leave_one_out(model, inputs, target=TARGET, feature_mask=WORDS + 1)
    with pytest.raises(ValueError, match="an integer for each"):
        leave_one_out(model, inputs, target=TARGET, feature_mask=WORDS[:2])
    with pytest.raises(ValueError, match="perturbations_per_eval"):
        leave_one_out(model, inputs, target=TARGET, perturbations_per_eval=0)
    with pytest.raises(ValueError, match="attributions must have shape"):
        text_perturbation_curve(model, inputs, torch.ones(T, 2), "deletion", target=TARGET)
    with pytest.raises(ValueError, match="kind"):
        text_perturbation_curve(
            model,
            inputs,
            torch.ones(T, N),
            "both",  # type: ignore[arg-type]
            target=TARGET,
        )
    with pytest.raises(ValueError, match="NaN"):
        text_perturbation_curve(
            model, inputs, torch.full((T, N), torch.nan), "deletion", target=TARGET
        )
    with pytest.raises(ValueError, match="at least 2 tokens"):
        earlier_tokens(3, 1)
