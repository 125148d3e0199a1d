"""Options that commands share: those of a model, and those of a data set."""

from __future__ import annotations

import argparse
from pathlib import Path

DEMO_MODEL = "demo/qwen2-vl"
TRUST = "run the Python code that comes with the model; read it first"
DATA_ENDINGS = (".json", ".jsonl", ".csv")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    r"""Add the options that say which model is explained, and how it is loaded."""
    parser.add_argument(
        "--model",
        default=DEMO_MODEL,
        help="a name on the Hugging Face hub, a folder, or demo/NAME (default: %(default)s)",
    )
    add_loading_arguments(parser)


def add_loading_arguments(parser: argparse.ArgumentParser) -> None:
    r"""Add the options that say how a model is loaded."""
    add = parser.add_argument
    add("--processor", metavar="NAME", help="where its processor is, if not with the model")
    add("--trust-remote-code", action="store_true", help=TRUST)
    add(
        "--device",
        default="auto",
        metavar="NAME",
        help="such as cpu or cuda:1; auto is the first of cuda, mps and cpu that is there, and a "
        "GPU for each process (default: %(default)s)",
    )
    add(
        "--dtype",
        default="auto",
        choices=("auto", "float32", "bfloat16", "float16"),
        help="auto is the checkpoint's own (default: %(default)s)",
    )


def add_data_arguments(parser: argparse._ActionsContainer) -> None:
    r"""Add the options that say what the data is, how it is read, and where models larger than a
    device go."""
    add = parser.add_argument
    add(
        "--format",
        default="auto",
        help="of the data, such as jsonl or refcoco (default: by its names or its first row)",
    )
    add(
        "--images",
        metavar="FOLDER",
        dest="image_folder",
        help="where paths of images in the data begin (default: beside the data)",
    )
    add("--limit", type=int, metavar="N", help="read the first N rows of the data alone")
    add(
        "--on-error",
        default="raise",
        choices=("raise", "skip"),
        help="what a bad row does: end the run, or be skipped, counted and named (default: "
        "%(default)s)",
    )
    add(
        "--answers",
        default="auto",
        choices=("auto", "model", "reference"),
        help="what is explained: the model's own answer or the reference of the data (default: "
        "the reference where there is one, except for yes/no questions and TAM's protocol)",
    )
    add("--resume", action="store_true", help="go on with the run in the folder")
    add(
        "--batch-size",
        type=int,
        default=1,
        metavar="N",
        help="how many images share the model's passes (default: %(default)s)",
    )
    add(
        "--device-map",
        metavar="MAP",
        help="such as auto, for models that are larger than a device; needs accelerate",
    )


def is_data(paths: list[str]) -> bool:
    r"""Whether the command line names a data set, and not images."""
    if len(paths) != 1:
        return False
    return Path(paths[0]).is_dir() or Path(paths[0]).suffix.lower() in DATA_ENDINGS
