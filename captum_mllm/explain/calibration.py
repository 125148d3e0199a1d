"""``Calibration``: how signals of a word combine to the risk that the image does not show it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from captum_mllm.explain.result_file import write_file
from captum_mllm.explain.signals import SIGNALS, check_signals

_FORMAT = "captum_mllm calibration 1"
# Weight of the squared weights of standardised signals, per example: it keeps few data from
# making a signal decisive, and a separable set from infinite weights.
_RIDGE = 1e-3
_STEPS = 50


@dataclass(frozen=True)
class Calibration:
    r"""
    A logistic regression on the signals of ``captum_mllm.explain.signals.SIGNALS``.

    .. math::
        \text{risk} = \sigma\Big(b + \sum_s w_s x_s\Big)

    Args:
        weights (Mapping[str, float]): :math:`w_s` for each signal; negative, where the signal is
            evidence that the image shows the word.
        bias (float): b.
        typical (Mapping[str, float]): mean of each signal for words that the image shows, to say
            which signals make a risk high.
        model (str): of which model the words were; for another one risks are a ranking. Default: ""
        data (str): where they came from. Default: ""
        counts (tuple[int, int]): how many words the image showed, and how many it did not.
            Default: (0, 0)

    Raises:
        ValueError: for other signals, or numbers that are not finite.

    Examples::
        >>> import torch
        >>> from captum_mllm.explain import Calibration
        >>> signals = torch.zeros(4, 6)
        >>> signals[:2, 1] = 5.0
        >>> fitted = Calibration.fit(signals, torch.tensor([False, False, True, True]))
        >>> [round(risk) for risk in fitted.risk(signals).tolist()]
        [0, 0, 1, 1]
    """

    weights: Mapping[str, float]
    bias: float
    typical: Mapping[str, float]
    model: str = ""
    data: str = ""
    counts: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        for name, values in (("weights", self.weights), ("typical", self.typical)):
            if set(values) != set(SIGNALS):
                raise ValueError(
                    f"{name} are of the signals {sorted(values)}, expected {sorted(SIGNALS)}; fit "
                    "the calibration anew with captum-mllm calibrate"
                )
        numbers = [self.bias, *self.weights.values(), *self.typical.values()]
        if not all(isinstance(each, (int, float)) and math.isfinite(each) for each in numbers):
            raise ValueError("a calibration has finite numbers only")

    @classmethod
    def fit(cls, signals: Tensor, absent: Tensor, model: str = "", data: str = "") -> Calibration:
        r"""
        The calibration that fits words of which it is known whether the image shows them.

        Args:
            signals (Tensor): of shape (N, len(SIGNALS)).
            absent (Tensor): whether the image does *not* show what each word names, bool, (N,).
            model (str): the model's name. Default: ""
            data (str): where the words come from. Default: ""

        Raises:
            ValueError: if shapes do not fit, or all words are shown, or none.
        """
        if signals.shape != (len(absent), len(SIGNALS)) or absent.ndim != 1:
            raise ValueError(
                f"got signals {tuple(signals.shape)} and labels {tuple(absent.shape)}, expected "
                f"(N, {len(SIGNALS)}) and (N,)"
            )
        absent = absent.bool()
        counts = (int((~absent).sum()), int(absent.sum()))
        if min(counts) == 0:
            raise ValueError(
                f"{counts[0]} words are shown by their images and {counts[1]} are not; a "
                "calibration needs some of both"
            )
        values = signals.double()
        mean, scale = values.mean(0), values.std(0, correction=0).clamp(min=1e-6)
        standard = torch.cat([(values - mean) / scale, values.new_ones(len(values), 1)], dim=1)
        fitted = _logistic(standard, absent.double())
        weights = fitted[:-1] / scale
        return cls(
            weights=dict(zip(SIGNALS, weights.tolist())),
            bias=float(fitted[-1] - (weights * mean).sum()),
            typical=dict(zip(SIGNALS, values[~absent].mean(0).tolist())),
            model=model,
            data=data,
            counts=counts,
        )

    def risk(self, signals: Tensor) -> Tensor:
        r"""
        The risk of each word, (N,) in [0, 1], float64, from its signals (N, len(SIGNALS)).

        Raises:
            ValueError: for signals of another shape, or numbers that are not finite.
        """
        check_signals(signals, len(signals))
        return (signals.double() @ self._vector(self.weights) + self.bias).sigmoid()

    def contributions(self, signals: Tensor) -> Tensor:
        r"""By how much each signal raises the log-odds of the risk over that of a typical word that
        the image shows, (N, len(SIGNALS))."""
        return (signals.double() - self._vector(self.typical)) * self._vector(self.weights)

    def save(self, path: str | Path) -> None:
        r"""Write it as JSON."""
        text = json.dumps({"format": _FORMAT, **asdict(self)}, indent=1, allow_nan=False)
        write_file(path, (text + "\n").encode())

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        r"""
        Read what :meth:`save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is not a calibration.
        """
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(found, dict) or found.pop("format", None) != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT!r}")
            shown, absent = found.pop("counts")
            return cls(**found, counts=(int(shown), int(absent)))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{str(path)!r} is not a calibration: {error}") from error

    @staticmethod
    def _vector(values: Mapping[str, float]) -> Tensor:
        return torch.tensor([values[name] for name in SIGNALS], dtype=torch.float64)


def default_calibration() -> Calibration:
    r"""The calibration that comes with the package, of the bundled models; for others it ranks."""
    return Calibration.load(Path(__file__).with_name("calibration.json"))


def calibration_error(risks: Tensor, absent: Tensor, bins: int = 10) -> float:
    r"""
    Expected calibration error: the mean over bins of equally many words of the difference between
    the mean risk and the share of words that the image does not show.

    Args:
        risks (Tensor): of shape (N,), in [0, 1].
        absent (Tensor): bool, (N,).
        bins (int): how many bins. Default: 10
    """
    order = risks.argsort(stable=True)
    parts: Sequence[Tensor] = [part for part in order.tensor_split(bins) if len(part)]
    gaps = [
        len(part) * abs(float(risks[part].double().mean() - absent[part].double().mean()))
        for part in parts
    ]
    return sum(gaps) / max(len(risks), 1)


def _logistic(inputs: Tensor, labels: Tensor) -> Tensor:
    """Weights of a ridge logistic regression by Newton's method; the last, the bias, is free."""
    weights = inputs.new_zeros(inputs.shape[1])
    ridge = inputs.new_full((inputs.shape[1],), _RIDGE * len(inputs))
    ridge[-1] = 1e-9
    for _ in range(_STEPS):
        risk = (inputs @ weights).sigmoid()
        gradient = inputs.T @ (risk - labels) + ridge * weights
        curvature = (inputs * (risk * (1 - risk))[:, None]).T @ inputs + ridge.diag()
        step = torch.linalg.solve(curvature, gradient)
        weights = weights - step
        if step.abs().max() < 1e-10:
            break
    return weights
