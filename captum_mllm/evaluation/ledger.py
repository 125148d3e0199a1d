"""``Ledger``, the records of a run in files that several processes write, and ``run_blocks``, which
fills it.

No process waits for another: each takes its share of the blocks by their numbers, appends what it
finds to a file of its own, and whoever sees that nothing is missing puts the files together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from captum_mllm.explain.result_file import write_file


class Line(Protocol):
    """A record that is a line of a file."""

    @property
    def key(self) -> Any:
        """What no two records of a run share; keys can be sorted."""

    @property
    def error(self) -> str:
        """Why there is no result; empty where there is one."""

    def to_json(self) -> str:
        """The line."""


R = TypeVar("R", bound=Line)
T = TypeVar("T")


# Where launchers write the rank, the number of processes, and the rank on a machine.
_VARIABLES = (
    (("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK"), "0"),
    (("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"), "1"),
    (("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK"), "0"),
)


class Worker(NamedTuple):
    r"""
    One of the processes that share a run.

    Args:
        rank (int): Which it is, from 0. Default: 0
        world (int): How many there are. Default: 1
        local_rank (int): Which it is on its machine. Default: 0
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def of_environment(cls) -> Worker:
        r"""
        As ``torchrun``, ``accelerate launch`` and ``mpirun`` say it.

        Raises:
            ValueError: If the rank and the number of processes contradict each other.
        """
        given = [
            next((os.environ[name] for name in names if name in os.environ), default)
            for names, default in _VARIABLES
        ]
        if not all(value.isdecimal() for value in given) or not int(given[0]) < int(given[1]):
            raise ValueError(
                f"got RANK={given[0]} and WORLD_SIZE={given[1]} from the environment, expected a "
                "rank from 0 on, below the number of processes"
            )
        return cls(*map(int, given))


class Ledger(Generic[R]):
    r"""
    The records of a run, ``NAME.jsonl`` in a folder.

    While several processes run, each has a file ``NAME.rankN.jsonl``. A line without an end was cut
    off while it was written, and counts for nothing. Records of an error are tried again by the
    next run.

    Args:
        folder (Path): The folder.
        read (Callable): From a line to a record.
        worker (Worker): The process that writes. Default: the only one
        name (str): Of the file. Default: "records"
    """

    def __init__(
        self,
        folder: Path,
        read: Callable[[str], R],
        worker: Worker = Worker(),  # noqa: B008
        name: str = "records",
    ) -> None:
        self.folder = folder
        self.read = read
        self.worker = worker
        self.name = name
        self.path = folder / f"{name}.jsonl"
        alone = worker.world == 1
        self.own = self.path if alone else folder / f"{name}.rank{worker.rank}.jsonl"

    def records(self) -> Iterator[R]:
        r"""
        All records of all processes; of the same key possibly several.

        Raises:
            ValueError: If a line is not a record.
        """
        # Whoever puts the files together replaces the common one before it removes the others.
        for path in (*self._shares(), self.path):
            yield from self._read(path)

    def _shares(self) -> list[Path]:
        """The files of single processes."""
        return sorted(self.folder.glob(f"{self.name}.rank*.jsonl"))

    def _read(self, path: Path) -> Iterator[R]:
        try:
            file = path.open(encoding="utf-8")
        except FileNotFoundError:
            return
        with file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n"):
                    break
                try:
                    yield self.read(line)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error

    def done(self) -> set[Any]:
        r"""The keys of all records that are not errors."""
        return {record.key for record in self.records() if not record.error}

    def write(self, records: Iterable[R]) -> None:
        r"""Append records to the file of this process at once."""
        text = "".join(record.to_json() + "\n" for record in records)
        with self.own.open("a", encoding="utf-8") as file:
            file.write(text)

    def repair(self) -> None:
        r"""Take away from the file of this process a line that was cut off, and errors of an
        earlier run, which are tried again."""
        if not self.own.exists():
            return
        with self.own.open("rb+") as file:
            end = file.seek(0, os.SEEK_END)
            while end:
                start = max(end - (1 << 16), 0)
                file.seek(start)
                found = file.read(end - start).rfind(b"\n")
                if found >= 0:
                    end = start + found + 1
                    break
                end = start
            file.truncate(end)
        if self.own != self.path:
            lines = [record.to_json() + "\n" for record in self._read(self.own) if not record.error]
            write_file(self.own, "".join(lines).encode("utf-8"))

    def merge(self, wanted: Sequence[Any] | None = None) -> list[R] | None:
        r"""
        Put the files of all processes together, if nothing is missing.

        Args:
            wanted (Sequence, optional): The keys of a whole run, in the order of its file.
                Default: None, whatever there is, in the order of the keys.

        Returns:
            list or None: The records that are wanted, each once; None where one is missing. The
            file holds them, and after them those that earlier runs have left.
        """
        if wanted is not None:
            present = self._present()
            if any(key not in present for key in wanted):
                return None
        sizes = {path: path.stat().st_size for path in self._shares() if path.exists()}
        found: dict[Any, R] = {}
        for record in self.records():
            if not record.error or record.key not in found:
                found[record.key] = record
        wanted = sorted(found) if wanted is None else wanted
        if any(key not in found for key in wanted):
            return None
        ordered = [found.pop(key) for key in wanted]
        kept = [*ordered, *(found[key] for key in sorted(found))]
        text = "".join(record.to_json() + "\n" for record in kept)
        write_file(self.path, text.encode("utf-8"))
        for path, size in sizes.items():
            # One that has grown since holds what was not read.
            if path.exists() and path.stat().st_size == size:
                path.unlink(missing_ok=True)
        return ordered

    def _present(self) -> set[Any]:
        """The keys of which nothing has to be done in this run. Other processes may still try
        again what the common file has as an error."""
        known = {record.key for path in self._shares() for record in self._read(path)}
        alone = self.worker.world == 1
        return known | {r.key for r in self._read(self.path) if alone or not r.error}


