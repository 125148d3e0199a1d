"""``Progress``: how many images are done, how fast, and how long the rest will take."""

from __future__ import annotations

import sys
import time
from contextlib import suppress

_SECONDS = 2.0


class Progress:
    r"""
    A line on standard error, at most every two seconds.

    Args:
        what (str): What is counted.
        total (int): How many there are.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what = what
        self.total = total
        self.done = 0
        self._start = time.monotonic()
        self._shown = self._start

    def __call__(self, count: int) -> None:
        r"""Count so many more."""
        self.done += count
        now = time.monotonic()
        if now - self._shown < _SECONDS and self.done < self.total:
            return
        self._shown = now
        with suppress(OSError):
            print(self.text(now - self._start), file=sys.stderr, flush=True)

    def text(self, seconds: float) -> str:
        r"""
        The line.

        Args:
            seconds (float): Since the beginning.
        """
        speed = self.done / seconds if seconds > 0 else 0.0
        text = f"{self.done} of {self.total} {self.what}, {speed:.2f} a second"
        left = self.total - self.done
        return f"{text}, {duration(left / speed)} left" if left > 0 and speed > 0 else text


def duration(seconds: float) -> str:
    r"""
    A time as people say it.

    Examples::

        >>> duration(42.3), duration(754), duration(7.6 * 3600)
        ('42 s', '13 min', '7.6 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
