"""Each worker of the tests has one core, and so have the programs that they start."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # Here, before torch is imported.
    os.environ["OMP_NUM_THREADS"] = "1"
