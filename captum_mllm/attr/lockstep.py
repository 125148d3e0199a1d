"""A function that calls back, turned into steps."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import copy_context
from threading import Semaphore, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class Lockstep(Generic[T]):
    r"""
    Runs a function in a thread of its own that stands still whenever it calls back.

    Of the two threads one works at a time.

    Args:
        work (Callable): the function. It is given a callback without arguments, which returns
            True once the function shall end.
    """

    def __init__(self, work: Callable[[Callable[[], bool]], T]) -> None:
        self._work = work
        self._go, self._stopped = Semaphore(0), Semaphore(0)
        self._closed = False
        self._ended = False
        self._error: BaseException | None = None
        self._result: list[T] = []
        self._thread = Thread(target=copy_context().run, args=(self._run,), daemon=True)

    def advance(self) -> bool:
        r"""Let it run up to its next call; False if it has ended instead.

        Raises:
            BaseException: what the function raises.
        """
        if self._ended:
            return False
        if self._thread.ident is None:
            self._thread.start()
        else:
            self._go.release()
        self._stopped.acquire()
        if self._ended:
            self._thread.join()
        if self._error is not None:
            raise self._error
        return not self._ended

    def result(self) -> T:
        r"""What the function returned.

        Raises:
            RuntimeError: before it has.
        """
        if not self._result:
            raise RuntimeError("the function has not returned")
        return self._result[0]

    def close(self) -> None:
        r"""Have it end, and wait until it has."""
        self._closed = True
        if self._thread.ident is not None and not self._ended:
            self._go.release()
            self._thread.join()
        self._ended = True

    def _run(self) -> None:
        try:
            self._result.append(self._work(self._pause))
        except BaseException as error:
            self._error = error
        self._ended = True
        self._stopped.release()

    def _pause(self) -> bool:
        if not self._closed:
            self._stopped.release()
            self._go.acquire()
        return self._closed
