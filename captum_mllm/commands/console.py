"""``show`` and ``escaping``: text on a console, which never costs a user the work behind it."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress


@contextmanager
def escaping() -> Iterator[None]:
    r"""Within it, characters that the console cannot encode are printed as escapes."""
    streams = [each for each in (sys.stdout, sys.stderr) if isinstance(each, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before):
            # It may have been closed in the meantime.
            with suppress(OSError, ValueError):
                stream.reconfigure(errors=errors)


def show(text: str) -> None:
    r"""Print a line at once.

    If nothing can be printed any more, as in a pipe to ``head``, what follows is discarded, and the
    command goes on to write its files.

    Args:
        text (str): The line.
    """
    try:
        print(text, flush=True)
    except OSError as error:
        # Python itself writes to the stream again when it ends.
        with suppress(OSError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            say(f"captum-mllm: the output is cut off: {error}")


def say(text: str) -> None:
    r"""Print a line on standard error, as far as that is possible."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)
