"""The most memory that a piece of work holds at a time, above what was held before."""

from __future__ import annotations

import gc
import json
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.cost.methods import METHODS, Work
from tests.cost.subjects import load_model, make_subject

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def cuda_peak(work: Work, device: torch.device) -> int:
    r"""Bytes of tensors on a GPU, as its allocator counts them."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    return torch.cuda.max_memory_allocated(device) - before


def resident_peak(work: Work) -> int | None:
    r"""Bytes of the process in memory; None where the system does not say (not Linux)."""
    gc.collect()
    try:
        _CLEAR.write_text("5")  # sets the peak back to what is resident now
    except OSError:
        return None
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def allocated_peak(work: Work) -> int:
    r"""Bytes of tensors on the CPU, as its allocator counts them: the same at every run."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        held = work()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        record.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    del held
    memory = [event for event in events if event.get("name") == "[memory]"]
    memory.sort(key=lambda event: event["args"]["Ev Idx"])
    first = memory[0]["args"]
    before = first["Total Allocated"] - first["Bytes"]
    return max(event["args"]["Total Allocated"] for event in memory) - before


def resident_peak_of_fresh_process(
    method: str, shape: str, tokens: tuple[int, int], threads: int, **options: Any
) -> int | None:
    r"""The resident peak of one run of a method in a process that did nothing before.

    Args:
        method (str): the method's name.
        shape (str): the shape's name.
        tokens (tuple[int, int]): image tokens and answer tokens.
        threads (int): threads of the process.
        **options (Any): dtype and layers of ``load_model``.

    Returns:
        int or None: bytes above those of the loaded weights and the prepared inputs.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measure, method, shape, tokens, threads, options).result()


def _measure(
    method: str, shape: str, tokens: tuple[int, int], threads: int, options: dict[str, Any]
) -> int | None:
    torch.set_num_threads(threads)
    subject = make_subject(load_model(shape, "cpu", **options), *tokens)
    return resident_peak(METHODS[method].prepare(subject))


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found.group(1))
