"""All scores of one picture under one model."""

from __future__ import annotations

from captum_mllm import MLLM
from captum_mllm.evaluation.cases import Case
from captum_mllm.evaluation.catalogue import METHODS
from captum_mllm.evaluation.consistency import agreement_scores, target_scores
from captum_mllm.evaluation.examples import Example
from captum_mllm.evaluation.faithfulness import Faithfulness
from captum_mllm.evaluation.localization import localization_scores
from captum_mllm.evaluation.method import Method
from captum_mllm.evaluation.record import Record
from captum_mllm.evaluation.score import Scores
from captum_mllm.evaluation.settings import Settings

#: The scales are compared on one picture in so many.
CONSISTENCY_EVERY = 5


def score_picture(mllm: MLLM, name: str, example: Example, settings: Settings) -> Record:
    r"""
    Explain a captioned picture with each method, and score what they say.

    Args:
        mllm (MLLM): The model.
        name (str): The model's name.
        example (Example): The picture and its caption.
        settings (Settings): The methods and metrics.

    Returns:
        Record: The scores.

    Raises:
        RuntimeError: If a method fails on this picture.
    """
    case = Case(mllm, example)
    faithfulness = Faithfulness(case, settings.baseline, settings.steps)
    methods: dict[str, Scores] = {}
    with case.sharing():
        for method in (METHODS[name] for name in settings.methods):
            if example.number % method.every:
                continue
            try:
                methods[method.name] = _score(method, case, faithfulness, settings)
            except Exception as error:
                raise RuntimeError(
                    f"{method.name} fails on {name}, {example.style} {example.number}: {error}"
                ) from error
        consistent = "consistency" in settings.metrics and example.number % CONSISTENCY_EVERY == 0
        return Record(
            model=name,
            style=example.style,
            number=example.number,
            methods=methods,
            targets=target_scores(case) if consistent else {},
            agreement=agreement_scores(case) if consistent else {},
        )


def _score(method: Method, case: Case, faithfulness: Faithfulness, settings: Settings) -> Scores:
    wanted = set(settings.metrics) - {"consistency"}
    if method.role == "sweep" or case.example.number % settings.curves_every:
        wanted.discard("curves")
    if not wanted:
        return {}
    maps = method.explain(case).detach().float().cpu().clamp_min(0)
    scores: Scores = {}
    if "localization" in wanted:
        scores |= localization_scores(case, method, maps)
    if "causal" in wanted:
        scores |= faithfulness.causal(maps)
    if "curves" in wanted:
        scores |= faithfulness.curves(maps)
    return scores