def in_blocks(tasks: Iterable[T], size: int) -> Iterator[list[T]]:
    r"""
    Tasks in blocks of a size, the last one perhaps smaller.

    Args:
        tasks (Iterable): The tasks.
        size (int): How many make a block.

    Examples::

        >>> list(in_blocks("abcde", 2))
        [['a', 'b'], ['c', 'd'], ['e']]
    """
    left = iter(tasks)
    return iter(lambda: list(islice(left, size)), [])


def run_blocks(
    ledger: Ledger[R],
    blocks: Iterable[Sequence[T]],
    key: Callable[[T], Any],
    score: Callable[[Sequence[T]], Sequence[R]],
    watch: Callable[[int], None] | None = None,
    apply: Callable[..., Iterable[Sequence[R]]] = map,
) -> None:
    r"""
    Score the blocks of this process that are not yet in the ledger.

    A block is always scored as a whole, so that its results depend neither on interruptions nor on
    the number of processes; what is already in the ledger of it is not written again.

    Args:
        ledger (Ledger): The records.
        blocks (Iterable[Sequence]): The tasks, in blocks; the same for all processes.
        key (Callable): From a task to the key of its record.
        score (Callable): From a block to a record for each of its tasks.
        watch (Callable, optional): Told how many tasks are done after each block.
            Default: None
        apply (Callable): As ``map``; that of a pool runs blocks side by side.
    """
    worker = ledger.worker
    ledger.repair()
    done = ledger.done()

    def missing() -> Iterator[Sequence[T]]:
        for number, block in enumerate(blocks):
            if number % worker.world == worker.rank and not all(
                key(each) in done for each in block
            ):
                yield block

    for records in apply(score, missing()):
        new = [record for record in records if record.key not in done]
        ledger.write(new)
        if watch is not None:
            watch(len(new))
