"""Tensors and texts in one file, without pickle, and with a seal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FORMAT = "captum_mllm result 1"


def write(path: str | Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    r"""Write a safetensors file with the facts as JSON in its header.

    Args:
        path (str or Path): the file to write.
        tensors (dict[str, Tensor]): any number of tensors.
        facts (dict[str, Any]): what JSON can hold.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts, ensure_ascii=True)
    header = {"format": FORMAT, "facts": text, "sha256": _seal(tensors, text)}
    # Written by Python, the file gets the permissions that the user's files get.
    Path(path).write_bytes(save(tensors, metadata=header))


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    r"""Read what :func:`write` wrote.

    Args:
        path (str or Path): the file to read.

    Returns:
        tuple[dict[str, Tensor], dict[str, Any]]: the tensors and the facts.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is of another kind, or its content does not match its seal.
    """
    if not Path(path).is_file():
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
    text = header.get("facts", "")
    if header.get("sha256") != _seal(tensors, text):
        raise ValueError(
            f"{str(path)!r} was changed since it was saved: its content does not match its "
            "checksum; make the result anew"
        )
    return tensors, json.loads(text)


def _seal(tensors: dict[str, Tensor], text: str) -> str:
    """A checksum over names, kinds, shapes and bytes: it shows damage, it does not sign."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
