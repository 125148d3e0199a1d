"""One core for each worker of the tests, and which families the default run leaves out."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Here, before torch is imported, each worker and the programs that it starts get one core.
    os.environ["OMP_NUM_THREADS"] = "1"

#: A family of each kind of geometry. What is the same for every family is tested on these by
#: default, and on the others with ``-m families``.
KINDS = {"qwen2_vl", "llava", "internvl", "idefics3", "llava_next", "gemma3"}


@pytest.hookimpl(tryfirst=True)  # Before -m chooses.
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from tests.models import tiny_families, tiny_models

    others = {*tiny_families.FAMILIES, *tiny_models.FAMILIES} - KINDS
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if any(isinstance(value, str) and value in others for value in values):
            item.add_marker("families")
