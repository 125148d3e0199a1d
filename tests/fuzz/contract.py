"""What every test of odd inputs asks for: a right result or a reasoned error."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from hypothesis import HealthCheck, settings

ON_DEMAND = "CAPTUM_MLLM_FUZZ" in os.environ
EXAMPLES = int(os.environ.get("CAPTUM_MLLM_FUZZ", "50"))
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not ON_DEMAND,
    suppress_health_check=list(HealthCheck),
)


class Outcome:
    """Whether a call came to an end, and what it warned of."""

    refused: Exception | None = None
    warned: list[str]


@contextmanager
def reasoned() -> Iterator[Outcome]:
    r"""Within it, errors have to be ours: of type TypeError or ValueError, raised by this package
    itself, with a text that says more than a few words."""
    outcome = Outcome()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield outcome
        except (TypeError, ValueError) as error:
            outcome.refused = error
    outcome.warned = [str(warning.message) for warning in caught]
    if outcome.refused is not None:
        assert len(str(outcome.refused)) > 15, f"{outcome.refused!r} gives no reason"
        assert _raised_by_us(outcome.refused), f"{outcome.refused!r} is of another library"


def _raised_by_us(error: Exception) -> bool:
    trace: Any = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return "captum_mllm" in trace.tb_frame.f_code.co_filename
