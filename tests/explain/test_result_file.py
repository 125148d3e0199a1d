from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from captum_mllm.explain.result_file import FORMAT, read_result, write_file, write_result

TENSORS = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor([True, False])}
FACTS = {"texts": ["\ud83d", "</script>", "é"], "n": 3}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_result(tmp_path / "x", TENSORS, FACTS)
    tensors, facts = read_result(str(tmp_path / "x"))
    assert facts == FACTS
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_result(path, TENSORS, FACTS)
    whole = path.read_bytes()
    for bad in (whole[: len(whole) // 2], whole[:-1], b"", b"\x80\x04pickle"):
        path.write_bytes(bad)
        with pytest.raises(ValueError, match="is not a saved result"):
            read_result(path)
    save_file({}, path, metadata={"format": "other"})
    with pytest.raises(ValueError, match="of the format 'other'"):
        read_result(path)
    for facts in ("", "{", "[" * 100_000, json.dumps([1])):
        save_file({}, path, metadata={"format": FORMAT, "facts": facts})
        with pytest.raises(ValueError, match="facts"):
            read_result(path)
    with pytest.raises(FileNotFoundError, match="no saved result"):
        read_result(tmp_path / "absent")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_result(tmp_path)


def test_numbers_that_json_has_not_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_result(tmp_path / "x", {}, {"n": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_bad_paths_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent'; create it first"):
        write_file(tmp_path / "absent" / "x", b"")
    with pytest.raises(IsADirectoryError, match="it is a folder; give the name of a file in it"):
        write_file(tmp_path, b"")
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(FileNotFoundError, match="no folder"):
        write_file(tmp_path / "file" / "x", b"")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_write_protected_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The superuser may write everywhere, so the system's answers are given here.
    path = tmp_path / "x"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="file is write-protected"):
        write_file(path, b"new")
    monkeypatch.undo()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(PermissionError, match=r"folder .* is write-protected"):
        write_file(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"


def test_a_failure_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    write = Path.write_bytes

    def fill_the_disk(self: Path, content: bytes) -> int:
        write(self, content[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        write_file(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "x"
    contents = [bytes([letter]) * 1_000_000 for letter in b"ab"]
    write_file(path, contents[0])
    stop = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for turn in range(60):
        write_file(path, contents[turn % 2])
    stop.set()
    reader.join()
    assert seen <= set(contents)


def test_permissions_and_links_stay(tmp_path: Path) -> None:
    path, plain, link = tmp_path / "x", tmp_path / "plain", tmp_path / "link"
    write_file(path, b"a")
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode
    path.chmod(0o640)
    link.symlink_to(path)
    write_file(link, b"b")
    assert link.is_symlink()
    assert path.read_bytes() == b"b"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_pipe_takes_the_bytes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_file(tmp_path / "pipe", b"content")
    reader.join()
    assert got == [b"content"]


def test_a_file_with_another_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_result(path, TENSORS, FACTS)
    whole = path.read_bytes()
    # The last bytes are those of a tensor.
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match="is damaged"):
        read_result(path)


@pytest.mark.parametrize("path", [None, 3, b"result"])
def test_what_is_no_path_is_refused(path: Any) -> None:
    for use in (read_result, lambda given: write_file(given, b"")):
        with pytest.raises(TypeError, match="got a path of type"):
            use(path)
