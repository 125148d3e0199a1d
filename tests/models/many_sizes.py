"""Prints by how many MiB images of as many sizes as it is told make a process grow."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

from captum_mllm import MLLM, ImageTextInput
from tests.models.tiny_models import build


def main(count: int) -> None:
    torch.set_num_threads(1)
    mllm = MLLM(*build("qwen2_vl"))
    picture = torch.rand(3, 56, 1500, generator=torch.Generator().manual_seed(0))

    def explain(width: int) -> None:
        image, query = mllm.prepare(ImageTextInput(picture[..., :width], "?"), target="a cat")
        (layout,) = mllm.layouts(image, query)
        layout.paint(torch.ones(layout.n_tokens), image.shape[-2:])
        # As fine as the map of a square image.
        layout.paint(torch.ones(layout.n_tokens), (width, width))

    def resident() -> float:
        gc.collect()
        # What is free but not yet given back by the allocator is not held.
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
            trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20

    # The largest first: what it takes for a moment is not what stays.
    for width in range(1410, 1400, -1):
        explain(width)
    before = resident()
    for width in range(1400, 1400 - count, -1):
        explain(width)
    print(resident() - before)


if __name__ == "__main__":
    main(int(sys.argv[1]))
