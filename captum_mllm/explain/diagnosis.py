"""``diagnose`` says of each content word how likely the image does not show it, and why."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from captum_mllm.explain.calibration import Calibration, default_calibration
from captum_mllm.explain.result_values import ResultValues
from captum_mllm.explain.selection import Selection
from captum_mllm.explain.signals import SIGNALS
from captum_mllm.models.words import FUNCTION_WORDS

# Log-odds that a signal adds before it is named.
_NAMED = 0.5
# No region can say prepositions and auxiliary verbs, so that the lens would call each a risk.
_NO_THINGS = (
    "be am is are was were been being have has had having do does did not about above across "
    "against along among around as at before behind below beneath beside between beyond by for "
    "from in inside into near of off on onto out outside over past through to toward towards "
    "under underneath up upon with within without"
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
            weighty first; empty where nothing does.
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
        return "high" if self.risk >= 0.5 else "some" if self.risk >= 0.2 else "low"


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
        found.append(
            WordRisk(
                word=text,
                tokens=word,
                risk=float(calibration.risk(signals)),
                calibrated=bool(calibration.model) and calibration.model == result.model,
                probability=float(result.output_probs[list(word)].double().prod()),
                why=_why(signals[0], calibration.contributions(signals)[0]),
            )
        )
    return found


def is_content(word: str) -> bool:
    r"""Whether a word may name something that an image shows: it has a letter, and is neither a
    function word of English, nor a preposition, nor a form of be, have or do."""
    return any(map(str.isalpha, word)) and word.lower().strip(".,;:!?'\"") not in _NAMES_NOTHING


def _why(signals: Tensor, contributions: Tensor) -> tuple[str, ...]:
    """What raises the risk of a word, in words."""
    values = dict(zip(SIGNALS, signals.tolist()))
    order = contributions.argsort(descending=True).tolist()
    return tuple(_sentence(SIGNALS[i], values) for i in order if contributions[i] > _NAMED)


def _sentence(name: str, values: dict[str, float]) -> str:
    probability = math.exp(values["probability"])
    if name == "image gain":
        alone = math.exp(min(values["probability"] - values["image gain"], 0.0))
        return f"the words alone predict it with {alone:.0%}, the image adds little"
    if name == "lens confidence":
        return f"no region of the image says it with more than {math.exp(values[name]):.0%}"
    if name == "lens peak":
        return f"no region is above the others for it ({values[name]:.1f} standard deviations)"
    if name == "image attention":
        return f"little attention goes to the image ({math.exp(values[name]):.0%})"
    if name == "without words":
        alone = math.exp(values[name])
        return f"without the words before it the image hardly says it ({alone:.0%})"
    return f"the model gives it {probability:.0%}"


def risk_table(risks: Sequence[WordRisk]) -> str:
    r"""The risks as text, a line for each word."""
    lines = []
    for each in risks:
        why = f"  {'; '.join(each.why)}" if each.why else ""
        lines.append(f"{each.risk:4.2f} {each.level:<5}{each.word}{why}")
    return "\n".join(lines)
