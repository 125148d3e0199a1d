"""``write_result`` and ``read_result``: a result's parts in one safetensors file, without pickle.

The parts are plain values: tensors, and what JSON can hold. Also ``write_file``, which replaces a
file whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "captum_mllm result 2"


def write_result(path: str | Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    r"""
    Write tensors to a safetensors file, with the facts as JSON in its header.

    Args:
        path (str or Path): the file to write.
        tensors (dict[str, Tensor]): any number of tensors.
        facts (dict[str, Any]): values that JSON can hold.

    Raises:
        OSError: as :func:`write_file` has it.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts, ensure_ascii=True, allow_nan=False)
    header = {"format": FORMAT, "facts": text, "digest": _digest(tensors, text)}
    write_file(path, save(tensors, metadata=header))


def read_result(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    r"""
    Read what :func:`write_result` wrote.

    Args:
        path (str or Path): the file to read.

    Returns:
        tuple[dict[str, Tensor], dict[str, Any]]: the tensors and the facts.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if the path is a folder.
        ValueError: if it is a file of another kind, or is cut off.
    """
    check_path(path)
    if Path(path).is_dir():
        raise IsADirectoryError(f"{str(path)!r} is a folder; give the file of a saved result")
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no saved result at {str(path)!r}")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is not a saved result, or is cut off: {error}") from error
    if header.get("format") != FORMAT:
        raise ValueError(
            f"{str(path)!r} is of the format {header.get('format')!r}, expected {FORMAT!r}"
        )
    try:
        facts = json.loads(header.get("facts", ""))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} has no readable facts of a result: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{str(path)!r} has facts of type {type(facts).__name__}, expected dict")
    if "digest" in header and header["digest"] != _digest(tensors, header["facts"]):
        raise ValueError(f"{str(path)!r} is damaged: its content is not what was written")
    return tensors, facts


def _digest(tensors: dict[str, Tensor], facts: str) -> str:
    found = hashlib.sha256(facts.encode("utf-8", "surrogatepass"))
    for name, tensor in sorted(tensors.items()):
        found.update(
            f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode("utf-8", "surrogatepass")
        )
        found.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def check_path(path: Any) -> None:
    r"""Refuse what is not the path of a file.

    Raises:
        TypeError: for anything but a text or a path.
    """
    if not isinstance(path, (str, Path)):
        raise TypeError(f"got a path of type {type(path).__name__}, expected str or pathlib.Path")


def write_file(path: str | Path, content: bytes) -> None:
    r"""
    Write a file so that a failure leaves what was there before.

    The content goes into a file beside it, which then takes its name. The file gets the permissions
    of the one that it replaces, else those that the user's files get. A link stays a link.

    Args:
        path (str or Path): the file to write.
        content (bytes): all of its content.

    Raises:
        FileNotFoundError: if its folder does not exist.
        IsADirectoryError: if the path is a folder.
        PermissionError: if the folder or the file may not be written.
        OSError: for any other failure of the system, such as a full disk.
    """
    check_path(path)
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(
            f"cannot write {str(path)!r}: it is a folder; give the name of a file in it, such as "
            f"{str(Path(path) / 'result')!r}"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"cannot write {str(path)!r}: there is no folder {str(target.parent)!r}; create it "
            "first"
        )
    if target.exists() and not target.is_file():
        # Pipes and devices take bytes, they cannot be replaced.
        target.write_bytes(content)
        return
    if target.exists() and not os.access(target, os.W_OK):
        raise PermissionError(f"cannot write {str(path)!r}: the file is write-protected")
    unfinished = target.with_name(f".{secrets.token_hex(8)}.unfinished")
    try:
        # Made by `open`, the file gets the user's permissions; those of tempfile are stricter.
        unfinished.write_bytes(content)
        if target.exists():
            shutil.copymode(target, unfinished)
        unfinished.replace(target)
    except PermissionError as error:
        raise PermissionError(
            f"cannot write {str(path)!r}: the folder {str(target.parent)!r} is write-protected"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
