"""Run the tutorials and store what they show: ``python -m tests.tutorials.execute [NAME ...]``."""

from __future__ import annotations

import argparse
import base64
import io
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from PIL import Image

FOLDER = Path(__file__).parents[2] / "tutorials"
NOTEBOOKS = tuple(sorted(FOLDER.glob("*.ipynb")))
#: The longest that one cell may take, in seconds.
TIMEOUT = 1800
JPEG_QUALITY = 80


def read(path: Path) -> NotebookNode:
    r"""A notebook, checked against the format.

    Args:
        path (Path): the file.

    Returns:
        NotebookNode: the notebook.
    """
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def execute(notebook: NotebookNode) -> NotebookNode:
    r"""Run a notebook from an empty kernel, with outputs that are the same on any machine.

    Args:
        notebook (NotebookNode): the notebook; it is changed in place.

    Returns:
        NotebookNode: the notebook with its outputs.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    with _kernel_environment():
        NotebookClient(
            notebook,
            timeout=TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": str(FOLDER)}},
            record_timing=False,
            coalesce_streams=True,
        ).execute()
    for cell in notebook.cells:
        cell.metadata.clear()
        for output in cell.get("outputs", ()):
            output.pop("metadata", None)
            if output.output_type in ("display_data", "execute_result"):
                output["metadata"] = {}
                _tidy(output.data)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


@contextmanager
def _kernel_environment() -> Iterator[None]:
    """Offline; plots go into the notebook, whatever backend the caller uses; no hint at widgets."""
    before = dict(os.environ)
    os.environ.pop("MPLBACKEND", None)
    os.environ.update(
        HF_HUB_OFFLINE="1",
        TOKENIZERS_PARALLELISM="false",
        PYTHONWARNINGS="ignore:IProgress not found",
    )
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _tidy(data: NotebookNode) -> None:
    """Noise makes a PNG several times as large as a JPEG; addresses tell nothing."""
    if "image/png" in data:
        image = Image.open(io.BytesIO(base64.b64decode(data.pop("image/png")))).convert("RGB")
        content = io.BytesIO()
        image.save(content, "JPEG", quality=JPEG_QUALITY, optimize=True)
        data["image/jpeg"] = base64.b64encode(content.getvalue()).decode()
    if "text/plain" in data:
        data["text/plain"] = re.sub(r" at 0x[0-9a-f]+", "", data["text/plain"])


def main(arguments: Sequence[str] | None = None) -> None:
    r"""The command line.

    Args:
        arguments (Sequence[str], optional): The arguments. Default: those of the process.
    """
    parser = argparse.ArgumentParser(description="Run the tutorials and store what they show.")
    parser.add_argument("names", nargs="*", help="such as 01 or 03_earlier_words (default: all)")
    names = tuple(parser.parse_args(arguments).names)
    chosen = [path for path in NOTEBOOKS if path.name.startswith(names or ("",))]
    if not chosen:
        parser.error(f"no tutorial of that name, there are {[path.stem for path in NOTEBOOKS]}")
    for path in chosen:
        start = time.perf_counter()
        nbformat.write(execute(read(path)), path)
        seconds, size = time.perf_counter() - start, path.stat().st_size / 1000
        print(f"{path.stem}: {seconds:.0f} s, {size:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
