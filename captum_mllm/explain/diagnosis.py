"""``diagnose`` says of each content word how likely the image does not show it, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from captum_mllm.explain.calibration import Calibration, default_calibration
from captum_mllm.explain.result_values import ResultValues
from captum_mllm.explain.selection import Selection
from captum_mllm.explain.signals import BOUND, SIGNALS
from captum_mllm.models.words import FUNCTION_WORDS

# Log-odds that a signal adds before it is named.
_NAMED = 0.5
# The least risk that is not low.
_SOME = 0.2
# No region can say prepositions and auxiliary verbs, so that the lens would call each a risk.
_NO_THINGS = (
    "be am is are was were been being have has had having do does did not about above across "
    "against along among around as at before behind below beneath beside between beyond by for "
    "from in inside into near of off on onto out outside over past through to toward towards "
    "under underneath up upon with within without "
    # What contractions with "not" leave.
    "ai ca sha wo"
)
_NAMES_NOTHING = FUNCTION_WORDS | set(_NO_THINGS.split())


class WordRisk(NamedTuple):
    r"""
    The risk that an image does not show what a word names.

    Args:
        word (str): the word, without the spaces around it.
        tokens (tuple[int, ...]): its tokens, as positions among the explained ones.
        risk (float): in [0, 1].
        calibrated (bool): whether the risk is a probability, fitted for this model; else risks only
            rank words.
        probability (float): the probability of the word, the product over its tokens.
        why (tuple[str, ...]): what makes the risk higher than that of a word that is shown, most
            weighty first; empty for a low risk.
    """

    word: str
    tokens: tuple[int, ...]
    risk: float
    calibrated: bool
    probability: float
    why: tuple[str, ...]

    @property
    def level(self) -> Literal["low", "some", "high"]:
        """``"high"`` from 0.5 on, ``"some"`` from 0.2 on, else ``"low"``."""
        return "high" if self.risk >= 0.5 else "some" if self.risk >= _SOME else "low"


def diagnose(
    result: ResultValues,
    calibration: Calibration | None = None,
    words: Selection | None = None,
) -> list[WordRisk]:
    r"""
    The risk of each content word of an answer.

    Args:
        result (MLLMAttributionResult): an answer explained with ``diagnosis=True``.
        calibration (Calibration, optional): how signals combine. Default: None, the one that comes
            with the package.
        words (optional): the words to judge, as in :meth:`MLLMAttributionResult.map`; each word of
            which a token is selected. Default: None, all words of the answer but punctuation,
            numbers and what names nothing: function words of English, prepositions, and forms of
            be, have and do.

    Returns:
        list[WordRisk]: in the order of the answer.

    Raises:
        ValueError: for a result without signals.
    """
    if result.signals is None:
        raise ValueError(
            "the result has no signals to diagnose; explain the answer with "
            "attribute(..., diagnosis=True)"
        )
    calibration = default_calibration() if calibration is None else calibration
    skipped = len(result.output_tokens) - (len(result.input_tokens) - result.n_prompt)
    chosen = None if words is None else set(result.tokens_of(words))
    found = []
    for word, text in zip(result.words, result.output_words):
        if word[0] < skipped:
            continue
        if not is_content(text) if chosen is None else not chosen & set(word):
            continue
        # The token at which the model was least sure is where it decided on the word.
        token = min(word, key=lambda token: float(result.output_probs[token]))
        signals = result.signals[token][None]
        risk = float(calibration.risk(signals))
        probability = float(result.output_probs[token])
        found.append(
            WordRisk(
                word=text,
                tokens=word,
                risk=risk,
                calibrated=bool(calibration.model) and calibration.model == result.model,
                probability=float(result.output_probs[list(word)].double().prod()),
                why=_why(signals[0], calibration, probability) if risk >= _SOME else (),
            )
        )
    return found


def is_content(word: str) -> bool:
    r"""Whether a word may name something that an image shows: it has a letter, and is neither a
    function word of English, nor a preposition, nor a form of be, have or do, also where another
    word is contracted with it, as in "isn't" and "it's"."""
    bare = word.lower().replace("\u2019", "'").strip(".,;:!?'\"")
    first = bare.removesuffix("n't").partition("'")[0]
    return any(map(str.isalpha, word)) and not {bare, first} & _NAMES_NOTHING


def _why(signals: Tensor, calibration: Calibration, probability: float) -> tuple[str, ...]:
    """What raises the risk of a word, in words: each is of a signal that is lower than usual."""
    values = dict(zip(SIGNALS, signals.tolist()))
    added = dict(zip(SIGNALS, calibration.contributions(signals[None])[0].tolist()))
    return tuple(
        _sentence(name, values[name], probability)
        for name in sorted(SIGNALS, key=lambda name: -added[name])
        if added[name] > _NAMED and values[name] < calibration.typical[name]
    )


def _sentence(name: str, value: float, probability: float) -> str:
    if name == "image gain":
        alone = _percent(min(probability * math.exp(-value), 1.0))
        if value >= 0:
            return f"the words alone predict it with {alone}, the image adds little"
        if value <= -BOUND:
            return f"the image speaks against it: {_percent(probability)} with it, far more without"
        return (
            f"the image speaks against it: {alone} without the image, "
            f"{_percent(probability)} with it"
        )
    if name == "lens confidence":
        return f"no region of the image says it with more than {max(math.exp(value), 0.01):.0%}"
    if name == "lens peak":
        return f"no region is above the others for it ({value:.1f} standard deviations)"
    if name == "image attention":
        return f"little attention goes to the image ({_percent(math.exp(value))})"
    if name == "without words":
        share = _percent(math.exp(value))
        return f"without the words before it the image hardly says it ({share})"
    return f"the model gives it {_percent(probability)}"


def _percent(probability: float) -> str:
    return "less than 1%" if 0 < probability < 0.005 else f"{probability:.0%}"


def risk_table(risks: Sequence[WordRisk]) -> str:
    r"""The risks as text, a line for each word."""
    lines = []
    for each in risks:
        why = f"  {'; '.join(each.why)}" if each.why else ""
        lines.append(f"{each.risk:4.2f} {each.level:<5}{each.word}{why}")
    return "\n".join(lines)
