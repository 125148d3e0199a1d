"""Runs that accelerate and torchrun start, killed and resumed, bit for bit those of one process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.evaluation.exported import export_lines

psutil = pytest.importorskip("psutil")
pytest.importorskip("accelerate")

#: CAPTUM_MLLM_SCENES=2000 tries so many.
COUNT = int(os.environ.get("CAPTUM_MLLM_SCENES", "24"))
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_machines", "1", "--main_process_port", "0")
TORCHRUN = ("-m", "torch.distributed.run", "--master-port", "0")
LAUNCHERS: dict[str, tuple[str, ...]] = {
    "accelerate 1": (*ACCELERATE, "--cpu", "--num_processes", "1"),
    "accelerate 2": (*ACCELERATE, "--multi_gpu", "--num_processes", "2"),
    "accelerate 3": (*ACCELERATE, "--multi_gpu", "--num_processes", "3"),
    "torchrun 2": (*TORCHRUN, "--nproc-per-node", "2"),
    "none": (),
}
#: Each but the last is killed.
LAUNCHES = ("accelerate 2", "accelerate 2", "torchrun 2", "accelerate 3", "accelerate 1")
LAST = "accelerate 3"


def launch(launcher: str, data: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    # Launchers look for a GPU, and count threads by themselves.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *LAUNCHERS[launcher], "-m", "captum_mllm", "evaluate", str(data)]
    command += ["--methods", "lens", "--metrics", "localization", "--batch-size", "2"]
    command += ["--device", "cpu", "--quiet", "--output", str(output), *more]
    log = (output.parent / f"{output.name}.log").open("a")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, text=True)


def kill(launched: subprocess.Popen[str]) -> None:
    """The launcher and its processes, which may be in groups of their own."""
    family = [psutil.Process(launched.pid)]
    family += family[0].children(recursive=True)
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=60)
    launched.wait(60)


def lines_in(output: Path) -> int:
    return sum(file.read_bytes().count(b"\n") for file in output.glob("records*.jsonl"))


@pytest.mark.slow
def test_killed_launchers_leave_what_an_undisturbed_process_does(tmp_path: Path) -> None:
    data = export_lines(tmp_path / "data", COUNT)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    undisturbed = launch("none", data, whole)
    memory: list[tuple[int, int]] = []
    while undisturbed.poll() is None:
        memory.append((lines_in(whole), psutil.Process(undisturbed.pid).memory_info().rss))
        time.sleep(0.5)
    assert undisturbed.returncode == 0
    # Beyond what loading and the first samples take.
    early = max(size for done, size in memory if done <= COUNT / 2)
    assert max(size for done, size in memory if done < COUNT) < 1.05 * early
    # The report holds the records of all samples.
    assert max(size for _, size in memory) < max(1.05 * early, early + COUNT * (1 << 15))
    chance = random.Random(0)
    for turn, launcher in enumerate(LAUNCHES):
        wanted = lines_in(killed) + chance.randrange(1, COUNT // len(LAUNCHES))
        launched = launch(launcher, data, killed, *(["--resume"] if turn else []))
        while lines_in(killed) < wanted and launched.poll() is None:
            time.sleep(0.01)
        assert launched.poll() is None
        kill(launched)
    assert lines_in(killed) < COUNT
    assert launch(LAST, data, killed, "--resume").wait(3600) == 0
    for name in ("records.jsonl", "results.json", "report.md"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    numbers = [json.loads(line)["number"] for line in (killed / "records.jsonl").open()]
    assert numbers == list(range(COUNT))
